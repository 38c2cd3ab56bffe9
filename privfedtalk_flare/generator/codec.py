"""The latent codec: diffusers' `AutoencoderTiny`, four times smaller each way, eight latent channels."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from diffusers import AutoencoderTiny

from privfedtalk_flare.data.portrait import mask_box

LATENT_CHANNELS = 8
DOWNSCALE = 4
GREY = 0.0
"""What the masked region is filled with before encoding, so that no latent near its edge has seen the mouth."""


def build_codec() -> AutoencoderTiny:
    """A fresh codec for 64-pixel pictures: (B, 3, 64, 64) in [-1, 1] <-> (B, 8, 16, 16)."""
    width = (32, 32, 32)
    return AutoencoderTiny(encoder_block_out_channels=width, decoder_block_out_channels=width,
                           num_encoder_blocks=(1, 1, 3), num_decoder_blocks=(3, 1, 1),
                           latent_channels=LATENT_CHANNELS)


def to_tensor(frames: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 127.5 - 1


def to_frames(pictures: torch.Tensor) -> np.ndarray:
    """(F, 3, H, W) in [-1, 1] -> (F, H, W, 3) uint8."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def mask_pictures(pictures: torch.Tensor) -> torch.Tensor:
    """(F, 3, H, W) with the lower face filled with grey; the input is left alone."""
    rows, columns = mask_box(pictures.shape[-1])
    masked = pictures.clone()
    masked[..., rows, columns] = GREY
    return masked


def latent_mask(size: int, downscale: int = DOWNSCALE) -> torch.Tensor:
    """(1, h, w) float32: 1 in the latent cells of the masked lower face of a `size`-pixel picture."""
    rows, columns = mask_box(size)
    mask = torch.zeros(1, size // downscale, size // downscale)
    mask[:, rows.start // downscale:rows.stop // downscale, columns.start // downscale:columns.stop // downscale] = 1
    return mask


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware; there it halves a codec step."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def low_precision() -> contextlib.AbstractContextManager[None]:
    """bf16 autocast where the processor multiplies it in hardware, else nothing."""
    return torch.autocast("cpu", torch.bfloat16) if multiplies_bf16() else contextlib.nullcontext()


@torch.no_grad()
def encode(codec: AutoencoderTiny, pictures: torch.Tensor, batch: int = 16, *, raw: bool = False,
           fast: bool = False) -> torch.Tensor:
    """(F, 3, H, W) in [-1, 1] -> latents (F, 8, H/4, W/4), by the codec's own shift and scale unless `raw`.

    `fast`, for training: in `low_precision`, which moves latents by half a percent of their length.
    """
    with low_precision() if fast else contextlib.nullcontext():
        parts = [codec.encode(part.to(codec.device, codec.dtype)).latents for part in pictures.split(batch)]
    latents = torch.cat(parts)
    if raw:
        return latents.float()
    return (latents.float() - codec.config.shift_factor) * codec.config.scaling_factor


@torch.no_grad()
def decode(codec: AutoencoderTiny, latents: torch.Tensor, batch: int = 16) -> torch.Tensor:
    """Normalised latents (F, 8, h, w) -> pictures (F, 3, 4h, 4w) in [-1, 1]."""
    raw = latents / codec.config.scaling_factor + codec.config.shift_factor
    parts = [codec.decode(part.to(codec.device, codec.dtype)).sample for part in raw.split(batch)]
    return torch.cat(parts).float().clamp(-1, 1)


def set_latent_scale(codec: AutoencoderTiny, mean: float, std: float) -> None:
    """Stores the latents' mean and standard deviation in the codec's config, as diffusers' codecs do."""
    codec.register_to_config(shift_factor=float(mean), scaling_factor=1.0 / float(std))
