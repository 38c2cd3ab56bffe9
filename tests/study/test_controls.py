"""The controls of a study, on replies as a server accepts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.study.controls import CLIP_NORM, NOISE_MULTIPLIER, NoisyUpdates, ShuffledScores

SIZE, SITES = 20_000, ("site-1", "site-2", "site-3")
HEADER = {p.JOB: "job", p.ROUND: 1, p.NONCE: "aa", p.SPEC: "0" * 64, p.BACKBONE: "1" * 64, p.KEY_ID: ""}


def after_a_round(kind: type[ISFAAggregator], updates: list[np.ndarray], scores: list[float], round: int = 1,
                  counts: tuple[int, ...] = (4, 4, 4), **more: int) -> Any:
    aggregator = kind({"gamma": 4.0, "max_share": 3.0}, {"scheme": "off"}, {"eta": 1.0, "min_sites": 1}, **more)
    header = {**HEADER, p.ROUND: round}
    aggregator.begin_round(header, SITES)
    for site, update, score, count in zip(SITES, updates, scores, counts, strict=False):
        told = {**header, p.VALUES: SIZE, p.IDENTITIES: 1, p.SCORE: score, p.COUNT: count, "client_name": site}
        assert aggregator.accept_model(FLModel(params_type=ParamsType.FULL, params={p.PLAIN: update}, meta=told)) == ""
    aggregator.aggregate_model()
    return aggregator


def test_an_update_is_clipped_and_then_noised() -> None:
    direction = np.full(SIZE, SIZE**-0.5, np.float32)
    theta = after_a_round(NoisyUpdates, [direction * 100], [0.5], seed=1).theta[p.PLAIN].astype(np.float64)
    assert theta @ direction == pytest.approx(CLIP_NORM, abs=6 * NOISE_MULTIPLIER * CLIP_NORM)
    assert (theta - CLIP_NORM * direction).std() == pytest.approx(NOISE_MULTIPLIER * CLIP_NORM, rel=0.05)


def test_a_short_update_is_not_made_longer_and_its_noise_is_the_seeds() -> None:
    short = np.zeros(SIZE, np.float32)
    first, again, second = (after_a_round(NoisyUpdates, [short], [0.5], seed=seed).theta[p.PLAIN] for seed in (1, 1, 2))
    assert np.linalg.norm(first) == pytest.approx(NOISE_MULTIPLIER * CLIP_NORM * np.sqrt(SIZE), rel=0.05)
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_shuffled_scores_weigh_as_much_and_as_often_at_each_site() -> None:
    updates, scores = [np.zeros(SIZE, np.float32)] * 3, [0.25, 0.5, 1.0]
    own = after_a_round(ISFAAggregator, updates, scores).stats
    turns = []
    for seed in range(60):
        moved = after_a_round(ShuffledScores, updates, scores, seed=seed).stats
        weights = [moved[site]["weight"] for site in SITES]
        assert sorted(weights) == pytest.approx(sorted(own[site]["weight"] for site in SITES))
        turns.append(tuple(np.argsort(weights)))
    assert len(set(turns)) == 6  # every way to deal three scores to three sites
    assert all(turns.count(one) >= 2 for one in set(turns))


def test_a_shuffled_score_meets_the_clips_of_the_site_that_it_weighs() -> None:
    updates, scores, counts = [np.zeros(SIZE, np.float32)] * 2, [0.25, 1.0], (2, 6)
    own, turned = (after_a_round(ISFAAggregator, updates, dealt, counts=counts).stats["site-1"]["weight"]
                   for dealt in (scores, scores[::-1]))
    dealt = [after_a_round(ShuffledScores, updates, scores, counts=counts, seed=seed).stats for seed in range(20)]
    moved = {round(stats["site-1"]["weight"], 9) for stats in dealt}
    assert own != pytest.approx(turned) and sorted(moved) == pytest.approx(sorted([own, turned]))
