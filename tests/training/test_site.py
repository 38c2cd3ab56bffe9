"""One site's work on real clips and the shipped backbone, a few steps long."""

import numpy as np
import pytest

from privfedtalk_flare.evaluation.summary import METRICS, ROWS
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    ReliabilitySettings,
    TrainingSettings,
)
from privfedtalk_flare.training import site as site_module
from privfedtalk_flare.training.corpus import NoClipsError, opaque, secret_of
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.site import SiteWork

DATA = DataSettings(source="synthetic", people=2, clips=2, seconds=1.2)
QUICK = TrainingSettings(steps=2, batch=1)


def work_at(folder, data=DATA, **place) -> SiteWork:
    place = SitePlace("site-1", None, folder / "state", folder / "run", **place)
    lines = []
    work = SiteWork("site-1", place, data, AdapterSettings(), QUICK, QUICK, ReliabilitySettings(), BackboneSettings(),
                    lines.append)
    work.lines = lines
    return work


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def work(folder):
    return work_at(folder)


@pytest.fixture(scope="module")
def updates(work):
    return work.adapter_round(np.zeros(work.spec.size, np.float32), 1)


def test_every_identity_gives_one_update(work, updates):
    assert work.prepare() == len(updates) == 2
    assert all(u.vector.shape == (90_112,) and np.linalg.norm(u.vector) > 0 for u in updates)
    assert all(0 <= u.score <= 1 and u.count == 1 for u in updates)


def test_identities_are_trained_each_on_their_own(work, updates, folder):
    """What makes sensitivity C / m true: without the first person the second one's update is bit for bit the same."""
    alone = work_at(folder)
    alone.people.pop(0)
    again = alone.adapter_round(np.zeros(work.spec.size, np.float32), 1)
    assert np.array_equal(again[0].vector, updates[1].vector)


def test_another_round_draws_other_batches(work, updates):
    other = work.adapter_round(np.zeros(work.spec.size, np.float32), 2)
    assert not np.allclose(other[0].vector, updates[0].vector)


def test_a_person_whose_training_fails_counts_as_zeros(folder, monkeypatch):
    work = work_at(folder)
    real = site_module.train_denoiser
    calls = []

    def fails_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise ArithmeticError("the loss is nan")
        return real(*args, **kwargs)

    monkeypatch.setattr(site_module, "train_denoiser", fails_once)
    first, second = work.adapter_round(np.zeros(work.spec.size, np.float32), 1)
    assert not first.vector.any() and first.score == 0.0 and second.vector.any()
    assert any("failed and counts as zero" in line for line in work.lines)


def test_personalize_and_validate(work, folder):
    theta = np.zeros(work.spec.size, np.float32)
    metrics = work.personalize(theta)
    assert set(metrics) == {"loss"}
    files = sorted((folder / "state" / "identities").rglob("*.safetensors"))
    assert [str(f.relative_to(folder / "state")) for f in files] == sorted(work.adapters)
    measured = work.validate(theta)
    assert list(measured.rows) == list(ROWS)
    assert all(set(m) == set(METRICS) and all(len(v) == 2 for v in m.values()) for m in measured.rows.values())
    assert all(v == 100 for v in measured.rows["ground_truth"]["psnr_mask"])
    assert measured.rows["backbone"]["psnr_mask"] == measured.rows["shared"]["psnr_mask"]  # theta is zero
    assert measured.rows["personalized"]["psnr_mask"] != measured.rows["backbone"]["psnr_mask"]
    assert all((folder / "run" / v).stat().st_size > 1000 for v in measured.videos)


def test_one_persons_failures_stay_theirs(folder, monkeypatch):
    """A signal that breaks, an adapter that diverges: the others' updates, adapters and metrics are kept."""
    def first_fails(real, error):
        calls = []

        def wrapped(*args, **kwargs):
            calls.append(1)
            if len(calls) == 1:
                raise error
            return real(*args, **kwargs)
        return wrapped

    work, theta = work_at(folder), np.zeros(90_112, np.float32)
    signal = first_fails(lambda **_: 0.5, ValueError("an odd clip"))
    monkeypatch.setattr(site_module, "load_function", lambda *_: signal)
    first, second = work.adapter_round(theta, 1)
    assert (first.score, second.score) == (0.0, 0.5) and not first.vector.any() and second.vector.any()
    monkeypatch.setattr(site_module, "train_denoiser",
                        first_fails(site_module.train_denoiser, ArithmeticError("the loss is nan")))
    assert work.personalize(theta) == {}  # the mean of one would show that one
    assert len(work.adapters) == 1
    measured = work.validate(theta)
    assert len(measured.rows["shared"]["psnr"]) == 2 and len(measured.rows["personalized"]["psnr"]) == 1


def test_out_of_memory_is_the_sites_and_no_persons(work, monkeypatch):
    def no_room(*args, **kwargs):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(site_module, "train_denoiser", no_room)
    with pytest.raises(RuntimeError, match="allocate"):
        work.adapter_round(np.zeros(work.spec.size, np.float32), 1)


def test_logs_and_paths_carry_no_names(work, folder):
    """Rendered people are called person-00000000; a real corpus has real names there."""
    names = {p.train[0].identity for p in work.people}
    secret = secret_of(folder / "state")
    assert names and all(opaque(n, secret) in {p.key for p in work.people} for n in names)
    assert secret_of(folder / "elsewhere") != secret and secret_of(folder / "state") == secret
    assert (folder / "state" / "names.key").stat().st_mode & 0o077 == 0
    written = [str(p.relative_to(folder)) for p in folder.rglob("*") if "synthetic" not in p.parts]
    assert not [text for text in [*work.lines, *written] for name in names if name in text]


def test_a_site_without_clips_says_what_to_do(tmp_path):
    empty = tmp_path / "clips"
    empty.mkdir()
    place = SitePlace("site-1", empty, tmp_path / "state", tmp_path / "run")
    work = SiteWork("site-1", place, DataSettings(), AdapterSettings(), QUICK, QUICK, ReliabilitySettings(),
                    BackboneSettings(), lambda text: None)
    with pytest.raises(NoClipsError, match="put at least 2 clips of each person"):
        work.prepare()
    nowhere = SitePlace("site-1", None, tmp_path / "state", tmp_path / "run")
    work.place = nowhere
    with pytest.raises(NoClipsError, match="names no corpus"):
        work.prepare()
