"""The aligner moves a reference to the pose that the visible part of a frame shows."""

import pytest
import torch
import torch.nn.functional as F

from privfedtalk_flare.generator.aligner import Aligner
from privfedtalk_flare.generator.codec import latent_mask

MASK = latent_mask(64, downscale=1)


def scene(generator, batch, frames):
    """Smooth pictures (B, F, 3, 64, 64), each shifted by up to eight pixels, the unshifted one as (B, 3, 64, 64)."""
    coarse = torch.randn(batch, 3, 8, 8, generator=generator)
    reference = F.interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=False)
    shift = (torch.rand(batch * frames, 2, generator=generator) - 0.5) * 0.5
    move = torch.eye(2, 3).repeat(batch * frames, 1, 1)
    move[:, :, 2] = shift
    many = reference[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    moved = F.grid_sample(many, F.affine_grid(move, many.shape, align_corners=False), padding_mode="border",
                          align_corners=False)
    return moved.unflatten(0, (batch, frames)), reference


def test_an_untrained_aligner_moves_nothing():
    frames, reference = scene(torch.Generator().manual_seed(0), 2, 3)
    aligned = Aligner()(frames, reference, MASK)
    assert aligned.shape == frames.shape
    torch.testing.assert_close(aligned, reference[:, None].expand_as(frames), atol=1e-5, rtol=0)


def test_it_learns_the_pose_from_what_is_visible_and_never_sees_the_mouth():
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        aligner = Aligner()
    optimiser = torch.optim.AdamW(aligner.parameters(), lr=2e-3)
    for _ in range(150):
        frames, reference = scene(generator, 4, 4)
        loss = ((aligner(frames, reference, MASK) - frames) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(aligner.parameters(), 1.0)
        optimiser.step()
    frames, reference = scene(torch.Generator().manual_seed(2), 8, 4)
    with torch.no_grad():
        aligned = aligner(frames, reference, MASK)
        blind = aligner(frames * (1 - MASK), reference, MASK)
    inside = MASK.bool().expand_as(frames)
    copied = ((reference[:, None] - frames)[inside] ** 2).mean()
    assert ((aligned - frames)[inside] ** 2).mean() < 0.5 * copied
    torch.testing.assert_close(blind, aligned)


def test_what_was_saved_is_loaded(tmp_path):
    aligner = Aligner(size=32)
    aligner.save_pretrained(tmp_path, safe_serialization=True)
    loaded = Aligner.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.config.size == 32
    for name, tensor in aligner.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Aligner(size=32)(torch.zeros(1, 1, 3, 64, 64), torch.zeros(1, 3, 64, 64), MASK)
