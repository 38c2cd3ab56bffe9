"""The audio encoder: a window of log-mels around each video frame becomes a few cross-attention tokens."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class AudioEncoder(ModelMixin, ConfigMixin):
    """(B, F, mels, 20) log-mel windows -> (B * F, 5, dim) tokens, a token for each video frame of the window.

    Nothing normalises over time: loudness tells a pause from speech. `silence` (1, 5, dim) stands in for the tokens of
    windows whose audio is dropped in training.
    """

    @register_to_config
    def __init__(self, mels: int = 32, width: int = 64, dim: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(mels, width, 3, padding=1), nn.SiLU(),
            nn.Conv1d(width, dim, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv1d(dim, dim, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv1d(dim, dim, 3, padding=1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv1d):  # torch's default halves the signal at every layer
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.norm = nn.LayerNorm(dim)
        self.place = nn.Parameter(torch.randn(1, 5, dim) * 0.3)
        self.silence = nn.Parameter(torch.zeros(1, 5, dim))

    def forward(self, windows: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
        """`dropped` (B,) bool: clips whose audio is replaced by `silence`."""
        batch, frames = windows.shape[:2]
        tokens = self.norm(self.layers(windows.flatten(0, 1)).transpose(1, 2)) + self.place
        if dropped is not None:
            keep = (~dropped).repeat_interleave(frames)[:, None, None]
            tokens = torch.where(keep, tokens, self.silence.expand(batch * frames, -1, -1))
        return tokens
