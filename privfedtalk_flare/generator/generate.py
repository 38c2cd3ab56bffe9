"""Makes a talking video: a face picture and a speech file in, an MP4 with its sound out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torchvision.transforms import v2

from privfedtalk_flare.data.media import SYNTHETIC_TAG, MediaError, read_audio, read_picture, write_mp4
from privfedtalk_flare.data.sound import SAMPLES_PER_FRAME
from privfedtalk_flare.federation.update import UpdateSpec
from privfedtalk_flare.generator.adapters import (
    IdentityAdapter,
    SharedAdapter,
    check_backbone,
    check_spec,
    trained_factors,
)
from privfedtalk_flare.generator.pipeline import GUIDANCE, STEPS, TalkingHeadPipeline, load_pipeline


def generate(*, face: Path, audio: Path, out: Path, adapters: Sequence[Path] = (), backbone: str = "assets",
             steps: int = STEPS, guidance: float = GUIDANCE, seed: int = 0) -> Path:
    """Writes `out`, an MP4 of the face speaking the audio, tagged as synthetic in its metadata.

    `face`: a square picture framed like the training clips, at least as large as the backbone's; `audio`: any length
    and format; `adapters`: a shared adapter, or it and an identity adapter on top of it. Raises `MediaError` or
    `ValueError`.
    """
    from rich.progress import Progress

    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out}: the video is an MP4; give a name that ends in .mp4")
    pipeline = load_pipeline(backbone)
    picture = _face(face, int(pipeline.config.size))
    sound = _whole_frames(read_audio(audio), audio)
    load_adapters(pipeline, adapters)
    with Progress(transient=True) as progress:
        task = progress.add_task("generating", total=None)
        frames = pipeline(picture[None], picture, sound, steps=steps, guidance=guidance, seed=seed,
                          progress=lambda done, total: progress.update(task, completed=done, total=total))
    write_mp4(out, frames, sound, metadata=SYNTHETIC_TAG)
    return out


def load_adapters(pipeline: TalkingHeadPipeline, files: Sequence[Path]) -> None:
    """Puts a shared and / or an identity adapter on the denoiser; each file says what it is.

    Raises ValueError on a file that is neither, on two of a kind, on one made for another backbone, and on an identity
    adapter without the shared one that it was trained on top of.
    """
    shared: tuple[Path, np.ndarray, UpdateSpec] | None = None
    own: tuple[Path, int] | None = None
    backbone = pipeline.digest  # of the weights before LoRA wraps them
    for file in files:
        try:
            with safe_open(str(file), framework="numpy") as opened:
                metadata, names = opened.metadata() or {}, list(opened.keys())
                is_shared = "spec" in metadata and names == ["theta"]
                is_own = bool(names) and all(".lora_A." in n or ".lora_B." in n for n in names)
                if (is_shared and shared) or (is_own and own):
                    raise ValueError(f"{file}: a second adapter of its kind; give at most one shared and one identity "
                                     "adapter")
                if is_shared:
                    shared = (file, opened.get_tensor("theta"), UpdateSpec.from_json(metadata["spec"]))
                elif is_own:
                    own = (file, min(opened.get_slice(n).get_shape()[0] for n in names if ".lora_A." in n))
                else:
                    raise ValueError(f"{file}: not an adapter of PrivFedTalk; give an adapter.safetensors that a run "
                                     "wrote")
                check_backbone(file, metadata, backbone)
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{file}: cannot be read as safetensors ({error})") from error
    spec = shared[2] if shared else None
    made = SharedAdapter(pipeline.denoiser, spec.rank if spec else 8, spec.scaling if spec else 1.0,
                         trained_factors(spec) if spec else "b")
    if shared:
        check_spec(shared[0], spec, made.spec)
        made.load(shared[1])
    if own and not shared:
        raise ValueError(f"{own[0]}: a person's own adapter, which works on top of the shared one; give the shared "
                         "adapter of the same run as well")
    if own:
        IdentityAdapter(made, own[1], seed=0, backbone=backbone).load(own[0])


def _face(path: Path, size: int) -> np.ndarray:
    """(size, size, 3) uint8 from a square picture at least that large."""
    picture = read_picture(path)
    height, width = picture.shape[:2]
    if height != width or height < size:
        raise MediaError(f"{path}: the picture is {width}x{height} pixels; give a square one of at least "
                         f"{size}x{size}, the face upright in its middle, chin above the lower edge")
    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    return v2.functional.resize(tensor, [size, size], antialias=True).permute(1, 2, 0).numpy()


def _whole_frames(sound: np.ndarray, path: Path) -> np.ndarray:
    """The sound, padded with silence to whole video frames."""
    if not len(sound):
        raise MediaError(f"{path}: holds no sound; give a speech file")
    return np.pad(sound, (0, -len(sound) % SAMPLES_PER_FRAME))
