"""A run says what code made it, by what the code does and not by how it is written down."""

import pytest

from privfedtalk_flare.study import provenance

CODE = '''"""A module."""
LIMIT = 3


def doubled(value):
    """Twice the value."""
    return 2 * value
'''


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """A function: code -> the digest of a package that holds it and nothing else."""
    monkeypatch.setattr(provenance, "NUMBERS", ())
    monkeypatch.setattr(provenance.resources, "files", lambda _: tmp_path)

    def of(code: str) -> str:
        (tmp_path / "module.py").write_text(code)
        return provenance.made_by()["code"]

    return of


@pytest.mark.parametrize(("old", "new"), [("Twice", "Two times"), ("A module.", "Other"), (" = 3", "=3  # why")])
def test_words_and_layout_leave_the_digest_as_it_is(digest, old, new):
    assert digest(CODE.replace(old, new)) == digest(CODE)


@pytest.mark.parametrize(("old", "new"), [("2 *", "3 *"), ("LIMIT = 3", "LIMIT = 4"), ("value", "number")])
def test_code_that_says_something_else_has_another_digest(digest, old, new):
    assert digest(CODE.replace(old, new)) != digest(CODE)
