"""Builds the FLARE jobs: `PrivFedTalkRecipe`, and the named variants that `privfedtalk job build` exports."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nvflare.app_common.widgets.convert_to_fed_event import ConvertToFedEvent
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare.recipe.spec import Recipe

from privfedtalk_flare.checks import check_job
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.controller import PrivFedTalkController
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor
from privfedtalk_flare.flare.filters import DecryptAdapter, EgressFilter, EncryptUpdate, PrivacyFilter, ReserveRelease
from privfedtalk_flare.flare.sections import plain, with_sections
from privfedtalk_flare.settings import (
    PERSONALIZE,
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    EncryptionSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
    TrainingSettings,
    parse,
)

CUSTOM = "privfedtalk_flare.custom"
"""Package whose `study_*` files every job carries as its `app/custom`."""

SECTIONS = {"data": DataSettings, "adapter": AdapterSettings, "training": TrainingSettings,
            "personalize": TrainingSettings, "reliability": ReliabilitySettings, "privacy": PrivacySettings,
            "encryption": EncryptionSettings, "rounds": RoundSettings, "backbone": BackboneSettings}
"""The settings of a job, in the order in which its configuration shows them."""


class PrivFedTalkRecipe(Recipe):
    """The job: one controller, one executor, the filters between them, and the study's own code.

    Runs in FLARE's SimEnv, PocEnv and ProdEnv, or `export`s to a folder for any server. Every argument but the last two
    holds settings (settings.py has their help). Unknown ones, and those that break a promise together, are refused
    here, by name (`SettingsError`).

    Args:
        custom: folder with the study's own `study_*.py`, which the job carries as its `app/custom`.
        byoc: whether the job brings that code. Without it nothing but settings travels: clips are found and updates
            scored by the copies in the installed package, and server and sites must have `privfedtalk_flare.` in
            their `class_allow_list`. FLARE then needs no `byoc` right of whoever submits.
    """

    def __init__(self, name: str = "privfedtalk", *, data: DataSettings | None = None,
                 adapter: AdapterSettings | None = None, training: TrainingSettings | None = None,
                 personalize: TrainingSettings | None = None, reliability: ReliabilitySettings | None = None,
                 privacy: PrivacySettings | None = None, encryption: EncryptionSettings | None = None,
                 rounds: RoundSettings | None = None, backbone: BackboneSettings | None = None,
                 custom: Path | None = None, byoc: bool = True) -> None:
        if custom is not None and not byoc:
            raise SettingsError(f"custom: a job with byoc False brings no code, so {custom} would not be used")
        self.data, self.adapter = parse(DataSettings, data, "data"), parse(AdapterSettings, adapter, "adapter")
        self.training = parse(TrainingSettings, training, "training")
        self.personalize = parse(TrainingSettings, PERSONALIZE if personalize is None else personalize,
                                 "personalize")
        self.reliability = parse(ReliabilitySettings, reliability, "reliability")
        self.privacy = parse(PrivacySettings, privacy, "privacy")
        self.encryption = parse(EncryptionSettings, encryption, "encryption")
        self.rounds = parse(RoundSettings, rounds, "rounds")
        self.backbone = parse(BackboneSettings, backbone, "backbone")
        warnings = check_job(self.adapter, self.reliability, self.privacy, self.encryption, self.rounds,
                             data=self.data, backbone=self.backbone)
        for warning in warnings if p.TASK_ADAPTER in self.rounds.phases else ():
            logging.getLogger(__name__).warning(f"job {name}: {warning}")
        job = FedJob(name=name, min_clients=self.rounds.min_sites)
        job.set_app_packages(["privfedtalk_flare"])
        generate = job.job.generate_job_config

        def generate_and_rewrite(job_root: str) -> None:
            generate(job_root)
            self._write_once(Path(job_root) / name)

        job.job.generate_job_config = generate_and_rewrite  # what export and every environment call
        super().__init__(job)
        self._add_server()
        self._add_clients(study_files(custom) if byoc else [])

    def _write_once(self, folder: Path) -> None:
        """Rewrites the configuration in the job's folder: every setting once, the tasks of each filter in order."""
        for file in sorted((folder / "app" / "config").glob("*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            for chain in content["task_data_filters"] + content["task_result_filters"]:
                chain["tasks"].sort(key=p.TASKS.index)
            content = with_sections(content, {name: plain(getattr(self, name)) for name in SECTIONS})
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _add_server(self) -> None:
        job, rounds = self._job, self.rounds
        job.to_server(PrivFedTalkController(
            rounds=plain(rounds), reliability=plain(self.reliability), privacy=plain(self.privacy),
            backbone=plain(self.backbone)), id="controller")
        job.to_server(ISFAAggregator(reliability=plain(self.reliability), encryption=plain(self.encryption),
                                     rounds=plain(rounds)), id="aggregator")
        job.to_server(TBAnalyticsReceiver(events=[tracking.EVENT, tracking.FED_EVENT]), id="tensorboard")

    def _add_clients(self, code: Sequence[Path]) -> None:
        job = self._job
        tasks = [task for task in p.TASKS if task in self.rounds.phases]
        job.to_clients(PrivFedTalkExecutor(
            data=plain(self.data), adapter=plain(self.adapter), training=plain(self.training),
            personalize=plain(self.personalize), reliability=plain(self.reliability), privacy=plain(self.privacy),
            rounds=plain(self.rounds), backbone=plain(self.backbone)), tasks=tasks)
        job.to_clients(ConvertToFedEvent(events_to_convert=[tracking.EVENT]), id="scalars")
        for names, direction, chain in self._filters():
            named = [name for name in names if name in tasks]
            for one in chain if named else ():
                job.to_clients(one, filter_type=direction, tasks=named)
        for file in code:
            job.add_file_to_clients(str(file))

    def _filters(self) -> list[tuple[Sequence[str], str, list[Any]]]:
        """(tasks, direction, filters in order). Tasks are named one by one: FLARE matches `*` with nothing."""
        encrypted = self.encryption.scheme != "off"
        encryption, rounds = plain(self.encryption), plain(self.rounds)
        private = plain(self.privacy), plain(self.reliability)
        decrypt = [DecryptAdapter(encryption)] if encrypted else []
        encrypt = [EncryptUpdate(encryption, rounds)] if encrypted else []
        return [
            ([p.TASK_ADAPTER], FilterType.TASK_DATA, [*decrypt, ReserveRelease(*private, rounds)]),
            ([p.TASK_BACKBONE], FilterType.TASK_DATA, [ReserveRelease(*private, rounds)]),
            ([p.TASK_PERSONALIZE, p.TASK_VALIDATE], FilterType.TASK_DATA, decrypt),
            ([p.TASK_ADAPTER], FilterType.TASK_RESULT, [PrivacyFilter(*private), *encrypt, EgressFilter(encryption)]),
            ([p.TASK_BACKBONE, p.TASK_PERSONALIZE, p.TASK_VALIDATE], FilterType.TASK_RESULT,
             [EgressFilter(encryption)])]


def study_files(custom: Path | None = None) -> list[Path]:
    """The study's own files, `study_*.py` of folder `custom` (default: those that ship with the package)."""
    folder = custom if custom is not None else Path(str(resources.files(CUSTOM)))
    files = sorted(folder.glob("study_*.py"))
    if not files:
        raise SettingsError(f"custom: no study_*.py in {folder}; a job needs its clip source and its signal")
    return files


_PEOPLE = DataSettings(source="synthetic", clips=12, accent=1.0)
"""The demo's people share an accent that the backbone's do not have: what sites can teach each other."""
_MANY = DataSettings(source="synthetic", people=150, clips=2, seconds=1.6, held_out=0, seed=1)
"""The backbone's people: other ones than `_PEOPLE`, by their seed."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "privfedtalk": {"data": _PEOPLE},
    "privfedtalk_sealed": {"data": _PEOPLE, "reliability": ReliabilitySettings(
        mode="sealed", max_clips=_PEOPLE.clips - _PEOPLE.held_out)},
    "backbone": {"data": _MANY, "training": TrainingSettings(tdc=0.0), "privacy": PrivacySettings(mechanism="off"),
                 "rounds": RoundSettings(phases=("backbone",))},
    "fedavg": {"data": _PEOPLE, "reliability": ReliabilitySettings(mode="counts")},
    "fedprox": {"data": _PEOPLE, "reliability": ReliabilitySettings(mode="counts"),
                "training": TrainingSettings(proximal=1e-4)},
}
"""The jobs under `jobs/`, by what `PrivFedTalkRecipe` is given. Their sites render synthetic people."""


def build(names: Sequence[str], folder: Path, byoc: bool = True, own_clips: bool = False) -> list[Path]:
    """Exports the named variants (none: all) into `folder` and returns the job folders; `byoc` as the recipe's.
    `own_clips`: sites train on the clips of their own corpora, instead of rendering people."""
    for name in names:
        if name not in VARIANTS:
            raise SettingsError(f"job {name!r} is unknown; the choices are {', '.join(VARIANTS)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or VARIANTS:
        told = VARIANTS[name]
        data = DataSettings(source="site", held_out=told["data"].held_out) if own_clips else told["data"]
        PrivFedTalkRecipe(name, byoc=byoc, **{**told, "data": data}).export(str(folder))
    return [folder / name for name in names or VARIANTS]
