"""Networks that others trained: their weights from a safetensors file, or a message that says which are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

N = TypeVar("N", bound=nn.Module)


def loaded(network: N, path: Path) -> N:
    """`network` with the weights of `path`, ready to be used. Raises ValueError where they are another network's."""
    try:
        missing, unexpected = network.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError) as error:  # no such file, or tensors of other shapes
        raise ValueError(f"{path}: not the weights of {type(network).__name__}: {str(error)[:200]}") from error
    counters = {name for name in missing if name.endswith("num_batches_tracked")}
    if set(missing) - counters or unexpected:
        raise ValueError(f"{path}: not the weights of {type(network).__name__}: it lacks "
                         f"{len(set(missing) - counters)} tensors, such as "
                         f"{next(iter(sorted(set(missing) - counters)), 'none')}, and has {len(unexpected)} others")
    return network.eval()
