"""The recipe, its exported folders, and the job configuration they hold."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import pytest
from nvflare.fuel.utils.wfconf import resolve_var_refs
from nvflare.private.json_configer import JsonScanner

from privfedtalk_flare import cli
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.recipe import SECTIONS, VARIANTS, PrivFedTalkRecipe, build, study_files
from privfedtalk_flare.flare.sections import plain
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    EncryptionSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
)

ROOT = Path(__file__).parents[2]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
                  if "__pycache__" not in path.parts)


def config(job: Path, name: str) -> dict:
    return json.loads((job / "app" / "config" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    build([], folder)
    return folder


def test_the_folders_under_jobs_are_what_the_recipe_exports(jobs: Path) -> None:
    assert files(ROOT / "jobs") == files(jobs), "run `privfedtalk job build` and commit jobs/"
    different = [name for name in files(jobs) if not filecmp.cmp(ROOT / "jobs" / name, jobs / name, shallow=False)]
    assert not different, f"run `privfedtalk job build` and commit jobs/: {different}"


def test_every_job_carries_the_studys_files(jobs: Path) -> None:
    for name in VARIANTS:
        carried = jobs / name / "app" / "custom"
        assert not carried.is_symlink()
        assert files(carried) == [file.name for file in study_files()]
        for file in study_files():
            assert (carried / file.name).read_bytes() == (ROOT / "custom" / file.name).read_bytes()
            assert not (carried / file.name).is_symlink()


def test_jobs_are_portable(jobs: Path) -> None:
    for name in VARIANTS:
        meta = json.loads((jobs / name / "meta.json").read_text(encoding="utf-8"))
        assert meta["deploy_map"] == {"app": ["@ALL"]}
        for file in ("config_fed_server.json", "config_fed_client.json"):
            assert config(jobs / name, file)["format_version"] == 2
        assert str(Path.home()) not in json.dumps(config(jobs / name, "config_fed_client.json"))


def test_each_setting_stands_once_and_reaches_every_component(jobs: Path) -> None:
    client = config(jobs / "privfedtalk", "config_fed_client.json")
    assert json.dumps(client).count('"noise_multiplier"') == 1
    resolve_var_refs(JsonScanner(client), json.loads(json.dumps(client)))
    executor = client["executors"][0]["executor"]["args"]
    assert executor["privacy"] == plain(PrivacySettings())
    chain = next(c for c in client["task_result_filters"] if c["tasks"] == [p.TASK_ADAPTER])
    assert chain["filters"][0]["args"]["privacy"] == plain(PrivacySettings())
    assert set(executor) <= set(SECTIONS)


def test_protection_and_egress_stand_in_one_chain_in_order(jobs: Path) -> None:
    for name in ("privfedtalk", "privfedtalk_sealed", "fedavg", "fedprox"):
        client = config(jobs / name, "config_fed_client.json")
        chains = {task: [f["path"].rpartition(".")[2] for f in chain["filters"]]
                  for chain in client["task_result_filters"] for task in chain["tasks"]}
        assert chains[p.TASK_ADAPTER] == ["PrivacyFilter", "EncryptUpdate", "EgressFilter"]
        assert chains[p.TASK_PERSONALIZE] == chains[p.TASK_VALIDATE] == ["EgressFilter"]
        opened = {task: [f["path"].rpartition(".")[2] for f in chain["filters"]]
                  for chain in client["task_data_filters"] for task in chain["tasks"]}
        assert opened[p.TASK_ADAPTER] == ["DecryptAdapter", "ReserveRelease"]


def test_variants_say_what_they_are(jobs: Path) -> None:
    reliability = {name: config(jobs / name, "config_fed_server.json")["reliability"] for name in VARIANTS}
    assert (reliability["privfedtalk"]["mode"], reliability["privfedtalk"]["release"]) == ("metadata", "coarse")
    assert reliability["privfedtalk_sealed"]["mode"] == "sealed"
    assert reliability["fedavg"]["mode"] == reliability["fedprox"]["mode"] == "counts"
    assert config(jobs / "fedprox", "config_fed_client.json")["training"]["proximal"] > 0
    assert config(jobs / "backbone", "config_fed_server.json")["rounds"]["phases"] == ["backbone"]
    assert tuple(VARIANTS) == cli.JOBS


@pytest.mark.parametrize(("settings", "named"), [
    ({"adapter": AdapterSettings(train="both")}, r"adapter\.train 'both'.*privacy\.mechanism 'gaussian'"),
    ({"privacy": PrivacySettings(noise="distributed")}, r"privacy\.noise 'distributed'.*reliability\.mode 'metadata'"),
    ({"privacy": PrivacySettings(clip_norm=1e5)}, r"privacy\.clip_norm 100000.*rounds\.rounds.*encryption\.primes"),
    ({"encryption": EncryptionSettings(scale_bits=30)}, r"encryption\.scale_bits 30"),
    ({"rounds": RoundSettings(phases=("backbone",)), "backbone": BackboneSettings(components=("codec",))},
     r"backbone\.components \['codec'\].*backbone\.start")])
def test_incompatible_settings_are_refused_by_name(settings: dict, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        PrivFedTalkRecipe("refused", **settings)


def test_without_encryption_nothing_encrypts(tmp_path: Path) -> None:
    PrivFedTalkRecipe("bare", encryption=EncryptionSettings(scheme="off"), reliability=ReliabilitySettings(gamma=0),
                      rounds=RoundSettings(rounds=1)).export(str(tmp_path))
    client = config(tmp_path / "bare", "config_fed_client.json")
    assert "EncryptUpdate" not in json.dumps(client) and "DecryptAdapter" not in json.dumps(client)
    assert "EgressFilter" in json.dumps(client)


def test_an_unknown_job_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'fedsgd' is unknown; the choices are privfedtalk, privfedtalk_sealed"):
        build(["fedsgd"], tmp_path)


def test_a_folder_without_study_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no study_"):
        PrivFedTalkRecipe("empty", custom=tmp_path)


def test_the_study_script_exports_what_it_would_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "poc" / "job.py"), "--rounds", "7", "--export", "--export-dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    assert done.returncode == 0, done.stdout
    job = tmp_path / "out" / "study"
    server = config(job, "config_fed_server.json")
    assert server["rounds"]["rounds"] == 7 and server["privacy"]["epsilon_max"] == 10.0
    assert files(job / "app" / "custom") == ["study_clips.py", "study_reliability.py"]


def test_a_job_that_brings_no_code_carries_settings_alone(tmp_path: Path) -> None:
    with_code, = build(["privfedtalk"], tmp_path / "a")
    without, = build(["privfedtalk"], tmp_path / "b", byoc=False)
    assert not (without / "app" / "custom").exists()
    for file in ("config_fed_server.json", "config_fed_client.json"):
        assert config(without, file) == config(with_code, file)
    with pytest.raises(SettingsError, match="custom: a job with byoc False brings no code"):
        PrivFedTalkRecipe("ours", byoc=False, custom=tmp_path)
    assert cli.main(["job", "build", "fedavg", "--no-byoc", "--out", str(tmp_path / "c")]) == 0
    assert not (tmp_path / "c" / "fedavg" / "app" / "custom").exists()


def test_a_job_for_own_clips_renders_nobody(tmp_path: Path) -> None:
    names = ["privfedtalk", "backbone"]
    assert cli.main(["job", "build", *names, "--own-clips", "--out", str(tmp_path)]) == 0
    told = [config(tmp_path / name, "config_fed_client.json")["data"] for name in names]
    assert [(one["source"], one["held_out"]) for one in told] == [("site", 1), ("site", 0)]
