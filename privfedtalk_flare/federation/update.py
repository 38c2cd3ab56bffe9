"""An adapter as one flat vector, and the specification that both ends must share before they add such vectors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


class UpdateError(ValueError):
    """An update that does not fit its specification. The message names the tensor, the fault and the remedy."""


@dataclass(frozen=True)
class UpdateSpec:
    """Names, shapes and order of the trained tensors, and everything else that gives their values a meaning.

    `rank` and `scaling` are LoRA's; `frozen_digest` is the SHA-256 (hex) of what is common and never sent: the A
    factors, when B alone is trained (torch's generator is not promised across versions, so equal seeds do not prove
    equal factors).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    rank: int
    scaling: float
    frozen_digest: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes):
            raise UpdateError(f"update spec: {len(self.names)} names but {len(self.shapes)} shapes")
        if len(set(self.names)) != len(self.names):
            raise UpdateError("update spec: a tensor is named twice; names must be unique")
        if not self.names or any(size < 1 for shape in self.shapes for size in shape):
            raise UpdateError("update spec: empty; it needs at least one tensor, and every size must be at least 1")
        if self.dtype != "float32":
            raise UpdateError(f"update spec: dtype {self.dtype!r} cannot be used; the choices are float32")

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray], rank: int, scaling: float, frozen_digest: str) -> UpdateSpec:
        """The specification of `tensors`, in the order of their names."""
        names = tuple(sorted(tensors))
        shapes = tuple(tuple(int(n) for n in np.shape(tensors[name])) for name in names)
        return cls(names, shapes, int(rank), float(scaling), frozen_digest)

    @property
    def size(self) -> int:
        """D: values in the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over every field: two sites may add their vectors only if these agree."""
        return hashlib.sha256(b"privfedtalk update spec v1\n" + self.to_json().encode()).hexdigest()

    def flatten(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """(D,) float32 from tensors by name; raises `UpdateError` on other names, shapes, or non-finite values."""
        if missing := [name for name in self.names if name not in tensors]:
            raise UpdateError(f"update lacks {len(missing)} of {len(self.names)} tensors, the first is {missing[0]!r}; "
                              "was the adapter made with the same rank and target layers?")
        if extra := sorted(set(tensors) - set(self.names)):
            raise UpdateError(f"update has {len(extra)} tensors that the spec does not know, the first is {extra[0]!r}")
        vector = np.empty(self.size, np.float32)
        at = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = np.asarray(tensors[name])
            if tensor.shape != shape:
                raise UpdateError(f"tensor {name!r} has shape {tensor.shape}, the spec says {shape}")
            if not np.isfinite(tensor).all():
                bad = int(np.count_nonzero(~np.isfinite(tensor)))
                raise UpdateError(f"tensor {name!r} holds {bad} values that are not finite; "
                                  "training diverged: lower its learning rate")
            size = math.prod(shape)
            vector[at:at + size] = tensor.reshape(-1)
            at += size
        return vector

    def unflatten(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Tensors by name (views of a float32 copy) from a (D,) vector; raises `UpdateError` where it does not fit."""
        vector = np.array(vector, np.float32)
        if vector.shape != (self.size,):
            raise UpdateError(f"vector has shape {vector.shape}, the spec needs ({self.size},)")
        if not np.isfinite(vector).all():
            raise UpdateError(f"vector holds {int(np.count_nonzero(~np.isfinite(vector)))} values that are not finite; "
                              "it was not decrypted with the right key, or a site sent them")
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = np.split(vector, ends)
        return {name: part.reshape(shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def to_json(self) -> str:
        """Canonical text: equal specs give equal text, on every machine."""
        fields = {"dtype": self.dtype, "frozen_digest": self.frozen_digest, "names": self.names, "rank": self.rank,
                  "scaling": self.scaling, "shapes": self.shapes}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> UpdateSpec:
        """The inverse of `to_json`; raises `UpdateError` on text that is none."""
        try:
            values = json.loads(text)
            return cls(tuple(str(name) for name in values["names"]),
                       tuple(tuple(int(n) for n in shape) for shape in values["shapes"]),
                       int(values["rank"]), float(values["scaling"]), str(values["frozen_digest"]),
                       str(values["dtype"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UpdateError(f"update spec cannot be read: {type(error).__name__}: {error}") from error


def digest_of(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) over names, shapes, dtypes and bytes, in the order of the names: `frozen_digest` of A."""
    total = hashlib.sha256(b"privfedtalk tensors v1\n")
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        total.update(json.dumps([name, tensor.shape, tensor.dtype.str]).encode() + b"\n" + tensor.tobytes())
    return total.hexdigest()
