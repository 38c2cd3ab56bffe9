"""The denoiser: diffusers' `UNetMotionModel` over patched latents, conditioned on face, reference and audio."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNetMotionModel

from privfedtalk_flare.generator.codec import LATENT_CHANNELS

PATCH = 2
WINDOW = 8
"""Frames the denoiser sees at once."""
CONDITION_CHANNELS = 3 * LATENT_CHANNELS + 1
"""Noisy latent, mask, masked latent, reference latent."""
AUDIO_DIM = 96
AUDIO_CHANNELS = 32
"""Features of the middle audio token that also enter as channels, the same at every place: a short way for loudness and
openness, beside cross-attention to all tokens."""


@dataclass(frozen=True)
class Conditions:
    """What the denoiser is told about a batch of windows.

    `mask` (1, h, w); `masked` (B, F, C, h, w) latents of the frames without their lower face; `reference` (B, F, C, h,
    w) latent of one other frame of the same person, aligned with each frame; `audio` (B * F, tokens, dim).
    """

    mask: torch.Tensor
    masked: torch.Tensor
    reference: torch.Tensor
    audio: torch.Tensor


def build_denoiser(channels: tuple[int, ...] = (64, 128)) -> UNetMotionModel:
    """A fresh denoiser for 16x16x8 latents (6.0 M parameters)."""
    levels = len(channels)
    denoiser = UNetMotionModel(
        sample_size=16 // PATCH, in_channels=CONDITION_CHANNELS * PATCH**2 + AUDIO_CHANNELS,
        out_channels=LATENT_CHANNELS * PATCH**2,
        block_out_channels=channels, layers_per_block=1, norm_num_groups=8, cross_attention_dim=AUDIO_DIM,
        down_block_types=("CrossAttnDownBlockMotion",) * levels, up_block_types=("CrossAttnUpBlockMotion",) * levels,
        num_attention_heads=4, motion_num_attention_heads=4, motion_max_seq_length=16)
    torch.nn.init.zeros_(denoiser.conv_out.weight)
    torch.nn.init.zeros_(denoiser.conv_out.bias)
    return denoiser


def build_scheduler() -> DDIMScheduler:
    """DDIM that predicts the clean latent (x0): lip sync .85 after 220 steps, where epsilon gave .04."""
    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="sample",
                         timestep_spacing="trailing", clip_sample=False)


def predict_clean(denoiser: UNetMotionModel, noisy: torch.Tensor, step: torch.Tensor,
                  conditions: Conditions) -> torch.Tensor:
    """Predicts x0 (B, F, C, h, w) from `noisy` of the same shape at timesteps `step` (B,).

    The network's output is the difference from what is known without it: the reference inside the mask, the frame
    itself outside. It starts at zero, so an untrained denoiser copies the reference.
    """
    batch, frames = noisy.shape[:2]
    mask = conditions.mask.expand(batch, frames, *conditions.mask.shape).to(noisy)
    masked = conditions.masked.to(noisy)
    reference = conditions.reference.to(noisy)
    stacked = torch.cat([noisy, mask, masked, reference], dim=2)
    patched = F.pixel_unshuffle(stacked.flatten(0, 1), PATCH)
    heard = conditions.audio[:, conditions.audio.shape[1] // 2, :AUDIO_CHANNELS, None, None]
    patched = torch.cat([patched, heard.expand(-1, -1, *patched.shape[-2:]).to(patched)], dim=1)
    patched = patched.unflatten(0, (batch, frames)).transpose(1, 2)
    out = denoiser(patched, step, encoder_hidden_states=conditions.audio).sample.transpose(1, 2)
    change = F.pixel_shuffle(out.flatten(0, 1), PATCH).unflatten(0, (batch, frames))
    return torch.where(mask > 0, reference, masked) + change


def draw_noise(shape: torch.Size, generator: torch.Generator | None = None) -> torch.Tensor:
    """Gaussian noise (B, F, C, h, w), half of its variance shared by the frames of a window.

    Shared noise lowers flicker (Ge et al. 2023, "Preserve Your Own Correlation").
    """
    own = torch.randn(shape, generator=generator)
    common = torch.randn((shape[0], 1, *shape[2:]), generator=generator)
    return (own + common) * 0.5**0.5
