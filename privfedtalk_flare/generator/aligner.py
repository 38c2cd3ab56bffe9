"""The aligner: moves the reference to where the head is, so that the denoiser paints the mouth and not the pose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

SLOWNESS = 0.05
"""Factor on both branches' outputs, which are in half pictures: keeps the first, large steps of Adam from throwing the
reference out of the picture."""
CELL = 4
"""Pixels between the flow's support points."""


class Aligner(ModelMixin, ConfigMixin):
    """Warps a reference picture to the pose of each frame, which it reads from what the mask leaves visible.

    First the head as a whole, by an affine transform (spatial transformer, Jaderberg et al. 2015), then what does not
    follow it (neck, shoulders, wall), by a smooth flow on top. Both start as no movement.

    It moves pictures, which the codec then encodes. Moving latents loses what lies between their cells: a shift of 1.5
    pixels came back from the codec at 25 dB inside the mask, the moved picture at 30 dB.
    """

    @register_to_config
    def __init__(self, size: int = 64, width: int = 32) -> None:
        super().__init__()
        self.whole = nn.Sequential(
            nn.Conv2d(6, width, 5, stride=2, padding=2), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Linear(width * (size // 16) ** 2, 64), nn.SiLU(), nn.Linear(64, 6))
        self.rest = nn.Sequential(
            nn.Conv2d(10, width, 5, stride=2, padding=2), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=CELL // 2, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4), nn.SiLU(),
            nn.Conv2d(width, 2, 3, padding=1))
        for branch in (self.whole, self.rest):
            for layer in branch:
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    nn.init.kaiming_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)
            nn.init.zeros_(branch[-1].weight)

    def forward(self, pictures: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """pictures (B, F, 3, H, W), reference (B, 3, H, W), mask (1, H, W) -> moved reference (B, F, 3, H, W).

        Nothing of `pictures` inside the mask is read.
        """
        batch, frames = pictures.shape[:2]
        visible = 1 - mask
        seen = pictures.flatten(0, 1) * visible
        known = reference[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        still = torch.eye(2, 3, device=seen.device, dtype=seen.dtype)
        affine = still + SLOWNESS * self.whole(torch.cat([seen, known * visible], dim=1)).unflatten(1, (2, 3))
        places = F.affine_grid(affine, known.shape, align_corners=False)
        moved = F.grid_sample(known, places, padding_mode="border", align_corners=False)
        hint = torch.cat([seen, moved, moved * visible, mask.expand(len(moved), -1, -1, -1)], dim=1)
        flow = F.interpolate(SLOWNESS * self.rest(hint), scale_factor=CELL, mode="bilinear").permute(0, 2, 3, 1)
        moved = F.grid_sample(known, places + flow, mode="bicubic", padding_mode="border", align_corners=False)
        return moved.unflatten(0, (batch, frames))
