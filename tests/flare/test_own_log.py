"""What the package logs at a site: people by opaque ids, paths of a bad clip in the site's own log alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.signal import Signal
from nvflare.fuel.utils import fobs
from sites import JOB, context

from privfedtalk_flare.data.synthetic import Person, write_corpus
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.egress import EgressFilter
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.settings import DataSettings
from privfedtalk_flare.training.corpus import gather

NAMES = ("ann_lee", "bo_berg")
HEADER = {p.JOB: JOB, p.ROUND: 1, p.NONCE: "ab12", p.SPEC: "", p.BACKBONE: "", p.KEY_ID: ""}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people under their names: Ann has a truncated clip beside two good ones, Bo a single clip."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, [Person.draw(7, i) for i in range(2)], clips=2, seconds=1.0)
    for drawn, name in zip(sorted(folder.iterdir()), NAMES, strict=True):
        drawn.rename(folder / name)
    first, second = sorted((folder / NAMES[0]).glob("*.mp4"))
    second.with_name("clip-99.mp4").write_bytes(first.read_bytes()[:2000])
    next((folder / NAMES[1]).glob("*.mp4")).unlink()
    return folder


def private(text: str, corpus: Path) -> list[str]:
    """Which names and paths of the site `text` holds."""
    return [word for word in (*NAMES, str(corpus)) if word in text]


def test_people_are_logged_by_opaque_ids_and_only_a_bad_clip_by_its_path(tmp_path: Path, corpus: Path) -> None:
    lines: list[str] = []
    place = place_of(context(tmp_path, yaml=f"corpus: {corpus}\n"))
    people = gather(DataSettings(), place, 64, lines.append)
    assert len(people) == 1 and len(lines) == 3
    skipped = [line for line in lines if line.startswith("clip skipped: ")]
    assert len(skipped) == 1 and "clip-99.mp4" in skipped[0]  # its operator has to find it
    for line in lines:
        assert line in skipped or not private(line, corpus), line
    assert any(line.startswith("person ") and "is left out: 1 good clips" in line for line in lines)


def test_a_failed_task_names_its_clips_below_error_and_never_in_the_reply(
        tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = context(tmp_path, task=p.TASK_VALIDATE, yaml=f"corpus: {corpus}\n")
    executor = PrivFedTalkExecutor(data={"held_out": 5}, adapter={}, training={}, personalize={}, reliability={},
                                   privacy={}, rounds={}, backbone={})
    caplog.set_level(logging.DEBUG)
    task = DXO(DataKind.WEIGHTS, data={}, meta={**HEADER, p.ZERO: True}).to_shareable()
    reply = EgressFilter().process(executor.execute(p.TASK_VALIDATE, task, site, Signal()), site)
    assert reply.get_return_code() == ReturnCode.EMPTY_RESULT
    sent = bytes(fobs.dumps(reply))
    assert not [word for word in (*NAMES, str(corpus), str(tmp_path)) if word.encode() in sent]
    assert private(caplog.text, corpus) == [NAMES[0], str(corpus)]  # where it looked, what it skipped
    for record in caplog.records:
        if record.levelno >= logging.ERROR:  # what FLARE writes into the log that sites stream
            assert not private(record.getMessage(), corpus)


def test_what_is_blocked_says_why_below_error(tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = context(tmp_path, task=p.TASK_VALIDATE)
    dxo = DXO(DataKind.METRICS, data={"rows": {}}, meta={**HEADER, p.VIDEOS: [f"{corpus}/{NAMES[0]}/clip.mp4"]})
    with pytest.raises(Exception, match="this site's own log says why") as blocked:
        EgressFilter().process(dxo.to_shareable(), site)
    assert not private(str(blocked.value), corpus)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
