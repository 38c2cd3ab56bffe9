"""What the server checks of one reply by itself: the scalars that its mode lets travel, and its payload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from privfedtalk_flare.encryption.packing import held_values
from privfedtalk_flare.encryption.sums import check_upload
from privfedtalk_flare.federation.isfa import check_count, check_scalars
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.chunks import from_params
from privfedtalk_flare.settings import CLAIMS, ReliabilitySettings

if TYPE_CHECKING:
    import tenseal


class Refused(ValueError):  # noqa: N818  (an answer, not an error)
    """Why a reply does not count."""


def scalars_of(meta: Mapping[str, Any], reliability: ReliabilitySettings) -> tuple[float | None, int | None]:
    """The score and the clip count of a reply; None for those that must not travel in this mode. Raises `Refused`, or
    `ScalarError`, where one is missing, out of range, or there all the same."""
    mode, most = reliability.mode, reliability.max_clips
    if mode == "metadata":
        return check_scalars(meta.get(p.SCORE), meta.get(p.COUNT), max_clips=most)
    if mode not in CLAIMS:
        if p.SCORE in meta or p.COUNT in meta:
            raise Refused(f"a score or a count must not travel in reliability mode {mode!r}")
        return None, None
    if p.SCORE in meta:
        raise Refused(f"a score must not travel in reliability mode {mode!r}")
    return None, check_count(meta.get(p.COUNT), max_clips=most)


def encrypted_payload(params: Mapping[str, Any] | None, size: int | None,
                      context: tenseal.Context) -> tuple[list[bytes], int]:
    """The ciphertexts of an update of `size` values (None: as many as they hold), and that number. Raises `ChunkError`
    or `CiphertextError`."""
    chunks = from_params(params)
    size = size or held_values(chunks, context)
    check_upload(chunks, size, context)
    return chunks, size


def plain_payload(params: Mapping[str, Any] | None, size: int | None) -> tuple[list[bytes], int]:
    """The same for an update in clear, a flat float32 vector. Raises `Refused`."""
    if not params or set(params) != {p.PLAIN}:
        raise Refused(f"payload: expected {p.PLAIN!r} alone, got {sorted(params or {})[:3]}")
    plain = params[p.PLAIN]
    if not (isinstance(plain, np.ndarray) and plain.ndim == 1 and plain.dtype == np.float32 and plain.size):
        raise Refused("payload: not a flat float32 vector")
    size = size or plain.size
    if plain.size != size:
        raise Refused(f"payload: {plain.size} values, this run's update has {size}")
    if not np.isfinite(plain).all():
        raise Refused(f"payload: {int(np.count_nonzero(~np.isfinite(plain)))} values are not finite")
    return [plain.tobytes()], size
