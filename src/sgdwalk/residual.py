"""The second term of the paper's Eq. 3, H = C + R: the curvature of the probabilities themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sgdwalk.errors import InputError
from sgdwalk.examples import example_losses
from sgdwalk.graphs import NoSecondDerivativeError, lacks_second_derivative, refuse_dead_ends
from sgdwalk.objective import LossFunction
from sgdwalk.operators import LossOperator
from sgdwalk.standing import LossOptions, StandingLoss


class ResidualOperator(LossOperator):
    """R = (1/N) Σ (∂ℓ_i/∂p_i) ∂²p_i/∂θ² with p_i = exp(-ℓ_i); made by :func:`sgdwalk.hessian_residual`.

    ∂ℓ_i/∂p_i = -1/p_i, so R is the Hessian of -(1/N) Σ p_i / [p_i], where [·] is a constant: the value at θ. Written
    exp([ℓ_i] - ℓ_i), the ratio is 1 at θ, whatever the size of p_i.
    """

    def product(self, vector: Tensor) -> Tensor:
        try:
            return super().product(vector)
        except (NoSecondDerivativeError, RuntimeError) as error:
            if not lacks_second_derivative(error):
                raise
            raise InputError(
                "The model computes with a kernel that has no second derivative, which R is made of: replace it by one "
                "that has (for attention, the math backend is taken already)."
            ) from error

    def build(self, index: int, leaves: list) -> tuple[Tensor, ...]:
        losses = example_losses(self.full_loss, *self.full_loss.outputs(index), self.full_loss.data.sizes[index])
        ratios = torch.exp(losses.detach() - losses)
        value = -ratios.sum() / self.full_loss.data.num_examples
        gradients = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        refuse_dead_ends(gradients)
        return gradients

    def apply(self, graph: Any, leaves: list, directions: list[Tensor]) -> Sequence[Tensor | None]:
        pairs = [(g, v) for g, v in zip(graph, directions, strict=True) if g.requires_grad]
        if not pairs:
            return [None] * len(leaves)
        gradients, vectors = zip(*pairs, strict=True)
        return torch.autograd.grad(gradients, leaves, vectors, retain_graph=True, allow_unused=True)


def hessian_residual(
    model: nn.Module, loss_fn: LossFunction, data: Any, **options: Unpack[LossOptions]
) -> ResidualOperator:
    """What the Hessian of a negative log-likelihood has besides C, as an operator: ``R @ v``.

    With ℓ_i = -ln p_i, p_i the probability of example i's target,

        H = C + R,    C = (1/N) Σ ∇ℓ_i ∇ℓ_iᵀ,    R = (1/N) Σ (∂ℓ_i/∂p_i) ∂²p_i/∂θ² = -(1/N) Σ (1/p_i) ∂²p_i/∂θ²,

    an identity at every θ. Here R is computed on its own, by differentiating p_i / [p_i] twice, not as H - C. The paper
    expects R to vanish near minima, which leaves C = H; whether it does can be measured with this operator and
    :func:`sgdwalk.gradient_second_moment`. Under BatchNorm in train mode ℓ_i is taken in its fixed evaluation batch,
    where the identity stays exact. R is symmetric and has eigenvalues of both signs. A product costs what one with the
    Hessian does.

    Args:
        model: the model; it is copied and stays as it is.
        loss_fn: ``loss_fn(output, target)`` returning per-example losses, or the mean of a batch: then it is applied to
            one row at a time. For a loss that is no negative log-likelihood p_i is exp(-ℓ_i) all the same.
        data: the N examples: a pair of tensors, a map-style data set, a DataLoader or a list of batches.
        **options: ``batch_size``, ``batchnorm``, ``parameters``, ``forward``, ``partition_seed``: see
            :class:`sgdwalk.LossOptions`; the same as for H and C.

    Raises:
        InputError: for a model, loss_fn or data that cannot be measured; for a loss_fn that returns (sum, count) or
            cannot be applied to single rows; in a product, for a kernel without a second derivative.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> data = torch.ones(1, 1), torch.ones(1, 1)
    >>> loss = torch.nn.BCEWithLogitsLoss()  # p = σ(w): C = (1 - p)² and H = p (1 - p) are both 1/4 at w = 0
    >>> sgdwalk.hessian_residual(model, loss, data).dense().item()
    0.0

    Source: the paper, Eq. 3 and Eq. 8.
    """
    full_loss = StandingLoss(model, loss_fn, data, **options)
    with full_loss.evaluating():  # refuse a loss without single examples now, not at the first product
        example_losses(full_loss, *full_loss.outputs(0), full_loss.data.sizes[0])
    return ResidualOperator(full_loss, guard=full_loss.evaluating)
