import numpy as np
import pytest
import tenseal as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedtalk_flare.encryption import packing, sums
from privfedtalk_flare.encryption.keys import KeyFault
from privfedtalk_flare.encryption.packing import CiphertextError

SIZE = 3000


def normal(seed, scale=0.1, size=SIZE):
    return np.random.default_rng(seed).normal(size=size) * scale


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.floats(0, 1), min_size=1, max_size=4).filter(lambda w: sum(w) > 0.01),
       eta=st.floats(0.1, 2.0))
def test_weighted_sum_is_the_weighted_sum(pair, weights, eta):
    client, server = pair
    vectors = {f"s{i}": normal(i) for i in range(len(weights))}
    w = {f"s{i}": value for i, value in enumerate(weights)}
    uploads = {site: packing.encrypt(v, client) for site, v in vectors.items()}
    total = sums.weighted_sum(uploads, w, server, size=SIZE, eta=eta)
    expected = eta * sum(w[site] * vectors[site] for site in vectors)
    bound = 1e-5 + 5e-5 * np.abs(expected).max()
    np.testing.assert_allclose(packing.decrypt(total, SIZE, client), expected, atol=bound)


def test_error_after_20_rounds_at_values_up_to_5(pair):
    client, server = pair
    size, truth, theta = 4 * 2048, np.zeros(4 * 2048), None
    for t in range(1, 21):
        vectors = {s: normal(10 * t + i, 0.02, size) + np.linspace(-0.25, 0.25, size) for i, s in enumerate("ab")}
        uploads = {s: packing.encrypt(v, client) for s, v in vectors.items()}
        theta = sums.weighted_sum(uploads, {"a": 0.37, "b": 0.63}, server, size=size, theta=theta)
        truth += 0.37 * vectors["a"] + 0.63 * vectors["b"]
        error = np.abs(packing.decrypt(theta, size, client) - truth)
        assert (error < 5e-5 * np.abs(truth) + 1e-5 * np.sqrt(t)).all(), t
    assert 4.9 < np.abs(truth).max() < 5.5


def test_weight_zero_is_skipped_and_theta_kept(pair):
    client, server = pair
    a, b = (packing.encrypt(normal(i), client) for i in range(2))
    theta = sums.weighted_sum({"a": a}, {"a": 1.0}, server, size=SIZE)
    out = sums.weighted_sum({"a": a, "b": b}, {"a": 0.0, "b": 1e-12}, server, size=SIZE, theta=theta)
    assert out == theta
    with pytest.raises(CiphertextError, match="every weight is 0"):
        sums.weighted_sum({"a": a}, {"a": 0.0}, server, size=SIZE)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_that_make_no_sense(pair, weight):
    with pytest.raises(CiphertextError, match="finite and at least 0"):
        sums.weighted_sum({"a": packing.encrypt(normal(0), pair[0])}, {"a": weight}, pair[1], size=SIZE)


def test_sites_must_match(pair):
    with pytest.raises(CiphertextError, match="weights of"):
        sums.weighted_sum({"a": []}, {"b": 1.0}, pair[1], size=SIZE)


def test_other_level_scale_or_ring_is_refused(pair, provisioned):
    client, server = pair
    good = packing.encrypt(normal(0, size=2048), client)
    summed = sums.weighted_sum({"a": good}, {"a": 1.0}, server, size=2048)
    with pytest.raises(CiphertextError, match="not a fresh upload"):
        sums.check_upload(summed, 2048, server)
    with pytest.raises(CiphertextError, match="not a weighted sum"):
        sums.weighted_sum({"a": good}, {"a": 1.0}, server, size=2048, theta=good)
    other_scale = [ts.ckks_vector(client, [0.1] * 2048, scale=2.0 ** 28).serialize()]
    with pytest.raises(CiphertextError, match=r"scale 2.68435e\+08, needs 4.29497e\+09"):
        sums.check_upload(other_scale, 2048, server)
    with pytest.raises(CiphertextError):
        sums.check_upload(packing.encrypt(normal(0, size=2048), provisioned[0]), 2048, server)


def test_a_foreign_key_passes_every_check_of_the_server_and_decrypts_to_noise(pair, stranger):
    """Why the key id exists. Only who holds the key can see it, by values that no sum can have."""
    foreign = packing.encrypt(normal(0), stranger)
    sums.check_upload(foreign, SIZE, pair[1])
    total = sums.weighted_sum({"a": foreign}, {"a": 1.0}, pair[1], size=SIZE)
    assert np.abs(packing.load_chunk(total[0], pair[0], 2048, "sum").decrypt()).max() > 100
    with pytest.raises(CiphertextError, match="or is under another key"):
        packing.decrypt(total, SIZE, pair[0])


def test_chunk_counts(pair):
    chunks = packing.encrypt(normal(0), pair[0])
    for wrong in (chunks[:1], [*chunks, chunks[0]], []):
        with pytest.raises(CiphertextError, match="3000 values need 2"):
            sums.check_upload(wrong, SIZE, pair[1])
    with pytest.raises(CiphertextError, match="a: chunk 1"):
        sums.weighted_sum({"a": [chunks[0], chunks[0]]}, {"a": 1.0}, pair[1], size=SIZE)


def test_the_sum_refuses_a_context_that_could_decrypt(pair):
    with pytest.raises(KeyFault, match="the server's context"):
        sums.weighted_sum({}, {}, pair[0], size=SIZE)
