"""`privacy audit` on the summary of a run."""

import pytest

from privfedtalk_flare.audit import audit_run
from privfedtalk_flare.cli import build_parser
from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.evaluation.summary import Round, Summary, save_summary
from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.gaussian import composed_mu, epsilon_of

DELTA = 1e-5


def run_of(sigma=4.0, rounds=20, earlier=0, **settings):
    """A run's summary, of people who took part in `earlier` rounds of other jobs."""
    told = {"eta": 1.0, "mode": "metadata", "release": "coarse", "gamma": 1.0, "sigma": sigma, "C": 0.004, **settings}
    made = []
    for number in range(1, rounds + 1):
        epsilon = epsilon_of(composed_mu([sigma] * (earlier + number)), DELTA)
        sites = {f"site-{i}": {"weight": 0.25, "score": (10 + i) / 16, "count": 8} for i in range(4)}
        made.append(Round(number, {"receivers": epsilon}, DELTA, 0.01, {"wall": 1.0}, sites))
    return Summary({}, made, 2048, 40.5, 1.0, 0.0, [], [], told)


def command(path):
    parsed = build_parser().parse_args(["privacy", "audit", str(path)])
    parsed.run(parsed)


def test_a_sound_run_passes_and_the_report_says_what_a_liar_and_an_observer_get(tmp_path, capsys):
    command(save_summary(run_of(), tmp_path / "summary.json"))
    told = capsys.readouterr().out
    assert "promised epsilon 4.98 at delta 1e-05" in told and "no violation found" in told
    assert "lying site of 4: claims are worth 50.0% of a round" in told and "hides below the norm check" in told
    assert "an observer names the worst of 4 sites" in told


def test_a_run_whose_noise_is_a_quarter_of_what_it_promised_ends_in_an_error(tmp_path, capsys):
    """The summary states the epsilon of sigma 4; what runs draws sigma 1."""
    weak = run_of()
    weak.settings["sigma"] = 1.0
    with pytest.raises(AttackError, match="found a violation"):
        command(save_summary(weak, tmp_path / "summary.json"))
    assert "VIOLATION" in capsys.readouterr().out


def test_half_the_noise_is_found_in_a_ledgers_second_job_too(tmp_path, capsys, monkeypatch):
    """Its epsilon is for both jobs, the canaries play in the rounds of one."""
    path = save_summary(run_of(sigma=1.0, rounds=3, earlier=6), tmp_path / "summary.json")
    command(path)
    assert "promised epsilon 8.39 at delta 1e-05 by these rounds, 16.68 with earlier ones" in capsys.readouterr().out
    release = mechanism.release
    monkeypatch.setattr(mechanism, "release", lambda *args, noise_multiplier, **more:
                        release(*args, noise_multiplier=noise_multiplier / 2, **more))
    with pytest.raises(AttackError, match="found a violation"):
        command(path)


def test_sealed_and_noised_runs_show_no_score():
    for settings in ({"mode": "sealed"}, {"release": "noised"}):
        report = audit_run(run_of(rounds=2, **settings))
        assert report.named is None and (report.liar is None) == ("mode" in settings)
        assert not any(line.startswith("scores") for line in report.words)


def test_a_run_that_promised_nothing_is_refused():
    bare = run_of(rounds=1)
    del bare.settings["sigma"]
    with pytest.raises(AttackError, match="promised no epsilon"):
        audit_run(bare)
    with pytest.raises(AttackError, match="promised no epsilon"):
        audit_run(Summary({}, [], None, None, 1.0, 0.0, [], []))
