"""The rendered people: varied, reproducible, and silent outside the mask."""

import dataclasses

import numpy as np
import pytest

from privfedtalk_flare.data.clips import find_clips, load_clip
from privfedtalk_flare.data.portrait import Motion, mask_box, paint
from privfedtalk_flare.data.sound import FPS
from privfedtalk_flare.data.speech import Voice, speak
from privfedtalk_flare.data.synthetic import Person, draw_motion, render_clip, write_corpus


@pytest.fixture(scope="module")
def clips():
    return [render_clip(Person.draw(11, i), 0, 2.0) for i in range(24)]


def test_the_same_person_and_clip_render_the_same():
    first, second = (render_clip(Person.draw(3, 1), 2, 1.0) for _ in range(2))
    assert np.array_equal(first.frames, second.frames) and np.array_equal(first.audio, second.audio)
    assert not np.array_equal(first.frames, render_clip(Person.draw(3, 2), 2, 1.0).frames)


def test_shapes_and_ranges(clips):
    clip = clips[0]
    assert clip.frames.shape == (50, 64, 64, 3) and clip.frames.dtype == np.uint8
    assert clip.audio.shape == (50 * 640,) and np.abs(clip.audio).max() <= 1
    assert clip.aperture.shape == (50,) and clip.aperture.min() >= 0 and clip.aperture.max() <= 1


def test_nothing_outside_the_mask_follows_the_mouth():
    """Exactly: no pixel outside the mask changes when the mouth alone does, for any pose."""
    rng = np.random.default_rng(0)
    inside = np.zeros((64, 64), bool)
    inside[mask_box(64)] = True
    for index in range(6):
        person = Person.draw(5, index)
        motion = draw_motion(rng, speak(rng, person.voice, 1.0))
        shut = dataclasses.replace(motion, aperture=np.zeros_like(motion.aperture), width=np.zeros_like(motion.width))
        open_ = dataclasses.replace(motion, aperture=np.ones_like(motion.aperture), width=np.ones_like(motion.width))
        changed = (paint(person.look, shut) != paint(person.look, open_)).any((0, 3))
        assert changed[inside].any() and not changed[~inside].any()


def test_pose_and_eyes_do_not_follow_what_is_said():
    rng = np.random.default_rng(1)
    lines = []
    for index in range(40):
        speech = speak(rng, Person.draw(6, index).voice, 4.0)
        motion = draw_motion(rng, speech)
        lines.append([abs(np.corrcoef(getattr(motion, name), speech.aperture)[0, 1]) for name in ("x", "y", "brow")])
    # Two independent smooth curves of 100 frames correlate by chance about .2 in absolute value.
    assert np.mean(lines) < 0.3


def test_the_mask_covers_at_least_15_percent():
    rows, columns = mask_box(64)
    assert (rows.stop - rows.start) * (columns.stop - columns.start) / 64**2 >= 0.15


def test_copying_the_reference_is_no_solution():
    """Mean over people of PSNR inside the mask between a frame of one clip and the frames of another: at most 21 dB."""
    values = []
    for index in range(24):
        person = Person.draw(12, index)
        reference = render_clip(person, 0, 1.0).frames[0].astype(float)
        target = render_clip(person, 1, 2.0).frames.astype(float)
        error = ((target - reference)[(slice(None), *mask_box(64))] ** 2).mean()
        values.append(10 * np.log10(255**2 / error))
    assert np.mean(values) <= 21


def test_people_look_different(clips):
    means = np.stack([c.frames.mean((0, 1, 2)) for c in clips])
    assert means.std(0).min() > 15  # grey levels, over 24 people


def test_sound_and_mouth_agree(clips):
    """Loudness per frame follows the aperture, and pauses are quiet with the mouth shut."""
    agreement = []
    for clip in clips:
        loudness = np.sqrt((clip.audio.reshape(-1, 640) ** 2).mean(1))
        agreement.append(np.corrcoef(loudness, clip.aperture)[0, 1])
        assert loudness[clip.aperture < 1e-3].mean() < 0.2 * loudness[clip.aperture > 0.4].mean()
    assert np.mean(agreement) > 0.75


def test_speech_has_the_length_asked_for():
    rng = np.random.default_rng(2)
    for seconds in (1.0, 2.48, 5.0):
        speech = speak(rng, Voice.draw(rng), seconds)
        assert len(speech.aperture) == round(seconds * FPS) == len(speech.audio) // 640


def test_an_accent_changes_the_lips_and_nothing_else():
    plain, other = (render_clip(Person.draw(4, 0, accent), 0, 2.0) for accent in (0.0, 1.0))
    assert np.array_equal(plain.audio, other.audio)
    assert np.allclose(other.aperture, 0.7 * plain.aperture, atol=1e-6)
    changed = (plain.frames != other.frames).any((0, 3))
    inside = np.zeros((64, 64), bool)
    inside[mask_box(64)] = True
    assert changed[inside].any() and not changed[~inside].any()


def test_an_accent_rounds_what_others_spread():
    """Where one voice spreads its lips the accented one rounds them: widths mirrored, one frame against the other."""
    voice = Voice.draw(np.random.default_rng(8))
    plain, other = (speak(np.random.default_rng(9), dataclasses.replace(voice, accent=accent), 4.0)
                    for accent in (0.0, 1.0))
    assert np.allclose(other.width, 1 - plain.width, atol=1e-6)


def test_the_corpus_is_real_mp4_and_kept(tmp_path):
    people = [Person.draw(9, i) for i in range(2)]
    paths = write_corpus(tmp_path, people, clips=2, seconds=1.5)
    stamps = [p.stat().st_mtime_ns for p in paths]
    assert write_corpus(tmp_path, people, clips=2, seconds=1.5) == paths
    assert [p.stat().st_mtime_ns for p in paths] == stamps
    listed = find_clips(tmp_path)
    assert [f.path for f in listed] == paths
    clip = load_clip(listed[0])
    rendered = render_clip(people[0], 0, 1.5)
    assert np.array_equal(clip.aperture, rendered.aperture)
    assert np.abs(clip.frames.astype(float) - rendered.frames).mean() < 3  # H.264, 4:2:0


def test_motion_is_complete():
    rng = np.random.default_rng(0)
    motion = draw_motion(rng, speak(rng, Voice.draw(rng), 1.0))
    assert all(len(getattr(motion, f.name)) == 25 for f in dataclasses.fields(Motion))
