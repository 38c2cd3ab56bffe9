"""A run's summary: what `summary.json` holds, how sites' rows are pooled, and how it is shown.

A site sends mean, standard deviation and number of people for each row and metric, and no person's value by itself: of
two people it sends no deviation, since mean and deviation of two numbers give away both. (Means of two jobs give one
person away all the same where their people differ by that one: metrics lie outside the epsilon.) The server pools means
exactly, and deviations (n - 1 in the denominator) as far as sites tell them; None where nothing does.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privfedtalk_flare.files import READABLE, write_whole

ROWS = ("ground_truth", "copy_reference", "backbone", "shared", "personalized")
METRICS = {"psnr_mask": "PSNR\nmask\ndB up", "psnr": "PSNR\nall\ndB up", "ssim": "SSIM\n\nup", "sync": "sync\n\nup",
           "sync_offset": "sync\noffset\ndown", "identity": "ident.\n\nup", "flicker": "flick.\ngrey\ndown",
           "flicker_gap": "flick.\ngap\ndown", "motion_ratio": "motion\nratio\nto 1",
           "warp": "warp\ngrey\nto real", "jitter_ratio": "jitter\nratio\nto 1"}
"""Metrics in the order of the table, with their head: name, unit, direction; `evaluation.metrics` and `.temporal` have
their definitions."""
MEANINGS = {
    "psnr_mask": "PSNR mask: of the pixels that the generator paints", "psnr": "PSNR all: of the whole picture",
    "ssim": "SSIM: structural similarity of the whole picture",
    "sync": "sync: correlation of the mouth's opening, recovered from pixels, with the true one",
    "sync_offset": "offset: frames by which they are apart",
    "identity": "ident.: cosine of identity embeddings, generated against real",
    "flicker": "flick.: change from frame to frame where the real film is still",
    "flicker_gap": "flick. gap: distance of the two films' changes from frame to frame",
    "motion_ratio": "motion: how much of the real movement there is",
    "warp": "warp: what is left of a frame in the next one, moved back along the real film's flow",
    "jitter_ratio": "jitter: how unsteady the mouth's opening is, of how unsteady it should be"}
"""Each metric in a phrase, below a table of them."""
_THREE_DIGITS = ("ssim", "sync", "identity", "motion_ratio", "jitter_ratio")
"""Metrics within [-1, 1]: shown with three decimals, the others with two."""
UNBOUNDED = "unbounded"
FILE_NAME = "summary.json"
_PLACES = (FILE_NAME, f"workspace/{FILE_NAME}", f"server/*/{FILE_NAME}", f"*/workspace/{FILE_NAME}", f"*/{FILE_NAME}",
           f"*/server/*/{FILE_NAME}", f"*/prod_*/*/*/{FILE_NAME}", f"prod_*/*/*/{FILE_NAME}")
"""Where a run folder keeps it: itself, a downloaded job, the simulator's workspace, folders of these, a POC."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("rows", "settings", "epsilon", "seconds", "sites"), Mapping),
    **dict.fromkeys(("rounds", "videos", "adapters", "notes"), list),
    **dict.fromkeys(("wall_seconds", "overhead_share"), (int, float))}
"""What the fields of a summary and of its rounds are, where those who read them rely on it."""

_LARGEST = 1e9
"""More than any metric or number of people: a site that sends more is wrong, and sums would overflow."""

SPREAD_FROM = 3
"""Fewest people of a site of whom it sends a standard deviation."""

Rows = dict[str, dict[str, dict[str, float | None]]]
"""row -> metric -> {"mean", "std", "n"}; only "std" may be None."""


def digits(metric: str) -> int:
    """Decimals that a metric is shown with."""
    return 3 if metric in _THREE_DIGITS else 2


def legend(metrics: Iterable[str]) -> str:
    """What these metrics are, in one sentence.

    >>> legend(["ssim", "motion_ratio"])
    'SSIM: structural similarity of the whole picture; motion: how much of the real movement there is.'
    """
    return "; ".join(MEANINGS[name] for name in metrics) + "."


class SummaryError(ValueError):
    """A summary that is missing, ambiguous or not readable. The message names the file and what to do."""


@dataclass(frozen=True)
class Round:
    """One round of the shared adapter. `epsilon`: view -> number, "unbounded", or None where none is stated; `seconds`:
    wall and aggregate; `sites`: site -> weight, score, count, bytes_up, bytes_down, less what the mode keeps secret;
    `words`: what the epsilon means for this many people; `clip_norm`: C, None without differential privacy."""

    round: int
    epsilon: dict[str, float | str | None]
    delta: float | None
    snr: float | None
    seconds: dict[str, float]
    sites: dict[str, dict[str, float]]
    words: str = ""
    clip_norm: float | None = None


@dataclass(frozen=True)
class Summary:
    """The whole of `summary.json`; `values` is the length of the update, `settings` what the job ran with (such as
    sigma, C, eta), `notes` what went wrong on the way."""

    rows: Rows
    rounds: list[Round]
    values: int | None
    bytes_per_value: float | None
    wall_seconds: float
    overhead_share: float
    videos: list[str]
    adapters: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any], where: str) -> Summary:
        """The reverse of `to_json`; `where` names the file in errors. Raises `SummaryError`."""
        found = dict(_fields(Summary, content, where))
        found["rounds"] = [Round(**_fields(Round, entry, f"{where}: round {i}"))
                           for i, entry in enumerate(found["rounds"], 1)]
        for row, metrics in found["rows"].items():
            if row not in ROWS:
                raise SummaryError(f"{where}: unknown row {row!r}; the choices are {', '.join(ROWS)}")
            for name, value in _mapping(metrics, f"{where}: {row}").items():
                if not (isinstance(value, Mapping) and set(value) == {"mean", "std", "n"}):
                    raise SummaryError(f"{where}: {row}/{name} must be {{mean, std, n}}, got {value!r:.60}")
        try:
            pool_rows([found["rows"]])  # knows what a statistic is
        except SummaryError as error:
            raise SummaryError(f"{where}: {error}") from error
        return Summary(**found)


def _mapping(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise SummaryError(f"{where}: expected a mapping, got {content!r:.60}")
    return content


def _fields(cls: type, content: Any, where: str) -> Mapping[str, Any]:
    content = _mapping(content, where)
    known = dataclasses.fields(cls)
    needed = {f.name for f in known if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    unknown, missing = sorted(set(content) - {f.name for f in known}), sorted(needed - set(content))
    if unknown or missing:
        raise SummaryError(f"{where}: not this version's summary (missing: {', '.join(missing) or 'nothing'}; unknown: "
                           f"{', '.join(unknown) or 'nothing'}); run the job again with this version")
    for name, value in content.items():
        if not isinstance(value, _KINDS.get(name, object)):
            raise SummaryError(f"{where}: {name} cannot be {value!r:.60}; run the job again")
    for name, site in content.get("sites", {}).items():
        _mapping(site, f"{where}: {name}")
    return content


def site_rows(rows: Mapping[str, Mapping[str, Sequence[float]]], least: int = 1) -> Rows:
    """Statistics over a site's people, from row -> metric -> one value a person (PRIVATE).

    Values that are not finite (a metric that a clip leaves undefined) do not count; a metric with fewer than `least`
    people is left out, so that none is shown alone.

    >>> site_rows({"backbone": {"sync": [0.25, 0.5, 0.75, float("nan")], "flicker": [float("nan"), 1, 3]}})
    {'backbone': {'sync': {'mean': 0.5, 'std': 0.25, 'n': 3}, 'flicker': {'mean': 2.0, 'std': None, 'n': 2}}}
    """
    made: Rows = {}
    for row, metrics in rows.items():
        for name, values in metrics.items():
            finite = [float(v) for v in values if math.isfinite(v)]
            if len(finite) >= max(least, 1):
                mean = math.fsum(finite) / len(finite)
                squares = math.fsum((v - mean) ** 2 for v in finite)
                spread = len(finite) - 1 if len(finite) >= SPREAD_FROM else 0
                made.setdefault(row, {})[name] = _statistic(mean, squares, spread, len(finite))
    return made


def pool_rows(sites: Iterable[Rows]) -> Rows:
    """Rows over all people of all sites, in the order of `ROWS`; the same as if their values lay in one list, where
    sites send deviations.

    mean = sum n_k mean_k / N; std^2 (N - 1) = sum (n_k - 1) std_k^2 + n_k (mean_k - mean)^2. A site that sends no
    deviation counts by its mean alone, with one degree of freedom: an unbiased estimate of the same variance.
    Raises `SummaryError` on a row or metric that is not known or a statistic that cannot be one.
    """
    parts: dict[tuple[str, str], list[tuple[float, float | None, int]]] = {}
    for site in sites:
        for row, metrics in site.items():
            for name, told in metrics.items():
                if row not in ROWS or name not in METRICS:
                    raise SummaryError(f"unknown metric {row}/{name}; the choices are {', '.join(ROWS)} and "
                                       f"{', '.join(METRICS)}")
                mean, std, n = (told.get(key) for key in ("mean", "std", "n"))
                if not (all(isinstance(v, (int, float)) and abs(v) <= _LARGEST for v in (mean, std or 0.0, n))
                        and (std is None or std >= 0) and n >= 1 and n == int(n)):
                    raise SummaryError(f"{row}/{name}: not a statistic: {dict(told)!r:.80}")
                parts.setdefault((row, name), []).append((mean, std, int(n)))
    pooled: Rows = {}
    for row, name in sorted(parts, key=lambda at: (ROWS.index(at[0]), list(METRICS).index(at[1]))):
        told = parts[row, name]
        count = sum(n for _, _, n in told)
        mean = math.fsum(n * m for m, _, n in told) / count
        squares = math.fsum((n - 1) * (s or 0.0) ** 2 + n * (m - mean) ** 2 for m, s, n in told)
        freedom = sum(1 if s is None else n for _, s, n in told) - 1
        pooled.setdefault(row, {})[name] = _statistic(mean, squares, freedom, count)
    return pooled


def _statistic(mean: float, squares: float, freedom: int, count: int) -> dict[str, float | None]:
    return {"mean": mean, "std": math.sqrt(squares / freedom) if freedom > 0 else None, "n": count}


def overhead_share(intervals: Iterable[tuple[float, float]], wall: float) -> float:
    """1 - |union of (start, end) intervals| / wall, in seconds: the share of a run in which no site worked.

    >>> overhead_share([(0, 4), (2, 6), (8, 9)], 10)
    0.3
    """
    covered, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise SummaryError(f"busy interval ({start!r}, {end!r}): must be finite and end no earlier than it starts")
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return round(1.0 - min(covered / wall, 1.0), 12) if wall > 0 else 1.0


def save_summary(summary: Summary, path: Path) -> Path:
    """Writes `summary` as JSON: `path` holds the old content or the new one, never half of it."""
    text = json.dumps(summary.to_json(), indent=2, allow_nan=False)
    return write_whole(path, f"{text}\n".encode(), READABLE)


def find_summary(run: Path) -> Path:
    """The file of RUN: a FLARE workspace, a downloaded job, or the file itself. Raises `SummaryError`."""
    if run.is_dir():
        found = next((paths for place in _PLACES if (paths := sorted(run.glob(place)))), [])
        if not found:
            raise SummaryError(f"{run}: no {FILE_NAME} here or in a server's run folder; the controller writes it "
                               "after each phase, so give a workspace whose job has ended one")
        if len(found) > 1:
            raise SummaryError(f"{run}: several runs; the choices are {', '.join(map(str, found))}")
        return found[0]
    if not run.exists():
        raise SummaryError(f"{run}: no such folder or file; give a FLARE workspace, a downloaded job or a {FILE_NAME}")
    return run


def load_summary(run: Path | str) -> Summary:
    """The summary of RUN, as `find_summary` finds it. Raises `SummaryError`."""
    run = find_summary(Path(run))
    try:
        content = json.loads(run.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SummaryError(f"{run}: not readable as JSON ({error}); give the {FILE_NAME} of a run") from error
    return Summary.from_json(content, str(run))
