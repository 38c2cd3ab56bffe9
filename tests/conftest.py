"""Settings of all tests, and a backbone that never trained, for runs that only have to run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)  # the machine is shared: an example's time says nothing
settings.load_profile("house")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone folder with fresh weights: everything runs on it, nothing looks like a person."""
    import numpy as np

    from privfedtalk_flare.training.backbone_site import MOMENTS, Backbone, save_backbone

    backbone = Backbone(seed=0)
    weights = {part: backbone.read(part) for part in ("codec", "identity", "denoiser")}
    weights["codec"][MOMENTS] = np.array([0.0, 1.0], np.float32)
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(weights, folder)
    return folder
