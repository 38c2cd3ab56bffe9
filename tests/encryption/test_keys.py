import pytest
import tenseal as ts

from privfedtalk_flare.encryption import keys
from privfedtalk_flare.encryption.keys import KeyFault
from privfedtalk_flare.settings import EncryptionSettings, SettingsError


def test_the_public_context_cannot_decrypt(pair):
    client, server = pair
    assert client.is_private() and not server.is_private()
    chunk = ts.ckks_vector(client, [1.0]).serialize()
    with pytest.raises(ValueError, match=r"[Ss]ecret"):
        ts.ckks_vector_from(server, chunk).decrypt()
    with pytest.raises(Exception, match=r"[Ss]ecret|encrypt"):
        ts.ckks_vector(server, [1.0])


def test_each_end_refuses_the_others_context():
    secret, public = keys.make_pair(EncryptionSettings())
    with pytest.raises(KeyFault, match="holds a secret key"):
        keys.load_public(secret)
    with pytest.raises(KeyFault, match="holds no secret key"):
        keys.load_secret(public)


@pytest.mark.parametrize("data", [b"", b"garbage", None, b"\x00" * 1000])
def test_garbage_is_no_context(data):
    with pytest.raises(KeyFault, match="server context"):
        keys.load_public(data)


def test_key_id_follows_the_key_and_not_the_file(pair, stranger):
    client, server = pair
    again = keys.load_secret(client.serialize(save_secret_key=True))
    assert keys.key_id(again) == keys.key_id(client) != keys.key_id(stranger)
    assert len(keys.key_id(client)) == 64
    with pytest.raises(KeyFault):
        keys.key_id(server)


def test_foreign_key_is_refused_by_its_id(pair, stranger):
    ours = keys.key_id(pair[0])
    keys.check_key_id(ours, ours)
    for theirs in (keys.key_id(stranger), "", None, 5):
        with pytest.raises(KeyFault, match="one provisioning"):
            keys.check_key_id(theirs, ours)


def test_facts_of_a_context(pair, provisioned):
    for context in pair:
        assert (keys.slots(context), keys.fresh_primes(context), keys.value_limit(context)) == (2048, 2, 16.0)
    assert (keys.slots(provisioned[1]), keys.value_limit(provisioned[1])) == (4096, 2.0 ** 18)
    assert len(keys.key_id(provisioned[0])) == 64


def test_contexts_without_room_for_a_product_are_refused():
    context = ts.context(ts.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[50, 58])
    context.global_scale = 2.0 ** 26
    with pytest.raises(KeyFault, match="one multiplication"):
        keys.load_secret(context.serialize(save_secret_key=True))
    with pytest.raises(SettingsError, match="needs 3"):
        keys.make_pair(EncryptionSettings(primes=(50, 58), scale_bits=26))


def test_a_context_without_scale_is_refused():
    context = ts.context(ts.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[38, 32, 38])
    with pytest.raises(KeyFault, match="with a scale"):
        keys.load_secret(context.serialize(save_secret_key=True))
