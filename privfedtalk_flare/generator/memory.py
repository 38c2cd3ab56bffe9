"""Less memory for the same backbone: its large weights in bf16, activations recomputed instead of kept."""

from __future__ import annotations

import functools
import resource
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import nn

from privfedtalk_flare.generator.pipeline import TalkingHeadPipeline

LARGE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Where nearly all weights are. Norms stay in float32: they are small, and half of them would lose what they divide."""
GIB = 2**30


def shrink(pipeline: TalkingHeadPipeline) -> None:
    """Turns the frozen backbone to bf16, before adapters lie on it: these stay in float32, as do all results.

    The denoiser recomputes its activations in the backward pass (gradient checkpointing) instead of keeping them.
    """
    _ = pipeline.digest  # names the weights as they were trained, not as they are rounded here
    for name in ("codec", "aligner", "denoiser", "audio_encoder"):
        part: nn.Module = getattr(pipeline, name)
        for module in part.modules():
            if isinstance(module, LARGE):
                module.to(torch.bfloat16)
        for method in ("forward", "encode", "decode") if name == "codec" else ("forward",):
            setattr(part, method, _in_bf16(getattr(part, method), pipeline))
    pipeline.denoiser.enable_gradient_checkpointing()


def _in_bf16(method: Callable[..., Any], pipeline: TalkingHeadPipeline) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            return _full(method(*args, **kwargs))

    return called


def _full(result: Any) -> Any:
    """`result` with every tensor in float32."""
    if isinstance(result, torch.Tensor):
        return result.float()
    if isinstance(result, BaseOutput):
        return type(result)(**{name: _full(value) for name, value in result.items()})
    return result


def peak_memory(devices: Sequence[str]) -> str:
    """The most memory that this process has held so far, in words: on each CUDA device, else in the machine."""
    told = [f"{torch.cuda.max_memory_allocated(name) / GIB:.2f} GiB on {name}"
            for name in dict.fromkeys(devices) if torch.device(name).type == "cuda"]
    return ", ".join(told) or f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
