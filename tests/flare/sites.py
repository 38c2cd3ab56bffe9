"""A site of the unit tests: a FLARE context on a workspace of its own, as a client's job process has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.workspace import Workspace

JOB = "job-1"
SITE = "site-1"


def context(root: Path, *, task: str = "", yaml: str = "", resources: dict[str, Any] | None = None,
            simulated: bool = True, engine: Any = None, runner: Any = None) -> FLContext:
    """A task's context at a site whose workspace is `root`/site-1. `resources` is its resources.json.default, as the
    provisioner writes it."""
    workspace = root / SITE
    for name in ("local", "startup"):
        (workspace / name).mkdir(parents=True, exist_ok=True)
    (workspace / "local" / "privfedtalk.yaml").write_text(f"state: {root / 'state'}\n{yaml}", encoding="utf-8")
    if resources is not None:
        (workspace / "local" / "resources.json.default").write_text(json.dumps(resources), encoding="utf-8")
    manager = FLContextManager(engine=engine, identity_name=SITE, job_id=JOB, public_stickers={
        ReservedKey.FQSN: SITE, ReservedKey.IS_LEAF: True}, private_stickers={
        FLContextKey.SIMULATE_MODE: simulated, FLContextKey.WORKSPACE_ROOT: str(workspace), FLContextKey.RUNNER: runner,
        FLContextKey.WORKSPACE_OBJECT: Workspace(str(workspace), SITE)})
    fl_ctx = manager.new_context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
    return fl_ctx
