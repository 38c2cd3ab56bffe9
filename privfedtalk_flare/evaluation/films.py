"""What networks that others trained say of a set of films: perceptual distance, the distance between distributions,
identity and lip sync.

A network's weights are a safetensors file in a folder that the caller names; nothing is fetched, and a metric whose
weights are not there is left out by name. Numbers are comparable with each other; with published ones only where the
weights are those that everybody uses, and those of FID and KID never: they are published with another port of Inception
than torchvision's, and over thousands of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from privfedtalk_flare.evaluation.arcface import face_cosine, load_arcface
from privfedtalk_flare.evaluation.syncnet import load_syncnet, sync_errors
from privfedtalk_flare.evaluation.weights import loaded

if TYPE_CHECKING:
    import torch
    from torch import nn

FILM_METRICS = {"lpips": "LPIPS down", "fid": "FID down", "kid": "KID down", "arcface": "ArcFace up",
                "lse_d": "LSE-D down", "lse_c": "LSE-C up"}
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
    float32 at 16 kHz."""

    generated: NDArray
    real: NDArray
    audio: NDArray


def measure_each(films: Sequence[FilmPair], weights: Path | None) -> list[dict[str, float]]:
    """Of each film, every metric whose network has weights in the folder `weights`; FID and KID need many films."""
    measures: list[Callable[[FilmPair], dict[str, float]]] = []
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


def missing(weights: Path | None) -> str:
    """Which metrics are left out for want of which files, "" where none is."""
    lacking = [f"{FILM_METRICS[metric].split()[0]} ({name})" for metric, name in WEIGHTS.items()
               if not has(weights, metric)]
    where = f"in {weights}" if weights is not None else "named; --weights FOLDER says where they lie"
    return f"Left out, as their weights are not {where}: {', '.join(lacking)}." if lacking else ""


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
