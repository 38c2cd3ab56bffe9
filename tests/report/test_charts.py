"""Charts: valid XML, every point where it belongs."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from privfedtalk_flare.report.charts import HEIGHT, WIDTH, intervals, lines, standalone

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{svg}</div>")


def test_a_line_goes_through_its_points() -> None:
    chart = parsed(lines({"site-1": [(1, 0.5), (2, 1.0), (3, 0.0)], "a <b> & c": [(1, 0.25)]}, "round", "score"))
    points = [tuple(map(float, pair.split(","))) for pair in chart.find(".//polyline").get("points").split()]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and y2 < y1 < y3
    assert y1 == pytest.approx((y2 + y3) / 2, abs=0.2)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert [span.text or span[0].tail for span in chart.findall(".//span")] == ["site-1", "a <b> & c"]
    ticks = {text.text for text in chart.findall(".//text")}
    assert {"0", "0.5", "1", "2", "3", "round", "score"} <= ticks and "1.5" not in ticks


def test_a_value_that_never_changes_has_an_axis_all_the_same() -> None:
    assert parsed(lines({"flat": [(1, 7.0), (2, 7.0)]}, "round", "x")).find(".//polyline") is not None
    assert parsed(lines({"nought": [(1, 0.0)]}, "round", "x")).find(".//circle") is not None


def test_no_tick_is_another_number_than_its_line() -> None:
    chart = parsed(lines({"bytes": [(1, 3651924.0), (2, 3652863.0)]}, "round", "bytes"))
    ticks = {text.text for text in chart.findall(".//text")} - {"round", "bytes", "1", "2"}
    assert len(ticks) > 2 and all(3.65e6 <= float(tick) <= 3.6531e6 for tick in ticks)


def test_what_is_not_finite_is_left_out_and_nothing_is_no_chart() -> None:
    assert len(parsed(lines({"a": [(1, math.nan), (2, 1.0)]}, "x", "y")).findall(".//circle")) == 1
    assert lines({"a": [(1, math.inf)]}, "x", "y") == lines({}, "x", "y") == intervals({}, "x", []) == ""


def test_a_chart_is_as_wide_as_its_longest_name_needs() -> None:
    name = "fedavg - local thrice at " + ", ".join(f"site-{number}" for number in range(1, 9))
    chart = parsed(intervals({name: (1.0, 0.5, 1.5)}, "dB", []))
    (label,) = [text for text in chart.iter("text") if text.text == name]
    assert float(label.get("x")) >= 6 * len(name)  # pixels of its letters, which end there
    width = float(chart.find("svg").get("viewBox").split()[2])
    assert max(float(circle.get("cx")) for circle in chart.iter("circle")) < width
    alone = ElementTree.fromstring(standalone(intervals({name: (1.0, 0.5, 1.5)}, "dB", [])))
    assert float(alone.get("width")) == 1.5 * width


def test_an_interval_that_is_clear_looks_otherwise_than_one_that_is_not() -> None:
    chart = parsed(intervals({"clear": (1.0, 0.5, 1.5), "open": (0.1, -0.4, 0.6)}, "dB", ["clear"]))
    clear, open_ = chart.findall(".//circle")
    zero = float(chart.find(".//line[@class='grid']").get("x1"))
    assert float(clear.get("cx")) > float(open_.get("cx")) > zero and clear.get("fill") != open_.get("fill")
