"""Films measured as a set: against what is known of them, and with networks of random weights against torchmetrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.films import (
    FRAMES,
    FilmPair,
    distribution_distances,
    load_lpips,
    lpips,
    measure_each,
    measure_together,
    missing,
)

SILENCE = np.zeros(25 * 640, np.float32)


@pytest.fixture(scope="module")
def real() -> list[np.ndarray]:
    return [render_clip(Person.draw(3, number), 0, 1.0).frames for number in range(2)]


def noisy(frames: np.ndarray, size: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, size, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks of the right shape with random weights."""
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import inception_v3

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    perceptual = _LPIPS(pretrained=False, net="alex", pnet_rand=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in perceptual.state_dict().items()},
              folder / "lpips_alex.safetensors")
    inception = inception_v3(weights=None, init_weights=False, aux_logits=True)
    for module in inception.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    save_file({name: tensor.contiguous() for name, tensor in inception.state_dict().items()},
              folder / "inception.safetensors")
    return folder


def test_lpips_is_torchmetrics_own_with_the_weights_of_the_file(real: list[np.ndarray], weights: Path) -> None:
    from safetensors.torch import load_file
    from torchmetrics.functional.image.lpips import _LPIPS

    films = [FilmPair(noisy(film, 20.0), film, SILENCE) for film in real]
    network = _LPIPS(pretrained=False, net="alex", pnet_rand=True)
    network.load_state_dict(load_file(weights / "lpips_alex.safetensors"))
    network.eval()
    values = []
    for film in films:
        chosen = np.linspace(0, 24, FRAMES).round().astype(int)
        one, other = (torch.from_numpy(x[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1
                      for x in (film.generated, film.real))
        with torch.inference_mode():
            values.append(network(one, other).mean().item())
    ours = load_lpips(weights / "lpips_alex.safetensors")
    assert [lpips(ours, film) for film in films] == pytest.approx(values, rel=1e-4)
    assert lpips(ours, FilmPair(real[0], real[0], SILENCE)) == 0.0


def test_sets_of_films_that_are_one_are_nearer_than_a_noisy_set(real: list[np.ndarray], weights: Path) -> None:
    same = distribution_distances([FilmPair(film, film, SILENCE) for film in real], weights / "inception.safetensors")
    other = distribution_distances([FilmPair(noisy(film, 40.0), film, SILENCE) for film in real],
                                   weights / "inception.safetensors")
    assert abs(same["fid"]) < 1e-2 * other["fid"] and same["kid"] < other["kid"]


def test_a_metric_without_its_weights_is_left_out_by_name(real: list[np.ndarray], weights: Path,
                                                          tmp_path: Path) -> None:
    films = [FilmPair(film, film, SILENCE) for film in real]
    assert measure_each(films, None) == [{}, {}]
    assert measure_together(films, None) == {} and set(measure_together(films, weights)) == {"fid", "kid"}
    assert [set(told) for told in measure_each(films, weights)] == [{"lpips"}] * 2
    assert missing(tmp_path) == (
        f"Left out, as their weights are not in {tmp_path}: LPIPS (lpips_alex.safetensors), FID "
        "(inception.safetensors), KID (inception.safetensors), ArcFace "
        "(arcface.safetensors), LSE-D (syncnet.safetensors), LSE-C (syncnet.safetensors).")
    assert missing(weights).partition(": ")[2] == (
        "ArcFace (arcface.safetensors), LSE-D (syncnet.safetensors), LSE-C (syncnet.safetensors).")
    with pytest.raises(ValueError, match=r"inception\.safetensors: not the weights of _LPIPS: it lacks \d+ tensors"):
        load_lpips(weights / "inception.safetensors")
