"""The server's whole arithmetic: theta_ct += eta sum_k w_k u_ct_k, on ciphertexts it cannot open.

Depth one. Each fresh upload is multiplied by its weight first and added afterwards: adding a fresh ciphertext to a
rescaled one lowers the fresh one in place, and the product then raises. theta_ct is never multiplied again, so its
relative error does not grow with the rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from privfedtalk_flare.encryption.keys import KeyFault, slots
from privfedtalk_flare.encryption.packing import CiphertextError, chunk_count, load_chunk

if TYPE_CHECKING:
    import tenseal


def check_upload(chunks: Sequence[bytes], size: int, context: tenseal.Context) -> None:
    """Raises `CiphertextError` unless `chunks` are a fresh upload of `size` values under this context's parameters.

    It cannot tell under which key: a foreign key's ciphertext passes here and is caught by its key id.
    """
    _check(chunks, size, context, "upload", fresh=True)


def rewritten(chunks: Sequence[bytes], size: int, context: tenseal.Context) -> list[bytes]:
    """A fresh upload parsed and written anew: a message of this format may carry fields that its reader passes over.

    Raises `CiphertextError` as `check_upload` does.
    """
    return [chunk.serialize() for chunk in _loaded(chunks, size, context, "upload", fresh=True)]


def as_sum(chunks: Sequence[bytes], size: int, context: tenseal.Context) -> list[bytes]:
    """A fresh upload times 1: at the level and scale of a weighted sum, so that it can stand for theta in the next."""
    return [(chunk * 1.0).serialize() for chunk in _loaded(chunks, size, context, "upload", fresh=True)]


def weighted_sum(uploads: Mapping[str, Sequence[bytes]], weights: Mapping[str, float], context: tenseal.Context, *,
                 size: int, theta: Sequence[bytes] | None = None, eta: float = 1.0) -> list[bytes]:
    """theta + eta sum_k w_k u_k as ciphertext chunks; `theta` None stands for zero (round 0).

    `uploads` are fresh ciphertext chunks by site, each read once and in order, `weights` a finite w_k >= 0 for each;
    what weighs nothing at the scale of these parameters is skipped. Every chunk is checked before it is added.
    """
    if context.is_private():
        raise KeyFault("sums are the server's work, and this context holds a secret key; use the server's context")
    if set(uploads) != set(weights):
        raise CiphertextError(f"uploads of {sorted(uploads)} but weights of {sorted(weights)}")
    factors = {site: float(eta * weights[site]) for site in uploads}
    if bad := [site for site, factor in factors.items() if not (np.isfinite(factor) and factor >= 0)]:
        raise CiphertextError(f"weight {weights[bad[0]]!r} of {bad[0]} times eta {eta!r} must be finite and at least 0")
    counted = [site for site, factor in factors.items() if factor * context.global_scale >= 0.5]
    for site in counted:
        if len(uploads[site]) != chunk_count(size, context):
            raise CiphertextError(f"{site}: got {len(uploads[site])} chunks, {size} values need "
                                  f"{chunk_count(size, context)}")
    if theta is not None:
        _check(theta, size, context, "theta", fresh=False)
    if not counted:
        if theta is None:
            raise CiphertextError("nothing to add: every weight is 0, and there is no theta yet")
        return list(theta)
    streams = [(_loaded(uploads[site], size, context, site, fresh=True), factors[site]) for site in counted]
    held = _loaded(theta, size, context, "theta", fresh=False) if theta is not None else None
    out = []
    for _ in range(chunk_count(size, context)):
        total = next(held) if held is not None else None
        for stream, factor in streams:
            term = next(stream) * factor
            total = term if total is None else total + term
        out.append(total.serialize())
    return out


def _check(chunks: Sequence[bytes], size: int, context: tenseal.Context, where: str, *, fresh: bool) -> None:
    for _ in _loaded(chunks, size, context, where, fresh=fresh):
        pass


def _loaded(chunks: Sequence[bytes], size: int, context: tenseal.Context, where: str, *,
            fresh: bool) -> Iterator[tenseal.CKKSVector]:
    """Each chunk as a checked ciphertext. Between two of them it holds none: memory stays at one chunk in all."""
    if len(chunks) != chunk_count(size, context):
        raise CiphertextError(f"{where}: got {len(chunks)} chunks, {size} values need {chunk_count(size, context)}")
    width = slots(context)
    for i in range(len(chunks)):
        yield load_chunk(chunks[i], context, min(width, size - i * width), f"{where}: chunk {i}", fresh=fresh)
