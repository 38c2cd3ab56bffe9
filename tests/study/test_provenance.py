"""A run says what code made it, by what the code does and not by how it is written down."""

import json
import subprocess
import sys

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


NEITHER = {"privfedtalk_flare", "privfedtalk_flare.checks", "privfedtalk_flare.files", "privfedtalk_flare.plugins",
           "privfedtalk_flare.study", "privfedtalk_flare.study.plan", "privfedtalk_flare.threads"}
"""What runs import and decides no number: checks of types, files, how a plugin is found, a study's form."""


def test_all_that_runs_import_is_in_the_digest_or_said_to_decide_nothing():
    imported = subprocess.run([sys.executable, "-c", "import json, sys; import privfedtalk_flare.flare.executor, "
                               "privfedtalk_flare.flare.controller, privfedtalk_flare.flare.aggregator, "
                               "privfedtalk_flare.study.alone, privfedtalk_flare.study.controls, "
                               "privfedtalk_flare.study.people; print(json.dumps({name: module.__file__ for name, "
                               "module in sys.modules.items() if name.startswith('privfedtalk_flare')}))"],
                              check=True, capture_output=True, text=True).stdout
    covered = set(map(str, provenance.covered()))
    assert {name for name, file in json.loads(imported.splitlines()[-1]).items() if file not in covered} == NEITHER


def test_a_place_that_holds_no_code_is_not_passed_over(monkeypatch):
    monkeypatch.setattr(provenance, "NUMBERS", ("settings.py", "trainings"))
    with pytest.raises(FileNotFoundError, match="trainings: no code here"):
        provenance.made_by()
