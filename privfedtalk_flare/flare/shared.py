"""The server's side of the shared adapter: theta as the aggregator holds it, its steps, C, and the file that a later
job goes on from.

FLARE has no resume: a job whose server process dies is over. What it had lies in the server's `state`, a file a job,
and a clone of that job (or one whose `rounds.resume` names it) goes on after its last finished round. A round that
was under way is done again, as a release of its own, which every site charges.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.apis.job_def import JobMetaKey
from nvflare.app_common.abstract.fl_model import FLModel

from privfedtalk_flare.evaluation.summary import Round
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.lines import round_words
from privfedtalk_flare.flare.record import RunRecord, read_round, save_round, shown_sites, worst_epsilon
from privfedtalk_flare.flare.sections import plain
from privfedtalk_flare.flare.steps import StepLog, next_clip_norm, noise_of_sum
from privfedtalk_flare.settings import PrivacySettings, ReliabilitySettings, RoundSettings, SettingsError

_SETTLED = (p.SPEC, p.BACKBONE, p.KEY_ID)
"""What only sites can know; the first aggregation settles it."""


_MAY_DIFFER = frozenset({"epsilon_max", "delta", "phases", "rounds", "min_sites", "timeout", "resume"})
"""Settings that a job may have otherwise than the one it goes on from; all others decide what theta is."""


class SharedState:
    """Theta and what must be known to take another step, round after round, from `record`'s last one on."""

    def __init__(self, aggregator: ISFAAggregator, record: RunRecord, rounds: RoundSettings,
                 reliability: ReliabilitySettings, privacy: PrivacySettings) -> None:
        self._aggregator, self._record = aggregator, record
        self._rounds, self._reliability, self._privacy = rounds, reliability, privacy
        self.clip_norm = privacy.clip_norm
        self._steps = StepLog()
        self._before: tuple[Mapping[str, Any] | None, StepLog, float] | None = None
        self._people = 0

    @property
    def theta(self) -> Mapping[str, Any]:
        """Payload of a task: ciphertext chunks, or the plain vector; empty for theta = 0."""
        return self._aggregator.theta or {}

    def settled(self) -> dict[str, str]:
        """The part of a header that only sites can know: "" until an aggregation has settled it."""
        return {key: getattr(self._aggregator, key, None) or "" for key in _SETTLED}

    def told(self) -> dict[str, Any]:
        """What a task that carries theta says about it."""
        return {p.ZERO: not self.theta, **self._steps.told(), p.AGREED: self._agreed()}

    def carried(self, nonce: str) -> None:
        """Books the broadcast with this nonce as one that carried theta."""
        self._steps.carried.append(nonce)

    def step(self, number: int, good: Sequence[FLModel], sent: int, began: float) -> Round:
        """Adds the accepted replies to theta, records round `number` and moves C. `sent`: bytes of theta that each site
        was sent; `began`: seconds since the epoch. Raises `AveragingError`, theta as it was, where too few agree.
        """
        aggregator, before = self._aggregator, (self._aggregator.theta, replace(self._steps), self.clip_norm)
        summing = time.time()
        aggregator.aggregate_model()
        now, self._before = time.time(), before
        self._people = sum(told["identities"] for told in aggregator.stats.values())
        private = self._privacy.mechanism != "off"
        self._record.values = aggregator.values
        self._record.rounds.append(self._worded(Round(
            round=number, epsilon=worst_epsilon(reply.meta.get(p.EPSILON) for reply in good),
            delta=self._privacy.delta if private else None, snr=None,
            seconds={"wall": now - began, "aggregate": now - summing},
            sites=shown_sites(aggregator.stats, sent, self._reliability.mode),
            clip_norm=self.clip_norm if private else None)))
        share = self.clip_norm / self._privacy.clip_bounds[1]
        self._steps.took(self._rounds.eta * share, noise_of_sum(aggregator.stats, self._privacy))
        self.clip_norm = next_clip_norm(self.clip_norm, aggregator.stats, self._privacy)
        return self._record.rounds[-1]

    def take_back(self) -> bool:
        """Theta, and C, as they were before the last step; False where this job has taken none since it began.

        The round stays on record, with the epsilon that it cost, and is not done again.
        """
        if self._before is None:
            return False
        self._aggregator.theta, self._steps, self.clip_norm = self._before
        self._before = None
        last = self._record.rounds[-1]
        self._record.rounds[-1] = replace(last, words=f"Most sites refused this step: it was taken back. {last.words}")
        return True

    def learn_snr(self, replies: Sequence[FLModel]) -> Round | None:
        """The last round with its signal-to-noise ratio, which sites that hold the decrypted adapter say after it; None
        where nobody said one, or it is known."""
        told = [reply.meta[p.SNR] for reply in replies if p.SNR in reply.meta]
        last = self._record.rounds[-1] if self._record.rounds else None
        if not told or last is None or last.snr is not None:
            return None
        self._record.rounds[-1] = self._worded(replace(last, snr=statistics.median(told)))
        return self._record.rounds[-1]

    def save(self, path: Path, header: Mapping[str, Any]) -> Path:
        """Writes theta and all of this after a finished round, by atomic replace."""
        return save_round(path, self.theta, {
            "header": {**header, **self.settled()}, "rounds": [asdict(entry) for entry in self._record.rounds],
            "values": self._aggregator.values, "people": self._people, "clip_norm": self.clip_norm,
            "steps": asdict(self._steps), "agreed": self._agreed()})

    def resume(self, path: Path) -> int:
        """Takes up what `save` wrote, and returns the number of rounds that were finished.

        Raises `SettingsError` where the earlier job's mechanism or weights were others, as what a site promises and
        checks holds from theta = 0 on, and where it has finished more rounds than this job is to have.
        """
        theta, told = read_round(path)
        try:
            differing = sorted(f"{section}.{name}" for section, mine in self._agreed().items() for name in mine
                               if name not in _MAY_DIFFER and mine[name] != told["agreed"][section].get(name))
            rounds = [Round(**entry) for entry in told["rounds"]]
            steps, header = StepLog(**told["steps"]), told["header"]
            values, people, clip_norm = told["values"], told["people"], told["clip_norm"]
        except (KeyError, TypeError) as error:
            raise SettingsError(f"{path}: written by another version of this package, {error!r}; without it the job "
                                "starts from theta = 0") from error
        if differing:
            raise SettingsError(f"rounds.resume: the job of {path.name} ran with other values of "
                                f"{', '.join(differing)}, and its adapter can only go on with the same; start from "
                                "theta = 0, in a job that is no clone and names none in rounds.resume")
        if len(rounds) > self._rounds.rounds:
            raise SettingsError(f"rounds.rounds is {self._rounds.rounds}, but the job of {path.name} has finished "
                                f"{len(rounds)}; give at least as many, as they count from theta = 0 on")
        aggregator = self._aggregator
        aggregator.theta, aggregator.values = theta or None, values
        for key in _SETTLED:
            setattr(aggregator, key, header[key])
        self._record.rounds, self._record.values = rounds, values
        self._people, self.clip_norm, self._steps = people, clip_norm, steps
        self._before = None
        return len(rounds)

    def _agreed(self) -> dict[str, Any]:
        return {"privacy": plain(self._privacy), "reliability": plain(self._reliability),
                "rounds": plain(self._rounds)}

    def _worded(self, entry: Round) -> Round:
        return replace(entry, words=round_words(entry, self._people, self._record.values or 1, self._privacy,
                                                self._reliability, self._rounds.phases))


def cloned_from(run: Path) -> str:
    """The id of the job of which the one with this run folder is a clone (`clone_job`), "" where it is none."""
    meta = run / WorkspaceConstants.JOB_META_FILE
    if not meta.is_file():
        return ""
    return str(json.loads(meta.read_text(encoding="utf-8")).get(JobMetaKey.CLONED_FROM.value) or "")
