"""What an operator asks before a site takes part: would it, and is it safe? Findings, each with its remedy.

Here what is about privacy; preflight_work.py has the rest.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.apis.workspace import Workspace

from privfedtalk_flare.encryption.keys import KeyFault, key_id, load_secret
from privfedtalk_flare.flare import preflight_work
from privfedtalk_flare.flare.books import site_at
from privfedtalk_flare.flare.finding import FAIL, PASS, WARN, Finding, render
from privfedtalk_flare.flare.keys import CLIENT_CONTEXT
from privfedtalk_flare.flare.startup import log_streaming_fault
from privfedtalk_flare.flare.steps import STOPPED
from privfedtalk_flare.privacy.accountant import UNBOUNDED
from privfedtalk_flare.privacy.ledger import Ledger, LedgerError
from privfedtalk_flare.privacy.opening import LedgerFiles
from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.training.place import SitePlace

_POLICY = "privfedtalk_flare.flare.policy.SitePolicy"


def preflight(workspace: Path, site: str | None, published: Sequence[Path]) -> list[Finding]:
    """Everything that can be known of a site from its FLARE workspace. `published`: adapters that were given away."""
    try:
        place, files = site_at(workspace, site)
    except SettingsError as error:
        return [Finding("site", FAIL, str(error), "give the folder from which the site starts")]
    named = f"{place.site}, state in {place.state}"
    found = [Finding("site", PASS, named), _logs(workspace, place), _policy(workspace), *_ledger(place, files),
             _stopped(place), *preflight_work.findings(workspace, place)]
    return [*found, *_key(workspace, [*published, place.state / "shared" / "adapter.safetensors"], len(published))]


def _logs(workspace: Path, place: SitePlace) -> Finding:
    try:
        fault = log_streaming_fault(Workspace(str(workspace), place.site))
    except SettingsError as error:
        fault = str(error)
    if fault:
        return Finding("log streaming", FAIL, fault, "the site declines every task until then")
    return Finding("log streaming", PASS, "off")


def _policy(workspace: Path) -> Finding:
    file = workspace / WorkspaceConstants.SITE_FOLDER_NAME / WorkspaceConstants.PRIVACY_CONFIG
    remedy = "copy poc/privacy.json into local/ and restart the site, to hold jobs to it whatever they say"
    if not file.is_file():
        return Finding("site policy", WARN, "no privacy.json: jobs alone decide about noise and egress", remedy)
    try:
        named = [one.get("path") for one in json.loads(file.read_text(encoding="utf-8")).get("components") or []]
    except (ValueError, AttributeError, TypeError) as error:
        return Finding("site policy", FAIL, f"{file} cannot be read: {error}", remedy)
    if _POLICY not in named:
        return Finding("site policy", WARN, f"{file} names no {_POLICY.rpartition('.')[2]}", remedy)
    return Finding("site policy", PASS, f"{file} holds jobs to this site's rules")


def _ledger(place: SitePlace, files: LedgerFiles) -> Iterator[Finding]:
    try:
        ledger = Ledger(place.state, files.key.parent, place.anchor)
    except LedgerError as error:
        yield Finding("ledger", FAIL, str(error), "the site takes part in nothing until then")
        return
    spent = max((view.epsilon for view in ledger.epsilon(place.delta).values()), default=0.0)
    yield Finding("ledger", PASS, f"{ledger.head.count} releases, as its anchor has it")
    if place.anchor is None:
        yield Finding("anchor", WARN, "lies beside the key", "name a folder on another disk as `anchor` in "
                                                             "privfedtalk.yaml, and move the file there")
    told = f"epsilon {spent:.3g} at delta {place.delta:g} spent" if spent < float("inf") else f"epsilon {UNBOUNDED}"
    if place.epsilon_max is None:
        yield Finding("budget", WARN, f"{told}, no epsilon_max", "set epsilon_max in privfedtalk.yaml: now nothing but "
                                                                 "the jobs limits what they spend")
    elif spent >= place.epsilon_max:
        yield Finding("budget", FAIL, f"{told} of {place.epsilon_max:g}", "these people have given what was promised: "
                                                                           "the site declines every further round")
    else:
        yield Finding("budget", PASS, f"{told} of {place.epsilon_max:g}")


def _stopped(place: SitePlace) -> Finding:
    path = place.state / STOPPED
    if not path.exists():
        return Finding("stopped", PASS, "no step was refused")
    return Finding("stopped", FAIL, path.read_text(encoding="utf-8").partition("\n")[0],
                   f"find out who sent too much, then remove {path}")


def _key(workspace: Path, adapters: Sequence[Path], published: int) -> Iterator[Finding]:
    """The key's file, and the adapters that were decrypted under it: the first `published` of them were given away."""
    path = workspace / WorkspaceConstants.STARTUP_FOLDER_NAME / CLIENT_CONTEXT
    if not path.is_file():
        yield Finding("key", WARN, f"no {path}", "jobs with encryption cannot run here: provision with HEBuilder")
        return
    try:
        own = key_id(load_secret(path.read_bytes(), str(path)))
    except KeyFault as error:
        yield Finding("key", FAIL, str(error), "ask whoever provisioned this project for a new kit")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield Finding("key", WARN, f"{path} has mode {mode:04o}: others on this machine can read it",
                      f"chmod 0600 {path}")
    else:
        yield Finding("key", PASS, f"{own[:12]}, mode {mode:04o}")
    for place, adapter in enumerate(adapters):
        if place < published or adapter.is_file():
            yield _adapter(adapter, own, given_away=place < published)


def _adapter(path: Path, own: str, given_away: bool) -> Finding:
    try:
        key = _key_of(path)
    except (OSError, ValueError) as error:
        return Finding("adapter", FAIL, f"{path} cannot be read: {error}")
    rotate = "provision new keys, then `privfedtalk keys rotate` for what the server keeps"
    if key is None and given_away:
        return Finding("adapter", WARN, f"{path} does not say which key it was decrypted with",
                       f"if it was the one in use: {rotate}")
    if key != own:
        return Finding("adapter", PASS, f"{path}: not of the key in use")
    if given_away:
        return Finding("adapter", WARN, f"{path} was given away, and its key, {key[:12]}, is still in use", rotate)
    return Finding("adapter", PASS, f"{path}: decrypted with the key in use; before you give it away, {rotate}")


def _key_of(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    from privfedtalk_flare.generator.adapters import KEY

    try:
        with safe_open(str(path), framework="numpy") as file:
            return (file.metadata() or {}).get(KEY)
    except SafetensorError as error:
        raise ValueError(error) from error


def check_command(workspace: Path, site: str | None, published: Sequence[Path], say: Callable[[str], None]) -> None:
    """Prints the findings; ValueError, and with it exit code 1, where one of them fails."""
    found = preflight(workspace, site, published)
    say(render(found, width=120))
    failed = [one.what for one in found if one.state == FAIL]
    if failed:
        raise ValueError(f"{workspace}: {len(failed)} of {len(found)} checks failed ({', '.join(failed)})")
