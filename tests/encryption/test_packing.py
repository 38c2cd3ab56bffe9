import os

import numpy as np
import pytest
import tenseal as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedtalk_flare.encryption import packing, sums
from privfedtalk_flare.encryption.keys import KeyFault
from privfedtalk_flare.encryption.packing import CiphertextError


def normal(size, scale=0.1, seed=0):
    return np.random.default_rng(seed).normal(size=size) * scale


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 6000), scale=st.sampled_from([1e-4, 0.1, 1.0]), seed=st.integers(0, 99))
def test_round_trip(pair, size, scale, seed):
    vector = np.clip(normal(size, scale, seed), -15, 15)
    chunks = packing.encrypt(vector, pair[0])
    assert len(chunks) == packing.chunk_count(size, pair[1]) == -(-size // 2048)
    assert packing.held_values(chunks, pair[1]) == size
    back = packing.decrypt(chunks, size, pair[0])
    assert back.shape == (size,) and back.dtype == np.float32
    np.testing.assert_allclose(back, vector, atol=2e-6)


@pytest.mark.parametrize("size", [90_112, 60_001, 4 * 2048])
def test_at_most_42_bytes_a_value_up_the_last_chunk_included(pair, size):
    chunks = packing.encrypt(normal(size), pair[0])
    assert sum(map(len, chunks)) / size <= 42
    assert max(map(len, chunks)) / 2048 <= 42
    down = sums.weighted_sum({"a": chunks}, {"a": 0.5}, pair[1], size=size)
    assert sum(map(len, down)) / size <= 25


def test_no_chunk_carries_a_context_or_a_value(pair):
    vector = np.full(2048, 0.123456789)
    chunk = packing.encrypt(vector, pair[0])[0]
    assert vector.tobytes()[:8] not in chunk and vector.astype(np.float32).tobytes()[:4] * 2 not in chunk
    assert packing.encrypt(vector, pair[0])[0] != chunk, "encryption must be randomised"


@pytest.mark.parametrize(("vector", "match"), [
    (np.array([1.0, np.nan]), "1 values are not finite"), (np.array([np.inf]), "not finite"),
    (np.array([16.1]), "beyond 16"), (np.array([-1e6, 0.0]), "beyond 16"),
    (np.zeros(0), "at least one value"), (np.zeros((2, 2)), "flat vector"),
])
def test_what_cannot_be_encrypted_is_refused(pair, vector, match):
    with pytest.raises(CiphertextError, match=match):
        packing.encrypt(vector, pair[0])


def test_the_limit_is_real(pair):
    """A constant vector up to the limit survives a weighted sum; beyond twice the limit it wraps, and is refused."""
    chunks = packing.encrypt(np.full(2048, 15.9), pair[0])
    total = sums.weighted_sum({"a": chunks}, {"a": 1.0}, pair[1], size=2048)
    np.testing.assert_allclose(packing.decrypt(total, 2048, pair[0]), 15.9, rtol=5e-5)
    beyond = [ts.ckks_vector(pair[0], [33.0] * 2048).serialize()]
    wrapped = sums.weighted_sum({"a": beyond}, {"a": 1.0}, pair[1], size=2048)
    assert abs(packing.load_chunk(wrapped[0], pair[0], 2048, "sum").decrypt()[0] - 33.0) > 1
    with pytest.raises(CiphertextError, match=r"beyond 16, half the range.* could wrap in silence"):
        packing.decrypt(wrapped, 2048, pair[0])


def test_a_larger_step_of_the_server_lowers_the_limit(pair):
    packing.encrypt(np.full(8, 7.9), pair[0], eta=2.0)
    with pytest.raises(CiphertextError, match=r"a value of 8\.1 is beyond 8, half the range .* at eta 2"):
        packing.encrypt(np.full(8, 8.1), pair[0], eta=2.0)


@pytest.mark.parametrize("chunk", [b"", b"abc", os.urandom(1000), bytes(83_000)])
def test_garbage_bytes_are_refused(pair, chunk):
    good = packing.encrypt(normal(4096), pair[0])
    for chunks in ([chunk, good[1]], [good[0], chunk]):
        with pytest.raises(CiphertextError, match="chunk"):
            packing.decrypt(chunks, 4096, pair[0])
        with pytest.raises(CiphertextError, match="chunk"):
            sums.check_upload(chunks, 4096, pair[1])


def test_a_cut_chunk_is_refused(pair):
    chunk = packing.encrypt(normal(2048), pair[0])[0]
    for cut in (chunk[:-100], chunk[: len(chunk) // 2], chunk[100:]):
        with pytest.raises(CiphertextError):
            sums.check_upload([cut], 2048, pair[1])


def test_counts_must_fit(pair):
    chunks = packing.encrypt(normal(4000), pair[0])
    with pytest.raises(CiphertextError, match=r"holds 1952 values in 1 ciphertexts, needs 2047 in 1"):
        packing.decrypt(chunks, 4095, pair[0])
    with pytest.raises(CiphertextError, match="got 2 chunks, 2000 values need 1"):
        packing.decrypt(chunks, 2000, pair[0])
    with pytest.raises(CiphertextError):
        packing.held_values(list(reversed(chunks)), pair[0])
    with pytest.raises(CiphertextError, match="no chunks"):
        packing.held_values([], pair[0])


def test_only_the_client_encrypts_and_decrypts(pair):
    with pytest.raises(KeyFault):
        packing.encrypt(np.ones(3), pair[1])
    with pytest.raises(KeyFault):
        packing.decrypt([b""], 3, pair[1])


def test_provisioned_contexts_work_too(provisioned):
    client, server = provisioned
    vector = normal(10_000, 1.0)
    chunks = packing.encrypt(vector, client)
    assert len(chunks) == 3
    total = sums.weighted_sum({"a": chunks, "b": chunks}, {"a": 0.25, "b": 0.75}, server, size=10_000)
    np.testing.assert_allclose(packing.decrypt(total, 10_000, client), vector, rtol=2e-6, atol=1e-6)
