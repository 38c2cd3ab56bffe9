"""The step that the shared adapter took since the last broadcast, as a receiver sees it: its signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from privfedtalk_flare.flare.protocol import AFTER, NONCE, STEP_NOISE
from privfedtalk_flare.privacy.words import snr_of_step

FILE_NAME = "theta.safetensors"


def snr_since(theta: np.ndarray, meta: Mapping[str, Any], folder: Path) -> float | None:
    """Signal-to-noise ratio of theta's last step, and remembers theta (D,) in `folder` for the next call.

    `meta` is the task's: AFTER names the broadcasts that carried the theta before the step, STEP_NOISE the standard
    deviation per coordinate of the noise in the step. None where no noise was added, where this site took none of those
    broadcasts, or where it has seen this theta already. A file, because FLARE may restart the process between tasks.
    """
    before = _recalled(folder / FILE_NAME, meta.get(AFTER) or ())
    _remember(folder / FILE_NAME, theta, str(meta.get(NONCE, "")))
    noise = float(meta.get(STEP_NOISE) or 0.0)
    if before is None or before.shape != theta.shape or noise <= 0.0:
        return None
    step = float(np.linalg.norm(theta.astype(np.float64) - before))
    return snr_of_step(step, noise, theta.size)


def _recalled(path: Path, nonces: Collection[str]) -> np.ndarray | None:
    if not nonces or not path.is_file():
        return None
    with safe_open(str(path), framework="numpy") as file:
        if (file.metadata() or {}).get(NONCE) not in nonces:
            return None
        return file.get_tensor("theta")


def _remember(path: Path, theta: np.ndarray, nonce: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"theta": np.ascontiguousarray(theta, dtype=np.float32)}, partial, metadata={NONCE: nonce})
    partial.replace(path)
