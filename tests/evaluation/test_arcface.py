"""Identity by ArcFace: the published network's shape, weights from a file, cosines of what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.arcface import IResNet50, face_cosine, load_arcface


def test_the_network_has_the_published_shape_and_tells_what_differs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = IResNet50()
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(43.59e6, rel=1e-4)  # as published
    assert state["layer3.13.conv2.weight"].shape == (256, 256, 3, 3) and "layer4.0.downsample.1.weight" in state
    save_file(state, tmp_path / "arcface.safetensors")
    loaded = load_arcface(tmp_path / "arcface.safetensors")
    assert not loaded.training
    frames = render_clip(Person.draw(3, 0), 0, 1.0).frames[:4]
    other = np.random.default_rng(0).integers(0, 255, frames.shape).astype(np.uint8)
    assert face_cosine(loaded, frames[:1], frames[:1]) == pytest.approx(1.0, abs=1e-5)
    assert face_cosine(loaded, frames, other) < face_cosine(loaded, frames, frames) <= 1.0
