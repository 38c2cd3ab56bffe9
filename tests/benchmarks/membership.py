"""Membership inference on a shared adapter of real updates: `python tests/benchmarks/membership.py`, some minutes.

People are trained on the shipped backbone, each a few steps from theta = 0. Then half of them, drawn anew for every
trial, are the members: sites of 50 publish their sums through the package's own mechanism (`privacy.outgoing.protect`),
and the server's mean of those is the adapter under attack. The attacker holds everybody's clips, trains each person as
a site would, and takes those for members whose updates explain the adapter (`evaluation.attacks.membership`). Its
training has draws (batches, timesteps) of its own, or the site's draws, which follow from the job and the clips:
whoever has the clips to the byte can repeat an update exactly, and no attack on one person is stronger.

The same updates are published without noise and at every epsilon, so that the differences are the noise's alone. C is
the people's median norm, which epsilon does not cover: the attack's best case, as a smaller C would lose signal.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy import stats

from privfedtalk_flare.evaluation.attacks.membership import Membership, infer, losses_along
from privfedtalk_flare.privacy.gaussian import noise_multiplier_for
from privfedtalk_flare.privacy.outgoing import protect
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    PrivacySettings,
    ReliabilitySettings,
    TrainingSettings,
)
from privfedtalk_flare.training.lane import IdentityUpdate
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.site import SiteWork

DELTA = 1e-5
A_SITE = 50
"""People at a site."""
UNIFORM = ReliabilitySettings(mode="uniform")
OPEN_LEAST, PRIVATE_MOST = 0.65, 0.55
"""Without noise the attack must reach the first, or it is no attack; its upper 95 % bound must stay below the second at
the smallest epsilon."""
SITES_DRAWS, OWN_DRAWS = 1, 2
"""Rounds, as which the people are trained: batches and timesteps are drawn from a round's number."""


def train(folder: Path, seed: int, steps: int, number: int) -> None:
    """Writes the updates (2, 50, D) of the people of site `number`, with the site's draws and with the attacker's."""
    path = folder / f"updates-{number}.npy"
    if path.exists():
        return
    torch.set_num_threads(1)
    name, training = f"site-{number}", TrainingSettings(steps=steps, batch=4)
    place = SitePlace(name, None, folder / "state" / name, folder / "run" / name)
    data = DataSettings(source="synthetic", people=A_SITE, clips=2, seconds=1.0, seed=seed)
    work = SiteWork(name, place, data, AdapterSettings(), training, training, UNIFORM, BackboneSettings(),
                    lambda text: None)
    theta = np.zeros(work.spec.size, np.float32)
    found = [np.stack([update.vector for update in work.adapter_round(theta, draws)])
             for draws in (SITES_DRAWS, OWN_DRAWS)]
    np.save(path, np.stack(found))


def published(vectors: np.ndarray, privacy: PrivacySettings) -> np.ndarray:
    """theta (D,) after one round of the members' updates (n, D), as their sites' filters and the server make it."""
    sums = []
    for start in range(0, len(vectors), A_SITE):
        updates = [IdentityUpdate(vector, 0.0, 1) for vector in vectors[start:start + A_SITE]]
        sums.append(protect(updates, vectors.shape[1], privacy, UNIFORM, clip_norm=privacy.clip_norm, sample=None,
                            warn=print).update)
    return np.mean(sums, axis=0, dtype=np.float64)


@dataclass(frozen=True)
class Attacked:
    """What `trials` attacks on different halves of the same people found, on average; a 95 % interval of the mean."""

    auc: float
    low: float
    high: float
    caught: float

    @classmethod
    def over(cls, found: Sequence[Membership]) -> Attacked:
        aucs = np.asarray([one.auc for one in found])
        reach = stats.t.ppf(0.975, len(aucs) - 1) * aucs.std(ddof=1) / math.sqrt(len(aucs))
        return cls(aucs.mean(), aucs.mean() - reach, aucs.mean() + reach, float(np.mean([one.caught for one in found])))


def attack(updates: np.ndarray, guesses: dict[str, np.ndarray], privacy: PrivacySettings, trials: int,
           seed: int) -> dict[str, Attacked]:
    """Attacks adapters of random halves of the people, whose updates are (n, D), by each attacker's guesses (n, D)."""
    found: dict[str, list[Membership]] = {who: [] for who in guesses}
    rng = np.random.default_rng(seed)
    for _ in range(trials):
        order = rng.permutation(len(updates))
        members = np.sort(order[:len(updates) // 2])
        member = np.isin(np.arange(len(updates)), members)
        theta = published(updates[members], privacy)
        noise = privacy.own_noise_multiplier * privacy.clip_norm / A_SITE / math.sqrt(len(members) / A_SITE)
        for who, guess in guesses.items():
            losses = losses_along(theta, guess, noise if privacy.mechanism == "gaussian" else 0.0)
            found[who].append(infer(losses[member], losses[~member]))
    return {who: Attacked.over(each) for who, each in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=400, help="half of them members in each trial (default 400)")
    parser.add_argument("--steps", type=int, default=2, help="training steps of each person (default 2)")
    parser.add_argument("--trials", type=int, default=20, help="halves drawn for each epsilon (default 20)")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[8.0, 2.0, 1.0, 0.5])
    parser.add_argument("--seed", type=int, default=7, help="which people and which halves (default 7)")
    parser.add_argument("--keep", type=Path,
                        help="folder for clips, caches and updates, which a later run with the same settings takes up")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return measure(parsed, parsed.keep or Path(temporary))


def measure(parsed: argparse.Namespace, folder: Path) -> int:
    began = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    sites = range(1, parsed.people // A_SITE + 1)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(train, folder, parsed.seed, parsed.steps), sites))
    updates, own = np.concatenate([np.load(folder / f"updates-{number}.npy") for number in sites], axis=1)
    norms = np.linalg.norm(updates, axis=1)
    print(f"{len(updates)} people trained twice, {time.time() - began:.0f} s; norms {norms.mean():.3g} +- "
          f"{norms.std():.2g}", flush=True)
    guesses = {"own": own, "the site's": updates}
    table = Table(box=SIMPLE_HEAD, padding=0)
    for head in ("epsilon", "sigma", "draws", "AUC", "95 % interval", "TPR at 1 % FPR"):
        table.add_column(head, justify="right", no_wrap=True)
    found = {}
    for epsilon in (math.inf, *parsed.epsilons):
        privacy, sigma = PrivacySettings(mechanism="off"), 0.0
        if math.isfinite(epsilon):
            sigma = noise_multiplier_for(epsilon, DELTA, 1)
            privacy = PrivacySettings(noise_multiplier=sigma, clip_norm=float(np.median(norms)))
        found[epsilon] = attack(updates, guesses, privacy, parsed.trials, parsed.seed)
        for who, one in found[epsilon].items():
            row = (f"{epsilon:g}", f"{sigma:.3g}", who, f"{one.auc:.3f}", f"{one.low:.3f} to {one.high:.3f}",
                   f"{one.caught:.3f}")
            table.add_row(*row)
            print(" | ".join(row) + f" | {time.time() - began:.0f} s", flush=True)
    Console(width=100).print(table)
    smallest, strongest = min(parsed.epsilons), "the site's"
    least, most = found[math.inf][strongest].low, found[smallest][strongest].high
    good = least >= OPEN_LEAST and most <= PRIVATE_MOST
    print(f"without noise at least {least:.3f} (bar {OPEN_LEAST}); at epsilon {smallest:g} at most {most:.3f} (bar "
          f"{PRIVATE_MOST}): {'both hold' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
