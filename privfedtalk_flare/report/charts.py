"""Charts as SVG text, for a page that asks no other file and no script for them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 12, 34
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito: told apart by colour-blind readers too."""


def lines(series: Mapping[str, Points], x: str, y: str) -> str:
    """A chart of one line a name, through (x, y) points; "" where there is none. `x` and `y` name the axes, with units.
    """
    kept = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    xs = _Axis([at for at, _ in every], _LEFT, WIDTH - _RIGHT)
    ys = _Axis([of for _, of in every], HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(xs, ys, x, y)]
    for (_, points), colour in zip(kept.items(), _colours(len(kept)), strict=True):
        path = " ".join(f"{xs.at(at):.1f},{ys.at(of):.1f}" for at, of in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{xs.at(at):.1f}" cy="{ys.at(of):.1f}" r="3" fill="{colour}"/>' for at, of in points]
    legend = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
                     for name, colour in zip(kept, _colours(len(kept)), strict=True))
    return f'{_svg(HEIGHT, parts)}<p class="legend">{legend}</p>'


def intervals(rows: Mapping[str, tuple[float, float, float]], x: str, clear: Collection[str]) -> str:
    """A line a name: its (mean, low, high), with a rule at 0, in colour where it is one of `clear`, else grey; "" where
    there is none."""
    rows = {name: told for name, told in rows.items() if all(map(math.isfinite, told))}
    if not rows:
        return ""
    step, left = 24, 16 + 6.5 * max(map(len, rows))
    width = max(WIDTH, left + WIDTH / 2)
    height = _TOP + step * len(rows) + _BOTTOM
    xs = _Axis([0.0, *(value for told in rows.values() for value in told)], left, width - _RIGHT)
    parts = [f'<text x="{xs.at(tick):.1f}" y="{height - 18}" text-anchor="middle">{_text(tick)}</text>'
             for tick in xs.ticks]
    parts.append(f'<line x1="{xs.at(0):.1f}" x2="{xs.at(0):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" class="grid"/>')
    parts.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 3}" text-anchor="middle">{escape(x)}</text>')
    for number, (name, (mean, low, high)) in enumerate(rows.items()):
        at, colour = _TOP + step * (number + 0.5), COLOURS[0] if name in clear else COLOURS[-1]
        parts += [f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(name)}</text>',
                  f'<line x1="{xs.at(low):.1f}" x2="{xs.at(high):.1f}" y1="{at}" y2="{at}" stroke="{colour}" '
                  'stroke-width="2"/>', f'<circle cx="{xs.at(mean):.1f}" cy="{at}" r="4" fill="{colour}"/>']
    return _svg(height, parts, width)


def standalone(svg: str) -> str:
    """A chart as a file of its own, on white: no page gives it its style."""
    style = ('<style>text { fill: #333; font: 11px system-ui, sans-serif; } .grid { stroke: #ccc; }</style>'
             '<rect width="100%" height="100%" fill="#fff"/>')
    opened, rest = svg.split(">", 1)
    width = 1.5 * int(re.search(r'viewBox="0 0 (\d+)', opened)[1])  # letters are as large in wide charts as in narrow
    return f'{opened} xmlns="http://www.w3.org/2000/svg" width="{width:.0f}">{style}{rest}\n'


class _Axis:
    """Maps values to pixels between `start` and `end`, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        step = _round_step((high - low) / 4)
        if all(float(value).is_integer() for value in values):  # rounds, clips
            step = max(step, 1.0)
        self.low, self.high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        self.ticks = [self.low + step * number for number in range(round((self.high - self.low) / step) + 1)]
        self._start, self._scale = start, (end - start) / (self.high - self.low)

    def at(self, value: float) -> float:
        return self._start + (value - self.low) * self._scale


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _frame(xs: _Axis, ys: _Axis, x: str, y: str) -> str:
    parts = []
    for tick in ys.ticks:
        at = ys.at(tick)
        parts += [f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>',
                  f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_text(tick)}</text>']
    parts += [f'<text x="{xs.at(tick):.1f}" y="{HEIGHT - 19}" text-anchor="middle">{_text(tick)}</text>'
              for tick in xs.ticks]
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    parts += [f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>',
              f'<text transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y)}</text>']
    return "".join(parts)


def _svg(height: float, parts: Sequence[str], width: float = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img">{"".join(parts)}</svg>'


def _text(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:g}"


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]
