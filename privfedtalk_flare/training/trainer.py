"""One loop for everything that is trained: backbone parts, the shared adapter, identity adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from privfedtalk_flare.generator.codec import to_tensor
from privfedtalk_flare.generator.denoiser import WINDOW, Conditions, draw_noise, predict_clean
from privfedtalk_flare.generator.pipeline import TalkingHeadPipeline
from privfedtalk_flare.settings import TrainingSettings
from privfedtalk_flare.training.cache import CachedClip, WindowBatch, draw_windows
from privfedtalk_flare.training.objective import denoising_loss, proximal_loss, tdc_loss


@dataclass(frozen=True)
class Schedule:
    """Where in a whole training (0 to 1) this piece of it starts and ends: rounds share one learning-rate curve."""

    start: float = 0.0
    end: float = 1.0

    def rate(self, peak: float, step: int, steps: int) -> float:
        """Warm-up over each piece's first steps, level until half-way of the whole, then a cosine to 2 %."""
        at = self.start + (self.end - self.start) * (step + 0.5) / steps
        level = 1.0 if at < 0.5 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (at - 0.5) / 0.5))
        return peak * level * min(1.0, (step + 1) / min(20, max(1, steps // 4)))


def fit(parameters: Iterable[nn.Parameter], parts_of: Callable[[], Iterable[torch.Tensor]], steps: int,
        learning_rate: float, schedule: Schedule | None = None, weight_decay: float = 0.0) -> float:
    """AdamW for `steps` steps, gradients clipped to norm 1; returns the mean loss of the last quarter.

    `parts_of` yields a step's loss in parts, which add up to it; each one's graph is freed before the next is made.
    The optimiser is fresh: nothing is carried from one identity, or one round, to the next. Raises ArithmeticError
    when the loss is no longer finite.
    """
    parameters, schedule = list(parameters), schedule or Schedule()
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(learning_rate, step, steps)
        optimiser.zero_grad(set_to_none=True)
        losses.append(0.0)
        for part in parts_of():
            part.backward()
            losses[-1] += part.item()
        if not math.isfinite(losses[-1]):
            raise ArithmeticError(f"the loss is {losses[-1]} at step {step + 1} of {steps}; lower learning_rate, now "
                                  f"{learning_rate}")
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    return float(np.mean(losses[-max(1, steps // 4):]))


def train_denoiser(generator: TalkingHeadPipeline, clips: list[CachedClip], parameters: Iterable[nn.Parameter],
                   settings: TrainingSettings, rng: np.random.Generator, schedule: Schedule | None = None,
                   weight_decay: float = 0.0, alignment: float = 0.0, at_once: int | None = None) -> float:
    """Trains `parameters` of the denoiser and its conditions on windows of `clips`; returns the final loss. `at_once`:
    how many windows of a batch go through the denoiser together (None: all); gradients add up over the others.

    The loss is denoising + tdc * TDC + proximal * |p - p0|^2 / 2 + alignment * squared error of the moved reference,
    at timesteps drawn with density rising towards the noisy ones: there the mouth is decided, while near the clean end
    x0 lies open.
    """
    parameters = list(parameters)
    anchors = [p.detach().clone() for p in parameters] if settings.proximal else []
    noise_source = torch.Generator().manual_seed(int(rng.integers(2**63)))

    def parts_of() -> Iterator[torch.Tensor]:
        windows = draw_windows(rng, clips, settings.batch, WINDOW)
        draws = draw(generator, windows, settings, noise_source)
        size = at_once or len(windows)
        for part in (slice(start, start + size) for start in range(0, len(windows), size)):
            loss = window_loss(generator, windows[part], draws[part], settings, alignment)
            yield loss * (len(windows[part]) / len(windows))
        if settings.proximal:
            yield settings.proximal * proximal_loss(parameters, anchors)

    generator.denoiser.train()
    try:
        return fit(parameters, parts_of, settings.steps, settings.learning_rate, schedule, weight_decay)
    finally:
        generator.denoiser.eval()


@dataclass(frozen=True)
class Draws:
    """What is drawn for B windows: timestep `step` (B,) int64, `noise` like their latents, `dropped` (B,) bool: whose
    audio is left out."""

    step: torch.Tensor
    noise: torch.Tensor
    dropped: torch.Tensor

    def __getitem__(self, part: slice) -> Draws:
        return Draws(self.step[part], self.noise[part], self.dropped[part])


def draw(generator: TalkingHeadPipeline, windows: WindowBatch, settings: TrainingSettings,
         source: torch.Generator) -> Draws:
    """Drawn for a whole batch, however it is then divided."""
    drawn = torch.rand(len(windows), generator=source).sqrt()
    step = (drawn * generator.scheduler.config.num_train_timesteps).long()
    noise = draw_noise(windows.clean.shape, source)
    return Draws(step, noise, torch.rand(len(windows), generator=source) < settings.audio_dropout)


def window_loss(generator: TalkingHeadPipeline, windows: WindowBatch, draws: Draws, settings: TrainingSettings,
                alignment: float = 0.0) -> torch.Tensor:
    """denoising + tdc * TDC + alignment * squared error of the moved reference, on `windows`."""
    scheduler, device = generator.scheduler, generator.denoiser.device
    clean, mask = windows.clean.to(device), generator.mask.to(device)
    step, noise = draws.step.to(device), draws.noise.to(device)
    tokens = generator.audio_encoder(windows.audio.to(device), draws.dropped.to(device))
    pictures = to_tensor(windows.frames).to(device)
    moved, known = generator.align(pictures, to_tensor(windows.reference).to(device), fast=True)
    conditions = Conditions(mask, windows.masked.to(device), known, tokens)
    predicted = predict_clean(generator.denoiser, scheduler.add_noise(clean, noise, step), step, conditions)
    loss = denoising_loss(predicted, clean, mask, settings.mask_weight)
    if alignment:
        loss = loss + alignment * ((moved - pictures) ** 2).mean()
    if settings.tdc:
        loss = loss + settings.tdc * tdc_loss(predicted, clean, scheduler.alphas_cumprod.to(device)[step])
    return loss
