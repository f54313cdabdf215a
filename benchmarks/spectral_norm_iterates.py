"""Consecutive iterates of SGD and GD, stored, and the exact spectral norm at each: what all sides are judged by.

    python benchmarks/spectral_norm_iterates.py --data-dir DIR [--net mlp|vgg11|all] [--part iterates|references|all]

A short training by SGD comes first; the ten iterates of SGD and those of GD (the gradient accumulated over the same
batches of 100) start where it ends. Iterates go to a cache folder that git ignores, references to a file that it
keeps. What is there already is not made again. The reference is a Rayleigh-Ritz value of the Krylov space of plain
Hessian-vector products, orthogonalized fully, and knows neither sgdwalk nor a peer: float64 from a random start for
the MLP; float32 for VGG-11, from the last eigenvector and an equal random part and with a looser residual, for a
product takes half a minute. A residual r leaves an error of at most r, in truth of about its square.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import common
import spectral_norm_problem as problems
from spectral_norm_problem import BATCH_SIZE, Batch, Problem

EXAMPLES = {"mlp": 5000, "vgg11": 1000}
DTYPE = {"mlp": torch.float64, "vgg11": torch.float32}
RESIDUAL = {"mlp": 1e-4, "vgg11": 5e-3}
"""‖Hv - λv‖ / |λ| at which a reference is taken."""
MAX_PRODUCTS = 200


def batches_for_ever(inputs: Tensor, targets: Tensor) -> Iterator[Batch]:
    """Batches of 100 in a new order each epoch."""
    while True:
        order = torch.randperm(len(targets))
        for index in order.split(BATCH_SIZE):
            yield inputs[index], targets[index]


def make_iterates(net: str, algorithm: str, options) -> None:
    """Train and store: one file for each iterate, one for the data."""
    if problems.path(options.cache, net, algorithm, options.iterates - 1).exists():
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    load = {"mlp": common.mnist, "vgg11": common.cifar10}[net]
    inputs, targets = load(options.data_dir, EXAMPLES[net])
    safetensors.torch.save_file(
        {"inputs": inputs.contiguous(), "targets": targets}, problems.data_path(options.cache, net)
    )

    torch.manual_seed(0)
    model = problems.NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate)
    drawn = batches_for_ever(inputs, targets)
    fixed = list(zip(inputs.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True))

    def update(batches: list[Batch]) -> None:
        optimizer.zero_grad()
        for x, y in batches:
            (F.cross_entropy(model(x), y) / len(batches)).backward()
        optimizer.step()

    for _ in range(options.warmup):
        update([next(drawn)])
    for iterate in range(options.iterates):
        safetensors.torch.save_file(model.state_dict(), problems.path(options.cache, net, algorithm, iterate))
        if iterate < options.iterates - 1:
            update([next(drawn)] if algorithm == "sgd" else fixed)


def largest(problem: Problem, start: Tensor, residual: float) -> tuple[float, Tensor, dict[str, Any]]:
    """Eigenvalue of largest magnitude, its vector, and ‖Hv - λv‖ / |λ| with the number of products it took.

    The images H q of the basis are kept, so the residual is that of the vector itself and costs no product more.
    """
    basis, images = [start / start.norm()], []  # each (parameters,)
    projected = torch.zeros(MAX_PRODUCTS, MAX_PRODUCTS, dtype=torch.float64)
    while True:
        images.append(problem.product(basis[-1]))
        for row, q in enumerate(basis):
            projected[row, len(images) - 1] = projected[len(images) - 1, row] = torch.dot(q, images[-1])
        ritz, vectors = torch.linalg.eigh(projected[: len(images), : len(images)])
        chosen = ritz.abs().argmax()
        value, weights = ritz[chosen].item(), vectors[:, chosen].to(start.dtype)
        vector = sum(w * q for w, q in zip(weights, basis, strict=True))
        image = sum(w * h for w, h in zip(weights, images, strict=True))
        seen = ((image - value * vector).norm() / abs(value)).item()
        if seen <= residual or len(images) == MAX_PRODUCTS:
            return value, vector, {"residual": seen, "products": len(images)}
        candidate = images[-1].clone()
        for _ in range(2):
            for q in basis:
                candidate -= torch.dot(q, candidate) * q
        basis.append(candidate / candidate.norm())


def make_references(net: str, algorithm: str, batchnorm: str, options) -> None:
    dtype = DTYPE[net]
    carried: Tensor | None = None
    for iterate in range(min(options.iterates, options.references)):
        key = problems.key(net, algorithm, batchnorm, iterate)
        digest = problems.digest(options.cache, net, algorithm, iterate)
        kept = json.loads(problems.REFERENCE.read_text())["raw"] if problems.REFERENCE.exists() else {}
        # Made before, or where the other algorithm starts as well.
        alike = (entry for name, entry in kept.items() if name.split()[2] == batchnorm and entry["digest"] == digest)
        if (known := next(alike, None)) is not None:
            carried = None
            if kept.get(key) != known:
                keep({**kept, key: known}, options)
            continue
        problem = problems.load(options.cache, net, algorithm, iterate, batchnorm, dtype)
        generator = torch.Generator().manual_seed(iterate)
        size = sum(p.numel() for p in problem.parameters)
        start = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        if warm := carried is not None and net != "mlp":
            start = start / start.norm() + carried
        value, carried, effort = largest(problem, start, RESIDUAL[net])
        entry = {
            "value": value,
            **effort,
            "dtype": str(dtype),
            "start": "last eigenvector and random" if warm else "random",
            "digest": digest,
        }
        print(key, json.dumps(entry), flush=True)
        kept = json.loads(problems.REFERENCE.read_text())["raw"] if problems.REFERENCE.exists() else {}
        kept[key] = entry
        keep(kept, options)


def keep(entries: dict[str, Any], options) -> None:
    order = sorted(entries, key=lambda key: [int(part) if part.isdigit() else part for part in key.split()])
    entries = {key: entries[key] for key in order}
    summary = {
        "entries": len(entries),
        "largest residual": max(entry["residual"] for entry in entries.values()),
        "examples": EXAMPLES,
    }
    settings = {"warmup": options.warmup, "learning_rate": options.learning_rate, "residual": RESIDUAL}
    common.write(problems.REFERENCE.parent, problems.REFERENCE.stem, settings, entries, summary)


def main() -> None:
    options = common.arguments(
        __doc__.splitlines()[0],
        net="all",
        algorithm="all",
        batchnorm="all",
        part="all",
        cache=str(problems.CACHE),
        iterates=10,
        references=10,
        warmup=40,
        learning_rate=0.1,
    )
    options.cache = Path(options.cache)
    for net in problems.NETS if options.net == "all" else [options.net]:
        for algorithm in problems.ALGORITHMS if options.algorithm == "all" else [options.algorithm]:
            if options.part in ("iterates", "all"):
                make_iterates(net, algorithm, options)
            for batchnorm in problems.BATCHNORMS if options.batchnorm == "all" else [options.batchnorm]:
                if options.part in ("references", "all"):
                    make_references(net, algorithm, batchnorm, options)


if __name__ == "__main__":
    main()
