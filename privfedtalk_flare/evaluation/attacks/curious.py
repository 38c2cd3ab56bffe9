"""A server that keeps every byte: what it can open, and whether it can tell two updates apart by their ciphertexts.

That a ciphertext hides its content is an assumption about lattices (128 bits by the homomorphicencryption.org tables),
which no measurement shows. What is shown here is that nothing simpler fails: no byte the server holds is a key, nothing
opens, and a plain statistical distinguisher does no better than a coin, while it tells the same updates apart without
fail where they are not encrypted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from privfedtalk_flare.evaluation.attacks import AttackError

if TYPE_CHECKING:
    import tenseal

_PIECES = 16
_LEAST = 8


@dataclass(frozen=True)
class Distinguished:
    """`right` of `guesses` about ciphertexts not seen before; `chance`: how often a coin is right so often or more."""

    right: int
    guesses: int
    chance: float


def opened(held: Iterable[bytes], contexts: Sequence[tenseal.Context]) -> list[np.ndarray]:
    """The values of every ciphertext among `held` that one of `contexts` decrypts; all attempts are made."""
    import tenseal as ts

    found = []
    for piece in held:
        for context in contexts:
            try:
                found.append(np.asarray(ts.ckks_vector_from(context, piece).decrypt(), np.float64))
            except Exception:  # TenSEAL raises ValueError, RuntimeError and its own; a failed try is no find
                continue
    return found


def secret_contexts(held: Iterable[bytes]) -> list[tenseal.Context]:
    """Every piece of `held` that is a context with a secret key."""
    import tenseal as ts

    found = []
    for piece in held:
        try:
            context = ts.context_from(piece)
            if context.is_private():
                found.append(context)
        except Exception:  # as above
            continue
    return found


def distinguish(first: Sequence[bytes], second: Sequence[bytes]) -> Distinguished:
    """Learns from half of each pile of byte strings to tell the piles apart, and is tested on the other half.

    It looks at lengths, the frequency of each byte value, the means of 16 pieces and the correlation of neighbours, and
    weighs them by how far they lie apart on the half it learns from.
    """
    if min(len(first), len(second)) < _LEAST:
        raise AttackError(f"needs at least {_LEAST} of each kind, got {len(first)} and {len(second)}")
    piles = [np.stack([_features(piece) for piece in pile]) for pile in (first, second)]
    known, tested = [pile[0::2] for pile in piles], [pile[1::2] for pile in piles]
    spread = np.sqrt((known[0].var(0) + known[1].var(0)) / 2)
    weight = (known[0].mean(0) - known[1].mean(0)) / np.where(spread > 0, spread, 1e-12) ** 2
    middle = (known[0].mean(0) + known[1].mean(0)) / 2
    right = int((((tested[0] - middle) @ weight) > 0).sum() + (((tested[1] - middle) @ weight) < 0).sum())
    guesses = len(tested[0]) + len(tested[1])
    return Distinguished(right, guesses, float(stats.binom.sf(right - 1, guesses, 0.5)))


def _features(piece: bytes) -> np.ndarray:
    values = np.frombuffer(piece, np.uint8).astype(np.float64)
    if values.size < 2 * _PIECES:
        raise AttackError(f"{values.size} bytes are too few to look at")
    frequency = np.bincount(values.astype(np.int64), minlength=256) / values.size
    means = [part.mean() for part in np.array_split(values, _PIECES)]
    neighbours = np.mean((values[:-1] - values.mean()) * (values[1:] - values.mean()))
    return np.concatenate([[values.size], frequency, means, [neighbours]])
