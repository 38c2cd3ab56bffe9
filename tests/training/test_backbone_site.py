"""One site's backbone rounds: what a task must carry, and what comes back. Training itself is stubbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from privfedtalk_flare.data.clips import Clip
from privfedtalk_flare.settings import BackboneSettings, DataSettings, TrainingSettings
from privfedtalk_flare.training.backbone_site import BackboneSite
from privfedtalk_flare.training.corpus import IdentityClips
from privfedtalk_flare.training.place import SitePlace

SETTINGS = BackboneSettings(codec_rounds=2, identity_rounds=2, denoiser_rounds=2)


def site_at(folder: Path, settings: BackboneSettings = SETTINGS) -> BackboneSite:
    """A fresh process of the one site: same state, same name of the run folder as FLARE's simulator gives every run."""
    place = SitePlace("site-1", None, folder / "state", folder / "simulate_job")
    site = BackboneSite("site-1", place, DataSettings(), TrainingSettings(), settings, lambda text: None)
    clip = Clip("a", "0", np.zeros((40, 64, 64, 3), np.uint8), np.zeros(40 * 640, np.float32), "0" * 64, None)
    site.people = [IdentityClips("k", [clip], [])]
    for part in ("codec", "identity", "denoiser"):
        setattr(site, f"_train_{part}", lambda rng, schedule: 0.5)
    return site


def sent(**parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def test_a_fresh_process_goes_on_from_what_the_task_carries(tmp_path: Path) -> None:
    codec = {name: tensor + 1 for name, tensor in site_at(tmp_path).round("codec", 1, {}).weights.items()}
    again = site_at(tmp_path).round("codec", 2, sent(codec=codec))
    assert again.count == 1 and again.loss == 0.5
    assert all(np.array_equal(again.weights[name], codec[name]) for name in codec if name.startswith("codec."))
    site = site_at(tmp_path)
    site.round("identity", 1, sent(codec=codec))
    assert all(np.array_equal(tensor, codec[name]) for name, tensor in site.backbone.read("codec").items())


def test_parts_of_an_earlier_run_are_never_taken(tmp_path: Path) -> None:
    """Both runs have the same state and folder name: a task without the finished part is refused, not filled in."""
    codec = site_at(tmp_path).round("codec", 1, {}).weights
    identity = site_at(tmp_path).round("identity", 1, sent(codec=codec)).weights
    for phase, round, carried, missing in (("identity", 1, {}, "codec"), ("codec", 2, {}, "codec"),
                                           ("denoiser", 1, sent(identity=identity), "codec"),
                                           ("denoiser", 2, sent(codec=codec), "identity, denoiser")):
        with pytest.raises(ValueError, match=f"{phase} round {round} carries no weights of {missing};"):
            site_at(tmp_path).round(phase, round, carried)
    assert not (tmp_path / "state" / "backbone").exists()
