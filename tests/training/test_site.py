"""One site's work on real clips and the shipped backbone, a few steps long."""

import json
import shutil
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from privfedtalk_flare.data.media import write_mp4
from privfedtalk_flare.data.sound import SAMPLES_PER_FRAME
from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.summary import METRICS, ROWS
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    ReliabilitySettings,
    TrainingSettings,
)
from privfedtalk_flare.training import lane as lane_module
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


def assert_kept_for_the_site(run, work, measured):
    """Person by person, as a file and in TensorBoard, and the real clips beside the generated ones; all private."""
    told = json.loads((run / "validation.json").read_text(encoding="utf-8"))
    assert list(told) == sorted(person.digest for person in work.people)
    assert [told[person.digest]["shared"]["psnr"] for person in work.people] == measured.rows["shared"]["psnr"]
    board = EventAccumulator(str(run / "tb_events")).Reload()
    assert set(board.Tags()["images"]) == {f"people/{person.key}" for person in work.people}
    (event,) = board.Scalars("metric/shared/psnr")
    assert event.value == pytest.approx(np.mean(measured.rows["shared"]["psnr"]), rel=1e-5)
    films = [run / "videos" / f"{person.key}.real.mp4" for person in work.people]
    private = [run / "validation.json", *films]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert {stat.S_IMODE((run / name).stat().st_mode) for name in ("tb_events", "videos")} == {0o700}


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


def test_what_ran_before_in_the_process_does_not_change_a_round(work, updates, folder):
    """Personalizing freezes the shared factors and leaves a person's own adapter on; a round undoes both."""
    busy = work_at(folder)
    theta = np.zeros(busy.spec.size, np.float32)
    busy.people.pop()
    busy.personalize(theta)
    again = busy.adapter_round(theta, 1)
    assert np.array_equal(again[0].vector, updates[0].vector) and again[0].score == updates[0].score


def test_a_person_whose_training_fails_counts_as_zeros(folder, monkeypatch):
    work = work_at(folder)
    real = lane_module.train_denoiser
    calls = []

    def fails_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise ArithmeticError("the loss is nan")
        return real(*args, **kwargs)

    monkeypatch.setattr(lane_module, "train_denoiser", fails_once)
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
    assert_kept_for_the_site(folder / "run", work, measured)


def test_a_site_may_measure_a_few_people_for_all(folder):
    few = work_at(folder, measured=1)
    measured = few.validate(np.zeros(few.spec.size, np.float32))
    told = json.loads((folder / "run" / "validation.json").read_text(encoding="utf-8"))
    assert list(told) == [few.people[0].digest] and len(few.people) == 2
    assert len(measured.rows["backbone"]["psnr"]) == 1  # egress asks for more before a mean leaves


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
    monkeypatch.setattr(lane_module, "train_denoiser",
                        first_fails(lane_module.train_denoiser, ArithmeticError("the loss is nan")))
    assert work.personalize(theta) == {}  # the mean of one would show that one
    assert len(work.adapters) == 1
    measured = work.validate(theta)
    assert len(measured.rows["shared"]["psnr"]) == 2 and len(measured.rows["personalized"]["psnr"]) == 1


@pytest.fixture(scope="module")
def scores_with(folder):
    """Scores, by settings, of three folders of clips at a site that trains next to nothing: one person's; the same with
    sound half a second late; and two people's clips by turns."""
    corpus = folder / "spoiled"
    for identity, late, people in (("whole", 0, 1), ("late", 12, 1), ("mixed", 0, 2)):
        for clip in range(4):
            rendered = render_clip(Person.draw(7, clip % people), clip, 2.0)
            audio = np.concatenate([np.zeros(late * SAMPLES_PER_FRAME, np.float32), rendered.audio])
            path = corpus / identity / f"{clip}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(path, rendered.frames, audio[:len(rendered.audio)])

    def scores(**reliability: float) -> dict[str, float]:
        place = SitePlace("site-1", corpus, folder / "spoiled-state", folder / "run")
        still = TrainingSettings(steps=1, batch=1, learning_rate=1e-6)
        work = SiteWork("site-1", place, DataSettings(), AdapterSettings(), still, still,
                        ReliabilitySettings(**reliability), BackboneSettings(), print)
        updates = work.adapter_round(np.zeros(work.spec.size, np.float32), 1)
        return {person.train[0].identity: update.score for person, update in zip(work.people, updates, strict=True)}
    return scores


def test_late_sound_lowers_the_score_most_where_lip_sync_counts(scores_with):
    plain, heard = scores_with(lip_sync=0.0), scores_with(lip_sync=1.0)
    assert heard["late"] < 0.5 * heard["whole"] and plain["late"] > 0.7 * plain["whole"]


def test_clips_of_mixed_up_people_are_not_consistent(scores_with):
    scores = scores_with(alpha=1.0)
    assert scores["whole"] > 0.95 and scores["mixed"] < 0.8


def test_a_person_who_cannot_be_measured_is_left_out_by_key(work, monkeypatch):
    first, second = work.people
    real = lane_module.validate_person

    def fails_first(person, *args):
        if person is first:
            raise ValueError("an odd clip")
        return real(person, *args)

    monkeypatch.setattr(lane_module, "validate_person", fails_first)
    measured = work.validate(np.zeros(work.spec.size, np.float32))
    assert all(len(m["psnr"]) == 1 for m in measured.rows.values())
    assert measured.videos == [f"videos/{second.key}.mp4"]
    assert f"validate: measuring person {first.key} failed, who is left out: an odd clip" in work.lines


def test_an_adapter_of_another_backbone_or_rank_counts_as_none(folder):
    work, theta = work_at(folder), np.zeros(90_112, np.float32)
    work.personalize(theta)
    first, second = (folder / "state" / name for name in work.adapters)
    save_file(load_file(first), first, metadata={"backbone": "0" * 64})
    save_file({name: tensor[:4] for name, tensor in load_file(second).items()}, second,
              metadata={"backbone": work.backbone_digest})
    rows = work.validate(theta).rows
    assert "personalized" not in rows and len(rows["shared"]["psnr"]) == 2
    said = [line for line in work.lines if "has no adapter here" in line]
    assert len(said) == 2 and any("of backbone 000000000000" in line for line in said)


def test_a_broken_embedder_is_the_sites_and_no_persons(folder, monkeypatch):
    def broken(source):
        raise ValueError("identity/config.json is no JSON")

    monkeypatch.setattr(lane_module, "load_embedder", broken)
    work, theta = work_at(folder), np.zeros(90_112, np.float32)
    for phase in (lambda: work.adapter_round(theta, 1), lambda: work.validate(theta)):
        with pytest.raises(ValueError, match="no JSON"):
            phase()


def test_clips_that_are_held_out_train_no_backbone(work):
    people = work._backbone_site.people
    assert [len(p.held_out) for p in people] == [len(p.train) for p in people] == [1, 1]


def test_out_of_memory_is_the_sites_and_no_persons(work, monkeypatch):
    def no_room(*args, **kwargs):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(lane_module, "train_denoiser", no_room)
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


def test_people_divided_among_devices_come_out_as_on_one(work, updates, folder):
    many = work_at(folder, devices=("cpu", "cpu"))
    theta = np.zeros(many.spec.size, np.float32)
    assert len(many.lanes) == 2 and "works on cpu, cpu" in many.lines
    again = many.adapter_round(theta, 1)
    assert all(np.array_equal(a.vector, b.vector) and a.score == b.score for a, b in zip(again, updates, strict=True))
    many.personalize(theta)
    assert len(many.validate(theta).rows["personalized"]["psnr"]) == 2


def test_saving_memory_changes_an_update_by_no_more_than_bf16_does(work, updates, folder, tmp_path):
    (tmp_path / "state").mkdir()
    shutil.copy(folder / "state" / "names.key", tmp_path / "state")
    saving = work_at(tmp_path, low_memory=True)  # with latents of its own
    lane = saving.lanes[0]
    again = saving.adapter_round(np.zeros(saving.spec.size, np.float32), 1)
    for one, other in zip(again, updates, strict=True):
        cosine = one.vector @ other.vector / np.linalg.norm(one.vector) / np.linalg.norm(other.vector)
        assert cosine > 0.9 and one.score == pytest.approx(other.score, abs=0.05)
    assert saving.backbone_digest == work.backbone_digest and saving.spec == work.spec
    assert {str(t.dtype) for t in lane.shared.tensors.values()} == {"torch.float32"}
    linear = dict(lane.generator.denoiser.named_parameters())["mid_block.attentions.0.proj_in.weight"]
    assert str(linear.dtype) == "torch.bfloat16" and lane.generator.denoiser.is_gradient_checkpointing
    assert "works on cpu (no CUDA device is here), saving memory" in saving.lines
    assert any(line.startswith("round 1: at most ") and line.endswith(" GiB of memory so far")
               for line in saving.lines)


def test_who_has_no_consent_on_record_is_left_out_where_the_site_demands_it(tmp_path):
    from privfedtalk_flare.data.synthetic import Person, write_corpus

    corpus = tmp_path / "corpus"
    write_corpus(corpus, [Person.draw(1, number) for number in range(2)], 2, 1.2)
    first, second = sorted(path.name for path in corpus.iterdir())
    data = DataSettings(source="site")

    def people(**rules):
        place = SitePlace("site-1", corpus, tmp_path / "state", tmp_path / "run", **rules)
        lines = []
        work = SiteWork("site-1", place, data, AdapterSettings(), QUICK, QUICK, ReliabilitySettings(),
                        BackboneSettings(), lines.append)
        return {person.train[0].identity for person in work.people}, lines

    (corpus / first / "consent.yaml").write_text("given: 2026-01-31\n", encoding="utf-8")
    assert people()[0] == {first, second}
    kept, lines = people(require_consent=True)
    assert kept == {first}
    key = opaque(second, secret_of(tmp_path / "state"))
    assert f"person {key} is left out: no consent.yaml beside their clips" in lines
    (corpus / first / "consent.yaml").write_text("given: 2026-01-31\nwithdrawn: 2026-02-01\n", encoding="utf-8")
    with pytest.raises(NoClipsError):
        people(require_consent=True)
