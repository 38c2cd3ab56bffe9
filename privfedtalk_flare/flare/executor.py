"""The site's executor: reads its arguments, calls one function of `training.site` a task, answers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from privfedtalk_flare.checks import check_private
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.failures import ADVICE, HeaderError, answer_to
from privfedtalk_flare.flare.lines import say
from privfedtalk_flare.flare.replies import raw_reply, status_reply
from privfedtalk_flare.flare.sections import section
from privfedtalk_flare.flare.site import place_of, threads_of
from privfedtalk_flare.flare.steps import CHECKED, check, check_header, follow, refuse_if_stopped
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    TrainingSettings,
)
from privfedtalk_flare.training import worklog

_STARTED = {EventType.BEFORE_TASK_DATA_FILTER, EventType.BEFORE_TASK_RESULT_FILTER}
_ENDED = {EventType.AFTER_TASK_DATA_FILTER: worklog.RECEIVE, EventType.AFTER_TASK_RESULT_FILTER: worklog.PROTECT}


class PrivFedTalkExecutor(Executor):
    """Trains, scores, personalises and validates on one site. Every argument is a mapping of settings.

    Args:
        data: `DataSettings`. adapter: `AdapterSettings`. training: `TrainingSettings` of an adapter round.
        personalize: `TrainingSettings` of the identity adapters. reliability: `ReliabilitySettings`.
        privacy: `PrivacySettings`, to know what may be tracked, and `rounds`: `RoundSettings`, how far theta can move.
        backbone: `BackboneSettings`.

    FLARE may run every task in a fresh process: nothing is kept here that the site's `state` does not hold as well.
    """

    def __init__(self, data: Mapping[str, Any], adapter: Mapping[str, Any],
                 training: Mapping[str, Any], personalize: Mapping[str, Any],
                 reliability: Mapping[str, Any], privacy: Mapping[str, Any], rounds: Mapping[str, Any],
                 backbone: Mapping[str, Any]) -> None:
        super().__init__()
        self.data, self.adapter, self.training, self.personalize = data, adapter, training, personalize
        self.reliability, self.privacy, self.rounds, self.backbone = reliability, privacy, rounds, backbone
        self._settings = {
            "data": section(DataSettings, data, "data"), "adapter": section(AdapterSettings, adapter, "adapter"),
            "training": section(TrainingSettings, training, "training"),
            "personalize": section(TrainingSettings, personalize, "personalize"),
            "reliability": section(ReliabilitySettings, reliability, "reliability"),
            "backbone": section(BackboneSettings, backbone, "backbone")}
        self._privacy = section(PrivacySettings, privacy, "privacy")
        self._rounds = section(RoundSettings, rounds, "rounds")
        check_private(self._settings["adapter"], self._settings["reliability"], self._privacy)
        self._allowed = tracking.SITE if self._privacy.mechanism == "off" else tracking.SITE_WITH_DP
        self._tasks = {p.TASK_BACKBONE: self._train_backbone, p.TASK_ADAPTER: self._train_adapter,
                       p.TASK_PERSONALIZE: self._personalize, p.TASK_VALIDATE: self._validate}
        self._work: Any = None
        self._people = 0
        self._place: Any = None
        self._busy: list[list[float]] = []
        self._since = 0.0
        self._losses: list[float] = []

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Times the filters: protecting, encrypting and decrypting are work too."""
        if event_type in _STARTED:
            self._since = time.time()
        elif event_type in _ENDED and self._since:
            self._busy.append([self._since, time.time()])
            self._note(_ENDED[event_type], time.time() - self._since)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answers one task. A failure is answered by a status word; its text stays in the site's own log."""
        header: dict[str, Any] = {}
        try:
            dxo = from_shareable(shareable)
            header = {key: dxo.meta.get(key) for key in p.HEADER}
            status = dxo.meta.get(p.STATUS, p.STATUS_OK)
            if status != p.STATUS_OK:  # a task filter declined, for instance because the budget is spent
                return status_reply(status, header)
            if task_name not in self._tasks:
                raise HeaderError(f"task {task_name!r} is unknown; the choices are {', '.join(p.TASKS)}")
            self._open(fl_ctx)
            self._losses, began = [], time.time()
            reply = self._tasks[task_name](dxo, header, fl_ctx)
            part = f"{task_name} {dxo.meta[p.PHASE]}" if task_name == p.TASK_BACKBONE else task_name
            self._note(part, time.time() - began, round=int(header[p.ROUND]), losses=self._losses)
            return reply
        except Exception as error:
            rc, status = answer_to(error)
            # Below ERROR: provisioned sites stream their error log to the server, and the text may name a clip.
            self.logger.warning(f"{fl_ctx.get_identity_name()}: task {task_name} failed ({status}): {error}"
                                + ADVICE.get(status, ""), exc_info=status == p.STATUS_FAILED)
            return status_reply(status, header, rc)

    def _open(self, fl_ctx: FLContext) -> None:
        """Builds the site's work, once a process. Imports count as overhead."""
        refuse_if_stopped(place_of(fl_ctx).state)
        if self._work is not None:
            return
        # Read when torch loads OpenMP: threads that spin while they wait starve beside any other work on the machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from privfedtalk_flare.threads import limit_threads
        from privfedtalk_flare.training.site import SiteWork

        place = place_of(fl_ctx)
        limit_threads(threads_of(place, fl_ctx))
        self._work = SiteWork(site=place.site, place=place, log=lambda text: say(f"{place.site}: {text}"),
                              **self._settings)
        self._place = place

    def _train_backbone(self, dxo: DXO, header: dict[str, Any], fl_ctx: FLContext) -> Shareable:
        with self._working():
            done = self._work.backbone_round(dxo.meta[p.PHASE], int(header[p.ROUND]), dxo.data or None)
            self._losses = [done.loss]
        meta = {**header, p.PHASE: dxo.meta[p.PHASE], p.COUNT: done.count, p.LOSS: done.loss, p.BUSY: self._spent()}
        return DXO(DataKind.WEIGHTS, data=done.weights, meta=meta).to_shareable()

    def _train_adapter(self, dxo: DXO, header: dict[str, Any], fl_ctx: FLContext) -> Shareable:
        theta, snr = self._received(dxo, header, fl_ctx)
        began = time.time()
        with self._working():
            self._check_people()
            updates = self._work.adapter_round(theta, int(header[p.ROUND]))
            self._losses = [update.loss for update in updates]
        self._track(fl_ctx, int(header[p.ROUND]), snr=snr, identities=len(updates),
                    seconds=time.time() - began)
        return raw_reply(updates, {**header, p.VALUES: self._work.spec.size, p.BUSY: self._spent(), **_known(snr)})

    def _personalize(self, dxo: DXO, header: dict[str, Any], fl_ctx: FLContext) -> Shareable:
        theta, snr = self._received(dxo, header, fl_ctx)
        with self._working():
            metrics = self._work.personalize(theta)
            self._losses = list(metrics.values())
            self._work.save_shared_adapter(theta, self._place.state / "shared", str(header.get(p.KEY_ID) or ""))
        self._track(fl_ctx, int(header[p.ROUND]), snr=snr)
        meta = {**header, p.IDENTITIES: self._people, p.ADAPTERS: list(self._work.adapters),
                p.BUSY: self._spent(), **_known(snr)}
        return DXO(DataKind.METRICS, data={p.METRICS: metrics}, meta=meta).to_shareable()

    def _validate(self, dxo: DXO, header: dict[str, Any], fl_ctx: FLContext) -> Shareable:
        from privfedtalk_flare.evaluation.summary import site_rows

        theta, snr = self._received(dxo, header, fl_ctx)
        with self._working():
            validation = self._work.validate(theta)
        meta = {**header, p.IDENTITIES: self._people, p.VIDEOS: list(validation.videos),
                p.BUSY: self._spent(), **_known(snr)}
        rows = site_rows(validation.rows, self._place.min_identities)
        return DXO(DataKind.METRICS, data={"rows": rows}, meta=meta).to_shareable()

    def _received(self, dxo: DXO, header: dict[str, Any],
                  fl_ctx: FLContext) -> tuple[np.ndarray, float | None]:
        """The shared adapter (D,) that came with the task, and the SNR of its last step; the clips are ready then.

        Fills in what the server cannot know before the sites say it, and raises HeaderError on what does not agree,
        `StepRefused` where theta came farther than it can. `ReserveRelease` has checked a task of an adapter round
        already, before it booked it, but for spec and backbone, which are known here only.
        """
        with self._working():
            self._people = self._work.prepare()
        spec = self._work.spec
        own = {p.SPEC: spec.digest, p.BACKBONE: self._work.backbone_digest}
        for key, mine in own.items():
            if header[key] not in ("", None, mine):
                raise HeaderError(f"header {key}: the server says {header[key]!r}, this site has {mine!r}; all sites "
                                  f"must have the same backbone and adapter settings")
        header.update({p.JOB: fl_ctx.get_job_id(), **own})
        theta = np.zeros(spec.size, np.float32) if dxo.meta.get(p.ZERO) else np.asarray(dxo.data[p.PLAIN], np.float32)
        if theta.shape != (spec.size,):
            raise HeaderError(f"the shared adapter has shape {theta.shape}, this site's {(spec.size,)}")
        if not fl_ctx.get_prop(CHECKED, False):
            check_header(dxo.meta, fl_ctx.get_job_id(), privacy=self._privacy, rounds=self._rounds, **self._settings)
            check(theta, dxo.meta, self._place, self._privacy, self._rounds)
        snr = follow(theta, dxo.meta, self._place, self._privacy)
        return theta, None if snr is None else float(f"{snr:.3g}")  # it says no more of decrypted values than it must

    def _check_people(self) -> None:
        """Raises `HeaderError` where this site cannot divide by the one number that distributed noise asks for."""
        if self._privacy.shares_noise and self._people > self._privacy.people:
            raise HeaderError(f"this site has {self._people} people, more than the job's privacy.people "
                              f"{self._privacy.people}, by which every site divides")

    def _track(self, fl_ctx: FLContext, step: int, **values: float | None) -> None:
        tags = {"seconds/training" if tag == "seconds" else tag: value for tag, value in values.items()}
        sent = {tag: value for tag, value in tags.items() if value is not None and tag in self._allowed}
        tracking.send(self, fl_ctx, sent, step, self._allowed)

    def _note(self, part: str, seconds: float, **told: Any) -> None:
        """For the site's own eyes: it does not leave. (Before a process's first task nobody knows where to.)"""
        if self._place is not None:
            worklog.note(self._place.output, part, seconds, **told)

    def _working(self) -> _Working:
        return _Working(self._busy)

    def _spent(self) -> list[list[int]]:
        """When the site worked since its last reply, as BUSY may say it."""
        spent, self._busy = self._busy, []
        return _united(spent)


class _Working:
    """Times a block of work."""

    def __init__(self, busy: list[list[float]]) -> None:
        self._busy = busy

    def __enter__(self) -> None:
        self._since = time.time()

    def __exit__(self, *error: object) -> None:
        self._busy.append([self._since, time.time()])


def _united(intervals: Iterable[Sequence[float]]) -> list[list[int]]:
    """The union of [start, end] in seconds, in order, each start rounded down and each end up to a whole second.

    The server needs no more to tell overhead from work; how many pieces the work had, and how long one took, stay here.
    """
    union: list[list[int]] = []
    for start, end in sorted(intervals):
        first, last = math.floor(start), math.ceil(max(start, end))  # a clock may be set back
        if union and first <= union[-1][1]:
            union[-1][1] = max(union[-1][1], last)
        else:
            union.append([first, last])
    return union


def _known(snr: float | None) -> dict[str, float]:
    return {} if snr is None else {p.SNR: snr}
