"""ISFAAggregator inside FLARE's own FedAvg(aggregator=...), in a real simulator run with real ciphertexts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.fuel.utils import fobs

from privfedtalk_flare.encryption import keys, packing
from privfedtalk_flare.flare.chunks import from_params

EXECUTOR = '''
"""A small numpy executor: each site's update is a constant of its own."""
import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.executor import Executor


class StudyExecutor(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        number = int(fl_ctx.get_identity_name().rsplit("-", 1)[1])
        meta = {"score": number / 16, "count": 3 * number}
        return DXO(DataKind.WEIGHTS, data={"plain": np.full(2500, 0.1 * number, np.float32)}, meta=meta).to_shareable()
'''


def write_job(job: Path, gamma: float) -> None:
    (job / "app" / "config").mkdir(parents=True)
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "study_executor.py").write_text(EXECUTOR)
    (job / "meta.json").write_text(json.dumps({
        "name": "fedavg", "resource_spec": {}, "min_clients": 2, "deploy_map": {"app": ["@ALL"]}}))
    aggregator = {"path": "privfedtalk_flare.flare.aggregator.ISFAAggregator",
                  "args": {"reliability": {"gamma": gamma}, "encryption": {}}}
    controller = {"id": "controller", "path": "nvflare.app_common.workflows.fedavg.FedAvg",
                  "args": {"num_clients": 2, "num_rounds": 2, "persistor_id": "", "model": {}, "aggregator": aggregator,
                           "save_filename": "theta.fobs"}}
    (job / "app" / "config" / "config_fed_server.json").write_text(json.dumps({
        "format_version": 2, "workflows": [controller], "components": [], "task_data_filters": [],
        "task_result_filters": []}))
    encrypt = {"path": "privfedtalk_flare.flare.filters.EncryptUpdate", "args": {"encryption": {}}}
    (job / "app" / "config" / "config_fed_client.json").write_text(json.dumps({
        "format_version": 2, "executors": [{"tasks": ["train"], "executor": {"path": "study_executor.StudyExecutor",
                                                                             "args": {}}}],
        "components": [], "task_data_filters": [],
        "task_result_filters": [{"tasks": ["train"], "filters": [encrypt]}]}))


def test_isfa_in_flares_own_fedavg(tmp_path):
    write_job(tmp_path / "job", gamma=2.0)
    workspace = tmp_path / "run"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(tmp_path / "job"), "-w", str(workspace), "-n", "2",
               "-t", "2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    log = done.stdout + done.stderr
    saved = sorted(workspace.glob("server/**/theta.fobs"))
    assert done.returncode == 0 and saved, log[-4000:]
    model = fobs.loadf(str(saved[0]))
    params = model.params if isinstance(model, FLModel) else model
    context = keys.load_secret((workspace / "keys" / "client_context.tenseal").read_bytes())
    theta = packing.decrypt(from_params(params), 2500, context)
    w = np.array([3 * np.exp(2 / 16), 6 * np.exp(4 / 16)])
    expected = 2 * float(w @ [0.1, 0.2]) / w.sum()  # two rounds, each adding the weighted mean
    np.testing.assert_allclose(theta, expected, atol=5e-5)
    secret = context.secret_key()
    assert secret is not None
    for file in (workspace / "server").rglob("*"):
        assert not file.name.startswith("client_context"), "the secret context must not reach the server's folder"
