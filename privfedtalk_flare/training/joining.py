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
from privfedtalk_flare.threads import limit_threads
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.site import SiteWork
from privfedtalk_flare.training.validation import Validation


@dataclass(frozen=True)
class Joined:
    """`adapters`: person -> file, and `validation` of their held-out clips, None where nobody came. PRIVATE to the
    site."""

    adapters: dict[str, Path]
    validation: Validation | None


def personalize(place: SitePlace, shared: Path, backbone: str, training: TrainingSettings, again: bool,
                log: Callable[[str], None]) -> Joined:
    """Trains an own adapter, on top of the shared one in file `shared`, for the people of `place` who have none that
    fits it; for all of them where `again`.

    The site's rules hold: its devices, its memory, the consent that it demands. Adapters lie in its state, where those
    of a job lie; one clip a person is held out and measured. Nothing leaves the machine and nothing is booked: an
    identity adapter is its person's own. Raises ValueError where the shared adapter is of another backbone.
    """
    theta, spec, metadata = read_shared(shared)
    adapter = AdapterSettings(backbone=backbone, rank=spec.rank, scaling=spec.scaling, train=trained_factors(spec))
    work = SiteWork(place.site, place, DataSettings(source="site"), adapter, training, training,
                    ReliabilitySettings(), BackboneSettings(), log)
    check_backbone(shared, metadata, work.backbone_digest)
    check_spec(shared, spec, work.spec)
    if place.threads is not None:
        limit_threads(place.threads)
    work.prepare()
    people = work.people if again else work.without_adapter(theta)
    if not people:
        return Joined({}, None)
    work.personalize(theta, people)
    paths = {person.train[0].identity: work.adapter_path(person) for person in people}
    return Joined({name: path for name, path in paths.items() if path.exists()}, work.validate(theta, people))
