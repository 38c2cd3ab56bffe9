"""The server's controller: the phases of a job, in order, and what they leave behind."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
from nvflare.app_common.abstract.fl_model import FLModel

from privfedtalk_flare.checks import check_phases, check_shares
from privfedtalk_flare.evaluation.summary import pool_rows
from privfedtalk_flare.federation.averaging import AveragingError
from privfedtalk_flare.flare import backbone as backbone_phase
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.asking import AskingController
from privfedtalk_flare.flare.lines import round_line, say, shown_settings, start_line
from privfedtalk_flare.flare.record import RunRecord
from privfedtalk_flare.flare.scalars import metrics
from privfedtalk_flare.flare.sections import section
from privfedtalk_flare.flare.shared import SharedState, cloned_from
from privfedtalk_flare.flare.site import place_of, workspace_of
from privfedtalk_flare.settings import (
    BackboneSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
)


class PrivFedTalkController(AskingController):
    """Runs the phases `backbone`, `adapter`, `personalize` and `validate`. Every mapping holds settings.

    Args:
        rounds: `RoundSettings`. reliability: `ReliabilitySettings`. privacy: `PrivacySettings`.
        backbone: `BackboneSettings`. aggregator_id: the component that sums the updates, an `ISFAAggregator`.
    """

    def __init__(self, rounds: Mapping[str, Any], reliability: Mapping[str, Any],
                 privacy: Mapping[str, Any], backbone: Mapping[str, Any],
                 aggregator_id: str = "aggregator") -> None:
        self.rounds, self.reliability, self.privacy, self.backbone = rounds, reliability, privacy, backbone
        self.aggregator_id = aggregator_id
        self._rounds = section(RoundSettings, rounds, "rounds")
        self._reliability = section(ReliabilitySettings, reliability, "reliability")
        self._privacy = section(PrivacySettings, privacy, "privacy")
        self._backbone = section(BackboneSettings, backbone, "backbone")
        check_phases(self._rounds, self._backbone)
        check_shares(self._privacy, self._rounds)
        self._phases = {p.TASK_BACKBONE: self._train_backbone, p.TASK_ADAPTER: self._train_adapter,
                        p.TASK_PERSONALIZE: self._personalize, p.TASK_VALIDATE: self._validate}
        super().__init__(self._rounds.timeout, RunRecord(
            psutil.Process().create_time(), shown_settings(self._rounds, self._reliability, self._privacy)))

    def run(self) -> None:
        """All phases, in order. `summary.json` is written after each, so an aborted run keeps what it has."""
        self._aggregator = self.get_component(self.aggregator_id)
        self._check_aggregator()
        self._shared = SharedState(self._aggregator, self._record, self._rounds, self._reliability, self._privacy)
        folder = place_of(self.fl_ctx).output
        say(start_line(self._sites(), self._rounds, self._reliability, self._privacy))
        self._resume()
        for phase in self._rounds.phases:
            if self.abort_signal.triggered:
                break
            began = time.time()
            say(f"phase {phase} begins")
            try:
                self._phases[phase]()
                say(f"phase {phase} done in {time.time() - began:.0f} s")
            except AveragingError as reason:
                self._note(f"phase {phase} ended early: {reason}")
            self._kept("summary.json", lambda: self._record.write(folder))
        if not self._answered:
            self.panic("no site gave a usable answer in any phase; each site's own log says why")
            return
        say(f"summary written to {folder / 'summary.json'}")

    def _check_aggregator(self) -> None:
        """Raises `SettingsError` where the component would sum with another step, or fewer sites, than is announced."""
        for name in ("eta", "min_sites"):
            if (own := getattr(self._aggregator, name)) != (said := getattr(self._rounds, name)):
                raise SettingsError(f"rounds.{name} is {said!r}, but component {self.aggregator_id!r}, which sums the "
                                    f"updates, has {name} {own!r}; write \"rounds\": \"{{rounds}}\" among its "
                                    "arguments in config_fed_server.json")

    def _resume(self) -> None:
        """Goes on from the earlier job that `rounds.resume` names, or that this one was cloned from."""
        run = Path(workspace_of(self.fl_ctx).get_run_dir(self.fl_ctx.get_job_id()))
        cloned = cloned_from(run)  # goes before rounds.resume, which a clone has from its original
        earlier = cloned if cloned and self._state_of(cloned).is_file() else self._rounds.resume or cloned
        if not earlier:
            return
        path = self._state_of(earlier)
        if path.is_file():
            finished = self._shared.resume(path)
            self._save(self._header(finished))  # so that a clone of this job finds it as well
            say(f"goes on from job {earlier} after round {finished}")
        elif self._rounds.resume:
            raise SettingsError(f"rounds.resume: this server has no {path}; it holds one file for each job that "
                                "finished a round of the shared adapter")
        else:
            say(f"a clone of job {earlier}, which finished no round of the shared adapter: it starts anew")

    def _state_of(self, job: str) -> Path:
        return place_of(self.fl_ctx).state / "rounds" / f"{Path(job).name}.safetensors"

    def _save(self, header: Mapping[str, Any]) -> None:
        self._kept("the shared adapter, from which a clone of this job goes on,",
                   lambda: self._shared.save(self._state_of(header[p.JOB]), header))

    def _kept(self, what: str, write: Callable[[], object]) -> None:
        """A file that cannot be written (disk full) stays as it was, and the run goes on."""
        try:
            write()
        except OSError as error:
            self._note(f"{what} could not be written, and is on disk as it was before: {error}")

    def _train_adapter(self) -> None:
        total = self._rounds.rounds
        for number in range(len(self._record.rounds) + 1, total + 1):
            began = time.time()
            sites, header, sent = self._sites(), self._header(number), self._aggregator.bytes_down
            self._aggregator.begin_round(header, sites)
            clip_norm = {} if self._privacy.clip_quantile is None else {p.CLIP_NORM: self._shared.clip_norm}
            good = self._ask_with_theta(p.TASK_ADAPTER, {**header, **clip_norm}, sites, self._aggregator.accept_model)
            try:
                entry = self._shared.step(number, good, sent, began)
            finally:
                self._record.notes += [f"round {number}: {site} refused: {reason}"
                                       for site, reason in self._aggregator.refused.items()]
            self._save(header)
            self._track(tracking.of_round(entry), number)
            say(round_line(entry, total, self._reliability, self._aggregator.cap))

    def _personalize(self) -> None:
        for reply in self._ask_all(p.TASK_PERSONALIZE):
            site, told = reply.meta["client_name"], (reply.metrics or {}).get(p.METRICS)
            if not metrics(told):
                self._refuse(site, "its metrics are no finite numbers by name")
                continue
            names = reply.meta.get(p.ADAPTERS, [])
            self._record.adapters += [f"{site}:{name}" for name in names]
            say(f"{site} personalised {len(names)} people  "
                + "  ".join(f"{name} {value:.3g}" for name, value in told.items()))

    def _validate(self) -> None:
        for reply in self._ask_all(p.TASK_VALIDATE):
            site = reply.meta["client_name"]
            rows = (reply.metrics or {}).get("rows", {})
            try:
                pool_rows([rows])
            except (ValueError, AttributeError, TypeError) as error:  # SummaryError is one
                self._refuse(site, f"its metrics: {error}")
                continue
            self._record.site_rows[site] = rows
            self._record.videos += [f"{site}:{name}" for name in reply.meta.get(p.VIDEOS, [])]
            say(f"{site} validated {reply.meta.get(p.IDENTITIES)} people")
        for row, table in self._record.summary().rows.items():
            self._track({f"metric/{row}/{name}": told["mean"] for name, told in table.items()}, 0)

    def _train_backbone(self) -> None:
        def ask(weights: Mapping[str, Any], meta: Mapping[str, Any], number: int) -> list[FLModel]:
            return self._ask(p.TASK_BACKBONE, weights, {**self._header(number), **meta}, self._sites())[1]

        run = place_of(self.fl_ctx).output
        weights, losses = backbone_phase.train_backbone(
            self._backbone, ask, lambda r: backbone_phase.average_replies(r, self._rounds.min_sites, self._refuse),
            say, run)
        folder = run / "backbone"
        config = Path(workspace_of(self.fl_ctx).get_app_config_dir(self.fl_ctx.get_job_id()))
        backbone_phase.save(weights, losses, self._backbone, folder, config)
        say(f"backbone written to {folder}")

    def _sites(self) -> list[str]:
        return sorted(client.name for client in self.engine.get_clients())

    def _header(self, number: int) -> dict[str, Any]:
        """The header of one broadcast; what only sites can know is "" until an aggregation has settled it."""
        return {p.JOB: self.fl_ctx.get_job_id(), p.ROUND: number, p.NONCE: secrets.token_hex(16),
                **self._shared.settled()}

    def _ask_with_theta(self, task: str, header: Mapping[str, Any], sites: list[str],
                        accept: Callable[[FLModel], str] | None = None) -> list[FLModel]:
        """Asks `sites` about theta; the replies that count. Where most sites refuse its last step, that step is taken
        back, and the phase ends."""
        answers, good = self._ask(task, self._shared.theta, {**header, **self._shared.told()}, sites, accept)
        self._shared.carried(header[p.NONCE])
        self._learn_snr(answers)
        if 2 * self._statuses[p.STATUS_STEP_REFUSED] > len(sites):
            taken_back = self._shared.take_back()
            if taken_back:
                self._save(header)
            raise AveragingError("most sites refused the last step of the shared adapter, which "
                                 + ("was taken back" if taken_back else "an earlier job took; this server has no older "
                                    "state, so go on from a job before that one, or from theta = 0")
                                 + "; each of them waits for its operator, and its own log says why")
        return good

    def _ask_all(self, task: str) -> list[FLModel]:
        good = self._ask_with_theta(task, self._header(len(self._record.rounds) + 1), self._sites())
        if len(good) < self._rounds.min_sites:
            self._note(f"{task}: {len(good)} good replies, min_sites is {self._rounds.min_sites}")
        return good

    def _learn_snr(self, replies: list[FLModel]) -> None:
        """Sites that hold the decrypted adapter say the signal-to-noise ratio of the step before this task."""
        if last := self._shared.learn_snr(replies):
            self._track({"snr": last.snr}, last.round)
            say(f"round {last.round}/{self._rounds.rounds}  snr {last.snr:.3f}  {last.words}")

    def _track(self, scalars: Mapping[str, float], step: int) -> None:
        with self.engine.new_context() as fl_ctx:
            tracking.send(self, fl_ctx, scalars, step, tracking.SERVER)
