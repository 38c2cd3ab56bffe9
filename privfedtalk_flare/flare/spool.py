"""The updates of one round, on the server's disk until their weights are known.

ISFA's weights depend on every reply of the round, so that no update can be added when it arrives; kept in memory, 256
of 4 million values would take 41 GB. They wait in one file, and are read back a chunk at a time.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from privfedtalk_flare.files import ReadWhenAsked


class Spool:
    """A file without a name in `folder` (None: the system's for temporary files): it takes no more than this round's
    bytes, and is gone when it is closed or its process dies."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (open as long as the round)
        self._end = 0

    def keep(self, chunks: Sequence[bytes]) -> SpooledUpdate:
        """Writes one update. OSError where the disk is full; what was kept before stays, and so does the room."""
        at = self._end
        borders = array("q", [at])  # a tuple a chunk would take as much memory as theta does
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                written = os.pwrite(self._file.fileno(), rest, at)
                rest, at = rest[written:], at + written
            borders.append(at)
        self._end = at
        return SpooledUpdate(self._file, borders)

    def close(self) -> None:
        """Frees the disk. What was kept can no longer be read."""
        self._file.close()


class SpooledUpdate(ReadWhenAsked[bytes]):
    """One update's chunks, each read from disk when it is asked for. `borders`: where each begins, and the last ends.
    """

    def __init__(self, file: IO[bytes], borders: Sequence[int]) -> None:
        self._file, self._borders = file, borders

    def __len__(self) -> int:
        return len(self._borders) - 1

    def _read(self, index: int) -> bytes:
        place = range(len(self))[index]
        at, size = self._borders[place], self._borders[place + 1] - self._borders[place]
        chunk = os.pread(self._file.fileno(), size, at)  # ValueError once the spool is closed
        if len(chunk) != size:
            raise OSError(f"an update that waits on the server's disk has {len(chunk)} of {size} bytes at {at}")
        return chunk
