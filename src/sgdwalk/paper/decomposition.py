"""Equation 3 along a training: H = C + R written out in float64, and how much of H is C.

A measure for ``sgdwalk.watch``. C is the second moment of the examples' gradients, R the curvature of the
probabilities; each of the three matrices is computed on its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sgdwalk
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.data import NUM_CLASSES, Split
from sgdwalk.paper.standing import standing

SMALLEST_SHARE = 1e-3
"""The power law is fitted along eigenvectors whose eigenvalue is at least this share of the largest."""
RANDOM_VECTORS = 3
"""Vectors on which the identity is tested with BatchNorm's running statistics, where no matrix is written out."""


class Decomposition:
    """Columns ``equation3_…`` of H, C and R at θ_t, over the training examples in batches of the training's size.

    ``identity``: ‖H - C - R‖ / ‖H‖ in Frobenius norms; ``identity_running``: the same of products with random vectors,
    BatchNorm using its running statistics. ``hessian``, ``second_moment``, ``residual``: spectral norms;
    ``…_frobenius``: Frobenius norms. ``overlap``: of the spaces of the top eigenvectors of H and C, as many as there
    are classes, with ``chance`` for two random ones; ``angle``: between the two top eigenvectors, radians.
    ``exponent``: γ of v_iᵀ C v_i ∝ λ_i^γ in the eigenbasis of H, ``exponent_low`` and ``exponent_high`` its 95 %
    interval, over ``exponent_pairs`` eigenvalues. ``loss``, ``accuracy``: of the same batches, at the same point.
    """

    def __init__(self, experiment: Experiment, model: nn.Module, training: Split):
        self._experiment = experiment
        self._model = model
        size = experiment.batch_size
        self._batches = list(zip(training.inputs.double().split(size), training.targets.split(size), strict=True))

    def __call__(self, here: Any) -> dict[str, Any]:
        model = standing(self._model, here).double()
        H, C, R = (matrix(model, _losses, self._batches).dense() for matrix in MATRICES)
        values, vectors = torch.linalg.eigh(H)
        second_values, second_vectors = torch.linalg.eigh(C)
        spectral = {
            "hessian": values.abs().max(),
            "second_moment": second_values.max(),
            "residual": torch.linalg.eigvalsh(R).abs().max(),
        }
        frobenius = {"hessian": H.norm(), "second_moment": C.norm(), "residual": R.norm()}
        count = NUM_CLASSES[self._experiment.dataset]
        angles = sgdwalk.principal_angles(vectors[:, -count:].T, second_vectors[:, -count:].T)
        top = sgdwalk.principal_angles(vectors[:, -1:].T, second_vectors[:, -1:].T)
        chosen = values >= SMALLEST_SHARE * values.max()
        along = ((C @ vectors) * vectors).sum(dim=0)
        law = sgdwalk.power_law(values[chosen], along[chosen])
        undefined = sgdwalk.Undefined(law.reason)
        return {
            "identity": (H - C - R).norm() / H.norm(),
            "identity_running": self._identity_running(model, here.step),
            **spectral,
            **{f"{name}_frobenius": norm for name, norm in frobenius.items()},
            "overlap": angles.overlap,
            "chance": angles.chance,
            "angle": top.angles,
            "exponent": undefined if law.reason else law.exponent,
            "exponent_low": undefined if law.reason else law.low,
            "exponent_high": undefined if law.reason else law.high,
            "exponent_pairs": law.num_pairs,
            **self._fit(model),
        }

    def _identity_running(self, model: nn.Module, step: int) -> float:
        matrices = [matrix(model, _losses, self._batches, batchnorm="eval") for matrix in MATRICES]
        generator = torch.Generator().manual_seed(step)
        vectors = torch.randn(matrices[0].size, RANDOM_VECTORS, generator=generator, dtype=torch.float64)
        H, C, R = (matrix @ vectors for matrix in matrices)
        return float((H - C - R).norm() / H.norm())

    @torch.no_grad()
    def _fit(self, model: nn.Module) -> dict[str, float]:
        """Loss (nats per example) and accuracy with each batch's own statistics."""
        model.train()
        outputs = torch.cat([model(inputs) for inputs, _ in self._batches])
        targets = torch.cat([targets for _, targets in self._batches])
        accuracy = (outputs.argmax(dim=1) == targets).double().mean()
        return {"loss": cross_entropy(outputs, targets).item(), "accuracy": accuracy.item()}


MATRICES = (sgdwalk.hessian, sgdwalk.gradient_second_moment, sgdwalk.hessian_residual)
"""H, C, R."""


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")
