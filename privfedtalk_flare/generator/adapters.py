"""LoRA adapters on the denoiser's attention: one shared by the federation, one that each identity keeps.

The shared adapter's A is frozen and common (FFA-LoRA, Sun et al. 2024): the average of updates is then exact and noise
stays linear. A is derived from SHAKE-256, because torch's generator is not promised across versions.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import UNetMotionModel
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from privfedtalk_flare.federation.update import UpdateSpec, digest_of
from privfedtalk_flare.files import READABLE, replaced

SHARED = "shared"
IDENTITY = "identity"
BACKBONE = "backbone"
"""Key in an adapter file's metadata: digest of the backbone that it changes; on another one its values mean nothing."""
BENEATH = "beneath"
"""Key in an identity adapter's metadata: digest of the shared adapter that it was trained on top of."""
KEY = "key"
"""Key in a shared adapter's metadata: id of the encryption key under which the sites held it, where there was one."""
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
"""Attention only: the motion modules' proj_in and proj_out are called by keyword, which LoRA layers refuse."""
GRID = 2.0**-16
"""Whatever leaves the holders of the key is rounded to this grid: exact decrypted values would give the key away."""


class SharedAdapter:
    """The federation's adapter on a denoiser, as a flat vector theta (D,): its distance from the common start.

    With `train` 'b' theta holds the B factors, which start at 0; with 'both' A's offset from its start too.
    """

    def __init__(self, denoiser: UNetMotionModel, rank: int, scaling: float, train: str) -> None:
        self.denoiser = denoiser
        denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank * scaling, target_modules=TARGETS), SHARED)
        tensors = _in_float32(denoiser, SHARED)
        for name, tensor in tensors.items():
            if ".lora_A." in name:
                with torch.no_grad():
                    tensor.copy_(torch.from_numpy(_start_of_a(name, tuple(tensor.shape))))
        self.tensors = tensors
        self.trained = {n: t for n, t in tensors.items() if train == "both" or ".lora_B." in n}
        self.start = {n: t.detach().clone() for n, t in self.trained.items()}
        frozen = {n: t.detach().cpu().numpy() for n, t in tensors.items() if n not in self.trained}
        self.spec = UpdateSpec.of({n: t.numpy(force=True) for n, t in self.trained.items()}, rank, scaling,
                                  digest_of(frozen))
        self.load(np.zeros(self.spec.size, np.float32))
        self.activate()

    def activate(self) -> None:
        """Makes this the only adapter that acts and trains, whichever others lie on the denoiser."""
        self.denoiser.set_adapters([SHARED])
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(name in self.trained)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.trained[name] for name in self.spec.names]

    @torch.no_grad()
    def load(self, theta: np.ndarray) -> None:
        """Sets the adapter to theta (D,) float32, and `digest` to what `save_shared` writes of it; raises `UpdateError`
        where it does not fit the spec."""
        parts = self.spec.unflatten(theta)
        self.digest = hashlib.sha256((to_grid(theta) + 0.0).tobytes()).hexdigest()  # + 0.0: no negative zeros
        for name, values in parts.items():
            tensor = self.trained[name]
            tensor.copy_(self.start[name] + torch.from_numpy(values).to(tensor))

    def read(self) -> np.ndarray:
        """theta (D,) float32, a copy. After local training it is PRIVATE until clipped and noised."""
        return self.spec.flatten({n: (t.detach() - self.start[n]).cpu().numpy() for n, t in self.trained.items()})


class IdentityAdapter:
    """One person's own adapter, A and B both trained, on top of the shared one. It has no form that travels: `save`
    writes to the site. `backbone` is the digest of the one under both.
    """

    def __init__(self, shared: SharedAdapter, rank: int, seed: int, backbone: str) -> None:
        denoiser = shared.denoiser
        self.shared, self.denoiser, self.backbone = shared, denoiser, backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with warnings.catch_warnings():  # peft's, that there are two adapters now: as it should be
                warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
                denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), IDENTITY)
        self.tensors = _in_float32(denoiser, IDENTITY)
        self.start = {n: t.detach().clone() for n, t in self.tensors.items()}
        self.activate()

    def activate(self) -> None:
        """Lets both adapters act, and this one alone train."""
        self.denoiser.set_adapters([SHARED, IDENTITY])
        for _, tensor in _factors(self.denoiser, SHARED):
            tensor.requires_grad_(False)

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.tensors.values())

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the start: no change to the output."""
        for name, tensor in self.tensors.items():
            tensor.copy_(self.start[name])

    def save(self, path: Path) -> None:
        """Writes safetensors into the site's own state, by atomic replace, readable by its owner alone."""
        with replaced(path) as partial:
            save_file({n: t.detach().cpu().contiguous() for n, t in self.tensors.items()}, partial,
                      metadata={BACKBONE: self.backbone, BENEATH: self.shared.digest})

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Raises ValueError where the file is of another backbone, shared adapter or rank, or cannot be read."""
        try:
            with safe_open(str(path), framework="pt") as file:
                check_backbone(path, file.metadata(), self.backbone)
                self._check_beneath(path, file.metadata())
                loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read as safetensors ({error}); personalize again") from error
        if {n: t.shape for n, t in loaded.items()} != {n: t.shape for n, t in self.tensors.items()}:
            raise ValueError(f"{path}: not an identity adapter of this rank; personalize again, or set "
                             "adapter.identity_rank to the file's")
        for name, tensor in self.tensors.items():
            tensor.copy_(loaded[name])

    def _check_beneath(self, path: Path, metadata: Mapping[str, str]) -> None:
        named, here = metadata.get(BENEATH, "unknown"), self.shared.digest
        if named != here:
            raise ValueError(f"{path}: trained on top of shared adapter {named[:12]}, here is {here[:12]}; use "
                             "the two that one run wrote, or personalize again")


def check_backbone(path: Path, metadata: Mapping[str, str] | None, backbone: str) -> None:
    """Raises ValueError where an adapter file's metadata does not name `backbone`, a digest."""
    named = (metadata or {}).get(BACKBONE)
    if named != backbone:
        raise ValueError(f"{path}: an adapter of backbone {named[:12] if named else 'unknown'}, this one is "
                         f"{backbone[:12]}; set `backbone` to the one that it was trained on, or train it again on "
                         "this one")


def _factors(denoiser: UNetMotionModel, adapter: str) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameter in denoiser.named_parameters():
        if f".lora_A.{adapter}." in name or f".lora_B.{adapter}." in name:
            yield name, parameter


def _in_float32(denoiser: UNetMotionModel, adapter: str) -> dict[str, torch.nn.Parameter]:
    """The adapter's factors by name. peft makes them in the dtype of the layer beneath, which may be bf16."""
    factors = dict(_factors(denoiser, adapter))
    for tensor in factors.values():
        tensor.data = tensor.data.float()
    return factors


def _start_of_a(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Kaiming-uniform A from SHAKE-256 over the tensor's name: the same on every machine and version."""
    count = int(np.prod(shape))
    words = np.frombuffer(hashlib.shake_256(f"privfedtalk A v1 {name} {shape}".encode()).digest(4 * count), "<u4")
    bound = shape[1] ** -0.5
    return ((words / 2.0**32 * 2 - 1) * bound).astype(np.float32).reshape(shape)


def to_grid(vector: np.ndarray) -> np.ndarray:
    """Rounds to the grid of 2^-16, float32: the only form in which a shared adapter leaves the key holders."""
    return (np.round(np.asarray(vector, np.float64) / GRID) * GRID).astype(np.float32)


def save_shared(theta: np.ndarray, spec: UpdateSpec, path: Path, backbone: str, key: str = "") -> Path:
    """Writes the shared adapter as safetensors on the 2^-16 grid; spec, the backbone's digest and the id of the `key`
    under which it was decrypted stand in the metadata."""
    metadata = {"spec": spec.to_json(), BACKBONE: backbone} | ({KEY: key} if key else {})
    with replaced(path, READABLE) as partial:
        save_file({"theta": torch.from_numpy(to_grid(theta))}, partial, metadata=metadata)
    return path


def trained_factors(spec: UpdateSpec) -> str:
    """`AdapterSettings.train` of a shared adapter with this spec."""
    return "both" if any(".lora_A." in name for name in spec.names) else "b"


def check_spec(path: Path, named: UpdateSpec, here: UpdateSpec) -> None:
    """Raises ValueError where a shared adapter's file does not hold the tensors that this backbone has."""
    if named.digest != here.digest:
        raise ValueError(f"{path}: a shared adapter whose tensors this backbone does not have; train it again with "
                         "this version of the package")


def read_shared(path: Path) -> tuple[np.ndarray, UpdateSpec, Mapping[str, str]]:
    """theta (D,) float32, the spec and the metadata of a file that `save_shared` wrote; ValueError where it is none."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if "spec" not in metadata or list(file.keys()) != ["theta"]:
                raise ValueError(f"{path}: no shared adapter; give the shared/adapter.safetensors that a job wrote "
                                 "into a site's state")
            return file.get_tensor("theta"), UpdateSpec.from_json(metadata["spec"]), metadata
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
