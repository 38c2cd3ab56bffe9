"""A file's name holds the old content or the new one, whatever happens in between."""

import stat

import pytest

from privfedtalk_flare.files import READABLE, replaced, write_whole


def test_content_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "file"
    for content in (b"one", b"two"):
        assert write_whole(path, content) == path and path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content(tmp_path):
    path = write_whole(tmp_path / "file", b"old")
    with pytest.raises(RuntimeError, match="disk"), replaced(path) as partial:
        partial.write_bytes(b"half of the n")
        raise RuntimeError("disk full")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_only_its_owner_reads_a_file_unless_it_says_otherwise(tmp_path):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    with replaced(tmp_path / "file") as partial:
        assert mode(partial) == 0o600
    assert mode(tmp_path / "file") == 0o600
    assert mode(write_whole(tmp_path / "other", b"", READABLE)) == 0o644


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replaced(path) as first, replaced(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
