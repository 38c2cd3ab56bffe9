"""The anchor file, and the server's memory of every site's ledger."""

import json
import multiprocessing
import re

import pytest

from privfedtalk_flare.privacy.anchor import read_anchor, write_anchor
from privfedtalk_flare.privacy.chain import GENESIS, Head, LedgerError, ledger_id
from privfedtalk_flare.privacy.echo import EchoBook

KEY = b"k" * 32
HEAD = Head(ledger_id(KEY), 3, "ab" * 32)


def told(count, head="ab", ledger="0" * 32):
    return {"id": ledger, "count": count, "head": head * 32}


def test_an_anchor_comes_back_as_it_was_written(tmp_path):
    write_anchor(tmp_path / "ledger.anchor", HEAD, KEY)
    assert read_anchor(tmp_path / "ledger.anchor", KEY) == HEAD
    assert set(json.loads((tmp_path / "ledger.anchor").read_bytes())) == {"id", "count", "head", "hmac"}


@pytest.mark.parametrize("change", [{"count": 0, "head": GENESIS}, {"id": "0" * 32}, {"hmac": "0" * 64},
                                    {"hmac": None}, {"more": 1}])
def test_an_anchor_that_was_altered_is_refused(tmp_path, change):
    path = tmp_path / "ledger.anchor"
    write_anchor(path, HEAD, KEY)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(LedgerError, match=r"this anchor was altered.*restore it from a backup"):
        read_anchor(path, KEY)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\0" * 40, b'{"hmac": 1}'])
def test_an_anchor_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "ledger.anchor").write_bytes(content)
    with pytest.raises(LedgerError, match="this anchor was altered, torn"):
        read_anchor(tmp_path / "ledger.anchor", KEY)


def test_another_ledgers_anchor_is_refused(tmp_path):
    write_anchor(tmp_path / "ledger.anchor", HEAD, b"x" * 32)
    with pytest.raises(LedgerError, match="belongs to another key"):
        read_anchor(tmp_path / "ledger.anchor", KEY)


# The server's side

def test_the_server_keeps_the_farthest_head_of_each_site_over_jobs(tmp_path):
    for site, count in (("site-1", 1), ("site-2", 5), ("site-1", 2), ("site-2", 4)):
        assert EchoBook(tmp_path / "state").remember(site, told(count)) == ""
    assert EchoBook(tmp_path / "state").told(["site-1", "site-2", "site-3"]) == {"site-1": told(2), "site-2": told(5)}
    assert EchoBook(tmp_path / "state").told(["site-1"]) == {"site-1": told(2)}


@pytest.mark.parametrize(("then", "said"), [
    (told(9, ledger="1" * 32), r"its ledger 1{32} is another one than the 0{32} that it had; if that is as it should "
                               r"be, remove site-1 from .*ledgers\.json"),
    (told(3, head="cd"), "its ledger says something else about release 3")])
def test_the_server_says_what_does_not_follow_and_goes_on_echoing_what_it_knew(tmp_path, then, said):
    book = EchoBook(tmp_path)
    assert book.remember("site-1", told(3)) == ""
    assert re.fullmatch(f"{said}.*", book.remember("site-1", then))
    assert book.told(["site-1"]) == {"site-1": told(3)}


@pytest.mark.parametrize("content", ["", "[]", '{"site-1": 5}', '{"site-1": {"id": "a"}}'])
def test_a_memory_that_cannot_be_read_is_no_empty_one(tmp_path, content):
    (tmp_path / "ledgers.json").write_text(content)
    with pytest.raises(LedgerError, match=r"ledgers\.json: not what this server wrote .*restore it from a backup"):
        EchoBook(tmp_path).told(["site-1"])


def remember(state, number):
    for count in range(1, 6):
        EchoBook(state).remember(f"site-{number}", told(count))


def test_jobs_at_once_forget_no_site(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(remember, [(tmp_path, number) for number in range(4)], chunksize=1)
    sites = [f"site-{number}" for number in range(4)]
    assert EchoBook(tmp_path).told(sites) == dict.fromkeys(sites, told(5))
