"""One server's work: `python tests/benchmarks/aggregate.py`, which takes 41 GB of disk (`--quick`: a minute, 1 GB).

**Sums**: 4 to 256 updates through `ISFAAggregator`, as they arrive: read from a file as if from the wire, checked, kept
on disk, added up. Each cell is a server process of its own, with the public context alone, so that its peak RSS is what
this number of sites takes. **Wire**: the shipped adapter's update through our filters and FLARE's serialiser, beside
the same update through NVFLARE's own HE as its recipe configures it, one site each way, in this same run.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import common_decomposers
from nvflare.fuel.utils import fobs
from rich.console import Console
from rich.table import Table

from privfedtalk_flare.encryption import keys, packing
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.chunks import from_params, to_params
from privfedtalk_flare.settings import EncryptionSettings

SHIPPED = 90_112
"""Values of the shipped backbone's adapter."""
SITES = (4, 16, 64, 256)
MOST_GROWTH = 1.2
"""Most that peak RSS at the largest number of sites may be, of that at the smallest."""
MOST_BYTES, LEAST_FEWER, LEAST_FASTER = 42.0, 3.0, 1.5
"""Bytes a value up; how many times fewer bytes, and seconds, than NVFLARE's own HE."""


def serve(folder: Path, sites: int) -> None:
    """The server process of one cell: prints seconds and peak memory as JSON."""
    logging.disable(logging.INFO)
    parts = sorted(folder.glob("chunk_*"))
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    aggregator = ISFAAggregator({"max_share": 64.0}, None, {"eta": 1.0, "min_sites": sites})
    aggregator._context = keys.load_public((folder / "server_context.tenseal").read_bytes())
    header = {key: told[key] for key in p.HEADER}
    aggregator.begin_round(header, [f"site-{number}" for number in range(sites)])
    before, accepting = _peak(), 0.0
    for number in range(sites):
        chunks = to_params([part.read_bytes() for part in parts])  # as a reply that has just arrived
        began = time.perf_counter()
        reason = aggregator.accept_model(FLModel(
            params_type=ParamsType.FULL, params=chunks,
            meta={**told, p.SCORE: (number % 17) / 16, p.COUNT: 1 + number % 64, "client_name": f"site-{number}"}))
        accepting += time.perf_counter() - began
        if reason:
            raise RuntimeError(reason)
    began = time.perf_counter()
    aggregator.aggregate_model()
    print(json.dumps({"accept": accepting, "sum": time.perf_counter() - began, "before": before, "peak": _peak()}))


def _peak() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sums(values: int, sites: Sequence[int], folder: Path) -> dict[int, dict[str, float]]:
    """Encrypts one update of `values` into `folder`, and runs a server process for each number of sites."""
    secret, public = keys.make_pair(EncryptionSettings())
    client = keys.load_secret(secret)
    (folder / "server_context.tenseal").write_bytes(public)
    update = np.random.default_rng(0).normal(0, 1e-3, values).astype(np.float32)
    for i, chunk in enumerate(packing.encrypt(update, client)):
        (folder / f"chunk_{i:06d}").write_bytes(chunk)
    told = {p.JOB: "job", p.ROUND: 1, p.NONCE: "aa", p.SPEC: "0" * 64, p.BACKBONE: "1" * 64,
            p.KEY_ID: keys.key_id(client), p.VALUES: values, p.IDENTITIES: 2}
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")
    found = {}
    for number in sites:
        done = subprocess.run([sys.executable, __file__, "--serve", str(folder), str(number)], check=True,
                              stdout=subprocess.PIPE, text=True)
        found[number] = json.loads(done.stdout.splitlines()[-1])
        print(f"{values} values, {number} sites: {found[number]}", flush=True)
    return found


def ours(update: Mapping[str, np.ndarray], client: Any, server: Any) -> tuple[int, float, np.ndarray]:
    """(bytes up, seconds, the sum as a site decrypts it) of one update through our own chain."""
    flat = np.concatenate([tensor.ravel() for tensor in update.values()])
    began = time.perf_counter()
    meta = {p.JOB: "job", p.ROUND: 1, p.NONCE: "aa", p.SPEC: "0" * 64, p.BACKBONE: "1" * 64, p.IDENTITIES: 2,
            p.KEY_ID: keys.key_id(client), p.VALUES: flat.size, p.SCORE: 0.5, p.COUNT: 4}
    sent = fobs.dumps(DXO(DataKind.WEIGHTS, data=to_params(packing.encrypt(flat, client)), meta=meta).to_shareable())
    dxo = from_shareable(fobs.loads(sent))
    aggregator = ISFAAggregator()
    aggregator._context = server
    aggregator.begin_round(meta, ["site-1"])
    reason = aggregator.accept_model(FLModel(params_type=ParamsType.FULL, params=dxo.data,
                                             meta={**dxo.meta, "client_name": "site-1"}))
    if reason:
        raise RuntimeError(reason)
    theta = fobs.dumps(DXO(DataKind.WEIGHTS, data=aggregator.aggregate_model().params).to_shareable())
    back = packing.decrypt(from_params(from_shareable(fobs.loads(theta)).data), flat.size, client)
    return len(sent), time.perf_counter() - began, back


def nvflares(update: Mapping[str, np.ndarray], client: Any) -> tuple[int, float, np.ndarray]:
    """The same through the filters and the aggregator of NVFLARE's `FedAvgRecipeWithHE`, with its arguments."""
    from nvflare.apis.event_type import EventType
    from nvflare.app_opt.he.homomorphic_encrypt import serialize_nested_dict
    from nvflare.app_opt.he.intime_accumulate_model_aggregator import HEInTimeAccumulateWeightedAggregator
    from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
    from nvflare.app_opt.he.model_encryptor import HEModelEncryptor

    site, ctx = FLContext(), FLContext()
    site.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=False)
    ctx.set_peer_context(site)
    ctx.set_prop(AppConstants.CURRENT_ROUND, 0)
    began = time.perf_counter()
    encryptor, decryptor = HEModelEncryptor(weigh_by_local_iter=True), HEModelDecryptor()
    encryptor.tenseal_context = decryptor.tenseal_context = client
    encryptor.encrypt_layers = [True]  # what both set on START_RUN, from the kit
    dxo = DXO(DataKind.WEIGHT_DIFF, data=dict(update), meta={"NUM_STEPS_CURRENT_ROUND": 20})
    shareable = encryptor.process_dxo(dxo, None, ctx).to_shareable()
    shareable.set_peer_props({ReservedKey.IDENTITY_NAME: "site-1"})
    shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
    sent = fobs.dumps(shareable)
    aggregator = HEInTimeAccumulateWeightedAggregator(weigh_by_local_iter=False)
    aggregator.handle_event(EventType.START_RUN, ctx)
    if not aggregator.accept(fobs.loads(sent), ctx):
        raise RuntimeError("NVFLARE's aggregator refused its own update")
    summed = from_shareable(aggregator.aggregate(ctx))
    serialize_nested_dict(summed.data)  # as the server does before it sends
    received = fobs.loads(fobs.dumps(summed.to_shareable()))
    back = from_shareable(decryptor.process(received, ctx)).data
    return len(sent), time.perf_counter() - began, np.concatenate([np.asarray(back[name]) for name in update])


def wire(repeats: int) -> dict[str, tuple[float, float, float]]:
    """(bytes a value up, median seconds, largest error) of each, over `repeats` rounds of one site."""
    import tenseal as ts

    logging.disable(logging.CRITICAL)  # NVFLARE's aggregator misses the engine to which it would tell events
    common_decomposers.register()  # as FLARE does at start-up
    shapes = _shapes()
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    rng = np.random.default_rng(0)
    update = {name: rng.normal(0, 1e-3, shape).astype(np.float32) for name, shape in shapes.items()}
    truth = np.concatenate([tensor.ravel() for tensor in update.values()])
    secret, public = keys.make_pair(EncryptionSettings())
    client, server = keys.load_secret(secret), keys.load_public(public)
    theirs = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40],
                        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC)  # HEBuilder's defaults
    theirs.global_scale = 2.0 ** 40
    chains: dict[str, Callable[[], tuple[int, float, np.ndarray]]] = {
        "PrivFedTalk": lambda: ours(update, client, server), "NVFLARE's own HE": lambda: nvflares(update, theirs)}
    seen: dict[str, list[tuple[int, float, np.ndarray]]] = {name: [] for name in chains}
    for _ in range(repeats):  # in turn, so that a busy moment of the machine falls on both
        for name, chain in chains.items():
            seen[name].append(chain())
    return {name: (max(sent for sent, _, _ in rounds) / size, statistics.median(took for _, took, _ in rounds),
                   max(float(np.abs(back - truth).max()) for _, _, back in rounds)) for name, rounds in seen.items()}


def _shapes() -> Mapping[str, tuple[int, ...]]:
    """The tensors of the shipped adapter, by name."""
    from privfedtalk_flare.generator.adapters import SharedAdapter
    from privfedtalk_flare.generator.pipeline import load_pipeline

    spec = SharedAdapter(load_pipeline("assets").denoiser, 8, 1.0, "b").spec
    return dict(zip(spec.names, spec.shapes, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, nargs="*", default=[SHIPPED, 4_000_000], help="lengths of an update")
    parser.add_argument("--sites", type=int, nargs="*", default=list(SITES), help="numbers of sites")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the wire's comparison")
    parser.add_argument("--quick", action="store_true", help="the shipped adapter's length alone, 4 and 256 sites")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.serve:
        serve(Path(parsed.serve[0]), int(parsed.serve[1]))
        return 0
    lengths, sites = ([SHIPPED], [SITES[0], SITES[-1]]) if parsed.quick else (parsed.values, sorted(parsed.sites))
    table, missed = Table("values", "sites", "check and keep s", "sum s", "RSS before MiB", "peak RSS MiB"), []
    for values in lengths:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            found = sums(values, sites, Path(folder))
        for number, cell in found.items():
            table.add_row(f"{values:,}", str(number), f"{cell['accept']:.1f}", f"{cell['sum']:.1f}",
                          f"{cell['before']:.0f}", f"{cell['peak']:.0f}")
        if (growth := found[sites[-1]]["peak"] / found[sites[0]]["peak"]) > MOST_GROWTH:
            missed.append(f"peak RSS grows {growth:.2f} times at {values} values")
    chains = wire(parsed.repeats)
    (bytes_own, seconds_own, _), (bytes_theirs, seconds_theirs, _) = chains.values()
    wired = Table("one update, there and back", "bytes a value up", "seconds", "largest error")
    for name, (per_value, seconds, error) in chains.items():
        wired.add_row(name, f"{per_value:.1f}", f"{seconds:.2f}", f"{error:.1e}")
    for one in (table, wired):
        Console(width=100).print(one)
    fewer, faster = bytes_theirs / bytes_own, seconds_theirs / seconds_own
    print(f"{fewer:.1f} times fewer bytes, {faster:.1f} times fewer seconds than NVFLARE's own HE")
    for bad, words in ((bytes_own > MOST_BYTES, f"more than {MOST_BYTES:g} bytes a value"),
                       (fewer < LEAST_FEWER, f"less than {LEAST_FEWER:g} times fewer bytes"),
                       (faster < LEAST_FASTER, f"less than {LEAST_FASTER:g} times fewer seconds")):
        if bad:
            missed.append(words)
    print("MISSED: " + "; ".join(missed) if missed else "all bars hold")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
