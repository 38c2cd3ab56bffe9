import math
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedtalk_flare.privacy import sampled
from privfedtalk_flare.privacy.gaussian import AccountError, composed_mu, epsilon_of
from privfedtalk_flare.privacy.sampled import accountant_words, effective_noise_multiplier, sampled_epsilon

DELTA = 1e-5
GRID = [  # sampling rate, noise multiplier, rounds: q from .001 to 1, sigma from .6 to 8, T from 1 to 1000
    (0.001, 0.6, 100), (0.001, 1.0, 20), (0.001, 8.0, 1000), (0.01, 0.6, 1), (0.01, 1.0, 1000), (0.01, 2.0, 100),
    (0.1, 0.6, 20), (0.1, 2.0, 1000), (0.1, 8.0, 100), (0.5, 1.0, 20), (0.5, 8.0, 1000), (0.9, 2.0, 20),
    (0.999, 2.0, 20), (1.0, 0.6, 1), (1.0, 4.0, 20), (1.0, 8.0, 1000)]


@pytest.mark.parametrize("rate, sigma, rounds, prv, rdp", [
    (0.01, 1.0, 1000, 1.8384, 2.1014), (0.1, 2.0, 1000, 8.2897, 8.9439), (0.5, 2.0, 20, 5.6998, 6.2284),
    (1.0, 4.0, 20, 4.9833, 4.9833)])
def test_golden_epsilon(rate, sigma, rounds, prv, rdp):
    assert sampled_epsilon(sigma, rate, rounds, DELTA) == pytest.approx(prv, abs=2e-4)
    assert sampled_epsilon(sigma, rate, rounds, DELTA, "rdp") == pytest.approx(rdp, abs=2e-4)


@pytest.mark.parametrize("rate, sigma, rounds", GRID)
def test_dp_accounting_agrees_and_is_never_undercut(rate, sigma, rounds):
    """PLD (both adjacencies) is the truth to about .1 %. PRV: never more than 1 % below, at most 1 % + .02 above. RDP:
    never more than 1 % below; dp-accounting's to .2 % from above and 1 % from below, as it leaves out orders under 2
    whose series it gives up on (by quadrature Opacus has them right to 1e-8).
    """
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
    from dp_accounting.rdp import RdpAccountant

    fine = 1e-4 if rate < 0.01 else 1e-3  # a coarse grid overstates small epsilons
    truth = from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=fine).self_compose(
        rounds).get_epsilon_for_delta(DELTA)
    prv, rdp = (sampled_epsilon(sigma, rate, rounds, DELTA, name) for name in ("prv", "rdp"))
    assert 0.99 * truth <= prv <= 1.01 * truth + 0.02
    assert 0.99 * truth <= rdp
    step = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma))
    theirs = min(RdpAccountant().compose(step, rounds).get_epsilon(DELTA), epsilon_of(math.sqrt(rounds) / sigma, DELTA))
    assert 0.99 * theirs <= rdp <= 1.002 * theirs


def test_dp_accounting_agrees_at_a_small_delta():
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    truth = pld.from_gaussian_mechanism(2.0, sampling_prob=0.1, value_discretization_interval=1e-3).self_compose(
        20).get_epsilon_for_delta(1e-9)
    assert 0.99 * truth <= sampled_epsilon(2.0, 0.1, 20, 1e-9) <= 1.01 * truth + 0.02


@pytest.mark.parametrize("accountant", sampled.ACCOUNTANTS)
@given(sigma=st.floats(0.05, 50), rounds=st.integers(1, 2000), delta=st.floats(1e-9, 0.1))
@settings(max_examples=20)
def test_full_participation_is_exact_and_never_opacus(accountant, sigma, rounds, delta):
    with mock.patch.object(sampled, "_prv", side_effect=AssertionError), \
            mock.patch.object(sampled, "_rdp", side_effect=AssertionError):
        exact = epsilon_of(composed_mu([sigma] * rounds), delta)
        assert sampled_epsilon(sigma, 1.0, rounds, delta, accountant) == pytest.approx(exact, rel=1e-9, abs=1e-9)


def check_monotone(accountant, sigma, rate, rounds, slack):
    here = sampled_epsilon(sigma, rate, rounds, DELTA, accountant)
    assert sampled_epsilon(1.5 * sigma, rate, rounds, DELTA, accountant) <= here + slack
    assert sampled_epsilon(sigma, rate / 2, rounds, DELTA, accountant) <= here + slack
    assert sampled_epsilon(sigma, rate, 2 * rounds, DELTA, accountant) >= here - slack
    assert here <= epsilon_of(math.sqrt(rounds) / sigma, DELTA)


@given(st.floats(0.6, 8), st.floats(0.001, 1), st.integers(1, 1000))
@settings(max_examples=10)
def test_less_noise_more_people_and_more_rounds_cost_more_by_renyi_orders(sigma, rate, rounds):
    check_monotone("rdp", sigma, rate, rounds, 1e-9)


@given(st.floats(1, 8), st.floats(0.001, 0.5), st.integers(1, 100))
@settings(max_examples=4)
def test_less_noise_more_people_and_more_rounds_cost_more_by_prv(sigma, rate, rounds):
    check_monotone("prv", sigma, rate, rounds, 0.01)


def test_one_noise_for_all_that_a_sample_releases():
    assert effective_noise_multiplier(4.0) == pytest.approx(4.0)
    assert effective_noise_multiplier(4.0, 4.0) == pytest.approx(4 / math.sqrt(2))
    assert effective_noise_multiplier(2.0, 3.0, 5.0) == pytest.approx((1 / 4 + 1 / 9 + 1 / 100) ** -0.5)
    assert effective_noise_multiplier(2.0, bit_noise=1.0) == pytest.approx(math.sqrt(2)), "a bit's sensitivity is 1/2"


def test_charging_update_and_score_apart_would_promise_too_little():
    together = sampled_epsilon(effective_noise_multiplier(1.0, 1.0), 0.01, 100, DELTA)
    apart = sampled_epsilon(1.0, 0.01, 200, DELTA)  # as if each had drawn a sample of its own
    assert together == pytest.approx(2.29, abs=0.02) and apart == pytest.approx(0.91, abs=0.02)


def test_words_say_which_accountant():
    assert "exact" in accountant_words(1.0) and "exact" in accountant_words(1.0, "rdp")
    assert "Opacus' PRV" in accountant_words(0.1) and "upper bound" in accountant_words(0.1)
    assert "Opacus' RDP" in accountant_words(0.1, "rdp") and "upper bound" in accountant_words(0.1, "rdp")


@pytest.mark.parametrize("result", [math.nan, math.inf, -math.inf, ValueError("no"), RuntimeError("Cannot compute"),
                                    OverflowError("math range error")])
@pytest.mark.parametrize("accountant, name", [("prv", "PRVAccountant"), ("rdp", "RDPAccountant")])
def test_no_number_is_an_error(accountant, name, result):
    answer = {"side_effect": result} if isinstance(result, Exception) else {"return_value": result}
    with mock.patch(f"opacus.accountants.{name}.get_epsilon", **answer), \
            pytest.raises(AccountError, match=r"finds no finite epsilon for noise_multiplier 2 at sampling_rate 0\.5"):
        sampled_epsilon(2.0, 0.5, 10, DELTA, accountant)


def test_prv_refuses_what_its_grid_cannot_hold():
    with pytest.raises(AccountError, match=r"noise_multiplier 0\.002 .* points"):
        sampled_epsilon(0.002, 0.01, 100, DELTA)
    with pytest.raises(AccountError, match=r"delta 1e-12 over 100 rounds .* or 'rdp'"):
        sampled_epsilon(2.0, 0.01, 100, 1e-12)
    assert math.isfinite(sampled_epsilon(2.0, 0.01, 100, 1e-12, "rdp"))


@pytest.mark.parametrize("arguments, named", [
    ((0.0, 0.1, 1, DELTA), "noise_multiplier"), ((math.nan, 0.1, 1, DELTA), "noise_multiplier"),
    ((1.0, 0.0, 1, DELTA), "sampling_rate"), ((1.0, 1.1, 1, DELTA), "sampling_rate"),
    ((1.0, math.nan, 1, DELTA), "sampling_rate"), ((1.0, 0.1, 0, DELTA), "rounds"), ((1.0, 0.1, 1.5, DELTA), "rounds"),
    ((1.0, 0.1, 1, 0.0), "delta"), ((1.0, 0.1, 1, 1.0), "delta"), ((1.0, 0.1, 1, DELTA, "gdp"), "choices are prv")])
def test_values_out_of_range_are_named(arguments, named):
    with pytest.raises(AccountError, match=named):
        sampled_epsilon(*arguments)


@pytest.mark.parametrize("bad", [(0.0,), (1.0, -1.0), (1.0, None, math.inf), (None,), (True,)])
def test_noise_out_of_range_is_refused(bad):
    with pytest.raises(AccountError, match="finite number above 0"):
        effective_noise_multiplier(*bad)
