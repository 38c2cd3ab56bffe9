"""Where a FLARE site's ledger lies, and the rules under which it books: for a job's process and for an operator.

A provisioned site has the ledger's key in its workspace's `local/`, where `privfedtalk privacy init` makes it. FLARE's
simulator wipes a site's workspace with every run, so simulated sites have a `local` in their state, made at first use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey, WorkspaceConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

from privfedtalk_flare.flare.failures import HeaderError
from privfedtalk_flare.flare.protocol import ECHO, LEDGER, NONCE, ROUND
from privfedtalk_flare.flare.scalars import SCALARS
from privfedtalk_flare.flare.site import project_of
from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.ledger import Budget, Head, Ledger
from privfedtalk_flare.privacy.opening import LedgerFiles, create_once
from privfedtalk_flare.settings import PrivacySettings, SettingsError
from privfedtalk_flare.training.place import FILE_NAME, SitePlace

_BOOKED = "privfedtalk_booked"
_SHARES = "privfedtalk_shares_noise"


def book(fl_ctx: FLContext, meta: Mapping[str, Any], release: Release) -> None:
    """Says in the context of the task at hand that its release stands in the ledger."""
    fl_ctx.set_prop(_BOOKED, _task(fl_ctx, meta), private=True, sticky=False)
    fl_ctx.set_prop(_SHARES, release.honest > 1, private=True, sticky=False)


def is_booked(fl_ctx: FLContext, meta: Mapping[str, Any]) -> bool:
    """Whether `book` was called in this very task, and a result with this `meta` answers it."""
    return fl_ctx.get_prop(_BOOKED) == _task(fl_ctx, meta)


def shares_noise(fl_ctx: FLContext) -> bool:
    """Whether what was booked for the task at hand holds a share of the noise only, so that it must not be seen alone.
    """
    return bool(fl_ctx.get_prop(_SHARES))


def _task(fl_ctx: FLContext, meta: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(fl_ctx.get_prop(FLContextKey.TASK_NAME)), str(meta.get(ROUND)), str(meta.get(NONCE))


def open_ledger(place: SitePlace, fl_ctx: FLContext) -> Ledger:
    """This site's ledger. Raises `NoLedger` where one of its files is missing; a simulated site makes them first."""
    simulated = bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False))
    local = None if simulated else place.local
    if simulated:
        create_once(LedgerFiles.of(place.state, local, place.anchor))
    return Ledger(place.state, local, place.anchor)


def budgets(place: SitePlace, privacy: PrivacySettings) -> list[Budget]:
    """The site's own budget at the site's own delta, and the job's at the job's: both hold, so neither loosens the
    other."""
    found = []
    if place.epsilon_max is not None:
        found.append(Budget(place.epsilon_max, place.delta, "this site's privfedtalk.yaml"))
    if privacy.epsilon_max is not None:
        found.append(Budget(privacy.epsilon_max, privacy.delta, "this job"))
    return found


def echo_of(meta: Mapping[str, Any], site: str) -> Head | None:
    """Where the server last saw this site's ledger, None where it says nothing about it (as FLARE's own FedAvg)."""
    told = meta.get(ECHO) or {}
    if not isinstance(told, Mapping) or not (site not in told or SCALARS[LEDGER](told[site])):
        raise HeaderError(f"header {ECHO}: {str(told)[:80]!r} does not say where this site's ledger stood")
    return Head(**told[site]) if site in told else None


def site_at(folder: Path, name: str | None = None) -> tuple[SitePlace, LedgerFiles]:
    """The site whose FLARE workspace is `folder`, and the files of its ledger, for an operator's command.

    `name` is the site's, if neither its start-up kit nor the folder says it. Raises `SettingsError`.
    """
    startup, local = folder / WorkspaceConstants.STARTUP_FOLDER_NAME, folder / WorkspaceConstants.SITE_FOLDER_NAME
    if not (startup.is_dir() and local.is_dir()) or (startup / WorkspaceConstants.SERVER_STARTUP_CONFIG).exists():
        raise SettingsError(f"{folder} is no FLARE workspace of a site: it needs the site's own {startup.name} and "
                            f"{local.name}; give the folder from which the site starts")
    kit = startup / WorkspaceConstants.CLIENT_STARTUP_CONFIG
    if not kit.is_file() and (folder / "server").is_dir():
        raise SettingsError(f"{folder} is a whole simulation; give the folder of one site in it, such as "
                            f"{folder / 'site-1'}")
    if name is None:
        told = json.loads(kit.read_text(encoding="utf-8")) if kit.is_file() else {}
        name = str(told.get("client", {}).get("fqsn") or "").rpartition(".")[2] or folder.resolve().name
    project = project_of(Workspace(str(folder), name))
    place = SitePlace.from_yaml(local.resolve() / FILE_NAME, name, project, folder)
    return place, LedgerFiles.of(place.state, place.local if kit.is_file() else None, place.anchor)
