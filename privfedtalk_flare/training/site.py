"""Everything one site does with its people, with no FLARE in it: adapter rounds, personalisation, validation."""

from __future__ import annotations

import hashlib
import itertools
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from privfedtalk_flare.data.clips import ClipError
from privfedtalk_flare.federation.update import UpdateSpec
from privfedtalk_flare.generator.adapters import save_shared
from privfedtalk_flare.generator.memory import peak_memory
from privfedtalk_flare.plugins import load_function
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    ReliabilitySettings,
    SettingsError,
    TrainingSettings,
)
from privfedtalk_flare.training.backbone_site import BackboneReply, BackboneSite
from privfedtalk_flare.training.corpus import IdentityClips, gather
from privfedtalk_flare.training.lane import IdentityUpdate, Lane
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.validation import PersonValidation, Validation, save_validation, write_board

T = TypeVar("T")

_FAULTS = (ArithmeticError, ValueError, LookupError)
"""What one person's data can make of a training or a score: it counts for this person alone, never for the site. (Out
of memory, a missing file or a setting is the site's, and raised.)"""


class SiteWork:
    """The work of one site. Whatever must outlive the process is in `place.state`."""

    def __init__(self, site: str, place: SitePlace, data: DataSettings, adapter: AdapterSettings,
                 training: TrainingSettings, personalize: TrainingSettings, reliability: ReliabilitySettings,
                 backbone: BackboneSettings, log: Callable[[str], None]) -> None:
        self.site, self.place, self.log = site, place, log
        self.data, self.adapter_settings, self.training = data, adapter, training
        self.personalize_settings, self.reliability, self.backbone = personalize, reliability, backbone

    @cached_property
    def lanes(self) -> list[Lane]:
        """One for each of the site's devices. People are divided among them, which changes nobody's result."""
        devices = self.place.all_devices
        saving = ", saving memory" if self.place.low_memory else ""
        why = " (no CUDA device is here)" if devices == ("cpu",) and not self.place.devices else ""
        self.log(f"works on {', '.join(devices)}{why}{saving}")
        return [Lane(device, self.place, self.adapter_settings, self.reliability, self.data.seed)
                for device in devices]

    @property
    def spec(self) -> UpdateSpec:
        return self.lanes[0].shared.spec

    @property
    def backbone_digest(self) -> str:
        return self.lanes[0].generator.digest

    @cached_property
    def people(self) -> list[IdentityClips]:
        return gather(self.data, self.place, int(self.lanes[0].generator.config.size), self.log)

    def prepare(self) -> int:
        """Finds or renders the clips, and returns m, the number of identities. Raises `NoClipsError`."""
        if self.data.held_out < 1:
            raise SettingsError("data.held_out 0 only trains a backbone: scores and metrics need a held-out clip")
        return len(self.people)

    def adapter_round(self, theta: np.ndarray, round: int) -> list[IdentityUpdate]:
        """Trains the shared adapter from theta (D,) for each identity on its own; m raw updates, in order of digest.

        Nothing passes between identities: each starts from theta with its own optimiser, batches and random state,
        which is what makes one identity's influence on the site's sum C / m. A person whose training fails counts as
        zeros with score 0.
        """
        # A theta that does not fit, or a signal or an embedder that is not there, is no person's fault.
        signal = load_function(self.reliability.signal, "reliability.signal")
        for lane in self.lanes:
            lane.shared.load(theta)
            _ = lane.embedder
            lane.shared.activate()

        def failed(person: IdentityClips, error: Exception) -> IdentityUpdate:
            self.log(f"round {round}: training {_named(person, error)} failed and counts as zero: {error}")
            return IdentityUpdate(np.zeros(self.spec.size, np.float32), 0.0, len(person.train))

        return self._each(f"round {round}", lambda lane, person: lane.train_shared(
            theta, person, self.training, self._rng("adapter", person, round), signal), failed)

    def without_adapter(self, theta: np.ndarray) -> list[IdentityClips]:
        """The people who have no adapter of their own that fits on top of theta."""
        self._load_both(theta)
        return [person for person in self.people if self.lanes[0].adapter_fault(self.adapter_path(person))]

    def personalize(self, theta: np.ndarray, people: Sequence[IdentityClips] | None = None) -> dict[str, float]:
        """Trains the own adapter of each of `people` (None: everybody) on top of theta, into `state`. Returns the mean
        final loss, or nothing where it would be one over fewer than `min_identities` people. A person whose training
        fails has no adapter.
        """
        self._load_both(theta)

        def failed(person: IdentityClips, error: Exception) -> None:
            self.log(f"personalize: training {_named(person, error)} failed, who has no adapter now: {error}")
            if (path := self.adapter_path(person)).exists():
                path.replace(path.with_suffix(".previous"))

        losses = [loss for loss in self._each("personalize", lambda lane, person: lane.personalize(
            person, self.personalize_settings, self._rng("personalize", person, 0), self.adapter_path(person)), failed,
            people) if loss is not None]
        return {"loss": float(np.mean(losses))} if len(losses) >= self.place.min_identities else {}

    @property
    def adapters(self) -> list[str]:
        """Where the identity adapters lie, relative to the site's state: opaque names only, in their own order, since
        `people` has one that says something about who they are."""
        paths = [self.adapter_path(person) for person in self.people]
        return sorted(str(path.relative_to(self.place.state)) for path in paths if path.exists())

    def validate(self, theta: np.ndarray, people: Sequence[IdentityClips] | None = None) -> Validation:
        """Measures every row on the held-out clips of `people` (None: the site's `measured`) and renders sample videos
        into the job's run folder; beside them, for the site's own eyes, `validation.json` and TensorBoard events. Who
        has no adapter of their own is left out of `personalized`, whose measurement fails out of every row."""
        self._load_both(theta)
        for lane in self.lanes:
            _ = lane.embedder

        def measure(lane: Lane, person: IdentityClips) -> PersonValidation:
            path = self.adapter_path(person)
            lane.shared.load(theta)
            if fault := lane.adapter_fault(path):
                self.log(f"validate: person {person.key} has no adapter here: {fault}")
            return lane.validate(theta, person, None if fault else path, self.place.output / "videos")

        def failed(person: IdentityClips, error: Exception) -> None:
            self.log(f"validate: measuring {_named(person, error)} failed, who is left out: {error}")

        people = self.people[:self.place.measured] if people is None else people  # their order is nobody's choice
        found = self._each("validate", measure, failed, people)
        kept = [(person, one) for person, one in zip(people, found, strict=True) if one is not None]
        save_validation(self.place.output, {person.digest: one.rows for person, one in kept})
        write_board(self.place.output, {person.key: one.rows for person, one in kept})
        rows: dict[str, dict[str, list[float]]] = {}
        for _, one in kept:
            for row, metrics in one.rows.items():
                for name, value in metrics.items():
                    rows.setdefault(row, {}).setdefault(name, []).append(value)
        videos = [name for _, one in kept for name in one.videos]
        return Validation(rows, sorted(videos))

    def save_shared_adapter(self, theta: np.ndarray, folder: Path, key: str = "") -> Path:
        """Writes the shared adapter, on the 2^-16 grid, as `adapter.safetensors` in `folder`; `key` as `save_shared`.
        """
        return save_shared(theta, self.spec, folder / "adapter.safetensors", self.backbone_digest, key)

    def backbone_round(self, phase: str, round: int, weights: dict[str, np.ndarray] | None) -> BackboneReply:
        """One round of a part of the backbone; see `training.backbone_site`."""
        return self._backbone_site.round(phase, round, weights or {})

    @cached_property
    def _backbone_site(self) -> BackboneSite:
        return BackboneSite(self.site, self.place, self.data, self.training, self.backbone, self.log)

    def adapter_path(self, person: IdentityClips) -> Path:
        """Where a person's own adapter lies, in the site's state."""
        return self.place.state / "identities" / person.key / "adapter.safetensors"

    def _load_both(self, theta: np.ndarray) -> None:
        for lane in self.lanes:
            lane.shared.load(theta)
            lane.identity.activate()

    def _each(self, what: str, task: Callable[[Lane, IdentityClips], T],
              failed: Callable[[IdentityClips, Exception], T],
              people: Sequence[IdentityClips] | None = None) -> list[T]:
        """What `task` makes of each of `people` (None: everybody), in their order; `failed` of those whose data it
        fails on. A lane takes the next person when it is done with one."""
        people = self.people if people is None else people
        free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self.lanes:
            free.put(lane)
        finished = itertools.count(1)

        def one(person: IdentityClips) -> T:
            lane = free.get()
            try:
                return task(lane, person)
            except _FAULTS as error:
                return failed(person, error)
            finally:
                free.put(lane)
                self.log(f"{what}: person {next(finished)} of {len(people)} done")

        if len(self.lanes) == 1:
            results = [one(person) for person in people]
        else:
            with ThreadPoolExecutor(len(self.lanes)) as pool:
                results = list(pool.map(one, people))
        self.log(f"{what}: at most {peak_memory([lane.device for lane in self.lanes])} of memory so far")
        return results

    def _rng(self, what: str, person: IdentityClips, round: int) -> np.random.Generator:
        """Random batches of one identity in one round; the privacy noise is not drawn from here."""
        digest = hashlib.sha256(f"{self.data.seed} {self.site} {person.digest} {what} {round}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _named(person: IdentityClips, error: Exception) -> str:
    """The person, for the log: by their opaque name, or, where `error` names their folder, by nothing else."""
    return "a person" if isinstance(error, ClipError) else f"person {person.key}"
