"""A builder for FLARE's provisioning: start-up kits that a privacy engineer need not change by hand.

The last one in a `project.yml`, as it changes what the others wrote:

    - path: privfedtalk_flare.flare.provision.SiteBuilder
      args: {site_file: poc/privfedtalk.yaml, policy: poc/privacy.json}
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.app_common.logging.constants import ALLOW_LOG_STREAMING_VAR
from nvflare.lighter.spec import Builder, Project, ProvisionContext

from privfedtalk_flare.files import PRIVATE
from privfedtalk_flare.flare.books import site_at
from privfedtalk_flare.flare.keys import CLIENT_CONTEXT
from privfedtalk_flare.flare.startup import CLASSES, OURS
from privfedtalk_flare.privacy.opening import create
from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.training.place import FILE_NAME, SitePlace


class SiteBuilder(Builder):
    """Finishes the kits of server and sites. At each site logs stay at home, the encryption key is its owner's alone
    (mode 0600), and the site's own file and rules lie in `local/`; everywhere this package's classes may be built, so
    that jobs need bring no code.

    Args:
        site_file: a `privfedtalk.yaml`, for the sites and the server; "" leaves it to each site's operator.
        policy: a `privacy.json` for the sites; "" leaves it to each site's operator.
        one_machine: for trials, with all sites on this machine: the state of each lies in its kit (where its file
            names no other), with an empty ledger in it, as `privfedtalk privacy init` makes one. Elsewhere a ledger
            and its key are a site's own to make, and state lies outside the kit, which a new kit replaces.

    Paths are relative to the folder in which `nvflare provision` or `nvflare poc prepare` runs.
    """

    def __init__(self, site_file: str = "", policy: str = "", one_machine: bool = False) -> None:
        super().__init__()
        self._site_file, self._policy = _found(site_file, "site_file"), _found(policy, "policy")
        self._one_machine = one_machine
        self._own = self._site_file.read_text(encoding="utf-8") if self._site_file is not None else ""
        if self._site_file is not None:  # a mistake in it should not wait for the first job
            SitePlace.from_yaml(self._site_file, "site", "project", Path())
        if one_machine and "state" not in (yaml.safe_load(self._own) or {}):
            self._own += '\nstate: "{workspace}/privfedtalk"  # for a trial on one machine\n'

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Changes what the other builders have written. Raises `SettingsError` where one of them is missing."""
        server, clients = project.get_server(), project.get_clients()
        for one in [*([server] if server else []), *clients]:
            local = Path(ctx.get_local_dir(one))
            _resources(local, streams=one not in clients)
            if self._own:
                (local / FILE_NAME).write_text(self._own, encoding="utf-8")
        for client in clients:
            kit, local = Path(ctx.get_ws_dir(client)), Path(ctx.get_local_dir(client))
            if (key := kit / WorkspaceConstants.STARTUP_FOLDER_NAME / CLIENT_CONTEXT).is_file():
                key.chmod(PRIVATE)
            if self._policy is not None:
                shutil.copy(self._policy, local / WorkspaceConstants.PRIVACY_CONFIG)
        for client in clients if self._one_machine else ():  # last: a ledger is made once
            create(site_at(Path(ctx.get_ws_dir(client)), client.name)[1])


def _found(path: str, argument: str) -> Path | None:
    if not path:
        return None
    if not Path(path).is_file():
        raise SettingsError(f"SiteBuilder's {argument}: {Path(path).resolve()} is no file; give a path relative to the "
                            "folder in which the provisioning runs, or an absolute one")
    return Path(path)


def _resources(local: Path, streams: bool) -> None:
    """Writes `resources.json`, which FLARE prefers to the default that StaticFileBuilder wrote."""
    default = local / WorkspaceConstants.DEFAULT_RESOURCES_CONFIG
    if not default.is_file():
        raise SettingsError(f"SiteBuilder found no {default.name} of {local.parent.name}; name it after "
                            "StaticFileBuilder in project.yml")
    content: dict[str, Any] = json.loads(default.read_text(encoding="utf-8"))
    if OURS not in (allowed := content.setdefault(CLASSES, [])):
        allowed.append(OURS)
    if not streams:
        # Not through the client's entry in project.yml: FLARE 2.9 provisions `allow_log_streaming: false` as true.
        content[ALLOW_LOG_STREAMING_VAR] = False
    (local / WorkspaceConstants.RESOURCES_CONFIG).write_text(json.dumps(content, indent=2), encoding="utf-8")
