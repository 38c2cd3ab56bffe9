"""What runs say: means, paired differences, intervals, tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privfedtalk_flare.study import provenance
from privfedtalk_flare.study.plan import Comparison, parse_study
from privfedtalk_flare.study.results import Results, estimate
from privfedtalk_flare.study.tables import as_latex, as_markdown, differences, means, rounds
from privfedtalk_flare.study.told import as_text

STUDY = parse_study({
    "name": "small", "question": "Which?", "seeds": [1, 2], "corpus": {"sites": 2, "people": 2},
    "job": {"privacy": {"mechanism": "off"}},
    "variants": {"one": {}, "two": {}, "all": {"method": "pooled"},
                 "bad": {"corpus": {"damage": "noise", "damaged": 1}}},
    "compare": [["one", "two"], ["one", "all"], ["one", "two", ["site-2"]], ["one", "bad"],
                ["two", "backbone"]]}, "study.yaml")


def result(variant: str, seed: int, psnr: dict[str, dict[str, float | None]]) -> dict:
    return {"variant": variant, "seed": seed, "day": "2026-01-03", "seconds": 60.0, "summary": None, "made_from": {},
            "made_by": {"code": "0a1b", "torch": "2"}, "people": {
        site: {person: {"shared": {"psnr_mask": value}, "backbone": {"psnr_mask": 8.0},
                        "ground_truth": {"psnr_mask": 100.0}}
               for person, value in people.items()} for site, people in psnr.items()}}


RESULTS = Results(STUDY, [
    result("one", 1, {"site-1": {"a": 20.0, "b": 22.0}, "site-2": {"c": 30.0, "d": None}}),
    result("two", 1, {"site-1": {"a": 19.0, "b": 21.5}, "site-2": {"c": 28.0, "d": 9.0}}),
    result("one", 2, {"site-1": {"a": 21.0}}), result("two", 2, {"site-1": {"a": 20.0}}),
    result("all", 1, {"pooled": {"a": 21.0, "b": 22.0, "c": 31.0}}),
    result("bad", 1, {"site-1": {"a": 18.0, "b": 18.0}, "site-2": {"c": 1.0}})])


def test_an_interval_is_students_over_runs_and_over_people_where_there_is_one() -> None:
    values = {(1, "a"): 1.0, (1, "b"): 4.0, (2, "a"): 2.0, (2, "b"): math.nan, (3, "a"): 3.0}
    found = estimate(values)
    low, high = stats.t.interval(0.95, 2, loc=2.5, scale=stats.sem([2.5, 2.0, 3.0]))
    assert (found.mean, found.people, found.by_seed) == (pytest.approx(2.5), 4, {1: 2.5, 2: 2.0, 3: 3.0})
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    alone = estimate({(1, "a"): 1.0, (1, "b"): 4.0, (1, "c"): 2.0})
    assert (alone.low, alone.high) == pytest.approx(stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1, 4, 2])))
    assert estimate({}) is None and math.isnan(estimate({(1, "a"): 3.0}).low)


def test_an_interval_holds_the_truth_as_often_as_it_says_where_people_of_a_run_share_its_fate() -> None:
    rng = np.random.default_rng(0)
    trials, held = 400, 0
    for _ in range(trials):
        values = {(seed, str(n)): fate + rng.normal() for seed in (1, 2, 3) for fate in [0.5 * rng.normal()]
                  for n in range(16)}
        found = estimate(values)
        held += found.low < 0 < found.high
    assert held / trials == pytest.approx(0.95, abs=0.035)


def test_it_is_settled_when_the_interval_of_several_runs_leaves_out_nothing() -> None:
    rng = np.random.default_rng(0)
    clear = {(seed, str(n)): 1 + 0.1 * rng.normal() for seed in (1, 2, 3) for n in range(4)}
    assert estimate(clear).settled
    assert not estimate({at: value - (2.0 if at[0] == 3 else 0) for at, value in clear.items()}).settled
    once = estimate({at: value for at, value in clear.items() if at[0] == 1})
    assert once.low > 0.5 and not once.settled


def test_differences_are_paired_by_person_and_seed() -> None:
    found = RESULTS.compared(Comparison("one", "two"), "psnr_mask")
    assert found.people == 4 and found.mean == pytest.approx(((1 + 0.5 + 2) / 3 + 1) / 2)
    assert RESULTS.compared(Comparison("one", "two", ("site-2",)), "psnr_mask").people == 1
    assert RESULTS.compared(Comparison("one", "two"), "ssim") is None


def test_one_trainers_people_are_found_at_their_sites() -> None:
    assert RESULTS.values("all", "psnr_mask", sites=["site-1"]) == {(1, "a"): 21.0, (1, "b"): 22.0}
    assert RESULTS.compared(Comparison("one", "all"), "psnr_mask").mean == pytest.approx((-1 + 0 - 1) / 3)


def test_a_variant_is_compared_with_its_own_backbone() -> None:
    found = RESULTS.compared(Comparison("two", "backbone", ("site-2",)), "psnr_mask")
    assert found.people == 2 and found.mean == pytest.approx((20 + 1) / 2)


def test_a_comparison_may_be_in_another_row_than_the_studys() -> None:
    runs = [result(name, 1, {"site-1": {"a": 20.0}}) for name in ("one", "two")]
    for run, value in zip(runs, (24.0, 23.0), strict=True):
        run["people"]["site-1"]["a"]["personalized"] = {"psnr_mask": value}
    found = Results(STUDY, runs)
    assert found.compared(Comparison("one", "two"), "psnr_mask").mean == 0.0
    assert found.compared(Comparison("one", "two", row="personalized"), "psnr_mask").mean == 1.0
    assert found.compared(Comparison("two", "backbone", row="personalized"), "psnr_mask").mean == 15.0


def test_a_person_measured_on_two_clips_is_no_pair() -> None:
    runs = [result(name, 1, {"site-1": {"a": 20.0}}) for name in ("one", "two")]
    for run, value in zip(runs, (21.0, 21.0004), strict=True):
        run["people"]["site-1"]["a"]["copy_reference"] = {"psnr_mask": value}
    assert Results(STUDY, runs).compared(Comparison("one", "two"), "psnr_mask").mean == 0.0
    runs[1]["people"]["site-1"]["a"]["copy_reference"]["psnr_mask"] = 22.5
    with pytest.raises(ValueError, match="one - two, seed 1: a person was measured on other clips in one than"):
        Results(STUDY, runs).compared(Comparison("one", "two"), "psnr_mask")


def test_a_difference_between_runs_of_other_code_says_so_and_is_never_settled() -> None:
    runs = [result(name, seed, {"site-1": {"a": value + 0.01 * seed}}) for name, value in (("one", 21.0), ("two", 20.0))
            for seed in (1, 2)]
    assert differences(Results(STUDY, runs))[1][0][:2] == ["one - two", "**+1.00 [+1.00, +1.00]**"]
    runs[0]["made_by"] = {"code": "ffff", "torch": "2"}
    assert differences(Results(STUDY, runs))[1][0][:2] == ["one - two (other makers)", "+1.00 [+1.00, +1.00]"]
    assert differences(Results(STUDY, runs))[1][1][0] == "two - backbone"


def test_runs_of_code_that_decides_the_same_numbers_are_compared_and_keep_their_own_digest() -> None:
    runs = [result(name, seed, {"site-1": {"a": value + 0.01 * seed}}) for name, value in (("one", 21.0), ("two", 20.0))
            for seed in (1, 2)]
    for run, code in zip(runs, [*provenance.SAME_NUMBERS, "0a1b"], strict=False):
        run["made_by"] = {"code": code, "torch": "2"}
    found = Results(STUDY, runs)
    assert differences(found)[1][0][:2] == ["one - two", "**+1.00 [+1.00, +1.00]**"]
    (maker,) = found.makers
    assert all(run["made_by"]["code"] in maker for run in runs) and "study/provenance.py" in maker


def test_where_noise_drowns_the_estimate_the_snr_is_a_bound() -> None:
    def snr_of(*estimates: float) -> str:
        run = result("one", 1, {"site-1": {"a": 20.0}})
        run["summary"] = {"values": 10_000, "rounds": [{"snr": one, "epsilon": {"receivers": 8.0}}
                                                       for one in estimates]}
        (line,) = [line for line in means(Results(STUDY, [run]))[1] if line[0] == "one"]
        return line[-2]

    assert snr_of(0.0, 0.08) == "< 0.18" and snr_of(0.3, 0.4) == "0.35"


def test_damaged_sites_weights_are_told_apart() -> None:
    run = result("bad", 1, {"site-1": {"a": 18.0}, "site-2": {"c": 1.0}})
    sites = {site: {"weight": weight, "score": score, "bytes_up": 2e6, "bytes_down": 1e6}
             for site, weight, score in (("site-1", 0.9, 0.75), ("site-2", 0.1, 0.25))}
    run["summary"] = {"rounds": [{"sites": sites, "epsilon": {}, "seconds": {"wall": 3.0, "aggregate": 0.5}}]}
    head, (line,) = rounds(Results(STUDY, [run]))
    told = dict(zip(head, line, strict=True))
    assert (told["weight"], told["weight, damaged"]) == ("0.900", "0.100")  # site-2 is damaged
    assert (told["score"], told["score, damaged"]) == ("0.750", "0.250")


def test_damaged_sites_are_left_out_of_a_comparison() -> None:
    head, lines = differences(RESULTS)
    assert [line[0] for line in lines] == ["one - two", "one - all", "one - two at site-2", "one - bad",
                                         "two - backbone"]
    assert [line[-2:] for line in lines] == [["4", "2"], ["3", "1"], ["1", "1"], ["2", "1"], ["5", "2"]]
    assert lines[0][1] == "+1.08 [+0.02, +2.14]".join(("**", "**")) and head[-2:] == ["people", "runs"]
    (bad,) = [line for line in means(RESULTS)[1] if line[0] == "bad"]
    assert bad[1].startswith("18.00")


def test_a_difference_too_small_for_the_tables_digits_is_told_in_powers_of_ten() -> None:
    near = Results(STUDY, [result("one", 1, {"site-1": {"a": 20.0003, "b": 20.0001}}),
                           result("two", 1, {"site-1": {"a": 20.0, "b": 20.0}})])
    assert differences(near)[1][0][1] == "+2e-04 [-1e-03, +1e-03]"
    same = Results(STUDY, [result(name, 1, {"site-1": {"a": 20.0, "b": 21.0}}) for name in ("one", "two")])
    assert differences(same)[1][0][1] == "+0.00 [+0.00, +0.00]"


def test_tables_are_markdown_and_latex() -> None:
    table = means(RESULTS)
    lines = as_markdown(table).splitlines()
    assert lines[0] == "|  | PSNR mask dB up | people | runs | a run |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| *ground_truth* | 100.00 |")
    (one,) = [line for line in lines if line.startswith("| one | 22.50")]
    assert one.split(" | ")[2:4] == [str(RESULTS.mean("one", "psnr_mask").people), "2"]
    latex = as_latex(table)
    assert latex.startswith(r"\begin{tabular}{lrrrr}") and r"\emph{ground\_truth}" in latex and r"$\pm$" in latex
    assert as_latex((["a", "SNR"], [["b", "< 0.1"]])).splitlines()[3] == r"b & $<$ 0.1 \\"
    assert as_latex(differences(RESULTS)).count(r"\textbf{") == 2
    told = as_text(RESULTS)
    assert told.startswith("## small\n\nWhich?") and "6 of 8 runs" in told


def test_a_variant_with_noise_shows_what_it_promises() -> None:
    def noised(run: dict, epsilon: float | str) -> dict:
        rounds = [{"snr": 0.3, "epsilon": {"receivers": 5.0}}, {"snr": 0.218, "epsilon": {"receivers": epsilon}}]
        return {**run, "summary": {"rounds": rounds, "values": 90_112}}

    quiet = result("two", 1, {"site-1": {"a": 19.0}})
    quiet["summary"] = {"rounds": [{"snr": None, "epsilon": {"receivers": None}}]}
    head, lines = means(Results(STUDY, [noised(result("one", 1, {"site-1": {"a": 20.0}}), 63.8935), quiet]))
    told = {line[0]: line[-3:-1] for line in lines}
    assert head[-3:-1] == ["epsilon", "SNR up"]
    assert told["one"] == ["63.89", "0.26"] and told["two"] == ["-", "-"] and told["*backbone*"] == ["", ""]
    head, _ = means(Results(STUDY, [quiet]))
    assert "epsilon" not in head


def test_a_study_of_which_nothing_ran_yet_says_so() -> None:
    assert "0 of 8 runs" in as_text(Results(STUDY, []))
