"""Where a site keeps its clips and its state, and what it allows: read from its own `local/privfedtalk.yaml`.

A job never names a path at a site. In the file `{site}` stands for the site's name, so one file can serve every
simulated site of a workspace, and `{workspace}` for the site's FLARE workspace, so one can serve every provisioned one:

    corpus: /data/clips/{site}          # <identity>/<clip>.mp4
    state: /var/lib/privfedtalk/{site}
    devices: [cuda:0, cuda:1]
    threads: 4
    epsilon_max: 8.0
    delta: 0.00001
    anchor: /mnt/other-disk/{site}      # where the ledger's anchor lies; default: beside this file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfedtalk_flare.settings import SettingsError, parse, setting

FILE_NAME = "privfedtalk.yaml"


@dataclass(frozen=True)
class SiteFile:
    """The keys of a site's `privfedtalk.yaml`; all of them optional."""

    corpus: str | None = setting(None, "folder of the site's clips, <identity>/<clip>.mp4")
    state: str | None = setting(None, "folder for what the site must remember between runs")
    devices: tuple[str, ...] = setting((), "torch devices, such as cuda:0, among which people are divided; empty: cuda "
                                           "where there is one, else cpu")
    threads: int | None = setting(None, "threads of torch and numpy; default: all cores, in the simulator a share of "
                                        "them", low=1)
    epsilon_max: float | None = setting(None, "the largest epsilon that any job may bring an identity to", low=0.0)
    delta: float = setting(1e-5, "the delta at which epsilon_max is stated, whatever a job says", low=1e-12, high=0.5)
    anchor: str | None = setting(None, "folder of the ledger's anchor, on another disk than state where there is one; "
                                       "default: beside this file")
    require_encryption: bool = setting(True, "refuse jobs whose updates travel unencrypted")
    allow_backbone: bool = setting(True, "let backbone weights, which carry no privacy guarantee, leave the site")
    require_consent: bool = setting(False, "leave out who has no consent.yaml, beside their clips, that holds today")
    low_memory: bool = setting(False, "bf16 backbone, gradient checkpointing, one window and one person at a time")
    min_identities: int = setting(2, "fewest people over whom a metric that leaves the site is taken", low=1)
    measured: int | None = setting(None, "most people whom `validate` measures, always the same; default: everybody. "
                                         "No job's choice: two that differ by one person would tell about that one",
                                   low=1)


@dataclass(frozen=True)
class SitePlace:
    """A site's folders and its own rules.

    `state` outlives every run (ledger, identity adapters, caches, keys); `output` is this job's run folder (videos);
    `local` is where the site's own file lies, and the ledger's key.
    """

    site: str
    corpus: Path | None
    state: Path
    output: Path
    devices: tuple[str, ...] = ()
    threads: int | None = None
    epsilon_max: float | None = None
    require_encryption: bool = True
    allow_backbone: bool = True
    require_consent: bool = False
    low_memory: bool = False
    min_identities: int = 2
    measured: int | None = None
    delta: float = 1e-5
    anchor: Path | None = None
    local: Path | None = None

    @property
    def device(self) -> str:
        """The first of the torch devices that this site works on."""
        return self.all_devices[0]

    @property
    def all_devices(self) -> tuple[str, ...]:
        """The torch devices that its file names, else cuda where there is one, else the CPU. Raises `SettingsError`
        where one of them is not here."""
        import torch

        if not self.devices:
            return ("cuda",) if torch.cuda.is_available() else ("cpu",)
        for name in self.devices:
            try:
                device = torch.device(name)
            except RuntimeError as error:
                raise SettingsError(f"devices: {name!r} is no torch device; give cpu, cuda or cuda:0") from error
            count = torch.cuda.device_count()
            if device.type == "cuda" and (device.index or 0) >= count:
                raise SettingsError(f"devices: {name!r} is not here: this process sees {count} CUDA devices; change "
                                    "devices in this site's privfedtalk.yaml, or leave it out to work on what is here")
        return self.devices

    @classmethod
    def from_yaml(cls, path: Path | None, site: str, project: str, output: Path) -> SitePlace:
        """Reads `path` (None or absent: every default), expanding `{site}` and `{workspace}`, the parent of its folder.

        `project` names the default state folder, ~/.privfedtalk/<project>/<site>. Relative paths in the file are
        refused: a FLARE process does not run where its operator stands. Raises `SettingsError`.
        """
        values: Any = None
        if path is not None and path.is_file():
            import yaml

            try:
                values = _expanded(yaml.safe_load(path.read_text(encoding="utf-8")), site, path)
            except yaml.YAMLError as error:
                raise SettingsError(f"{path}: not valid YAML: {error}") from error
        where = str(path) if path is not None else FILE_NAME
        file = parse(SiteFile, values, where)
        state = _folder(file.state, f"{where}.state") or Path.home() / ".privfedtalk" / project / site
        return cls(site=site, corpus=_folder(file.corpus, f"{where}.corpus"), state=state, output=Path(output),
                   devices=file.devices, threads=file.threads, epsilon_max=file.epsilon_max,
                   require_encryption=file.require_encryption, allow_backbone=file.allow_backbone,
                   require_consent=file.require_consent, low_memory=file.low_memory,
                   min_identities=file.min_identities, measured=file.measured, delta=file.delta,
                   anchor=_folder(file.anchor, f"{where}.anchor"), local=path.parent if path is not None else None)


def _expanded(values: Any, site: str, path: Path) -> Any:
    """Replaces `{site}` and `{workspace}` in every string of the file's top level."""
    if not isinstance(values, Mapping):
        return values
    workspace = str(path.resolve().parents[1])
    return {key: value.replace("{site}", site).replace("{workspace}", workspace) if isinstance(value, str) else value
            for key, value in values.items()}


def _folder(value: str | None, where: str) -> Path | None:
    if value is None:
        return None
    folder = Path(value).expanduser()
    if not folder.is_absolute():
        raise SettingsError(f"{where}: {value!r} is relative; give an absolute path, or one that begins with ~")
    return folder
