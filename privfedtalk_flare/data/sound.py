"""A sound track put together from decoded pieces, at 16 kHz mono."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
from scipy.signal import resample_poly

SAMPLE_RATE = 16_000
FPS = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_LONGEST_HOLE = 60.0
"""Seconds without sound, in the middle of a track, beyond which its times are taken for damage."""


class MediaError(ValueError):
    """A file that cannot be read or written. The message names the file, the fault and the remedy."""


class SoundTrack:
    """Lays decoded pieces out by their times: holes become silence, what overlaps is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces: list[np.ndarray] = []
        self._samples, self._rate, self._start = 0, 0, 0.0

    def add(self, frame: av.AudioFrame) -> None:
        """Appends one piece, its channels averaged. Raises MediaError where the track changes rate or jumps."""
        if not self._rate:
            self._rate, self._start = frame.sample_rate, frame.time or 0.0
        if frame.sample_rate != self._rate:
            raise MediaError(f"{self._path}: the sound changes from {self._rate} to {frame.sample_rate} Hz midway; "
                             "export it at one rate")
        mono = _mono(frame)
        gap = 0 if frame.time is None else round((frame.time - self._start) * self._rate) - self._samples
        if gap > _LONGEST_HOLE * self._rate:
            raise MediaError(f"{self._path}: a hole of {gap / self._rate:.0f} s in the sound; export the clip again")
        if gap > self._rate // 100:  # less is rounding of timestamps
            self._append(np.zeros(gap, np.float32))
        elif gap < -(self._rate // 100):
            mono = mono[-gap:]
        self._append(mono)

    @property
    def seconds(self) -> float:
        """Length so far."""
        return self._samples / self._rate if self._rate else 0.0

    def joined(self) -> tuple[np.ndarray, float]:
        """(S,) float32 at 16 kHz in [-1, 1], and the time of its first sample in seconds on the file's clock."""
        if not self._samples:
            raise MediaError(f"{self._path}: the audio stream holds no sound; export the clip again with its sound")
        return resampled(np.concatenate(self._pieces), self._rate), self._start

    def _append(self, samples: np.ndarray) -> None:
        self._pieces.append(samples)
        self._samples += len(samples)


def resampled(audio: np.ndarray, rate: int) -> np.ndarray:
    """(S,) float32 at `rate` Hz to (ceil(S 16000 / rate),) at 16 kHz in [-1, 1], without delay."""
    if rate != SAMPLE_RATE:
        common = math.gcd(rate, SAMPLE_RATE)
        audio = resample_poly(audio, SAMPLE_RATE // common, rate // common)
    return np.clip(audio, -1, 1).astype(np.float32)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """(S,) float32 in [-1, 1]: integer samples scaled by their range, channels averaged."""
    samples = frame.to_ndarray()
    channels = frame.layout.nb_channels
    samples = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    if samples.dtype.kind in "iu":
        info = np.iinfo(samples.dtype)
        half = (info.max - info.min + 1) / 2
        samples = (samples.astype(np.float64) - (half if samples.dtype.kind == "u" else 0)) / half
    return samples.mean(axis=0).astype(np.float32)
