"""Averages of plain backbone weights, for the `backbone` phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


class AveragingError(ValueError):
    """Weights that cannot be averaged. The message names the site, the tensor and the fault."""


def most_common(sent: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray] | None:
    """The first of those whose names and shapes most of `sent` have, None where nothing was sent."""
    shapes = [frozenset((str(name), getattr(value, "shape", None)) for name, value in weights.items())
              for weights in sent]
    votes = Counter(shapes).most_common(2)
    if len(votes) > 1 and votes[0][1] == votes[1][1]:
        raise AveragingError("sites disagree about the tensors' names and shapes, and no version has a majority; all "
                             "of them need the same version of the package")
    return sent[shapes.index(votes[0][0])] if votes else None


def check_weights(weights: Mapping[str, np.ndarray], count: int, like: Mapping[str, np.ndarray] | None,
                  site: str) -> None:
    """Refuses weights that are empty, not finite, or differ from `like` in names or shapes, and a count below 1."""
    if not weights:
        raise AveragingError(f"{site}: sent no weights")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise AveragingError(f"{site}: the number of training clips must be an integer of at least 1, got {count!r}")
    if like is not None and set(weights) != set(like):
        raise AveragingError(f"{site}: sent other tensors than the rest: {sorted(set(weights) ^ set(like))[:5]}")
    for name, value in weights.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise AveragingError(f"{site}: tensor {name!r} is not an array of numbers")
        if like is not None and value.shape != like[name].shape:
            raise AveragingError(f"{site}: tensor {name!r} has shape {value.shape}, the rest {like[name].shape}")
        if not np.isfinite(value).all():
            raise AveragingError(f"{site}: tensor {name!r} holds values that are not finite")


def weighted_average(weights: Mapping[str, Mapping[str, np.ndarray]],
                     counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """sum_k n_k w_k / sum_k n_k, tensor by tensor (site -> name -> array of one shape; site -> n_k).

    FedAvg (McMahan et al. 2017). Summed in float64 and returned in the tensor's own type; integers are rounded.
    """
    total = sum(counts[site] for site in weights)
    if not weights or total < 1:
        raise AveragingError("nothing to average: no site sent weights")
    result = {}
    for name, first in next(iter(weights.values())).items():
        mean = sum(counts[site] / total * tensors[name].astype(np.float64) for site, tensors in weights.items())
        result[name] = (np.rint(mean) if first.dtype.kind in "iu" else mean).astype(first.dtype)
    return result
