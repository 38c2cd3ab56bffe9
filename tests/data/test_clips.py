import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
from films import CLICKS, SECONDS, click_times, time_errors
from hypothesis import given
from hypothesis import strategies as st

from privfedtalk_flare.data.clips import (
    Clip,
    ClipError,
    ClipFile,
    ClipsOnDisk,
    aligned,
    aperture_path,
    find_clips,
    frames_at_25,
    load_clip,
    load_clips,
    save_aperture,
    split_clips,
)


def load(path, **settings):
    return load_clip(ClipFile("ada", path), **settings)


FILMS = {
    "as we write them": {},
    "30 fps, 48 kHz stereo": {"fps": 30, "rate": 48000, "layout": "stereo"},
    "29.97 fps, 44.1 kHz stereo": {"fps": 30000 / 1001, "rate": 44100, "layout": "stereo"},
    "50 fps": {"fps": 50, "rate": 48000},
    "12 fps": {"fps": 12},
    "sound starts late": {"fps": 30, "rate": 48000, "layout": "stereo", "sound_from": 0.4},
    "picture starts late": {"rate": 48000, "picture_from": 0.4},
    "MPEG-TS, whose clock does not start at 0": {"format": "mpegts", "rate": 48000},
    "Matroska with PCM": {"format": "matroska", "sound_codec": "pcm_s16le", "rate": 48000, "layout": "stereo"},
    "5.1 sound": {"rate": 48000, "layout": "5.1"},
    "larger": {"size": (160, 160)},
}


@pytest.mark.parametrize("kind", FILMS)
def test_picture_and_sound_come_out_on_one_clock(film, kind):
    options = FILMS[kind]
    path = film(**options)
    clip = load(path)
    begin = options.get("picture_from", 0.0)
    frames = round((SECONDS - begin) * 25)
    assert clip.frames.shape == (frames, 64, 64, 3) and clip.frames.dtype == np.uint8
    assert clip.audio.shape == (frames * 640,) and clip.audio.dtype == np.float32
    assert np.abs(clip.audio).max() <= 1
    fps = options.get("fps", 25)
    nearest = 0.0 if fps in (25, 50) else 0.5 / fps
    assert time_errors(clip.frames, begin + np.arange(frames) / 25).max() <= nearest + 0.004
    expected = [click - begin for click in CLICKS]
    assert click_times(clip.audio) == pytest.approx(expected, abs=0.002)
    late = round(640 * 25 * options.get("sound_from", 0.0))
    assert np.abs(clip.audio[: max(0, late - 320)]).max(initial=0) < 1e-3
    assert clip.identity == "ada" and clip.name == "film" and clip.aperture is None
    assert clip.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("options", [{}, {"options": {"movflags": "+faststart"}, "rate": 48000},
                                     {"format": "matroska"}, {"fps": 30}])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused(film, options, share):
    path = cut(film(**options), share)
    with pytest.raises(ClipError, match=r"film\.mp4: .*(cut off|damaged).*again"):
        load(path)


def test_a_film_that_lacks_only_its_last_bytes_is_refused(film):
    path = film(options={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ClipError, match=r"film\.mp4: damaged or cut off"):
        load(path)


def test_damage_inside_is_refused_not_concealed(film):
    path = film(options={"movflags": "+faststart"})
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 2000
    data[at : at + 1500] = np.random.default_rng(0).bytes(1500)
    path.write_bytes(data)
    with pytest.raises(ClipError, match=r"film\.mp4: damaged"):
        load(path)


@pytest.mark.parametrize("options, fault", [
    ({"sound": False}, "no audio stream; export the clip again with its sound"),
    ({"picture": False}, "no video stream; export the clip again with its picture"),
    ({"size": (96, 64)}, "the picture is 96 x 64; crop it to a square"),
    ({"aspect": 2}, "the picture is 64 x 64 with pixels of 2; crop it to a square"),
    ({"size": (48, 48)}, "48 x 48, smaller than 64 x 64; export the clip larger"),
    ({"picture_from": 2.4}, "too short: 15 frames of 25 a second, at least 25 are needed"),
    ({"sound_until": 2.2}, r"the sound ends 0\.[78]\d s before the picture"),
    ({"sound_from": 2.0}, r"the sound starts 1\.9\d s after the picture and covers less than half"),
])
def test_refusals_name_file_fault_and_remedy(film, options, fault):
    with pytest.raises(ClipError, match=r"film\.mp4: .*" + fault):
        load(film(**options))


def test_not_a_film_at_all(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("not a film " * 100)
    with pytest.raises(ClipError, match=r"notes\.mp4: unreadable"):
        load(text)
    with pytest.raises(ClipError, match=r"gone\.mp4: no such file"):
        load(tmp_path / "gone.mp4")


@pytest.mark.parametrize("degrees, corner", [(90, np.s_[:, -4:, :4]), (-90, np.s_[:, :4, -4:]),
                                             (180, np.s_[:, -4:, -4:]), (0, np.s_[:, :4, :4])])
def test_a_film_marked_as_turned_comes_out_upright(film, degrees, corner):
    """Degrees are counterclockwise: the mark at the top left goes to the bottom left at 90."""
    frames = load(film(rotation=degrees)).frames
    assert frames[corner].mean() > 200 > frames.mean() + 20


def test_load_clips_names_counts_and_skips_the_bad_ones(film, tmp_path):
    good = film("ada/a.mp4")
    film("ada/mute.mp4", sound=False)
    shutil.copy(good, tmp_path / "ada" / "z.mp4")
    film("bob/c.mp4", fps=30)
    shutil.copy(good, tmp_path / "bob" / "d.mp4")
    lines = []
    clips, skipped = load_clips(find_clips(tmp_path), lines.append)
    assert [(c.identity, c.name) for c in clips] == [("ada", "a"), ("bob", "c"), ("bob", "d")]  # whoever ada is
    assert skipped == 2 == len(lines)
    assert "mute.mp4: no audio stream" in lines[0]
    assert "z.mp4: the same file as" in lines[1] and "a.mp4" in lines[1]


def test_clips_on_disk_are_decoded_when_asked_for_and_must_be_what_they_were(film, tmp_path):
    path = tmp_path / "ann" / "one.mp4"
    path.parent.mkdir()
    shutil.copy(film(), path)
    files = [ClipFile("ann", path)]
    (clip,), _ = load_clips(files, print)
    lazy = ClipsOnDisk([clip])
    assert len(lazy) == 1 and lazy[0].digest == clip.digest and np.array_equal(lazy[0].frames, clip.frames)
    assert [one.name for one in lazy] == [one.name for one in lazy[:]] == ["one"]
    path.write_bytes(path.read_bytes() + b"\0" * 16)
    with pytest.raises(ClipError, match="changed since this process listed it"):
        _ = lazy[0]
    path.unlink()
    with pytest.raises(ClipError, match="one"):
        _ = lazy[0]


def test_find_clips(tmp_path):
    for name in ("b/2.mp4", "b/1.MP4", "a/9.mp4", "a/9.aperture.npy", "a/.9.mp4.part", "a/.x.mp4", ".c/1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [(f.identity, f.path.name) for f in find_clips(tmp_path)] == [("a", "9.mp4"), ("b", "1.MP4"), ("b", "2.mp4")]
    with pytest.raises(ClipError, match=r"nowhere: no such folder; set `corpus`"):
        find_clips(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    assert find_clips(tmp_path / "flat") == []
    (tmp_path / "flat" / "1.mp4").touch()
    with pytest.raises(ClipError, match="move each into a folder"):
        find_clips(tmp_path / "flat")


def test_aperture_travels_beside_the_clip(film):
    path = film()
    aperture = np.linspace(0, 1, 75)
    save_aperture(path, aperture)
    assert aperture_path(path).name == "film.aperture.npy"
    np.testing.assert_array_equal(load(path).aperture, aperture.astype(np.float32))
    save_aperture(path, aperture[:-1])
    with pytest.raises(ClipError, match=r"film\.aperture\.npy: float32 of shape \(74,\), but the clip has 75 frames"):
        load(path)
    np.save(aperture_path(path), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ClipError, match=r"film\.aperture\.npy: not a readable \.npy"):
        load(path)


@given(fps=st.floats(10, 120), frames=st.integers(30, 200), origin=st.floats(-2, 5))
def test_each_instant_gets_the_nearest_frame(fps, frames, origin):
    times = origin + np.arange(frames) / fps
    picked = frames_at_25(np.arange(frames), times, times[-1] + 1 / fps)
    assert len(picked) == int(frames / fps * 25 + 0.01)
    wanted = origin + np.arange(len(picked)) / 25
    best = np.abs(times[None] - wanted[:, None]).min(1)
    assert (np.abs(times[picked] - wanted) <= best + 3e-6).all()


@pytest.mark.parametrize("start, first", [(0.0, 1.0), (-0.01, 161.0), (0.01, 0.0)])
def test_sound_is_moved_by_its_start(start, first):
    out = aligned(np.arange(1, 1281, dtype=np.float32), start, 2)
    assert out.shape == (1280,) and out[0] == first
    assert out[160] == {0.0: 161.0, -0.01: 321.0, 0.01: 1.0}[start]


def clip(identity, name, digest=None):
    digest = digest or hashlib.sha256(f"{identity}/{name}".encode()).hexdigest()
    return Clip(identity, name, np.empty((0, 64, 64, 3), np.uint8), np.empty(0, np.float32), digest)


@given(st.permutations([clip(who, str(i)) for who in "abc" for i in range(5)]), st.integers(0, 4))
def test_splits_depend_on_the_names_alone(clips, held_out):
    train, held = split_clips(clips, held_out)
    assert sorted(c.digest for c in train + held) == sorted(c.digest for c in clips)
    for who in "abc":
        assert sum(c.identity == who for c in held) == held_out
    again, held_again = split_clips(sorted(clips, key=lambda c: c.name), held_out)
    assert {c.digest for c in held} == {c.digest for c in held_again}
    assert {c.digest for c in train} == {c.digest for c in again}
    rendered_elsewhere, _ = split_clips([replace(c, digest=c.digest[::-1]) for c in clips], held_out)
    assert {(c.identity, c.name) for c in train} == {(c.identity, c.name) for c in rendered_elsewhere}


def test_splits_that_cannot_be():
    clips = [clip("a", "1"), clip("a", "2"), clip("b", "1")]
    with pytest.raises(ClipError, match=r"hold 1 out.*b \(1\); add clips of these people, at least 2"):
        split_clips(clips, 1)
    with pytest.raises(ClipError, match="same file twice among the clips of a"):
        split_clips([clip("a", "1", "d"), clip("a", "2", "d")], 1)
    with pytest.raises(ClipError, match="at least 0, got -1"):
        split_clips(clips, -1)
