"""`privfedtalk check` on a provisioned site's folder, whole and with one thing wrong at a time."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from privfedtalk_flare.cli import main
from privfedtalk_flare.data.synthetic import Person, write_corpus
from privfedtalk_flare.encryption import keys
from privfedtalk_flare.federation.update import UpdateSpec
from privfedtalk_flare.flare.finding import FAIL, PASS, WARN
from privfedtalk_flare.flare.preflight import preflight
from privfedtalk_flare.generator.adapters import save_shared
from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.ledger import Entry, Ledger
from privfedtalk_flare.privacy.opening import LedgerFiles, create
from privfedtalk_flare.settings import EncryptionSettings

ROOT = Path(__file__).resolve().parents[2]
SECRET, _ = keys.make_pair(EncryptionSettings())
SPEC = UpdateSpec.of({"b": np.zeros(8)}, 1, 1.0, "0" * 64)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two people with two clips each, and their consent."""
    folder = tmp_path_factory.mktemp("clips")
    write_corpus(folder, [Person.draw(1, number) for number in range(2)], 2, 1.2)
    for person in folder.iterdir():
        (person / "consent.yaml").write_text("given: 2026-01-31\n")
    return folder


@pytest.fixture
def site(tmp_path, clips):
    """A site as its operator should leave it."""
    shutil.copytree(clips, tmp_path / "clips")
    for name in ("startup", "local"):
        (tmp_path / "kit" / name).mkdir(parents=True)
    kit = tmp_path / "kit"
    (kit / "startup" / "fed_client.json").write_text(json.dumps(
        {"servers": [{"name": "study"}], "client": {"fqsn": "hospital-1"}}))
    (kit / "startup" / "client_context.tenseal").write_bytes(SECRET)
    (kit / "startup" / "client_context.tenseal").chmod(0o600)
    (kit / "local" / "resources.json").write_text(json.dumps(
        {"allow_log_streaming": False, "class_allow_list": ["nvflare.", "privfedtalk_flare."]}))
    shutil.copy(ROOT / "poc" / "privacy.json", kit / "local" / "privacy.json")
    (kit / "local" / "privfedtalk.yaml").write_text(
        f"corpus: {tmp_path / 'clips'}\nstate: {tmp_path / 'state'}\nanchor: {tmp_path / 'anchor'}\nepsilon_max: 8.0\n"
        "require_consent: true\n")
    create(LedgerFiles.of(tmp_path / "state", kit / "local", tmp_path / "anchor"))
    return kit


def states(site, *published):
    return {one.what: one.state for one in preflight(site, None, published)}


def test_a_site_in_order_passes_everything(site, capsys):
    assert set(states(site).values()) == {PASS}
    assert main(["check", str(site)]) == 0
    shown = capsys.readouterr().out
    assert "hospital-1" in shown and "epsilon 0 at delta 1e-05 spent of 8" in shown


def spend(site, sigma):
    place = site.parent
    Ledger(place / "state", site / "local", place / "anchor").reserve(
        Entry("job", "adapter", 1, "ab", Release(sigma), 0.1, 1e-5))


def resources(site, **changed):
    path = site / "local" / "resources.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def own_file(site, old, new):
    path = site / "local" / "privfedtalk.yaml"
    path.write_text(path.read_text().replace(old, new))


def a_clip(site):
    return sorted((site.parent / "clips").glob("*/*.mp4"))[0]


@pytest.mark.parametrize(("break_it", "what", "state", "remedy"), [
    (lambda s: resources(s, allow_log_streaming=True), "log streaming", FAIL, "declines every task"),
    (lambda s: resources(s, class_allow_list=["nvflare."]), "class policy", WARN, 'add "privfedtalk_flare." to'),
    (lambda s: (s / "local" / "privacy.json").write_text('{"components": null}'), "site policy", WARN, "copy poc"),
    (lambda s: (s / "local" / "privacy.json").unlink(), "site policy", WARN, "copy poc/privacy.json"),
    (lambda s: (s / "local" / "privacy.json").write_text("{}"), "site policy", WARN, "copy poc/privacy.json"),
    (lambda s: (s / "local" / "privacy.json").write_text("{"), "site policy", FAIL, "copy poc/privacy.json"),
    (lambda s: (s.parent / "state" / "ledger.jsonl").unlink(), "ledger", FAIL, "takes part in nothing"),
    (lambda s: spend(s, 0.1), "budget", FAIL, "given what was promised"),
    (lambda s: spend(s, None), "budget", FAIL, "given what was promised"),
    (lambda s: spend(s, 4.0), "budget", PASS, ""),
    (lambda s: (s.parent / "state" / "stopped.txt").write_text("too long\n"), "stopped", FAIL, "then remove"),
    (lambda s: (s / "startup" / "client_context.tenseal").chmod(0o644), "key", WARN, "chmod 0600"),
    (lambda s: (s / "startup" / "client_context.tenseal").unlink(), "key", WARN, "provision with HEBuilder"),
    (lambda s: (s / "startup" / "client_context.tenseal").write_bytes(b"x"), "key", FAIL, "a new kit"),
    (lambda s: a_clip(s).write_bytes(b"x"), "clips", WARN, "mend or remove"),
    (lambda s: [path.write_bytes(b"x") for path in (s.parent / "clips").glob("*/*.mp4")], "clips", FAIL, "two good"),
    (lambda s: a_clip(s).with_name("consent.yaml").unlink(), "consent", WARN, "the others are left out"),
    (lambda s: own_file(s, "require_consent: true", "require_consent: true\ndevices: ['cuda:99']"), "devices", FAIL,
     "leave it out"),
])
def test_one_thing_that_is_wrong_is_found_with_its_remedy(site, break_it, what, state, remedy):
    break_it(site)
    found = {one.what: one for one in preflight(site, None, [])}
    assert found[what].state == state and remedy in found[what].remedy
    others = {one.state for name, one in found.items() if name != what}
    assert others <= {PASS}
    assert main(["check", str(site)]) == (1 if state == FAIL else 0)


def test_a_resources_file_that_cannot_be_read_fails_whatever_reads_it(site):
    (site / "local" / "resources.json").write_text("{")
    assert {name for name, state in states(site).items() if state == FAIL} == {"log streaming", "class policy"}


def test_people_without_consent_are_said_where_it_is_not_demanded(site):
    own_file(site, "require_consent: true", "require_consent: false")
    assert states(site)["consent"] == PASS
    a_clip(site).with_name("consent.yaml").unlink()
    found, = (one for one in preflight(site, None, []) if one.what == "consent")
    assert found.state == WARN and "not demanded; on record for 1 of 2 people" in found.told
    own_file(site, "require_consent: false", "require_consent: true")
    for path in (site.parent / "clips").glob("*/consent.yaml"):
        path.unlink()
    assert states(site)["consent"] == FAIL


def test_who_has_clips_without_consent_and_who_has_consent_without_clips_make_nobody(site):
    first, second = sorted(path for path in (site.parent / "clips").iterdir())
    (first / "consent.yaml").unlink()
    next(second.glob("*.mp4")).write_bytes(b"x")
    found, = (one for one in preflight(site, None, []) if one.what == "consent")
    assert found.state == FAIL and "nobody can take part" in found.remedy


def test_another_version_of_tenseal_fails(site, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.3.15" if name == "tenseal" else real(name))
    found, = (one for one in preflight(site, None, []) if one.what == "tenseal")
    assert found.state == FAIL and found.told.startswith("0.3.15") and found.remedy == "pip install tenseal==0.3.18"


def test_what_nobody_limits_is_a_warning(site):
    own_file(site, f"anchor: {site.parent / 'anchor'}\nepsilon_max: 8.0\n", "")
    shutil.move(site.parent / "anchor" / "ledger.anchor", site / "local" / "ledger.anchor")
    assert {name for name, state in states(site).items() if state == WARN} == {"anchor", "budget"}


OWN = keys.key_id(keys.load_secret(SECRET))


@pytest.mark.parametrize(("key", "given_away", "state", "rotate"), [
    (OWN, True, WARN, True), (OWN, False, PASS, True), ("f" * 64, True, PASS, False), ("", True, WARN, True)],
    ids=["own, given away", "own, kept", "another", "unknown"])
def test_a_published_adapter_whose_key_is_still_in_use_is_a_warning(site, key, given_away, state, rotate):
    folder = site.parent / ("given" if given_away else "state/shared")
    path = save_shared(np.ones(8), SPEC, folder / "adapter.safetensors", "b" * 64, key)
    found, = (one for one in preflight(site, None, [path] * given_away) if one.what == "adapter")
    assert found.state == state and ("keys rotate" in found.told + found.remedy) == rotate


def test_a_published_file_that_is_none_fails(site, tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    for path in (tmp_path / "note.txt", tmp_path / "missing"):
        assert states(site, path)["adapter"] == FAIL


def test_what_is_no_site_is_one_finding(tmp_path):
    found, = preflight(tmp_path, None, [])
    assert found.state == FAIL and "no FLARE workspace of a site" in found.told
