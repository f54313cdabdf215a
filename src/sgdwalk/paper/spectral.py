"""The spectral norm of the Hessian over a training (Figures 3 and 7): both BatchNorm modes, and the authors' way.

A measure for ``sgdwalk.watch``, at few and distant updates. The walk's own ``sgdwalk.SpectralNorm`` has the BatchNorm
mode of its loss; this one takes both at the same θ_t.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import sgdwalk
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.data import Split
from sgdwalk.paper.seeds import seed_for
from sgdwalk.paper.standing import standing

TOLERANCE = 0.05
"""Of ‖H v - λ v‖ by |λ|; the error of λ is about its square in relative terms."""
AUTHORS_ITERATIONS = 15
"""Power iterations in the authors' public code."""
AUTHORS_BATCHES = 5
"""Their batches for the Hessian have 500 images, five times as many as the training's."""
AUTHORS_EXAMPLES = 25_000
"""Their training images for the Hessian, the first ones."""
RUNNING_BATCH = 250
"""Examples at a time with running statistics, where the batch does not matter."""


class SpectralNorms:
    """Columns ``spectral_norm…``: the eigenvalue of largest magnitude at θ_t, signed.

    ``spectral_norm``: BatchNorm in train mode, in batches of the training's size, over the first training examples, as
    many as ``spectral_examples`` says; ``_eval``: the same examples with running statistics. At
    ``spectral_compare_epochs`` also ``_whole``: train mode over all training examples, where the first are fewer; and
    ``_authors``: as the authors' code does, over the same examples as the first, 25,000 at most. Each but the last
    comes with ``_residual`` (‖H v - λ v‖) and ``_num_products``, and is undefined, with the reason, where it has not
    converged.

    A search starts from the vectors that the last one of its kind ended with and a random one, which finds what may
    have overtaken them.
    """

    def __init__(self, experiment: Experiment, model: nn.Module, training: Split):
        self._experiment = experiment
        self._model = model
        self._training = training
        self._starts: dict[str, Tensor] = {}

    def __call__(self, here: Any) -> dict[str, Any]:
        model = standing(self._model, here)
        experiment, step = self._experiment, here.step
        size = experiment.batch_size
        part = self._examples(experiment.spectral_examples)
        found = self._search("", model, part, step, batchnorm="train", batch_size=size)
        found |= self._search("eval", model, part, step, batchnorm="eval", batch_size=RUNNING_BATCH)
        if experiment.spectral_compared(step):
            if experiment.spectral_examples is not None:
                whole = self._examples(None)
                found |= self._search("whole", model, whole, step, batchnorm="train", batch_size=size)
            iterations = self._fresh(step, min(len(part[1]), AUTHORS_EXAMPLES))
            found["authors"] = authors_spectral_norm(
                model, iterations, seed_for(experiment.seed, "authors' start", step)
            )
        return found

    def _examples(self, count: int | None) -> tuple[Tensor, Tensor]:
        return self._training.inputs[:count], self._training.targets[:count]

    def _search(self, name: str, model: nn.Module, part: Any, step: int, **options: Any) -> dict[str, Any]:
        start = self._starts.get(name or "train")
        if start is not None:
            generator = torch.Generator().manual_seed(seed_for(self._experiment.seed, f"spectral norm {name}", step))
            other = torch.randn(1, start.shape[1], generator=generator).to(start)
            start = torch.cat([start, normalize(other, dim=1)])
        result = sgdwalk.spectral_norm(
            model, cross_entropy, part, tolerance=TOLERANCE, start=start, seed=self._experiment.seed, **options
        )
        self._starts.pop(name or "train", None)
        if result.converged:
            self._starts[name or "train"] = result.start
        best = f"{result.reason}; the best value is {result.value:.6g}"
        mark = f"{name}_" if name else ""
        return {
            name or "value": result.value if result.converged else sgdwalk.Undefined(best),
            f"{mark}residual": result.residual,
            f"{mark}num_products": float(result.num_products),
        }

    def _fresh(self, step: int, count: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """For each iteration the same examples in a new order, augmented anew where the training is."""
        experiment = self._experiment
        generator = torch.Generator().manual_seed(seed_for(experiment.seed, "authors' spectral norm", step))
        for _ in range(AUTHORS_ITERATIONS):
            order = torch.randperm(count, generator=generator)
            parts = order.split(min(AUTHORS_BATCHES * experiment.batch_size, count))
            yield [self._training.batch(rows, generator if experiment.augment else None) for rows in parts]

    def state_dict(self) -> dict[str, Any]:
        """Where the next searches start, for a training that is stopped and gone on with."""
        return {name: start.clone() for name, start in self._starts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._starts = {name: start.clone() for name, start in state.items()}


def authors_spectral_norm(
    model: nn.Module, iterations: Iterator[list[tuple[Tensor, Tensor]]], seed: int
) -> float | sgdwalk.Undefined:
    """Power iteration as in the authors' code: v ← H v / s, s the entry of H v of largest magnitude; the last s.

    Near an eigenvector, whose largest entry is 1, s is its eigenvalue. Nothing tells whether it is near.

    Args:
        model: at θ; BatchNorm is in train mode.
        iterations: the batches of each iteration.
        seed: of the first v, standard normal.
    """
    size = sum(parameter.numel() for parameter in model.parameters())
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    vector = vector.to(next(model.parameters()).device)
    scale = vector.new_ones(())
    for batches in iterations:
        matrix = sgdwalk.hessian(model, cross_entropy, batches)
        product = matrix @ vector
        matrix.release()
        scale = product[product.abs().argmax()]
        if not bool(torch.isfinite(scale)) or float(scale) == 0.0:
            return sgdwalk.Undefined(f"the power iteration met H v with the largest entry {float(scale)}")
        vector = product / scale
    return float(scale)
