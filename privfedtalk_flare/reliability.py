"""Reliability: how far a site's freshly trained adapter can be trusted, measured on its own held-out windows.

Two signals and their mixture (the paper's s_k = alpha ID + (1 - alpha) TS), and a third one on demand, for what the two
cannot see: sound that does not belong to its frames. Pure numpy, and fail-closed: whatever cannot be measured, or is
not finite, scores 0, so a broken adapter never gains weight.
"""

from __future__ import annotations

import math

import numpy as np

from privfedtalk_flare.evaluation.metrics import flicker, identity, motion_ratio


def identity_consistency(generated: np.ndarray, reference: np.ndarray) -> float:
    """(1 + cosine) / 2 of the identity embeddings of generated (F, E) and reference (R, E) frames, mean over pairs.

    In [0, 1]; 1 for the same person, .5 for unrelated ones, 0 for an embedding that is not finite or has no length.
    The caller embeds the mask with its surroundings, where generated and real pixels meet; references are of other
    clips than the generated one, so that clips of mixed-up people are not consistent with each other.

    >>> identity_consistency(np.array([[1., 0.]]), np.array([[2., 0.]])), identity_consistency([[1., 0.]], [[0., 1.]])
    (1.0, 0.5)
    >>> identity_consistency([[float("nan"), 0.]], [[0., 1.]])
    0.0
    """
    return _closed((1.0 + identity(generated, reference)) / 2.0)


def temporal_stability(generated: np.ndarray, real: np.ndarray, mask: np.ndarray, tau: float) -> float:
    """motion_ratio * exp(-flicker / tau) of one window: frames (F, H, W, 3) in 0..255, boolean mask (H, W).

    In [0, 1]. `tau` is in grey levels: the flicker at which stability falls to 1/e. A frozen clip has no motion, a
    blurred one less, a jittered one flickers. 0 where either part is undefined (a window without a still pixel).

    >>> real = np.zeros((3, 16, 16, 3)); real[1, :8] = 40; mask = np.ones((16, 16), bool)
    >>> temporal_stability(real, real, mask, 4.0), temporal_stability(real[:1].repeat(3, 0), real, mask, 4.0)
    (1.0, 0.0)
    """
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"tau: must be positive and finite, got {tau!r}")
    return _closed(motion_ratio(generated, real, mask) * math.exp(-flicker(generated, real, mask) / tau))


def lip_sync_consistency(generated: np.ndarray, unheard: np.ndarray, real: np.ndarray, mask: np.ndarray) -> float:
    """Whether sound moves the real face as it moves the generated one, in one window: frames (F, H, W, 3) in 0..255,
    boolean mask (H, W). `unheard` is the clip as it is generated without its sound.

    The correlation of `generated - unheard`, which is what the sound did, with `real - unheard`, over the mask's pixels
    and each pixel's own mean over time aside; in [0, 1], where no correlation and a negative one are 0. Needs no truth
    about the mouth, unlike `metrics.sync`. 0 where the sound moves nothing.

    >>> still = np.zeros((4, 16, 16, 3)); mask = np.ones((16, 16), bool)
    >>> real = still.copy(); real[::2, :8] = 40; late = np.roll(real, 1, axis=0)
    >>> [lip_sync_consistency(one, still, real, mask) for one in (real, late, still)]
    [1.0, 0.0, 0.0]
    """
    heard, truth = (np.asarray(one, np.float64)[:, mask] - np.asarray(unheard, np.float64)[:, mask]
                    for one in (generated, real))
    heard, truth = heard - heard.mean(axis=0), truth - truth.mean(axis=0)
    length = math.sqrt(float((heard ** 2).sum()) * float((truth ** 2).sum()))
    return _closed(float((heard * truth).sum()) / length) if length > 0 else 0.0


def score(consistency: float, stability: float, alpha: float, lips: float = 0.0, lip_sync: float = 0.0) -> float:
    """alpha * identity consistency + (1 - alpha) * temporal stability, of which a share `lip_sync` is given to the
    lip-sync consistency `lips`. In [0, 1]; 0 if one that counts is not in [0, 1].

    >>> score(0.9, 0.5, alpha=0.5), score(float("nan"), 0.5, alpha=0.5), score(1e9, 0.5, alpha=0.5)
    (0.7, 0.0, 0.0)
    >>> round(score(0.9, 0.5, alpha=0.5, lips=0.1, lip_sync=0.5), 9)
    0.4
    """
    for name, share in (("alpha", alpha), ("lip_sync", lip_sync)):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name}: must lie in [0, 1], got {share!r}")
    if not (0.0 <= consistency <= 1.0 and 0.0 <= stability <= 1.0 and (lip_sync == 0 or 0.0 <= lips <= 1.0)):
        return 0.0
    mixed = alpha * consistency + (1.0 - alpha) * stability
    return _closed(mixed if lip_sync == 0 else (1.0 - lip_sync) * mixed + lip_sync * lips)


def _closed(value: float) -> float:
    """`value` up to float rounding at the ends, or 0 where it is not finite."""
    return min(max(float(value), 0.0), 1.0) if math.isfinite(value) else 0.0
