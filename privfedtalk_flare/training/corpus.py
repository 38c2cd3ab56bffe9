"""A site's clips, ready for training: found or rendered, decoded, split by clip, through the codec once."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from numpy.typing import NDArray

from privfedtalk_flare.data.clips import Clip, ClipFile, ClipsOnDisk, load_clips, split_clips
from privfedtalk_flare.data.consent import consent_faults
from privfedtalk_flare.plugins import load_function
from privfedtalk_flare.settings import DataSettings, SettingsError
from privfedtalk_flare.training.place import SitePlace

NAMES_KEY = "names.key"
"""In a site's state: the secret of its people's opaque names."""


class NoClipsError(ValueError):
    """A site without one usable identity. The message names where it looked and what to do."""


@dataclass(frozen=True)
class IdentityClips:
    """One person's clips at a site. `key` is the opaque name under which state and logs know this person."""

    key: str
    train: Sequence[Clip]
    held_out: Sequence[Clip]

    @property
    def scored(self) -> Clip:
        """The held-out clip that this person's reliability is taken of, round after round."""
        return self.held_out[0]

    @property
    def measured(self) -> Sequence[Clip]:
        """The held-out clips that metrics are taken of: those that no weight was chosen on, where there are any."""
        return self.held_out[1:] if len(self.held_out) > 1 else self.held_out

    @property
    def reference(self) -> NDArray:
        """(S, S, 3) uint8: the picture that this person is generated from, of a training clip, so that it never lies in
        a measured window."""
        return self.train[0].frames[0]

    @cached_property
    def digest(self) -> str:
        """PRIVATE: what this person's order and random batches are drawn from, the same wherever the site's state is.
        """
        return hashlib.sha256(f"privfedtalk identity v1 {self.train[0].identity}".encode()).hexdigest()[:12]


def opaque(identity: str, secret: bytes) -> str:
    """The name of an identity in paths, logs and summaries: twelve hex digits, keyed by the site's own secret, so that
    who reads them cannot find out by trying whether a certain person is there."""
    return hmac.new(secret, f"privfedtalk identity v2 {identity}".encode(), hashlib.sha256).hexdigest()[:12]


def secret_of(state: Path) -> bytes:
    """The site's secret for names, made once by the first process that needs it."""
    path = state / NAMES_KEY
    if not path.exists():
        state.mkdir(parents=True, exist_ok=True)
        whole = state / f"names.{uuid.uuid4().hex}.partial"
        with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            path.hardlink_to(whole)
        except FileExistsError:
            pass  # another process of this site was first
        finally:
            whole.unlink()
    return path.read_bytes()


def gather(data: DataSettings, place: SitePlace, size: int, log: Callable[[str], None]) -> list[IdentityClips]:
    """The site's people with their clips, in order of digest. PRIVATE to the site.

    A bad clip is named in the site's own log and skipped; a person left with too few clips is left out, and said so.
    Raises `NoClipsError` when nobody is left.
    """
    files = _render(data, place, size) if data.source == "synthetic" else _with_consent(_find(data, place), place, log)
    people, secret, skipped = [], secret_of(place.state), 0
    for identity in sorted({file.identity for file in files}):
        of = [file for file in files if file.identity == identity]
        own, bad = load_clips(of, log, size)
        skipped += bad
        key = opaque(identity, secret)
        if len(own) <= data.held_out:
            log(f"person {key} is left out: {len(own)} good clips, {data.held_out} of them held out")
            continue
        parts = split_clips(own, data.held_out)
        people.append(IdentityClips(key, *(ClipsOnDisk(part, size) if place.low_memory else part
                                           for part in parts)))
    if not people:
        where = "rendered clips" if data.source == "synthetic" else str(place.corpus)
        raise NoClipsError(f"{where}: no person with more than {data.held_out} good clips among {len(files)} files; "
                           f"put at least {data.held_out + 1} clips of each person into <corpus>/<identity>/")
    log(f"{len(people)} people, {sum(len(p.train) for p in people)} training clips, "
        f"{sum(len(p.held_out) for p in people)} held out, {skipped} skipped")
    return sorted(people, key=lambda person: person.digest)


def _with_consent(files: Sequence[ClipFile], place: SitePlace, log: Callable[[str], None]) -> Sequence[ClipFile]:
    """The clips of people whose consent is on record, where the site demands one."""
    if not place.require_consent:
        return files
    faults = consent_faults(files, date.today())
    for identity, fault in faults.items():
        if fault:
            log(f"person {opaque(identity, secret_of(place.state))} is left out: {fault}")
    return [file for file in files if not faults[file.identity]]


def _find(data: DataSettings, place: SitePlace) -> Sequence[ClipFile]:
    if place.corpus is None:
        raise NoClipsError(f"site {place.site} names no corpus; set `corpus: /path/to/clips` in its "
                           "local/privfedtalk.yaml, or submit a job with `data: {source: synthetic}` for a trial")
    if not place.corpus.is_dir():
        raise SettingsError(f"corpus: {place.corpus} is not a folder; set `corpus` in local/privfedtalk.yaml")
    return load_function(data.clip_source, "data.clip_source")(place.corpus)


def _render(data: DataSettings, place: SitePlace, size: int) -> Sequence[ClipFile]:
    """People of this site alone: their indices start where a digest of the site's name says."""
    from privfedtalk_flare.data.clips import find_clips
    from privfedtalk_flare.data.synthetic import Person, renderer_digest, write_corpus

    first = int(hashlib.sha256(place.site.encode()).hexdigest()[:8], 16) * 1000
    people = [Person.draw(data.seed, first + i, data.accent) for i in range(data.people)]
    made = f"{data.seed}-{data.people}x{data.clips}x{data.seconds:g}s-{size}px-{renderer_digest(people[0], size)}"
    folder = place.state / "synthetic" / made
    write_corpus(folder, people, data.clips, data.seconds, size)
    return find_clips(folder)
