import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedtalk_flare.evaluation.summary import (
    METRICS,
    ROWS,
    Round,
    Summary,
    SummaryError,
    load_summary,
    overhead_share,
    pool_rows,
    save_summary,
    site_rows,
)
from privfedtalk_flare.evaluation.table import render

VALUE = {"mean": 0.5, "std": 0.25, "n": 4}


def example(**changes):
    sites = {"site-1": {"weight": 0.6, "score": 0.875, "count": 8, "bytes_up": 3_700_000, "bytes_down": 2_000_000},
             "site-2": {"weight": 0.4, "score": 0.8125, "count": 8, "bytes_up": 3_700_000, "bytes_down": 2_000_000}}
    words = "epsilon 4.98 for 4 people: a demonstration. Scores lie outside this promise."
    rounds = [Round(number, {"receivers": 4.98 + number, "server": 0.0, "server_and_site": 4.98 + number}, 1e-5, 0.012,
                    {"wall": 41.5, "aggregate": 0.11}, sites, words)
              for number in (1, 2)]
    made = Summary({row: {name: dict(VALUE) for name in METRICS} for row in ROWS}, rounds, 90_112, 40.6, 321.0, 0.25,
                   ["site-1:videos/a.mp4"], ["site-1:b"], {"sigma": 4.0, "C": 0.1, "eta": 1.0, "release": "coarse"},
                   ["site-2 refused: late"])
    return dataclasses.replace(made, **changes)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=6), min_size=1, max_size=5))
def test_pooling_equals_the_statistics_of_one_list(sites):
    pooled = pool_rows([site_rows({"shared": {"psnr": values}}) for values in sites])["shared"]["psnr"]
    everyone = np.concatenate([np.asarray(values, np.float64) for values in sites])
    assert pooled["n"] == len(everyone)
    assert pooled["mean"] == pytest.approx(everyone.mean(), abs=1e-9)
    assert pooled["std"] == pytest.approx(everyone.std(ddof=1), abs=1e-6)


def test_two_people_of_a_site_cannot_be_told_apart_and_pooling_still_estimates_their_spread():
    assert site_rows({"shared": {"sync": [0.25, 0.75]}}) == site_rows({"shared": {"sync": [0.5, 0.5]}})
    people = np.random.default_rng(3).normal(5.0, 2.0, (4000, 2))
    pooled = pool_rows([site_rows({"shared": {"psnr": list(pair)}}) for pair in people])["shared"]["psnr"]
    assert pooled["n"] == 8000
    assert (pooled["mean"], pooled["std"]) == (pytest.approx(5.0, abs=0.1), pytest.approx(2.0, abs=0.1))
    alone = pool_rows([site_rows({"shared": {"psnr": [1.0, 3.0]}})])["shared"]["psnr"]
    assert alone == {"mean": 2.0, "std": None, "n": 2}


def test_rows_come_out_in_the_order_of_the_issue():
    site = {row: {"sync": VALUE, "psnr": VALUE} for row in reversed(ROWS)}
    pooled = pool_rows([site])
    assert tuple(pooled) == ROWS == ("ground_truth", "copy_reference", "backbone", "shared", "personalized")
    assert list(pooled["shared"]) == ["psnr", "sync"]


def test_undefined_values_do_not_count_and_nobody_is_shown_alone():
    nan, inf = float("nan"), float("inf")
    rows = site_rows({"shared": {"sync": [0.5, nan, 0.7], "flicker": [1.0, nan, inf]}}, least=2)
    assert rows == {"shared": {"sync": {"mean": pytest.approx(0.6), "std": None, "n": 2}}}


@pytest.mark.parametrize("bad", [{"mean": float("nan"), "std": 0.0, "n": 1}, {"mean": 0.0, "std": -1.0, "n": 2},
                                 {"mean": 0.0, "std": 0.0, "n": 0}, {"mean": 0.0, "std": 0.0, "n": 1.5}, {"mean": 1.0},
                                 {"mean": 10**400, "std": 0.0, "n": 2}, {"mean": 0.0, "std": 1e300, "n": 2}])
def test_a_site_cannot_send_what_is_no_statistic(bad):
    with pytest.raises(SummaryError, match="shared/sync: not a statistic"):
        pool_rows([{"shared": {"sync": bad}}])


def test_unknown_rows_name_the_choices():
    with pytest.raises(SummaryError, match=r"unknown metric best/sync; the choices are ground_truth, .*motion_ratio"):
        pool_rows([{"best": {"sync": VALUE}}])


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted), max_size=8))
def test_overhead_is_what_no_interval_covers(intervals):
    seconds = {t for start, end in intervals for t in range(start, end)}
    assert overhead_share([tuple(i) for i in intervals], 100) == pytest.approx(1 - len(seconds) / 100)


def test_an_interval_must_run_forwards():
    with pytest.raises(SummaryError, match="end no earlier than it starts"):
        overhead_share([(3.0, 2.0)], 10)


def test_saved_summaries_load_again_from_every_place(tmp_path):
    for place in ("sim/server/simulate_job", "job/workspace", "poc/privfedtalk/prod_00/localhost/4f2a", "run"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        path = save_summary(example(), folder / "summary.json")
        assert load_summary(tmp_path / place.split("/")[0]) == load_summary(path) == example()
        assert [p.name for p in folder.iterdir()] == ["summary.json"]


def test_a_failed_write_keeps_the_old_summary(tmp_path):
    path = save_summary(example(), tmp_path / "summary.json")
    with pytest.raises(ValueError, match="Out of range float"):
        save_summary(example(wall_seconds=float("nan")), path)
    assert load_summary(path) == example()


def test_errors_name_the_place_and_what_to_do(tmp_path):
    with pytest.raises(SummaryError, match=r"nowhere: no such folder or file; give a FLARE workspace"):
        load_summary(tmp_path / "nowhere")
    with pytest.raises(SummaryError, match=r"no summary.json here"):
        load_summary(tmp_path)
    path = tmp_path / "summary.json"
    path.write_text('{"rows": ')
    with pytest.raises(SummaryError, match=r"summary.json: not readable as JSON"):
        load_summary(path)
    content = example().to_json()
    path.write_text(json.dumps({**{k: v for k, v in content.items() if k != "rounds"}, "colour": 1}))
    with pytest.raises(SummaryError, match="missing: rounds; unknown: colour"):
        load_summary(path)
    path.write_text(json.dumps({**content, "rows": {"best": {}}}))
    with pytest.raises(SummaryError, match="unknown row 'best'; the choices are ground_truth"):
        load_summary(path)


@pytest.mark.parametrize("bad", [
    {"rows": []}, {"rows": {"shared": [1]}}, {"rows": {"shared": {"psnr": {"mean": "x", "std": None, "n": 2}}}},
    {"settings": []}, {"rounds": {}}, {"wall_seconds": "x"}, {"notes": None}, {"rounds": [{
        "round": 1, "epsilon": {}, "delta": None, "snr": None, "seconds": {}, "sites": {"site-1": 3}}]}])
def test_a_summary_of_another_shape_is_refused_by_its_file(bad, tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({**example().to_json(), **bad}))
    with pytest.raises(SummaryError, match=r"summary\.json"):
        load_summary(path)


def test_several_runs_are_named(tmp_path):
    for job in ("a", "b"):
        (tmp_path / "server" / job).mkdir(parents=True)
        save_summary(example(), tmp_path / "server" / job / "summary.json")
    with pytest.raises(SummaryError, match=r"several runs; the choices are .*server/a.*server/b"):
        load_summary(tmp_path)


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_shows_everything_once(width):
    text = render(example(), width)
    assert text.count("Held-out clips") == text.count("Rounds of the shared adapter") == 1
    assert all(sum(line.split()[:1] == [row] for line in text.splitlines()) == 1 for row in ROWS)
    assert "0.500" in text and "0.250" in text and "6.98" in text and "0.875" in text
    assert "<0.10" in text and "0.012" not in text  # an SNR that chance alone makes
    flowing = " ".join(text.split())
    assert "outside this promise" in flowing and "a demonstration." in flowing
    assert "sigma 4.0" in flowing and "40.6 bytes a value" in flowing
    assert "site-1:videos/a.mp4" in text and "late" in text
    assert "…" not in text and max(map(len, text.splitlines())) <= width


def test_a_sealed_or_unprotected_run_shows_no_made_up_number():
    sealed = Round(1, {"receivers": "unbounded", "server": None, "server_and_site": "unbounded"}, None, None, {},
                   {"site-1": {"bytes_up": 1, "bytes_down": 1}})
    text = render(example(rounds=[sealed], bytes_per_value=None, values=None))
    assert "unbounded, in that view no epsilon" in text and "public metadata" not in text
    open_run = dataclasses.replace(sealed, epsilon=dict.fromkeys(("receivers", "server", "server_and_site")))
    assert "No differential privacy" in render(example(rounds=[open_run]))


def test_a_metric_that_fewer_people_have_says_so():
    rows = {"shared": {"sync": VALUE, "flicker": {**VALUE, "n": 3}}}
    text = render(example(rows=rows, rounds=[]))
    assert "n=3" in text and "n=4" not in text and "over 4 people" in text and "Rounds of" not in text
