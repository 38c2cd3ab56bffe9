"""One adapter vector as CKKS ciphertexts: cut at the slot count, each chunk serialised without its context.

A ciphertext costs the same however few of its slots are used, so D values cost ceil(D / slots) chunks: at the shipped
parameters (N 4096, 2048 slots, 40.5 bytes a value in a full chunk) a payload stays at or below 42 bytes a value
wherever D >= 60,000, or D is a multiple of 2048; a shorter one with a part-filled tail can cost more (`chunk_count`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from privfedtalk_flare.encryption.keys import KeyFault, slots, value_limit

if TYPE_CHECKING:
    import tenseal


class CiphertextError(ValueError):
    """Bytes that are not the ciphertext they should be, or values that cannot be encrypted."""


def chunk_count(size: int, context: tenseal.Context) -> int:
    """Chunks of a vector of `size` (D) values."""
    return -(-size // slots(context))


def encrypt(vector: np.ndarray, context: tenseal.Context, *, eta: float = 1.0) -> list[bytes]:
    """Ciphertext chunks of `vector` (D,), in order; the last one may be part-filled.

    Refuses values that are not finite or, times the server's step `eta` where that is above 1, beyond half of what the
    modulus holds: they would wrap in silence. As `decrypt` refuses a sum beyond that half, no sum can wrap unseen.
    """
    import tenseal as ts

    if not context.is_private():
        raise KeyFault("encryption needs the client's context, this one holds no secret key")
    values = np.asarray(vector, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise CiphertextError(f"needs a flat vector of at least one value, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise CiphertextError(f"{int(np.count_nonzero(~np.isfinite(values)))} values are not finite")
    largest, limit = float(np.abs(values).max()), value_limit(context) / max(1.0, eta)
    if largest > limit:
        raise CiphertextError(f"a value of {largest:.4g} is beyond {limit:g}, half the range of these parameters at "
                              f"eta {eta:g}; it would wrap in silence. Lower the clip norm, or provision a wider first "
                              "prime")
    width = slots(context)
    return [ts.ckks_vector(context, values[at:at + width].tolist()).serialize() for at in range(0, values.size, width)]


def decrypt(chunks: Sequence[bytes], size: int, context: tenseal.Context) -> np.ndarray:
    """(D,) float32 from chunks. Raises `CiphertextError` on garbage, on what does not add up to `size` values, and on
    values beyond half of what the modulus holds: the next sum could wrap."""
    if not context.is_private():
        raise KeyFault("decryption needs the client's context, this one holds no secret key")
    if len(chunks) != chunk_count(size, context):
        raise CiphertextError(f"got {len(chunks)} chunks, {size} values need {chunk_count(size, context)}")
    width = slots(context)
    out = np.empty(size, np.float32)
    for i, chunk in enumerate(chunks):
        want = min(width, size - i * width)
        out[i * width:i * width + want] = load_chunk(chunk, context, want, f"chunk {i}").decrypt()
    if not np.isfinite(out).all():
        raise CiphertextError("decrypted values are not finite")
    largest, limit = float(np.abs(out).max()), value_limit(context)
    if largest > limit:
        raise CiphertextError(f"a decrypted value of {largest:.4g} is beyond {limit:g}, half the range of these "
                              "parameters: the next sum could wrap in silence, or is under another key. Lower "
                              "rounds.eta or the clip norm, or provision one key for all sites")
    return out


def held_values(chunks: Sequence[bytes], context: tenseal.Context) -> int:
    """D: the values that `chunks` say they hold, every chunk but the last full."""
    width = slots(context)
    if not chunks:
        raise CiphertextError("no chunks")
    for i, chunk in enumerate(chunks[:-1]):
        load_chunk(chunk, context, width, f"chunk {i}")
    last = load_chunk(chunks[-1], context, None, f"chunk {len(chunks) - 1}")
    return width * (len(chunks) - 1) + int(last.size())


def load_chunk(chunk: bytes, context: tenseal.Context, size: int | None, where: str, *,
               fresh: bool | None = None) -> tenseal.CKKSVector:
    """One chunk as a ciphertext of this context, or `CiphertextError` naming `where`.

    Checks the values it holds (`size`, None: any from 1 to the slot count), that it is one ciphertext of two
    polynomials of this ring, its modulus (`fresh`: of a fresh upload, or of a sum, or either), its scale.
    """
    import tenseal as ts

    try:
        vector = ts.ckks_vector_from(context, bytes(chunk))
        parts = vector.ciphertext()
        held = int(vector.size())
    except Exception as error:  # TenSEAL raises ValueError, RuntimeError and its own, by the fault's depth
        raise CiphertextError(f"{where}: {len(chunk)} bytes that are no ciphertext of this context") from error
    if len(parts) != 1 or not 1 <= held <= slots(context) or (size is not None and held != size):
        raise CiphertextError(f"{where}: holds {held} values in {len(parts)} ciphertexts, "
                              f"needs {size if size is not None else f'1 to {slots(context)}'} in 1")
    part, seal = parts[0], context.seal_context().data
    first, second = seal.first_parms_id(), seal.first_context_data().next_context_data().parms_id()
    levels = {True: [first], False: [second], None: [first, second]}[fresh]
    if part.size() != 2 or part.parms_id() not in levels:
        kind = {True: "a fresh upload", False: "a weighted sum", None: "an upload or a sum"}[fresh]
        raise CiphertextError(f"{where}: {part.size()} polynomials over {part.coeff_modulus_size()} primes, "
                              f"that is not {kind}")
    if part.scale != context.global_scale:
        raise CiphertextError(f"{where}: scale {part.scale:g}, needs {context.global_scale:g}")
    if part.is_transparent():
        raise CiphertextError(f"{where}: a transparent ciphertext, which hides nothing")
    return vector
