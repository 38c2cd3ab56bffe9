"""Functions by dotted path."""

from __future__ import annotations

from pathlib import Path

import pytest

from privfedtalk_flare.plugins import load_function
from privfedtalk_flare.settings import SettingsError


def test_the_shipped_functions_are_found_outside_a_job() -> None:
    found = load_function("study_clips.find_clips", "data.clip_source")
    assert found.__module__ == "privfedtalk_flare.custom.study_clips"
    assert callable(load_function("study_reliability.score", "reliability.signal"))


def test_the_python_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study_own.py").write_text("def pick():\n    return 7\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_function("study_own.pick", "data.clip_source")() == 7


@pytest.mark.parametrize(("path", "said"), [
    ("study_nowhere.pick", "tried module study_nowhere .not found.; module privfedtalk_flare.custom.study_nowhere"),
    ("study_reliability.rank", "privfedtalk_flare.custom.study_reliability has score"),
    ("shutil.rmtree", "is no function of a study"), ("os.system", "is no function of a study"),
    ("privfedtalk_flare.custom.os.system", "is no function of a study"), ("study_clips.os.system", "no function of a"),
    ("find_clips", "not a dotted path"), ("study_clips.", "not a dotted path")])
def test_errors_say_what_was_tried(path: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        load_function(path, "data.clip_source")
    assert str(caught.value).startswith("data.clip_source: ")


def test_an_import_that_fails_inside_a_module_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study_broken.py").write_text("import no_such_library\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_function("study_broken.pick", "data.clip_source")
