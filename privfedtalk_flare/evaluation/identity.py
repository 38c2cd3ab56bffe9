"""The identity embedder: a small convolutional network that tells people apart, trained on other people.

It looks at the lower two thirds of the picture: the mask and its surroundings. It is trained by contrast within a batch
(NT-Xent, Chen et al. 2020), which needs no list of people, so sites with disjoint people can train it together.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from privfedtalk_flare.generator.codec import to_tensor
from privfedtalk_flare.generator.pipeline import backbone_folder

TEMPERATURE = 0.1


class IdentityEmbedder(ModelMixin, ConfigMixin):
    """(B, 3, S, S) pictures in [-1, 1] -> (B, dim) unit vectors; equal people point the same way."""

    @register_to_config
    def __init__(self, width: int = 32, dim: int = 64) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.SiLU())
        self.head = nn.Linear(2 * widths[-1], dim)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.layers(crop(pictures))
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return F.normalize(self.head(pooled), dim=1)


def crop(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S) -> (B, 3, 3S/4, 3S/4): the mask and its surroundings."""
    size = pictures.shape[-1]
    return pictures[..., size // 4:, size // 8:size - size // 8]


def contrast_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """NT-Xent over two views (P, dim) of P people: each view finds the other among the 2P - 2 of other people."""
    both = torch.cat([first, second])
    similarity = both @ both.T / TEMPERATURE
    similarity = similarity.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), float("-inf"))
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


def build_embedder(seed: int) -> IdentityEmbedder:
    """A fresh, untrained embedder; `seed` fixes its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return IdentityEmbedder()


def load_embedder(source: str) -> IdentityEmbedder:
    """Loads the embedder that lies beside a backbone ('assets', a folder or a hub id), in its sub-folder `identity`."""
    folder = backbone_folder(source)
    embedder = IdentityEmbedder.from_pretrained(str(folder) if folder.exists() else source, subfolder="identity",
                                                use_safetensors=True, dtype=torch.float32)
    return embedder.requires_grad_(False).eval()


@torch.no_grad()
def embed(embedder: IdentityEmbedder, frames: np.ndarray, batch: int = 128) -> np.ndarray:
    """(F, H, W, 3) uint8 -> (F, dim) float32 unit vectors. PRIVATE: an embedding never leaves its site."""
    parts = [embedder(p.to(embedder.device)) for p in to_tensor(frames).split(batch)]
    return torch.cat(parts).cpu().numpy()
