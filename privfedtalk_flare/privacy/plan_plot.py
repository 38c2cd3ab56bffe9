"""A plan as a picture: the SNR of a round by the number of people, at three promises. Drawn with Pillow alone."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from privfedtalk_flare.files import READABLE, write_whole
from privfedtalk_flare.privacy.planner import Plan, needed_noise, snr_of_round

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

PROMISES = (0.5, 1.0, 2.0)
"""Which multiples of the planned epsilon are drawn."""
WIDTH, HEIGHT = 960, 640

_FINE = 3  # drawn so many times larger and shrunk: Pillow's lines have no soft edges
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 190, 70, 70  # margins, in pixels of the finished picture
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115))  # Okabe and Ito: told apart by colour-blind readers too
_INK, _GRID = (30, 30, 30), (225, 225, 225)


@dataclass(frozen=True)
class Curve:
    """`snr` = `per_person` times people: a straight line on logarithmic axes."""

    epsilon: float
    per_person: float


def plot(plan: Plan, path: Path) -> Path:
    """Writes a PNG to `path`: SNR of a round, at most, against people; the plan and where SNR 1 is reached are marked.

    In `sealed` mode the lines hold for the best of the scores shown. Raises ValueError where `path` is no PNG.
    """
    check_path(path)
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH * _FINE, HEIGHT * _FINE), "white")
    _draw(ImageDraw.Draw(picture), plan, curves(plan))
    content = io.BytesIO()
    picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(content, format="PNG", optimize=True)
    return write_whole(path, content.getvalue(), READABLE)


def check_path(path: Path) -> None:
    """Raises ValueError unless `path` ends in .png: told before the plan is made."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot {path}: the picture is a PNG; use a name that ends in .png")


def curves(plan: Plan) -> list[Curve]:
    """A line for each promise, from the strictest; each needs noise of its own."""
    best = max(plan.outlooks, key=lambda outlook: outlook.snr)
    made = []
    for factor in PROMISES:
        study = dataclasses.replace(plan.study, epsilon=plan.study.epsilon * factor)
        sigma = plan.noise_multiplier if factor == 1 else needed_noise(study)
        made.append(Curve(study.epsilon, snr_of_round(study, sigma, best.shrinkage) / study.identities))
    return made


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from 10^low to 10^high, onto pixels from `start` to `end` of the fine picture."""

    low: int
    high: int
    start: float
    end: float

    @staticmethod
    def over(values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return _Axis(low, max(high, low + 1), start * _FINE, end * _FINE)

    def at(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return [10.0 ** power for power in range(self.low, self.high + 1)]


def _draw(pen: ImageDraw, plan: Plan, lines: Sequence[Curve]) -> None:
    study, needs = plan.study, [1 / line.per_person for line in lines]
    people = [study.identities / 2, study.identities * 2, min(needs) / 2, max(needs) * 2]
    x = _Axis.over([max(1.0, count) for count in people], _LEFT, WIDTH - _RIGHT)
    snrs = [line.per_person * end for line in lines for end in (x.ticks[0], x.ticks[-1])]
    y = _Axis.over([1.0, *snrs], HEIGHT - _BOTTOM, _TOP)
    _frame(pen, x, y)
    _dashes(pen, (x.start, y.at(1)), (x.end, y.at(1)))
    _text(pen, (x.end + 8 * _FINE, y.at(1)), "SNR 1", "lm")
    _dashes(pen, (x.at(study.identities), y.start), (x.at(study.identities), y.end))
    _text(pen, (x.at(study.identities), y.end - 5 * _FINE), f"planned: {study.identities:,} people", "mb")
    for line, need, colour in zip(lines, needs, _COLOURS, strict=True):
        ends = [(x.at(count), y.at(line.per_person * count)) for count in (x.ticks[0], x.ticks[-1])]
        pen.line(ends, colour, round(2.5 * _FINE))
        if need >= x.ticks[0]:  # less than one person else
            _dot(pen, (x.at(need), y.at(1)), colour)
    _dot(pen, (x.at(study.identities), y.at(lines[PROMISES.index(1.0)].per_person * study.identities)), _INK)
    _key(pen, lines, needs, y)
    best = max(plan.outlooks, key=lambda outlook: outlook.snr)
    score = "" if best.score is None else f", gamma {study.gamma:g}, score {best.score:g}"
    _text(pen, (_LEFT * _FINE, 8 * _FINE), "Signal to noise of one round, at most", "lt", 18)
    _text(pen, (_LEFT * _FINE, 31 * _FINE), f"{study.sites:,} sites, {study.rounds:,} rounds, {study.values:,} values, "
          f"delta {study.delta:g}, q {study.sampling:g}, {study.mode}{score}", "lt", 13)
    _text(pen, ((x.start + x.end) / 2, (HEIGHT - 14) * _FINE), "people at all sites together", "mb")


def _frame(pen: ImageDraw, x: _Axis, y: _Axis) -> None:
    for tick in x.ticks:
        pen.line([(x.at(tick), y.start), (x.at(tick), y.end)], _GRID, _FINE)
        _text(pen, (x.at(tick), y.start + 8 * _FINE), _number(tick), "mt")
    for tick in y.ticks:
        pen.line([(x.start, y.at(tick)), (x.end, y.at(tick))], _GRID, _FINE)
        _text(pen, (x.start - 8 * _FINE, y.at(tick)), _number(tick), "rm")
    pen.rectangle([x.start, y.end, x.end, y.start], outline=_INK, width=_FINE)


def _key(pen: ImageDraw, lines: Sequence[Curve], needs: Sequence[float], y: _Axis) -> None:
    """Beside the axes, weakest promise on top as its line is: colour, epsilon, people at which its SNR is 1."""
    left = (WIDTH - _RIGHT + 14) * _FINE
    rows = list(zip(lines, needs, _COLOURS, strict=True))[::-1]
    top = y.end if y.at(1) - y.end > (len(rows) * 46 + 14) * _FINE else y.at(1) + 20 * _FINE  # clear of "SNR 1"
    for i, (line, need, colour) in enumerate(rows):
        at = top + (12 + 46 * i) * _FINE
        pen.line([(left, at), (left + 22 * _FINE, at)], colour, round(2.5 * _FINE))
        _text(pen, (left + 28 * _FINE, at), f"epsilon {line.epsilon:g}", "lm")
        _text(pen, (left + 28 * _FINE, at + 18 * _FINE), f"SNR 1: {math.ceil(need):,} people", "lm", 12)


def _number(tick: float) -> str:
    return f"{tick:,.0f}" if 1 <= tick <= 1e7 else f"{tick:g}"


def _dot(pen: ImageDraw, at: tuple[float, float], colour: tuple[int, int, int]) -> None:
    (x, y), radius = at, 5 * _FINE
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline="white", width=_FINE)


def _dashes(pen: ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    (x0, y0), (x1, y1) = start, end
    count = int(math.hypot(x1 - x0, y1 - y0) / (12 * _FINE))
    for i in range(count):
        a, b = i / count, (i + 0.5) / count
        pen.line([(x0 + a * (x1 - x0), y0 + a * (y1 - y0)), (x0 + b * (x1 - x0), y0 + b * (y1 - y0))], _INK, _FINE)


def _text(pen: ImageDraw, at: tuple[float, float], words: str, anchor: str, size: int = 14) -> None:
    from PIL import ImageFont

    pen.text(at, words, _INK, ImageFont.load_default(size * _FINE), anchor=anchor)
