"""Real films of every sort, made with PyAV: pictures and sound that tell the time at which they were recorded."""

from fractions import Fraction

import av
import numpy as np
import pytest

SECONDS = 3.0
CLICKS = (0.5, 1.3, 2.1)


def grey_at(time):
    """The grey level of the picture at `time`: 400 levels a second, over and over every half second."""
    return 30 + 400 * (time % 0.5)


def time_errors(frames, times):
    """How far from `times` the pictures were recorded, in seconds, read back from their grey levels."""
    seen = (frames[:, 8:-8, 8:-8].mean(axis=(1, 2, 3)) - 30) / 400
    return np.abs((seen - times + 0.25) % 0.5 - 0.25)


@pytest.fixture
def film(tmp_path):
    """make(name, ...) writes a film of SECONDS with a click of 2 ms at each of CLICKS; times are on one clock."""

    def make(name="film.mp4", *, fps=25, rate=16000, layout="mono", size=(64, 64), sound_from=0.0, sound_until=SECONDS,
             picture_from=0.0, picture=True, sound=True, format=None, codec="libx264", sound_codec="aac", options=None,
             rotation=None, aspect=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fps = Fraction(fps).limit_denominator(1001)
        with av.open(str(path), "w", format=format, options=options or {}) as container:
            if picture:
                video = container.add_stream(codec, rate=fps, options={"qp": "0"})
                video.width, video.height, video.pix_fmt = *size, "yuv420p"
                if aspect:
                    video.codec_context.sample_aspect_ratio = aspect
                if rotation is not None:
                    video.set_display_rotation(rotation)
            if sound:
                audio = container.add_stream(sound_codec, rate=rate, layout=layout)
            if picture:
                first = round(picture_from * fps)
                for i in range(first, round(SECONDS * fps)):
                    pixels = np.full((size[1], size[0], 3), round(float(grey_at(i / fps))), np.uint8)
                    pixels[:4, :4] = 255  # a mark at the top left
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                        format="yuv420p", dst_color_range=1)
                    frame.pts, frame.time_base = i, 1 / fps
                    container.mux(video.encode(frame))
                container.mux(video.encode(None))
            if sound:
                start, stop = round(sound_from * rate), round(sound_until * rate)
                wave = 0.01 * np.sin(np.arange(stop) * 2 * np.pi * 200 / rate)
                for click in CLICKS:
                    at = round(click * rate)
                    wave[at - rate // 1000 : at + rate // 1000] = 0.8
                channels = audio.layout.nb_channels
                kind = "s16" if sound_codec.startswith("pcm") else "fltp"
                packed = np.tile(wave[start:], (channels, 1)).astype(np.float32)
                if kind == "s16":
                    packed = (packed.T.reshape(1, -1) * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(packed, format=kind, layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                container.mux(audio.encode(frame))
                container.mux(audio.encode(None))
        return path

    return make


def click_times(audio, rate=16000):
    """The middle of each loud stretch, in seconds."""
    smooth = np.convolve(np.abs(audio), np.ones(32) / 32, "same")
    loud = np.flatnonzero(smooth > 0.3)
    if not len(loud):
        return []
    return [float(group.mean() / rate) for group in np.split(loud, np.flatnonzero(np.diff(loud) > rate // 10) + 1)]
