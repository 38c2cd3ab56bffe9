"""The site's filters on real contexts, keys, ledgers and payloads; the chain as FLARE runs it is in test_fedavg.py."""

import math
import re
import shutil
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest
from chain import HEADER, SIZE, Site, Update, person
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.shareable import make_reply
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.fuel.utils import fobs

from privfedtalk_flare.encryption import keys as ckks
from privfedtalk_flare.encryption import packing, sums
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.books import book
from privfedtalk_flare.flare.chunks import from_params, to_params
from privfedtalk_flare.flare.filters import (
    EgressFilter,
    ReserveRelease,
    raw_reply,
    status_reply,
)
from privfedtalk_flare.flare.keys import client_context, server_context
from privfedtalk_flare.flare.sections import plain
from privfedtalk_flare.flare.steps import STOPPED, StepLog
from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.ledger import Ledger
from privfedtalk_flare.privacy.opening import LedgerFiles, create
from privfedtalk_flare.settings import (
    EncryptionSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
    parse,
)


@contextmanager
def blocked(caplog, reason=""):
    """A result is blocked: the exception, which FLARE writes into the log that leaves, says nothing; the own log does.
    """
    caplog.clear()
    with pytest.raises(ContentBlockedException, match=r"^\w+: the result may not leave; this site's own log") as caught:
        yield
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert re.search(reason, caplog.text), caplog.text
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def booked(site):
    """Releases in a simulated site's ledger, which is made with the first."""
    return Ledger(site.state).head.count if (site.state / "ledger.jsonl").exists() else 0


def test_a_round_leaves_as_ciphertext_of_the_clipped_noised_average(tmp_path):
    site = Site(tmp_path, privacy={"clip_norm": 0.1})
    assert site.receive().data == {}
    sent = site.send([person(0), person(1)])
    assert sent.meta == {**HEADER, p.KEY_ID: ckks.key_id(site.key()), p.VALUES: SIZE, p.BUSY: [[1, 2]],
                         p.SCORE: 0.75, p.COUNT: 8, p.IDENTITIES: 2, p.EPSILON: sent.meta[p.EPSILON],
                         p.LEDGER: asdict(Ledger(site.state).head)}
    assert sent.meta[p.LEDGER]["count"] == 1
    assert set(sent.meta[p.EPSILON]) == {"receivers", "server", "server_and_site"}
    update = packing.decrypt(from_params(sent.data), SIZE, site.key())
    assert update.std() == pytest.approx(0.1 / 2, rel=0.1)  # sigma C / m, and the signal is far below it


def test_without_mechanism_the_average_leaves_exactly(tmp_path):
    site = Site(tmp_path, privacy={"mechanism": "off"})
    site.receive()
    people = [person(0), person(1)]
    sent = site.send(people)
    assert sent.meta[p.EPSILON]["receivers"] == "unbounded"
    update = packing.decrypt(from_params(sent.data), SIZE, site.key())
    np.testing.assert_allclose(update, (people[0].vector + people[1].vector) / 2, atol=1e-6)


@pytest.mark.parametrize(("mode", "score", "count"), [
    ("metadata", True, True), ("counts", False, True), ("sealed", False, False), ("uniform", False, False)])
def test_the_score_travels_in_metadata_mode_only_and_the_count_where_it_weighs(tmp_path, mode, score, count):
    site = Site(tmp_path, reliability={"mode": mode})
    site.receive()
    meta = site.send([person()]).meta
    assert (p.SCORE in meta, p.COUNT in meta) == (score, count)


@pytest.mark.parametrize("mode", ["sealed", "uniform"])
def test_each_round_draws_its_own_sample_and_who_is_not_in_it_counts_with_zeros(tmp_path, mode, monkeypatch):
    """A tiny noise, so that the update shows who is in it."""
    drawn = []
    monkeypatch.setattr(mechanism.PoissonSample, "of", lambda sample, m, of=mechanism.PoissonSample.of: (
        drawn.append(of(sample, m)), drawn[-1])[1])
    site = Site(tmp_path, privacy={"sampling": 0.5, "noise_multiplier": 1e-3, "clip_norm": 1.0},
                reliability={"mode": mode, "gamma": 0.0, "max_clips": 4})
    people = [Update(np.eye(16, SIZE, i, dtype=np.float32)[0], 0.75, 4) for i in range(16)]
    for number in range(4):
        header = {**HEADER, p.NONCE: f"{number:04x}"}
        site.receive(**header)
        sent = site.send(people, header)
        update = packing.decrypt(from_params(sent.data), SIZE, site.key())
        np.testing.assert_allclose(update[:16], drawn[number] / 8, atol=0.002)  # 1 / (q m)
        assert sent.meta[p.IDENTITIES] == 16 and "sample" not in repr(sent.meta)
    assert len(drawn) == 4 and len({sample.tobytes() for sample in drawn}) > 1
    assert [entry.release.sampling for entry in Ledger(site.state).entries] == [0.5] * 4


def test_an_empty_sample_leaves_as_noise_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(mechanism.PoissonSample, "of", lambda sample, m: np.zeros(m, bool))
    site = Site(tmp_path, privacy={"sampling": 0.25, "clip_norm": 0.1}, reliability={"mode": "uniform"})
    site.receive()
    update = packing.decrypt(from_params(site.send([person(0, 100.0), person(1, 100.0)]).data), SIZE, site.key())
    assert update.std() == pytest.approx(0.1 / (0.25 * 2), rel=0.1)
    assert np.abs(np.corrcoef(update, person(0).vector)[0, 1]) < 0.1


DISTRIBUTED = {"noise": "distributed", "honest_sites": 4, "people": 5, "noise_multiplier": 2.0, "clip_norm": 0.1}
SAME = {p.AGREED: {"privacy": plain(parse(PrivacySettings, DISTRIBUTED, "privacy"))}}


@pytest.mark.parametrize("mode", ["uniform", "sealed"])
def test_distributed_noise_is_a_share_and_every_site_divides_by_the_same_m(tmp_path, mode):
    reliability = {"mode": mode, "gamma": 0.0, "max_clips": 4}
    site = Site(tmp_path, privacy=DISTRIBUTED, reliability=reliability, rounds={"min_sites": 5})
    site.receive(**SAME)
    sent = site.send([person(0, 0.0), person(1, 0.0)])
    update = packing.decrypt(from_params(sent.data), SIZE, site.key())
    assert update.std() == pytest.approx(2.0 / math.sqrt(4) * 0.1 / 5, rel=0.1)
    assert sent.meta[p.IDENTITIES] == 2
    booked, = Ledger(site.state).entries
    assert (booked.trust, booked.release.honest, booked.release.noise_multiplier) == ("distributed", 4, 2.0)
    quiet = Site(tmp_path / "quiet", privacy={**DISTRIBUTED, "noise_multiplier": 1e-3, "clip_norm": 1.0},
                 reliability=reliability, rounds={"min_sites": 5})
    quiet.receive(**{p.AGREED: {}})
    people = [person(0, 1e-3), person(1, 1e-3)]
    update = packing.decrypt(from_params(quiet.send(people).data), SIZE, quiet.key())
    np.testing.assert_allclose(update, (people[0].vector + people[1].vector) / 5, atol=1e-3)


def test_distributed_noise_needs_encryption_and_no_more_people_than_agreed(tmp_path, caplog):
    open_site = {"encryption": {"scheme": "off"}, "yaml": "require_encryption: false\n", "rounds": {"min_sites": 5}}
    bare = Site(tmp_path / "bare", privacy=DISTRIBUTED, reliability={"mode": "uniform"}, **open_site)
    assert bare.receive(**SAME).meta[p.STATUS] == p.STATUS_NO_ENCRYPTION
    site = Site(tmp_path, privacy=DISTRIBUTED, reliability={"mode": "uniform"}, rounds={"min_sites": 5})
    assert site.receive().meta[p.STATUS] == p.STATUS_WRONG_HEADER  # nobody says that all have the same settings
    site.receive(**SAME)
    with blocked(caplog, "this site has 6 people, and the job's privacy.people"):
        site.send([person(number) for number in range(6)])
    with pytest.raises(SettingsError, match="takes 5 replies or more"):
        ReserveRelease(DISTRIBUTED, {"mode": "uniform"}, {"min_sites": 4})


@pytest.mark.parametrize("shares", [False, True])
def test_a_plain_update_with_a_share_of_the_noise_never_leaves(tmp_path, caplog, shares):
    """Whatever chain a job has: here one that decrypts tasks and does not encrypt results."""
    site = Site(tmp_path, yaml="require_encryption: false\n")
    book(site.ctx, HEADER, Release(1.0, honest=4 if shares else 1))
    plain_update = DXO(DataKind.WEIGHTS, data={p.PLAIN: np.ones(SIZE, np.float32)}, meta={**HEADER, p.VALUES: SIZE})
    site.egress = EgressFilter({"scheme": "off"})
    if not shares:
        assert set(site.leave(plain_update).data) == {p.PLAIN}
        return
    with blocked(caplog, "where sites do not share the noise"):
        site.leave(plain_update)


ADAPTIVE = {"clip_quantile": 0.5, "clip_norm": 0.1, "clip_range": 4.0, "noise_multiplier": 1e-3,
            "clip_bit_noise_multiplier": 1e-3}


def test_with_adaptive_clipping_the_tasks_c_clips_and_the_bit_leaves(tmp_path):
    site = Site(tmp_path, privacy=ADAPTIVE, reliability={"mode": "uniform"})
    site.receive(**{p.CLIP_NORM: 0.2})
    long, short = person(0), person(1, 0.001)
    sent = site.send([long, short, long, person(2, np.nan)])
    update = packing.decrypt(from_params(sent.data), SIZE, site.key())
    norm = np.linalg.norm(long.vector)
    np.testing.assert_allclose(update, (2 * long.vector * (0.2 / norm) + short.vector) / 4, atol=2e-3)
    assert sent.meta[p.CLIP_BIT] == pytest.approx(-0.125, abs=0.01)  # one within, two above, one that failed
    booked, = Ledger(site.state).entries
    assert booked.clip_norm == 0.2 and booked.release.clip_bit_noise_multiplier == 1e-3


@pytest.mark.parametrize(("told", "privacy"), [
    ({p.CLIP_NORM: 0.5}, ADAPTIVE), ({p.CLIP_NORM: 0.02}, ADAPTIVE), ({p.CLIP_NORM: np.nan}, ADAPTIVE),
    ({p.CLIP_NORM: "0.1"}, ADAPTIVE), ({}, ADAPTIVE), ({p.CLIP_NORM: 0.1}, {"clip_norm": 0.1})])
def test_a_task_with_a_c_that_the_job_does_not_know_is_declined_and_costs_nothing(tmp_path, told, privacy):
    site = Site(tmp_path, privacy=privacy, reliability={"mode": "uniform"})
    assert site.receive(**told).meta[p.STATUS] == p.STATUS_WRONG_HEADER
    assert booked(site) == 0


@pytest.mark.parametrize(("mechanism", "mode", "sent"), [
    ("off", "metadata", [("score", 0.5625)]), ("off", "sealed", []), ("off", "uniform", []),
    ("off", "counts", []), ("gaussian", "metadata", [])])
def test_the_score_is_tracked_as_released_or_not_at_all(tmp_path, mechanism, mode, sent):
    site = Site(tmp_path, privacy={"mechanism": mechanism}, reliability={"mode": mode})
    site.receive()
    reply = site.send([person(0, score=0.53), person(1, score=0.61)])
    assert site.scalars == sent and all(value == reply.meta[p.SCORE] for _, value in sent)


def test_sealed_weighs_each_identity_on_its_site(tmp_path):
    site = Site(tmp_path, privacy={"mechanism": "off"}, reliability={"mode": "sealed", "gamma": 2.0, "max_clips": 8})
    site.receive()
    a, b = person(0, score=1.0, count=8), person(1, score=0.5, count=4)
    update = packing.decrypt(from_params(site.send([a, b]).data), SIZE, site.key())
    np.testing.assert_allclose(update, 0.5 * a.vector + 0.25 * np.exp(-1) * b.vector, atol=1e-6)


def test_theta_comes_back_from_a_sum_of_the_server(tmp_path):
    site = Site(tmp_path)
    site.receive()
    theta = np.random.default_rng(5).normal(size=SIZE)
    upload = packing.encrypt(theta, site.key())
    total = sums.weighted_sum({"a": upload}, {"a": 1.0}, server_context(site.ctx), size=SIZE)
    got = site.receive(to_params(total), key_id=ckks.key_id(site.key()))
    np.testing.assert_allclose(got.data[p.PLAIN], theta, atol=3e-4)
    assert got.data[p.PLAIN].shape == (SIZE,) and p.STATUS not in got.meta


def test_simulated_sites_share_one_pair_and_the_server_opens_the_public_half(tmp_path):
    first, second = Site(tmp_path), Site(tmp_path, name="site-2")
    assert ckks.key_id(first.key()) == ckks.key_id(second.key())
    assert not server_context(second.ctx).is_private()
    assert (tmp_path / "keys" / "client_context.tenseal").stat().st_mode & 0o077 == 0


def test_the_server_refuses_a_context_with_a_secret_key(tmp_path):
    site = Site(tmp_path)
    site.key()
    (tmp_path / "keys" / "server_context.tenseal").write_bytes(
        (tmp_path / "keys" / "client_context.tenseal").read_bytes())
    with pytest.raises(ckks.KeyFault, match="holds a secret key"):
        server_context(site.ctx)


def test_outside_a_simulation_keys_are_provisioned_or_refused(tmp_path):
    site = Site(tmp_path)
    site.ctx.set_prop(FLContextKey.SIMULATE_MODE, False, private=True, sticky=True)
    for load in (lambda: client_context(site.ctx, EncryptionSettings()), lambda: server_context(site.ctx)):
        with pytest.raises(ckks.KeyFault, match="HEBuilder"):
            load()
    assert not (tmp_path / "keys").exists()


# What comes in wrong

def test_another_key_garbage_and_plain_data_are_declined_before_anything_is_booked(tmp_path):
    site = Site(tmp_path)
    stranger = ckks.load_secret(ckks.make_pair(EncryptionSettings())[0])
    own = ckks.key_id(site.key())
    foreign = to_params(packing.encrypt(np.ones(SIZE), stranger))
    for data, meta, status in [
        (foreign, {p.KEY_ID: ckks.key_id(stranger)}, p.STATUS_WRONG_HEADER),
        ({}, {p.KEY_ID: "f" * 64}, p.STATUS_WRONG_HEADER),
        ({"chunk_0000": np.zeros(999, np.uint8)}, {p.KEY_ID: own}, p.STATUS_DATA_ERROR),
        ({p.PLAIN: np.zeros(SIZE, np.float32)}, {p.KEY_ID: own}, p.STATUS_DATA_ERROR),
        (foreign, {p.KEY_ID: own, p.ZERO: True}, p.STATUS_DATA_ERROR),
    ]:
        got = site.receive(data, **meta)
        assert got.meta[p.STATUS] == status and got.data == {}
    assert booked(site) == 0


def test_a_spent_budget_declines_before_training(tmp_path):
    site = Site(tmp_path, yaml="epsilon_max: 5.0\n")  # one round at sigma 1 costs 4.38
    assert p.STATUS not in site.receive().meta
    got = site.receive(nonce="second")
    assert got.meta[p.STATUS] == p.STATUS_BUDGET_SPENT and got.data == {}
    assert Ledger(site.state).head.count == 1


@pytest.mark.parametrize(("yaml", "privacy", "who"), [
    ("epsilon_max: 5.0\n", {"epsilon_max": 100.0}, "epsilon_max 5 of this site's privfedtalk.yaml"),
    ("epsilon_max: 100.0\n", {"epsilon_max": 5.0}, "epsilon_max 5 of this job"),
    ("", {"epsilon_max": 5.0}, "epsilon_max 5 of this job"),
    ("epsilon_max: 5.0\n", {"delta": 0.4}, "at delta 1e-05, above the epsilon_max 5 of this site"),
    ("epsilon_max: 4.5\ndelta: 1.0e-6\n", {}, "at delta 1e-06, above the epsilon_max 4.5 of this site")])
def test_a_budget_of_the_site_is_never_loosened_by_a_job_nor_a_jobs_by_the_site(tmp_path, caplog, yaml, privacy, who):
    site = Site(tmp_path, yaml=yaml, privacy=privacy)
    got = [site.receive(nonce=nonce).meta.get(p.STATUS) for nonce in ("a", "b")]
    assert got == ([p.STATUS_BUDGET_SPENT] * 2 if "1e-06" in who else [None, p.STATUS_BUDGET_SPENT])
    assert who in caplog.text


# A ledger that is missing or taken back

def provisioned(root, **settings):
    """A site outside the simulator, whose ledger is made by its operator; without encryption, as it has no kit."""
    yaml = "require_encryption: false\n" + settings.pop("yaml", "")
    site = Site(root, yaml=yaml, encryption={"scheme": "off"}, **settings)
    site.ctx.set_prop(FLContextKey.SIMULATE_MODE, False, private=True, sticky=True)
    site.ctx.set_prop(FLContextKey.WORKSPACE_ROOT, str(root / "site-1"), private=True, sticky=True)
    (root / "site-1" / "local" / "resources.json").write_text('{"allow_log_streaming": false}')
    return site, LedgerFiles.of(site.state, root / "site-1" / "local")


def test_a_site_without_a_ledger_says_which_command_makes_one(tmp_path, caplog):
    site, files = provisioned(tmp_path)
    assert site.receive().meta[p.STATUS] == p.STATUS_NO_LEDGER
    assert "run `privfedtalk privacy init WORKSPACE` once" in caplog.text and not files.ledger.exists()
    create(files)
    assert p.STATUS not in site.receive().meta
    assert site.send([person()]).meta[p.LEDGER]["count"] == 1


@pytest.mark.parametrize("name", ["ledger", "key", "anchor"])
@pytest.mark.parametrize("simulated", [True, False])
def test_a_site_that_lost_a_part_of_its_ledger_stops_also_in_the_simulator(tmp_path, caplog, name, simulated):
    if simulated:
        site, files = Site(tmp_path), LedgerFiles.of(tmp_path / "state" / "site-1")
    else:
        site, files = provisioned(tmp_path)
        create(files)
    assert p.STATUS not in site.receive().meta
    getattr(files, name).unlink()
    got = site.receive()
    assert got.meta[p.STATUS] == p.STATUS_NO_LEDGER and got.data == {}
    assert "from a backup" in caplog.text and not getattr(files, name).exists()


def test_the_anchor_lies_where_the_sites_own_file_says(tmp_path):
    site = Site(tmp_path, yaml=f"anchor: {tmp_path / 'elsewhere'}/{{site}}\n")
    site.receive()
    assert (tmp_path / "elsewhere" / "site-1" / "ledger.anchor").is_file()
    shutil.rmtree(site.state)
    assert site.receive().meta[p.STATUS] == p.STATUS_NO_LEDGER


def test_a_shortened_ledger_declines(tmp_path):
    site = Site(tmp_path)
    site.receive()
    (site.state / "ledger.jsonl").write_text("")
    assert site.receive().meta[p.STATUS] == p.STATUS_LEDGER


def test_a_ledger_behind_the_servers_echo_declines_and_one_at_it_books(tmp_path, caplog):
    site = Site(tmp_path)
    site.receive()
    echo = {"site-1": asdict(Ledger(site.state).head), "site-2": {"id": "0" * 32, "count": 9, "head": "0" * 64}}
    assert p.STATUS not in site.receive(echo=echo).meta and booked(site) == 2
    shutil.rmtree(site.state)  # a simulated site makes its ledger anew
    got = site.receive(echo=echo)
    assert got.meta[p.STATUS] == p.STATUS_LEDGER and booked(site) == 0
    assert "the server knows this site by ledger" in caplog.text


@pytest.mark.parametrize("echo", [7, {"site-1": 3}, {"site-1": {"id": "x", "count": 1, "head": "0" * 64}},
                                  {"site-1": {"id": "0" * 32, "count": -1, "head": "0" * 64}}])
def test_an_echo_that_is_none_declines(tmp_path, echo):
    site = Site(tmp_path)
    assert site.receive(echo=echo).meta[p.STATUS] == p.STATUS_WRONG_HEADER and booked(site) == 0


def test_a_broken_ledger_declines(tmp_path):
    site = Site(tmp_path)
    site.receive()
    ledger = site.state / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"round":1', '"round":2'))
    assert site.receive().meta[p.STATUS] == p.STATUS_LEDGER


def test_a_job_without_encryption_is_declined_where_the_site_demands_it(tmp_path):
    site = Site(tmp_path, encryption={"scheme": "off"})
    assert site.receive().meta[p.STATUS] == p.STATUS_NO_ENCRYPTION
    willing = Site(tmp_path, yaml="require_encryption: false\n", encryption={"scheme": "off"})
    assert p.STATUS not in willing.receive().meta
    sent = willing.send([person()])
    assert set(sent.data) == {p.PLAIN} and sent.data[p.PLAIN].dtype == np.float32


AGREED = {"privacy": plain(PrivacySettings()), "reliability": plain(ReliabilitySettings())}


@pytest.mark.parametrize(("task", "change", "said"), [
    (p.TASK_ADAPTER, {p.JOB: "job-2"}, "header job: the server says 'job-2', this site runs 'job-1'"),
    (p.TASK_BACKBONE, {p.JOB: "job-2"}, "header job: the server says 'job-2', this site runs 'job-1'"),
    (p.TASK_ADAPTER, {p.AGREED: {**AGREED, "privacy": plain(PrivacySettings(noise_multiplier=9.0))}},
     "privacy: the server's settings differ from this site's in noise_multiplier"),
    (p.TASK_ADAPTER, {p.AGREED: {**AGREED, "reliability": {}}}, "in alpha, gamma, lip_sync, max_clips"),
    (p.TASK_ADAPTER, {p.AGREED: {"data": {}}}, "'data' cannot be compared; the choices are privacy, reliability"),
    (p.TASK_ADAPTER, {p.AGREED: {**AGREED, "rounds": plain(RoundSettings(eta=9.0))}}, "rounds: the server's settings"),
    (p.TASK_ADAPTER, {p.MOVED: [1.0]}, "does not say how far theta has moved")])
def test_a_task_that_does_not_agree_is_declined_before_anything_is_booked(tmp_path, caplog, task, change, said):
    site = Site(tmp_path, task=task)
    site.data = site.data[-1:] if task == p.TASK_BACKBONE else site.data
    got = site.receive(**{**StepLog().told(), p.AGREED: AGREED, **change})
    assert got.meta[p.STATUS] == p.STATUS_WRONG_HEADER and got.data == {}
    assert said in caplog.text and booked(site) == 0
    assert p.STATUS not in site.receive(**{**StepLog().told(), p.AGREED: AGREED}).meta
    assert Ledger(site.state).head.count == 1


def test_a_site_that_allows_no_backbone_declines_before_anything_is_booked(tmp_path, caplog):
    site = Site(tmp_path, task=p.TASK_BACKBONE, yaml="allow_backbone: false\n", encryption={"scheme": "off"})
    got = site.receive({"codec/conv.weight": np.ones(3, np.float32)})
    assert got.meta[p.STATUS] == p.STATUS_NO_BACKBONE and got.data == {}
    assert "allow_backbone: false" in caplog.text and booked(site) == 0
    adapter = Site(tmp_path, yaml="allow_backbone: false\n")
    assert p.STATUS not in adapter.receive().meta


def test_backbone_rounds_are_booked_without_noise(tmp_path):
    site = Site(tmp_path, task=p.TASK_BACKBONE)
    ReserveRelease({}, {}).process(DXO(DataKind.WEIGHTS, data={}, meta=HEADER).to_shareable(), site.ctx)
    assert Ledger(site.state).epsilon(1e-5)["receivers"].value == "unbounded"


# What must not go out

def test_raw_updates_cannot_be_serialised():
    with pytest.raises(RuntimeError, match="can't be serialized"):
        fobs.dumps(raw_reply([person()], HEADER))
    fobs.register(NumpyArrayDecomposer)
    bare = DXO(DataKind.WEIGHTS, data={"updates": [person()]}, meta=HEADER).to_shareable()
    assert fobs.dumps(bare), "FLARE writes any dataclass by itself: this is why RawUpdates exists"


def test_no_release_without_a_reservation_in_this_task(tmp_path, caplog):
    site = Site(tmp_path)
    with blocked(caplog, "no release is booked"):
        site.send([person()])
    site.receive()
    with blocked(caplog, "no release is booked"):
        site.send([person()], {**HEADER, p.NONCE: "other"})
    site.receive()
    site.send([person()])
    with blocked(caplog, "no release is booked"):
        site.send([person()])  # one booking, one release


def test_a_reservation_at_other_settings_does_not_count(tmp_path, caplog):
    site = Site(tmp_path)
    site.data[-1] = ReserveRelease({"noise_multiplier": 100.0}, {})
    site.receive()
    with blocked(caplog, "with the same settings"):
        site.send([person()])


def test_nan_of_one_person_counts_as_zeros(tmp_path):
    site = Site(tmp_path, privacy={"mechanism": "off"})
    site.receive()
    good, bad = person(0, score=0.5), Update(np.full(SIZE, np.nan, np.float32), float("nan"), 4)
    sent = site.send([good, bad])
    update = packing.decrypt(from_params(sent.data), SIZE, site.key())
    np.testing.assert_allclose(update, good.vector / 2, atol=1e-6)
    assert sent.meta[p.SCORE] == 0.25


def test_wrong_shape_and_unknown_content_are_blocked(tmp_path, caplog):
    site = Site(tmp_path)
    site.receive()
    with blocked(caplog, r"shape \(3,\), not \(2500,\)"):
        site.send([Update(np.zeros(3, np.float32), 0.5, 1)])
    other = DXO(DataKind.WEIGHTS, data={"w": np.ones(3)}, meta=HEADER).to_shareable()
    for one in site.result:
        with blocked(caplog):
            one.process(other, site.ctx)


def test_failed_results_lose_their_payload_in_every_filter(tmp_path):
    site = Site(tmp_path)
    for one in [*site.result, site.egress]:
        reply = DXO(DataKind.WEIGHTS, data={"secret": np.ones(3)}, meta={**HEADER, "why": "Ann's clip 3",
                    p.STATUS: p.STATUS_OUT_OF_MEMORY}).update_shareable(make_reply(ReturnCode.EXECUTION_EXCEPTION))
        reply["aside"] = "secret"
        out = one.process(reply, site.ctx)
        assert out.get_return_code() == ReturnCode.EXECUTION_EXCEPTION and "aside" not in out
        dxo = from_shareable(out)
        assert dxo.data == {} and dxo.meta == {**HEADER, p.STATUS: p.STATUS_OUT_OF_MEMORY}
        bare = one.process(make_reply(ReturnCode.EXECUTION_RESULT_ERROR), site.ctx)
        assert from_shareable(bare).meta == {p.STATUS: p.STATUS_FAILED}


def test_a_failed_result_cannot_carry_content_in_its_header_or_code(tmp_path):
    reply = DXO(DataKind.WEIGHTS, data={}, meta={**HEADER, p.NONCE: np.ones(3), p.BUSY: [np.ones(3)]}).update_shareable(
        make_reply("Ann's update: 0.1, 0.2"))
    out = Site(tmp_path).egress.process(reply, None)
    assert out.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert {p.NONCE, p.BUSY}.isdisjoint(from_shareable(out).meta) and from_shareable(out).meta[p.JOB] == "job-1"


def test_a_filter_that_breaks_names_nothing_where_others_read_it(tmp_path, caplog):
    site = Site(tmp_path, yaml="corpse: /home/ann/clips\n")
    assert site.receive().meta[p.STATUS] == p.STATUS_FAILED
    assert "unknown setting 'corpse'" in caplog.text
    book(site.ctx, HEADER, Release(1.0))
    with blocked(caplog, "corpse"):
        site.leave(DXO(DataKind.WEIGHTS, data={p.PLAIN: np.zeros(SIZE, np.float32)}, meta={**HEADER, p.VALUES: SIZE}))
    declined = site.data[0].process(make_reply(ReturnCode.OK), site.ctx)  # no DXO at all
    assert from_shareable(declined).meta == {p.STATUS: p.STATUS_FAILED}


def test_a_site_that_refused_a_step_decrypts_and_books_nothing_until_its_operator_looked(tmp_path):
    site = Site(tmp_path)
    site.state.mkdir(parents=True)
    (site.state / STOPPED).write_text("the step was too long")
    for one in site.data:
        task = DXO(DataKind.WEIGHTS, data={"chunk_0000": np.zeros(9, np.uint8)}, meta=HEADER).to_shareable()
        assert from_shareable(one.process(task, site.ctx)).meta[p.STATUS] == p.STATUS_STOPPED
    assert not (site.state / "ledger.jsonl").exists()
    (site.state / STOPPED).unlink()
    assert p.STATUS not in site.receive().meta


def test_status_reply_says_nothing_but_known_words():
    dxo = from_shareable(status_reply("Ann's clip is broken", {**HEADER, "loss": 3.0}))
    assert dxo.meta == {**HEADER, p.STATUS: p.STATUS_FAILED}


def update_to_leave(site):
    site.receive()
    return site.send([person()])


@pytest.mark.parametrize(("key", "value"), [
    ("loss", 0.1), ("raw_score", 0.5), (p.SCORE, 0.3), (p.SCORE, 1e9), (p.SCORE, float("nan")), (p.COUNT, 0),
    (p.COUNT, 2.5), (p.IDENTITIES, True), (p.SNR, float("nan")), (p.SNR, -1.0), (p.BUSY, "always"),
    (p.BUSY, [["x", 1]]), (p.BUSY, [[1.25, 2.5]]),
    (p.EPSILON, {"ann": 1.0}), (p.EPSILON, {"server": "much"}), (p.LEDGER, {"count": 1, "head": "Ann"}),
    (p.LEDGER, {"id": "Ann", "count": 1, "head": "0" * 64}),
    (p.LEDGER, {"id": "0" * 32, "count": 1, "head": "0" * 64, "who": "Ann"}),
    (p.JOB, "a name with spaces"), (p.NONCE, None), (p.KEY_ID, "short"), (p.VALUES, 2500.0), (p.VIDEOS, []),
])
def test_egress_blocks_scalars_it_does_not_know_or_out_of_range(tmp_path, key, value, caplog):
    site = Site(tmp_path)
    dxo = update_to_leave(site)
    assert site.leave(dxo).meta == dxo.meta
    dxo.meta[key] = value
    with blocked(caplog, key):
        site.leave(dxo)


@pytest.mark.parametrize("data", [
    {p.PLAIN: np.zeros(SIZE, np.float32)}, {"chunk_0000": np.frombuffer(np.ones(SIZE).tobytes(), np.uint8)},
    {"chunk_0000": np.zeros(10, np.float32)}, {"chunk_0001": np.zeros(10, np.uint8)}, {}, {"weights": np.ones(3)},
])
def test_egress_blocks_what_is_no_ciphertext(tmp_path, data, caplog):
    site = Site(tmp_path)
    dxo = update_to_leave(site)
    dxo.data = data
    with blocked(caplog, "task adapter"):
        site.leave(dxo)


def test_egress_blocks_an_extra_chunk_headers_and_unknown_tasks(tmp_path, caplog):
    site = Site(tmp_path)
    dxo = update_to_leave(site)
    with blocked(caplog, "chunks"):
        site.leave(DXO(dxo.data_kind, data={**dxo.data, "chunk_0002": dxo.data["chunk_0000"]}, meta=dxo.meta))
    shareable = dxo.to_shareable()
    shareable.set_header("aside", "Ann")
    with blocked(caplog, "aside"):
        site.egress.process(shareable, site.ctx)
    with blocked(caplog, "may not leave; the choices are adapter"):
        Site(tmp_path, task="train").leave(dxo)


def metrics(task, people=2, **change):
    row = {"sync": {"mean": 0.9, "std": 0.1 if people > 2 else None, "n": people, **change}}
    data = {"rows": {"shared": row}} if task == p.TASK_VALIDATE else {p.METRICS: {"loss": change.get("mean", 0.1)}}
    return DXO(DataKind.METRICS, data=data, meta={**HEADER, p.IDENTITIES: people, p.BUSY: []})


def test_metrics_leave_over_enough_people_only(tmp_path, caplog):
    for task in (p.TASK_PERSONALIZE, p.TASK_VALIDATE):
        site = Site(tmp_path, task=task)
        dxo = metrics(task)
        assert site.leave(dxo).data == dxo.data
        for bad in (metrics(task, people=1), metrics(task, mean=float("nan")), metrics(task, mean=np.ones(3)),
                    DXO(DataKind.METRICS, data={**dxo.data, "weights": np.ones(3)}, meta=dxo.meta),
                    DXO(DataKind.WEIGHTS, data={"w": np.ones(3)}, meta=dxo.meta)):
            with blocked(caplog, f"task {task}"):
                site.leave(bad)
    site = Site(tmp_path, task=p.TASK_VALIDATE)
    for change in ({"n": 1}, {"std": 0.1}, {"values": [1.0, 2.0]}):
        bad = metrics(p.TASK_VALIDATE, **change)
        with blocked(caplog, "shared/sync"):
            site.leave(bad)
    lone = Site(tmp_path, task=p.TASK_VALIDATE, yaml="min_identities: 1\n")
    assert lone.leave(metrics(p.TASK_VALIDATE, people=1)).meta[p.IDENTITIES] == 1


@pytest.mark.parametrize("name", ["../clip.mp4", "/etc/x", "Ann Smith/clip.mp4", 5])
def test_names_that_leave_are_relative_and_plain(tmp_path, name, caplog):
    site = Site(tmp_path, task=p.TASK_VALIDATE)
    dxo = metrics(p.TASK_VALIDATE)
    dxo.meta[p.VIDEOS] = ["videos/9f3a.mp4"]
    assert site.leave(dxo).meta[p.VIDEOS] == ["videos/9f3a.mp4"]
    dxo.meta[p.VIDEOS] = [name]
    with blocked(caplog, "videos"):
        site.leave(dxo)


def test_plain_weights_leave_in_the_backbone_phase_if_the_site_allows_it(tmp_path, caplog):
    weights = DXO(DataKind.WEIGHTS, data={"codec/conv.weight": np.ones((2, 2), np.float32)},
                  meta={**HEADER, p.PHASE: "codec", p.COUNT: 3, p.LOSS: 0.5})

    def leave(**site):
        made = Site(tmp_path, task=p.TASK_BACKBONE, **site)
        book(made.ctx, HEADER, Release(1.0))
        return made.leave(weights).data

    assert set(leave()) == {"codec/conv.weight"}
    with blocked(caplog, "allow_backbone: false"):
        leave(yaml="allow_backbone: false\n")
    weights.data["x"] = np.array([np.nan])
    with blocked(caplog, "finite named weights"):
        leave()
