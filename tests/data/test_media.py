import itertools
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from films import click_times

from privfedtalk_flare.data.features import log_mel
from privfedtalk_flare.data.media import MediaError, read_audio, read_mp4, read_picture, write_mp4


def portrait(frames=50, size=64):
    """Smooth synthetic pictures: skin on a gradient, red lips that open and close."""
    y, x = np.mgrid[:size, :size] / size
    out = np.empty((frames, size, size, 3))
    for f in range(frames):
        opening = 0.02 + 0.05 * abs(np.sin(0.24 * f))
        head = 1 / (1 + np.exp(150 * ((x - 0.5) ** 2 + 0.7 * (y - 0.5) ** 2 - 0.1)))[..., None]
        lips = np.exp(-((((x - 0.5) / 0.14) ** 2 + ((y - 0.72) / (opening + 0.02)) ** 2) ** 2))[..., None]
        picture = np.stack([0.3 + 0.3 * x, 0.4 + 0.2 * y, 0.6 - 0.3 * x], -1) * (1 - head)
        picture = picture + np.stack([0.85 - 0.1 * y, 0.65 - 0.1 * y, 0.5 - 0.1 * x], -1) * head
        out[f] = picture * (1 - lips) + np.array([0.75, 0.25, 0.28]) * lips
    return np.round(out * 255).astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def clicks(frames, at):
    audio = 0.001 * np.sin(np.arange(frames * 640, dtype=np.float32))
    for sample in at:
        audio[sample : sample + 16] = 0.8
    return audio


def test_what_is_written_comes_back_in_sync(tmp_path):
    frames, at = portrait(), [8, 320 + 640 * 7, 640 * 20, 640 * 49 + 600]
    write_mp4(tmp_path / "new" / "a.mp4", frames, clicks(50, at), metadata={"comment": "synthetic", "title": "Ada"})
    film = read_mp4(tmp_path / "new" / "a.mp4")
    np.testing.assert_allclose(film.times, np.arange(50) / 25, atol=1e-6)
    assert film.end == pytest.approx(2.0) and film.audio_start == pytest.approx(0.0, abs=1e-4)
    assert click_times(film.audio) == pytest.approx([(s + 8) / 16000 for s in at], abs=0.001)
    assert 0 <= len(film.audio) - 50 * 640 < 1024
    assert psnr(frames, film.frames) > 40
    assert np.abs((film.frames.astype(float) - frames).mean(axis=(0, 1, 2))).max() < 1
    assert film.metadata["comment"] == "synthetic" and film.metadata["title"] == "Ada"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_common_players_can_play_it(tmp_path):
    path = tmp_path / "a.mp4"
    write_mp4(path, portrait(25), np.zeros(25 * 640))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert video.codec_context.name == "h264" and video.codec_context.pix_fmt == "yuv420p"
        assert video.profile == "High" and video.average_rate == 25 and video.frames == 25
        assert video.codec_context.colorspace == 6 and video.codec_context.color_range == 1
        assert sound.codec_context.name == "aac" and sound.profile == "LC"
        assert video.start_time == 0 == sound.start_time
        packets = [(p.stream.type, float(p.dts * p.time_base)) for p in container.demux() if p.dts is not None]
    lag = max(abs(a[1] - b[1]) for a, b in itertools.pairwise(packets))
    assert lag < 0.5, "sound and picture must lie interleaved"


def test_the_same_film_gives_the_same_bytes(tmp_path):
    for name in "ab":
        write_mp4(tmp_path / name, portrait(10), clicks(10, [500]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_speech_survives_aac(tmp_path):
    time = np.arange(32000) / 16000
    voice = 0.1 * sum(np.sin(2 * np.pi * 130 * k * time) / k for k in range(1, 40)) * np.abs(np.sin(2 * np.pi * time))
    write_mp4(tmp_path / "a.mp4", portrait(), voice)
    heard = read_audio(tmp_path / "a.mp4")[:32000]
    assert np.abs(log_mel(heard) - log_mel(voice)).mean() < 0.1
    assert np.corrcoef(heard, voice)[0, 1] > 0.99


def test_full_colour_and_other_rates(tmp_path):
    frames = portrait(30)
    write_mp4(tmp_path / "a.mp4", frames, clicks(25, [16000 - 640]), fps=30, pix_fmt="yuv444p")
    film = read_mp4(tmp_path / "a.mp4")
    assert psnr(frames, film.frames) > 44 and film.end == pytest.approx(1.0)
    write_mp4(tmp_path / "b.mp4", frames[:, :62, :60], np.zeros(16016), fps=Fraction(30000, 1001))
    assert read_mp4(tmp_path / "b.mp4").frames.shape == (30, 62, 60, 3)


def test_a_silent_film(tmp_path):
    write_mp4(tmp_path / "a.mp4", portrait(5), None)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert not container.streams.audio
    with pytest.raises(MediaError, match="no audio stream"):
        read_mp4(tmp_path / "a.mp4")


@pytest.mark.parametrize("change, fault", [
    ({"frames": np.zeros((5, 64, 64, 3))}, "must be uint8.*got float64"),
    ({"frames": np.zeros((0, 64, 64, 3), np.uint8)}, "at least one"),
    ({"frames": np.zeros((5, 64, 63, 3), np.uint8)}, "even height and width, got 64 x 63"),
    ({"audio": np.zeros(5000)}, "5000 samples of sound for 5 pictures of 25 a second; .* to 3200 samples"),
    ({"audio": np.full(3200, np.nan)}, "finite"),
    ({"metadata": {"synthetic": "yes"}}, "no metadata 'synthetic'; the choices are title"),
    ({"pix_fmt": "rgb24"}, "unknown pix_fmt 'rgb24'; the choices are yuv420p, yuv444p"),
])
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, change, fault):
    arguments = {"frames": np.zeros((5, 64, 64, 3), np.uint8), "audio": np.zeros(3200)} | change
    with pytest.raises(MediaError, match=fault):
        write_mp4(tmp_path / "a.mp4", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    write_mp4(tmp_path / "a.mp4", portrait(5), None)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(MediaError, match=r"a\.mp4: cannot be written .* at 40000 x 2; check the size"):
        write_mp4(tmp_path / "a.mp4", np.zeros((3, 2, 40000, 3), np.uint8), None)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def write_wav(path, samples, rate, channels=1, width=2):
    scaled = np.repeat(samples[:, None], channels, 1) * (2 ** (8 * width - 1) - 1)
    raw = (scaled + 128).astype(np.uint8) if width == 1 else scaled.astype(f"<i{width}")
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw.tobytes())


@pytest.mark.parametrize("rate, channels, width", [(16000, 1, 2), (48000, 2, 2), (44100, 2, 4), (8000, 1, 1)])
def test_sound_of_any_rate_and_depth(tmp_path, rate, channels, width):
    time = np.arange(int(1.234 * rate)) / rate
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate, channels, width)
    audio = read_audio(tmp_path / "a.wav")
    assert audio.dtype == np.float32 and abs(len(audio) - 1.234 * 16000) <= 2
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(audio)) / 16000)
    assert np.abs(audio - wanted)[300:-300].max() < (0.02 if width == 1 else 0.002)


def test_sound_that_cannot_be_read(tmp_path):
    write_wav(tmp_path / "a.wav", np.zeros(32000), 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:20000])
    with pytest.raises(MediaError, match=r"cut\.wav: (cut off|damaged)"):
        read_audio(tmp_path / "cut.wav")
    write_wav(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(MediaError, match=r"empty\.wav: "):
        read_audio(tmp_path / "empty.wav")
    write_mp4(tmp_path / "mute.mp4", portrait(5), None)
    with pytest.raises(MediaError, match=r"mute\.mp4: no audio stream; give a file with sound"):
        read_audio(tmp_path / "mute.mp4")


@pytest.mark.parametrize("codec, kind, floor", [("png", "rgb24", 99), ("png", "rgba", 99), ("mjpeg", "yuvj444p", 36)])
def test_still_pictures(tmp_path, codec, kind, floor):
    picture = portrait(1, 96)[0]
    path = tmp_path / "face"
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream(codec, rate=1)
        stream.width = stream.height = 96
        stream.pix_fmt = kind
        stream.codec_context.qmin = stream.codec_context.qmax = 2
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=kind)))
        container.mux(stream.encode(None))
    path = path.rename(tmp_path / f"face.{'png' if codec == 'png' else 'jpg'}")
    seen = read_picture(path)
    assert seen.shape == (96, 96, 3) and seen.dtype == np.uint8
    assert np.array_equal(seen, picture) if floor == 99 else psnr(seen, picture) > floor
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MediaError, match=r"face\.\w+: "):
        read_picture(path)


def test_colours_follow_the_tags_of_a_foreign_film(tmp_path):
    frames = portrait(25)
    for name, code, tag in (("601", 5, 6), ("709", 1, 1)):
        path = tmp_path / f"{name}.mp4"
        with av.open(str(path), "w") as container:
            video, sound = container.add_stream("libx264", rate=25, options={"crf": "4"}), container.add_stream("aac")
            video.width, video.height, video.pix_fmt = 64, 64, "yuv444p"
            video.codec_context.colorspace, video.codec_context.color_range = tag, 2
            for i, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                    format="yuv444p", dst_colorspace=code, dst_color_range=2)
                frame.pts = i
                container.mux(video.encode(frame))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 48000
            container.mux([*video.encode(None), *sound.encode(silence), *sound.encode(None)])
        assert psnr(read_mp4(path).frames, frames) > 40
