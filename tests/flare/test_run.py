"""One real run of the main job, scaled down, read by many tests: CKKS, DP, two sites of two people, every phase."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tenseal
from safetensors import safe_open
from simulation import BRIEF, Run, simulate

from privfedtalk_flare.encryption.keys import load_public
from privfedtalk_flare.evaluation.summary import ROWS, load_summary
from privfedtalk_flare.evaluation.table import render
from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe
from privfedtalk_flare.settings import AdapterSettings, DataSettings, PrivacySettings, RoundSettings

PEOPLE = DataSettings(source="synthetic", people=2, clips=2, seconds=1.0)
WIRETAP = Path(__file__).with_name("wiretap.py")


@pytest.fixture(scope="module")
def run(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("main")
    PrivFedTalkRecipe("privfedtalk", data=PEOPLE, adapter=AdapterSettings(backbone=str(untrained)), training=BRIEF,
                      personalize=BRIEF, rounds=RoundSettings(rounds=2)).export(str(folder))
    (folder / "tap").mkdir()
    (folder / "hook").mkdir()
    shutil.copy(WIRETAP, folder / "hook" / "sitecustomize.py")
    done = simulate(folder / "privfedtalk", folder / "run",
                    env={"PYTHONPATH": str(folder / "hook"), "WIRETAP": str(folder / "tap")})
    assert done.code == 0, done.output[-3000:]
    return done


@pytest.fixture(scope="module")
def wire(run: Run) -> bytes:
    """Everything that any process of the run wrote to a socket."""
    return b"".join(path.read_bytes() for path in sorted((run.workspace.parent / "tap").iterdir()))


def state(run: Run, site: str) -> Path:
    return run.workspace.parent / "run-state" / site


def tensors(path: Path) -> Iterator[np.ndarray]:
    with safe_open(str(path), framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - safetensors offers no iterator
            yield file.get_tensor(name)


def pieces(path: Path, size: int = 32) -> list[bytes]:
    """A run of bytes from the middle of every tensor of a file that is not constant, in float32 and in float16."""
    found = []
    for tensor in tensors(path):
        flat = tensor.reshape(-1)
        flat = flat[len(flat) // 2:][:size]
        if len(np.unique(flat)) > len(flat) // 2:
            kinds = [flat] if flat.dtype == np.uint8 else [flat.astype(np.float32), flat.astype(np.float16)]
            found += [kind.tobytes()[:size] for kind in kinds]
    return found


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_the_summary_has_every_row_and_round(run: Run) -> None:
    summary = load_summary(run.workspace)
    assert set(summary.rows) == set(ROWS)
    assert summary.rows["personalized"]["psnr_mask"]["n"] == 4
    assert [entry.round for entry in summary.rounds] == [1, 2]
    down = [{site["bytes_down"] for site in entry.sites.values()} for entry in summary.rounds]
    assert down[0] == {0} and 0 < min(down[1]) < 24 * 90_112  # round 1 says that theta is zero and sends none
    for entry in summary.rounds:
        assert sum(site["weight"] for site in entry.sites.values()) == pytest.approx(1)
        assert set(entry.sites) == {"site-1", "site-2"}
        assert all(site["count"] == 2 and site["bytes_up"] > 0 for site in entry.sites.values())
        assert entry.delta == 1e-5
        assert entry.snr is not None and entry.snr < 1
        assert "4 people" in entry.words and "clip count are published and lie outside this promise" in entry.words
    first, second = (entry.epsilon for entry in summary.rounds)
    assert first["receivers"] == pytest.approx(4.3772, abs=1e-3)  # one Gaussian release at sigma 1, delta 1e-5
    assert second["receivers"] > first["receivers"]
    assert second["server"] == second["receivers"]  # metrics of theta go to the server
    assert summary.bytes_per_value <= 42
    assert 0 < summary.overhead_share < 1
    assert len(summary.videos) == len(summary.adapters) == 4
    assert summary.settings["sigma"] == 1.0 and summary.settings["C"] == PrivacySettings().clip_norm
    assert not summary.notes
    assert "personalized" in render(summary)


def test_named_files_exist(run: Run) -> None:
    summary = load_summary(run.workspace)
    for named in summary.videos:
        site, _, path = named.partition(":")
        assert (run.workspace / site / "simulate_job" / path).is_file()
    for named in summary.adapters:
        site, _, path = named.partition(":")
        assert (state(run, site) / path).is_file()


def test_rounds_are_printed_as_they_happen(run: Run) -> None:
    for text in ("round 1/2  site-1 weight 0.", "(receivers, server, server with a site) given public metadata",
                 f"sigma 1, C {PrivacySettings().clip_norm:g}", "snr 0.", "phase validate done", "no share cap"):
        assert text in run.output
    assert "nvflare.private" not in run.output


def test_no_identity_adapter_crosses(run: Run, wire: bytes) -> None:
    ciphertext = next(tensors(state(run, "server") / "rounds" / "simulate_job.safetensors"))
    assert ciphertext[1000:1064].tobytes() in wire  # the tap hears what the server sends
    for site in ("site-1", "site-2"):  # and what each site does: two uploads
        heard = b"".join(path.read_bytes() for path in (run.workspace.parent / "tap").glob(f"{site}-*"))
        assert heard.count(b"chunk_0000") >= 2 and len(heard) > 2 * 90_112 * 40
    paths = sorted((run.workspace.parent / "run-state").glob("site-*/identities/*/adapter.safetensors"))
    assert len(paths) == 4
    for path in paths:
        looked_for = pieces(path)
        assert len(looked_for) > 20
        assert not [piece for piece in looked_for if piece in wire]


def test_no_shared_adapter_in_clear_crosses_or_lies_at_the_server(run: Run, wire: bytes) -> None:
    held = all_bytes(run.workspace / "server") + all_bytes(state(run, "server"))
    looked_for = pieces(state(run, "site-1") / "shared" / "adapter.safetensors")
    looked_for += pieces(run.workspace / "site-1" / "simulate_job" / "theta.safetensors")
    assert looked_for
    for piece in looked_for:
        assert piece not in held
        assert piece not in wire


def test_the_server_holds_no_secret_key(run: Run, wire: bytes) -> None:
    keys = run.workspace / "keys"
    public, secret = ((keys / f"{who}_context.tenseal").read_bytes() for who in ("server", "client"))
    held = all_bytes(run.workspace / "server") + all_bytes(state(run, "server"))
    private = [piece for at in range(0, len(secret) - 64, 997) if (piece := secret[at:at + 64]) not in public]
    assert private
    assert not [piece for piece in private if piece in held or piece in wire]
    context = load_public(public)
    assert not context.is_private()
    chunk = next(tensors(state(run, "server") / "rounds" / "simulate_job.safetensors"))
    with pytest.raises(ValueError, match="doesn't hold a secret_key"):
        tenseal.ckks_vector_from(context, chunk.tobytes()).decrypt()


def test_no_name_of_a_person_or_clip_and_no_path_of_a_site_is_in_what_a_site_sends_or_the_server_holds(
        run: Run, wire: bytes) -> None:
    rendered = sorted((run.workspace.parent / "run-state").glob("site-*/synthetic/*/*/*.mp4"))
    assert len(rendered) == 8
    private = {path.parent.name for path in rendered} | {str(path.parents[3]) for path in rendered}
    private |= {f"{path.parent.name}/{path.stem}" for path in rendered}
    held = all_bytes(run.workspace / "server") + all_bytes(state(run, "server"))
    for site in ("site-1", "site-2"):
        heard = b"".join(path.read_bytes() for path in (run.workspace.parent / "tap").glob(f"{site}-*"))
        assert site.encode() in heard and site.encode() in held
        assert not [name for name in sorted(private) if name.encode() in heard or name.encode() in held]


def test_the_server_keeps_the_state_of_the_last_round(run: Run) -> None:
    path = state(run, "server") / "rounds" / "simulate_job.safetensors"
    with safe_open(str(path), framework="numpy") as file:
        kept = json.loads(file.metadata()["state"])
    assert kept["header"]["round"] == 2 and len(kept["rounds"]) == 2
    assert all(tensor.dtype == np.uint8 for tensor in tensors(path))


def test_scalars_reach_the_server_and_nothing_private_does(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: dict[str, set[str]] = {}
    for folder in (run.server / "tb_events").iterdir():
        events = EventAccumulator(str(folder))
        events.Reload()
        tags[folder.name] = set(events.Tags()["scalars"])
    assert tags["site-1"] == tags["site-2"] == {"snr", "identities"}
    assert {"weight/site-1", "epsilon/receivers", "metric/personalized/sync"} <= tags["simulator_server"]


def test_the_ledger_spans_the_run(run: Run) -> None:
    lines = (state(run, "site-1") / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
