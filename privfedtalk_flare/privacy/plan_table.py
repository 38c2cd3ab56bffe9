"""A plan as text for a terminal: what the promise takes, what the adapter can learn under it, what would help."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from privfedtalk_flare.privacy.planner import MOST_ROUNDS, Outlook, Plan
from privfedtalk_flare.text import as_text


def render(plan: Plan, width: int) -> str:
    """The whole plan, `width` columns wide at most, without colour."""
    return as_text(width, _promise(plan), _outlooks(plan), _needs(plan), *plan.words)


def _promise(plan: Plan) -> Table:
    study = plan.study
    table = _table("The promise", "")
    table.add_row("people, sites", f"{study.identities:,}, {study.sites:,}")
    table.add_row("people in a round", "all" if study.sampling == 1 else _expected(plan))
    table.add_row("rounds", f"{study.rounds:,}")
    table.add_row("values of an update", f"{study.values:,}")
    table.add_row("mode", f"sealed, gamma {study.gamma:g}" if study.mode == "sealed" else study.mode)
    table.add_row("noise multiplier sigma", f"{plan.noise_multiplier:.4g}")
    table.add_row(f"epsilon at delta {study.delta:g}", f"{plan.epsilon:.4f}")
    return table


def _outlooks(plan: Plan) -> Table:
    table = _table("Signal to noise, at most", *(_head(outlook) for outlook in plan.outlooks))
    if plan.study.mode == "sealed":
        table.add_row("left of step and signal", *(f"{o.shrinkage:.3f}" for o in plan.outlooks))
    table.add_row("in a round", *(f"{o.snr:.3g}" for o in plan.outlooks))
    table.add_row("over all rounds", *(f"{o.snr_of_all:.3g}" for o in plan.outlooks))
    return table


def _needs(plan: Plan) -> Table:
    table = _table("SNR 1 in a round takes one of", *(_head(outlook) for outlook in plan.outlooks))
    table.add_row("people, at least", *(f"{o.people:,}" for o in plan.outlooks))
    table.add_row("values of an update, at most", *(_most(o.values) for o in plan.outlooks))
    table.add_row("rounds, at most", *(_most(o.rounds, MOST_ROUNDS) for o in plan.outlooks))
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left",
                  show_header=any(heads))
    table.add_column(min_width=28, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True, min_width=10)
    return table


def _head(outlook: Outlook) -> str:
    return "" if outlook.score is None else f"score {outlook.score:g}"


def _expected(plan: Plan) -> str:
    people = plan.people_a_round
    return f"{people:{',.0f' if people >= 100 else '.3g'}} expected (q {plan.study.sampling:g})"


def _most(number: int, cap: int | None = None) -> str:
    if number == 0:
        return "0 (not even 1)"
    return f"{number:,} or more" if number == cap else f"{number:,}"
