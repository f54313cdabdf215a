"""Slow, obvious float64 twins of everything a segment tells, written from the definitions and from nothing in ``src``.

A twin evaluates a deep copy of the model in float64, adds numbers with ``math.fsum`` and keeps nothing between calls.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
Parameters = list[Tensor]
LossSum = Callable[[Tensor, Tensor], tuple[Tensor, int]]
"""(output, target) -> (sum of the losses, how many there are)."""

FLOAT32_RELATIVE = 2e-6
FLOAT32_ABSOLUTE = 1e-7
"""How far a loss evaluated in float32 may lie from its float64 twin: 2e-6 L + 1e-7 nats per example."""


# ---------------------------------------------------------------------------------------------------- the full loss
def in_float64(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def full_loss(model: nn.Module, batches: Iterable[Batch], loss_sum: LossSum, *, batchnorm: str = "train") -> float:
    """L(θ) over fixed evaluation batches: eval mode, but BatchNorm with the statistics of each batch (``train``)."""
    twin = copy.deepcopy(model).double().eval()
    if batchnorm == "train":
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
    sums: list[float] = []
    count = 0
    with torch.no_grad():
        for inputs, targets in batches:
            total, number = loss_sum(twin(in_float64(inputs)), in_float64(targets))
            sums.append(total.item())
            count += number
    return math.fsum(sums) / count


def segment_losses(
    model: nn.Module,
    start: Parameters,
    end: Parameters,
    batches: Sequence[Batch],
    loss_sum: LossSum,
    *,
    num_points: int = 10,
    batchnorm: str = "train",
) -> list[float]:
    """L((1 - α) θ_t + α θ_{t+1}) for α = 0, 1/n, …, 1; ``model`` gives the buffers."""
    twin = copy.deepcopy(model).double()
    losses: list[float] = []
    for k in range(num_points + 1):
        alpha = k / num_points
        with torch.no_grad():
            for parameter, first, last in zip(twin.parameters(), start, end, strict=True):
                parameter.copy_((1 - alpha) * first.double() + alpha * last.double())
        losses.append(full_loss(twin, batches, loss_sum, batchnorm=batchnorm))
    return losses


def loss_noise(used: Sequence[float], exact: Sequence[float]) -> float:
    """max over the grid of |L_used - L_float64|."""
    return max(abs(a - b) for a, b in zip(used, exact, strict=True))


# ------------------------------------------------------------------------------------------- what a segment says
def floor(losses: Sequence[float]) -> float:
    return min(losses)


def floor_alpha(losses: Sequence[float]) -> float:
    return list(losses).index(min(losses)) / (len(losses) - 1)


def height(losses: Sequence[float]) -> float:
    return (losses[0] + losses[-1] - 2 * min(losses)) / 2


def barrier_height(losses: Sequence[float]) -> float:
    return max(losses[1:-1]) - max(losses[0], losses[-1])


def barrier(losses: Sequence[float]) -> bool:
    return any(loss > losses[0] and loss > losses[-1] for loss in losses[1:-1])


def parabola(losses: Sequence[float]) -> tuple[float, float, float]:
    """(a, α*, R²) of the least-squares parabola a α² + b α + c, through the normal equations."""
    alpha = np.linspace(0.0, 1.0, len(losses))
    values = np.asarray(losses, dtype=np.float64)
    powers = np.stack([alpha**2, alpha, np.ones_like(alpha)])
    a, b, c = np.linalg.solve(powers @ powers.T, powers @ values)
    residuals = values - (a * alpha**2 + b * alpha + c)
    spread = values - values.mean()
    return a, -b / (2 * a), 1 - (residuals @ residuals) / (spread @ spread)


# ------------------------------------------------------------------------------------------------------- vectors
def entries(vector: Iterable[Tensor]) -> Iterator[float]:
    for tensor in vector:
        yield from tensor.double().flatten().tolist()


def dot(a: Parameters, b: Parameters) -> float:
    return math.fsum(x * y for x, y in zip(entries(a), entries(b), strict=True))


def norm(a: Parameters) -> float:
    return math.sqrt(dot(a, a))


def distance(a: Parameters, b: Parameters) -> float:
    return norm([x.double() - y.double() for x, y in zip(a, b, strict=True)])


def cosine(a: Parameters, b: Parameters) -> float:
    return dot(a, b) / (norm(a) * norm(b))


# -------------------------------------------------------------------------------------------------------- a walk
@dataclass
class Update:
    """What the training loop itself saw around one update."""

    start: Parameters
    """θ_t"""
    end: Parameters
    """θ_{t+1}"""
    gradient: Parameters
    """``p.grad`` as the optimizer received it; zeros where it was missing."""
    model: nn.Module
    """A copy of the model right after the update: its buffers are those that the segment was evaluated with."""


def copies(tensors: Iterable[Tensor]) -> Parameters:
    return [tensor.detach().clone() for tensor in tensors]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    before_update: Callable[[], object] = lambda: None,
) -> list[Update]:
    """An ordinary training loop, one update a batch, that keeps what it saw."""
    model.train()
    updates: list[Update] = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        before_update()
        start = copies(model.parameters())
        gradient = [
            torch.zeros_like(p) if p.grad is None else p.grad.detach().to_dense().clone() for p in model.parameters()
        ]
        optimizer.step()
        updates.append(Update(start, copies(model.parameters()), gradient, copy.deepcopy(model)))
    return updates
