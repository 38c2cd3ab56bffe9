"""A site's notes of its own work: whole lines, for their owner alone."""

from __future__ import annotations

import math
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from privfedtalk_flare.training.worklog import FILE_NAME, note, read_notes


def test_a_loss_is_the_mean_of_the_people_who_have_one(tmp_path: Path) -> None:
    note(tmp_path / "run", "adapter", 2.5, 3, [0.25, math.nan, 0.75])
    note(tmp_path / "run", "adapter", 2.5, 4, [math.nan])
    note(tmp_path / "run", "protect", 0.5)
    assert read_notes(tmp_path / "run") == [{"part": "adapter", "seconds": 2.5, "round": 3, "loss": 0.5, "failed": 1},
                                            {"part": "adapter", "seconds": 2.5, "round": 4, "failed": 1},
                                            {"part": "protect", "seconds": 0.5}]
    assert stat.S_IMODE((tmp_path / "run" / FILE_NAME).stat().st_mode) == 0o600


def test_processes_of_one_site_write_whole_lines(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: note(tmp_path, "adapter", 1.0, number, [0.5] * 3), range(200)))
    assert sorted(one["round"] for one in read_notes(tmp_path)) == list(range(200))
    assert read_notes(tmp_path / "nowhere") == []
