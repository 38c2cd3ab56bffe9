"""What a site checks before any job of ours works there: that its logs stay at home.

Provisioned sites stream their error log to the server by default, round every filter, and any other log that a job
asks for. The switch is FLARE's `allow_log_streaming` in the site's resources file. (A client's entry in `project.yml`
has it as well, but FLARE 2.9 provisions `false` there as true: `Participant.get_prop_fb` takes it for unset.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey, WorkspaceConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.app_common.logging.constants import ALLOW_LOG_STREAMING_VAR, is_log_streaming_allowed

from privfedtalk_flare.settings import SettingsError

CLASSES = "class_allow_list"
"""Key of the resources file: prefixes of the classes that a job without code of its own may name."""
OURS = "privfedtalk_flare."


class LogStreamingError(SettingsError):
    """A site that lets its logs go to the server. The message names the file and the key to change."""


def refuse_log_streaming(workspace: Workspace, fl_ctx: FLContext) -> None:
    """Raises `LogStreamingError` unless FLARE itself would stream none of this site's logs.

    A missing key means that it would. Simulated sites have no such setting and stream nothing of themselves; where
    their resources file has the key all the same, it counts.
    """
    if fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False) and _said(resources_of(workspace)) is None:
        return
    if is_log_streaming_allowed(fl_ctx):
        raise LogStreamingError(_fault(resources_of(workspace)))


def log_streaming_fault(workspace: Workspace) -> str:
    """Why the site with this workspace would let its logs go to the server, "" where it would not; read from its files,
    for an operator's preflight."""
    file = resources_of(workspace)
    return "" if _said(file) is False else _fault(file)


def _fault(file: Path) -> str:
    said = _said(file)
    return (f"this site's logs may be streamed to the server, round every filter: {ALLOW_LOG_STREAMING_VAR} in "
            f"local/{file.name} is {'missing, which allows it' if said is None else json.dumps(said)}; set "
            f"\"{ALLOW_LOG_STREAMING_VAR}\": false in local/resources.json (copy {file.name} where there is none) and "
            "restart the site")


def resources_of(workspace: Workspace) -> Path:
    """The file that FLARE reads: resources.json, or resources.json.default where that is missing."""
    found = workspace.get_resources_file_path()
    return Path(found or workspace.get_file_path_in_site_config(WorkspaceConstants.RESOURCES_CONFIG))


def _said(file: Path) -> Any:
    """The value of the key, None where file or key is missing."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"local/{file.name}: not valid JSON: {error}") from error
    return content.get(ALLOW_LOG_STREAMING_VAR) if isinstance(content, dict) else None
