"""Synthesised speech with known mouth movement: a source-filter synthesiser over random syllables.

Source-filter model after Fant (1960); vowel formants after Peterson and Barney (1952), rounded. The mouth's aperture
and width follow the articulation of each phoneme (open vowels open, bilabials close), so they can be learnt from sound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import signal
from scipy.ndimage import gaussian_filter1d

from privfedtalk_flare.data.sound import FPS, SAMPLE_RATE

TRACK_RATE = 200
"""Control tracks (formants, gains, mouth) are sampled at 200 Hz."""


@dataclass(frozen=True)
class Phoneme:
    """Formants in Hz, gains in linear amplitude, aperture and width of the mouth in [0, 1], duration in seconds."""

    formants: tuple[float, float, float]
    voice: float
    noise: float
    noise_hz: float
    aperture: float
    width: float
    seconds: float


VOWELS = {
    "a": Phoneme((730, 1090, 2440), 1.0, 0.0, 0, 1.00, 0.55, 0.17),
    "e": Phoneme((530, 1840, 2480), 0.9, 0.0, 0, 0.58, 0.80, 0.14),
    "i": Phoneme((270, 2290, 3010), 0.8, 0.0, 0, 0.32, 1.00, 0.13),
    "o": Phoneme((570, 840, 2410), 0.9, 0.0, 0, 0.70, 0.22, 0.16),
    "u": Phoneme((300, 870, 2240), 0.8, 0.0, 0, 0.36, 0.05, 0.14),
    "@": Phoneme((500, 1500, 2500), 0.7, 0.0, 0, 0.46, 0.50, 0.10),
}
CONSONANTS = {
    "m": Phoneme((250, 1000, 2200), 0.35, 0.0, 0, 0.00, 0.45, 0.09),
    "b": Phoneme((200, 800, 2200), 0.10, 0.0, 0, 0.00, 0.45, 0.08),
    "p": Phoneme((400, 900, 2200), 0.00, 0.02, 800, 0.00, 0.45, 0.09),
    "s": Phoneme((300, 1700, 2600), 0.00, 0.30, 5500, 0.14, 0.75, 0.11),
    "f": Phoneme((300, 1100, 2100), 0.00, 0.14, 3000, 0.06, 0.55, 0.10),
    "t": Phoneme((300, 1700, 2600), 0.00, 0.22, 4000, 0.20, 0.60, 0.06),
    "l": Phoneme((360, 1300, 2700), 0.55, 0.0, 0, 0.34, 0.55, 0.07),
    "n": Phoneme((280, 1500, 2400), 0.40, 0.0, 0, 0.20, 0.55, 0.07),
    "k": Phoneme((350, 1900, 2500), 0.00, 0.18, 2000, 0.30, 0.50, 0.07),
}
PAUSE = Phoneme((450, 1400, 2400), 0.0, 0.0, 0, 0.0, 0.45, 0.35)


@dataclass(frozen=True)
class Voice:
    """A speaker's voice: pitch in Hz, formant scale (vocal tract length), rate of speech; and the accent in [0, 1].

    The accent changes how lips shape a sound, not the sound: at 1 they round what others spread, spread what others
    round, and open 30 % less.
    """

    pitch: float
    tract: float
    rate: float
    accent: float = 0.0

    @staticmethod
    def draw(rng: np.random.Generator) -> Voice:
        return Voice(float(rng.uniform(95, 230)), float(rng.uniform(0.9, 1.15)), float(rng.uniform(0.85, 1.15)))


@dataclass(frozen=True)
class Speech:
    """`audio` (S,) float32 in [-1, 1] at 16 kHz; `aperture`, `width` (F,) float32 in [0, 1] at 25 frames a second."""

    audio: np.ndarray
    aperture: np.ndarray
    width: np.ndarray


def speak(rng: np.random.Generator, voice: Voice, seconds: float) -> Speech:
    """Draws syllables from `rng` and speaks them with `voice` for `seconds` (rounded to whole frames)."""
    frames = round(seconds * FPS)
    ticks = frames * TRACK_RATE // FPS
    tracks = _tracks(_phonemes(rng, seconds), voice, rng, ticks)
    audio = _synthesise(tracks, voice, rng, frames * SAMPLE_RATE // FPS)
    centres = (np.arange(frames) + 0.5) * TRACK_RATE / FPS
    mouth = {k: np.interp(centres, np.arange(ticks), tracks[k]).astype(np.float32) for k in ("aperture", "width")}
    return Speech(audio, mouth["aperture"], mouth["width"])


def _phonemes(rng: np.random.Generator, seconds: float) -> list[Phoneme]:
    """Words of one to four consonant-vowel syllables, parted by pauses, a little longer than `seconds`."""
    vowels, consonants = list(VOWELS.values()), list(CONSONANTS.values())
    out, total = [PAUSE], PAUSE.seconds
    while total < 1.5 * seconds + 1:
        word = []
        for _ in range(rng.integers(1, 5)):
            word += [consonants[rng.integers(len(consonants))], vowels[rng.integers(len(vowels))]]
        if rng.random() < 0.4:
            word.append(consonants[rng.integers(len(consonants))])
        if rng.random() < 0.45:
            word.append(PAUSE)
        out += word
        total += sum(p.seconds for p in word)
    return out


def _tracks(phonemes: list[Phoneme], voice: Voice, rng: np.random.Generator, ticks: int) -> dict[str, np.ndarray]:
    """Control tracks (ticks,) at TRACK_RATE, smoothed as articulators move; the voice sets tempo and formants."""
    lengths = [max(2, round(p.seconds * rng.uniform(0.75, 1.35) / voice.rate * TRACK_RATE)) for p in phonemes]
    index = np.repeat(np.arange(len(phonemes)), lengths)[:ticks]

    def track(values: list[float], smooth_ms: float) -> np.ndarray:
        return gaussian_filter1d(np.asarray(values)[index], smooth_ms * TRACK_RATE / 1000, mode="nearest")

    stress = [1.0 if p.aperture == 0 else float(rng.uniform(0.8, 1.1)) for p in phonemes]
    tracks = {f"f{i}": track([p.formants[i] * voice.tract for p in phonemes], 15) for i in range(3)}
    tracks["voice"] = track([p.voice * s for p, s in zip(phonemes, stress, strict=True)], 8)
    tracks["noise"] = track([p.noise for p in phonemes], 5)
    tracks["noise_hz"] = track([p.noise_hz or 2500 for p in phonemes], 5)
    aperture = track([min(1.0, p.aperture * s) for p, s in zip(phonemes, stress, strict=True)], 24)
    tracks["aperture"] = np.clip(aperture, 0, 1) * (1 - 0.3 * voice.accent)
    tracks["width"] = np.clip(track([p.width + voice.accent * (1 - 2 * p.width) for p in phonemes], 30), 0, 1)
    return tracks


def _synthesise(tracks: dict[str, np.ndarray], voice: Voice, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Glottal pulses and noise through the formant filter, frame by frame in the short-time Fourier domain."""
    time = np.arange(samples) / SAMPLE_RATE
    at = {k: np.interp(time * TRACK_RATE, np.arange(len(v)), v) for k, v in tracks.items()}
    drift = gaussian_filter1d(rng.standard_normal(samples // 160 + 2), 25)
    pitch = voice.pitch * (1 + 0.6 * np.interp(time * 100, np.arange(len(drift)), drift))
    phase = np.cumsum(pitch / SAMPLE_RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0)
    glottis = signal.lfilter([1.0], [1.0, -1.8, 0.81], pulses)  # two real poles at .9: -12 dB an octave
    hiss = rng.standard_normal(samples)

    window, hop = 400, 80
    hz, t, voiced = signal.stft(glottis * at["voice"], SAMPLE_RATE, nperseg=window, noverlap=window - hop)
    _, _, noisy = signal.stft(hiss * at["noise"], SAMPLE_RATE, nperseg=window, noverlap=window - hop)
    f = hz[:, None]
    response = np.ones((len(hz), len(t)), dtype=complex)
    for i, bandwidth in enumerate((80.0, 110.0, 160.0)):
        centre = np.interp(t, time, at[f"f{i}"])[None]
        response = response / (1 - (f / centre) ** 2 + 1j * f * bandwidth / centre**2)
    band = np.exp(-0.5 * ((f - np.interp(t, time, at["noise_hz"])[None]) / 1200) ** 2)
    _, spoken = signal.istft(voiced * response + 0.5 * noisy * band, SAMPLE_RATE, nperseg=window, noverlap=window - hop)
    spoken = spoken[:samples]
    spoken = spoken / (np.sqrt(np.mean(spoken**2)) + 1e-9) * 0.09 * rng.uniform(0.8, 1.25)
    spoken = spoken + 0.0008 * rng.standard_normal(samples)
    return np.clip(spoken, -1, 1).astype(np.float32)
