"""What local training minimises: denoising, Temporal-Denoising Consistency, and FedProx's proximal term."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def denoising_loss(predicted: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor,
                   mask_weight: float) -> torch.Tensor:
    """Mean squared error of x0 (B, F, C, h, w), the masked cells (1, h, w) weighing `mask_weight`, the others 1."""
    weight = 1 + (mask_weight - 1) * mask
    return ((predicted - clean) ** 2 * weight).mean() / weight.mean()


def tdc_loss(predicted: torch.Tensor, clean: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Temporal-Denoising Consistency (PrivFedTalk, arXiv 2604.08037): L1 between consecutive-frame differences.

    The paper compares predicted and true noise; a difference of noise is one of x0 times alpha / sigma, so it is taken
    on x0 here, weighted by sqrt(alpha_bar) (B,), the signal's share at the drawn timestep: at equal flicker that costs
    less PSNR than no weight.
    """
    gap = (predicted[:, 1:] - predicted[:, :-1]) - (clean[:, 1:] - clean[:, :-1])
    return (gap.abs().mean(dim=(1, 2, 3, 4)) * alpha_bar.sqrt()).mean()


def proximal_loss(parameters: Iterable[torch.Tensor], anchors: Iterable[torch.Tensor]) -> torch.Tensor:
    """|theta_i - theta|^2 / 2 (FedProx, Li et al. 2020), to be multiplied by mu."""
    return 0.5 * sum(((p - a) ** 2).sum() for p, a in zip(parameters, anchors, strict=True))
