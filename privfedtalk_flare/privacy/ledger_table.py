"""A ledger as text for a terminal: one line a release, with what all releases up to it cost, by who is looking."""

from __future__ import annotations

from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.table import Table

from privfedtalk_flare.privacy.accountant import UNBOUNDED, VIEWS, View
from privfedtalk_flare.privacy.anchor import releases
from privfedtalk_flare.privacy.ledger import Entry, Ledger
from privfedtalk_flare.text import as_text

_MISSING = "-"
_VIEWS = dict(zip(VIEWS, ("receiv", "server", "both"), strict=True))
_JOB = 14
"""Characters of a job's id that are shown: enough to tell FLARE's random ones apart."""


def render(ledger: Ledger, site: str, delta: float, epsilon_max: float | None, width: int) -> str:
    """The whole ledger, `width` columns wide at most, without colour; epsilon at `delta`, against `epsilon_max`."""
    return as_text(width, _table(ledger, site, delta), *_words(ledger, delta, epsilon_max))


def _table(ledger: Ledger, site: str, delta: float) -> Table:
    table = Table(title=f"Privacy ledger of {site}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False,
                  title_justify="left")
    for head in ("booked", "job", "round", "mechanism", "sigma", "sensi-\ntivity", "unit", "trust",
                 *(f"eps\n{name}" for name in _VIEWS.values())):
        left = head in ("booked", "job", "mechanism", "unit", "trust")
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    after = ledger.views_so_far(delta)
    for entry, time, views in zip(ledger.entries, ledger.times, after, strict=True):
        table.add_row(datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M"), _short(entry.job), str(entry.round),
                      _mechanism(entry), _sigma(entry), _sensitivity(entry), entry.unit, entry.trust,
                      *(_epsilon(views[view]) for view in _VIEWS))
    return table


def _words(ledger: Ledger, delta: float, epsilon_max: float | None) -> list[str]:
    """What the columns mean, what the last row leaves out, and how much is left."""
    spent = ledger.epsilon(delta)
    worst = max(view.epsilon for view in spent.values())
    budget = ("no epsilon_max in this site's privfedtalk.yaml: nothing stops the spending" if epsilon_max is None else
              f"epsilon_max {epsilon_max:g}, of which {max(0.0, epsilon_max - worst):.2f} is left")
    lines = [f"{releases(ledger.head.count)}; {budget}."]
    if ledger.entries:
        lines.append(f"eps: epsilon at delta {delta:g} of one identity's part in all releases up to that line. receiv: "
                     "whoever holds the decrypted adapter; server: the server alone; both: the server together with a "
                     "site. sensitivity: of a mean over the site's m people (M: the number by which all sites divide; "
                     "q m: people sampled with probability q); the noise is sigma times as large. trust: who adds it.")
        for name in ("server", "server_and_site") if any(e.release.honest > 1 for e in ledger.entries) else ("server",):
            words = spent[name].words  # what it does not cover, and why this view sees what it sees
            lines.append(f"{words[:1].upper()}{words[1:]}.")
    if ledger.torn:
        lines.append("A crash left part of a line at the end; the next booking charges it as one more release.")
    return [*lines, f"ledger {ledger.head.id}, head {ledger.head.head[:16]}, as its anchor has it."]


def _mechanism(entry: Entry) -> str:
    if entry.release.noise_multiplier is None:
        return f"none ({entry.phase})"
    return "gaussian"


def _sigma(entry: Entry) -> str:
    release = entry.release
    if release.noise_multiplier is None:
        return _MISSING
    more = {"score": release.score_noise_multiplier, "bit": release.clip_bit_noise_multiplier}
    noted = (f"{name} {sigma:g}" for name, sigma in more.items() if sigma is not None)
    parts = [f"{release.noise_multiplier:g}", *noted]
    return ", ".join([*parts, f"of {release.honest} sites"] if release.honest > 1 else parts)


def _sensitivity(entry: Entry) -> str:
    if entry.clip_norm is None:
        return _MISSING
    q = entry.release.sampling
    return f"{entry.clip_norm:g}/{'M' if entry.release.honest > 1 else 'm' if q == 1 else f'({q:g} m)'}"


def _epsilon(view: View) -> str:
    return "none" if view.value == UNBOUNDED else f"{view.epsilon:.2f}"


def _short(job: str) -> str:
    return job if len(job) <= _JOB else f"{job[:_JOB - 2]}.."
