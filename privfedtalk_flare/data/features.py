"""What the generator hears: a log-mel spectrogram and, for each video frame, a window of it.

Row r of the spectrogram is centred on the middle of hop r, sample 160 r + 80, so that video frame f at 25 fps, which
spans samples 640 f to 640 f + 639, owns rows 4 f to 4 f + 3 and no other.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.fft import rfft

from privfedtalk_flare.data.sound import SAMPLE_RATE

HOP = 160
"""Samples from row to row: 10 ms."""
WINDOW = 400
"""Samples a row looks at: 25 ms."""
MELS = 32
STEPS_PER_FRAME = 4
"""Rows a video frame owns, at 25 fps."""
CONTEXT_FRAMES = 5
"""Video frames in the window of one frame: itself and two on each side."""

_FFT = 512
_LOW_HZ, _HIGH_HZ = 60.0, 7600.0
_FLOOR = 1e-7
"""Power below which all is silence: 70 dB under a full-scale sine; AAC's own noise stays below it."""
_MEAN, _STD = -5.5, 1.6
"""Of log10 power over speech of .03 to .1 RMS, pauses included. Fixed, never estimated: a clip's features depend on
that clip alone."""
SILENCE = float((np.log10(_FLOOR) - _MEAN) / _STD)
"""The value of every band in silence; what pads a window beyond the clip's ends."""
FEATURES = (SAMPLE_RATE, HOP, WINDOW, MELS, STEPS_PER_FRAME, CONTEXT_FRAMES, _LOW_HZ, _HIGH_HZ, _FLOOR, _MEAN, _STD)
"""Everything that the features follow from, beside the sound: part of the key under which they are kept."""


@cache
def _mel_bank() -> np.ndarray:
    """(257, 32) float32: triangles of height 1, evenly spaced on the mel scale 2595 log10(1 + f / 700)."""
    edges = 2595 * np.log10(1 + np.array([_LOW_HZ, _HIGH_HZ]) / 700)
    hz = 700 * (10 ** (np.linspace(*edges, MELS + 2) / 2595) - 1)
    bins = np.arange(_FFT // 2 + 1)[:, None] * SAMPLE_RATE / _FFT
    rising = (bins - hz[:-2]) / (hz[1:-1] - hz[:-2])
    falling = (hz[2:] - bins) / (hz[2:] - hz[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram of mono sound.

    audio: (S,) float at 16 kHz in [-1, 1]. Returns (S // 160, 32) float32 at 100 rows a second, of about zero mean and
    unit variance over speech, `SILENCE` where nothing sounds. Sound outside the clip counts as silence.
    Raises ValueError if audio is not one-dimensional or not finite.
    """
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 1:
        raise ValueError(f"log_mel: expected mono audio of shape (samples,), got shape {audio.shape}")
    if not np.isfinite(audio).all():
        raise ValueError("log_mel: the audio holds NaN or infinite samples; decode it again or drop the clip")
    rows = len(audio) // HOP
    if rows == 0:
        return np.empty((0, MELS), np.float32)
    margin = (WINDOW - HOP) // 2  # row r's window starts at sample 160 r - 120
    padded = np.pad(audio[: rows * HOP], margin)
    hann = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * hann
    amplitude = np.abs(rfft(windows, _FFT)) / (hann.sum() / 2)  # a full-scale sine has amplitude 1
    power = (amplitude**2) @ _mel_bank()
    return np.maximum((np.log10(np.maximum(power, _FLOOR)) - _MEAN) / _STD, SILENCE).astype(np.float32)


def frame_windows(mel: np.ndarray) -> np.ndarray:
    """What each video frame hears: 5 frames of 4 rows centred on it.

    mel: (4 F, 32) as `log_mel` gives. Returns (F, 32, 20) float32, a copy; columns 8 to 11 are the frame's own rows;
    beyond the clip's ends stands `SILENCE`. Raises ValueError on another shape.
    """
    mel = np.asarray(mel, dtype=np.float32)
    if mel.ndim != 2 or mel.shape[1] != MELS or len(mel) % STEPS_PER_FRAME:
        raise ValueError(f"frame_windows: expected shape (4 x frames, {MELS}), got {mel.shape}; "
                         "pad or cut the audio to 640 samples a frame first")
    span = CONTEXT_FRAMES * STEPS_PER_FRAME
    if len(mel) == 0:
        return np.empty((0, MELS, span), np.float32)
    side = CONTEXT_FRAMES // 2 * STEPS_PER_FRAME
    padded = np.pad(mel, ((side, side), (0, 0)), constant_values=SILENCE)
    return np.lib.stride_tricks.sliding_window_view(padded, span, axis=0)[::STEPS_PER_FRAME].copy()
