"""Averages of plain weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedtalk_flare.federation.averaging import AveragingError, check_weights, weighted_average


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(1, 50)), min_size=1, max_size=6))
def test_the_average_is_numpys(parts: list[tuple[float, int]]) -> None:
    weights = {f"s{i}": {"w": np.array([value, -value], np.float32)} for i, (value, _) in enumerate(parts)}
    counts = {f"s{i}": count for i, (_, count) in enumerate(parts)}
    mean = np.average([value for value, _ in parts], weights=[count for _, count in parts])
    np.testing.assert_allclose(weighted_average(weights, counts)["w"], [mean, -mean], rtol=1e-5, atol=1e-3)


def test_types_are_kept_and_integers_rounded() -> None:
    weights = {"a": {"n": np.array([1]), "h": np.ones(1, np.float16)},
               "b": {"n": np.array([4]), "h": np.zeros(1, np.float16)}}
    mean = weighted_average(weights, {"a": 1, "b": 1})
    assert mean["n"].dtype == np.int64 and mean["n"] == 2
    assert mean["h"].dtype == np.float16 and mean["h"] == 0.5


@pytest.mark.parametrize(("weights", "count", "said"), [
    ({}, 1, "no weights"), ({"w": np.ones(2)}, 0, "at least 1"), ({"w": np.ones(2)}, True, "at least 1"),
    ({"w": np.ones(3)}, 1, r"shape \(3,\)"), ({"v": np.ones(2)}, 1, "other tensors"),
    ({"w": np.array([1, np.nan])}, 1, "not finite"), ({"w": np.array(["x", "y"])}, 1, "not an array of numbers")])
def test_what_cannot_be_averaged_is_refused_naming_the_site(weights: dict, count: int, said: str) -> None:
    with pytest.raises(AveragingError, match=f"site-9: .*{said}"):
        check_weights(weights, count, {"w": np.ones(2)}, "site-9")


def test_nothing_to_average() -> None:
    with pytest.raises(AveragingError, match="nothing"):
        weighted_average({}, {})
