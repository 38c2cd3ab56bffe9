import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedtalk_flare.data.features import MELS, SILENCE, frame_windows, log_mel


def click(samples, at):
    audio = np.zeros(samples, np.float32)
    audio[at] = 1.0
    return audio


@given(frame=st.integers(1, 22), offset=st.integers(0, 639))
def test_a_click_is_loudest_in_the_row_that_spans_it(frame, offset):
    at = 640 * frame + offset
    energy = log_mel(click(24 * 640, at)).sum(1)
    near = np.flatnonzero(energy > energy.max() - 1e-3)  # at the border of two hops both rows hear it alike
    assert at // 160 in near
    assert 4 * frame <= at // 160 < 4 * frame + 4


def test_the_frame_that_owns_the_click_hears_it_in_the_middle():
    windows = frame_windows(log_mel(click(24 * 640, 10 * 640 + 240)))
    assert windows.shape == (24, MELS, 20) and windows.dtype == np.float32
    assert [int(windows[f].sum(0).argmax()) for f in range(8, 13)] == [17, 13, 9, 5, 1]
    assert np.allclose(windows[7], SILENCE) and np.allclose(windows[13], SILENCE)


def test_windows_hold_the_rows_around_each_frame_and_silence_beyond_the_ends():
    mel = np.random.default_rng(0).normal(size=(28, MELS)).astype(np.float32)
    windows = frame_windows(mel)
    for f in range(7):
        for column in range(20):
            row = 4 * f - 8 + column
            expected = mel[row] if 0 <= row < 28 else np.full(MELS, SILENCE)
            np.testing.assert_array_equal(windows[f, :, column], expected.astype(np.float32))
    mel[:] = 0
    assert windows.any(), "windows must be a copy"


def test_silence_and_a_tone():
    np.testing.assert_allclose(log_mel(np.zeros(6400)), SILENCE, rtol=1e-6)
    assert SILENCE < -0.5
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    mel = log_mel(tone)
    assert mel.shape == (100, MELS)
    hz = 700 * (10 ** (np.linspace(*2595 * np.log10(1 + np.array([60, 7600]) / 700), MELS + 2) / 2595) - 1)[1:-1]
    assert abs(int(mel[50].argmax()) - int(np.abs(hz - 1000).argmin())) <= 1
    quiet = log_mel(tone * 0.1)
    band = mel[50].argmax()
    assert mel[50, band] - quiet[50, band] == pytest.approx(2 / 1.6, abs=1e-3)  # 20 dB


def test_speech_like_sound_is_about_normalised():
    """Harmonics falling 9 dB an octave under a pitch of 120 Hz, as voices do, with pauses a quarter of the time."""
    time = np.arange(16000 * 4) / 16000
    pitch = 2 * np.pi * np.cumsum(120 + 15 * np.sin(2 * np.pi * 0.7 * time)) / 16000
    voice = sum(np.sin(k * pitch) / k**1.5 for k in range(1, 60))
    mel = log_mel(0.1 * voice * (np.sin(2 * np.pi * 0.5 * time) > -0.7))
    assert abs(mel.mean()) < 0.6 and 0.5 < mel.std() < 1.5


@pytest.mark.parametrize("samples", [0, 159, 160, 799])
def test_short_sound(samples):
    assert log_mel(np.zeros(samples)).shape == (samples // 160, MELS)


def test_refusals():
    with pytest.raises(ValueError, match=r"mono audio.*\(2, 640\)"):
        log_mel(np.zeros((2, 640)))
    with pytest.raises(ValueError, match="NaN"):
        log_mel(np.array([0.0, np.nan] * 320))
    with pytest.raises(ValueError, match="640 samples a frame"):
        frame_windows(np.zeros((6, MELS)))
    assert frame_windows(np.zeros((0, MELS))).shape == (0, MELS, 20)
