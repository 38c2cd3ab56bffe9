"""Nothing unlisted leaves a site: the egress filter on every shape of result that FLARE can carry."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.fuel.utils import fobs
from sites import JOB, context
from strategies import NUMBER, SECRET, TREES, Array, results, word

from privfedtalk_flare.encryption import packing
from privfedtalk_flare.evaluation.summary import METRICS, ROWS
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.books import book
from privfedtalk_flare.flare.chunks import from_params, to_params
from privfedtalk_flare.flare.egress import EgressFilter
from privfedtalk_flare.flare.keys import client_context
from privfedtalk_flare.flare.replies import bare, status_reply, without_payload
from privfedtalk_flare.flare.scalars import SCALARS
from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.settings import EncryptionSettings

SIZE = 2500
HEADER = {p.JOB: JOB, p.ROUND: 1, p.NONCE: "ab12", p.SPEC: "0" * 64, p.BACKBONE: "1" * 64, p.KEY_ID: ""}
LISTED = {
    p.TASK_ADAPTER: {*p.HEADER, p.VALUES, p.BUSY, p.SNR, p.SCORE, p.COUNT, p.CLIP_BIT, p.IDENTITIES, p.EPSILON,
                     p.LEDGER},
    p.TASK_PERSONALIZE: {*p.HEADER, p.BUSY, p.SNR, p.IDENTITIES, p.ADAPTERS},
    p.TASK_VALIDATE: {*p.HEADER, p.BUSY, p.SNR, p.IDENTITIES, p.VIDEOS},
    p.TASK_BACKBONE: {*p.HEADER, p.PHASE, p.COUNT, p.LOSS, p.BUSY}}
"""What may leave a site, written down again: a key that slips into the filter's own shows up here."""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FLContext]:
    """A context a task, and a chunk of ciphertext under the site's own key."""
    made = {task: context(tmp_path_factory.mktemp("site"), task=task) for task in p.TASKS}
    for fl_ctx in made.values():
        book(fl_ctx, HEADER, Release(1.0))
    return made


@pytest.fixture(scope="module")
def chunks(sites: dict[str, FLContext]) -> dict[str, np.ndarray]:
    own = client_context(sites[p.TASK_ADAPTER], EncryptionSettings())
    return to_params(packing.encrypt(np.full(SIZE, 0.001), own))


def good(task: str, chunks: dict[str, np.ndarray]) -> Shareable:
    """What the executor and the filters of ours send in answer to `task`."""
    kind, meta = DataKind.METRICS, {**HEADER, p.BUSY: [[100, 110]], p.SNR: 0.663, p.IDENTITIES: 2}
    if task == p.TASK_ADAPTER:
        kind, data = DataKind.WEIGHTS, dict(chunks)
        meta |= {p.VALUES: SIZE, p.SCORE: 0.75, p.COUNT: 8, p.CLIP_BIT: -0.125,
                 p.EPSILON: {"receivers": 4.38},
                 p.LEDGER: {"id": "a" * 32, "count": 1, "head": "b" * 64}}
    elif task == p.TASK_PERSONALIZE:
        data, meta[p.ADAPTERS] = {p.METRICS: {"loss": 0.1}}, ["identities/0123456789ab/adapter.safetensors"]
    elif task == p.TASK_VALIDATE:
        data = {"rows": {"shared": {"sync": {"mean": 0.9, "std": None, "n": 2}}}}
        meta[p.VIDEOS] = ["videos/0123456789ab.mp4"]
    else:
        kind, data = DataKind.WEIGHTS, {"codec/conv.weight": np.ones((2, 2), np.float32)}
        meta = {**HEADER, p.PHASE: "codec", p.COUNT: 3, p.LOSS: 0.5, p.BUSY: []}
    return DXO(kind, data=data, meta=meta).to_shareable()


def values(tree: Any) -> Iterator[Any]:
    """Every key and leaf of nested mappings and lists."""
    if isinstance(tree, dict):
        for key, item in tree.items():
            yield key
            yield from values(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from values(item)
    else:
        yield tree


def check_nothing_unlisted(out: Shareable, task: str) -> None:
    """Fails unless `out` holds what LISTED has for `task`, made of plain types, and no private word or number."""
    assert type(out) is Shareable and set(out) == {"DXO", ReservedHeaderKey.HEADERS}
    assert set(out[ReservedHeaderKey.HEADERS]) <= {ReservedHeaderKey.RC, ReservedHeaderKey.CONTENT_TYPE}
    assert set(out["DXO"]) == {"kind", "data", "meta"}
    for value in values(dict(out)):
        assert type(value) in (str, int, float, bool, type(None), np.ndarray, DataKind), type(value)
        assert not isinstance(value, str) or SECRET not in value
        if isinstance(value, np.ndarray):
            assert value.dtype.kind in "fiu" and value.dtype.metadata is None
    dxo = from_shareable(out)
    if out.get_return_code() != ReturnCode.OK:
        assert out.get_return_code() in vars(ReturnCode).values() and dxo.data == {}
        assert set(dxo.meta) <= {*p.HEADER, p.BUSY, p.STATUS} and dxo.meta[p.STATUS] in p.STATUSES
        return
    assert set(dxo.meta) <= LISTED[task]
    assert all(SCALARS[key](value) for key, value in dxo.meta.items())
    if task == p.TASK_ADAPTER:
        assert all(re.fullmatch(r"chunk_\d{4}", key) and value.dtype == np.uint8 for key, value in dxo.data.items())
    elif task == p.TASK_BACKBONE:
        assert all(value.dtype.kind == "f" and np.isfinite(value).all() for value in dxo.data.values())
    elif task == p.TASK_PERSONALIZE:
        assert set(dxo.data) == {p.METRICS} and set(dxo.data[p.METRICS]) <= {"loss"}
    elif task == p.TASK_VALIDATE:
        assert set(dxo.data) == {"rows"} and set(dxo.data["rows"]) <= set(ROWS)
        assert all(set(table) <= set(METRICS) for table in dxo.data["rows"].values())
    if task in (p.TASK_PERSONALIZE, p.TASK_VALIDATE):
        tables = dxo.data["rows"].values() if task == p.TASK_VALIDATE else dxo.data.values()
        assert not any(tables) or dxo.meta[p.IDENTITIES] >= 2


@pytest.mark.parametrize("task", p.TASKS)
@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_nothing_unlisted_gets_through(sites: dict[str, FLContext], chunks: dict[str, np.ndarray], task: str,
                                       data: st.DataObject) -> None:
    result = data.draw(results(lambda: good(task, chunks)))
    try:
        out = EgressFilter().process(result, sites[task])
    except ContentBlockedException as blocked:
        assert str(blocked) == "EgressFilter: the result may not leave; this site's own log says why"
        assert blocked.__cause__ is None and blocked.__context__ is None
        return
    check_nothing_unlisted(out, task)
    fobs.register(NumpyArrayDecomposer)
    assert SECRET.encode() not in bytes(fobs.dumps(out))


@pytest.mark.parametrize("task", p.TASKS)
def test_what_is_listed_gets_through_as_it_was(sites: dict[str, FLContext], chunks: dict[str, np.ndarray],
                                               task: str) -> None:
    sent, out = from_shareable(good(task, chunks)), EgressFilter().process(good(task, chunks), sites[task])
    check_nothing_unlisted(out, task)
    assert from_shareable(out).meta == sent.meta and from_shareable(out).data.keys() == sent.data.keys()
    if task == p.TASK_ADAPTER:
        got = packing.decrypt(from_params(from_shareable(out).data), SIZE,
                              client_context(sites[task], EncryptionSettings()))
        np.testing.assert_allclose(got, 0.001, atol=1e-4)


@pytest.mark.parametrize("task", [p.TASK_ADAPTER, p.TASK_BACKBONE])
@pytest.mark.parametrize("change", [{p.ROUND: 2}, {p.NONCE: "ab13"}])
def test_what_no_release_in_the_ledger_covers_does_not_leave(
        sites: dict[str, FLContext], chunks: dict[str, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture,
        task: str, change: dict[str, Any]) -> None:
    other = from_shareable(good(task, chunks))
    other.meta.update(change)
    for result, fl_ctx in ((other.to_shareable(), sites[task]), (good(task, chunks), context(tmp_path, task=task))):
        caplog.clear()
        with pytest.raises(ContentBlockedException):
            EgressFilter().process(result, fl_ctx)
        assert "the ledger holds no release for it" in caplog.text


@given(tree=TREES)
def test_a_failed_result_never_raises_and_keeps_status_words_only(tree: Any) -> None:
    for failed in (make_reply(tree), DXO(DataKind.WEIGHTS, data={"w": tree}, meta={p.STATUS: tree, p.NONCE: tree,
                                     p.BUSY: tree}).update_shareable(make_reply(ReturnCode.EXECUTION_EXCEPTION))):
        out = without_payload(failed)
        if out.get_return_code() != ReturnCode.OK:
            check_nothing_unlisted(out, p.TASK_ADAPTER)
    check_nothing_unlisted(status_reply(tree, {p.NONCE: tree, p.BUSY: tree}, tree), p.TASK_ADAPTER)


def test_bytes_beside_a_ciphertext_do_not_leave(sites: dict[str, FLContext], chunks: dict[str, np.ndarray]) -> None:
    """A field that the reader of this format does not know, at the end of a good chunk."""
    extra = b"\xfa\x01" + bytes([len(SECRET)]) + SECRET.encode()  # field 31, bytes
    spiked = dict(chunks)
    spiked["chunk_0000"] = np.frombuffer(chunks["chunk_0000"].tobytes() + extra, np.uint8)
    own = client_context(sites[p.TASK_ADAPTER], EncryptionSettings())
    packing.decrypt(from_params(spiked), SIZE, own)  # it opens as if nothing were there
    out = EgressFilter().process(good(p.TASK_ADAPTER, spiked), sites[p.TASK_ADAPTER])
    assert SECRET.encode() not in b"".join(from_params(from_shareable(out).data))


@pytest.mark.parametrize(("task", "change", "said"), [
    (p.TASK_PERSONALIZE, lambda d: d.data[p.METRICS].update({"loss_ann": 0.1}), "loss_ann"),
    (p.TASK_VALIDATE, lambda d: d.data["rows"].update(ann={}), "row 'ann' may not leave"),
    (p.TASK_VALIDATE, lambda d: d.data["rows"].update(ann=d.data["rows"]["shared"]), "row 'ann' may not leave"),
    (p.TASK_VALIDATE, lambda d: d.data["rows"]["shared"].update(ann=d.data["rows"]["shared"]["sync"]), "shared/ann"),
    (p.TASK_VALIDATE, lambda d: d.data["rows"]["shared"]["sync"].update(n=3), "more than there are"),
    (p.TASK_PERSONALIZE, lambda d: d.meta.update(adapters=["identities/ann/adapter.safetensors"]), "opaque id"),
    (p.TASK_PERSONALIZE, lambda d: d.meta.update(adapters=d.meta[p.ADAPTERS] * 2), "opaque id"),
    (p.TASK_VALIDATE, lambda d: d.meta.update(videos=[f"videos/{i:012x}.mp4" for i in range(3)]), "for 2 people"),
    (p.TASK_VALIDATE, lambda d: d.meta.update(busy=[[5, 4]]), "busy"),
    (p.TASK_VALIDATE, lambda d: d.meta.update(busy=[[7, 9], [1, 2]]), "busy"),
    (p.TASK_VALIDATE, lambda d: d.meta.update(snr=0.66312), "snr"),
    (p.TASK_VALIDATE, lambda d: d.meta.update(job="ann-lee"), "not this job"),
    (p.TASK_BACKBONE, lambda d: d.meta.update(phase="ann"), "phase")])
def test_numbers_and_names_of_one_person_do_not_pass_for_listed_ones(
        sites: dict[str, FLContext], chunks: dict[str, np.ndarray], task: str, change: Callable[[DXO], Any], said: str,
        caplog: pytest.LogCaptureFixture) -> None:
    dxo = from_shareable(good(task, chunks))
    change(dxo)
    with pytest.raises(ContentBlockedException):
        EgressFilter().process(dxo.to_shareable(), sites[task])
    assert said in caplog.text and {record.levelname for record in caplog.records} == {"WARNING"}


def test_bare_values_are_of_pythons_own_types_and_equal() -> None:
    held = bare({word("a"): [np.float64(NUMBER), True, (1, None)], "b": np.ones(3, np.float32).view(Array)})
    assert held["a"] == [NUMBER, True, [1, None]] and type(held["a"][0]) is float
    assert [type(key) for key in held] == [str, str] and type(held["b"]) is np.ndarray

    @dataclasses.dataclass
    class Pocket:
        name: str

    for value in (Pocket(SECRET), SECRET.encode(), np.array([SECRET]), {1, 2}, math.inf.hex):
        with pytest.raises(TypeError, match="may not leave a site"):
            bare(value)


def test_every_task_has_its_list() -> None:
    from privfedtalk_flare.flare import egress

    assert {task: set(keys) for task, keys in egress._META.items()} == LISTED


def test_the_site_is_named_where_a_result_is_blocked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ContentBlockedException):
        EgressFilter().process(Shareable({SECRET: 1}), context(tmp_path, task=p.TASK_ADAPTER))
    assert "site-1: result of adapter blocked by EgressFilter" in caplog.text
