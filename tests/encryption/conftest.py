import pytest
import tenseal as ts

from privfedtalk_flare.encryption import keys
from privfedtalk_flare.settings import EncryptionSettings


@pytest.fixture(scope="session")
def pair():
    """(client context, server context) at the shipped parameters."""
    secret, public = keys.make_pair(EncryptionSettings())
    return keys.load_secret(secret), keys.load_public(public)


@pytest.fixture(scope="session")
def stranger():
    """A client context with the same parameters and another key."""
    return keys.load_secret(keys.make_pair(EncryptionSettings())[0])


@pytest.fixture(scope="session")
def provisioned():
    """(client, server) contexts as NVFLARE's HEBuilder writes them: its code, its defaults."""
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40],
                         encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC)
    context.global_scale = 2 ** 40
    return (keys.load_secret(context.serialize(save_secret_key=True)),
            keys.load_public(context.serialize(save_public_key=False, save_secret_key=False, save_galois_keys=False,
                                               save_relin_keys=True)))
