"""What a FLARE process can tell about where it runs: the site's place, simulation or not, threads."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey, SiteType, WorkspaceConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

from privfedtalk_flare.flare.startup import refuse_log_streaming
from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.training.place import FILE_NAME, SitePlace

SIMULATED_PROJECT = "simulator"


def workspace_of(fl_ctx: FLContext) -> Workspace:
    """The FLARE workspace of this process (a site's own folder, also in a simulation)."""
    workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT) or fl_ctx.get_engine().get_workspace()
    if not isinstance(workspace, Workspace):
        raise RuntimeError(f"no FLARE workspace in this context, got {workspace!r}")
    return workspace


def place_of(fl_ctx: FLContext) -> SitePlace:
    """The place of this site, or of the `server`, from `local/privfedtalk.yaml` of its FLARE workspace.

    `output` is the job's run folder. Raises `SettingsError` on an unknown key or value, and `LogStreamingError` where
    a site would let its logs go to the server: every task of ours asks here first.
    """
    workspace = workspace_of(fl_ctx)
    if workspace.site_name != SiteType.SERVER:
        refuse_log_streaming(workspace, fl_ctx)
    path = Path(workspace.get_file_path_in_site_config(FILE_NAME))
    root = Path(workspace.get_root_dir()).resolve()
    output = Path(workspace.get_run_dir(fl_ctx.get_job_id()))
    # FLARE calls a server by its project's name, and the simulator's "simulator_server".
    site = SiteType.SERVER if workspace.site_name == SiteType.SERVER else fl_ctx.get_identity_name()
    place = SitePlace.from_yaml(path, site, project_of(workspace), output)
    if fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False) and place.state.resolve().is_relative_to(root):
        raise SettingsError(f"state: {place.state} lies in {root}, which FLARE's simulator wipes with every run, "
                            f"ledger included; name a folder outside it in {FILE_NAME}")
    return place


def project_of(workspace: Workspace) -> str:
    """The provisioned project's name, from the start-up kit; `simulator` where there is no kit."""
    for name in (WorkspaceConstants.CLIENT_STARTUP_CONFIG, WorkspaceConstants.SERVER_STARTUP_CONFIG):
        kit = Path(workspace.get_file_path_in_startup(name))
        if kit.is_file():
            return str(json.loads(kit.read_text(encoding="utf-8"))["servers"][0]["name"])
    return SIMULATED_PROJECT


def threads_of(place: SitePlace, fl_ctx: FLContext) -> int:
    """Threads of this process: the site's own number, else the cores over the clients that run at once.

    A simulation runs as many clients at once as its `-t` says; elsewhere a site has its machine to itself.
    """
    if place.threads is not None:
        return place.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = 1
    if fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False):
        at_once = getattr(fl_ctx.get_prop(FLContextKey.ARGS), "threads", None) or 1
    return max(1, cores // at_once)
