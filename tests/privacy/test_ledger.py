import json
import multiprocessing
import stat

import pytest

from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.ledger import GENESIS, BudgetExceeded, Entry, Ledger, LedgerError


def entry(round_=1, sigma=4.0, job="job-1", nonce="n"):
    return Entry(job, "adapter", round_, nonce, Release(sigma, "coarse"), 0.1, 1e-5)


def book(state, count, epsilon_max=None):
    for i in range(count):
        Ledger(state).reserve(entry(i), epsilon_max)


def try_to_book(state, epsilon_max):
    try:
        Ledger(state).reserve(entry(), epsilon_max)
        return True
    except BudgetExceeded:
        return False


def test_epsilon_goes_on_across_openings_and_jobs(tmp_path):
    for i in range(20):
        after = Ledger(tmp_path).reserve(entry(i, job=f"job-{i % 2}"), None)
    assert after["receivers"].epsilon == pytest.approx(4.9833, abs=5e-5)
    ledger = Ledger(tmp_path)
    assert ledger.head.count == 20 and len(ledger.entries) == 20
    assert ledger.epsilon(1e-5)["receivers"].epsilon == after["receivers"].epsilon
    assert 0 < ledger.epsilon(1e-5, job="job-1")["receivers"].epsilon < 4.9833
    assert ledger.entries[3] == entry(3, job="job-1")


def test_a_new_ledger_is_empty_and_its_key_private(tmp_path):
    ledger = Ledger(tmp_path / "state")
    assert (ledger.head.count, ledger.head.head) == (0, GENESIS)
    assert stat.S_IMODE((tmp_path / "state" / "ledger.key").stat().st_mode) == 0o600


def test_budget_is_checked_before_anything_is_written(tmp_path):
    book(tmp_path, 3)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    spent = Ledger(tmp_path).epsilon(1e-5)["receivers"].epsilon
    with pytest.raises(BudgetExceeded, match="epsilon_max"):
        Ledger(tmp_path).reserve(entry(4), spent + 1e-6)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    Ledger(tmp_path).reserve(entry(4), 10.0)


def test_a_release_without_noise_exceeds_every_budget(tmp_path):
    bare = Entry("job", "backbone", 0, "n", Release(None), None, 1e-5)
    with pytest.raises(BudgetExceeded):
        Ledger(tmp_path).reserve(bare, 1e6)
    Ledger(tmp_path).reserve(bare, None)
    assert Ledger(tmp_path).reserve(entry(), None)["receivers"].value == "unbounded"


@pytest.mark.parametrize(("line", "field", "value"), [(1, "round", 9), (2, "clip_norm", 0.2), (3, "hmac", "0" * 64),
                                                      (2, "release", {"noise_multiplier": 9.0, "score": "coarse",
                                                                      "score_noise_multiplier": None})])
def test_an_altered_line_is_named(tmp_path, line, field, value):
    book(tmp_path, 3)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text().splitlines()
    body = json.loads(lines[line - 1])
    assert body[field] != value
    lines[line - 1] = json.dumps({**body, field: value})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match=f"line {line} "):
        Ledger(tmp_path)


@pytest.mark.parametrize("change", [lambda ls: ls[1:], lambda ls: [ls[0], ls[2]], lambda ls: [ls[0], ls[0], *ls[1:]],
                                    lambda ls: [ls[1], ls[0], ls[2]], lambda ls: [*ls, b"{}\n"],
                                    lambda ls: [*ls[:2], ls[2][:40]]])
def test_removed_reordered_repeated_and_torn_lines_are_refused(tmp_path, change):
    book(tmp_path, 3)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(LedgerError, match=r"line [1-4] was altered"):
        Ledger(tmp_path)


def test_a_missing_or_other_key_stops_the_site(tmp_path):
    book(tmp_path, 1)
    key = tmp_path / "ledger.key"
    key.rename(tmp_path / "saved")
    with pytest.raises(LedgerError, match="is missing but"):
        Ledger(tmp_path)
    key.write_bytes(b"x" * 32)
    with pytest.raises(LedgerError, match="line 1 "):
        Ledger(tmp_path)
    key.write_bytes(b"short")
    with pytest.raises(LedgerError, match="5 bytes"):
        Ledger(tmp_path)


def test_an_open_ledger_sees_what_others_wrote_before_it_books(tmp_path):
    first = Ledger(tmp_path)
    book(tmp_path, 2)
    first.reserve(entry(9), None)
    assert Ledger(tmp_path).head.count == 3


def test_processes_at_once_neither_lose_lines_nor_pass_the_budget(tmp_path):
    book(tmp_path, 3)
    budget = Ledger(tmp_path).epsilon(1e-5)["receivers"].epsilon
    other = tmp_path / "other"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        done = pool.starmap(try_to_book, [(other, budget + 1e-9)] * 12)
    assert sum(done) == 3 == Ledger(other).head.count
