"""A study's results as tables, in Markdown: what `RESULTS.md` and the terminal show, and the report builds on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from privfedtalk_flare.evaluation.summary import METRICS, digits
from privfedtalk_flare.evaluation.table import VIEWS, number
from privfedtalk_flare.snr import known_snr
from privfedtalk_flare.study.plan import BACKBONE
from privfedtalk_flare.study.results import Estimate, Results, metrics_of

Table = tuple[list[str], list[list[str]]]
"""Head and lines, all text."""

SHOWN = ("psnr_mask", "ssim", "sync", "identity", "flicker", "flicker_gap", "motion_ratio", "warp")
"""Metrics of the headline tables; the full ones have all."""


def heading(metric: str) -> str:
    """The name of a metric, with its unit and direction, on one line."""
    return " ".join(METRICS[metric].split())


def means(results: Results, metrics: Sequence[str] = SHOWN) -> Table:
    """A line a variant: each metric's mean over the people of undamaged sites, and half its 95 % interval. The real
    clips, copies of a still picture, and the backbone come first, as the first variant's runs measured them. Where
    noise was added, what the rounds brought epsilon to (for whoever is sent the adapter), and their signal-to-noise
    ratio as the server estimates it, or the least that it could tell. Lines say of how many people and runs they are:
    do not compare those of different people."""
    known = [name for name in metrics_of(results) if name in metrics]
    private = {variant: told for variant in results.variants if (told := _promise(results, variant)) is not None}
    lines = []
    for control in ("ground_truth", "copy_reference", BACKBONE):
        lines.append([f"*{control}*", *_means(results, results.variants[0], known, control),
                      *(["", ""] if private else []), ""])
    for variant in results.variants:
        seconds = [run["seconds"] for run in results.runs(variant).values()]
        lines.append([variant, *_means(results, variant, known),
                      *(private.get(variant, ["-", "-"]) if private else []), f"{fmean(seconds):.0f} s"])
    return ["", *map(heading, known), "people", "runs", *(["epsilon", "SNR up"] if private else []), "a run"], lines


def _means(results: Results, variant: str, known: Sequence[str], row: str | None = None) -> list[str]:
    """The cells of one line: a mean for each metric, and of how many people and runs they are."""
    found = [results.mean(variant, name, row) for name in known]
    return [*(shown(one, digits(name)) for one, name in zip(found, known, strict=True)), *_size(found)]


def _size(found: Sequence[Estimate | None]) -> list[str]:
    """People and runs of the estimate with most people, "" where there is none."""
    largest = max((one for one in found if one is not None), key=lambda one: one.people, default=None)
    return ["", ""] if largest is None else [str(largest.people), str(len(largest.by_seed))]


def differences(results: Results, metrics: Sequence[str] = SHOWN) -> Table:
    """A line for each pair that the study compares: difference and interval, on the people of undamaged sites. Bold
    where it is settled."""
    known = [name for name in metrics_of(results) if name in metrics]
    lines = []
    for pair in results.study.compare:
        found = [results.compared(pair, name) for name in known]
        if any(one is not None for one in found):
            cells = [_difference(one, name) for one, name in zip(found, known, strict=True)]
            alike = all(one is None or one.alike for one in found)
            lines.append([str(pair) if alike else f"{pair} (other makers)", *cells, *_size(found)])
    return ["", *map(heading, known), "people", "runs"], lines


def rounds(results: Results) -> Table:
    """How the sites of each variant were weighed, what that promised and what it moved: means over all its rounds."""
    body = []
    for name in results.variants:
        if of := results.rounds(name):
            good = results.study.variants[name].corpus.good
            by_kind = [[told for one in of for site, told in one["sites"].items() if (site in good) == kind]
                       for kind in (True, False)]
            cells = [number(_mean(told[key] for told in sites if key in told), ".3f")
                     for key in ("weight", "score") for sites in by_kind]
            moved = [number(_mean(told[key] / 1e6 for sites in by_kind for told in sites), ".2f")
                     for key in ("bytes_up", "bytes_down")]
            body.append([name, *cells, *(number(of[-1]["epsilon"].get(view), ".2f") for view in VIEWS), *moved,
                         *(number(_mean(one["seconds"][part] for one in of), form)
                           for part, form in (("wall", ".0f"), ("aggregate", ".2f")))])
    head = ["", "weight", "weight, damaged", "score", "score, damaged"]
    return [*head, *(f"epsilon {words}" for words in VIEWS.values()), "MB up", "MB down", "round s", "sum s"], body


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None


def _promise(results: Results, variant: str) -> list[str] | None:
    """Epsilon of a variant's last round, the same for every seed, and the SNR, the root of the mean square over rounds
    and seeds, or what it is below where estimates say no more (`known_snr`); None where it adds no noise."""
    rounds = results.rounds(variant)
    squares = [one["snr"] ** 2 for one in rounds if one["snr"] is not None]
    if not squares:
        return None
    epsilon = rounds[-1]["epsilon"]["receivers"]
    size = next(run["summary"]["values"] for run in results.runs(variant).values())
    ratio, most = known_snr(math.sqrt(fmean(squares)), math.inf, size)
    return [f"{epsilon:.4g}" if isinstance(epsilon, float) else str(epsilon), f"{'< ' if most else ''}{ratio:.2g}"]


def as_markdown(table: Table) -> str:
    """The table as Markdown, numbers to the right."""
    head, lines = table
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ruler, *lines))


def as_latex(table: Table) -> str:
    """The table as a LaTeX `tabular`."""
    head, lines = table
    escaped = [[_latex(cell) for cell in cells] for cells in (head, *lines)]
    body = [" & ".join(cells) + r" \\" for cells in escaped]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", body[0], r"\hline", *body[1:],
                      r"\end{tabular}"])


def _latex(cell: str) -> str:
    text = cell.replace("±", r"$\pm$").replace("_", r"\_").replace("%", r"\%").replace("<", "$<$")
    if text.startswith("**"):
        return rf"\textbf{{{text.strip('*')}}}"
    return rf"\emph{{{text.strip('*')}}}" if text.startswith("*") else text


def shown(told: Estimate | None, decimals: int) -> str:
    """A mean and half its interval."""
    if told is None:
        return "-"
    half = told.high - told.mean
    return f"{told.mean:.{decimals}f}" + (f" ± {half:.{decimals}f}" if math.isfinite(half) and half > 0 else "")


def _difference(told: Estimate | None, name: str) -> str:
    if told is None:
        return "-"
    ends = (told.low, told.high) if math.isfinite(told.low) else ()
    small = 0 < max(map(abs, (told.mean, *ends))) < 0.5 * 10 ** -digits(name)  # would be shown as 0.00
    mean, *ends = (f"{value:+.0e}" if small else f"{value:+.{digits(name)}f}" for value in (told.mean, *ends))
    text = f"{mean} [{', '.join(ends)}]" if ends else mean
    return f"**{text}**" if told.settled else text
