"""What local training minimises: denoising, Temporal-Denoising Consistency, and FedProx's proximal term."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def denoising_loss(predicted: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor,
                   mask_weight: float) -> torch.Tensor:
    """Mean squared error of x0 (B, F, C, h, w), the masked cells (1, h, w) weighing `mask_weight`, the others 1."""
    weight = 1 + (mask_weight - 1) * mask
    return ((predicted - clean) ** 2 * weight).mean() / weight.mean()


def tdc_loss(predicted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Temporal-Denoising Consistency (PrivFedTalk, arXiv 2604.08037): L1 between consecutive-frame differences of x0
    (B, F, C, h, w).

    The paper compares predicted and true noise; a difference of noise is one of x0 times alpha / sigma, so it is taken
    on x0 here. It has no such weight: that is smallest at the noisy timesteps, which a sampler of few steps visits and
    where frames come out unlike each other.
    """
    return ((predicted[:, 1:] - predicted[:, :-1]) - (clean[:, 1:] - clean[:, :-1])).abs().mean()


def proximal_loss(parameters: Iterable[torch.Tensor], anchors: Iterable[torch.Tensor]) -> torch.Tensor:
    """|theta_i - theta|^2 / 2 (FedProx, Li et al. 2020), to be multiplied by mu."""
    return 0.5 * sum(((p - a) ** 2).sum() for p, a in zip(parameters, anchors, strict=True))
