"""ISFAAggregator on real ciphertexts and on plain vectors, with the replies that a server must refuse."""

import math

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from privfedtalk_flare.encryption import keys, packing
from privfedtalk_flare.federation.averaging import AveragingError
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.chunks import from_params, to_params
from privfedtalk_flare.settings import EncryptionSettings

SIZE = 3000
SITES = ("site-1", "site-2", "site-3")
SECRET, PUBLIC = keys.make_pair(EncryptionSettings())
CLIENT, SERVER = keys.load_secret(SECRET), keys.load_public(PUBLIC)
HEADER = {p.JOB: "job", p.ROUND: 1, p.NONCE: "aa", p.SPEC: "", p.BACKBONE: "", p.KEY_ID: ""}
OWN = {**HEADER, p.SPEC: "0" * 64, p.BACKBONE: "1" * 64, p.KEY_ID: keys.key_id(CLIENT)}


def vector(seed):
    return (np.random.default_rng(seed).normal(size=SIZE) * 0.1).astype(np.float32)


def make(scheme="ckks", eta=1.0, min_sites=1, **reliability):
    aggregator = ISFAAggregator(reliability, {"scheme": scheme}, {"eta": eta, "min_sites": min_sites})
    aggregator._context = SERVER if scheme == "ckks" else None  # test_fedavg.py finds it as a server does
    aggregator.begin_round(HEADER, SITES)
    return aggregator


def reply(site="site-1", seed=1, *, key=CLIENT, params=None, scheme="ckks", without=(), **meta):
    if params is None:
        params = to_params(packing.encrypt(vector(seed), key)) if scheme == "ckks" else {p.PLAIN: vector(seed)}
    told = {**OWN, p.VALUES: SIZE, p.IDENTITIES: 2, p.SCORE: 0.5, p.COUNT: 4, "client_name": site, **meta}
    return FLModel(params_type=ParamsType.FULL, params=params, meta={k: v for k, v in told.items() if k not in without})


def theta(aggregator):
    if p.PLAIN in aggregator.theta:
        return aggregator.theta[p.PLAIN]
    return packing.decrypt(from_params(aggregator.theta), SIZE, CLIENT)


def test_gamma_zero_is_fedavg_within_the_encryptions_error_on_real_ciphertexts():
    counts = {"site-1": 3, "site-2": 5, "site-3": 8}
    encrypted, plain = make(gamma=0.0, max_share=3.0), make("off", gamma=0.0, max_share=3.0)
    for i, (site, n) in enumerate(counts.items()):
        assert encrypted.accept_model(reply(site, i, count=n, score=i / 16)) == ""
        assert plain.accept_model(reply(site, i, scheme="off", count=n, score=i / 16)) == ""
    for aggregator in (encrypted, plain):
        aggregator.aggregate_model()
        assert {s: told["weight"] for s, told in aggregator.stats.items()} == {s: n / 16 for s, n in counts.items()}
    fedavg = sum(n / 16 * vector(i).astype(np.float64) for i, n in enumerate(counts.values()))
    np.testing.assert_allclose(theta(plain), fedavg, atol=1e-7)
    error = np.abs(theta(encrypted) - fedavg)
    assert (error < 5e-5 * np.abs(fedavg) + 1e-5).all()


@pytest.mark.parametrize("scheme", ["ckks", "off"])
def test_rounds_add_up_with_eta_and_isfa_weights(scheme):
    aggregator = make(scheme, eta=0.5, gamma=2.0)
    truth = np.zeros(SIZE)
    for number in range(3):
        aggregator.begin_round({**HEADER, p.ROUND: number}, SITES)
        for i, score in enumerate((1.0, 0.5)):
            assert aggregator.accept_model(reply(SITES[i], 10 * number + i, scheme=scheme, score=score,
                                                 round=number)) == ""
        model = aggregator.aggregate_model()
        w = np.exp(2.0 * np.array([1.0, 0.5]))
        w /= w.sum()
        truth += 0.5 * (w[0] * vector(10 * number).astype(float) + w[1] * vector(10 * number + 1))
        np.testing.assert_allclose(theta(aggregator), truth, atol=4e-5)
        assert model.params_type == ParamsType.FULL and set(model.params) == set(aggregator.theta)
        assert aggregator.stats["site-1"]["weight"] == pytest.approx(w[0])
    assert aggregator.values == SIZE and aggregator.spec == "0" * 64
    # Six chunks of about 45 kB; in clear, four bytes a value.
    assert aggregator.bytes_down == 4 * SIZE if scheme == "off" else 20 * SIZE < aggregator.bytes_down < 40 * SIZE + 5e4


@pytest.mark.parametrize(("key", "value"), [
    (p.SPEC, np.array([1, 2])), (p.ROUND, np.zeros(3)), (p.COUNT, [np.ones(2)]), (p.KEY_ID, b"x"),
    (p.VALUES, {"a": {1}})])
def test_a_reply_whose_entries_are_no_words_or_numbers_is_refused_and_the_round_goes_on(key, value):
    aggregator = make("off", min_sites=1)
    assert "may not travel" in aggregator.accept_model(reply("site-1", scheme="off", **{key: value}))
    assert not aggregator.accept_model(reply("site-2", scheme="off"))
    aggregator.aggregate_model()


@pytest.mark.parametrize(("mode", "kept", "weight", "said"), [
    ("counts", (p.COUNT,), 0.75, "a score must not travel"), ("uniform", (), 0.5, "a score or a count must not travel"),
    ("sealed", (), 0.5, "a score or a count must not travel")])
def test_without_a_public_score_sites_weigh_by_count_or_alike(mode, kept, weight, said):
    aggregator = make("off", mode=mode, gamma=5.0)
    without = {p.SCORE, p.COUNT} - set(kept)
    for site, count in zip(SITES, (30, 10), strict=False):
        assert aggregator.accept_model(reply(site, scheme="off", count=count, without=without)) == ""
    assert said in aggregator.accept_model(reply("site-3", scheme="off"))
    aggregator.aggregate_model()
    assert aggregator.stats["site-1"]["weight"] == pytest.approx(weight)
    assert aggregator.stats["site-1"]["score"] is None


@pytest.mark.parametrize("count", [0, 65, 2.0, None, math.nan])
def test_a_count_out_of_its_range_is_refused_where_it_weighs(count):
    aggregator = make("off", mode="counts")
    assert "count" in aggregator.accept_model(reply(scheme="off", count=count, without=(p.SCORE,)))


@pytest.mark.parametrize("bit", [0.6, -0.501, math.nan, "0.1", 0.12345, True])
def test_a_clip_bit_out_of_its_range_or_grid_is_refused(bit):
    aggregator = make("off", mode="uniform")
    reason = aggregator.accept_model(reply(scheme="off", without=(p.SCORE, p.COUNT), **{p.CLIP_BIT: bit}))
    assert "clip_bit" in reason
    assert not aggregator.accept_model(reply("site-2", scheme="off", without=(p.SCORE, p.COUNT), **{p.CLIP_BIT: -0.25}))
    aggregator.aggregate_model()
    assert aggregator.stats["site-2"][p.CLIP_BIT] == -0.25


def test_the_cap_binds_and_is_said():
    aggregator = make("off", gamma=10.0, max_share=1.5)
    for site, score in zip(SITES, (1.0, 0.0, 0.0), strict=True):
        aggregator.accept_model(reply(site, scheme="off", score=score))
    aggregator.aggregate_model()
    assert aggregator.cap == 0.5
    assert aggregator.stats["site-1"]["weight"] == pytest.approx(0.5)


def test_two_sites_have_no_cap():
    aggregator = make("off", gamma=10.0, max_share=1.0)
    for site, score in zip(SITES[:2], (1.0, 0.0), strict=True):
        aggregator.accept_model(reply(site, scheme="off", score=score))
    aggregator.aggregate_model()
    assert aggregator.cap is None
    assert aggregator.stats["site-1"]["weight"] > 0.99


@pytest.mark.parametrize("mode", ["sealed", "uniform"])
def test_other_modes_weigh_equally_and_refuse_scalars(mode):
    aggregator = make("off", mode=mode)
    bare = {"scheme": "off", "without": (p.SCORE, p.COUNT)}
    assert "must not travel" in aggregator.accept_model(reply("site-3", scheme="off"))
    for i, site in enumerate(SITES[:2]):
        assert aggregator.accept_model(reply(site, i, **bare)) == ""
    aggregator.aggregate_model()
    np.testing.assert_allclose(theta(aggregator), (vector(0) + vector(1)) / 2, atol=1e-7)
    assert all(told["score"] is None and told["count"] is None for told in aggregator.stats.values())


GARBAGE = np.frombuffer(b"garbage" * 99, np.uint8)


@pytest.mark.parametrize(("change", "reason"), [
    ({"job": "other"}, "header: job"), ({"round": 2}, "header: round"), ({"nonce": "bb"}, "header: nonce"),
    ({"spec": ""}, "must say its own"), ({"backbone": None}, "must say its own"), ({"key_id": ""}, "must say its own"),
    ({"score": 1e9}, "score 1000000000.0 is out of range"), ({"score": float("nan")}, "not a finite number"),
    ({"score": 10**400}, "out of range"), ({"identities": 10**400}, "not an integer in"),
    ({"values": 10**400}, "not an integer in"),
    ({"score": 0.51}, "not a multiple"), ({"score": -0.5}, "out of range"), ({"score": "1"}, "not a finite number"),
    ({"count": 65}, "count 65 is out of range"), ({"count": 0}, "out of range"), ({"count": 2.5}, "not an integer"),
    ({"without": (p.SCORE,)}, "score None"), ({"without": (p.COUNT,)}, "count None"),
    ({"identities": 0}, "identities 0"), ({"without": (p.IDENTITIES,)}, "identities None"),
    ({"values": 3001}, "needs 953"), ({"values": -1}, "values -1"), ({"values": 9000}, "values need 5"),
    ({"params": {}}, "payload: empty"), ({"params": None, "site": "site-9"}, "not asked"),
    ({"params": {"plain": np.zeros(SIZE, np.float32)}}, "found ['plain'] instead"),
    ({"params": {"chunk_0000": GARBAGE, "chunk_0001": GARBAGE}}, "chunk 0"),
    ({"params": {"chunk_0001": GARBAGE}}, "chunk_0000 of 1 entries is missing"),
    ({"params": {"chunk_0000": np.zeros(5)}}, "no array of bytes"),
])
def test_a_bad_reply_is_refused_with_its_reason_and_the_round_goes_on(change, reason):
    aggregator = make()
    bad = reply(**change)
    assert reason in aggregator.accept_model(bad)
    assert reason in aggregator.refused[bad.meta["client_name"]]
    assert aggregator.accept_model(reply("site-2", 2)) == ""
    aggregator.aggregate_model()
    assert set(aggregator.stats) == {"site-2"}
    np.testing.assert_allclose(theta(aggregator), vector(2), atol=2e-5)


@pytest.mark.parametrize(("params", "reason"), [
    ({p.PLAIN: np.full(SIZE, np.nan, np.float32)}, "3000 values are not finite"),
    ({p.PLAIN: np.zeros(SIZE)}, "float32"), ({p.PLAIN: np.zeros((2, 3), np.float32)}, "flat"),
    ({p.PLAIN: np.zeros(5, np.float32)}, "5 values, this run's update has 3000"),
    ({p.PLAIN: [1.0]}, "float32"), ({"w": np.zeros(SIZE, np.float32)}, "expected 'plain' alone"),
])
def test_bad_plain_payloads(params, reason):
    assert reason in make("off").accept_model(reply(scheme="off", params=params))


def test_one_reply_a_site():
    aggregator = make("off")
    assert aggregator.accept_model(reply(scheme="off")) == ""
    assert "second reply" in aggregator.accept_model(reply(scheme="off", seed=2))
    assert "second reply" in aggregator.accept_model(reply(scheme="off", seed=3))
    aggregator.aggregate_model()
    np.testing.assert_array_equal(theta(aggregator), vector(1))


def test_a_foreign_key_is_outvoted_first_and_refused_by_its_id_afterwards():
    stranger = keys.load_secret(keys.make_pair(EncryptionSettings())[0])
    foreign = {"key": stranger, "key_id": keys.key_id(stranger)}
    aggregator = make(gamma=0.0)
    assert aggregator.accept_model(reply("site-1", **foreign)) == ""
    for site in SITES[1:]:
        assert aggregator.accept_model(reply(site, 2)) == ""
    aggregator.aggregate_model()
    assert aggregator.key_id == keys.key_id(CLIENT) and "key_id" in aggregator.refused["site-1"]
    np.testing.assert_allclose(theta(aggregator), vector(2), atol=2e-5)
    aggregator.begin_round({**OWN, p.ROUND: 2}, SITES)
    assert "header: key_id" in aggregator.accept_model(reply("site-1", round=2, **foreign))


def test_another_spec_or_backbone_is_outvoted_first_and_refused_afterwards():
    aggregator = make("off")
    odd = reply("site-1", scheme="off", spec="f" * 64)
    assert aggregator.accept_model(odd) == ""
    for site in SITES[1:]:
        assert aggregator.accept_model(reply(site, 2, scheme="off")) == ""
    aggregator.aggregate_model()
    assert "most sites have spec 000000000000" in aggregator.refused["site-1"]
    aggregator.begin_round({**HEADER, p.ROUND: 2}, SITES)
    assert "header: spec" in aggregator.accept_model(reply("site-1", scheme="off", round=2, spec="f" * 64))
    assert "header: backbone" in aggregator.accept_model(reply("site-2", scheme="off", round=2, backbone="f" * 64))


def test_no_majority_and_too_few_end_in_an_error_that_says_why():
    aggregator = make("off", min_sites=2)
    aggregator.accept_model(reply("site-1", scheme="off"))
    with pytest.raises(AveragingError, match="1 good replies, min_sites is 2"):
        aggregator.aggregate_model()
    for site, change in (("site-1", {}), ("site-2", {"spec": "f" * 64})):
        aggregator.accept_model(reply(site, scheme="off", **change))
    with pytest.raises(AveragingError, match="no version has a majority"):
        aggregator.aggregate_model()
    assert aggregator.theta is None and aggregator.values is None


def test_without_settings_every_reply_counts_with_step_1():
    bare = ISFAAggregator(encryption={"scheme": "off"})
    assert (bare.eta, bare.min_sites) == (1.0, 1)
    bare.accept_model(reply(scheme="off"))
    bare.aggregate_model()
    np.testing.assert_array_equal(theta(bare), vector(1))


def test_a_resumed_run_goes_on_from_the_kept_theta():
    first = make(gamma=0.0)
    first.accept_model(reply(seed=1))
    first.aggregate_model()
    second = make(gamma=0.0)
    second.theta, second.values = first.theta, first.values
    second.spec, second.backbone, second.key_id = first.spec, first.backbone, first.key_id
    second.accept_model(reply(seed=2))
    second.aggregate_model()
    np.testing.assert_allclose(theta(second), vector(1).astype(float) + vector(2), atol=3e-5)


def test_weights_sum_to_one_and_are_finite_at_the_largest_gamma():
    aggregator = make("off", gamma=10.0)
    for i, site in enumerate(SITES):
        aggregator.accept_model(reply(site, i, scheme="off", score=i / 2, count=64 - i))
    aggregator.aggregate_model()
    assert math.isclose(sum(told["weight"] for told in aggregator.stats.values()), 1.0)
