"""The server's controller: the phases of a job, in order, and what they leave behind."""

from __future__ import annotations

import math
import secrets
import statistics
import time
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

from privfedtalk_flare.evaluation.summary import Round, SummaryError, pool_rows
from privfedtalk_flare.federation.averaging import AveragingError
from privfedtalk_flare.flare import backbone as backbone_phase
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.lines import round_line, say, shown_settings, start_line
from privfedtalk_flare.flare.record import RunRecord, save_round, worst_epsilon
from privfedtalk_flare.flare.sections import section
from privfedtalk_flare.flare.site import place_of, workspace_of
from privfedtalk_flare.privacy.words import handful_words
from privfedtalk_flare.settings import BackboneSettings, PrivacySettings, ReliabilitySettings, RoundSettings


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
        self._private = self._privacy.mechanism != "off"
        self._phases = {p.TASK_BACKBONE: self._train_backbone, p.TASK_ADAPTER: self._train_adapter,
                        p.TASK_PERSONALIZE: self._personalize, p.TASK_VALIDATE: self._validate}
        self._record = RunRecord(psutil.Process().create_time(),
                                 shown_settings(self._rounds, self._reliability, self._privacy))
        self._carried: list[str] = []
        self._after: list[str] = []
        self._step_noise = 0.0
        self._answered = False

    def run(self) -> None:
        """All phases, in order. `summary.json` is written after each, so an aborted run keeps what it has."""
        self._aggregator = self.get_component(self.aggregator_id)
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

    def _train_adapter(self) -> None:
        total = self._rounds.rounds
        for number in range(1, total + 1):
            began = time.time()
            sites, header = self._sites(), self._header(number)
            self._aggregator.begin_round(header, sites)
            replies = self._ask(p.TASK_ADAPTER, self._theta(), {**header, **self._about_theta()}, sites)
            good = [r for r in replies if not self._aggregator.accept_model(r)]
            summing = time.time()
            try:
                self._aggregator.aggregate_model()
            finally:
                self._record.notes += [f"round {number}: {site} refused: {reason}"
                                       for site, reason in self._aggregator.refused.items()]
            self._took_step(number, header, good, {"wall": time.time() - began, "aggregate": time.time() - summing})
            say(round_line(self._record.rounds[-1], total, self._reliability, self._aggregator.cap))

    def _took_step(self, number: int, header: Mapping[str, Any], good: list[FLModel],
                   seconds: dict[str, float]) -> None:
        """Records a finished round and writes the server's state of it."""
        aggregator, shown = self._aggregator, ("weight", "score", "count", "bytes_up", "bytes_down")
        if self._reliability.mode == "sealed":
            shown = shown[3:]
        sites = {site: {key: value for key, value in {**told, "bytes_down": aggregator.bytes_down}.items()
                        if key in shown and value is not None} for site, told in aggregator.stats.items()}
        entry = Round(round=number, epsilon=worst_epsilon(r.meta.get(p.EPSILON) for r in good),
                      delta=self._privacy.delta if self._private else None, snr=None, seconds=seconds, sites=sites)
        self._record.rounds.append(entry)
        self._after, self._carried = self._carried, []
        self._record.values = aggregator.values
        self._people = sum(told["identities"] for told in aggregator.stats.values())
        if self._private:
            spread = math.sqrt(aggregator.step_variance) * self._privacy.noise_multiplier * self._privacy.clip_norm
            self._step_noise = self._rounds.eta * spread
        save_round(place_of(self.fl_ctx).state / "rounds", header[p.JOB], aggregator.theta,
                   {"header": dict(header), "rounds": [asdict(entry) for entry in self._record.rounds]})
        self._track({f"weight/{site}": told["weight"] for site, told in sites.items() if "weight" in told}, number)
        self._track({f"epsilon/{view}": value for view, value in entry.epsilon.items()
                     if isinstance(value, float)}, number)
        self._track({f"seconds/{what}": value for what, value in seconds.items()}, number)

    def _personalize(self) -> None:
        for reply in self._ask_with_theta(p.TASK_PERSONALIZE):
            site = reply.meta["client_name"]
            self._record.adapters += [f"{site}:{name}" for name in reply.meta.get(p.ADAPTERS, [])]
            metrics = (reply.metrics or {}).get(p.METRICS, {})
            say(f"{site} personalised {reply.meta.get(p.IDENTITIES)} people  "
                      + "  ".join(f"{name} {value:.3g}" for name, value in metrics.items()))

    def _validate(self) -> None:
        for reply in self._ask_with_theta(p.TASK_VALIDATE):
            site = reply.meta["client_name"]
            rows = (reply.metrics or {}).get("rows", {})
            try:
                pool_rows([rows])
            except (SummaryError, AttributeError) as error:
                self._refuse(site, f"its metrics: {error}")
                continue
            self._record.site_rows[site] = rows
            self._record.videos += [f"{site}:{name}" for name in reply.meta.get(p.VIDEOS, [])]
            say(f"{site} validated {reply.meta.get(p.IDENTITIES)} people")
        for row, metrics in self._record.summary().rows.items():
            self._track({f"metric/{row}/{name}": told["mean"] for name, told in metrics.items()}, 0)

    def _train_backbone(self) -> None:
        def ask(weights: Mapping[str, Any], meta: Mapping[str, Any], number: int) -> list[FLModel]:
            return self._ask(p.TASK_BACKBONE, dict(weights), {**self._header(number), **meta}, self._sites())

        weights, losses = backbone_phase.train_backbone(
            self._backbone, ask, lambda r: backbone_phase.average_replies(r, self._rounds.min_sites, self._refuse),
            say)
        folder = place_of(self.fl_ctx).output / "backbone"
        config = Path(workspace_of(self.fl_ctx).get_app_config_dir(self.fl_ctx.get_job_id()))
        backbone_phase.save(weights, losses, self._backbone, folder, config)
        say(f"backbone written to {folder}")

    # Asking

    def _sites(self) -> list[str]:
        return sorted(client.name for client in self.engine.get_clients())

    def _header(self, number: int) -> dict[str, Any]:
        """The header of one broadcast; what only sites can know is "" until an aggregation has settled it."""
        known = {key: getattr(self._aggregator, key, None) or "" for key in (p.SPEC, p.BACKBONE, p.KEY_ID)}
        return {p.JOB: self.fl_ctx.get_job_id(), p.ROUND: number, p.NONCE: secrets.token_hex(16), **known}

    def _theta(self) -> dict[str, Any]:
        return self._aggregator.theta or {}

    def _about_theta(self) -> dict[str, Any]:
        return {p.ZERO: not self._theta(), p.AFTER: self._after, p.STEP_NOISE: self._step_noise}

    def _ask_with_theta(self, task: str) -> list[FLModel]:
        header = self._header(len(self._record.rounds) + 1)
        good = self._ask(task, self._theta(), {**header, **self._about_theta()}, self._sites())
        if len(good) < self._rounds.min_sites:
            self._note(f"{task}: {len(good)} good replies, min_sites is {self._rounds.min_sites}")
        return good

    def _ask(self, task: str, params: Mapping[str, Any], meta: dict[str, Any], sites: list[str]) -> list[FLModel]:
        """Broadcasts a task to `sites` and returns the replies that echo its header; the others are refused."""
        number = int(meta[p.ROUND])
        data = FLModel(params_type=ParamsType.FULL, params=dict(params), current_round=number, meta=meta)
        replies = self.broadcast_model(data, task_name=task, targets=sites, timeout=math.ceil(self._rounds.timeout))
        if task != p.TASK_BACKBONE:
            self._carried.append(meta[p.NONCE])
        good = []
        for reply in replies:
            self._record.worked(reply.meta.get(p.BUSY))
            wrong = next((key for key in p.HEADER if meta[key] != "" and reply.meta.get(key) != meta[key]), None)
            if wrong is None:
                good.append(reply)
            else:
                self._refuse(reply.meta["client_name"], f"{wrong} is {reply.meta.get(wrong)!r}, not {meta[wrong]!r}")
        self._answered = self._answered or bool(good)
        self._learn_snr(good)
        return sorted(good, key=lambda reply: reply.meta["client_name"])

    def _learn_snr(self, replies: list[FLModel]) -> None:
        """Sites that hold the decrypted adapter say the signal-to-noise ratio of the step before this task."""
        told = [r.meta[p.SNR] for r in replies if isinstance(r.meta.get(p.SNR), float) and r.meta[p.SNR] >= 0]
        last = self._record.rounds[-1] if self._record.rounds else None
        if not told or last is None or last.snr is not None:
            return
        snr, epsilon = statistics.median(told), last.epsilon["receivers"]
        words = handful_words(self._people, snr, epsilon if isinstance(epsilon, float) else math.inf)
        self._record.rounds[-1] = replace(last, snr=snr, words=words)
        self._track({"snr": snr}, last.round)
        say(f"round {last.round}/{self._rounds.rounds}  snr {snr:.3f}  {words}")

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
        status = meta.get(p.STATUS)
        self._record.worked(meta.get(p.BUSY))
        self._refuse(client_name, status if status in p.STATUSES else f"return code {rc}")
        return False

    def process_result_of_unknown_task(self, client: Client, task_name: str, client_task_id: str, result: Shareable,
                                       fl_ctx: FLContext) -> None:
        """A reply that came after its task had ended."""
        self._refuse(client.name, f"its reply to {task_name} came too late")

    # Telling

    def _refuse(self, site: str, reason: str) -> None:
        self._note(f"{site} refused: {reason}")

    def _note(self, text: str) -> None:
        self._record.notes.append(text)
        self.logger.warning(text)

    def _track(self, scalars: Mapping[str, float], step: int) -> None:
        with self.engine.new_context() as fl_ctx:
            tracking.send(self, fl_ctx, scalars, step, tracking.SERVER)
