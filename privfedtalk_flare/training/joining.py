"""Who comes after a training has ended: own adapters on top of the final shared one, at one site, without a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from privfedtalk_flare.generator.adapters import check_backbone, check_spec, read_shared, trained_factors
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    ReliabilitySettings,
    TrainingSettings,
)
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.site import SiteWork
from privfedtalk_flare.training.validation import Validation


@dataclass(frozen=True)
class Joined:
    """`adapters`: person -> file, and `validation` of their held-out clips. PRIVATE to the site."""

    adapters: dict[str, Path]
    validation: Validation


def personalize(place: SitePlace, shared: Path, backbone: str, training: TrainingSettings,
                log: Callable[[str], None]) -> Joined:
    """Trains an own adapter for everyone in the corpus of `place`, on top of the shared adapter in file `shared`.

    Adapters lie in the state of `place`, where those of a job lie; one clip a person is held out and measured. Nothing
    leaves the machine and nothing is booked: an identity adapter is its person's own. Raises ValueError where the
    shared adapter is of another backbone.
    """
    theta, spec, metadata = read_shared(shared)
    adapter = AdapterSettings(backbone=backbone, rank=spec.rank, scaling=spec.scaling, train=trained_factors(spec))
    work = SiteWork(place.site, place, DataSettings(source="site"), adapter, training, training,
                    ReliabilitySettings(), BackboneSettings(), log)
    check_backbone(shared, metadata, work.backbone_digest)
    check_spec(shared, spec, work.spec)
    work.prepare()
    work.personalize(theta)
    paths = {person.train[0].identity: work.adapter_path(person) for person in work.people}
    return Joined({name: path for name, path in paths.items() if path.exists()}, work.validate(theta))
