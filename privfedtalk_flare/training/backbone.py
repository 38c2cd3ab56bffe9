"""Training the backbone's parts from nothing, in sub-phases: codec, identity embedder, denoiser.

Each function trains one part in place for some steps of a longer course, so the same code runs one round at a site and
a whole training in one process.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from privfedtalk_flare.evaluation.identity import IdentityEmbedder, contrast_loss
from privfedtalk_flare.generator.codec import GREY, low_precision, to_tensor
from privfedtalk_flare.generator.pipeline import TalkingHeadPipeline
from privfedtalk_flare.settings import TrainingSettings
from privfedtalk_flare.training.cache import CachedClip
from privfedtalk_flare.training.trainer import Schedule, fit, train_denoiser

CODEC_RATE = 2e-3
CODEC_CROP = 32
"""Side of the crops that the codec, which is convolutional throughout, is trained on: more people a step."""
IDENTITY_RATE = 2e-3


def train_codec(generator: TalkingHeadPipeline, pictures: np.ndarray, steps: int, batch: int,
                rng: np.random.Generator, schedule: Schedule) -> float:
    """Trains the codec on pictures (N, H, W, 3) uint8; returns the final loss.

    Colours are shifted and scaled at random, since a codec that saw few people gets other people's colours wrong; a
    third of the pictures have their lower face greyed, as the denoiser's condition has. A step sees `batch` crops; two
    steps in three look at the masked region, the only one whose decoding is ever shown.
    """
    codec = generator.codec
    rows, columns = generator.mask_box
    source = torch.Generator().manual_seed(int(rng.integers(2**63)))

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=source)

    def parts_of() -> Iterator[torch.Tensor]:
        x = to_tensor(pictures[rng.integers(len(pictures), size=batch)]) / 2 + 0.5
        x = (x * uniform(0.7, 1.3, batch, 3, 1, 1) + uniform(-0.15, 0.15, batch, 3, 1, 1)).clamp(0, 1) * 2 - 1
        flipped = torch.rand(batch, generator=source) < 0.5
        x[flipped] = x[flipped].flip(-1)
        greyed = torch.rand(batch, generator=source) < 0.33
        picture = x[greyed]
        picture[..., rows, columns] = GREY
        x[greyed] = picture
        last = (x.shape[-1] - CODEC_CROP) // 4  # crops start on latent cells
        top, left = rng.integers(0, last + 1, 2) * 4
        if rng.random() < 2 / 3:
            top = min(last, rows.start // 4 - rng.integers(4)) * 4
            left = min(last, max(0, columns.start // 4 + rng.integers(-1, 2))) * 4
        x = x[..., top:top + CODEC_CROP, left:left + CODEC_CROP]
        x = x.to(codec.device).contiguous(memory_format=torch.channels_last)
        with low_precision():
            decoded = codec.decode(codec.encode(x).latents).sample
        error = decoded.float() - x
        yield (error**2).mean() + 0.1 * error.abs().mean()

    codec.train()
    try:
        return fit(codec.parameters(), parts_of, steps, CODEC_RATE, schedule)
    finally:
        codec.eval()


def train_identity(embedder: IdentityEmbedder, people: list[np.ndarray], steps: int, batch: int,
                   rng: np.random.Generator, schedule: Schedule) -> float:
    """Trains the embedder on `people`, one (N, H, W, 3) uint8 array each; a batch holds two frames of `batch` people.

    Light changes of brightness, shift and sharpness between the two frames keep it from matching pixels.
    """
    source = torch.Generator().manual_seed(int(rng.integers(2**63)))
    batch = min(batch, len(people))

    def view(chosen: np.ndarray) -> torch.Tensor:
        x = to_tensor(np.stack([people[i][rng.integers(len(people[i]))] for i in chosen]))
        x = x * (0.85 + 0.3 * torch.rand(len(x), 1, 1, 1, generator=source))
        x = torch.roll(x, tuple(int(v) for v in rng.integers(-2, 3, 2)), dims=(2, 3))
        return (x + 0.03 * torch.randn(x.shape, generator=source)).to(embedder.device)

    def parts_of() -> Iterator[torch.Tensor]:
        chosen = rng.choice(len(people), batch, replace=False)
        yield contrast_loss(embedder(view(chosen)), embedder(view(chosen)))

    embedder.train()
    try:
        return fit(embedder.parameters(), parts_of, steps, IDENTITY_RATE, schedule)
    finally:
        embedder.eval()


def train_talking(generator: TalkingHeadPipeline, clips: list[CachedClip], settings: TrainingSettings,
                  rng: np.random.Generator, schedule: Schedule) -> float:
    """Trains the whole denoiser, the aligner and the audio encoder; returns the final loss."""
    parameters = [p for part in generator.talking.values() for p in part.parameters()]
    return train_denoiser(generator, clips, parameters, settings, rng, schedule, weight_decay=0.01, alignment=0.5)
