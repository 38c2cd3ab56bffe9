import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from privfedtalk_flare.privacy.gaussian import AccountError, epsilon_of, noise_multiplier_for
from privfedtalk_flare.privacy.plan_plot import curves, plot
from privfedtalk_flare.privacy.plan_table import render
from privfedtalk_flare.privacy.planner import (
    MOST_ROUNDS,
    Study,
    make_plan,
    needed_noise,
    shrinkage,
    snr_of_round,
)
from privfedtalk_flare.privacy.sampled import sampled_epsilon
from privfedtalk_flare.settings import SettingsError

STUDY = Study(identities=3532, rounds=100)
SEALED = dataclasses.replace(STUDY, mode="sealed", gamma=2.0)
SAMPLED = dataclasses.replace(STUDY, mode="uniform", sampling=0.01, accountant="rdp")


def test_golden_plan():
    """mu(8, 1e-5) = 1.66617, so sigma = 10 / 1.66617 = 6.0018; SNR = 3532 / (6.003 sqrt(4 * 90112)) = .97998."""
    plan = make_plan(STUDY)
    assert plan.noise_multiplier == 6.003 and plan.epsilon == pytest.approx(7.9989, abs=1e-4)
    (outlook,) = plan.outlooks
    assert outlook.score is None and outlook.shrinkage == 1
    assert outlook.snr == pytest.approx(3532 / (6.003 * math.sqrt(4 * 90_112)))
    assert outlook.snr_of_all == pytest.approx(10 * outlook.snr)
    assert (outlook.people, outlook.values, outlook.rounds) == (3605, 86_545, 96)


def test_golden_plan_of_a_sample():
    """By PRV; dp-accounting's PLD finds epsilon 7.96 at this sigma."""
    plan = make_plan(dataclasses.replace(SEALED, sampling=0.01))
    assert plan.noise_multiplier == pytest.approx(0.4653, rel=2e-3) and 7.95 < plan.epsilon <= 8
    assert plan.people_a_round == pytest.approx(35.32)
    assert plan.outlooks[1].snr == pytest.approx(
        math.exp(-0.4) * 35.32 / (plan.noise_multiplier * math.sqrt(4 * 90_112)))
    assert "Opacus' PRV" in plan.words[0]


@given(st.floats(0.1, 30), st.integers(1, 500), st.floats(1e-8, 1e-3))
@settings(max_examples=30)
def test_the_noise_is_enough_and_hardly_more(epsilon, rounds, delta):
    study = Study(identities=10, rounds=rounds, epsilon=epsilon, delta=delta)
    sigma = needed_noise(study)
    assert sigma == float(f"{sigma:.4g}"), "four digits"
    assert epsilon_of(math.sqrt(rounds) / sigma, delta) <= epsilon * (1 + 1e-9)
    assert sigma <= noise_multiplier_for(epsilon, delta, rounds) * 1.001


@given(st.floats(0.5, 20), st.integers(1, 300), st.floats(0.002, 0.9))
@settings(max_examples=6)
def test_the_noise_of_a_sample_is_enough_and_hardly_more(epsilon, rounds, rate):
    study = Study(identities=10, rounds=rounds, epsilon=epsilon, mode="uniform", sampling=rate, accountant="rdp")
    sigma = needed_noise(study)
    assert sampled_epsilon(sigma, rate, rounds, study.delta, "rdp") <= epsilon
    assert sampled_epsilon(sigma / 1.004, rate, rounds, study.delta, "rdp") > epsilon
    assert sigma <= needed_noise(dataclasses.replace(study, sampling=1.0)), "a sample needs no more"


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_snr_is_what_sites_would_measure_if_all_people_pulled_one_way(rate):
    """As a site draws them: people weigh v_i = 1/(q m), noise is sigma C/(q m) on a coordinate, K sites averaged."""
    rng = np.random.default_rng(5)
    sites, m, size, sigma, clip, draws = 3, 8, 400, 1.7, 0.004, 2000
    direction = rng.normal(size=size)
    direction *= clip / np.linalg.norm(direction)
    people = rng.binomial(m, rate, (draws, sites))
    signal = (people[:, :, None] * direction / (rate * m)).mean(1)
    noise = rng.normal(0, sigma * clip / (rate * m), (200, sites, size)).mean(1)
    measured = np.linalg.norm(signal, axis=1).mean() / np.linalg.norm(noise, axis=1).mean()
    study = Study(identities=sites * m, rounds=1, sampling=rate, mode="uniform", values=size, sites=sites)
    assert measured == pytest.approx(snr_of_round(study, sigma), rel=0.02)
    assert snr_of_round(study, sigma) == pytest.approx(rate * 24 / (1.7 * math.sqrt(3 * 400)))


def test_sealed_shrinks_step_and_signal():
    assert shrinkage(0.5, 2.0) == pytest.approx(math.exp(-1.0)) and shrinkage(0.8, 2.0) == pytest.approx(math.exp(-0.4))
    assert shrinkage(0.3, 0.0) == shrinkage(1.0, 5.0) == 1
    assert shrinkage(0.8, 2.0, 0.25) == pytest.approx(0.25 * math.exp(-0.4))
    open_, sealed = make_plan(STUDY), make_plan(SEALED)
    assert sealed.noise_multiplier == open_.noise_multiplier, "the score costs no budget"
    for outlook, score in zip(sealed.outlooks, (0.5, 0.8), strict=True):
        left = math.exp(2 * (score - 1))
        assert outlook.score == score and outlook.shrinkage == pytest.approx(left)
        assert outlook.snr == pytest.approx(left * open_.outlooks[0].snr)
        assert outlook.people == pytest.approx(open_.outlooks[0].people / left, rel=1e-3)
        assert outlook.values == pytest.approx(open_.outlooks[0].values * left ** 2, rel=1e-3)


@pytest.mark.parametrize("study", [STUDY, SEALED, dataclasses.replace(STUDY, identities=20_000, mode="uniform"),
                                   dataclasses.replace(SAMPLED, sampling=0.3)])
def test_what_would_help_does_help_and_no_less_does(study):
    sigma = make_plan(study).noise_multiplier
    for outlook in make_plan(study).outlooks:
        def snr(left=outlook.shrinkage, noise=sigma, **change):
            return snr_of_round(dataclasses.replace(study, **change), noise, left)

        assert snr(identities=outlook.people) >= 1 > snr(identities=outlook.people - 1)
        assert snr(values=outlook.values) >= 1 > snr(values=outlook.values + 1)
        fewer, more = outlook.rounds, math.ceil(outlook.rounds * 1.01) + 1  # with sampling it is told to 1 %
        noise = {t: needed_noise(dataclasses.replace(study, rounds=t)) for t in (fewer, more)}
        assert snr(noise=noise[fewer]) > 0.997  # sigma is rounded up
        assert snr(noise=noise[more]) < 1


def test_a_handful_of_people():
    plan = make_plan(Study(identities=4, rounds=3, sites=2))
    assert plan.outlooks[0].rounds == 0 and plan.outlooks[0].values == 7 and plan.outlooks[0].people == 442
    assert any("learns next to nothing" in line for line in plan.words)
    assert "0 (not even 1)" in render(plan, 100)


@pytest.mark.parametrize(("people", "epsilon", "learns"), [
    (256, 2.0, "may still learn"), (64, 16.0, "may still learn"), (64, 2.0, "learns little, if anything"),
    (16, 2.0, "learns next to nothing")])
def test_below_snr_1_it_says_what_study_scale_found(people, epsilon, learns):
    plan = make_plan(Study(identities=people, rounds=2, epsilon=epsilon, mode="uniform", values=22_528))
    assert any(learns in line for line in plan.words)


def test_a_crowd():
    plan = make_plan(Study(identities=10 ** 9, rounds=100, mode="uniform"))
    assert plan.outlooks[0].rounds == MOST_ROUNDS and "1,000,000 or more" in render(plan, 100)
    assert any("can learn" in line for line in plan.words)
    assert any("delta 1e-05 is more than one in 1,000,000,000 people" in line for line in plan.words)


def test_words_say_what_the_promise_is_given():
    assert any("outside this promise" in line for line in make_plan(STUDY).words)
    assert not any("outside this promise" in line for line in make_plan(SEALED).words)
    assert any("nobody learns who was sampled" in line for line in make_plan(SAMPLED).words)
    assert "exact" in make_plan(STUDY).words[0] and "Opacus' RDP" in make_plan(SAMPLED).words[0]


def test_settings_that_do_not_go_together():
    with pytest.raises(SettingsError, match=r"plan\.identities 3 does not go with plan\.sites 4"):
        make_plan(Study(identities=3, rounds=1))
    for mode in ("metadata", "counts"):
        wanted = rf"plan\.sampling 0\.01 does not go with plan\.mode '{mode}'.*'sealed'"
        with pytest.raises(SettingsError, match=wanted):
            make_plan(dataclasses.replace(SAMPLED, mode=mode))


def test_what_cannot_be_accounted_is_an_error():
    with pytest.raises(AccountError, match="'rdp'"):
        make_plan(dataclasses.replace(SAMPLED, delta=1e-12, accountant="prv"))


@pytest.mark.parametrize("study", [STUDY, SEALED, SAMPLED])
def test_the_table_shows_every_number(study):
    plan = make_plan(study)
    text = render(plan, 100)
    assert max(map(len, text.splitlines())) <= 100
    shown = text.replace("\n", " ")
    for number in ("3,532, 4", f"{plan.noise_multiplier:.4g}", f"{plan.epsilon:.4f}", "90,112"):
        assert number in shown
    for outlook in plan.outlooks:
        for number in (f"{outlook.snr:.3g}", f"{outlook.snr_of_all:.3g}", f"{outlook.people:,}", f"{outlook.values:,}",
                       f"{outlook.rounds:,}"):
            assert number in shown
    assert ("score 0.5" in shown) == ("0.368" in shown) == (study.mode == "sealed")
    assert all(line.split()[-1] in shown for line in plan.words)


def test_the_picture_shows_lines_plan_and_crossings(tmp_path):
    plan = make_plan(dataclasses.replace(STUDY, identities=5000))  # clear of the crossings
    path = plot(plan, tmp_path / "deep" / "plan.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert pixels.shape == (640, 960, 3)

    def at(people, snr):  # the axes go from 10^3 to 10^5 people and from .1 to 100
        column = 80 + (math.log10(people) - 3) / 2 * 690
        return pixels[round(570 - (math.log10(snr) + 1) / 3 * 500), round(column)]

    assert at(5000, plan.outlooks[0].snr).max() < 60, "the plan's dot"
    told = curves(plan)
    assert [line.epsilon for line in told] == [4, 8, 16]
    for line, colour in zip(told, [(213, 94, 0), (0, 114, 178), (0, 158, 115)], strict=True):
        sigma = noise_multiplier_for(line.epsilon, 1e-5, 100)
        assert line.per_person == pytest.approx(1 / (sigma * math.sqrt(4 * 90_112)), rel=1e-3)
        for people in (1 / line.per_person, 20_000, 60_000):
            assert np.abs(at(people, line.per_person * people) - colour).max() < 40


@pytest.mark.parametrize("study", [Study(identities=1, rounds=1, sites=1, values=1, epsilon=1000.0),
                                   Study(identities=10 ** 10, rounds=MOST_ROUNDS, epsilon=1e-3)])
def test_extreme_plans_can_be_drawn_and_shown(tmp_path, study):
    plan = make_plan(study)
    assert plot(plan, tmp_path / "plan.png").stat().st_size > 10_000
    assert render(plan, 100)


def test_a_picture_is_a_png(tmp_path):
    with pytest.raises(ValueError, match=r"plan\.jpg: the picture is a PNG"):
        plot(make_plan(STUDY), tmp_path / "plan.jpg")
