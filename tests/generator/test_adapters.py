"""Shared and identity adapters on a real denoiser."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from privfedtalk_flare.federation.update import UpdateError
from privfedtalk_flare.generator.adapters import GRID, SHARED, IdentityAdapter, SharedAdapter, save_shared, to_grid
from privfedtalk_flare.generator.denoiser import Conditions, build_denoiser, predict_clean
from privfedtalk_flare.generator.generate import load_adapters
from privfedtalk_flare.generator.pipeline import TalkingHeadPipeline

BACKBONE, OTHER = "b" * 64, "0" * 64


def denoiser():
    torch.manual_seed(0)
    made = build_denoiser()
    torch.nn.init.normal_(made.conv_out.weight, std=0.05)  # untrained, its output would be zero whatever comes before
    return made.requires_grad_(False).eval()


def predict(model):
    g = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 8, 8, 16, 16, generator=g)
    conditions = Conditions(torch.ones(1, 16, 16), latents * 0.5, latents, torch.randn(8, 5, 96, generator=g))
    with torch.no_grad():
        return predict_clean(model, latents, torch.tensor([400]), conditions)


def test_a_fresh_shared_adapter_changes_nothing_and_a_loaded_one_does():
    model = denoiser()
    before = predict(model)
    shared = SharedAdapter(model, rank=8, scaling=1.0, train="b")
    assert torch.allclose(before, predict(model), atol=1e-6)
    assert shared.spec.size == 90_112 and len(shared.spec.names) == 112
    theta = np.random.default_rng(0).normal(0, 0.05, shared.spec.size).astype(np.float32)
    shared.load(theta)
    assert (predict(model) - before).abs().max() > 1e-3
    assert np.allclose(shared.read(), theta, atol=1e-7)


def test_a_is_the_same_everywhere_and_frozen():
    first, second = (SharedAdapter(denoiser(), 8, 1.0, "b") for _ in range(2))
    assert first.spec == second.spec and first.spec.digest == second.spec.digest
    assert all(".lora_B." in n for n in first.spec.names) and all(p.requires_grad for p in first.parameters())
    assert SharedAdapter(denoiser(), 4, 1.0, "b").spec.digest != first.spec.digest


def test_a_frozen_means_no_gradient_and_no_change():
    model = denoiser()
    shared = SharedAdapter(model, 8, 1.0, "b")
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    latents = torch.randn(1, 8, 8, 16, 16)
    conditions = Conditions(torch.ones(1, 16, 16), latents, latents, torch.randn(8, 5, 96))
    predict_clean(model, latents, torch.tensor([400]), conditions).square().mean().backward()
    torch.optim.SGD(shared.parameters(), lr=1.0).step()
    assert np.abs(shared.read()).max() > 0
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_both_factors_start_from_theta_zero():
    model = denoiser()
    shared = SharedAdapter(model, 4, 1.0, "both")
    # B: 45,056 values; A: 44,800, since keys and values of cross-attention read 96 audio features.
    assert shared.spec.size == 89_856 and not shared.read().any()


@pytest.mark.parametrize(("train", "exact"), [("b", True), ("both", False)])
def test_the_average_of_updates_is_exact_with_a_frozen(train, exact):
    """Averaging B averages what the adapter adds to every layer, BA, which averaging both factors does not."""
    model = denoiser()
    shared = SharedAdapter(model, 4, 1.0, train)
    first, second = np.random.default_rng(0).normal(0, 0.05, (2, shared.spec.size)).astype(np.float32)
    layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]

    def added(theta):
        shared.load(theta)
        with torch.no_grad():
            return torch.cat([layer.get_delta_weight(SHARED).flatten() for layer in layers])

    gap = (added((first + second) / 2) - (added(first) + added(second)) / 2).abs().max()
    assert len(layers) == 112 and added(first).abs().max() > 0.01
    assert gap < 1e-6 if exact else gap > 1e-3


def test_wrong_theta_is_refused_by_name():
    shared = SharedAdapter(denoiser(), 8, 1.0, "b")
    with pytest.raises(UpdateError, match="shape"):
        shared.load(np.zeros(5, np.float32))
    with pytest.raises(UpdateError, match="finite"):
        shared.load(np.full(shared.spec.size, np.nan, np.float32))


def test_both_adapters_are_active_at_once_and_only_the_identity_one_trains():
    model = denoiser()
    shared = SharedAdapter(model, 8, 1.0, "b")
    own = IdentityAdapter(shared, 8, seed=3, backbone=BACKBONE)
    assert [n for n, p in model.named_parameters() if p.requires_grad and ".identity." not in n] == []
    plain = predict(model)
    shared.load(np.full(shared.spec.size, 0.05, np.float32))
    with_shared = predict(model)
    with torch.no_grad():
        for name, tensor in own.tensors.items():
            if ".lora_B." in name:
                tensor.fill_(0.05)
    with_both = predict(model)
    assert not torch.allclose(plain, with_shared) and not torch.allclose(with_shared, with_both)
    own.reset()
    assert torch.allclose(predict(model), with_shared, atol=1e-6)


def test_the_shared_adapter_acts_and_trains_alone_after_an_identity_adapter_was_built():
    model = denoiser()
    shared = SharedAdapter(model, 8, 1.0, "b")
    shared.load(np.full(shared.spec.size, 0.05, np.float32))
    alone = predict(model)
    own = IdentityAdapter(shared, 8, seed=3, backbone=BACKBONE)
    with torch.no_grad():
        for tensor in own.tensors.values():
            tensor.add_(0.05)
    with_own = predict(model)
    shared.activate()
    assert torch.equal(predict(model), alone)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(shared.spec.names)
    own.activate()
    assert torch.equal(predict(model), with_own) and not torch.allclose(with_own, alone)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(own.tensors)


def test_identity_adapters_are_saved_for_their_owner_alone(tmp_path):
    model = denoiser()
    shared = SharedAdapter(model, 8, 1.0, "b")
    own = IdentityAdapter(shared, 8, seed=3, backbone=BACKBONE)
    own.save(tmp_path / "id" / "adapter.safetensors")
    assert (tmp_path / "id" / "adapter.safetensors").stat().st_mode & 0o777 == 0o600
    with torch.no_grad():
        saved = {n: t.detach().clone() for n, t in own.tensors.items()}
        for tensor in own.tensors.values():
            tensor.add_(1.0)
    own.load(tmp_path / "id" / "adapter.safetensors")
    assert all(torch.equal(t, saved[n]) for n, t in own.tensors.items())


def test_an_identity_adapter_of_another_backbone_or_rank_is_refused(tmp_path):
    model = denoiser()
    shared = SharedAdapter(model, 8, 1.0, "b")
    own = IdentityAdapter(shared, 8, seed=3, backbone=BACKBONE)
    before = {n: t.detach().clone() for n, t in own.tensors.items()}
    for name, change in (("other", {"backbone": OTHER}), ("rank", {"rank": 4})):
        made = SharedAdapter(denoiser(), 8, 1.0, "b")
        IdentityAdapter(made, **{"rank": 8, "seed": 5, "backbone": BACKBONE, **change}).save(tmp_path / name)
    save_file(load_file(tmp_path / "other"), tmp_path / "unmarked")
    (tmp_path / "junk").write_bytes(b"not safetensors at all")
    for name, says in (("other", "of backbone 000000000000, this one is bbbbbbbbbbbb; .* train it again"),
                       ("unmarked", "of backbone unknown"), ("rank", "personalize again"), ("junk", "cannot be read")):
        with pytest.raises(ValueError, match=says):
            own.load(tmp_path / name)
    assert all(torch.equal(t, before[n]) for n, t in own.tensors.items())


@pytest.mark.parametrize("train", ["b", "both"])
def test_an_identity_adapter_fits_the_shared_one_it_was_trained_on_and_no_other(train, tmp_path):
    """Whether theta came from the ciphertext or, on the grid, from the shared adapter's own file."""
    shared = SharedAdapter(denoiser(), 4, 1.0, train)
    theta = np.random.default_rng(0).normal(0, 0.01, shared.spec.size).astype(np.float32)
    shared.load(theta)
    own = IdentityAdapter(shared, 4, seed=0, backbone=BACKBONE)
    own.save(tmp_path / "own.safetensors")
    shared.load(to_grid(theta))
    own.load(tmp_path / "own.safetensors")
    for other in (np.zeros_like(theta), theta + GRID):
        shared.load(other)
        with pytest.raises(ValueError, match=r"on top of shared adapter .* one run wrote, or personalize again"):
            own.load(tmp_path / "own.safetensors")


def test_what_leaves_is_on_the_grid(tmp_path):
    shared = SharedAdapter(denoiser(), 8, 1.0, "b")
    theta = np.random.default_rng(0).normal(0, 0.01, shared.spec.size).astype(np.float32)
    path = save_shared(theta, shared.spec, tmp_path / "adapter.safetensors", BACKBONE)
    raw = path.read_bytes()
    header = json.loads(raw[8:8 + struct.unpack("<Q", raw[:8])[0]])
    start, end = header["theta"]["data_offsets"]
    values = np.frombuffer(raw[8 + struct.unpack("<Q", raw[:8])[0]:][start:end], np.float32)
    assert np.array_equal(np.round(values / GRID), values / GRID)
    assert np.array_equal(values, to_grid(theta)) and np.abs(values - theta).max() <= GRID / 2


def test_generate_tells_adapters_apart_and_refuses_the_rest(tmp_path):
    pipeline = TalkingHeadPipeline.build(0)
    shared = SharedAdapter(denoiser(), 8, 1.0, "b")
    theta = np.full(shared.spec.size, GRID * 8, np.float32)
    path = save_shared(theta, shared.spec, tmp_path / "shared.safetensors", pipeline.digest)
    load_adapters(pipeline, [path])
    loaded = dict(pipeline.denoiser.named_parameters())
    assert np.allclose([float(loaded[n].detach().mean()) for n in shared.spec.names], GRID * 8)
    with pytest.raises(ValueError, match="second adapter"):
        load_adapters(TalkingHeadPipeline.build(0), [path, path])
    (tmp_path / "junk.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="cannot be read"):
        load_adapters(TalkingHeadPipeline.build(0), [tmp_path / "junk.safetensors"])


def test_generate_refuses_adapters_of_another_backbone(tmp_path):
    """Same layers, same rank, another backbone: the values fit and mean nothing."""
    pipeline, other = TalkingHeadPipeline.build(0), TalkingHeadPipeline.build(1)
    digest = pipeline.digest
    shared = SharedAdapter(pipeline.denoiser, 8, 1.0, "b")
    files = [save_shared(np.zeros(shared.spec.size, np.float32), shared.spec, tmp_path / "s.safetensors", digest),
             tmp_path / "i.safetensors"]
    IdentityAdapter(shared, 4, seed=0, backbone=digest).save(files[1])
    for file in files:
        with pytest.raises(ValueError, match=f"{file.name}: an adapter of backbone {digest[:12]}, this one is "):
            load_adapters(other, [file])
    with pytest.raises(ValueError, match=r"i\.safetensors: a person's own adapter.*give the shared adapter"):
        load_adapters(TalkingHeadPipeline.build(0), files[1:])
    again = TalkingHeadPipeline.build(0)
    load_adapters(again, files)
    save_shared(np.full(shared.spec.size, GRID, np.float32), shared.spec, files[0], digest)
    with pytest.raises(ValueError, match="trained on top of shared adapter"):
        load_adapters(TalkingHeadPipeline.build(0), files)
    assert {n for n, _ in again.denoiser.named_parameters() if ".lora_" in n} == {
        n for n, _ in pipeline.denoiser.named_parameters() if ".lora_" in n}
