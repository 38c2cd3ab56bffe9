"""Every way in which a ledger can be broken, lost or taken back: it stops the site or charges, and says what to do."""

import json
import signal
import subprocess
import sys

import pytest
from ledgers import book, entry, site_budget

from privfedtalk_flare.privacy import ledger as module
from privfedtalk_flare.privacy.ledger import TORN, BudgetExceeded, Head, Ledger, LedgerError, NoLedger
from privfedtalk_flare.privacy.opening import LedgerFiles, create, create_once

RESTORE = "[Rr]estore .* from (a|one) backup"


def lines_of(state):
    return (state / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def put(state, lines):
    (state / "ledger.jsonl").write_bytes(b"".join(lines))


# Altered

@pytest.mark.parametrize(("line", "field", "value"), [(1, "round", 9), (2, "clip_norm", 0.2), (3, "hmac", "0" * 64),
                                                      (2, "time", 0.0), (1, "trust", "distributed"),
                                                      (2, "release", {"noise_multiplier": 9.0, "score": "coarse",
                                                                      "score_noise_multiplier": None})])
def test_an_altered_line_is_named(state, line, field, value):
    book(state, 3)
    lines = lines_of(state)
    body = json.loads(lines[line - 1])
    assert body[field] != value
    lines[line - 1] = json.dumps({**body, field: value}).encode() + b"\n"
    put(state, lines)
    with pytest.raises(LedgerError, match=f"line {line} was altered .* {RESTORE}"):
        Ledger(state)


@pytest.mark.parametrize("change", [lambda ls: ls[1:], lambda ls: [ls[0], ls[2]], lambda ls: [ls[0], ls[0], *ls[1:]],
                                    lambda ls: [ls[1], ls[0], ls[2]], lambda ls: [*ls, b"{}\n"],
                                    lambda ls: [*ls, b"\n"], lambda ls: [ls[0][:40] + b"\n", *ls[1:]],
                                    lambda ls: [*ls[:2], ls[2][:40] + b"\n"], lambda ls: [b"[1]\n", *ls]])
def test_removed_reordered_repeated_and_added_lines_are_refused(state, change):
    book(state, 3)
    put(state, change(lines_of(state)))
    with pytest.raises(LedgerError, match=r"line [1-4] was altered"):
        Ledger(state)


# Shortened

@pytest.mark.parametrize("kept", [0, 1, 2])
def test_lines_cut_off_at_a_boundary_are_noticed_by_the_anchor(state, kept):
    book(state, 3)
    put(state, lines_of(state)[:kept])
    with pytest.raises(LedgerError, match=rf"{kept} releases?, but its anchor .* after 3 releases.*{RESTORE}"):
        Ledger(state)


def test_an_open_ledger_that_is_cut_books_nothing(state):
    book(state, 3)
    opened = Ledger(state)
    put(state, lines_of(state)[:2])
    with pytest.raises(LedgerError, match="lines were cut off"):
        opened.reserve(entry())
    assert len(lines_of(state)) == 2


def test_an_older_copy_that_was_gone_on_with_is_noticed(state):
    book(state, 2)
    older = {path: path.read_bytes() for path in LedgerFiles.of(state).all}
    book(state, 1)
    anchor = LedgerFiles.of(state).anchor.read_bytes()
    for path, content in older.items():
        path.write_bytes(content)
    Ledger(state).reserve(entry(77))  # ledger and anchor were both taken back: only the server can tell
    LedgerFiles.of(state).anchor.write_bytes(anchor)
    with pytest.raises(LedgerError, match=r"3 releases, but its anchor .* after 3 releases with another end"):
        Ledger(state)


# Torn by a crash

def tear(state, keep):
    """Writes the next line as a crash would leave it: `keep` says how much of it; the anchor is not written."""
    saved = LedgerFiles.of(state).anchor.read_bytes()
    book(state, 1)
    LedgerFiles.of(state).anchor.write_bytes(saved)
    *lines, last = lines_of(state)
    put(state, [*lines, keep(last)])


@pytest.mark.parametrize("keep", [lambda line: line[:1], lambda line: line[:200], lambda line: line[:-2],
                                  lambda line: b"\0" * 300])
def test_a_torn_last_line_is_charged_as_one_more_release(state, keep):
    book(state, 2)
    tear(state, keep)
    ledger = Ledger(state)
    assert ledger.torn and ledger.head.count == 2
    charged = ledger.reserve(entry(5))["receivers"].epsilon
    assert [e.job for e in Ledger(state).entries] == ["job-1", "job-1", TORN, "job-1"]
    assert not Ledger(state).torn and Ledger(state).head.count == 4
    assert charged == Ledger(state).epsilon(1e-5)["receivers"].epsilon


def test_a_last_line_that_lacks_its_newline_alone_is_charged_as_it_is(state):
    book(state, 2)
    tear(state, lambda line: line[:-1])
    ledger = Ledger(state)
    assert ledger.head.count == 3 and not ledger.torn
    ledger.reserve(entry(5))
    assert [e.round for e in Ledger(state).entries] == [0, 1, 0, 5]
    assert len(lines_of(state)) == 4


def test_a_torn_line_counts_against_the_budget_before_anything_is_written(state):
    book(state, 2)
    tear(state, lambda line: line[:99])
    three = Ledger(state)._views([entry()] * 3, 1e-5)["receivers"].epsilon
    before = (state / "ledger.jsonl").read_bytes()
    with pytest.raises(BudgetExceeded):
        Ledger(state).reserve(entry(), site_budget(three + 1e-6))
    assert (state / "ledger.jsonl").read_bytes() == before


def test_a_line_torn_after_it_was_booked_stops_the_site(state):
    book(state, 3)
    *lines, last = lines_of(state)
    put(state, [*lines, last[:50]])
    with pytest.raises(LedgerError, match="2 releases, but its anchor"):
        Ledger(state)


# A crash between ledger and anchor

KILLED = """
import os, signal, sys
from pathlib import Path
from privfedtalk_flare.privacy import ledger
from privfedtalk_flare.privacy.accountant import Release
ledger.write_anchor = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
ledger.Ledger(Path(sys.argv[1])).reserve(ledger.Entry("job-1", "adapter", 7, "n", Release(4.0, "coarse"), 0.1, 1e-5))
"""


def test_a_crash_between_ledger_and_anchor_locks_nobody_out_and_stays_charged(state):
    book(state, 2)
    done = subprocess.run([sys.executable, "-c", KILLED, str(state)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(lines_of(state)) == 3 and json.loads(LedgerFiles.of(state).anchor.read_bytes())["count"] == 2
    ledger = Ledger(state)
    assert ledger.head.count == 3
    ledger.reserve(entry(8))
    assert [e.round for e in Ledger(state).entries] == [0, 1, 7, 8]
    assert json.loads(LedgerFiles.of(state).anchor.read_bytes())["count"] == 4


def test_an_anchor_that_cannot_be_written_declines_the_release_which_stays_charged(state, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_anchor", full)
        with pytest.raises(OSError, match="No space left"):
            Ledger(state).reserve(entry())
    assert Ledger(state).head.count == 1


# Missing

@pytest.mark.parametrize("name", ["ledger", "key", "anchor"])
@pytest.mark.parametrize("booked", [0, 2])
def test_a_missing_ledger_key_or_anchor_stops_the_site(state, name, booked):
    book(state, booked)
    opened = Ledger(state)
    path = getattr(LedgerFiles.of(state), name)
    path.rename(state / "saved")
    for use in (lambda: Ledger(state), lambda: opened.reserve(entry()), lambda: create(LedgerFiles.of(state))):
        with pytest.raises(LedgerError, match=rf"Restore .*{path.name} from a backup\. .*`privfedtalk privacy init"):
            use()
    with pytest.raises(NoLedger):
        Ledger(state)
    create_once(LedgerFiles.of(state))  # nor does a simulated site make a part of it anew
    with pytest.raises(NoLedger):
        Ledger(state)
    assert not path.exists()
    (state / "saved").rename(path)
    Ledger(state).reserve(entry())


@pytest.mark.parametrize("folder", [True, False])
def test_a_site_that_never_had_a_ledger_is_told_how_to_make_one(tmp_path, folder):
    if folder:
        (tmp_path / "state").mkdir()
    with pytest.raises(NoLedger, match="has no privacy ledger; run `privfedtalk privacy init WORKSPACE` once"):
        Ledger(tmp_path / "state")
    assert not (tmp_path / "state" / "ledger.jsonl").exists()


def test_a_ledger_is_never_started_anew(state):
    book(state, 2)
    before = [path.read_bytes() for path in LedgerFiles.of(state).all]
    with pytest.raises(LedgerError, match="already, and a ledger is never started anew"):
        create(LedgerFiles.of(state))
    assert [path.read_bytes() for path in LedgerFiles.of(state).all] == before


@pytest.mark.parametrize("folders", [{"local": "state"}, {"anchor": "state"}, {"anchor": "local/../state"}])
def test_key_and_anchor_must_not_lie_beside_the_ledger(tmp_path, folders):
    places = {"local": tmp_path / "local", **{name: tmp_path / folder for name, folder in folders.items()}}
    with pytest.raises(LedgerError, match="must lie in another folder"):
        LedgerFiles.of(tmp_path / "state", **places)


def test_an_unreadable_key_stops_the_site(state):
    LedgerFiles.of(state).key.write_bytes(b"short")
    with pytest.raises(LedgerError, match="5 bytes, a ledger key has 32; restore it from a backup"):
        Ledger(state)


# Foreign

@pytest.mark.parametrize("names", [("ledger",), ("key",), ("key", "anchor"), ("ledger", "anchor")])
def test_a_foreign_ledger_is_named_as_such(state, tmp_path, names):
    create(LedgerFiles.of(tmp_path / "other"))
    book(state, 2)
    book(tmp_path / "other", 3)
    for name in names:
        own, foreign = (getattr(LedgerFiles.of(where), name) for where in (state, tmp_path / "other"))
        own.write_bytes(foreign.read_bytes())
    with pytest.raises(LedgerError, match=f"line 1 belongs to ledger .*: a foreign ledger or another key. {RESTORE}"):
        Ledger(state)


# Behind the server's echo

def test_a_ledger_at_the_servers_echo_or_beyond_it_books(state):
    book(state, 1)
    early = Ledger(state).head
    book(state, 1)
    Ledger(state).reserve(entry(), echo=early)
    Ledger(state).reserve(entry(), echo=Ledger(state).head)
    Ledger(state).reserve(entry(), echo=Head(early.id, 0, module.GENESIS))
    assert Ledger(state).head.count == 5


def test_a_ledger_taken_back_with_its_anchor_is_behind_the_servers_echo(state):
    book(state, 2)
    older = {path: path.read_bytes() for path in LedgerFiles.of(state).all}
    book(state, 1)
    echo = Ledger(state).head
    for path, content in older.items():
        path.write_bytes(content)
    with pytest.raises(LedgerError, match=f"2 releases, but the server has seen release 3 .*{RESTORE}"):
        Ledger(state).reserve(entry(), echo=echo)
    Ledger(state).reserve(entry(9))  # another job, whose server knows nothing, hides nothing:
    with pytest.raises(LedgerError, match="which is not among them"):
        Ledger(state).reserve(entry(), echo=echo)


def test_a_ledger_made_anew_is_not_the_one_the_server_knows(state, tmp_path):
    book(state, 2)
    echo = Ledger(state).head
    other = tmp_path / "other"
    create(LedgerFiles.of(other))
    with pytest.raises(LedgerError, match=f"the server knows this site by ledger {echo.id}.*{RESTORE}"):
        Ledger(other).reserve(entry(), echo=echo)
    assert Ledger(other).head.count == 0


def test_an_entry_of_a_later_version_stops_the_site_instead_of_being_dropped(state):
    ledger = Ledger(state)
    line, _ = module.next_line({"time": 0.0, "job": "j", "colour": "red"}, ledger.head, ledger._key)
    put(state, [line])
    with pytest.raises(LedgerError, match="line 1 is this site's own, but this version of the package cannot read it"):
        Ledger(state)


def test_nothing_is_left_beside_the_files(state):
    book(state, 3)
    left = {str(path.relative_to(state)) for path in state.rglob("*")}
    assert left == {"ledger.jsonl", "ledger.lock", "local", "local/ledger.anchor", "local/ledger.key"}
