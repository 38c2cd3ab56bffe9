"""Membership inference on a shared adapter of real updates: `python tests/benchmarks/membership.py`, an hour or two.

Members train a few steps each on the shipped backbone, and sites of 50 people publish their sums through the package's
own mechanism (`privacy.outgoing.protect`). The attacker holds everybody's clips and a reference adapter trained on
other people, and takes those for members whose loss falls most from the reference to the published adapter, on the same
windows and noise (calibrated loss: Watson et al. 2022). The same raw updates are published without noise and at every
epsilon, so that the differences are the noise's alone. C is the members' own median norm, which the epsilons do not
cover: the attack's best case, as nothing is lost to a clip that is too small.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from privfedtalk_flare.evaluation.attacks.membership import infer
from privfedtalk_flare.generator.denoiser import WINDOW
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
from privfedtalk_flare.training.cache import draw_windows
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.site import IdentityUpdate, SiteWork
from privfedtalk_flare.training.trainer import window_loss

DELTA = 1e-5
A_SITE = 50
"""People at a site."""
UNIFORM = ReliabilitySettings(mode="uniform")
OPEN_LEAST, PRIVATE_MOST = 0.65, 0.55
"""Without noise the attack must reach the first, or it is no attack; its upper 95 % bound must stay below the second at
the smallest epsilon."""


@dataclass(frozen=True)
class Site:
    """A site of rendered people with one training clip of a second each. Its work is done in processes of their own:
    what passes between them are files."""

    folder: Path
    name: str
    seed: int
    training: TrainingSettings
    windows: int

    @cached_property
    def work(self) -> SiteWork:
        torch.set_num_threads(1)
        place = SitePlace(self.name, None, self.folder / "state" / self.name, self.folder / "run" / self.name)
        data = DataSettings(source="synthetic", people=A_SITE, clips=2, seconds=1.0, seed=self.seed)
        return SiteWork(self.name, place, data, AdapterSettings(), self.training, self.training, UNIFORM,
                        BackboneSettings(), lambda text: None)

    def updates(self) -> list[IdentityUpdate]:
        vectors = np.load(self.folder / f"{self.name}-updates.npy")
        return [IdentityUpdate(vector, 0.0, 1) for vector in vectors]


def train(site: Site) -> None:
    """Writes the raw updates (50, D) of a site's people, each from theta = 0; kept ones are not made again."""
    if (site.folder / f"{site.name}-updates.npy").exists():
        return
    found = site.work.adapter_round(np.zeros(site.work.spec.size, np.float32), 1)
    np.save(site.folder / f"{site.name}-updates.npy", np.stack([update.vector for update in found]))


@torch.no_grad()
def losses(theta: Path, site: Site) -> list[float]:
    """The loss of each of a site's people under the adapter in file `theta`; the same draws whichever it is."""
    work = site.work
    work.shared.load(np.load(theta))
    work.shared.activate()
    settings = dataclasses.replace(site.training, audio_dropout=0.0)
    found = []
    for number, person in enumerate(work.people):
        windows = draw_windows(np.random.default_rng(number), work._cached(person), site.windows, WINDOW)
        source = torch.Generator().manual_seed(number)
        found.append(float(window_loss(work.generator, windows, settings, source)))
    return found


def published(sites: Sequence[Site], privacy: PrivacySettings, path: Path) -> Path:
    """Writes theta (D,) after one round of `sites`, as their filters and the server make it."""
    sums = []
    for site in sites:
        updates = site.updates()
        sums.append(protect(updates, updates[0].vector.size, privacy, UNIFORM, clip_norm=privacy.clip_norm, sample=None,
                            warn=print).update)
    np.save(path, np.mean(sums, axis=0, dtype=np.float64).astype(np.float32))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=400, help="members, and as many others (default 400)")
    parser.add_argument("--steps", type=int, default=8, help="steps of each member (default 8)")
    parser.add_argument("--windows", type=int, default=4, help="windows of each person's loss (default 4)")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[8.0, 2.0, 0.5])
    parser.add_argument("--seed", type=int, default=7, help="which people (default 7)")
    parser.add_argument("--keep", type=Path,
                        help="folder for clips, caches and updates, which a later run with the same settings takes up")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return attack(parsed, parsed.keep or Path(temporary))


def attack(parsed: argparse.Namespace, folder: Path) -> int:
    began = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    training = TrainingSettings(steps=parsed.steps, batch=4)
    members, others, reference = (
        [Site(folder, f"{name}-{number}", parsed.seed + offset, training, parsed.windows)
         for number in range(parsed.people // A_SITE)]
        for offset, name in enumerate(("member", "other", "reference")))
    table = Table(box=SIMPLE_HEAD, padding=0)
    for head in ("epsilon", "sigma", "AUC", "95 % interval", "TPR at 1 % FPR"):
        table.add_column(head, justify="right", no_wrap=True)
    bounds = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(train, [*members, *reference]))
        norms = np.asarray([np.linalg.norm(update.vector) for site in members for update in site.updates()])
        print(f"{norms.size} members and as many for reference trained, {time.time() - began:.0f} s; norms "
              f"{norms.mean():.3g} +- {norms.std():.2g}", flush=True)
        open_settings = PrivacySettings(mechanism="off")

        def measured(theta: Path) -> tuple[np.ndarray, np.ndarray]:
            each = list(pool.map(partial(losses, theta), [*members, *others]))
            return np.concatenate(each[:len(members)]), np.concatenate(each[len(members):])

        before = measured(published(reference, open_settings, folder / "reference.npy"))
        for epsilon in (math.inf, *parsed.epsilons):
            private = math.isfinite(epsilon)
            sigma = noise_multiplier_for(epsilon, DELTA, 1) if private else 0.0
            privacy = PrivacySettings(noise_multiplier=sigma, clip_norm=float(np.median(norms))) if private \
                else open_settings
            after = measured(published(members, privacy, folder / "theta.npy"))
            found = infer(*(now - was for now, was in zip(after, before, strict=True)))
            bounds[epsilon] = found
            row = (f"{epsilon:g}", f"{sigma:.3g}", f"{found.auc:.3f}", f"{found.low:.3f} to {found.high:.3f}",
                   f"{found.caught:.3f}")
            table.add_row(*row)
            print("epsilon {}, sigma {}: AUC {} ({}), TPR {}".format(*row) + f", {time.time() - began:.0f} s",
                  flush=True)
    Console(width=100).print(table)
    smallest = min(parsed.epsilons)
    good = bounds[math.inf].auc >= OPEN_LEAST and bounds[smallest].high <= PRIVATE_MOST
    print(f"without noise {bounds[math.inf].auc:.3f} (at least {OPEN_LEAST}); at epsilon {smallest:g} at most "
          f"{bounds[smallest].high:.3f} (at most {PRIVATE_MOST}): {'both hold' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
