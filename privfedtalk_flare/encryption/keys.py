"""CKKS contexts: a pair of them, what each end may open, and an id by which ends find that they hold the same key.

All sites share one secret key; the server holds a context without it. Contexts are symmetric, like those of NVFLARE's
HEBuilder: the server cannot even encrypt a zero. Any context that `load_secret` accepts will do, provisioned or made
here.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from privfedtalk_flare.settings import EncryptionSettings, SettingsError

if TYPE_CHECKING:
    import tenseal

_KEY_TAG = b"privfedtalk ckks secret key v1\n"

MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Ring -> most bits of all primes together at 128-bit security (homomorphicencryption.org standard)."""


class KeyFault(ValueError):  # noqa: N818  (a fault of a key, not of Python's mapping keys)
    """A context or key that may not be used here. The message names what it is, what was expected, what to do."""


def check_ckks(encryption: EncryptionSettings) -> None:
    """Refuses CKKS parameters that are insecure or leave no room for one multiplication."""
    ring, primes, scale = encryption.ring, encryption.primes, encryption.scale_bits
    if ring not in MODULUS_BITS:
        raise SettingsError(f"encryption.ring: got {ring}; the choices are {', '.join(map(str, MODULUS_BITS))}")
    if len(primes) != 3:
        raise SettingsError(f"encryption.primes: {list(primes)} has {len(primes)} primes, one multiplication needs 3")
    if sum(primes) > MODULUS_BITS[ring]:
        raise SettingsError(f"encryption.primes {list(primes)} have {sum(primes)} bits together, which encryption.ring "
                            f"{ring} keeps secure only up to {MODULUS_BITS[ring]}")
    if any(bits < 20 or bits > 60 for bits in primes):
        raise SettingsError(f"encryption.primes: {list(primes)}; each must have 20 to 60 bits")
    if primes[1] != scale:
        raise SettingsError(f"encryption.scale_bits {scale} must equal the middle of encryption.primes {list(primes)}: "
                            "a product is divided by that prime, and its scale must come back")
    if primes[0] <= scale + 1:
        raise SettingsError(f"encryption.primes {list(primes)}: the first needs more bits than encryption.scale_bits "
                            f"{scale} + 1, or no value fits")


def make_pair(encryption: EncryptionSettings) -> tuple[bytes, bytes]:
    """(secret context, public context) as bytes. The second holds no secret key; the first must reach no server."""
    import tenseal as ts

    check_ckks(encryption)
    context = ts.context(ts.SCHEME_TYPE.CKKS, encryption.ring, coeff_mod_bit_sizes=list(encryption.primes),
                         encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC)
    context.global_scale = 2.0 ** encryption.scale_bits
    keep = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}
    return context.serialize(save_secret_key=True, **keep), context.serialize(save_secret_key=False, **keep)


def load_secret(data: bytes, where: str = "client context") -> tenseal.Context:
    """The context of a site, which must hold the secret key."""
    context = _load(data, where)
    if not context.is_private():
        raise KeyFault(f"{where} holds no secret key: a site cannot decrypt with it; give it the client's context file")
    return context


def load_public(data: bytes, where: str = "server context") -> tenseal.Context:
    """The context of the server. One that holds a secret key is refused: the server must not be able to decrypt."""
    context = _load(data, where)
    if context.is_private():
        raise KeyFault(f"{where} holds a secret key, with which the server could open every update; give it the "
                       "server's context file and make new keys, as this one has been where it must not be")
    return context


def key_id(context: tenseal.Context) -> str:
    """SHA-256 (hex) over a domain tag and the secret key's coefficients: equal exactly for equal keys.

    Made at the sites; the server compares ids for equality, as a foreign key's ciphertexts add up to noise in silence.
    """
    if not context.is_private():
        raise KeyFault("a context without secret key has no key id; the sites say theirs")
    plain = context.secret_key().data.data()
    total = hashlib.sha256(_KEY_TAG)
    for i in range(plain.coeff_count()):
        total.update(plain.data(i).to_bytes(8, "little"))
    return total.hexdigest()


def check_key_id(theirs: object, ours: str, where: str = "header") -> None:
    """Raises `KeyFault` where a message was encrypted under another key, which parameters alone would not show."""
    if theirs != ours:
        raise KeyFault(f"{where}: encrypted under key {str(theirs)[:12]!r}..., this run's key is {ours[:12]!r}...; "
                       "all sites need the same client context, from one provisioning")


def slots(context: tenseal.Context) -> int:
    """Values that one ciphertext holds: N / 2."""
    return int(context.seal_context().data.key_context_data().parms().poly_modulus_degree()) // 2


def fresh_primes(context: tenseal.Context) -> int:
    """Primes in the modulus of a fresh ciphertext; one less after a multiplication."""
    count, data = 1, context.seal_context().data.first_context_data()
    while (data := data.next_context_data()) is not None:
        count += 1
    return count


def value_limit(context: tenseal.Context) -> float:
    """Half of 2^(q0 - 1) / scale: beyond twice this a decrypted value wraps in silence."""
    data = context.seal_context().data.first_context_data()
    while (after := data.next_context_data()) is not None:
        data = after
    return float(2.0 ** (data.total_coeff_modulus_bit_count() - 2) / context.global_scale)


def _load(data: bytes, where: str) -> tenseal.Context:
    import tenseal as ts

    if not isinstance(data, bytes) or not data:
        raise KeyFault(f"{where} is empty or no bytes; provision with HEBuilder, or run the simulator")
    try:
        context = ts.context_from(data)
        scale = context.global_scale
        primes = fresh_primes(context)
    except Exception as error:  # TenSEAL raises ValueError, RuntimeError and its own, by the fault's depth
        raise KeyFault(f"{where} cannot be read as a CKKS context with a scale: {error}; was it written by the same "
                       "version of tenseal?") from error
    if primes < 2 or scale <= 1:
        raise KeyFault(f"{where} leaves no room for one multiplication: {primes} usable primes, scale {scale:g}; "
                       "HEBuilder's defaults, 8192 and [60, 40, 40], do")
    return context
