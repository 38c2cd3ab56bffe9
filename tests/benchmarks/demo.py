"""Runs the demo job with several seeds, `python tests/benchmarks/demo.py --seeds 3`, and holds it to the bars.

Each seed renders other people. With `--dp-off` the job runs without differential privacy and the bar is what the
federation teaches; without it, the personalised row and the price of privacy. Exit code 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from privfedtalk_flare.evaluation.summary import Summary, load_summary
from privfedtalk_flare.study.results import estimate

ROOT = Path(__file__).resolve().parents[2]
AT_LEAST, ABOVE, AT_MOST = "at least", "above", "at most"


@dataclass(frozen=True)
class Bar:
    """One demand: `value` of a summary, and the bound that its mean over seeds must keep. With `interval`, the end of
    the 95 % interval over seeds must keep it too (strictly, as a difference from 0 must)."""

    what: str
    value: Callable[[Summary], float]
    side: str
    bound: float
    interval: bool = False

    def holds(self, values: Sequence[float]) -> bool:
        mean = sum(values) / len(values)
        if not math.isfinite(mean):
            return False
        kept = {AT_LEAST: mean >= self.bound, ABOVE: mean > self.bound, AT_MOST: mean <= self.bound}[self.side]
        return kept and (not self.interval or estimate({(run, ""): value for run, value in enumerate(values)}).low > 0)


def mean_of(summary: Summary, row: str, metric: str) -> float:
    return summary.rows.get(row, {}).get(metric, {}).get("mean", math.nan)


def of(row: str, metric: str) -> Callable[[Summary], float]:
    return lambda summary: mean_of(summary, row, metric)


def above(row: str, other: str, metric: str) -> Callable[[Summary], float]:
    return lambda summary: mean_of(summary, row, metric) - mean_of(summary, other, metric)


def epsilon(summary: Summary) -> float:
    value = summary.rounds[-1].epsilon.get("receivers") if summary.rounds else None
    return float(value) if isinstance(value, (int, float)) else math.inf


WITH_DP = (
    Bar("personalized sync", of("personalized", "sync"), AT_LEAST, 0.95),
    Bar("personalized sync / ground_truth's",
        lambda s: mean_of(s, "personalized", "sync") / mean_of(s, "ground_truth", "sync"), AT_LEAST, 0.97),
    Bar("personalized sync offset", lambda s: mean_of(s, "personalized", "sync_offset"), AT_MOST, 0.0),
    Bar("personalized PSNR mask", of("personalized", "psnr_mask"), AT_LEAST, 26.5),
    Bar("  above copy_reference", above("personalized", "copy_reference", "psnr_mask"), AT_LEAST, 6.0),
    Bar("  above backbone", above("personalized", "backbone", "psnr_mask"), ABOVE, 0.0),
    Bar("personalized identity", of("personalized", "identity"), AT_LEAST, 0.93),
    Bar("  above backbone", above("personalized", "backbone", "identity"), ABOVE, 0.0),
    Bar("  above copy_reference", above("personalized", "copy_reference", "identity"), AT_LEAST, -0.02),
    Bar("personalized flicker", of("personalized", "flicker"), AT_MOST, 1.5),
    Bar("copy_reference PSNR mask", of("copy_reference", "psnr_mask"), AT_MOST, 21.0),
    Bar("epsilon, receivers", epsilon, AT_MOST, 10.0),
    Bar("shared above backbone, PSNR mask", above("shared", "backbone", "psnr_mask"), AT_LEAST, -0.3),
    Bar("bytes a value, up", lambda s: s.bytes_per_value or math.nan, AT_MOST, 42.0),
    Bar("overhead share", lambda s: s.overhead_share, AT_MOST, 0.4),
    Bar("wall seconds", lambda s: s.wall_seconds, AT_MOST, 480.0),
)
WITHOUT_DP = (Bar("shared above backbone, PSNR mask", above("shared", "backbone", "psnr_mask"), AT_LEAST, 0.3,
                  interval=True),)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds (n - 1), 0 for one seed."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def run_seed(job: Path, folder: Path, seed: int, dp: bool, sites: int) -> Summary:
    """Runs `job` with other people in FLARE's simulator; its workspace and the sites' state lie under `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    copy, workspace = folder / "job", folder / "workspace"
    shutil.copytree(job, copy)
    configs = sorted(copy.glob("*/config/config_fed_*.json"))
    for path in configs:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "data" in content:
            content["data"]["seed"] = seed
        if not dp and "privacy" in content:
            content["privacy"]["mechanism"] = "off"
        if not dp and "rounds" in content:
            content["rounds"]["phases"] = ["adapter", "validate"]  # the bar is on the shared adapter
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    (workspace / "local").mkdir(parents=True)
    (workspace / "local" / "privfedtalk.yaml").write_text(f"state: {folder / 'state'}/{{site}}\n", encoding="utf-8")
    command = [str(Path(sys.executable).with_name("nvflare")), "simulator", str(copy), "-w", str(workspace),
               "-n", str(sites), "-t", str(sites)]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"seed {seed}: the simulator ended with {done.returncode}; see {folder / 'log.txt'}")
    return load_summary(workspace)


def report(bars: Sequence[Bar], summaries: Sequence[Summary]) -> tuple[Table, bool]:
    """One line a bar: its value per seed, mean, spread, and whether it holds."""
    table = Table(box=SIMPLE_HEAD, padding=0)
    for head in ("", *(f"run {i + 1}" for i in range(len(summaries))), "mean", "std", "bar", "holds"):
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    good = True
    for bar in bars:
        values = [bar.value(summary) for summary in summaries]
        holds = bar.holds(values)
        good = good and holds
        bound = f"{bar.side} {bar.bound:g}" + (", 95 % above 0" if bar.interval else "")
        table.add_row(bar.what, *(f"{v:.3f}" for v in values), f"{sum(values) / len(values):.3f}",
                      f"{spread(values):.3f}", bound, "yes" if holds else "NO")
    return table, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs (default 3)")
    parser.add_argument("--first", type=int, default=2026, help="seed of the first (default 2026)")
    parser.add_argument("--sites", type=int, default=2, help="sites in the simulator (default 2)")
    parser.add_argument("--job", type=Path, default=ROOT / "jobs" / "privfedtalk", help="job folder")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark-demo", help="where the runs lie")
    parser.add_argument("--dp-off", action="store_true", help="without differential privacy")
    parsed = parser.parse_args()
    summaries = []
    for seed in range(parsed.first, parsed.first + parsed.seeds):
        folder = parsed.out.resolve() / f"{'open' if parsed.dp_off else 'private'}-{seed}"
        summaries.append(run_seed(parsed.job, folder, seed, not parsed.dp_off, parsed.sites))
        print(f"seed {seed}: {summaries[-1].wall_seconds:.0f} s", flush=True)
    table, good = report(WITHOUT_DP if parsed.dp_off else WITH_DP, summaries)
    Console(width=max(120, 80 + 10 * len(summaries))).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
