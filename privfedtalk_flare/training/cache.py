"""Latents and audio windows of a clip, computed once and kept in the site's state, keyed by content and backbone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from privfedtalk_flare.data.clips import Clip
from privfedtalk_flare.data.features import FEATURES, frame_windows, log_mel
from privfedtalk_flare.data.portrait import mask_box
from privfedtalk_flare.data.windows import sample_window
from privfedtalk_flare.files import replaced
from privfedtalk_flare.generator.codec import encode, mask_pictures, multiplies_bf16, to_tensor


@dataclass(frozen=True)
class CachedClip:
    """What training needs of a clip of F frames. PRIVATE to the site.

    `frames` (F, H, W, 3) uint8; `latents`, `masked` (F, C, h, w) float32: the frames, and the frames without their
    lower face, through the codec; `audio` (F, mels, 20) float32: the log-mel window around each frame.
    """

    identity: str
    name: str
    frames: np.ndarray
    latents: torch.Tensor
    masked: torch.Tensor
    audio: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class WindowBatch:
    """B windows of L frames: `frames` (B, L, H, W, 3) and `reference` (B, H, W, 3) uint8 pictures, `clean` and `masked`
    (B, L, C, h, w) latents, `audio` (B, L, mels, 20)."""

    frames: np.ndarray
    reference: np.ndarray
    clean: torch.Tensor
    masked: torch.Tensor
    audio: torch.Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, part: slice) -> WindowBatch:
        return WindowBatch(*(getattr(self, field.name)[part] for field in fields(self)))


def cache_clip(clip: Clip, codec: AutoencoderTiny, codec_digest: str, folder: Path) -> CachedClip:
    """Loads the clip's latents from `folder`, or encodes them and writes them there by atomic replace."""
    precision = f"{codec.dtype} fast {multiplies_bf16()}"
    made_from = (clip.digest, codec_digest, precision, mask_box(clip.frames.shape[1]), FEATURES)
    path = folder / f"{hashlib.sha256(repr(made_from).encode()).hexdigest()[:40]}.safetensors"
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError):  # a torn file is written anew
        tensors = _encode(clip, codec)
        with replaced(path) as partial:
            save_file(tensors, partial)
    return CachedClip(clip.identity, clip.name, clip.frames,
                      *(tensors[k].float() for k in ("latents", "masked", "audio")))


def _encode(clip: Clip, codec: AutoencoderTiny) -> dict[str, torch.Tensor]:
    pictures = to_tensor(clip.frames)
    return {"latents": encode(codec, pictures, fast=True).half().contiguous().cpu(),
            "masked": encode(codec, mask_pictures(pictures), fast=True).half().contiguous().cpu(),
            "audio": torch.from_numpy(frame_windows(log_mel(clip.audio))).half()}


def draw_windows(rng: np.random.Generator, clips: list[CachedClip], batch: int, length: int) -> WindowBatch:
    """Draws `batch` windows of `length` frames, clip and place uniformly, each with a reference outside its window.

    The reference comes from any clip of the same person: within one clip heads hardly move, and a denoiser that saw no
    other reference would never learn to move the mouth to where the head is.
    """
    parts = []
    for _ in range(batch):
        clip = clips[rng.integers(len(clips))]
        start, reference = sample_window(rng, len(clip), length)
        own = [c for c in clips if c.identity == clip.identity]
        known = own[rng.integers(len(own))]
        if known is not clip:
            reference = int(rng.integers(len(known)))
        window = slice(start, start + length)
        parts.append((clip.frames[window], known.frames[reference], clip.latents[window], clip.masked[window],
                      clip.audio[window]))
    frames, references, *tensors = zip(*parts, strict=True)
    return WindowBatch(np.stack(frames), np.stack(references), *(torch.stack(column) for column in tensors))
