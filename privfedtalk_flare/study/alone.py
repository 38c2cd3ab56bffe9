"""Training without federation, for a study to compare with: one trainer that has the clips of one site ("local"), or
those of all sites, which is what federation is there to do without ("pooled").

It takes as many steps as its people would together take in all rounds, on windows drawn from all its clips.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from privfedtalk_flare.settings import (
    PERSONALIZE,
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    ReliabilitySettings,
    RoundSettings,
    TrainingSettings,
    parse,
)
from privfedtalk_flare.study.plan import HELD_OUT
from privfedtalk_flare.threads import limit_threads
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.site import SiteWork
from privfedtalk_flare.training.trainer import train_denoiser


def train_alone(name: str, corpora: Sequence[Path], folder: Path, sections: Mapping[str, Mapping[str, Any]], seed: int,
                threads: int, log: Callable[[str], None]) -> int:
    """Trains one shared adapter on all people of `corpora`, then what the phases of `sections` say; returns the number
    of its steps. State and results lie in `folder` as those of a site called `name`."""
    everybody, output = folder / "corpus", folder / "trained"
    for person in sorted(person for corpus in corpora for person in corpus.iterdir()):
        everybody.mkdir(parents=True, exist_ok=True)
        (everybody / person.name).symlink_to(person.resolve(), target_is_directory=True)
    rounds = parse(RoundSettings, sections.get("rounds"), "rounds")
    training = parse(TrainingSettings, sections.get("training"), "training")
    personal = parse(TrainingSettings, sections.get("personalize", PERSONALIZE), "personalize")
    place = SitePlace(name, everybody, folder / "state", output)
    if place.device == "cpu":
        place = replace(place, devices=("cpu",) * threads)
    work = SiteWork(name, place, DataSettings(source="site", seed=seed, held_out=HELD_OUT),
                    parse(AdapterSettings, sections.get("adapter"), "adapter"), training, personal,
                    parse(ReliabilitySettings, sections.get("reliability"), "reliability"), BackboneSettings(), log)
    steps = work.prepare() * rounds.rounds * training.steps
    lane = work.lanes[0]
    lane.shared.activate()
    clips = [clip for person in work.people for clip in lane.cached(person)]
    limit_threads(threads)
    loss = train_denoiser(lane.generator, clips, lane.shared.parameters(), replace(training, steps=steps),
                          np.random.default_rng(seed))
    theta = lane.shared.read()
    log(f"{steps} steps on {len(clips)} clips, loss {loss:.5f}")
    limit_threads(1)  # from here on people are divided among as many lanes
    if "personalize" in rounds.phases:
        work.personalize(theta)
    if "validate" in rounds.phases:
        work.validate(theta)
    return steps


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    train_alone(told["name"], [Path(one) for one in told["corpora"]], Path(told["folder"]), told["sections"],
                told["seed"], told["threads"], lambda text: print(text, flush=True))
