"""`privfedtalk check` on a provisioned site's folder, whole and with one thing wrong at a time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from privfedtalk_flare.cli import main
from privfedtalk_flare.encryption import keys
from privfedtalk_flare.federation.update import UpdateSpec
from privfedtalk_flare.flare.preflight import FAIL, PASS, WARN, preflight
from privfedtalk_flare.generator.adapters import save_shared
from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.ledger import Entry, Ledger
from privfedtalk_flare.privacy.opening import LedgerFiles, create
from privfedtalk_flare.settings import EncryptionSettings

ROOT = Path(__file__).resolve().parents[2]
SECRET, _ = keys.make_pair(EncryptionSettings())
SPEC = UpdateSpec.of({"b": np.zeros(8)}, 1, 1.0, "0" * 64)


@pytest.fixture
def site(tmp_path):
    """A site as its operator should leave it."""
    for name in ("startup", "local"):
        (tmp_path / "kit" / name).mkdir(parents=True)
    kit = tmp_path / "kit"
    (kit / "startup" / "fed_client.json").write_text(json.dumps(
        {"servers": [{"name": "study"}], "client": {"fqsn": "hospital-1"}}))
    (kit / "startup" / "client_context.tenseal").write_bytes(SECRET)
    (kit / "startup" / "client_context.tenseal").chmod(0o600)
    (kit / "local" / "resources.json").write_text(json.dumps({"allow_log_streaming": False}))
    shutil.copy(ROOT / "poc" / "privacy.json", kit / "local" / "privacy.json")
    (kit / "local" / "privfedtalk.yaml").write_text(
        f"state: {tmp_path / 'state'}\nanchor: {tmp_path / 'anchor'}\nepsilon_max: 8.0\n")
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


@pytest.mark.parametrize(("break_it", "what", "state", "remedy"), [
    (lambda s: (s / "local" / "resources.json").write_text("{}"), "log streaming", FAIL, "declines every task"),
    (lambda s: (s / "local" / "resources.json").write_text("{"), "log streaming", FAIL, "declines every task"),
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
])
def test_one_thing_that_is_wrong_is_found_with_its_remedy(site, break_it, what, state, remedy):
    break_it(site)
    found = {one.what: one for one in preflight(site, None, [])}
    assert found[what].state == state and remedy in found[what].remedy
    others = {one.state for name, one in found.items() if name != what}
    assert others <= {PASS}
    assert main(["check", str(site)]) == (1 if state == FAIL else 0)


def test_what_nobody_limits_is_a_warning(site):
    (site / "local" / "privfedtalk.yaml").write_text(f"state: {site.parent / 'state'}\n")
    shutil.move(site.parent / "anchor" / "ledger.anchor", site / "local" / "ledger.anchor")
    assert {name for name, state in states(site).items() if state == WARN} == {"anchor", "budget"}


OWN = keys.key_id(keys.load_secret(SECRET))


@pytest.mark.parametrize(("key", "given_away", "state", "rotate"), [
    (OWN, True, WARN, True), (OWN, False, PASS, True), ("f" * 64, True, PASS, False), ("", True, WARN, True)])
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
