"""The objective's parts against values worked out by hand."""

import pytest
import torch

from privfedtalk_flare.training.objective import denoising_loss, proximal_loss, tdc_loss


def test_denoising_weighs_the_mask():
    clean = torch.zeros(1, 2, 1, 2, 2)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    inside, outside = clean.clone(), clean.clone()
    inside[..., 0, 0] = 1.0
    outside[..., 1, 1] = 1.0
    assert denoising_loss(inside, clean, mask, 3.0) == pytest.approx(3 / 6)  # weights 3, 1, 1, 1
    assert denoising_loss(outside, clean, mask, 3.0) == pytest.approx(1 / 6)
    assert denoising_loss(inside, clean, mask, 1.0) == pytest.approx(1 / 4)


def test_tdc_ignores_a_constant_error_and_sees_flicker():
    clean = torch.randn(2, 8, 8, 4, 4)
    alpha_bar = torch.tensor([1.0, 0.25])
    assert tdc_loss(clean + 3.0, clean, alpha_bar) == pytest.approx(0.0, abs=1e-6)
    flicker = clean.clone()
    flicker[:, ::2] += 1.0  # every difference is off by 1
    assert tdc_loss(flicker, clean, alpha_bar) == pytest.approx((1.0 + 0.5) / 2, rel=1e-5)


def test_tdc_is_the_papers_noise_difference_up_to_alpha_over_sigma():
    """x_t = a x0 + s e at equal x_t: differences of noise are -a / s times differences of x0."""
    torch.manual_seed(0)
    a, s = 0.6, 0.8
    noisy, clean, predicted = torch.randn(3, 1, 8, 4, 4, 4).unbind(0)

    def noise(x0):
        return (noisy - a * x0) / s

    on_noise = tdc_loss(noise(predicted), noise(clean), torch.ones(1))
    assert on_noise == pytest.approx(float(a / s * tdc_loss(predicted, clean, torch.ones(1))), rel=1e-4)


def test_proximal_is_half_the_squared_distance():
    assert proximal_loss([torch.tensor([3.0, 0.0]), torch.tensor([1.0])],
                         [torch.tensor([0.0, 4.0]), torch.tensor([1.0])]) == pytest.approx(12.5)
