"""What a set of films says: motion along the flow of the real ones, jitter, and, with networks that others trained,
perceptual distance, the distance between distributions, identity and lip sync.

A network's weights are a safetensors file in a folder that the caller names; nothing is fetched, and a metric whose
weights are not there is left out by name. Numbers are comparable with each other; with published ones only where the
weights are those that everybody uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privfedtalk_flare.evaluation.arcface import face_cosine, load_arcface
from privfedtalk_flare.evaluation.syncnet import load_syncnet, sync_errors
from privfedtalk_flare.evaluation.weights import loaded

if TYPE_CHECKING:
    import torch
    from torch import nn

FILM_METRICS = {"warp": "warp error grey down", "jitter": "jitter down", "lpips": "LPIPS down", "fid": "FID down",
                "kid": "KID down", "arcface": "ArcFace up", "lse_d": "LSE-D down", "lse_c": "LSE-C up"}
"""Metrics in the order of the table, with their head: name, unit, direction."""
WEIGHTS = {"lpips": "lpips_alex.safetensors", "fid": "inception.safetensors", "kid": "inception.safetensors",
           "arcface": "arcface.safetensors", "lse_d": "syncnet.safetensors", "lse_c": "syncnet.safetensors"}
"""Which file, in the folder of weights, a metric needs."""
FRAMES = 16
"""Frames of a film that the networks see, evenly spread."""
INCEPTION_SIZE = 299


@dataclass(frozen=True)
class FilmPair:
    """A generated film and the real one, both (F, S, S, 3) uint8 at 25 frames a second, and their sound, (640 F,)
    float32 at 16 kHz; `rendered`: whether they show the renderer's people, whose mouth can be read from pixels."""

    generated: NDArray
    real: NDArray
    audio: NDArray
    rendered: bool = False


def warp_error(generated: NDArray, real: NDArray) -> float:
    """Mean absolute difference between a generated frame and the next one, moved back along the optical flow of the
    real film. Grey levels, less is better; the real film's own error is the floor.

    Pixels whose real frames differ by more than 20 grey levels after the move (occlusion, a wrong flow) are left out.
    `nan` where no pixel is left in any two frames. Source: Lai et al. 2018, "Learning Blind Video Temporal
    Consistency"; the flow is scikit-image's iterative Lucas-Kanade (Le Besnerais and Champagnat 2005).

    >>> still = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3)).repeat(3, 0).astype(np.uint8)
    >>> shaking = np.clip(still.astype(int) + np.array([0, 8, 0])[:, None, None, None], 0, 255).astype(np.uint8)
    >>> round(warp_error(still, still), 2), warp_error(shaking, still) > 6
    (0.0, True)
    """
    from skimage.registration import optical_flow_ilk
    from skimage.transform import warp

    if generated.shape != real.shape or real.ndim != 4 or real.shape[-1] != 3:
        raise ValueError(f"films of shape {generated.shape} and {real.shape}; expected the same (F, H, W, 3)")
    real, generated = real.astype(np.float32), generated.astype(np.float32)
    rows, columns = np.meshgrid(*map(np.arange, real.shape[1:3]), indexing="ij")
    errors = []
    for now in range(len(real) - 1):
        grey = real[now:now + 2].mean(-1)
        down, right = optical_flow_ilk(grey[0] / 255, grey[1] / 255, radius=5)
        where = np.stack([rows + down, columns + right])

        def moved(frame: NDArray, where: NDArray = where) -> NDArray:
            return np.stack([warp(frame[..., c], where, mode="edge", preserve_range=True) for c in range(3)], -1)

        kept = np.abs(moved(real[now + 1]) - real[now]).mean(-1) < 20
        if kept.any():
            errors.append(np.abs(moved(generated[now + 1]) - generated[now]).mean(-1)[kept].mean())
    return float(np.mean(errors)) if errors else float("nan")


def landmark_jitter(path: ArrayLike) -> float:
    """Mean absolute second difference of a landmark's path (F,), in its own unit a frame squared; less is better.

    For rendered people the landmark is the mouth's opening (`evaluation.aperture`). `nan` with fewer than three frames.
    Source: the acceleration error of pose estimation (Kanazawa et al. 2019), without a truth.

    >>> landmark_jitter([0, 1, 2, 3]), landmark_jitter([0, 1, 0, 1])
    (0.0, 2.0)
    """
    path = np.asarray(path, np.float64)
    return float(np.abs(np.diff(path, 2)).mean()) if len(path) > 2 else float("nan")


def measure_each(films: Sequence[FilmPair], weights: Path | None,
                 aperture: Callable[[NDArray], NDArray]) -> list[dict[str, float]]:
    """Of each film, every metric that can be had: `jitter` for rendered people alone, and, of those that need a
    network, what has weights in the folder `weights`."""
    measures: list[Callable[[FilmPair], dict[str, float]]] = [
        lambda film: {"warp": warp_error(film.generated, film.real)},
        lambda film: {"jitter": landmark_jitter(aperture(film.generated))} if film.rendered else {}]
    if has(weights, "lpips"):
        perceptual = load_lpips(weights / WEIGHTS["lpips"])
        measures.append(lambda film: {"lpips": lpips(perceptual, film)})
    if has(weights, "arcface"):
        face = load_arcface(weights / WEIGHTS["arcface"])
        measures.append(lambda film: {"arcface": face_cosine(face, _spread(film.generated), _spread(film.real))})
    if has(weights, "lse_d"):
        syncnet = load_syncnet(weights / WEIGHTS["lse_d"])
        measures.append(lambda film: dict(zip(("lse_d", "lse_c"), sync_errors(syncnet, film.generated, film.audio),
                                              strict=True)))
    return [{name: float(value) for of in measures for name, value in of(film).items()} for film in films]


def measure_together(films: Sequence[FilmPair], weights: Path | None) -> dict[str, float]:
    """FID and KID over the frames of all films, where there are weights for them. Both depend on how many films there
    are: only sets of the same size compare."""
    return distribution_distances(films, weights / WEIGHTS["fid"]) if has(weights, "fid") else {}


def has(weights: Path | None, metric: str) -> bool:
    """Whether the folder holds what this metric needs."""
    return weights is not None and (weights / WEIGHTS[metric]).is_file()


def missing(weights: Path | None) -> list[str]:
    """A sentence for each metric that is left out."""
    where = f"in {weights}" if weights is not None else "was named; --weights FOLDER says where it lies"
    return [f"{FILM_METRICS[metric].split()[0]} is left out: no {name} {where}." for metric, name in WEIGHTS.items()
            if not has(weights, metric)]


def load_lpips(path: Path) -> nn.Module:
    """The network of LPIPS from the state of torchmetrics' own (`net.slice1.0.weight`, `lin0.model.1.weight`, ...).
    Raises ValueError where the file holds another one."""
    from torchmetrics.functional.image.lpips import _LPIPS  # its public face fetches weights

    return loaded(_LPIPS(pretrained=False, net="alex", pnet_rand=True), path)


def lpips(network: nn.Module, film: FilmPair) -> float:
    """Learned perceptual distance (Zhang et al. 2018, AlexNet), mean over frames; less is better."""
    import torch

    with torch.inference_mode():
        return float(network(*(_tensor(_spread(x)) * 2 - 1 for x in (film.generated, film.real))).mean())


def distribution_distances(films: Sequence[FilmPair], path: Path) -> dict[str, float]:
    """`fid` (Heusel et al. 2017) and `kid` (Binkowski et al. 2018) between all generated and all real frames.

    `path`: the state of torchvision's `inception_v3`, whose 2,048 pooled features are compared. Raises ValueError where
    the file holds another network.
    """
    import torch
    from torch import nn
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchvision.models import inception_v3

    inception = loaded(inception_v3(weights=None, init_weights=False, aux_logits=True), path)
    inception.fc = nn.Identity()

    class Features(nn.Module):
        num_features = 2048

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            pictures = nn.functional.interpolate(pictures.float() / 255, (INCEPTION_SIZE,) * 2, mode="bilinear",
                                                 antialias=True)
            return inception((pictures - 0.5) / 0.5)

    counts = FRAMES * len(films)
    fid, kid = FrechetInceptionDistance(Features()), KernelInceptionDistance(Features(), subset_size=min(50, counts),
                                                                             subsets=20)
    with torch.inference_mode():
        for film in films:
            for frames, real in ((film.real, True), (film.generated, False)):
                pictures = torch.from_numpy(_spread(frames)).permute(0, 3, 1, 2)
                fid.update(pictures, real=real)
                kid.update(pictures, real=real)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # which subsets
            mean, _ = kid.compute()
        return {"fid": float(fid.compute()), "kid": float(mean)}


def _spread(frames: NDArray) -> NDArray:
    return np.ascontiguousarray(frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)])


def _tensor(frames: NDArray) -> torch.Tensor:
    import torch

    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
