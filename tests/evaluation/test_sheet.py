import numpy as np
import pytest

from privfedtalk_flare.data.media import read_picture
from privfedtalk_flare.evaluation.sheet import contact_sheet


def rows(count=2, frames=5, size=16):
    return list(np.random.default_rng(0).integers(0, 256, (count, frames, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("count, frames, scale", [(2, 5, 1), (4, 3, 2), (1, 1, 3)])
def test_every_frame_stands_in_its_row_and_column(tmp_path, count, frames, scale):
    given = rows(count, frames)
    contact_sheet(given, tmp_path / "deep" / "sheet.png", [f"row {i}" for i in range(count)], scale=scale)
    sheet = read_picture(tmp_path / "deep" / "sheet.png")
    step = 16 * scale + 2
    single = count * frames == 1
    margin = 0 if single else 2  # make_grid puts no border around a single frame
    left = sheet.shape[1] - (frames * step + 2 if not single else 16 * scale)
    assert sheet.shape[0] == (count * step + 2 if not single else 16 * scale)
    for r in range(count):
        for c in range(frames):
            y, x = margin + r * step, left + margin + c * step
            shown = sheet[y : y + 16 * scale : scale, x : x + 16 * scale : scale]
            np.testing.assert_array_equal(shown, given[r][c])
    assert (sheet[:, :12] == 255).all() and sheet[:, :left].min() < 128, "labels stand at the left"


def test_labels_are_written_beside_their_rows(tmp_path):
    given = rows(2, 2, 64)
    contact_sheet(given, tmp_path / "a.png", ["real", ""], scale=1)
    sheet = read_picture(tmp_path / "a.png")
    left = sheet.shape[1] - (2 * 66 + 2)
    assert sheet[:66, :left].min() < 128 and sheet[66:, :left].min() == 255


@pytest.mark.parametrize("change, fault", [
    ({"rows": [rows()[0], rows()[1][:4]]}, r"share one shape.*\(4, 16, 16, 3\)"),
    ({"rows": []}, "share one shape"),
    ({"rows": [row / 255 for row in rows()]}, "must be uint8"),
    ({"labels": ["one"]}, "1 labels for 2 rows"),
    ({"scale": 0}, "scale must be at least 1, got 0"),
])
def test_refusals(tmp_path, change, fault):
    with pytest.raises(ValueError, match=fault):
        contact_sheet(**({"rows": rows(), "path": tmp_path / "a.png", "labels": ["real", "generated"]} | change))
    assert not list(tmp_path.iterdir())
