import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy.stats import norm

from privfedtalk_flare.privacy import gaussian
from privfedtalk_flare.privacy.accountant import Release, views
from privfedtalk_flare.privacy.gaussian import AccountError
from privfedtalk_flare.privacy.sampled import sampled_epsilon

DELTA = 1e-5


def run(release, rounds=20, **kw):
    return views([release] * rounds, DELTA, **kw)


def test_golden_epsilon():
    assert run(Release(4.0))["receivers"].epsilon == pytest.approx(4.9833, abs=5e-5)
    assert run(Release(4.0, "noised", 4.0))["receivers"].epsilon == pytest.approx(7.5, abs=0.05)


def test_renyi_orders_give_a_looser_bound():
    accountant = RDPAccountant()
    accountant.history = [(4.0, 1.0, 20)]
    assert accountant.get_epsilon(DELTA) == pytest.approx(5.38, abs=0.005)


def test_what_is_published_stands_beside_epsilon():
    words = {score: run(Release(1.0, score, 4.0 if score == "noised" else None))["receivers"].words
             for score in ("coarse", "noised", "counts", "sealed", "none")}
    assert "score" in words["coarse"] and "clip count" in words["coarse"]
    assert words["noised"] == words["counts"]
    assert "clip count" in words["noised"] and "score" not in words["noised"]
    assert words["sealed"] == words["none"] == ""


def test_dp_accounting_agrees():
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    one = pld.from_gaussian_mechanism(4.0, value_discretization_interval=1e-4)
    assert run(Release(4.0))["receivers"].epsilon == pytest.approx(
        one.self_compose(20).get_epsilon_for_delta(DELTA), rel=1e-3)


@given(st.floats(0.05, 10), st.floats(0.01, 0.999))
def test_delta_is_the_textbook_formula(mu, share):
    epsilon = share * mu * (mu + 2)
    expected = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert gaussian.delta_of(epsilon, mu) == pytest.approx(expected, rel=1e-4, abs=1e-12)


@given(st.floats(0.01, 50), st.floats(1e-10, 0.1))
def test_epsilon_inverts_delta(mu, delta):
    epsilon = gaussian.epsilon_of(mu, delta)
    if epsilon == 0:
        assert gaussian.delta_of(0.0, mu) <= delta
    else:
        assert gaussian.delta_of(epsilon, mu) == pytest.approx(delta, rel=1e-6)


@given(st.floats(0.1, 50), st.integers(1, 200))
def test_noise_multiplier_for_spends_exactly_the_budget(epsilon, rounds):
    sigma = gaussian.noise_multiplier_for(epsilon, DELTA, rounds)
    mu = gaussian.composed_mu([sigma] * rounds)
    assert gaussian.epsilon_of(mu, DELTA) == pytest.approx(epsilon, rel=1e-6)


def test_views_of_coarse_scores_say_that_they_are_public():
    seen = run(Release(4.0, "coarse"))
    assert {v.epsilon for v in seen.values()} == {seen["receivers"].epsilon}
    assert seen["receivers"].epsilon == pytest.approx(4.9833, abs=5e-5)
    assert all("outside this promise" in v.words for v in seen.values())
    assert "metrics of the shared adapter are sent to it" in seen["server"].words


def test_server_alone_sees_only_scores_while_nothing_of_theta_reaches_it():
    seen = run(Release(4.0, "noised", 4.0), server_learns_theta=False)
    assert seen["server"].epsilon == pytest.approx(4.9833, abs=5e-5)
    assert seen["receivers"].epsilon == seen["server_and_site"].epsilon > seen["server"].epsilon
    assert "as long as the encryption holds" in seen["server"].words
    sealed = run(Release(4.0, "sealed"), server_learns_theta=False)
    assert sealed["server"].epsilon == 0 and sealed["receivers"].epsilon == pytest.approx(4.9833, abs=5e-5)
    assert "public metadata" not in sealed["receivers"].words


def test_without_encryption_the_server_is_a_receiver():
    seen = run(Release(4.0, "sealed"), encrypted=False, server_learns_theta=False)
    assert seen["server"].epsilon == seen["receivers"].epsilon
    assert "nothing is encrypted" in seen["server"].words


def test_sampling_helps_as_long_as_the_sample_is_secret():
    seen = run(Release(1.0, "sealed", sampling=0.1), rounds=100)
    assert {view.epsilon for view in seen.values()} == {sampled_epsilon(1.0, 0.1, 100, DELTA)}
    assert run(Release(1.0, "sealed"), rounds=100)["receivers"].epsilon > 2 * seen["receivers"].epsilon
    assert all("as long as nobody learns in which rounds a person was sampled" in v.words for v in seen.values())
    assert "sampled" not in run(Release(1.0, "sealed"))["receivers"].words


def test_what_no_accountant_can_show_costs_full_participation():
    tiny = run(Release(1e-3, sampling=0.5), rounds=3)["receivers"].epsilon
    assert math.isfinite(tiny) and tiny == pytest.approx(run(Release(1e-3), rounds=3)["receivers"].epsilon)


def test_a_clip_bit_is_charged_with_the_update_at_half_a_sensitivity():
    """sigma_b 10 costs as much as a score at sigma_s 20: 1/sigma_eff^2 = 1/4^2 + 1/20^2."""
    bits, score = (run(Release(4.0, "counts", clip_bit_noise_multiplier=10.0), server_learns_theta=False),
                   run(Release(4.0, "noised", 20.0), server_learns_theta=False))
    for view in ("receivers", "server", "server_and_site"):
        assert bits[view].epsilon == score[view].epsilon
    assert run(Release(4.0, "counts"))["receivers"].epsilon < bits["receivers"].epsilon
    assert Release(4.0, clip_bit_noise_multiplier=10.0).effective_noise() == pytest.approx((1 / 16 + 1 / 400) ** -0.5)


def test_a_share_of_the_noise_protects_as_the_whole_until_an_upload_is_opened_by_itself():
    shared, whole = run(Release(4.0, "sealed", honest=4)), run(Release(4.0, "sealed"))
    assert shared["receivers"].epsilon == shared["server"].epsilon == whole["receivers"].epsilon
    assert shared["server_and_site"].epsilon == run(Release(2.0))["receivers"].epsilon  # sigma / sqrt(4)
    assert "as it takes shares of the noise" in shared["receivers"].words
    assert "one site's share of the noise" in shared["server_and_site"].words
    bare = run(Release(4.0, "sealed", honest=4), encrypted=False)
    assert bare["server"].epsilon == shared["server_and_site"].epsilon


def test_sampled_and_full_rounds_add_up():
    """Under the bound that adding both epsilons would be, over each alone; dp-accounting agrees to 15 % (Renyi)."""
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    both = views([Release(4.0)] * 5 + [Release(1.0, sampling=0.05)] * 200, DELTA)["receivers"].epsilon
    full, part = run(Release(4.0), 5)["receivers"].epsilon, run(Release(1.0, sampling=0.05), 200)["receivers"].epsilon
    assert max(full, part) < both < full + part
    truth = pld.from_gaussian_mechanism(4.0, value_discretization_interval=1e-3).self_compose(5).compose(
        pld.from_gaussian_mechanism(1.0, sampling_prob=0.05, value_discretization_interval=1e-3).self_compose(200))
    assert truth.get_epsilon_for_delta(DELTA) <= both <= 1.15 * truth.get_epsilon_for_delta(DELTA)


def test_one_release_without_noise_voids_everything():
    seen = views([Release(4.0), Release(None)], DELTA)
    assert all(v.value == "unbounded" and math.isinf(v.epsilon) for v in seen.values())
    assert "1 of 2 releases about these people carried no noise" in seen["receivers"].words


def test_nothing_released_costs_nothing():
    assert views([], DELTA)["receivers"].value == 0.0


@pytest.mark.parametrize("bad", [(0.0,), (-1.0,), (float("nan"),), (1.0, "raw"), (1.0, "noised"), (1.0, "coarse", 2.0)])
def test_releases_that_make_no_sense_are_refused(bad):
    with pytest.raises(AccountError):
        Release(*bad)
    with pytest.raises(AccountError, match="sampling"):
        Release(1.0, sampling=0.0)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_delta_out_of_range(delta):
    with pytest.raises(AccountError, match="delta"):
        gaussian.epsilon_of(1.0, delta)
