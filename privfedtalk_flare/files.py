"""Files that several processes of a machine share: one at a time, and old content or new, never half of it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, overload

T = TypeVar("T")

PRIVATE = 0o600
READABLE = 0o644


@contextmanager
def locked(path: Path, wait: bool = True, inherited: bool = False) -> Iterator[None]:
    """Holds the lock file `path` alone, among all processes of this machine. Without `wait`, raises BlockingIOError
    where another one holds it. `inherited`: processes that are started meanwhile, with `close_fds=False`, hold it too,
    and go on holding it should this one be killed."""
    with path.open("a") as file:
        os.set_inheritable(file.fileno(), inherited)
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the file closes
        yield


@contextmanager
def replaced(path: Path, mode: int = PRIVATE) -> Iterator[Path]:
    """Yields a new, empty file beside `path` to write into, and gives it that name when the block ends well.

    Its own name is unique, as FLARE's simulator may run two processes for one site, and nobody but its owner can read
    it until it has its name and `mode`. It is on disk (fsync) before the name changes; when the block raises it is
    gone and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".partial")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(mode)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, mode: int = PRIVATE) -> Path:
    """Replaces `path` by `content`; see `replaced`."""
    with replaced(path, mode) as partial:
        partial.write_bytes(content)
    return path


class ReadWhenAsked(Sequence[T]):
    """A sequence whose items lie on disk: each is read every time it is asked for, by `_read`, and none is held."""

    @abstractmethod
    def _read(self, index: int) -> T:
        """Item `index`, counted from either end; IndexError beyond them."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(len(self)))]
        return self._read(index)
