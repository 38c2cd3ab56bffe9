"""What a study's runs say: means over people, and differences paired by person, each with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from privfedtalk_flare.evaluation.summary import METRICS
from privfedtalk_flare.study.plan import BACKBONE, POOLED, Comparison, Study, undamaged
from privfedtalk_flare.study.provenance import same_numbers

Values = dict[tuple[int, str], float]
"""(seed, person) -> value of one metric."""

_SAME = 1e-3
"""dB between two measurements of one clip: processors differ in the last bits."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `people`, with the ends of its 95 % interval (nan where one value is all there is), and the mean of
    each seed by itself. `alike`: not a difference between runs of other code, or on another kind of machine."""

    mean: float
    low: float
    high: float
    people: int
    by_seed: dict[int, float]
    alike: bool = True

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out 0. One run settles nothing: its people share one adapter and one noise. Nor
        do runs that differ in what made them."""
        return self.alike and len(self.by_seed) > 1 and (self.low > 0 or self.high < 0)


def estimate(values: Mapping[tuple[int, str], float]) -> Estimate | None:
    """The mean of (seed, person) -> value and its interval; None where there is no finite value.

    Every seed is a run of its own, with other people, so runs are what is independent: the mean is that of the seeds'
    means, the interval Student's t over them. Of a single seed it is over people, and says nothing of other runs.

    >>> estimate({(1, "a"): 1.0, (1, "b"): 2.0, (2, "c"): 3.0, (2, "d"): float("nan")}).by_seed
    {1: 1.5, 2: 3.0}
    """
    import numpy as np
    from scipy import stats

    finite = {at: value for at, value in values.items() if math.isfinite(value)}
    if not finite:
        return None
    by_seed = {seed: float(np.mean([value for (one, _), value in finite.items() if one == seed]))
               for seed in sorted({seed for seed, _ in finite})}
    independent = np.array(list(by_seed.values() if len(by_seed) > 1 else finite.values()))
    half = (float(stats.t.ppf(0.975, len(independent) - 1)) * independent.std(ddof=1) / math.sqrt(len(independent))
            if len(independent) > 1 else math.nan)
    mean = float(independent.mean())
    return Estimate(mean, mean - half, mean + half, len(finite), by_seed)


class Results:
    """All results of a study that are there, ready to be asked."""

    def __init__(self, study: Study, results: Sequence[Mapping[str, Any]]) -> None:
        self.study = study
        self._of: dict[str, dict[int, Mapping[str, Any]]] = {}
        for result in results:
            self._of.setdefault(result["variant"], {})[result["seed"]] = result

    @property
    def variants(self) -> list[str]:
        """The variants with at least one run, in the study's order."""
        return [name for name in self.study.variants if name in self._of]

    def runs(self, variant: str) -> dict[int, Mapping[str, Any]]:
        """Seed -> result."""
        return self._of.get(variant, {})

    def rounds(self, variant: str) -> list[Mapping[str, Any]]:
        """Every round of all its runs, in order, as a job's summary has them; none where it trained alone."""
        return [one for run in self.runs(variant).values() for one in (run["summary"] or {}).get("rounds", ())]

    @property
    def makers(self) -> list[str]:
        """Each kind of machine, and code that decides the same numbers, that made some of the runs, in words."""
        codes: dict[tuple[tuple[str, str], ...], set[str]] = {}
        for runs in self._of.values():
            for made in (run["made_by"] for run in runs.values()):
                codes.setdefault(tuple(same_numbers(made).items()), set()).add(made["code"])
        return sorted(", ".join([_code(sorted(found)), *(f"{key} {value}" for key, value in kind if key != "code")])
                      for kind, found in codes.items())

    @property
    def days(self) -> list[str]:
        """The days on which runs ended, in order."""
        return sorted({run["day"] for runs in self._of.values() for run in runs.values()})

    def values(self, variant: str, metric: str, row: str | None = None, sites: Iterable[str] | None = None) -> Values:
        """Every person's value in `row` (None: the study's) at `sites` (None: all). One trainer for all has no sites:
        its people are found where a federated run of the same seed has them."""
        wanted = None if sites is None else set(sites)
        found: Values = {}
        for seed, result in self.runs(variant).items():
            for site, people in result["people"].items():
                for person, rows in people.items():
                    at = self._site_of(seed, person) if site == POOLED else site
                    value = rows.get(row or self.study.row, {}).get(metric)
                    if value is not None and (wanted is None or at in wanted):
                        found[seed, person] = value
        return found

    def mean(self, variant: str, metric: str, row: str | None = None) -> Estimate | None:
        """Of the people at the variant's undamaged sites."""
        return estimate(self.values(variant, metric, row, self.study.variants[variant].corpus.good))

    def compared(self, pair: Comparison, metric: str) -> Estimate | None:
        """The first less the second (less the first's own row `backbone` where the second is called so), of the people
        whom both have at the comparison's sites: where it names none, all that neither variant damages. Raises
        ValueError where one of them was measured on other clips in the second than in the first."""
        sites = pair.sites or undamaged(*(self.study.variants[name].corpus for name in pair.variants))
        row = pair.row or None
        one = self.values(pair.first, metric, row, sites)
        other = (self.values(pair.first, metric, BACKBONE, sites) if pair.second == BACKBONE
                 else self.values(pair.second, metric, row, sites))
        self._same_clips(pair, one.keys() & other.keys())
        found = estimate({at: one[at] - other[at] for at in one.keys() & other.keys()})
        return None if found is None else replace(found, alike=self._alike(pair))

    def _alike(self, pair: Comparison) -> bool:
        """Whether each seed's two runs were made by code that decides the same numbers, on the same kind of machine."""
        first, second = (self.runs(name) for name in (pair.first, pair.variants[-1]))
        return all(same_numbers(first[seed]["made_by"]) == same_numbers(second[seed]["made_by"])
                   for seed in first.keys() & second.keys())

    def _same_clips(self, pair: Comparison, people: Iterable[tuple[int, str]]) -> None:
        """Copies of a still picture depend on the clips alone, and those on the study, the seed, and the libraries that
        rendered them."""
        first, second = (self.values(name, "psnr_mask", "copy_reference") for name in (pair.first, pair.variants[-1]))
        for at in sorted(people):
            if at in first and at in second and abs(first[at] - second[at]) > _SAME:
                raise ValueError(f"{pair}, seed {at[0]}: a person was measured on other clips in one than in the other "
                                 f"(copies of a still picture have {first[at]:.3f} and {second[at]:.3f} dB)")

    def _site_of(self, seed: int, person: str) -> str:
        for runs in self._of.values():
            for site, people in runs[seed]["people"].items() if seed in runs else ():
                if site != POOLED and person in people:
                    return site
        return ""


def _code(digests: Sequence[str]) -> str:
    """Words for digests of code that decides the same numbers; a digest is no commit's."""
    if len(digests) == 1:
        return f"code of digest {digests[0]}"
    return (f"code of digests {', '.join(digests)} (which decides the same numbers, as `study/provenance.py` says "
            "with the reasons)")


def metrics_of(results: Results) -> list[str]:
    """The metrics that any run has, in the table's order."""
    return [name for name in METRICS if any(results.values(variant, name) for variant in results.variants)]
