"""Contact sheets: frames of clips side by side, one row above the other, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_MARGIN = 2
"""Pixels between frames."""
_LETTER = 12
"""Height of a label's letters in pixels."""


def contact_sheet(rows: Sequence[np.ndarray], path: Path | str, labels: Sequence[str], scale: int = 2) -> None:
    """Writes a PNG with one row for each of `rows`, its label at the left: real above generated, clip by clip.

    rows: each (N, H, W, 3) uint8 RGB, all of one shape; column n of every row belongs to the same instant.
    scale: each pixel becomes scale x scale pixels. Raises ValueError on anything else.
    """
    import torch
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.utils import make_grid

    shapes = {np.shape(row) for row in rows}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 4 or shape[3] != 3 or not shape[0]:
        raise ValueError(f"{path}: the rows of a contact sheet must share one shape (frames, height, width, 3), got "
                         f"{[np.shape(row) for row in rows]}; pick the same number of frames from each clip")
    if any(np.asarray(row).dtype != np.uint8 for row in rows):
        raise ValueError(f"{path}: the frames of a contact sheet must be uint8 of 0 to 255; convert them first")
    if len(labels) != len(rows):
        raise ValueError(f"{path}: {len(labels)} labels for {len(rows)} rows; give each row one")
    if scale < 1:
        raise ValueError(f"{path}: scale must be at least 1, got {scale}")
    frames = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)
    frames = frames.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(frames, nrow=shape[0], padding=_MARGIN, pad_value=255)
    grid_pixels = grid.permute(1, 2, 0).contiguous().numpy()

    font = ImageFont.load_default(_LETTER)
    left = max(int(font.getlength(label)) for label in labels) + 2 * _LETTER
    sheet = Image.new("RGB", (left + grid_pixels.shape[1], grid_pixels.shape[0]), "white")
    sheet.paste(Image.fromarray(grid_pixels), (left, 0))
    pitch = shape[1] * scale + _MARGIN
    for i, label in enumerate(labels):
        ImageDraw.Draw(sheet).text((_LETTER, _MARGIN + round((i + 0.5) * pitch)), label, "black", font, anchor="lm")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)
