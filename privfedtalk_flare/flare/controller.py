"""The server's controller: the phases of a job, in order, and what they leave behind."""

from __future__ import annotations

import math
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
from nvflare.apis.client import Client
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.model_controller import ModelController

from privfedtalk_flare.checks import check_phases, check_shares
from privfedtalk_flare.evaluation.summary import Round, pool_rows
from privfedtalk_flare.federation.averaging import AveragingError
from privfedtalk_flare.flare import backbone as backbone_phase
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.lines import round_line, round_words, say, shown_settings, start_line
from privfedtalk_flare.flare.record import RunRecord, save_round, shown_sites, worst_epsilon
from privfedtalk_flare.flare.scalars import fault_of, metrics, misshapen
from privfedtalk_flare.flare.sections import plain, section
from privfedtalk_flare.flare.site import place_of, workspace_of
from privfedtalk_flare.flare.steps import StepLog, next_clip_norm, noise_of_sum
from privfedtalk_flare.privacy.echo import EchoBook
from privfedtalk_flare.settings import (
    BackboneSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
)


class PrivFedTalkController(ModelController):
    """Runs the phases `backbone`, `adapter`, `personalize` and `validate`. Every mapping holds settings.

    Args:
        rounds: `RoundSettings`. reliability: `ReliabilitySettings`. privacy: `PrivacySettings`.
        backbone: `BackboneSettings`. aggregator_id: the component that sums the updates, an `ISFAAggregator`.
    """

    def __init__(self, rounds: Mapping[str, Any], reliability: Mapping[str, Any],
                 privacy: Mapping[str, Any], backbone: Mapping[str, Any],
                 aggregator_id: str = "aggregator") -> None:
        super().__init__(persistor_id="", ignore_result_error=True)
        self.rounds, self.reliability, self.privacy, self.backbone = rounds, reliability, privacy, backbone
        self.aggregator_id = aggregator_id
        self._rounds = section(RoundSettings, rounds, "rounds")
        self._reliability = section(ReliabilitySettings, reliability, "reliability")
        self._privacy = section(PrivacySettings, privacy, "privacy")
        self._backbone = section(BackboneSettings, backbone, "backbone")
        check_phases(self._rounds, self._backbone)
        check_shares(self._privacy, self._rounds)
        self._private = self._privacy.mechanism != "off"
        self._phases = {p.TASK_BACKBONE: self._train_backbone, p.TASK_ADAPTER: self._train_adapter,
                        p.TASK_PERSONALIZE: self._personalize, p.TASK_VALIDATE: self._validate}
        self._record = RunRecord(psutil.Process().create_time(),
                                 shown_settings(self._rounds, self._reliability, self._privacy))
        self._clip_norm = self._privacy.clip_norm
        self._steps = StepLog()
        self._before: tuple[Mapping[str, Any] | None, StepLog] = (None, self._steps)
        self._statuses: Counter[str] = Counter()
        self._people = 0
        self._answered = False

    def run(self) -> None:
        """All phases, in order. `summary.json` is written after each, so an aborted run keeps what it has."""
        self._aggregator = self.get_component(self.aggregator_id)
        self._check_aggregator()
        folder = place_of(self.fl_ctx).output
        say(start_line(self._sites(), self._rounds, self._reliability, self._privacy))
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
            self._record.write(folder)
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

    def _train_adapter(self) -> None:
        total = self._rounds.rounds
        for number in range(1, total + 1):
            began = time.time()
            sites, header, sent = self._sites(), self._header(number), self._aggregator.bytes_down
            self._aggregator.begin_round(header, sites)
            clip_norm = {} if self._privacy.clip_quantile is None else {p.CLIP_NORM: self._clip_norm}
            replies = self._ask_with_theta(p.TASK_ADAPTER, {**header, **clip_norm}, sites)
            good = [r for r in replies if not self._aggregator.accept_model(r)]
            summing, before = time.time(), (self._aggregator.theta, replace(self._steps))
            try:
                self._aggregator.aggregate_model()
            finally:
                self._record.notes += [f"round {number}: {site} refused: {reason}"
                                       for site, reason in self._aggregator.refused.items()]
            self._before = before
            self._took_step(number, header, good, sent,
                            {"wall": time.time() - began, "aggregate": time.time() - summing})
            say(round_line(self._record.rounds[-1], total, self._reliability, self._aggregator.cap))

    def _took_step(self, number: int, header: Mapping[str, Any], good: list[FLModel], sent: int,
                   seconds: dict[str, float]) -> None:
        """Records a finished round, which broadcast `sent` bytes of theta, and writes the server's state of it."""
        aggregator = self._aggregator
        sites = shown_sites(aggregator.stats, sent, self._reliability.mode)
        self._people = sum(told["identities"] for told in aggregator.stats.values())
        entry = Round(round=number, epsilon=worst_epsilon(r.meta.get(p.EPSILON) for r in good),
                      delta=self._privacy.delta if self._private else None, snr=None, seconds=seconds, sites=sites,
                      clip_norm=self._clip_norm if self._private else None)
        self._record.values = aggregator.values
        self._record.rounds.append(self._worded(entry))
        share = self._clip_norm / self._privacy.clip_bounds[1]
        self._steps.took(self._rounds.eta * share, noise_of_sum(aggregator.stats, self._privacy))
        settled = {key: getattr(aggregator, key) for key in (p.SPEC, p.BACKBONE, p.KEY_ID)}
        save_round(place_of(self.fl_ctx).state / "rounds" / f"{header[p.JOB]}.safetensors", aggregator.theta,
                   {"header": {**header, **settled}, "rounds": [asdict(entry) for entry in self._record.rounds]})
        self._track(tracking.of_round(entry), number)
        self._clip_norm = next_clip_norm(self._clip_norm, aggregator.stats, self._privacy)

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
            return self._ask(p.TASK_BACKBONE, dict(weights), {**self._header(number), **meta}, self._sites())

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
        known = {key: getattr(self._aggregator, key, None) or "" for key in (p.SPEC, p.BACKBONE, p.KEY_ID)}
        return {p.JOB: self.fl_ctx.get_job_id(), p.ROUND: number, p.NONCE: secrets.token_hex(16), **known}

    def _ask_with_theta(self, task: str, header: Mapping[str, Any], sites: list[str]) -> list[FLModel]:
        """Asks `sites` about theta. Where most refuse its last step, that step is taken back, and the phase ends."""
        theta = self._aggregator.theta or {}
        about = {p.ZERO: not theta, **self._steps.told(),
                 p.AGREED: {"privacy": plain(self._privacy), "reliability": plain(self._reliability),
                            "rounds": plain(self._rounds)}}
        good = self._ask(task, theta, {**header, **about}, sites)
        self._steps.carried.append(header[p.NONCE])
        if 2 * self._statuses[p.STATUS_STEP_REFUSED] > len(sites):
            self._aggregator.theta, self._steps = self._before
            raise AveragingError("most sites refused the last step of the shared adapter, which was taken back; each "
                                 "of them waits for its operator, and its own log says why")
        return good

    def _ask_all(self, task: str) -> list[FLModel]:
        good = self._ask_with_theta(task, self._header(len(self._record.rounds) + 1), self._sites())
        if len(good) < self._rounds.min_sites:
            self._note(f"{task}: {len(good)} good replies, min_sites is {self._rounds.min_sites}")
        return good

    def _ask(self, task: str, params: Mapping[str, Any], meta: dict[str, Any], sites: list[str]) -> list[FLModel]:
        """Broadcasts a task to `sites` and returns the replies that echo its header; the others are refused."""
        number, book = int(meta[p.ROUND]), EchoBook(place_of(self.fl_ctx).state)
        data = FLModel(params_type=ParamsType.FULL, params=dict(params), current_round=number,
                       meta={**meta, p.ECHO: book.told(sites)})
        self._statuses.clear()
        replies = self.broadcast_model(data, task_name=task, targets=sites, timeout=math.ceil(self._rounds.timeout))
        good = []
        for reply in replies:
            self._record.worked(reply.meta.get(p.BUSY))
            site = reply.meta["client_name"]
            if reason := fault_of(reply.meta, meta):
                self._refuse(site, reason)
                continue
            good.append(reply)
            if p.LEDGER in reply.meta and (oddity := book.remember(site, reply.meta[p.LEDGER])):
                self._note(f"{site}: {oddity}")
        self._answered = self._answered or bool(good)
        self._learn_snr(good)
        return sorted(good, key=lambda reply: reply.meta["client_name"])

    def _learn_snr(self, replies: list[FLModel]) -> None:
        """Sites that hold the decrypted adapter say the signal-to-noise ratio of the step before this task."""
        told = [r.meta[p.SNR] for r in replies if p.SNR in r.meta]
        last = self._record.rounds[-1] if self._record.rounds else None
        if not told or last is None or last.snr is not None:
            return
        self._record.rounds[-1] = last = self._worded(replace(last, snr=statistics.median(told)))
        self._track({"snr": last.snr}, last.round)
        say(f"round {last.round}/{self._rounds.rounds}  snr {last.snr:.3f}  {last.words}")

    def _worded(self, entry: Round) -> Round:
        return replace(entry, words=round_words(entry, self._people, self._record.values or 1, self._privacy,
                                                self._reliability, self._rounds.phases))

    def _accept_train_result(self, client_name: str, result: Shareable, fl_ctx: FLContext,
                             is_unknown_task: bool = False) -> bool:
        """FLARE's hook for each result: one with an error code is noted by its status, and the round goes on."""
        rc = result.get_return_code()
        if rc in (None, ReturnCode.OK):
            return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)
        try:
            meta = from_shareable(result).meta
        except ValueError:  # FLARE's own errors carry no content
            meta = {}
        status = "" if misshapen(meta) else meta.get(p.STATUS)
        self._record.worked(meta.get(p.BUSY))
        self._statuses[str(status)] += 1
        self._refuse(client_name, status if status in p.STATUSES else f"return code {rc}")
        return False

    def process_result_of_unknown_task(self, client: Client, task_name: str, client_task_id: str, result: Shareable,
                                       fl_ctx: FLContext) -> None:
        """A reply that came after its task had ended."""
        self._refuse(client.name, f"its reply to {task_name} came too late")

    def _refuse(self, site: str, reason: str) -> None:
        self._note(f"{site} refused: {reason}")

    def _note(self, text: str) -> None:
        self._record.notes.append(text)
        self.logger.warning(text)

    def _track(self, scalars: Mapping[str, float], step: int) -> None:
        with self.engine.new_context() as fl_ctx:
            tracking.send(self, fl_ctx, scalars, step, tracking.SERVER)
