"""`privfedtalk privacy audit RUN`: the attacks of `evaluation.attacks` on the mechanism, weights and check that ran.

The run itself held no canaries, so they are played anew, through the same functions at the run's settings. What is
measured is the code and the noise source of this installation, at what the run promised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.evaluation.attacks.canaries import Audit, Canaries, audit
from privfedtalk_flare.evaluation.attacks.liar import Shares, largest_update, shares
from privfedtalk_flare.evaluation.attacks.scalars import Named, Spread, name_people, spread_of
from privfedtalk_flare.evaluation.summary import Summary, load_summary
from privfedtalk_flare.federation.isfa import isfa_weights
from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.gaussian import composed_mu, epsilon_of
from privfedtalk_flare.privacy.step import check_step
from privfedtalk_flare.settings import CLAIMS, ReliabilitySettings, parse

_VALUES = 90_112
_NOT_ATTACKED = {"clip_quantile": "the clip bits, which the promise covers too",
                 "h": "single uploads, which hold a share of the noise each"}


@dataclass(frozen=True)
class Report:
    """What the attacks found: `liar` where weights are made of what sites say, `spread` with `named` for `coarse`
    scores of at least two sites and rounds; `hidden`: the largest update below the norm check, in multiples of C.
    `stated`: the run's epsilon, which is for all that the ledger's people have spent; the canaries are held to no more
    than what the rounds they play in cost."""

    canaries: Audit
    stated: float
    sites: int
    hidden: float
    liar: Shares | None = None
    spread: Spread | None = None
    named: Named | None = None
    not_attacked: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The report, a sentence or two a line."""
        c = self.canaries
        earlier = f" by these rounds, {self.stated:.2f} with earlier ones" if self.stated > c.promised else ""
        lines = [f"canaries: {c.canaries}, {c.included} took part; promised epsilon {c.promised:.2f} at delta "
                 f"{c.delta:g}{earlier}",
                 f"  counting guesses: at least {c.counted:.2f} (95 %; all guesses right would show {c.countable:.2f})",
                 f"  Gaussian fit: {c.fitted.estimate:.2f}, at least {c.fitted.low:.2f} (95 %: of twenty runs that "
                 f"keep their promise, one is put above it here), at least {c.fitted.sure:.2f} (all but one in a "
                 "million)",
                 "  VIOLATION: more is given away than is promised; do not publish from this installation"
                 if c.violation else "  no violation found"]
        if self.liar is not None:
            lines.append(f"lying site of {self.sites}: claims are worth {self.liar.lying:.1%} of a round, honest ones "
                         f"{self.liar.honest:.1%} (at the run's n_max and max_share)")
        lines.append(f"lying site of {self.sites}: an update of up to {self.hidden:,.0f} C hides below the norm check")
        if self.named is not None and self.spread is not None:
            lines.append(f"scores: differ by {self.spread.between:.3f} between sites, {self.spread.within:.3f} between "
                         f"rounds; an observer names the worst of {self.sites} sites in {self.named.worst:.0%} "
                         f"(chance {self.named.chance:.0%})")
        return (*lines, f"not attacked here: {self.not_attacked}") if self.not_attacked else tuple(lines)


def audit_run(summary: Summary, settings: Canaries | None = None) -> Report:
    """Attacks at the settings of a finished run. Raises `AttackError` where the run promised nothing."""
    told, last = summary.settings, summary.rounds[-1] if summary.rounds else None
    stated = last.epsilon.get("receivers") if last else None
    if last is None or "sigma" not in told or not isinstance(stated, (int, float)) or last.delta is None:
        raise AttackError(f"this run promised no epsilon (settings {told}, epsilon {stated!r}): there is nothing to "
                          "audit; run a job with privacy.mechanism 'gaussian'")
    if "q" in told:
        raise AttackError(f"this run sampled its people (q {told['q']}): whoever looks for canaries in it sees a "
                          "mixture, on which the fit of a Gaussian means nothing; audit a run with privacy.sampling 1")
    sigma, clip_norm, sites = float(told["sigma"]), float(told["C"]), len(last.sites)
    settings = settings or Canaries(rounds=len(summary.rounds))
    of_these = epsilon_of(composed_mu([sigma] * settings.rounds), last.delta)
    found = audit(partial(_release, sigma, clip_norm), min(float(stated), of_these), last.delta, epsilon_of, settings)
    hidden = _hidden(sigma, clip_norm, sites, summary.values or _VALUES)
    report = Report(found, float(stated), sites, hidden,
                    not_attacked="; ".join(words for key, words in _NOT_ATTACKED.items() if key in told))
    if told.get("mode") not in CLAIMS:
        return report
    report = replace(report, liar=_liar(last.sites, told))
    table = [[entry.sites[name]["score"] for entry in summary.rounds if "score" in entry.sites.get(name, {})]
             for name in sorted(last.sites)]
    if told.get("release") != "coarse" or len({len(row) for row in table}) != 1 or min(sites, len(table[0])) < 2:
        return report
    spread = spread_of(table)
    named = name_people(partial(mechanism.release_score, release="coarse"), spread, sites=sites,
                        rounds=len(summary.rounds))
    return replace(report, spread=spread, named=named)


def audit_command(path: Path, canaries: int, seed: int) -> None:
    """Prints what the attacks find at the settings of the run at `path`; `AttackError` where it is a violation."""
    summary = load_summary(path)
    given = {"canaries": canaries, "seed": seed, "rounds": max(1, len(summary.rounds)),
             "values": 8 * max(canaries, 256)}
    report = audit_run(summary, parse(Canaries, given, "audit"))
    print("\n".join(report.words))
    if report.canaries.violation:
        raise AttackError("the audit found a violation: see above")


def _release(sigma: float, clip_norm: float, updates: Sequence[np.ndarray]) -> np.ndarray:
    m = len(updates)
    return mechanism.release(updates, [1 / m] * m, noise_multiplier=sigma, clip_norm=clip_norm, identities=m)


def _liar(sites: Mapping[str, Mapping[str, Any]], told: Mapping[str, Any]) -> Shares:
    """The first site claims score 1 and n_max clips (more is refused); the others say what they said in the run."""
    most = int(told.get("n_max", ReliabilitySettings.max_clips))
    weigh = partial(isfa_weights, gamma=float(told.get("gamma", 0.0)), max_clips=most,
                    max_share=float(told.get("max_share", ReliabilitySettings.max_share)))
    scores = {name: float(site.get("score", 0.5)) for name, site in sites.items()}
    counts = {name: int(site.get("count", 1)) for name, site in sites.items()}
    return shares(weigh, scores, counts, min(sites), score=1.0, count=most)


def _hidden(sigma: float, clip_norm: float, sites: int, values: int) -> float:
    """What passes below the check of a step of equal weights, one person a site."""
    noise = sigma * clip_norm / math.sqrt(sites)
    check = partial(check_step, reach=clip_norm, noise_std=noise)
    return largest_update(check, mechanism.gaussian(values, noise), 1 / sites, clip_norm)
