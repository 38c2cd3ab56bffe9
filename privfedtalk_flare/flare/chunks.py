"""Ciphertext chunks as FLARE carries them: `chunk_0000`, `chunk_0001`, ... each a one-dimensional uint8 array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from privfedtalk_flare.flare.protocol import CHUNK_PREFIX


class ChunkError(ValueError):
    """A payload that is no list of ciphertext chunks. The message names the key."""


def to_params(chunks: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Payload of `chunks`, in order."""
    return {f"{CHUNK_PREFIX}{i:04d}": np.frombuffer(chunk, np.uint8) for i, chunk in enumerate(chunks)}


def from_params(params: Mapping[str, Any] | None) -> list[bytes]:
    """Chunks of a payload, in order. Refuses any other key, a gap, and anything but bytes."""
    if not params:
        raise ChunkError("payload: empty, expected ciphertext chunks")
    chunks = []
    for i in range(len(params)):
        key = f"{CHUNK_PREFIX}{i:04d}"
        chunk = params.get(key)
        if not isinstance(chunk, np.ndarray) or chunk.dtype != np.uint8 or chunk.ndim != 1 or not chunk.size:
            other = sorted(k for k in params if not str(k).startswith(CHUNK_PREFIX))
            raise ChunkError(f"payload: {key} of {len(params)} entries is missing or no array of bytes"
                             + (f"; found {other[:3]} instead" if other else ""))
        chunks.append(chunk.tobytes())
    return chunks
