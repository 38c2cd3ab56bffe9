"""Pictures and sound in files, through PyAV alone: MP4 out; MP4, sound and still pictures in.

Written: H.264 (yuv420p, BT.601, no B-frames, so that picture 0 needs no edit list) and AAC, index first, so that
browsers and common players play it. Read: whatever FFmpeg reads, each picture and sound with its time in the file.
Every error is a `MediaError` that names the file, the fault and the remedy.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation as Scaling
from av.video.reformatter import VideoReformatter

from privfedtalk_flare.data.sound import SAMPLE_RATE, MediaError, SoundTrack

TAGS = ("title", "artist", "comment", "description", "copyright", "date")
"""Metadata keys that MP4 players show."""

_EXACT = Scaling.BICUBIC | Scaling.ACCURATE_RND | Scaling.FULL_CHR_H_INT | Scaling.FULL_CHR_H_INP
"""Without these flags swscale loses 2.5 dB and darkens by a grey level."""
_BT601 = {"colorspace": 6, "color_primaries": 6, "color_trc": 6, "color_range": 1}
_LATE = 0.1
"""Seconds a stream may end before its promised end: rounding of headers, not a cut."""


@dataclass(frozen=True)
class Recording:
    """What a film file holds. Times are in seconds on the file's own clock, which need not start at 0.

    frames (N, H, W, 3) uint8 RGB in order of time, times (N,) float64; end: when the last picture ends;
    audio (S,) float32 mono at 16 kHz, its first sample at time `audio_start`.
    """

    frames: np.ndarray
    times: np.ndarray
    end: float
    audio: np.ndarray
    audio_start: float
    metadata: dict[str, str]


def write_mp4(path: Path | str, frames: np.ndarray, audio: np.ndarray | None, *, fps: int | Fraction = 25,
              crf: int = 8, pix_fmt: str = "yuv420p", metadata: Mapping[str, str] | None = None) -> None:
    """Writes a film; the file appears under its name only when whole.

    frames: (F, H, W, 3) uint8 RGB; audio: (S,) float mono at 16 kHz in [-1, 1] that starts with picture 0 and is as
    long as the pictures to within one of them, or None for a silent film. crf: x264's quality, lower is better.
    metadata: values for keys among `TAGS`. Raises MediaError on anything else.
    """
    path = Path(path)
    frames = _checked_frames(path, np.asarray(frames), pix_fmt)
    unknown = sorted(set(metadata or {}) - set(TAGS))
    if unknown:
        raise MediaError(f"{path}: MP4 keeps no metadata {unknown[0]!r}; the choices are {', '.join(TAGS)}")
    bounds = np.round(np.arange(len(frames) + 1) * SAMPLE_RATE / float(fps)).astype(int)
    if audio is not None:
        audio = np.asarray(audio, dtype=np.float32)
        if audio.ndim != 1 or not np.isfinite(audio).all():
            raise MediaError(f"{path}: the sound must be finite samples of shape (samples,), got {audio.shape}")
        if abs(len(audio) - bounds[-1]) > bounds[1]:
            raise MediaError(f"{path}: {len(audio)} samples of sound for {len(frames)} pictures of {fps} a second; "
                             f"cut or pad the sound to {bounds[-1]} samples")
        audio = np.clip(audio, -1, 1)
        bounds[-1] = len(audio)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata.update(metadata or {})
            _encode(container, frames, audio, bounds, Fraction(fps), crf, pix_fmt)
        unfinished.replace(path)
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: cannot be written ({error.strerror}) at {frames.shape[2]} x {frames.shape[1]}; "
                         "check the size, the free space and the permissions") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _checked_frames(path: Path, frames: np.ndarray, pix_fmt: str) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise MediaError(f"{path}: pictures must be uint8 of shape (frames, height, width, 3), at least one of them, "
                         f"got {frames.dtype} of shape {frames.shape}")
    if pix_fmt not in ("yuv420p", "yuv444p"):
        raise MediaError(f"{path}: unknown pix_fmt {pix_fmt!r}; the choices are yuv420p, yuv444p")
    if pix_fmt == "yuv420p" and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise MediaError(f"{path}: yuv420p needs an even height and width, got {frames.shape[1]} x {frames.shape[2]}; "
                         "crop a row or column")
    return np.ascontiguousarray(frames)


def _encode(container: av.container.OutputContainer, frames: np.ndarray, audio: np.ndarray | None,
            bounds: np.ndarray, fps: Fraction, crf: int, pix_fmt: str) -> None:
    """Feeds both encoders in step, so that sound and picture lie interleaved; sound of frame i: bounds[i : i + 2]."""
    video = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "bf": "0"})
    video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
    for name, value in _BT601.items():
        setattr(video.codec_context, name, value)
    if frames.shape[1] * frames.shape[2] <= 256**2:
        video.codec_context.thread_count = 1  # threads would cost more than they save
    sound = None if audio is None else container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=96000)
    reformatter = VideoReformatter()
    for i, picture in enumerate(frames):
        frame = reformatter.reformat(av.VideoFrame.from_ndarray(picture, format="rgb24"), format=pix_fmt, threads=1,
                                     interpolation=_EXACT, dst_colorspace=5, dst_color_range=1)
        frame.pts, frame.time_base = i, 1 / fps
        container.mux(video.encode(frame))
        if sound is not None and bounds[i + 1] > bounds[i]:
            samples = av.AudioFrame.from_ndarray(audio[None, bounds[i]:bounds[i + 1]], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = SAMPLE_RATE, bounds[i], Fraction(1, SAMPLE_RATE)
            container.mux(sound.encode(samples))
    container.mux(video.encode(None))
    if sound is not None:
        container.mux(sound.encode(None))


def read_mp4(path: Path | str, size: int | None = None) -> Recording:
    """Decodes a film of any format FFmpeg reads, upright, its first or main picture and sound streams.

    With `size`, pictures must be square and at least that large, and come back at size x size. Raises MediaError: no
    picture or sound stream, unreadable, damaged or cut off, wrong shape.
    """
    path = Path(path)
    with _opened(path) as container:
        video, sound = (container.streams.best(kind) for kind in ("video", "audio"))
        if video is None or video.disposition & Disposition.attached_pic:
            raise MediaError(f"{path}: no video stream; export the clip again with its picture")
        if sound is None:
            raise MediaError(f"{path}: no audio stream; export the clip again with its sound")
        _check_shape(path, video, size)
        reformatter, track = VideoReformatter(), SoundTrack(path)
        pictures: list[tuple[float, np.ndarray]] = []
        for frame in _decoded(path, container, [video, sound]):
            if isinstance(frame, av.AudioFrame):
                track.add(frame)
            elif frame.time is None:
                raise MediaError(f"{path}: a picture without a timestamp; convert the clip to MP4")
            else:
                pictures.append((frame.time, _rgb(reformatter, frame, size)))
        if not pictures:
            raise MediaError(f"{path}: the video stream holds no picture; export the clip again")
        if len({picture.shape for _, picture in pictures}) > 1:
            raise MediaError(f"{path}: the picture changes its size midway; export the clip at one size")
        pictures.sort(key=lambda pair: pair[0])
        times = np.array([time for time, _ in pictures])
        interval = float(np.median(np.diff(times))) if len(times) > 1 else float(1 / (video.average_rate or 25))
        end = float(times[-1]) + interval
        audio, start = track.joined()
        last = max(end, start + track.seconds)
        _check_length(path, "picture", video, times[0], end, last)
        _check_length(path, "sound", sound, start, start + track.seconds, last)
        return Recording(np.stack([picture for _, picture in pictures]), times, end, audio, start,
                         dict(container.metadata))


def read_audio(path: Path | str) -> np.ndarray:
    """Decodes the sound of any file: (S,) float32 mono at 16 kHz in [-1, 1]. Raises MediaError as `read_mp4` does."""
    path = Path(path)
    with _opened(path) as container:
        sound = container.streams.best("audio")
        if sound is None:
            raise MediaError(f"{path}: no audio stream; give a file with sound, such as WAV")
        track = SoundTrack(path)
        for frame in _decoded(path, container, [sound]):
            track.add(frame)
        audio, start = track.joined()
        _check_length(path, "sound", sound, start, start + track.seconds, start + track.seconds)
        return audio


def read_picture(path: Path | str) -> np.ndarray:
    """Decodes a still picture, upright: (H, W, 3) uint8 RGB; transparency is dropped. Raises MediaError."""
    path = Path(path)
    with _opened(path) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise MediaError(f"{path}: holds no picture; give a PNG or JPEG file")
        for frame in _decoded(path, container, [stream]):
            return _rgb(VideoReformatter(), frame, None)
    raise MediaError(f"{path}: holds no picture; give a PNG or JPEG file")


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(str(path))
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file; check the path") from None
    except PermissionError:
        raise MediaError(f"{path}: cannot be opened; check the file's permissions") from None
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: unreadable ({error.strerror}): not a media file, or cut off before its index; "
                         "copy or export it again") from error
    with container:
        yield container


def _decoded(path: Path, container: av.container.InputContainer,
             streams: list[av.stream.Stream]) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Frames of the streams as they come; whatever is damaged is an error, nothing is concealed."""
    broken = MediaError(f"{path}: damaged or cut off; copy or export it again")
    try:
        for packet in container.demux(streams):
            if packet.is_corrupt:
                raise broken
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise broken
                yield frame
    except av.error.FFmpegError as error:
        raise broken from error


def _check_shape(path: Path, video: av.video.stream.VideoStream, size: int | None) -> None:
    width, height, pixel = video.codec_context.width, video.codec_context.height, video.sample_aspect_ratio
    if size is None:
        return
    if width != height or (pixel or 1) != 1:
        raise MediaError(f"{path}: the picture is {width} x {height}" + (f" with pixels of {pixel}" if pixel else "")
                         + "; crop it to a square around the face")
    if width < size:
        raise MediaError(f"{path}: the picture is {width} x {height}, smaller than {size} x {size}; "
                         "export the clip larger")


def _check_length(path: Path, what: str, stream: av.stream.Stream, begin: float, end: float, last: float) -> None:
    """Refuses a stream that ends before its header says. In Matroska only the file has a length: up to `last`."""
    if stream.duration:
        promised, held = float(stream.duration * stream.time_base), end - begin
    else:
        promised, held = (stream.container.duration or 0) / av.time_base, last
    if held < promised - _LATE:
        raise MediaError(f"{path}: cut off: its header promises {promised:.2f} s of {what}, it holds {held:.2f} s; "
                         "copy or export it again")


def _rgb(reformatter: VideoReformatter, frame: av.VideoFrame, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8, turned upright as the file asks."""
    picture = reformatter.reformat(frame, width=size, height=size, format="rgb24", interpolation=_EXACT, threads=1)
    return np.rot90(picture.to_ndarray(), round(frame.rotation / 90) % 4)
