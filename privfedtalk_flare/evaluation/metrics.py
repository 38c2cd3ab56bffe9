"""The numbers of a clip: numpy in, floats out.

Frames are (F, H, W, 3) in grey levels 0..255 (uint8 or float), a mask is a boolean (H, W) or (F, H, W), true where the
generator paints. A metric that a clip leaves undefined (no still pixel, a silent truth) is `nan`, never a made-up
number: `evaluation.summary` leaves it out and counts fewer people. Wrong shapes raise `ValueError`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privfedtalk_flare.evaluation.temporal import jitter_ratio, warp_error

DATA_RANGE = 255.0
PSNR_CEILING = 100.0
"""dB reported for pictures that do not differ: JSON and tables have no infinity."""
STILL = 1.2
"""Grey levels: a pixel whose real change (mean of its three channels) is below this is still.

H.264 (crf 8) changes skin at rest by 0 or 1 level, a lip that opens by 10 to 100. At this threshold rendered people
measured against themselves give .25 on average (.21 to .30), at 2.0 they give .43."""
MAX_LAG = 5
"""Frames: largest lag that `sync_offset` looks for, 200 ms at 25 fps."""


def psnr(generated: NDArray, real: NDArray) -> float:
    """Peak signal-to-noise ratio of the whole picture, over all frames at once. dB, more is better.

    10 log10(255^2 / MSE), at most `PSNR_CEILING`. Source: torchmetrics' `peak_signal_noise_ratio`.

    >>> black = np.zeros((1, 16, 16, 3), np.uint8)
    >>> round(psnr(black, black + 255), 2), round(psnr(black, black + 16), 2), psnr(black, black)
    (0.0, 24.05, 100.0)
    """
    generated, real = _pair(generated, real)
    return _psnr(generated.ravel(), real.ravel())


def psnr_mask(generated: NDArray, real: NDArray, mask: NDArray) -> float:
    """Peak signal-to-noise ratio of the pixels inside the mask, over all frames at once. dB, more is better.

    As `psnr`; the generator paints these pixels only, so this is what separates it from pasting the real picture back.

    >>> real = np.zeros((1, 16, 16, 3), np.uint8); generated = real + 16; mask = np.zeros((16, 16), bool)
    >>> mask[8:] = True; generated[:, :8] = 255
    >>> round(psnr_mask(generated, real, mask), 2)
    24.05
    """
    generated, real = _pair(generated, real)
    inside = _inside(mask, real)
    return _psnr(generated[inside].ravel(), real[inside].ravel())


def _psnr(generated: NDArray, real: NDArray) -> float:
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio

    value = peak_signal_noise_ratio(torch.from_numpy(generated), torch.from_numpy(real), data_range=DATA_RANGE)
    return min(float(value), PSNR_CEILING)


def ssim(generated: NDArray, real: NDArray) -> float:
    """Structural similarity of the whole picture, mean over frames. In [-1, 1], more is better.

    Gaussian window, sigma 1.5, 11 x 11, k1 .01, k2 .03 (Wang et al. 2004), edges mirrored, as torchmetrics computes it.

    >>> picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    >>> round(ssim(picture, picture), 4), ssim(picture, 255 - picture) < 0
    (1.0, True)
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    generated, real = _pair(generated, real)
    frames = [torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))) for x in (generated, real)]
    return float(structural_similarity_index_measure(*frames, data_range=DATA_RANGE))


def flicker(generated: NDArray, real: NDArray, mask: NDArray, still: float = STILL) -> float:
    """Mean absolute frame-to-frame change of the generated clip where the real one is still. Grey levels, less is
    better; a real clip measured against itself gives about .25 (what H.264 leaves on still skin).

    A pixel is still between two frames when it lies in the mask and its real change, mean of the three channels, is
    below `still` grey levels: mouth and jaw, which must move, are left out. `nan` with fewer than two frames or no
    still pixel. Source: this project; the static-region form of the warping error of Lai et al. 2018 with zero flow.

    >>> real = np.zeros((3, 16, 16, 3), np.uint8); mask = np.ones((16, 16), bool)
    >>> shaking = real.copy(); shaking[1] = 8
    >>> flicker(real, real, mask), flicker(shaking, real, mask)
    (0.0, 8.0)
    """
    change, truth = _changes(generated, real, mask)
    quiet = truth < still
    return float(change[quiet].mean()) if quiet.any() else float("nan")


def flicker_gap(generated: NDArray, real: NDArray, mask: NDArray) -> float:
    """Mean absolute difference between the frame-to-frame change of the generated and of the real clip, inside the
    mask. Grey levels, less is better, 0 for the real clip; counts wrong motion as well as flicker.

    mean |(g[t+1] - g[t]) - (r[t+1] - r[t])| over mask pixels and channels. `nan` with fewer than two frames.
    Source: the temporal difference that TDC trains (the paper's L_TDC), taken on pixels.

    >>> real = np.zeros((3, 16, 16, 3), np.uint8); real[1] = 8; mask = np.ones((16, 16), bool)
    >>> flicker_gap(real, real, mask), flicker_gap(real[:1].repeat(3, 0), real, mask)
    (0.0, 8.0)
    """
    generated, real = _pair(generated, real)
    gap = np.abs(np.diff(generated, axis=0) - np.diff(real, axis=0))
    inside = _inside(mask, real)[1:]
    return float(gap[inside].mean()) if inside.any() else float("nan")


def motion_ratio(generated: NDArray, real: NDArray, mask: NDArray) -> float:
    """min(r, 1/r), r = generated over real total frame-to-frame change inside the mask. In [0, 1], nearer to 1 is
    better; 0 for a frozen clip, and a blurred one loses motion where it loses edges.

    `nan` with fewer than two frames, or where neither clip moves at all. Source: this project, as a score of
    stillness alone is best for a frozen clip.

    >>> real = np.zeros((3, 16, 16, 3), np.uint8); real[1] = 8; mask = np.ones((16, 16), bool)
    >>> motion_ratio(real, real, mask), motion_ratio(real // 2, real, mask), motion_ratio(real * 0, real, mask)
    (1.0, 0.5, 0.0)
    """
    change, truth = (float(x.sum()) for x in _changes(generated, real, mask))
    if max(change, truth) == 0:
        return float("nan")
    return min(change, truth) / max(change, truth)


def sync(recovered: ArrayLike, truth: ArrayLike) -> float:
    """Pearson correlation of the mouth aperture recovered from pixels with the true one, both (F,). In [-1, 1], more
    is better; the estimator's own ceiling is the `ground_truth` row.

    0 where the recovered aperture never changes (a frozen mouth follows nothing); `nan` where the truth never does, or
    with fewer than three frames. Source: this project; what LSE asks of a trained network is told exactly where the
    true opening is known.

    >>> truth = np.sin(np.arange(25.))
    >>> round(sync(3 * truth + 1, truth), 6), sync(np.ones(25), truth)
    (1.0, 0.0)
    """
    recovered, truth = _curves(recovered, truth)
    if len(truth) < 3 or not np.isfinite([recovered, truth]).all() or _constant(truth):
        return float("nan")
    if _constant(recovered):
        return 0.0
    a, b = recovered - recovered.mean(), truth - truth.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def sync_offset(recovered: ArrayLike, truth: ArrayLike, max_lag: int = MAX_LAG) -> float:
    """The lag, in frames within +-`max_lag`, at which the recovered aperture correlates best with the true one.
    Nearer to 0 is better; positive: the picture comes late. Of equal lags the smallest wins.

    `nan` where either aperture never changes or fewer than 3 frames would overlap. Source: the audio-video offset of
    SyncNet (Chung and Zisserman 2016), on apertures instead of embeddings.

    >>> truth = np.sin(np.arange(50.) / 3) + np.sin(np.arange(50.) / 1.7)
    >>> sync_offset(truth, truth), sync_offset(np.roll(truth, 2), truth), sync_offset(np.roll(truth, -3), truth)
    (0.0, 2.0, -3.0)
    """
    recovered, truth = _curves(recovered, truth)
    if len(truth) < max_lag + 3 or not np.isfinite([recovered, truth]).all():
        return float("nan")
    if _constant(recovered) or _constant(truth):
        return float("nan")
    count, best, offset = len(truth), -np.inf, 0
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        value = sync(recovered[max(lag, 0):count + min(lag, 0)], truth[max(-lag, 0):count - max(lag, 0)])
        if value > best + 1e-9:
            best, offset = value, lag
    return float(offset)


def identity(generated: NDArray, reference: NDArray) -> float:
    """Cosine between identity embeddings of generated and reference frames, mean over all pairs. In [-1, 1], more is
    better. `generated` is (F, E), `reference` (R, E); neither need be normalised (`evaluation.identity` makes them).

    `nan` for an embedding of length zero or not finite. Source: CSIM (ArcFace cosine; Deng et al. 2019), our embedder.

    >>> identity(np.array([[1., 0.], [0., 2.]]), np.array([[3., 0.]]))
    0.5
    """
    generated, reference = (np.atleast_2d(np.asarray(x, np.float64)) for x in (generated, reference))
    if generated.ndim != 2 or generated.shape[1:] != reference.shape[1:] or 0 in generated.shape + reference.shape:
        raise ValueError(f"identity: embeddings of shape {generated.shape} and {reference.shape}; "
                         "expected (F, E) and (R, E)")
    norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in (generated, reference)]
    if not all(np.isfinite(n).all() and (n > 0).all() for n in norms):
        return float("nan")
    return float(np.clip(((generated / norms[0]) @ (reference / norms[1]).T).mean(), -1.0, 1.0))


def clip_metrics(generated: NDArray, real: NDArray, mask: NDArray, flow: NDArray, truth: ArrayLike,
                 aperture: Callable[[NDArray], NDArray], embed: Callable[[NDArray], NDArray],
                 reference: NDArray) -> dict[str, float]:
    """Every metric of one generated clip, by name.

    `flow` is the real clip's (`evaluation.temporal.optical_flow`), `truth` its true aperture (F,); `aperture(frames)`
    recovers it (`evaluation.aperture.mouth_aperture`); `embed(frames)` gives (F, E) (`evaluation.identity`);
    `reference` holds the embeddings (R, E) to compare with. Of the offset the distance from 0 is told: means of lags
    would take early and late ones for none.
    """
    recovered = aperture(generated)
    return {
        "psnr_mask": psnr_mask(generated, real, mask), "psnr": psnr(generated, real), "ssim": ssim(generated, real),
        "sync": sync(recovered, truth), "sync_offset": abs(sync_offset(recovered, truth)),
        "identity": identity(embed(generated), reference), "flicker": flicker(generated, real, mask),
        "flicker_gap": flicker_gap(generated, real, mask), "motion_ratio": motion_ratio(generated, real, mask),
        "warp": warp_error(generated, real, flow), "jitter_ratio": jitter_ratio(recovered, truth),
    }


def _pair(generated: NDArray, real: NDArray) -> tuple[NDArray, NDArray]:
    """Both clips as float32, after a check of their shapes."""
    generated, real = np.asarray(generated), np.asarray(real)
    if generated.shape != real.shape or real.ndim != 4 or real.shape[-1] != 3 or 0 in real.shape:
        raise ValueError(f"frames of shape {generated.shape} (generated) and {real.shape} (real); "
                         "expected the same (F, H, W, 3), F at least 1")
    return generated.astype(np.float32), real.astype(np.float32)


def _inside(mask: NDArray, frames: NDArray) -> NDArray:
    """The mask as boolean (F, H, W)."""
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape not in (frames.shape[1:3], frames.shape[:3]) or not mask.any():
        raise ValueError(f"mask of shape {mask.shape}, dtype {mask.dtype}, {int(mask.sum())} set; expected a boolean "
                         f"{frames.shape[1:3]} or {frames.shape[:3]} with at least one pixel set")
    return np.broadcast_to(mask, frames.shape[:3])


def _changes(generated: NDArray, real: NDArray, mask: NDArray) -> tuple[NDArray, NDArray]:
    """Absolute frame-to-frame change, mean of the channels, of the mask's pixels in both clips: two flat arrays."""
    generated, real = _pair(generated, real)
    inside = _inside(mask, real)[1:]
    return tuple(np.abs(np.diff(x, axis=0)).mean(-1)[inside] for x in (generated, real))


def _curves(recovered: ArrayLike, truth: ArrayLike) -> tuple[NDArray, NDArray]:
    recovered, truth = np.asarray(recovered, np.float64), np.asarray(truth, np.float64)
    if recovered.shape != truth.shape or truth.ndim != 1:
        raise ValueError(f"apertures of shape {recovered.shape} (recovered) and {truth.shape} (truth); "
                         "expected the same (F,)")
    return recovered, truth


def _constant(curve: NDArray) -> bool:
    """Whether a curve never changes, up to float rounding."""
    return bool(np.ptp(curve) <= 1e-9 * max(1.0, float(np.abs(curve).max())))
