"""ISFAAggregator and the site's filters inside FLARE's own FedAvg(aggregator=...): real simulator runs, real keys."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.fuel.utils import fobs

from privfedtalk_flare.encryption import keys, packing
from privfedtalk_flare.flare.chunks import from_params
from privfedtalk_flare.privacy.ledger import Ledger

SIZE = 2500
EXECUTOR = '''
"""Small numpy executors: each site's update is a constant of its own."""
from dataclasses import dataclass

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.executor import Executor

from privfedtalk_flare.flare.filters import raw_reply


@dataclass
class Update:
    vector: np.ndarray
    score: float
    count: int


class Plain(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        number = int(fl_ctx.get_identity_name().rsplit("-", 1)[1])
        meta = {"score": number / 16, "count": 3 * number}
        return DXO(DataKind.WEIGHTS, data={"plain": np.full(2500, 0.1 * number, np.float32)}, meta=meta).to_shareable()


class Raw(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        number = int(fl_ctx.get_identity_name().rsplit("-", 1)[1])
        people = [Update(np.full(2500, 0.1 * number, np.float32), 0.5, 2) for _ in range(2)]
        meta = {"values": 2500, "busy": []}
        if number == 3:
            meta["raw_loss"] = 0.123  # may not leave
        return raw_reply(people, meta)
'''


def named(path, **args):
    return {"path": f"privfedtalk_flare.flare.{path}", "args": args}


def simulate(folder: Path, clients: int, executor: str, data: list, result: list, **settings) -> tuple[Path, str]:
    """Writes the job, runs it, and returns the simulator's workspace and its log."""
    job, workspace = folder / "job", folder / "run"
    config = job / "app" / "config"
    config.mkdir(parents=True)
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "study_executor.py").write_text(EXECUTOR)
    (job / "meta.json").write_text(json.dumps({
        "name": "fedavg", "resource_spec": {}, "min_clients": 2, "deploy_map": {"app": ["@ALL"]}}))
    controller = {"id": "controller", "path": "nvflare.app_common.workflows.fedavg.FedAvg", "args": {
        "num_clients": clients, "num_rounds": 2, "persistor_id": "", "model": {}, "task_name": "adapter",
        "ignore_result_error": True, "save_filename": "theta.fobs",
        "aggregator": named("aggregator.ISFAAggregator", encryption={}, **settings)}}
    (config / "config_fed_server.json").write_text(json.dumps({"format_version": 2, "workflows": [controller]}))
    (config / "config_fed_client.json").write_text(json.dumps({
        "format_version": 2,
        "executors": [{"tasks": ["adapter"], "executor": {"path": f"study_executor.{executor}", "args": {}}}],
        "task_data_filters": [{"tasks": ["adapter"], "filters": data}] if data else [],
        "task_result_filters": [{"tasks": ["adapter"], "filters": result}]}))
    (workspace / "local").mkdir(parents=True)
    site_file = f"state: {folder}/state/{{site}}\nrequire_encryption: false\n"
    (workspace / "local" / "privfedtalk.yaml").write_text(site_file)
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), "-w", str(workspace), "-n", str(clients),
               "-t", str(clients)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder)}, timeout=240,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return workspace, done.stdout


def final_theta(workspace: Path) -> np.ndarray:
    """The adapter that FedAvg saved at the server, opened with the sites' key."""
    saved = list(workspace.glob("server/**/theta.fobs"))
    assert saved, (workspace / "server" / "log.txt").read_text()[-4000:]
    model = fobs.loadf(str(saved[0]))
    context = keys.load_secret((workspace / "keys" / "client_context.tenseal").read_bytes())
    return packing.decrypt(from_params(model.params if isinstance(model, FLModel) else model), SIZE, context)


def test_isfa_in_flares_own_fedavg(tmp_path):
    workspace, _ = simulate(tmp_path, 2, "Plain", [], [named("filters.EncryptUpdate", encryption={})],
                            reliability={"gamma": 2.0})
    w = np.array([3 * np.exp(2 / 16), 6 * np.exp(4 / 16)])
    expected = 2 * float(w @ [0.1, 0.2]) / w.sum()  # two rounds, each adding the weighted mean
    np.testing.assert_allclose(final_theta(workspace), expected, atol=5e-5)
    secret = (workspace / "keys" / "client_context.tenseal").read_bytes()
    part = secret[len(secret) // 2:len(secret) // 2 + 64]
    for file in (workspace / "server").rglob("*"):
        assert not file.is_file() or part not in file.read_bytes(), f"{file}: secret key at the server"


def test_the_whole_chain_of_a_site_with_one_site_blocked(tmp_path):
    privacy = {"noise_multiplier": 0.01, "clip_norm": 1.0}
    workspace, log = simulate(
        tmp_path, 3, "Raw", [named("filters.ReserveRelease", privacy=privacy, reliability={})],
        [named("filters.PrivacyFilter", privacy=privacy, reliability={}), named("filters.EncryptUpdate", encryption={}),
         named("egress.EgressFilter", encryption={})], reliability={})
    assert "'raw_loss' may not leave" in log and "0.123" not in log
    theta = final_theta(workspace)
    # per round: both clipped to norm 1, 1 / sqrt(2500) = .02 a value; the third site's reply never left
    assert theta.mean() == pytest.approx(2 * 0.02, abs=5 * 0.01 / 50)
    assert theta.std() == pytest.approx(0.01 / 2, rel=0.1)  # sigma C / m = .005, sqrt(2 rounds x 2 sites) / 2 = 1
    for site in ("site-1", "site-2", "site-3"):
        ledger = Ledger(tmp_path / "state" / site)
        assert ledger.head.count == 2, "a blocked release stays spent"
