"""The training loop and the backbone's own, on tiny real data."""

import dataclasses

import numpy as np
import pytest
import torch

from privfedtalk_flare.data.clips import Clip
from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.identity import build_embedder, embed
from privfedtalk_flare.generator.adapters import SharedAdapter
from privfedtalk_flare.generator.codec import encode, to_tensor
from privfedtalk_flare.generator.pipeline import TalkingHeadPipeline, load_pipeline
from privfedtalk_flare.settings import TrainingSettings
from privfedtalk_flare.training.backbone import train_codec, train_identity
from privfedtalk_flare.training.cache import CachedClip, cache_clip, draw_windows
from privfedtalk_flare.training.trainer import Schedule, fit, train_denoiser

QUICK = TrainingSettings(steps=3, batch=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def rendered():
    return render_clip(Person.draw(4, 0), 0, 1.2)


@pytest.fixture(scope="module")
def clip(rendered):
    return Clip("a person", "one", rendered.frames, rendered.audio, "ab" * 32, rendered.aperture)


@pytest.fixture(scope="module")
def cached(clip, tmp_path_factory):
    return cache_clip(clip, TalkingHeadPipeline.build(0).codec, "codec", tmp_path_factory.mktemp("cache"))


def test_fit_minimises_and_says_when_it_diverges():
    weight = torch.nn.Parameter(torch.tensor(5.0))
    fit([weight], lambda: [(weight - 2) ** 2], steps=200, learning_rate=0.1)
    assert weight.item() == pytest.approx(2, abs=0.05)
    with pytest.raises(ArithmeticError, match="step 1 of 5"):
        fit([weight], lambda: [weight * float("nan")], steps=5, learning_rate=0.1)


def test_rounds_share_one_learning_rate_curve():
    whole = [Schedule().rate(1.0, s, 100) for s in range(100)]
    halves = [Schedule(*half).rate(1.0, s, 50) for half in ((0, 0.5), (0.5, 1)) for s in range(50)]
    assert np.allclose(whole[20:50], halves[20:50]) and np.allclose(whole[75:], halves[75:])
    assert whole[-1] < 0.05 and max(whole) == 1.0


def test_windows_never_hold_their_reference(cached):
    """Every frame differs, so the reference can be looked up."""
    places = np.arange(30, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    latents = torch.arange(30.0)[:, None, None, None].expand(30, 8, 2, 2)
    marked = CachedClip("p", "c", places, latents, cached.masked[:30], cached.audio[:30])
    batch = draw_windows(np.random.default_rng(0), [marked], 200, 8)
    frames, references = batch.frames[..., 0, 0, 0].astype(int), batch.reference[..., 0, 0, 0]
    assert not (frames == references[:, None]).any()
    assert (frames[:, 1:] - frames[:, :-1] == 1).all()
    assert np.array_equal(batch.clean[..., 0, 0, 0].numpy(), frames)


def test_the_cache_is_written_once_and_read_back(clip, tmp_path):
    codec = TalkingHeadPipeline.build(0).codec
    first = cache_clip(clip, codec, "digest", tmp_path)
    files = list(tmp_path.iterdir())
    stamp = files[0].stat().st_mtime_ns
    second = cache_clip(clip, codec, "digest", tmp_path)
    assert len(files) == 1 and files[0].stat().st_mtime_ns == stamp
    assert torch.equal(first.latents, second.latents) and first.audio.shape == (30, 32, 20)
    cache_clip(clip, codec, "another", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # keyed by the backbone too
    cache_clip(clip, codec.bfloat16(), "digest", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # and by its precision


def test_latents_for_training_are_those_for_generation_within_a_percent(clip, tmp_path):
    codec = load_pipeline("assets").codec
    exact = encode(codec, to_tensor(clip.frames))
    fast = cache_clip(clip, codec, "digest", tmp_path).latents
    assert float((fast - exact).norm() / exact.norm()) < 0.01


def test_a_torn_cache_file_is_written_anew(clip, tmp_path):
    codec = TalkingHeadPipeline.build(0).codec
    whole = cache_clip(clip, codec, "digest", tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(cache_clip(clip, codec, "digest", tmp_path).latents, whole.latents)


def test_the_proximal_term_holds_the_adapter_back(cached):
    """Same batches, FedProx's mu on: the adapter stays nearer to where it started."""
    lengths = {}
    for mu in (0.0, 100.0):
        generator = TalkingHeadPipeline.build(0)
        generator.denoiser.requires_grad_(False)
        torch.nn.init.normal_(generator.denoiser.conv_out.weight, std=0.1,
                              generator=torch.Generator().manual_seed(0))
        shared = SharedAdapter(generator.denoiser, 8, 1.0, "b")
        settings = dataclasses.replace(QUICK, steps=6, proximal=mu)
        train_denoiser(generator, [cached], shared.parameters(), settings, np.random.default_rng(0))
        lengths[mu] = np.linalg.norm(shared.read())
    assert 0 < lengths[100.0] < 0.9 * lengths[0.0]


def test_training_depends_on_its_own_random_state_alone(cached):
    def run(seed):
        generator = TalkingHeadPipeline.build(0)
        generator.denoiser.requires_grad_(False)
        torch.nn.init.normal_(generator.denoiser.conv_out.weight, std=0.1,
                              generator=torch.Generator().manual_seed(0))
        shared = SharedAdapter(generator.denoiser, 8, 1.0, "b")
        torch.manual_seed(np.random.SeedSequence().entropy % 2**31)  # the global state must not matter
        train_denoiser(generator, [cached], shared.parameters(), QUICK, np.random.default_rng(seed))
        return shared.read()

    assert np.allclose(run(1), run(1), atol=1e-6) and not np.allclose(run(1), run(2), atol=1e-6)


def test_a_batch_that_goes_through_in_parts_trains_as_one_that_goes_through_whole(cached):
    def run(at_once):
        generator = TalkingHeadPipeline.build(0)
        generator.denoiser.requires_grad_(False)
        torch.nn.init.normal_(generator.denoiser.conv_out.weight, std=0.1,
                              generator=torch.Generator().manual_seed(0))
        shared = SharedAdapter(generator.denoiser, 8, 1.0, "b")
        train_denoiser(generator, [cached], shared.parameters(), dataclasses.replace(QUICK, batch=4, tdc=0.5),
                       np.random.default_rng(1), at_once=at_once)
        return shared.read()

    whole = run(None)
    for at_once in (1, 3):
        parts = run(at_once)
        assert np.linalg.norm(parts - whole) < 0.02 * np.linalg.norm(whole)


def test_the_codec_learns(rendered):
    generator = TalkingHeadPipeline.build(0)
    rng = np.random.default_rng(0)
    first = train_codec(generator, rendered.frames, 4, 8, rng, Schedule())
    last = train_codec(generator, rendered.frames, 40, 8, rng, Schedule())
    assert last < 0.5 * first


def test_the_embedder_learns_to_tell_people_apart():
    people = [render_clip(Person.draw(8, i), 0, 1.0).frames[::3] for i in range(12)]
    embedder = build_embedder(0)
    train_identity(embedder, people, 30, 12, np.random.default_rng(0), Schedule())
    vectors = np.stack([embed(embedder, p) for p in people])
    assert np.allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    same = np.einsum("pfd,pgd->pfg", vectors, vectors).mean()
    other = np.einsum("pfd,qgd->pqfg", vectors, vectors)[~np.eye(12, dtype=bool)].mean()
    assert same > 0.8 and other < 0.5
