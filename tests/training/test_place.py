"""A site's own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.training.place import SitePlace


def place(tmp_path: Path, text: str | None) -> SitePlace:
    path = tmp_path / "privfedtalk.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    return SitePlace.from_yaml(path, "site-3", "study", tmp_path / "run")


def test_the_sites_name_is_expanded(tmp_path: Path) -> None:
    found = place(tmp_path, "corpus: /clips/{site}\nstate: /state/{site}\ndevices: ['cuda:0']\nepsilon_max: 8\n")
    assert found.corpus == Path("/clips/site-3") and found.state == Path("/state/site-3")
    assert found.devices == ("cuda:0",) and found.epsilon_max == 8.0
    assert found.output == tmp_path / "run" and found.local == tmp_path


def test_the_ledgers_delta_and_anchor_are_the_sites_own(tmp_path: Path) -> None:
    found = place(tmp_path, "anchor: /mnt/disk/{site}\ndelta: 1.0e-6\n")
    assert found.anchor == Path("/mnt/disk/site-3") and found.delta == 1e-6
    assert place(tmp_path, "corpus: /clips\n").delta == 1e-5


@pytest.mark.parametrize("text", [None, ""])
def test_without_a_file_state_lies_outside_the_run(tmp_path: Path, text: str | None) -> None:
    found = place(tmp_path, text)
    assert found.state == Path.home() / ".privfedtalk" / "study" / "site-3"
    assert found.corpus is None and found.epsilon_max is None
    assert found.require_encryption and found.min_identities == 2 and found.measured is None


@pytest.mark.parametrize(("text", "said"), [
    ("measured: 0", "measured: must be at least 1"),
    ("corpse: /clips", "unknown setting 'corpse'; the choices are corpus, state, devices"),
    ("state: clips", "'clips' is relative; give an absolute path"),
    ("anchor: disk", "anchor: 'disk' is relative"),
    ("delta: 0.9", "delta: must be at most 0.5"),
    ("low_memory: 1", "low_memory: expected bool, got 1"),
    ("threads: 0", "threads: must be at least 1"),
    ("require_encryption: maybe", "require_encryption: expected bool, got 'maybe'"),
    ("- corpus", "expected a mapping"),
    ("corpus: [", "not valid YAML")])
def test_what_cannot_be_read_is_refused_naming_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        place(tmp_path, text)
    assert "privfedtalk.yaml" in str(caught.value)


def test_the_workspace_is_expanded_to_the_folder_above_the_file(tmp_path: Path) -> None:
    (tmp_path / "kit" / "local").mkdir(parents=True)
    found = place(tmp_path / "kit" / "local", 'state: "{workspace}/privfedtalk/{site}"\n')
    assert found.state == tmp_path / "kit" / "privfedtalk" / "site-3"


def test_the_cpu_is_fallen_back_to_and_devices_that_are_not_here_are_refused(tmp_path: Path) -> None:
    import torch

    here = "cuda" if torch.cuda.is_available() else "cpu"
    assert place(tmp_path, None).all_devices == (here,)
    assert place(tmp_path, "devices: [cpu, cpu]\n").all_devices == ("cpu", "cpu")
    with pytest.raises(SettingsError, match=r"devices: 'cuda:99' is not here: this process sees \d+ CUDA devices"):
        _ = place(tmp_path, "devices: [cpu, 'cuda:99']\n").device
    with pytest.raises(SettingsError, match="devices: 'gpu' is no torch device; give cpu, cuda or cuda:0"):
        _ = place(tmp_path, "devices: [gpu]\n").device
