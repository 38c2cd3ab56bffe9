"""How far the shared adapter can move in one step if every update was clipped and noised: what receivers check."""

from __future__ import annotations

import math

import numpy as np

MARGIN = 6.0
"""Standard deviations by which noise may pass what is expected of it: e^-18, once in 60 million steps at most."""


class StepRefused(ValueError):  # noqa: N818  (an answer, not a fault of this site)
    """A step longer than clipped and noised updates can make it. The message says by how much."""


def check_step(step: np.ndarray, *, reach: float, noise_std: float, error: float = 0.0) -> None:
    """Raises `StepRefused` unless |step| <= eta C + s (sqrt(D) + 6) and max |step_j| <= eta C + s (sqrt(2 ln 2D) + 6).

    `step` (D,); `reach` = eta C, summed where rounds were missed; `noise_std` = s, the standard deviation of the step's
    noise on a coordinate, eta sqrt(V); `error`: what encryption may add to a coordinate. A step that is not finite is
    refused.
    """
    if not np.isfinite(step).all():
        raise StepRefused("the shared adapter holds values that are not finite")
    size = step.size
    norm, largest = float(np.linalg.norm(step)), float(np.abs(step).max())
    most_norm = reach + noise_std * (math.sqrt(size) + MARGIN) + error * math.sqrt(size)
    most_largest = reach + noise_std * (math.sqrt(2 * math.log(2 * size)) + MARGIN) + error
    if not (norm <= most_norm and largest <= most_largest):
        raise StepRefused(f"the step of the shared adapter has norm {norm:.4g} and largest coordinate {largest:.4g}; "
                          f"clipped and noised updates reach {most_norm:.4g} and {most_largest:.4g} at most. A site "
                          "sent more than it may, or theta was summed or decrypted wrongly")
