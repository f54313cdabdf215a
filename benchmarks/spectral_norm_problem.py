"""The problems whose spectral norm every side computes: stored iterates, fixed batches, one BatchNorm mode."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import nets

CACHE = Path(__file__).resolve().parent / ".cache"
REFERENCE = common.RESULTS / "spectral_norm_reference.json"
BATCH_SIZE = 100
NETS = {"mlp": nets.mlp, "vgg11": nets.vgg11}
ALGORITHMS = ("sgd", "gd")
BATCHNORMS = ("eval", "train")

Batch = tuple[Tensor, Tensor]


@dataclasses.dataclass
class Problem:
    """L at one iterate: the mean over ``batches``, BatchNorm with running statistics or with those of each batch."""

    model: nn.Module
    batches: list[Batch]
    carried: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a side keeps from the iterate before (its last eigenvector); empty at the first iterate."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @functools.cached_property
    def gradients(self) -> list[tuple[Tensor, ...]]:
        """Of each batch's loss, with the graph that leads to them: VGG-11's at 1,000 examples take some gigabytes."""
        losses = [F.cross_entropy(self.model(inputs), targets) for inputs, targets in self.batches]
        return [torch.autograd.grad(loss, self.parameters, create_graph=True) for loss in losses]

    def product(self, v: Tensor) -> Tensor:
        """H v by differentiating twice, written plainly; what the reference is computed with.  # (parameters,)"""
        parameters = self.parameters
        parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]
        total = torch.zeros_like(v)
        for gradient in self.gradients:
            pieces = torch.autograd.grad(gradient, parameters, parts, retain_graph=True)
            total += torch.cat([piece.flatten() for piece in pieces])
        return total / len(self.batches)


def path(cache: Path, net: str, algorithm: str, iterate: int) -> Path:
    return cache / f"spectral_norm_{net}_{algorithm}_{iterate}.safetensors"


def data_path(cache: Path, net: str) -> Path:
    return cache / f"spectral_norm_{net}_data.safetensors"


def load(
    cache: Path, net: str, algorithm: str, iterate: int, batchnorm: str, dtype: torch.dtype = torch.float32
) -> Problem:
    """The problem as ``spectral_norm_iterates.py`` left it.

    With ``train`` the running statistics are taken out of the layers: the same L, for batch statistics do not read
    them, no side moves them, and curvlinops, which multiplies under ``vmap``, may not write to them.
    """
    if not data_path(cache, net).exists():
        raise SystemExit(f"{data_path(cache, net)} is missing: run spectral_norm_iterates.py --net {net} first.")
    model = NETS[net]()
    model.load_state_dict(safetensors.torch.load_file(path(cache, net, algorithm, iterate)))
    model.to(dtype).train(batchnorm == "train")
    for module in model.modules():
        if batchnorm == "train" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    data = safetensors.torch.load_file(data_path(cache, net))
    inputs, targets = data["inputs"].to(dtype), data["targets"]
    return Problem(model, list(zip(inputs.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True)))


def digest(cache: Path, net: str, algorithm: str, iterate: int) -> str:
    """Tells iterates apart that another machine or another torch made: a reference holds for the very bits only."""
    return hashlib.sha256(path(cache, net, algorithm, iterate).read_bytes()).hexdigest()[:16]


def key(net: str, algorithm: str, batchnorm: str, iterate: int) -> str:
    return f"{net} {algorithm} {batchnorm} {iterate}"


def references(cache: Path, net: str, algorithm: str, batchnorm: str) -> list[float]:
    """The known eigenvalues of largest magnitude of one walk, as far as there are any without a gap, from iterate 0."""
    stored = json.loads(REFERENCE.read_text())["raw"] if REFERENCE.exists() else {}
    values = []
    while (entry := stored.get(key(net, algorithm, batchnorm, len(values)))) is not None:
        if entry["digest"] != digest(cache, net, algorithm, len(values)):
            raise SystemExit(
                f"{REFERENCE} was made at other iterates than those in {cache} (other machine, torch or settings): "
                "make it anew with spectral_norm_iterates.py."
            )
        values.append(entry["value"])
    return values
