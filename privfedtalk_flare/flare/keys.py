"""Where the CKKS contexts of a job come from: the start-up kit, or, in a simulation, a pair made on the spot."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.security_content_service import LoadResult, SecurityContentService
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from privfedtalk_flare.encryption.keys import KeyFault, load_public, load_secret, make_pair
from privfedtalk_flare.files import locked, write_whole
from privfedtalk_flare.flare.site import workspace_of
from privfedtalk_flare.settings import EncryptionSettings

if TYPE_CHECKING:
    import tenseal

CLIENT_CONTEXT = "client_context.tenseal"
SERVER_CONTEXT = "server_context.tenseal"


def client_context(fl_ctx: FLContext, encryption: EncryptionSettings) -> tenseal.Context:
    """This site's context, with the secret key that all sites share.

    A provisioned one where the start-up kit has it; otherwise, and only in a simulation, the pair of this run, which
    the first client makes from `encryption`.
    """
    data = _provisioned(CLIENT_CONTEXT, fl_ctx)
    if data is None:
        folder = _simulated_folder(fl_ctx, CLIENT_CONTEXT)
        _make_once(folder, encryption)
        data = (folder / CLIENT_CONTEXT).read_bytes()
    return _secret(data)


def server_context(fl_ctx: FLContext) -> tenseal.Context:
    """The server's context, without secret key; it opens no other file, and refuses one that holds a secret key."""
    data = _provisioned(SERVER_CONTEXT, fl_ctx)
    if data is None:
        path = _simulated_folder(fl_ctx, SERVER_CONTEXT) / SERVER_CONTEXT
        if not path.is_file():
            raise KeyFault(f"{path} is missing: no site has made this run's keys yet; they do so when they encrypt")
        data = path.read_bytes()
    return load_public(data, SERVER_CONTEXT)


@lru_cache(maxsize=2)
def _secret(data: bytes) -> tenseal.Context:
    return load_secret(data, CLIENT_CONTEXT)


def _provisioned(name: str, fl_ctx: FLContext) -> bytes | None:
    """The file of the start-up kit, None where it has none. In secure mode it must carry the project's signature."""
    data, result = SecurityContentService.load_content(name)
    if result in (LoadResult.NOT_MANAGED, LoadResult.NO_SUCH_CONTENT):
        return None
    accepted = {LoadResult.OK}
    if not fl_ctx.get_prop(FLContextKey.SECURE_MODE, True):
        accepted.add(LoadResult.NOT_SIGNED)
    if result not in accepted:
        raise KeyFault(f"start-up kit: {name} cannot be trusted ({result.value}); ask whoever provisioned this project "
                       "for a new kit")
    return data


def _simulated_folder(fl_ctx: FLContext, name: str) -> Path:
    """`<simulator workspace>/keys`: beside the sites' folders, as FLARE copies `startup` and `local` to the server."""
    # FLARE marks simulated clients only; the simulator's server is known by its job id, which no real job has.
    if not fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False) and fl_ctx.get_job_id() != SimulatorConstants.JOB_NAME:
        raise KeyFault(f"the start-up kit holds no {name}: provision the project with HEBuilder (`nvflare poc prepare "
                       "-he`, or name it in project.yml), or set encryption.scheme to 'off' at every site's consent")
    return Path(workspace_of(fl_ctx).get_root_dir()).resolve().parent / "keys"


def _make_once(folder: Path, encryption: EncryptionSettings) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / "lock"):
        if (folder / CLIENT_CONTEXT).exists():
            return
        secret, public = make_pair(encryption)
        write_whole(folder / SERVER_CONTEXT, public)
        write_whole(folder / CLIENT_CONTEXT, secret)  # last: its presence says that the pair is whole
