"""Clips: films of one talking face, decoded to 25 pictures a second with 640 samples of sound each.

A corpus is a folder `<corpus>/<identity>/<clip>.mp4`; beside a clip may lie `<clip>.aperture.npy`, its true mouth
aperture, one value for each of its frames at 25 a second.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privfedtalk_flare.data.media import MediaError, Recording, read_mp4
from privfedtalk_flare.data.sound import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from privfedtalk_flare.files import READABLE, ReadWhenAsked, replaced

_MAX_SOUND_MISSING_AT_END = 0.25
"""Seconds. Encoders end the sound a little early; more means a cut file."""
_MIN_SOUND_SHARE = 0.5
"""Share of the picture's time in which there must be a sound track: it may start late, not be absent."""


class ClipError(ValueError):
    """A clip or corpus that cannot be used. The message names the file or folder, the fault and the remedy."""


@dataclass(frozen=True)
class ClipFile:
    """A clip on disk and whose it is: what a clip source lists."""

    identity: str
    path: Path

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Clip:
    """A decoded clip of F frames: frames (F, H, W, 3) uint8 RGB; audio (640 F,) float32 mono at 16 kHz in [-1, 1],
    samples 640 f to 640 f + 639 sounding with frame f; digest: SHA-256 of the file, in hex; aperture (F,) float32 or
    None where it is not known; path: the file, None where there is none."""

    identity: str
    name: str
    frames: np.ndarray
    audio: np.ndarray
    digest: str
    aperture: np.ndarray | None = None
    path: Path | None = None


def find_clips(corpus: Path) -> list[ClipFile]:
    """Lists `<corpus>/<identity>/<clip>.mp4` in order of identity and name; names starting with a dot are left out.

    Raises ClipError if the corpus is no folder, or holds clips at its top and none in identity folders.
    """
    corpus = Path(corpus)
    if not corpus.is_dir():
        raise ClipError(f"{corpus}: no such folder; set `corpus` to the folder that holds <identity>/<clip>.mp4")
    found = sorted(p for p in corpus.glob("*/*") if _is_clip(p) and not p.parent.name.startswith("."))
    if not found and any(map(_is_clip, corpus.iterdir())):
        raise ClipError(f"{corpus}: clips lie at the top of the corpus; move each into a folder of its person, "
                        "<identity>/<clip>.mp4")
    return [ClipFile(path.parent.name, path) for path in found]


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() == ".mp4" and not path.name.startswith(".") and path.is_file()


def load_clip(file: ClipFile, size: int | None = 64, min_frames: int = 25) -> Clip:
    """Decodes a clip by its timestamps, at size x size pixels (None: its own), 25 frames a second and 16 kHz.

    Raises ClipError: unreadable, damaged or cut off; no picture or sound; not square or smaller than `size`; shorter
    than `min_frames`; sound that does not go with the picture; an aperture file that does not match.
    """
    try:
        recording = read_mp4(file.path, size)
        digest = _digest(file.path)
    except MediaError as error:
        raise ClipError(str(error)) from error
    frames = frames_at_25(recording.frames, recording.times, recording.end)
    if len(frames) < min_frames:
        raise ClipError(f"{file.path}: too short: {len(frames)} frames of {FPS} a second, at least {min_frames} are "
                        "needed; record a longer clip or remove it")
    _check_sound(file.path, recording)
    audio = aligned(recording.audio, recording.audio_start - recording.times[0], len(frames))
    return Clip(file.identity, file.name, frames, audio, digest, load_aperture(file.path, len(frames)),
                file.path)


def frames_at_25(frames: np.ndarray, times: np.ndarray, end: float) -> np.ndarray:
    """Picks, for each instant times[0] + f / 25 before `end`, the frame of the nearest timestamp: (F, H, W, 3).

    frames (N, H, W, 3) at `times` (N,) ascending, in seconds; F = floor(25 (end - times[0])), a hundredth of a frame
    forgiven. Of two equally near frames the earlier is taken.
    """
    count = int(np.floor((end - times[0]) * FPS + 0.01))
    wanted = times[0] + np.arange(count) / FPS
    return frames[np.searchsorted((times[1:] + times[:-1]) / 2 + 1e-6, wanted)]


def aligned(audio: np.ndarray, start: float, frames: int) -> np.ndarray:
    """(640 frames,) float32: the sound (S,) at 16 kHz that starts `start` seconds after frame 0 (before it if
    negative), silence where there is none."""
    out = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    offset = round(start * SAMPLE_RATE)
    source = audio[max(0, -offset):]
    target = out[max(0, offset):]
    length = min(len(source), len(target))
    target[:length] = source[:length]
    return out


def _check_sound(path: Path, recording: Recording) -> None:
    begin, end = recording.times[0], recording.end
    sound_end = recording.audio_start + len(recording.audio) / SAMPLE_RATE
    if sound_end < end - _MAX_SOUND_MISSING_AT_END:
        raise ClipError(f"{path}: the sound ends {end - sound_end:.2f} s before the picture; cut the clip to where "
                        "both are, or export it again")
    if min(sound_end, end) - max(recording.audio_start, begin) < _MIN_SOUND_SHARE * (end - begin):
        raise ClipError(f"{path}: the sound starts {recording.audio_start - begin:.2f} s after the picture and covers "
                        "less than half of it; cut the clip to where both are")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def aperture_path(clip: Path) -> Path:
    """Where a clip's true mouth aperture lies: `<clip>.aperture.npy` beside `<clip>.mp4`."""
    return clip.with_suffix(".aperture.npy")


def save_aperture(clip: Path, aperture: np.ndarray, mode: int = READABLE) -> None:
    """Writes the true mouth aperture (F,), one value for each frame at 25 a second, beside the clip."""
    with replaced(aperture_path(clip), mode) as partial, partial.open("wb") as file:
        np.save(file, np.asarray(aperture, dtype=np.float32), allow_pickle=False)


def load_aperture(clip: Path, frames: int) -> np.ndarray | None:
    """Reads (frames,) float32, or None where no aperture lies beside the clip. Raises ClipError on a mismatch."""
    path = aperture_path(clip)
    if not path.exists():
        return None
    try:
        aperture = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ClipError(f"{path}: not a readable .npy file ({error}); write it again or remove it") from error
    if aperture.shape != (frames,) or aperture.dtype.kind != "f" or not np.isfinite(aperture).all():
        raise ClipError(f"{path}: {aperture.dtype} of shape {aperture.shape}, but the clip has {frames} frames at "
                        f"{FPS} a second; write one finite float for each, or remove the file")
    return aperture.astype(np.float32)


def load_clips(files: Iterable[ClipFile], log: Callable[[str], None], size: int = 64,
               min_frames: int = 25) -> tuple[list[Clip], int]:
    """Loads the good clips, in order; returns them and how many were skipped.

    Each clip skipped is named through `log`, with its fault: what `load_clip` refuses, and copies of an earlier file of
    the same identity (the same bytes under another name would leak from training into the held-out clips). What other
    identities hold changes nothing: the privacy account needs each of them to be independent of the rest.
    """
    clips: list[Clip] = []
    seen: dict[tuple[str, str], Path] = {}
    skipped = 0
    for file in files:
        try:
            clip = load_clip(file, size, min_frames)
            known = seen.setdefault((clip.identity, clip.digest), file.path)
            if known != file.path:
                raise ClipError(f"{file.path}: the same file as {known}; remove one of them")
        except ClipError as error:
            skipped += 1
            log(f"clip skipped: {error}")
        else:
            clips.append(clip)
    return clips, skipped


class ClipsOnDisk(ReadWhenAsked[Clip]):
    """Clips that are decoded each time they are asked for, so that a site holds those of one person at a time.

    Raises ClipError where a file cannot be read any more, or is not what it was.
    """

    def __init__(self, clips: Sequence[Clip], size: int = 64) -> None:
        """`clips`: as `load_clip` decoded them, of which paths and digests alone are kept."""
        self._files = [(ClipFile(clip.identity, clip.path), clip.digest) for clip in clips]
        self._size = size

    def __len__(self) -> int:
        return len(self._files)

    def _read(self, index: int) -> Clip:
        file, digest = self._files[index]
        clip = load_clip(file, self._size)
        if clip.digest != digest:
            raise ClipError(f"{file.path}: changed since this process listed it; let a job end before you edit clips")
        return clip


def split_clips(clips: Sequence[Clip], held_out: int) -> tuple[list[Clip], list[Clip]]:
    """Splits by clip, identity by identity, into training and held-out clips, `held_out` of each identity.

    Which are held out is drawn from their names: it depends neither on their order, nor on their bytes, in which two
    machines that render or encode the same clip differ.
    Raises ClipError, naming every identity at fault, if one would keep no training clip, or holds a file twice.
    """
    if held_out < 0:
        raise ClipError(f"held_out must be at least 0, got {held_out}")
    of: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        of[clip.identity].append(clip)
    few = [f"{identity} ({len(own)})" for identity, own in sorted(of.items()) if len(own) <= held_out]
    if few:
        raise ClipError(f"too few good clips to hold {held_out} out and train on the rest: {', '.join(few)}; add clips "
                        f"of these people, at least {held_out + 1} each, or remove their folders")
    twice = sorted(identity for identity, own in of.items() if len({c.digest for c in own}) < len(own))
    if twice:
        raise ClipError(f"the same file twice among the clips of {', '.join(twice)}; remove the copies")
    held = {c.digest for own in of.values() for c in sorted(own, key=_drawn)[:held_out]}
    return [c for c in clips if c.digest not in held], [c for c in clips if c.digest in held]


def _drawn(clip: Clip) -> tuple[str, str]:
    """What clips are put in order by before some are held out. Files of one name differ in how it ends: `a.mp4`,
    `a.MP4`."""
    return hashlib.sha256(f"privfedtalk split v2 {clip.identity}/{clip.name}".encode()).hexdigest(), clip.digest
