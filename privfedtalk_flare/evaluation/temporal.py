"""Numbers of a clip that need more than its pixels: the optical flow of the real film, the path of a landmark."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

OCCLUDED = 20.0
"""Grey levels: a real pixel that differs by more after it was moved back is hidden, or its flow is wrong."""


def optical_flow(real: NDArray) -> NDArray:
    """(F - 1, 2, H, W) float32: where each pixel of a film (F, H, W, 3) in grey levels 0..255 goes in the next frame,
    in rows and columns. Source: scikit-image's iterative Lucas-Kanade (Le Besnerais and Champagnat 2005)."""
    from skimage.registration import optical_flow_ilk

    if real.ndim != 4 or real.shape[-1] != 3 or len(real) < 2:
        raise ValueError(f"a film of shape {real.shape}; expected (F, H, W, 3), F at least 2")
    grey = real.astype(np.float32).mean(-1) / 255
    return np.stack([optical_flow_ilk(now, then, radius=5, dtype=np.float32)
                     for now, then in itertools.pairwise(grey)])


def warp_error(generated: NDArray, real: NDArray, flow: NDArray) -> float:
    """Mean absolute difference between a generated frame and the next one, moved back along `flow`, the real film's.
    Grey levels, nearer to the real film's own error is better: below it, the film is stiller than life.

    Pixels whose real frames differ by more than `OCCLUDED` after the move are left out. `nan` where no pixel is left in
    any two frames. Source: Lai et al. 2018, "Learning Blind Video Temporal Consistency".

    >>> still = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3)).repeat(3, 0).astype(np.uint8)
    >>> shaking = np.clip(still.astype(int) + np.array([0, 8, 0])[:, None, None, None], 0, 255).astype(np.uint8)
    >>> flow = optical_flow(still)
    >>> round(warp_error(still, still, flow), 2), warp_error(shaking, still, flow) > 6
    (0.0, True)
    """
    from scipy.ndimage import map_coordinates

    if generated.shape != real.shape or flow.shape != (len(real) - 1, 2, *real.shape[1:3]):
        raise ValueError(f"films of shape {generated.shape} and {real.shape} with a flow of shape {flow.shape}; "
                         "expected the same (F, H, W, 3) twice, and (F - 1, 2, H, W)")
    real, generated = real.astype(np.float32), generated.astype(np.float32)
    grid = np.stack(np.meshgrid(*map(np.arange, real.shape[1:3]), indexing="ij"))
    errors = []
    for now, step in enumerate(flow):
        def moved(frame: NDArray, where: NDArray = grid + step) -> NDArray:
            return np.stack([map_coordinates(frame[..., c], where, order=1, mode="nearest") for c in range(3)], -1)

        kept = np.abs(moved(real[now + 1]) - real[now]).mean(-1) < OCCLUDED
        if kept.any():
            errors.append(np.abs(moved(generated[now + 1]) - generated[now]).mean(-1)[kept].mean())
    return float(np.mean(errors)) if errors else float("nan")


def jitter(path: ArrayLike) -> float:
    """Mean absolute second difference of a landmark's path (F,), in its own unit a frame squared. `nan` with fewer than
    three frames. Source: the acceleration error of pose estimation (Kanazawa et al. 2019), without a truth.

    >>> jitter([0, 1, 2, 3]), jitter([0, 1, 0, 1])
    (0.0, 2.0)
    """
    path = np.asarray(path, np.float64)
    return float(np.abs(np.diff(path, 2)).mean()) if len(path) > 2 else float("nan")


def jitter_ratio(recovered: ArrayLike, truth: ArrayLike) -> float:
    """min(r, 1/r), r = the jitter of the recovered landmark over the true one's, both paths (F,). In [0, 1], nearer
    to 1 is better: less jitter than in life is smoothing, and a frozen mouth has 0. For rendered people the landmark is
    the mouth's opening (`evaluation.aperture`). `nan` where the truth has none, or with fewer than three frames.

    >>> jitter_ratio([0, 2, 0], [0, 1, 0]), jitter_ratio([1, 1, 1], [0, 1, 0]), jitter_ratio([0, 1, 0], [0, 1, 2])
    (0.5, 0.0, nan)
    """
    found, real = jitter(recovered), jitter(truth)
    if not (np.isfinite([found, real]).all() and real > 0):
        return float("nan")
    return min(found, real) / max(found, real)
