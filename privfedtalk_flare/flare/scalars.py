"""The scalars of a reply and their ranges: what a site lets out, and what the server takes from one that may lie."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping

from privfedtalk_flare.evaluation.summary import SPREAD_FROM
from privfedtalk_flare.federation.isfa import ScalarError, check_scalars
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.privacy.accountant import UNBOUNDED, VIEWS
from privfedtalk_flare.privacy.adaptive import DIGITS, HALF
from privfedtalk_flare.settings import COMPONENTS

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
METRIC = re.compile(r"[a-z][a-z0-9_]{0,39}")
TENSOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,299}")
_PATH = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_HEX = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
MOST = 1_000_000_000
"""The largest count of anything."""


def number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite number in [low, high]."""
    return (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
            and low <= value <= high)


def whole(value: object, low: int = 0) -> bool:
    """Whether `value` is an integer in [low, MOST]."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= MOST


def text(pattern: re.Pattern[str], empty: bool = False) -> Callable[[object], bool]:
    """A check for a string that matches `pattern` whole, or may be empty."""
    return lambda value: isinstance(value, str) and ((empty and not value) or pattern.fullmatch(value) is not None)


def statistic(value: object, least: int = 1) -> bool:
    """Whether `value` is {"mean", "std", "n"} over at least `least` people, with no `std` of fewer than three."""
    return (isinstance(value, dict) and set(value) == {"mean", "std", "n"} and number(value["mean"])
            and whole(value["n"], least)
            and (value["std"] is None or (value["n"] >= SPREAD_FROM and number(value["std"], 0))))


def metrics(value: object) -> bool:
    """Whether `value` is {metric: finite number}."""
    return isinstance(value, dict) and all(text(METRIC)(name) and number(one) for name, one in value.items())


def _score(value: object) -> bool:
    try:
        check_scalars(value, 1, max_clips=1)
    except ScalarError:
        return False
    return True


def _names(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 1000 and all(text(_PATH)(name) for name in value)


def _busy(value: object) -> bool:
    """Few, whole, and one after the other: what cannot be a site's working hours cannot pass as them."""
    if not (isinstance(value, list) and len(value) <= 100 and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2
            and all(number(t, 0, 1e11) and isinstance(t, int) for t in pair) for pair in value)):
        return False
    times = [t for pair in value for t in pair]
    return times == sorted(times)


def clip_bit(value: object) -> bool:
    """Whether `value` is a noised mean of clip bits, as adaptive.release_bit rounds it."""
    return number(value, -HALF, HALF) and float(value) == round(float(value), DIGITS)


def _snr(value: object) -> bool:
    """At most three significant digits: it comes from decrypted values, and may say no more of them."""
    return number(value, 0) and float(value) == float(f"{value:.3g}")


def _epsilon(value: object) -> bool:
    return isinstance(value, dict) and set(value) <= set(VIEWS) and all(
        e == UNBOUNDED if isinstance(e, str) else number(e, 0) for e in value.values())


def _ledger(value: object) -> bool:
    return (isinstance(value, dict) and set(value) == {"id", "count", "head"} and text(_ID)(value["id"])
            and whole(value["count"]) and text(_HEX)(value["head"]))


SCALARS: Mapping[str, Callable[[object], bool]] = {
    p.JOB: text(WORD), p.ROUND: whole, p.NONCE: text(WORD), p.SPEC: text(_HEX, empty=True),
    p.BACKBONE: text(WORD, empty=True), p.KEY_ID: text(_HEX, empty=True), p.VALUES: lambda v: whole(v, 1),
    p.CLIP_BIT: clip_bit, p.BUSY: _busy, p.SNR: _snr, p.SCORE: _score, p.COUNT: lambda v: whole(v, 1),
    p.IDENTITIES: lambda v: whole(v, 1), p.EPSILON: _epsilon, p.LEDGER: _ledger, p.ADAPTERS: _names, p.VIDEOS: _names,
    p.PHASE: lambda v: isinstance(v, str) and v in COMPONENTS, p.LOSS: number}
"""Every scalar that may leave a site, and the check of its type and range."""

_USED = (p.EPSILON, p.SNR, p.LEDGER, p.ADAPTERS, p.VIDEOS)
"""What the server's controller takes from a reply; score, count and identities are the aggregator's to judge."""


def misshapen(told: Mapping[str, object]) -> str:
    """The first of our own entries of a reply's meta `told` that is not made of words, numbers, lists and mappings, ""
    where all are. FLARE carries arrays and objects too, which answer a comparison with anything."""
    for key in (*SCALARS, p.STATUS):
        if not _plain(told.get(key)):
            return f"{key} is of type {type(told[key]).__name__} or holds one that may not travel"
    return ""


def _plain(value: object, depth: int = 4) -> bool:
    if value is None or isinstance(value, (bool, int, float, str)):
        return True
    if depth and isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item, depth - 1) for key, item in value.items())
    return bool(depth) and isinstance(value, (list, tuple)) and all(_plain(item, depth - 1) for item in value)


def fault_of(told: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """Why the reply with meta `told` to the task with meta `asked` does not count, "" where it does.

    It must echo the header ("" in it stands for what only sites can know), and what the controller uses must be in its
    range: an egress filter guards honest sites only.
    """
    if reason := misshapen(told):
        return reason
    for key in p.HEADER:
        if asked[key] != "" and told.get(key) != asked[key]:
            return f"{key} is {str(told.get(key))[:80]!r}, not {asked[key]!r}"
    for key in _USED:
        if key in told and not SCALARS[key](told[key]):
            return f"{key} {str(told[key])[:80]!r} has a wrong type or range"
    return ""
