"""`SiteBuilder` in FLARE's own provisioning: kits whose sites need nothing but their own decisions."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from privfedtalk_flare.flare.books import site_at
from privfedtalk_flare.flare.finding import FAIL
from privfedtalk_flare.flare.preflight import preflight
from privfedtalk_flare.flare.provision import SiteBuilder
from privfedtalk_flare.settings import SettingsError

ROOT = Path(__file__).resolve().parents[2]
SITES = ("site-1", "site-2", "site-3")


def provision(folder: Path, change: Any = lambda builders: None) -> subprocess.CompletedProcess[str]:
    """`nvflare provision` of poc/project.yml in `folder`, which has the repository's poc/ beside it."""
    shutil.copytree(ROOT / "poc", folder / "poc", dirs_exist_ok=True)
    project = yaml.safe_load((folder / "poc" / "project.yml").read_text(encoding="utf-8"))
    change(project["builders"])
    (folder / "project.yml").write_text(yaml.safe_dump(project), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("nvflare")), "provision", "-p", "project.yml", "-w", "kits"]
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("provisioned")
    done = provision(folder)
    assert done.returncode == 0, done.stdout
    return folder / "kits" / "privfedtalk_poc" / "prod_00"


def test_every_check_of_a_provisioned_site_passes(kits: Path) -> None:
    for site in SITES:
        found = {one.what: one for one in preflight(kits / site, None, [])}
        assert [one for one in found.values() if one.state == FAIL] == []
        for what in ("log streaming", "site policy", "ledger", "key", "class policy"):
            assert found[what].state == "pass", found[what]


def test_files_are_the_ones_of_the_project(kits: Path) -> None:
    for name in ("localhost", *SITES):
        own = (kits / name / "local" / "privfedtalk.yaml").read_text(encoding="utf-8")
        assert own.startswith((ROOT / "poc" / "privfedtalk.yaml").read_text(encoding="utf-8"))
        assert yaml.safe_load(own)["state"] == "{workspace}/privfedtalk"  # for one machine
        resources = json.loads((kits / name / "local" / "resources.json").read_text(encoding="utf-8"))
        default = json.loads((kits / name / "local" / "resources.json.default").read_text(encoding="utf-8"))
        assert resources["class_allow_list"] == [*default["class_allow_list"], "privfedtalk_flare."]
        assert resources["class_list_enforcement_mode"] == "enforce"
        changed = {"class_allow_list"} | ({"allow_log_streaming"} if name != "localhost" else set())
        assert {key for key in resources if resources[key] != default.get(key)} == changed
    for site in SITES:
        assert (kits / site / "local" / "privacy.json").read_bytes() == (ROOT / "poc" / "privacy.json").read_bytes()
        assert stat.S_IMODE((kits / site / "startup" / "client_context.tenseal").stat().st_mode) == 0o600
        assert (kits / site / "privfedtalk" / "ledger.jsonl").read_bytes() == b""
    assert not (kits / "localhost" / "privfedtalk").exists()
    assert not (kits / "localhost" / "startup" / "client_context.tenseal").exists()


def test_ledger_keys_are_each_sites_own(kits: Path) -> None:
    assert len({(kits / site / "local" / "ledger.key").read_bytes() for site in SITES}) == 3


def test_by_default_sites_make_their_own_ledgers_and_files(tmp_path: Path) -> None:
    done = provision(tmp_path, lambda builders: builders[-1].update(args={}))
    assert done.returncode == 0, done.stdout
    kit = tmp_path / "kits" / "privfedtalk_poc" / "prod_00" / "site-1"
    assert not list(kit.rglob("ledger*")) and not (kit / "local" / "privacy.json").exists()
    assert not (kit / "local" / "privfedtalk.yaml").exists()
    assert json.loads((kit / "local" / "resources.json").read_text(encoding="utf-8"))["allow_log_streaming"] is False


def test_at_several_machines_state_lies_outside_the_kit(tmp_path: Path) -> None:
    done = provision(tmp_path, lambda builders: builders[-1]["args"].pop("one_machine"))
    assert done.returncode == 0, done.stdout
    kit = tmp_path / "kits" / "privfedtalk_poc" / "prod_00" / "site-1"
    place, files = site_at(kit)
    assert not place.state.is_relative_to(kit) and files.key == kit / "local" / "ledger.key"
    assert not list(kit.rglob("ledger*"))
    assert (kit / "local" / "privfedtalk.yaml").read_bytes() == (ROOT / "poc" / "privfedtalk.yaml").read_bytes()


def test_without_the_builder_that_writes_the_resources_it_says_where_it_belongs(tmp_path: Path) -> None:
    def only_kits(builders: list) -> None:
        builders[:] = [one for one in builders if "StaticFile" not in one["path"] and "Signature" not in one["path"]]

    done = provision(tmp_path, only_kits)
    assert "name it after StaticFileBuilder in project.yml" in done.stdout


@pytest.mark.parametrize(("arguments", "said"), [
    ({"site_file": "nowhere.yaml"}, "SiteBuilder's site_file: .*nowhere.yaml is no file"),
    ({"policy": "nowhere.json"}, "SiteBuilder's policy: .*nowhere.json is no file")])
def test_a_file_that_is_not_there_is_named(arguments: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        SiteBuilder(**arguments)


def test_a_mistake_in_the_site_file_stops_the_provisioning(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("corpse: /data\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="unknown setting 'corpse'; the choices are corpus, state"):
        SiteBuilder(site_file=str(tmp_path / "site.yaml"))
