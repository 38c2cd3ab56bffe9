"""`privfedtalk generate`: a picture and a speech file in, a tagged MP4 with its sound in sync out."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from privfedtalk_flare.cli import build_parser, main
from privfedtalk_flare.data.clips import ClipFile, load_clip
from privfedtalk_flare.data.media import read_mp4
from privfedtalk_flare.data.speech import speak
from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.generator.pipeline import GUIDANCE, STEPS


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    person = Person.draw(21, 0)
    picture = Image.fromarray(render_clip(person, 0, 1.0).frames[0])
    picture.resize((200, 200)).save(folder / "face.png")
    speech = speak(np.random.default_rng(3), person.voice, 2.2)
    wavfile.write(folder / "speech.wav", 16000, (speech.audio[:-333] * 32767).astype(np.int16))  # no whole frame
    return folder


def test_it_writes_a_tagged_video_as_long_as_the_speech(inputs, tmp_path, capsys):
    out = tmp_path / "talk.mp4"
    code = main(["generate", "--face", str(inputs / "face.png"), "--audio", str(inputs / "speech.wav"),
                 "--out", str(out)])
    assert code == 0 and str(out) in capsys.readouterr().out
    film = read_mp4(out)
    assert len(film.frames) == 55 and "Synthetic" in film.metadata["comment"]
    rate, original = wavfile.read(inputs / "speech.wav")
    clip = load_clip(ClipFile("p", out))
    sound = original / 32768
    assert rate == 16000 and np.corrcoef(clip.audio[:len(sound)], sound)[0, 1] > 0.99  # at lag 0: in sync


@pytest.mark.parametrize("name, content, says", [
    ("face.png", None, "no such file"),
    ("wide.png", (128, 64), "square"),
    ("small.png", (32, 32), "at least 64x64"),
])
def test_a_bad_picture_is_refused(inputs, tmp_path, capsys, name, content, says):
    face = tmp_path / name
    if content:
        Image.new("RGB", content).save(face)
    code = main(["generate", "--face", str(face), "--audio", str(inputs / "speech.wav"),
                 "--out", str(tmp_path / "o.mp4")])
    assert code == 1 and says in capsys.readouterr().err.lower()
    assert not (tmp_path / "o.mp4").exists()


def test_a_file_that_is_no_adapter_is_refused(inputs, tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes(b"junk")
    code = main(["generate", "--face", str(inputs / "face.png"), "--audio", str(inputs / "speech.wav"),
                 "--adapters", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "o.mp4")])
    assert code == 1 and "a.safetensors" in capsys.readouterr().err


def test_the_command_samples_as_the_sites_do():
    parsed = build_parser().parse_args(["generate", "--face", "f.png", "--audio", "a.wav", "--out", "o.mp4"])
    assert (parsed.steps, parsed.guidance) == (STEPS, GUIDANCE)
