"""What a ledger books and what it costs; how it fails is in test_ledger_failures.py."""

import multiprocessing
import stat
from dataclasses import replace

import pytest
from ledgers import SITE, book, entry, site_budget

from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.ledger import GENESIS, Budget, BudgetExceeded, Entry, Ledger
from privfedtalk_flare.privacy.ledger_table import render
from privfedtalk_flare.privacy.opening import LedgerFiles, create, create_once


def try_to_book(state, epsilon_max):
    try:
        Ledger(state).reserve(entry(), site_budget(epsilon_max))
        return True
    except BudgetExceeded:
        return False


def test_epsilon_goes_on_across_openings_and_jobs(state):
    for i in range(20):
        after = Ledger(state).reserve(entry(i, job=f"job-{i % 2}"))
    assert after["receivers"].epsilon == pytest.approx(4.9833, abs=5e-5)
    ledger = Ledger(state)
    assert ledger.head.count == 20 and len(ledger.entries) == len(ledger.times) == 20
    assert ledger.epsilon(1e-5)["receivers"].epsilon == after["receivers"].epsilon
    assert 0 < ledger.epsilon(1e-5, job="job-1")["receivers"].epsilon < 4.9833
    assert ledger.entries[3] == entry(3, job="job-1")
    so_far = [views["receivers"].epsilon for views in ledger.views_so_far(1e-5)]
    assert so_far == sorted(so_far) and so_far[-1] == after["receivers"].epsilon


def test_a_new_ledger_is_empty_its_files_are_private_and_its_anchor_lies_elsewhere(tmp_path):
    files = LedgerFiles.of(tmp_path / "state", tmp_path / "local", tmp_path / "other disk")
    head = create(files)
    ledger = Ledger(tmp_path / "state", tmp_path / "local", tmp_path / "other disk")
    assert ledger.head == head and (head.count, head.head) == (0, GENESIS)
    for path, folder in zip(files.all, ("state", "local", "other disk"), strict=True):
        assert path.parent == tmp_path / folder and stat.S_IMODE(path.stat().st_mode) == 0o600
    ledger.reserve(entry())
    assert Ledger(tmp_path / "state", tmp_path / "local", tmp_path / "other disk").head.count == 1


def test_two_ledgers_have_different_ids(tmp_path):
    assert create(LedgerFiles.of(tmp_path / "a")).id != create(LedgerFiles.of(tmp_path / "b")).id


# Budget

def test_budget_is_checked_before_anything_is_written(state):
    book(state, 3)
    before = (state / "ledger.jsonl").read_bytes()
    spent = Ledger(state).epsilon(1e-5)["receivers"].epsilon
    with pytest.raises(BudgetExceeded, match=f"above the epsilon_max .* of {SITE}; nothing was trained or sent"):
        Ledger(state).reserve(entry(4), site_budget(spent + 1e-6))
    assert (state / "ledger.jsonl").read_bytes() == before
    Ledger(state).reserve(entry(4), site_budget(10.0))


@pytest.mark.parametrize(("site", "job", "who"), [(1.0, 100.0, SITE), (100.0, 1.0, "this job")])
def test_of_two_budgets_the_tighter_one_holds_whoever_set_it(state, site, job, who):
    budgets = (site_budget(site), Budget(job, 1e-5, "this job"))
    with pytest.raises(BudgetExceeded, match=who):
        book(state, 5, *budgets)
    assert Ledger(state).epsilon(1e-5)["receivers"].epsilon <= 1.0 and Ledger(state).head.count == 1


def test_a_large_delta_of_a_job_loosens_no_budget_of_the_site(state):
    loose = Entry("job", "adapter", 1, "n", Release(1.0), 0.1, 0.4)  # at delta .4 this costs epsilon 0
    assert Ledger(state).reserve(loose)["receivers"].epsilon < 0.1
    with pytest.raises(BudgetExceeded, match="at delta 1e-05, above the epsilon_max 4"):
        Ledger(state).reserve(loose, site_budget(4.0))


def test_a_release_without_noise_exceeds_every_budget(state):
    bare = Entry("job", "backbone", 0, "n", Release(None), None, 1e-5)
    with pytest.raises(BudgetExceeded):
        Ledger(state).reserve(bare, site_budget(1e6))
    Ledger(state).reserve(bare)
    assert Ledger(state).reserve(entry())["receivers"].value == "unbounded"


# Two jobs at once

def test_an_open_ledger_sees_what_others_wrote_before_it_books(state):
    first = Ledger(state)
    book(state, 2)
    first.reserve(entry(9))
    assert Ledger(state).head.count == 3 == first.head.count


def test_processes_at_once_neither_lose_lines_nor_pass_the_budget(state, tmp_path):
    book(state, 3)
    budget = Ledger(state).epsilon(1e-5)["receivers"].epsilon
    other = tmp_path / "other"
    create(LedgerFiles.of(other))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        done = pool.starmap(try_to_book, [(other, budget + 1e-9)] * 8, chunksize=1)
    assert sum(done) == 3 == Ledger(other).head.count


def first_use(state):
    create_once(LedgerFiles.of(state))
    return try_to_book(state, 1e9)


def test_two_simulated_processes_at_first_use_make_one_ledger(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert all(pool.map(first_use, [tmp_path / "state"] * 8))
    assert Ledger(tmp_path / "state").head.count == 8


# The table

def test_the_table_says_what_each_release_cost_and_what_is_left(state):
    book(state, 2)
    noised = Release(4.0, "noised", 4.0)
    Ledger(state).reserve(Entry("0f3a9c1e-77aa-4b0e", "adapter", 1, "n", noised, 0.004, 1e-5, trust="distributed"))
    said = render(Ledger(state), "site-1", 1e-5, 8.0, width=120)
    rows = [line.split() for line in said.splitlines()]
    heads = next(row for row in rows if "receiv" in row)
    assert heads == ["booked", "job", "round", "mechanism", "sigma", "tivity", "unit", "trust", "receiv", "server",
                     "both"]
    lines = [row[2:] for row in rows if "gaussian" in row]
    epsilons = [f"{views['receivers'].epsilon:.2f}" for views in Ledger(state).views_so_far(1e-5)]
    assert lines[1] == ["job-1", "1", "gaussian", "4", "0.1/m", "identity", "local", *[epsilons[1]] * 3]
    assert lines[2] == ["0f3a9c1e-77a..", "1", "gaussian", "4,", "score", "4", "0.004/m", "identity", "distributed",
                        *[epsilons[2]] * 3]
    left = 8 - Ledger(state).epsilon(1e-5)["receivers"].epsilon
    assert f"3 releases; epsilon_max 8, of which {left:.2f} is left." in said
    assert "outside this promise" in " ".join(said.split())
    assert Ledger(state).head.id in said


def test_epsilon_after_each_line_never_falls_and_ends_where_the_whole_ledger_stands(state):
    ledger = Ledger(state)
    for number in range(6):
        release = Release(1.0, "sealed", sampling=0.1 + number / 100)
        ledger.reserve(replace(entry(number), release=release))
    told = [line["receivers"].epsilon for line in ledger.views_so_far(1e-5)]
    assert told == sorted(told) and len(told) == 6
    assert told[-1] == ledger.epsilon(1e-5)["receivers"].epsilon


def test_the_table_shows_samples_shares_and_bits(state):
    ledger = Ledger(state)
    booked = Release(2.0, sampling=0.25, clip_bit_noise_multiplier=10.0), Release(3.0, honest=4)
    for number, release in enumerate(booked):
        ledger.reserve(replace(entry(number), release=release))
    shown = " ".join(render(ledger, "site-1", 1e-5, None, 150).split())
    for text in ("2, bit 10", "0.1/(0.25 m)", "3, of 4 sites", "0.1/M", "As long as nobody learns in which rounds",
                 "beside whoever looks", "each upload opened by itself holds one site's share"):
        assert text in shown


def test_the_table_says_what_carried_no_noise(state):
    Ledger(state).reserve(Entry("job", "backbone", 2, "n", Release(None), None, 1e-5, trust="none"))
    said = render(Ledger(state), "site-1", 1e-5, None, width=120)
    row = next(line.split() for line in said.splitlines() if "(backbone)" in line)
    assert row[2:] == ["job", "2", "none", "(backbone)", "-", "-", "identity", "none", "none", "none", "none"]
    assert "nothing stops the spending" in said and "1 of 1 releases about these people carried no noise" in said


def test_the_table_of_an_empty_ledger(state):
    assert "0 releases; epsilon_max 3, of which 3.00 is left." in render(Ledger(state), "site-1", 1e-5, 3.0, width=100)
