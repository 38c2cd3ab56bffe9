"""The pipeline as a diffusers pipeline, its masks, windows and compositing. On fresh weights: shapes and contracts."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from privfedtalk_flare.data.portrait import mask_box
from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.aperture import mouth_aperture
from privfedtalk_flare.generator.codec import decode, encode, latent_mask, mask_pictures, set_latent_scale, to_tensor
from privfedtalk_flare.generator.pipeline import TalkingHeadPipeline, backbone_folder, load_pipeline, save_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return TalkingHeadPipeline.build(0)


def speech(frames):
    return np.random.default_rng(0).normal(0, 0.1, frames * 640).astype(np.float32)


def test_it_saves_and_loads_as_safetensors_alone(tmp_path, pipeline):
    set_latent_scale(pipeline.codec, 0.1, 0.4)
    save_pipeline(pipeline, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    loaded = load_pipeline(str(tmp_path))
    assert loaded.codec.config.scaling_factor == pytest.approx(2.5)
    assert loaded.digest == load_pipeline(str(tmp_path)).digest
    assert not any(p.requires_grad for p in loaded.denoiser.parameters())
    assert isinstance(TalkingHeadPipeline.from_pretrained(tmp_path), DiffusionPipeline)


def test_the_shipped_backbone_is_small():
    assert sum(p.stat().st_size for p in backbone_folder("assets").rglob("*") if p.is_file()) <= 14_000_000


def test_a_missing_backbone_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("privfedtalk_flare.generator.pipeline.ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError, match="jobs/backbone"):
        backbone_folder("assets")


def test_the_digest_follows_the_weights():
    first, second = TalkingHeadPipeline.build(0), TalkingHeadPipeline.build(0)
    assert first.digest == second.digest != TalkingHeadPipeline.build(1).digest


def test_masked_latents_have_not_seen_the_mouth(pipeline):
    """Grey goes in before encoding: two pictures that differ in the mask alone have equal masked latents."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    frames[1] = frames[0]
    frames[(1, *mask_box(64))] = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    latents = encode(pipeline.codec, mask_pictures(to_tensor(frames)))
    assert torch.equal(latents[0], latents[1])
    full = encode(pipeline.codec, to_tensor(frames))
    assert not torch.equal(full[0], full[1])


def test_the_latent_mask_is_the_pixel_mask():
    mask = latent_mask(64)[0].numpy()
    rows, columns = mask_box(64)
    pixels = np.zeros((64, 64))
    pixels[rows, columns] = 1
    assert np.array_equal(np.kron(mask, np.ones((4, 4))), pixels)


def test_encode_and_decode_shapes(pipeline):
    pictures = to_tensor(np.zeros((3, 64, 64, 3), np.uint8))
    latents = encode(pipeline.codec, pictures)
    assert latents.shape == (3, 8, 16, 16) and decode(pipeline.codec, latents).shape == pictures.shape


@pytest.mark.parametrize("frames", [1, 5, 8, 21])
def test_any_length_of_sound_gives_as_many_frames(pipeline, frames):
    face = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    told = []
    out = pipeline(face, face[0], speech(frames), steps=1, progress=lambda done, of: told.append((done, of)))
    assert out.shape == (frames, 64, 64, 3) and out.dtype == np.uint8
    assert told[-1][0] == told[-1][1]


def test_outside_the_mask_the_picture_is_the_base(pipeline):
    base = np.random.default_rng(2).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    out = pipeline(base, base[0], speech(9), steps=1)
    outside = np.ones((64, 64), bool)
    outside[mask_box(64)] = False
    assert np.array_equal(out[:, outside], base[:, outside])


def test_what_is_painted_has_not_seen_the_mouth_that_it_covers():
    """On the shipped backbone, since an untrained one paints the same whatever it sees: a change inside the mask leaves
    the painted lower face as it was, bit by bit; the head in another place moves it."""
    shipped, person = load_pipeline("assets"), Person.draw(31, 0)
    base, reference = render_clip(person, 0, 1.0).frames[:9], render_clip(person, 1, 1.0).frames[0]
    other, (rows, columns) = base.copy(), mask_box(64)
    other[:, rows, columns] = 255 - base[:, rows, columns]
    shown = shipped.feather[..., 0] == 1
    painted, covered, moved = (shipped(clip, reference, speech(9), steps=1)[:, shown].astype(int)
                               for clip in (base, other, np.roll(base, 3, axis=2)))
    assert np.array_equal(painted, covered)
    assert np.abs(painted - moved).mean() > 1


def test_guidance_opens_the_mouth_farther():
    shipped, person = load_pipeline("assets"), Person.draw(31, 0)
    clip, known = render_clip(person, 0, 2.0), render_clip(person, 1, 1.0).frames[0]
    plain, guided, unheard = (mouth_aperture(shipped(clip.frames, known, clip.audio, guidance=guidance))
                              for guidance in (1.0, 1.5, 0.0))
    assert guided.std() > 1.02 * plain.std() > 2 * unheard.std()


def test_only_the_moved_pictures_teach_the_aligner(pipeline):
    rng = np.random.default_rng(4)
    pictures = to_tensor(rng.integers(0, 256, (2, 3, 64, 64, 3), dtype=np.uint8))
    moved, latents = pipeline.align(pictures, pictures[:, 0])
    assert moved.shape == pictures.shape and latents.shape == (2, 3, 8, 16, 16)
    assert moved.requires_grad and not latents.requires_grad
    torch.testing.assert_close(latents[1, 2], encode(pipeline.codec, pictures[1, :1])[0], atol=1e-3, rtol=0)


def test_the_feather_fades_at_the_mask_and_not_at_the_pictures_edge(pipeline):
    feather = pipeline.feather[..., 0]
    rows, columns = mask_box(64)
    assert feather[rows.start, columns].max() < 0.2 and feather[46:60, 30].min() == 1
    assert feather[63, 20:44].min() == 1  # the lower edge of the mask is the picture's own
    assert np.abs(np.diff(feather, axis=0)).max() <= 0.5


@pytest.mark.parametrize(("given", "says"), [
    ({"steps": 0}, "0 sampling steps"), ({"steps": -1}, "-1 sampling steps"),
    ({"guidance": float("nan")}, "guidance nan"), ({"guidance": -0.1}, "guidance -0.1")])
def test_sampling_out_of_range_is_refused(pipeline, given, says):
    base = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=says):
        pipeline(base, base[0], speech(9), **given)


def test_lengths_that_do_not_fit_are_refused(pipeline):
    base = np.zeros((4, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="4 base frames and 9 frames"):
        pipeline(base, base[0], speech(9))
