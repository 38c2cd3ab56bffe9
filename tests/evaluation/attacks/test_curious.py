"""The curious server on real contexts and ciphertexts: with every byte it holds, and with one site's key."""

import numpy as np
import pytest

from privfedtalk_flare.encryption import keys, packing, sums
from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.evaluation.attacks.curious import distinguish, opened, secret_contexts
from privfedtalk_flare.evaluation.attacks.keys import recover_key, true_key
from privfedtalk_flare.generator.adapters import to_grid
from privfedtalk_flare.settings import EncryptionSettings

SIZE = 2 * 2048


@pytest.fixture(scope="module")
def federation():
    """(secret context, public context, everything the server holds after a round of two sites, updates by site)."""
    secret, public = keys.make_pair(EncryptionSettings())
    client, server = keys.load_secret(secret), keys.load_public(public)
    updates = {site: np.random.default_rng(i).normal(size=SIZE) * 0.004 for i, site in enumerate("ab")}
    uploads = {site: packing.encrypt(vector, client) for site, vector in updates.items()}
    theta = sums.weighted_sum(uploads, {"a": 0.5, "b": 0.5}, server, size=SIZE)
    held = [public, *(chunk for chunks in (*uploads.values(), theta) for chunk in chunks)]
    return client, server, held, updates, theta


def test_the_server_with_every_byte_it_holds_has_no_key_and_opens_nothing(federation):
    _, server, held, _, _ = federation
    assert len(held) == 7 and secret_contexts(held) == [] and opened(held, [server]) == []
    with pytest.raises(ValueError, match=r"[Ss]ecret"):
        packing.load_chunk(held[1], server, 2048, "upload").decrypt()


def test_the_server_with_one_sites_key_opens_every_sites_update(federation):
    """The threat table says so: all sites share one key, and then the noise alone protects."""
    client, _, held, updates, _ = federation
    found = opened(held, secret_contexts([*held, client.serialize(save_secret_key=True)]))
    assert len(found) == 6
    for number, site in enumerate("ab"):
        np.testing.assert_allclose(np.concatenate(found[2 * number:2 * number + 2]), updates[site], atol=1e-5)


def test_a_stranger_with_a_key_of_its_own_reads_noise_only(federation):
    stranger = keys.load_secret(keys.make_pair(EncryptionSettings())[0])
    _, _, held, updates, _ = federation
    for found in opened(held[1:3], [stranger]):
        assert np.abs(found).max() > 1 and abs(np.corrcoef(found, updates["a"][:2048])[0, 1]) < 0.15


def test_ciphertexts_of_two_updates_cannot_be_told_apart_but_the_updates_in_clear_can(federation):
    """Zeros against the largest values that may be encrypted: whatever leaks would show here first."""
    client = federation[0]
    small, large = np.zeros(2048), np.full(2048, 15.0)
    piles = [[packing.encrypt(vector, client)[0] for _ in range(40)] for vector in (small, large)]
    found = distinguish(*piles)
    assert found.guesses == 40 and found.chance > 1e-6, found
    noise = np.random.default_rng(0)
    clear = [[(vector + noise.normal(size=2048)).tobytes() for _ in range(40)] for vector in (small, large)]
    assert distinguish(*clear).right == 40


def test_from_two_chunks_and_their_float32_values_the_whole_key_falls(federation):
    client, server, _, _, theta = federation
    values = packing.decrypt(theta, SIZE, client)
    found = recover_key(theta, [values[:2048], values[2048:]], server)
    assert found.ternary == 1.0 and np.array_equal(found.coefficients, true_key(client))
    assert set(np.unique(found.coefficients)) == {-1, 0, 1}


def test_from_values_on_the_grid_no_coefficient_of_the_key_is_found(federation):
    client, server, _, _, theta = federation
    values = to_grid(packing.decrypt(theta, SIZE, client))
    found = recover_key(theta, [values[:2048], values[2048:]], server)
    assert found.ternary < 0.01 and np.mean(found.coefficients == true_key(client)) < 0.01


def test_refusals(federation):
    _, server, held, _, theta = federation
    values = np.zeros(2048)
    with pytest.raises(AttackError, match="two chunks"):
        recover_key(theta[:1], [values], server)
    with pytest.raises(AttackError, match="2 polynomials over 2 primes"):
        recover_key(held[1:3], [values, values], server)
    with pytest.raises(AttackError, match="the same at a point"):
        recover_key([theta[0], theta[0]], [values, values], server)
    with pytest.raises(AttackError, match="no secret key"):
        true_key(server)
    with pytest.raises(AttackError, match="at least 8"):
        distinguish([b"1"], [b"2"])
