"""The upper bound of a study: one trainer that has the clips of all sites. What federation is for is to need no such
trainer; it is here to be compared with, on rendered people.

It takes as many steps as all people of the sites together take in all rounds, on windows drawn from everybody's clips.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
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
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.site import SiteWork
from privfedtalk_flare.training.trainer import train_denoiser


def train_pooled(corpora: Path, folder: Path, sections: Mapping[str, Mapping[str, Any]], seed: int, lanes: int,
                 log: Callable[[str], None]) -> None:
    """Trains one shared adapter on all people under `corpora`/<site>, then what the phases of `sections` say; results
    lie in `folder` as a site's."""
    everybody = folder / "corpus"
    everybody.mkdir(parents=True)
    for person in sorted(corpora.glob("*/*/")):
        (everybody / person.name).symlink_to(person.resolve(), target_is_directory=True)
    rounds = parse(RoundSettings, sections.get("rounds"), "rounds")
    training = parse(TrainingSettings, sections.get("training"), "training")
    personal = parse(TrainingSettings, sections.get("personalize", PERSONALIZE), "personalize")
    place = SitePlace("pooled", everybody, folder / "state", folder, devices=("cpu",) * lanes)
    work = SiteWork("pooled", place, DataSettings(source="site", seed=seed),
                    parse(AdapterSettings, sections.get("adapter"), "adapter"), training, personal,
                    parse(ReliabilitySettings, sections.get("reliability"), "reliability"), BackboneSettings(), log)
    steps = work.prepare() * rounds.rounds * training.steps
    lane = work.lanes[0]
    lane.shared.activate()
    clips = [clip for person in work.people for clip in lane.cached(person)]
    loss = train_denoiser(lane.generator, clips, lane.shared.parameters(), replace(training, steps=steps),
                          np.random.default_rng(seed))
    theta = lane.shared.read()
    log(f"{steps} steps on {len(clips)} clips, loss {loss:.5f}")
    if "personalize" in rounds.phases:
        work.personalize(theta)
    if "validate" in rounds.phases:
        work.validate(theta)


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    train_pooled(Path(told["corpora"]), Path(told["folder"]), told["sections"], told["seed"], told["lanes"],
                 lambda text: print(text, flush=True))
