"""The threat table and the tests that it leans on."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "privfedtalk_flare" / "privacy" / "THREATS.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
ROWS = [[cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in PAGE.splitlines() if line.startswith("| **")]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part.rpartition("/")[2])
def test_every_test_that_the_page_names_exists_and_runs(path, name):
    found = {node.name: node for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
             if isinstance(node, ast.FunctionDef)}
    assert name in found and name.startswith("test_"), f"{path} has no {name}"
    marks = " ".join(ast.unparse(mark) for mark in found[name].decorator_list)
    assert not re.search(r"skip|xfail|acceptance", marks), f"{name} does not run in `make test`: {marks}"


def test_files_named_alone_exist():
    for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / path).is_file()


def test_every_row_says_who_what_by_which_test_and_what_not():
    assert len(ROWS) >= 10
    for row in ROWS:
        assert len(row) == 5 and all(row), row[0]
        assert "`tests/" in row[3], f"{row[0]}: no test shows it"


def test_no_test_is_named_in_another_form():
    """A name that the pattern above does not read would never be checked."""
    assert PAGE.count("::") == len(re.findall(r"`tests/[\w/]+\.py::\w+`", PAGE))
