"""Lip-sync error by SyncNet: LSE-D and LSE-C (Chung and Zisserman 2016, "Out of time"; the names: Prajwal et al. 2020).

The network's shape and its inputs are those of the published model, whose weights a user brings as safetensors with
their names kept (`netcnnaud.0.weight`, ...). No such weights were at hand when this was written: the arithmetic around
the network is tested, published numbers have not been reproduced.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import dct
from torch import nn

from privfedtalk_flare.data.sound import SAMPLE_RATE, SAMPLES_PER_FRAME
from privfedtalk_flare.evaluation.weights import loaded

SIZE = 224
"""Pixels of a side that the network sees."""
WINDOW = 5
"""Frames of a window: 200 ms, 20 steps of sound."""
MOST_SHIFT = 15
"""Frames by which the sound is moved either way in the search for the best match."""
CEPSTRA, FILTERS, FFT = 13, 26, 512
_BATCH = 20


class SyncNet(nn.Module):
    """`sound` (B, 1, 13, 20) and `lips` (B, 3, 5, 224, 224), BGR in 0..255, each to (B, 1024)."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer(nn.Conv2d(1, 64, 3, padding=1)), nn.MaxPool2d(1),
            *_layer(nn.Conv2d(64, 192, 3, padding=1)), nn.MaxPool2d(3, (1, 2)),
            *_layer(nn.Conv2d(192, 384, 3, padding=1)), *_layer(nn.Conv2d(384, 256, 3, padding=1)),
            *_layer(nn.Conv2d(256, 256, 3, padding=1)), nn.MaxPool2d(3, 2), *_layer(nn.Conv2d(256, 512, (5, 4))))
        self.netcnnlip = nn.Sequential(
            *_layer(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2))), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *(part for _ in range(3) for part in _layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)), *_layer(nn.Conv3d(256, 512, (1, 6, 6))))
        self.netfcaud, self.netfclip = (nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(),
                                                      nn.Linear(512, 1024)) for _ in range(2))

    def sound(self, cepstra: torch.Tensor) -> torch.Tensor:
        return self.netfcaud(self.netcnnaud(cepstra).flatten(1))

    def lips(self, frames: torch.Tensor) -> torch.Tensor:
        return self.netfclip(self.netcnnlip(frames).flatten(1))


def load_syncnet(path: Path) -> SyncNet:
    """Raises ValueError where the file holds another network's weights."""
    return loaded(SyncNet(), path)


def sync_errors(network: SyncNet, frames: NDArray, audio: NDArray) -> tuple[float, float]:
    """(LSE-D, LSE-C) of one film: frames (F, S, S, 3) uint8 at 25 a second, audio (640 F,) at 16 kHz.

    LSE-D: distance between lips and sound at the shift that suits them best, less is better; LSE-C: how much farther
    they are apart at the median shift, more is better. Raises ValueError with fewer than six frames.
    """
    count = min(len(frames), len(audio) // SAMPLES_PER_FRAME) - WINDOW
    if count < 1:
        raise ValueError(f"a film of {len(frames)} frames is too short for SyncNet; it needs {WINDOW + 1}")
    pictures = torch.from_numpy(frames[..., ::-1].copy()).permute(3, 0, 1, 2).float()
    pictures = F.interpolate(pictures, (SIZE, SIZE), mode="bilinear", antialias=True)
    cepstra = torch.from_numpy(mfcc(audio)).float().T
    lips, sound = [], []
    with torch.inference_mode():
        for start in range(0, count, _BATCH):
            at = range(start, min(count, start + _BATCH))
            lips.append(network.lips(torch.stack([pictures[:, i:i + WINDOW] for i in at])))
            sound.append(network.sound(torch.stack([cepstra[None, :, 4 * i:4 * i + 20] for i in at])))
        return from_embeddings(torch.cat(lips), torch.cat(sound))


def from_embeddings(lips: torch.Tensor, sound: torch.Tensor) -> tuple[float, float]:
    """(LSE-D, LSE-C) from N windows' embeddings (N, E): the sound is padded with zeros where it has none."""
    padded = F.pad(sound, (0, 0, MOST_SHIFT, MOST_SHIFT))
    shifts = torch.stack([F.pairwise_distance(lips, padded[shift:shift + len(lips)])
                          for shift in range(2 * MOST_SHIFT + 1)])
    means = shifts.mean(1)
    least = float(means.min())
    return least, float(means.median()) - least


def mfcc(audio: NDArray) -> NDArray:
    """(T, 13) cepstra of sound (S,) in [-1, 1] at 16 kHz, a hundred a second, as SyncNet was trained on them: 16-bit
    samples, pre-emphasis .97, 25 ms windows, 26 mel filters, a lifter of 22, the first one the energy's logarithm
    (python_speech_features' defaults)."""
    length, step = round(0.025 * SAMPLE_RATE), round(0.01 * SAMPLE_RATE)
    signal = np.asarray(audio, np.float64) * 32768
    signal = np.append(signal[:1], signal[1:] - 0.97 * signal[:-1])
    count = 1 + max(0, -(-(len(signal) - length) // step))
    signal = np.append(signal, np.zeros(max(0, (count - 1) * step + length - len(signal))))
    windows = np.lib.stride_tricks.sliding_window_view(signal, length)[::step][:count]
    power = np.abs(np.fft.rfft(windows, FFT)) ** 2 / FFT
    tiny = np.finfo(float).eps
    energy = np.maximum(power.sum(1), tiny)
    found = dct(np.log(np.maximum(power @ _filters().T, tiny)), type=2, axis=1, norm="ortho")[:, :CEPSTRA]
    found *= 1 + 11 * np.sin(np.pi * np.arange(CEPSTRA) / 22)
    found[:, 0] = np.log(energy)
    return found


def _filters() -> NDArray:
    """(26, 257) triangles, evenly spaced in mel."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, FILTERS + 2) / 2595) - 1)
    bins = np.floor((FFT + 1) * hertz / SAMPLE_RATE)
    at = np.arange(FFT // 2 + 1)
    rising = (at - bins[:-2, None]) / np.maximum(bins[1:-1] - bins[:-2], 1)[:, None]
    falling = (bins[2:, None] - at) / np.maximum(bins[2:] - bins[1:-1], 1)[:, None]
    return np.where((at >= bins[:-2, None]) & (at < bins[1:-1, None]), rising,
                    np.where((at >= bins[1:-1, None]) & (at < bins[2:, None]), falling, 0.0))


def _layer(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, nn.Module, nn.Module]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU()
