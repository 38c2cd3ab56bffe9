"""What `low_memory` saves and costs: `python tests/benchmarks/memory.py`, some minutes; `--device cuda` on a GPU.

One person's round of the shipped adapter, then their own adapter, each in a process of its own: with and without, at
several batch sizes. On a GPU memory is what torch allocated there; else it is the process's peak RSS, most of which is
there before anything is trained.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

GIB = 2**30


def measure(device: str, batch: int, low_memory: bool, steps: int) -> None:
    """One process: prints its seconds and peaks as JSON."""
    import numpy as np
    import torch

    from privfedtalk_flare.settings import (
        AdapterSettings,
        BackboneSettings,
        DataSettings,
        ReliabilitySettings,
        TrainingSettings,
    )
    from privfedtalk_flare.training.place import SitePlace
    from privfedtalk_flare.training.site import SiteWork

    def peak() -> float:
        if device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(device) / GIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    with tempfile.TemporaryDirectory() as folder:
        place = SitePlace("site-1", None, Path(folder) / "state", Path(folder) / "run", devices=(device,),
                          low_memory=low_memory)
        training = TrainingSettings(steps=steps, batch=batch)
        work = SiteWork("site-1", place, DataSettings(source="synthetic", people=1, clips=3), AdapterSettings(),
                        training, training, ReliabilitySettings(mode="uniform"), BackboneSettings(), lambda text: None)
        theta = np.zeros(work.spec.size, np.float32)
        work.prepare()
        before, began = peak(), time.perf_counter()
        (update,) = work.adapter_round(theta, 1)
        shared = time.perf_counter() - began
        work.personalize(theta)
        print(json.dumps({"before": before, "peak": peak(), "adapter": shared, "personalize": time.perf_counter()
                          - began - shared, "norm": float(np.linalg.norm(update.vector))}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 16], help="windows a step (default 4 16)")
    parser.add_argument("--steps", type=int, default=10, help="steps of each training (default 10)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        measure(parsed.device, int(parsed.one[0]), parsed.one[1] == "low", parsed.steps)
        return 0
    table, missed = Table("batch", "low_memory", "before GiB", "peak GiB", "adapter s", "personalize s", "|update|"), []
    for batch in parsed.batches:
        took = {}
        for mode in ("default", "low"):
            done = subprocess.run([sys.executable, __file__, "--device", parsed.device, "--steps", str(parsed.steps),
                                   "--one", str(batch), mode], stdout=subprocess.PIPE, text=True, check=True)
            told = took[mode] = json.loads(done.stdout.splitlines()[-1])
            table.add_row(str(batch), str(mode == "low").lower(), f"{told['before']:.2f}", f"{told['peak']:.2f}",
                          f"{told['adapter']:.1f}", f"{told['personalize']:.1f}", f"{told['norm']:.4f}")
        own = {mode: told["peak"] - told["before"] for mode, told in took.items()}
        if own["low"] > own["default"] / 2:
            missed.append(f"at batch {batch} training takes {own['low']:.2f} GiB instead of {own['default']:.2f}")
    Console(width=100).print(table)
    print("MISSED: " + "; ".join(missed) if missed else "training takes at most half of the memory")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
