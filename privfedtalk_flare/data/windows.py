"""Which frames a window covers: sampled for training, laid over a whole clip for generation. Indices only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def sample_window(rng: np.random.Generator, frames: int, length: int = 8) -> tuple[int, int]:
    """Draws a target window [start, start + length) and a reference frame outside it, each uniformly.

    Returns (start, reference). Raises ValueError if the clip of `frames` frames leaves no frame for the reference.
    """
    if length < 1 or frames <= length:
        raise ValueError(f"a window of {length} frames and a reference outside it need a clip of at least "
                         f"{max(length, 1) + 1} frames and a length of at least 1, got {frames} frames")
    start = int(rng.integers(frames - length + 1))
    outside = int(rng.integers(frames - length))
    return start, outside if outside < start else outside + length


def cover_windows(frames: int, length: int = 8, overlap: int = 4) -> list[int]:
    """Starts of windows of `length` frames that cover a clip, neighbours sharing at least `overlap` frames.

    The windows are as few as that allows and spread evenly; the first starts at 0, the last ends with the clip. A clip
    shorter than a window gets one window, which runs beyond its end.
    """
    if frames < 1 or not 0 <= overlap < length:
        raise ValueError(f"cover_windows: need frames >= 1 and 0 <= overlap < length, got {frames} frames, "
                         f"length {length}, overlap {overlap}")
    last = max(0, frames - length)
    steps = math.ceil(last / (length - overlap))
    return [round(i * last / steps) for i in range(steps + 1)] if steps else [0]


def blend_weights(starts: Sequence[int], frames: int, length: int = 8, overlap: int = 4) -> np.ndarray:
    """Weights that cross-fade overlapping windows: (windows, length) float32, row w for frames starts[w] + 0 .. .

    Neighbours fade into each other linearly over `overlap` frames in the middle of what they share. The weights sum to
    1 on every frame of the clip, are 0 beyond it, and change by at most 1 / (overlap + 1) from frame to frame.
    Raises ValueError unless the starts rise from 0, cover the clip and let neighbours share `overlap` frames.
    """
    begins = np.asarray(starts)
    steps = np.diff(begins)
    if not len(begins) or begins[0] or (steps < 1).any() or (steps > length - overlap).any() \
            or begins[-1] + length < frames:
        raise ValueError(f"blend_weights: windows of {length} at {list(starts)} do not cover {frames} frames sharing "
                         f"{overlap}; take the starts from cover_windows")
    middles = (begins[1:] + begins[:-1] + length - 1) / 2  # of what each window shares with the one before
    at = np.arange(begins[-1] + length)
    entered = np.clip((at - middles[:, None]) / (overlap + 1) + 0.5, 0, 1)
    entered = np.vstack([np.ones(len(at)), entered, np.zeros(len(at))])
    weights = (entered[:-1] - entered[1:]) * (at < frames)
    return np.stack([row[s : s + length] for row, s in zip(weights, begins, strict=True)]).astype(np.float32)
