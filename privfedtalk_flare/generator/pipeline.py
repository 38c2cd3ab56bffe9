"""The talking-head pipeline: a face and speech in, frames out. A diffusers pipeline, safetensors only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DiffusionPipeline, UNetMotionModel
from diffusers.utils import logging as diffusers_logging
from scipy.ndimage import distance_transform_edt

from privfedtalk_flare.data.features import frame_windows, log_mel
from privfedtalk_flare.data.portrait import mask_box
from privfedtalk_flare.data.sound import SAMPLES_PER_FRAME
from privfedtalk_flare.data.windows import blend_weights, cover_windows
from privfedtalk_flare.generator.aligner import Aligner
from privfedtalk_flare.generator.audio import AudioEncoder
from privfedtalk_flare.generator.codec import (
    build_codec,
    decode,
    encode,
    latent_mask,
    mask_pictures,
    to_frames,
    to_tensor,
)
from privfedtalk_flare.generator.denoiser import WINDOW, Conditions, build_denoiser, build_scheduler, predict_clean

ASSETS = Path(__file__).parent.parent / "assets"
OVERLAP = 3
"""Frames that neighbouring windows share at generation."""
STEPS = 2
"""Steps of DDIM. Over the 12 people of three demo runs, not guided, sync is .953 with four, .960 with two and .961 with
one, at the same PSNR. `tests/benchmarks/backbone.py --shipped --steps N --guidance G` measures others."""
GUIDANCE = 1.3
"""How far the mouth follows what it hears (classifier-free guidance, Ho & Salimans 2022); 1 is none. Over the same
people, sync .960 with none and .971 with 1.3, for .2 dB inside the mask: a plain prediction opens the mouth too little.
"""
MAX_GUIDANCE = 10.0
PIECE = 256
"""Frames that are decoded and composited at once: an hour of speech is 90,000."""
FEATHER = 3.0
"""Pixels over which the generated lower face fades into the picture around it."""


@dataclass(frozen=True)
class Scene:
    """A clip of F frames before it is rendered. PRIVATE to the site. `base` (F or 1, S, S, 3) uint8; `masked` and
    `reference` (F, C, h, w) latents: frames without their lower face, and the reference moved to where the head is;
    `tokens` (F, N, width): what is heard."""

    base: np.ndarray
    masked: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor


class TalkingHeadPipeline(DiffusionPipeline):
    """Generates the lower face of every frame of `base` to go with `audio`.

    Components: `codec`, `aligner`, `denoiser`, `audio_encoder`, `scheduler`. Save and load with `save_pretrained` and
    `from_pretrained`.
    """

    def __init__(self, codec: AutoencoderTiny, aligner: Aligner, denoiser: UNetMotionModel,
                 audio_encoder: AudioEncoder, scheduler: DDIMScheduler, size: int = 64) -> None:
        super().__init__()
        for model in (codec, denoiser):  # on a CPU: encoding 6.9 -> 4.2 ms a frame, a training step .66 -> .54 s
            model.to(memory_format=torch.channels_last)
        self.register_modules(codec=codec, aligner=aligner, denoiser=denoiser, audio_encoder=audio_encoder,
                              scheduler=scheduler)
        self.register_to_config(size=size)

    @classmethod
    def build(cls, seed: int, size: int = 64) -> TalkingHeadPipeline:
        """A fresh, untrained pipeline; `seed` fixes its start, so that sites can begin from the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(build_codec(), Aligner(size=size), build_denoiser(), AudioEncoder(), build_scheduler(), size)

    @property
    def talking(self) -> dict[str, torch.nn.Module]:
        """What is trained together, once the codec is: the modules by name."""
        return {"denoiser": self.denoiser, "aligner": self.aligner, "audio_encoder": self.audio_encoder}

    @property
    def mask(self) -> torch.Tensor:
        """(1, h, w): 1 in the latent cells of the masked lower face."""
        return latent_mask(self.config.size)

    def align(self, pictures: torch.Tensor, reference: torch.Tensor, *,
              fast: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The reference moved to where the head is in each frame: pictures (B, F, 3, H, W), and their latents.

        pictures: (B, F, 3, H, W) in [-1, 1], whose lower face is not read; reference: (B, 3, H, W). The aligner learns
        from the moved pictures: the latents carry no gradient, and are encoded `fast` or not.
        """
        moved = self.aligner(pictures, reference, latent_mask(self.config.size, downscale=1).to(pictures))
        return moved, encode(self.codec, moved.flatten(0, 1), fast=fast).unflatten(0, moved.shape[:2])

    @property
    def mask_box(self) -> tuple[slice, slice]:
        """Rows and columns of the masked lower face, in pixels."""
        return mask_box(self.config.size)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the weights, adapters aside, and of the latents' scale: names the backbone in task headers.
        """
        codec = self.codec.config
        total = hashlib.sha256(f"privfedtalk backbone v3 {codec.shift_factor} {codec.scaling_factor}\n".encode())
        for part in ("codec", "aligner", "denoiser", "audio_encoder"):
            for name, tensor in sorted(getattr(self, part).state_dict().items()):
                if ".lora_" not in name:
                    plain = name.replace(".base_layer.", ".")
                    total.update(f"{part}.{plain}\n".encode() + tensor.float().cpu().numpy().tobytes())
        return total.hexdigest()

    @property
    def feather(self) -> np.ndarray:
        return feather(int(self.config.size))

    def __call__(self, base: np.ndarray, reference: np.ndarray, audio: np.ndarray, *, steps: int = STEPS,
                 guidance: float = GUIDANCE, seed: int = 0,
                 progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Generates a clip; see `prepare` and `render`."""
        self._check_sampling(steps, guidance)
        return self.render(self.prepare(base, reference, audio), steps=steps, guidance=guidance, seed=seed,
                           progress=progress)

    @torch.no_grad()
    def prepare(self, base: np.ndarray, reference: np.ndarray, audio: np.ndarray) -> Scene:
        """All of a clip that no adapter changes, ready to be rendered under several.

        base: (F, S, S, 3) uint8, the frames whose lower face is replaced (one frame for a still); reference: (S, S, 3)
        uint8, another picture of the person; audio: (S,) float32 at 16 kHz, 640 samples a frame, F = S // 640. Raises
        ValueError where the lengths do not fit.
        """
        frames = len(audio) // SAMPLES_PER_FRAME
        if len(base) not in (1, frames) or frames < 1:
            raise ValueError(f"{len(base)} base frames and {frames} frames of sound; give one frame, or as many as "
                             f"the sound has")
        pictures, known = to_tensor(base).to(self.device), to_tensor(reference[None]).to(self.device)
        masked = encode(self.codec, mask_pictures(pictures))
        aligned = torch.cat([self.align(part[None], known)[1][0] for part in pictures.split(64)])
        masked, aligned = (latents.expand(frames, -1, -1, -1) for latents in (masked, aligned))
        windows = torch.from_numpy(frame_windows(log_mel(audio[:frames * SAMPLES_PER_FRAME]))[None]).to(self.device)
        return Scene(base, masked, aligned, self.audio_encoder(windows))

    @torch.no_grad()
    def render(self, scene: Scene, *, steps: int = STEPS, guidance: float = GUIDANCE, seed: int = 0,
               progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Generates the clip under the adapters that act now; `progress(done, of)` is told as windows are finished.

        Returns (F, S, S, 3) uint8. Raises ValueError with steps or guidance out of range.
        """
        self._check_sampling(steps, guidance)
        base, frames = scene.base, len(scene.masked)
        latents = self._sample(scene.masked, scene.reference, scene.tokens, steps, guidance, seed, progress or _silent)
        out = np.empty((frames, *base.shape[1:]), np.uint8)
        for start in range(0, frames, PIECE):
            piece = slice(start, start + PIECE)
            generated = to_frames(decode(self.codec, latents[piece])).astype(np.float32)
            under = base[piece] if len(base) > 1 else base
            out[piece] = np.round(self.feather * generated + (1 - self.feather) * under).clip(0, 255)
        return out

    def _check_sampling(self, steps: int, guidance: float) -> None:
        if not 1 <= steps <= self.scheduler.config.num_train_timesteps:
            raise ValueError(f"{steps} sampling steps; give 1 to {self.scheduler.config.num_train_timesteps}")
        if not 0 <= guidance <= MAX_GUIDANCE:
            raise ValueError(f"guidance {guidance}; give 0 (deaf) to {MAX_GUIDANCE:g}, where 1 is plain")

    def _sample(self, masked: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor, steps: int,
                guidance: float, seed: int, progress: Callable[[int, int], None]) -> torch.Tensor:
        """DDIM over the whole clip: at every step windows predict x0 and cross-fade, so no window's edge shows."""
        frames = len(masked)
        starts = cover_windows(frames, WINDOW, OVERLAP)
        weights = torch.from_numpy(blend_weights(starts, frames, WINDOW, OVERLAP)).to(masked)
        index = torch.tensor([[min(s + i, frames - 1) for i in range(WINDOW)] for s in starts])
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn((1, *masked.shape[1:]), generator=generator).to(masked).expand_as(masked).clone()
        self.scheduler.set_timesteps(steps)
        done = 0
        for timestep in self.scheduler.timesteps:
            clean = torch.zeros_like(latents)
            for part, blend in zip(index.split(8), weights.split(8), strict=True):
                step = timestep.expand(len(part)).to(latents.device)
                heard = tokens[part.flatten()]
                conditions = Conditions(self.mask.to(latents), masked[part], reference[part], heard)
                predicted = predict_clean(self.denoiser, latents[part], step, conditions)
                if guidance != 1:
                    deaf = replace(conditions, audio=self.audio_encoder.silence.expand_as(heard))
                    unheard = predict_clean(self.denoiser, latents[part], step, deaf)
                    predicted = unheard + guidance * (predicted - unheard)
                faded = (predicted * blend[..., None, None, None]).flatten(0, 1)
                clean.index_add_(0, part.flatten().to(clean.device), faded)
                done += len(part)
                progress(done, steps * len(index))
            latents = self.scheduler.step(clean, timestep, latents).prev_sample
        return latents


@lru_cache
def feather(size: int) -> np.ndarray:
    """(size, size, 1) float32: how much of the generated picture shows; 0 outside the mask, 1 well inside it.

    The picture's own edge is no seam: there the mask fades nowhere.
    """
    rows, columns = mask_box(size)
    inside = np.zeros((size + 32, size), bool)
    inside[rows.start:, columns] = True
    depth = distance_transform_edt(inside)[:size]
    smooth = np.clip((depth - 0.5) / FEATHER, 0, 1)
    return (smooth * smooth * (3 - 2 * smooth)).astype(np.float32)[..., None]


def _silent(done: int, of: int) -> None:
    """Tells nobody how far generation is."""


def backbone_folder(source: str) -> Path:
    """The folder of a backbone: 'assets' is the one shipped with the package; else a folder, or a hub id.

    Raises FileNotFoundError, saying what to do, where a folder holds no backbone.
    """
    folder = ASSETS / "backbone" if source == "assets" else Path(source)
    if source == "assets" and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder}: the shipped backbone is missing; make it with "
                                "`nvflare simulator jobs/backbone -w runs/backbone -n 4 -t 4` and then "
                                "`privfedtalk backbone import runs/backbone`, or name another folder in `backbone`")
    if (folder.is_absolute() or folder.exists()) and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder}: no backbone in this folder (no model_index.json); set `backbone` to a "
                                "folder that `save_pretrained` wrote, to a hub id, or to 'assets'")
    return folder


def load_pipeline(source: str) -> TalkingHeadPipeline:
    """Loads a backbone ('assets', a folder, or a hub id) in float32, frozen, ready to generate."""
    folder = backbone_folder(source)
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # AutoencoderTiny warns of an attribute that it saved itself
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = TalkingHeadPipeline.from_pretrained(str(folder) if folder.exists() else source,
                                                       use_safetensors=True, dtype=torch.float32)
    except OSError as error:
        raise FileNotFoundError(f"backbone {source!r} cannot be loaded ({type(error).__name__}): it is no folder here, "
                                "and no repository that the hub would give; set `backbone` to 'assets', to a folder "
                                "that `save_pretrained` wrote, or to a hub id") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipeline


def save_pipeline(pipeline: TalkingHeadPipeline, folder: Path) -> None:
    """Writes the backbone in fp16 safetensors: a folder that `load_pipeline` and diffusers read."""
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    for model in models:
        model.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    for model in models:
        model.float()
