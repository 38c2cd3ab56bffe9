"""One person's measurements where a clip leaves a metric undefined."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from privfedtalk_flare.data.clips import Clip
from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.summary import site_rows
from privfedtalk_flare.training import validation
from privfedtalk_flare.training.corpus import IdentityClips
from privfedtalk_flare.training.validation import validate_person


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    rendered = [render_clip(Person.draw(5, 0), number, 1.0) for number in range(3)]
    return [Clip("a", str(i), r.frames, r.audio, f"{i:064x}", r.aperture) for i, r in enumerate(rendered)]


def rows_of(person: IdentityClips, folder: Path, **options: object) -> dict[str, dict[str, float]]:
    def coarse(frames: np.ndarray) -> np.ndarray:
        return frames[:, ::16, ::16].reshape(len(frames), -1).astype(np.float64)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return validate_person(person, lambda base, reference, audio: base, lambda adapter, scene: scene, coarse,
                               folder, 64, **options).rows


def test_a_clip_without_a_known_aperture_does_not_take_sync_from_the_others(clips: list[Clip], tmp_path: Path) -> None:
    silent = dataclasses.replace(clips[1], aperture=None)
    both = rows_of(IdentityClips("k", clips[:1], [silent, clips[2], silent]), tmp_path)  # the first is not measured
    one = rows_of(IdentityClips("k", clips[:1], [clips[2]]), tmp_path)
    assert math.isfinite(both["shared"]["sync"]) and both["shared"]["sync"] == one["shared"]["sync"]
    assert both["copy_reference"]["psnr"] != one["copy_reference"]["psnr"]


def test_what_a_weight_was_chosen_on_is_not_measured_where_there_is_another_clip(clips: list[Clip],
                                                                                 tmp_path: Path) -> None:
    person = IdentityClips("k", clips[:1], clips[1:])
    assert person.scored is clips[1] and list(person.measured) == [clips[2]]
    assert rows_of(person, tmp_path) == rows_of(IdentityClips("k", clips[:1], clips[2:]), tmp_path)
    single = IdentityClips("k", clips[:1], clips[1:2])
    assert single.scored is clips[1] and list(single.measured) == [clips[1]]


def test_a_metric_that_no_clip_defines_is_left_out_and_the_person_counts_elsewhere(clips: list[Clip],
                                                                                   tmp_path: Path) -> None:
    silent = [dataclasses.replace(clip, aperture=None) for clip in clips[1:]]
    rows = rows_of(IdentityClips("k", clips[:1], silent), tmp_path)
    assert math.isnan(rows["shared"]["sync"])
    two = {row: {name: [value, value] for name, value in table.items()} for row, table in rows.items()}
    made = site_rows(two, least=2)
    assert "sync" not in made["shared"] and made["shared"]["psnr"]["n"] == 2


def test_without_a_known_aperture_no_mouth_is_fitted(clips: list[Clip], tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    monkeypatch.setattr(validation, "mouth_aperture", lambda frames: fitted.append(1) or np.arange(len(frames)))
    silent = dataclasses.replace(clips[1], aperture=None)
    rows_of(IdentityClips("k", clips[:1], [silent]), tmp_path)
    assert not fitted
    rows_of(IdentityClips("k", clips[:1], [clips[2]]), tmp_path)
    assert len(fitted) == 5  # rows


def test_samples_show_a_person_and_are_their_owners_alone(clips: list[Clip], tmp_path: Path) -> None:
    rows_of(IdentityClips("k", clips[:1], clips[1:2]), tmp_path / "videos")
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == [
        "k.mp4", "k.png", "k.real.mp4", "k.reference.png"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "videos").iterdir())
    assert (tmp_path / "videos").stat().st_mode & 0o077 == 0


def test_who_has_no_adapter_of_their_own_has_no_such_row_but_a_sample(clips: list[Clip], tmp_path: Path) -> None:
    person = IdentityClips("k", clips[:1], clips[1:2])
    assert "personalized" not in rows_of(person, tmp_path, adapters=("backbone", "shared"))
    assert (tmp_path / "k.mp4").is_file()
