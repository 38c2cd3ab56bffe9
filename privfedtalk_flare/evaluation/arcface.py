"""Identity by ArcFace (Deng et al. 2019): the cosine between embeddings of a residual network (IResNet-50) that a user
brings as safetensors, with the names of insightface's `iresnet50` kept.

Faces are taken as the clips show them, upright in the middle, not aligned by five landmarks as ArcFace was trained:
compare these cosines with each other, not with published ones. Without weights at hand no number was reproduced.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from privfedtalk_flare.evaluation.metrics import identity
from privfedtalk_flare.evaluation.weights import loaded

SIZE = 112
_EPS = 1e-5


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside, _EPS), nn.Conv2d(inside, outside, 3, 1, 1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(outside, _EPS), nn.PReLU(outside)
        self.conv2, self.bn3 = nn.Conv2d(outside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside, _EPS)
        self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False),
                                        nn.BatchNorm2d(outside, _EPS)) if stride > 1 or inside != outside else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet50(nn.Module):
    """(B, 3, 112, 112) RGB in [-1, 1] -> (B, 512), not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64, _EPS)
        self.prelu = nn.PReLU(64)
        widths, depths = (64, 64, 128, 256, 512), (3, 4, 14, 3)
        for number, depth in enumerate(depths, 1):
            inside, outside = widths[number - 1], widths[number]
            blocks = [_Block(inside, outside, 2), *(_Block(outside, outside, 1) for _ in range(depth - 1))]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.bn2 = nn.BatchNorm2d(512, _EPS)
        self.fc, self.features = nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512, _EPS)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(pictures)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


def load_arcface(path: Path) -> IResNet50:
    """Raises ValueError where the file holds another network's weights."""
    return loaded(IResNet50(), path)


def face_cosine(network: IResNet50, generated: NDArray, real: NDArray) -> float:
    """Mean cosine between generated and real frames, both (F, S, S, 3) uint8. In [-1, 1], more is better."""
    return identity(*(_embeddings(network, frames) for frames in (generated, real)))


def _embeddings(network: IResNet50, frames: NDArray) -> NDArray:
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        return network(F.interpolate(pictures, (SIZE, SIZE), mode="bilinear", antialias=True)).numpy()
