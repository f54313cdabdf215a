"""Batch sharpness: the curvature that mini-batch SGD meets along its own mini-batch gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from sgdwalk.draws import generator
from sgdwalk.errors import InputError
from sgdwalk.measures import Here, Undefined
from sgdwalk.objective import FullLoss, LossFunction
from sgdwalk.operators import HessianOperator
from sgdwalk.stability import kind_of, stability_of
from sgdwalk.standing import LossOptions, StandingLoss

NUM_BATCHES = 20


@dataclass(frozen=True, slots=True)
class BatchSharpnessResult:
    """E[g_Bᵀ H_B g_B] / E‖g_B‖² with what it was measured on.

    Attributes:
        value: the ratio of the two means.
        standard_error: of it (delta method), over mini-batches.
        batch_size: B, the size of the mini-batches.
        num_batches: mini-batches that it was measured on.
        reason: why ``value`` is undefined, empty where it is not.
    """

    value: float
    standard_error: float
    batch_size: int
    num_batches: int
    reason: str


def batch_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    num_batches: int | None = NUM_BATCHES,
    seed: int = 0,
    **options: Unpack[LossOptions],
) -> BatchSharpnessResult:
    """E[g_Bᵀ H_B g_B] / E‖g_B‖², gradient and Hessian of the same mini-batch B, to be set beside 2/η.

    For mini-batch SGD this, not the spectral norm, rises to about 2/η and stays there. A mini-batch costs about nine of
    its forward passes.

    Args:
        model: the model; it is copied and stays as it is.
        loss_fn: ``loss_fn(output, target)`` returning a batch mean, per-example losses, or a pair (sum, count).
        data: the training data: a pair of tensors, a map-style data set, a DataLoader or a list of batches.
        num_batches: mini-batches to measure on, drawn without replacement; None for all.
        seed: of the draw.
        **options: ``batch_size``, which here is that of training (a DataLoader's own by default), and the others of
            :class:`sgdwalk.LossOptions`.

    Raises:
        InputError: for a model, loss_fn, data or setting that cannot be measured.

    >>> import torch, sgdwalk
    >>> inputs, targets = torch.tensor([[2.0]] * 4), torch.ones(4, 1)  # every batch: H = 2 · 2² = 8
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> round(sgdwalk.batch_sharpness(model, torch.nn.MSELoss(), (inputs, targets), batch_size=2).value, 4)
    8.0

    Source: Andreyev and Beneventano, "Edge of Stochastic Stability", 2024 (arXiv 2412.20553).
    """
    loss = StandingLoss(model, loss_fn, data, **options)
    with loss.evaluating():
        return _measure(loss, num_batches, generator("mini-batches of batch sharpness", seed))


class BatchSharpness:
    """Batch sharpness along a walk, as a measure: ``watch(..., measures={"batch_sharpness": BatchSharpness()})``.

    The mini-batches are evaluation batches of the walk: pass ``watch`` the batch size of training. Fills
    ``batch_sharpness``, ``_standard_error``, ``_batch_size``, ``_threshold``, which is 2/η less the L2 term, and
    ``_edge_ratio``, the value over the threshold: SGD settles where it is about 1.

    Args:
        num_batches: mini-batches to measure on, drawn afresh at each step; None for all.
        seed: of the draw.

    >>> import torch, sgdwalk
    >>> model, data = torch.nn.Linear(2, 1), (torch.randn(50, 2), torch.randn(50, 1))
    >>> optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss()
    >>> measures = {"batch_sharpness": sgdwalk.BatchSharpness()}
    >>> with sgdwalk.watch(model, optimizer, loss_fn, data, batch_size=5, measures=measures) as walk:
    ...     loss_fn(model(data[0][:5]), data[1][:5]).backward()
    ...     optimizer.step()
    >>> walk.run.steps["batch_sharpness_batch_size"].tolist()
    [5.0]

    Source: Andreyev and Beneventano, "Edge of Stochastic Stability", 2024 (arXiv 2412.20553).
    """

    def __init__(self, num_batches: int | None = NUM_BATCHES, *, seed: int = 0):
        _check(num_batches)
        self.num_batches = num_batches
        self.seed = seed

    def for_walk(self, here: Here) -> BatchSharpness:
        """Itself: it has no memory, and can be taken where there is a full loss."""
        here.full_loss()
        return self

    def __call__(self, here: Here) -> dict[str, float | Undefined]:
        draw = generator("mini-batches of batch sharpness", self.seed, here.step)
        result = _measure(here.full_loss(), self.num_batches, draw)
        if result.reason:
            return {"value": Undefined(result.reason)}
        threshold, why = _threshold(here)
        alone = Undefined("there is one mini-batch only")
        return {
            "value": result.value,
            "standard_error": result.standard_error if result.num_batches > 1 else alone,
            "batch_size": float(result.batch_size),
            "threshold": Undefined(why) if threshold is None else threshold,
            "edge_ratio": Undefined(why) if threshold is None else result.value / threshold,
        }


def _measure(loss: FullLoss, num_batches: int | None, draw: torch.Generator) -> BatchSharpnessResult:
    _check(num_batches)
    sizes = loss.data.sizes
    whole = [index for index, size in enumerate(sizes) if size == max(sizes)]  # a ragged last batch is another B
    chosen = [whole[i] for i in torch.randperm(len(whole), generator=draw)[:num_batches].tolist()]
    pairs = [_curvature_along_gradient(loss, index) for index in chosen]
    curvatures, squares = (np.asarray(column) for column in zip(*pairs, strict=True))
    size, count = max(sizes), len(chosen)
    if not (np.isfinite(curvatures).all() and np.isfinite(squares).all()):
        return BatchSharpnessResult(math.nan, math.nan, size, count, "a gradient or its curvature is not finite")
    if squares.mean() == 0.0:
        return BatchSharpnessResult(math.nan, math.nan, size, count, "every mini-batch gradient is zero")
    value = float(curvatures.mean() / squares.mean())
    error = math.nan
    if count > 1:
        error = float(np.std(curvatures - value * squares, ddof=1) / math.sqrt(count) / squares.mean())
    return BatchSharpnessResult(value, error, size, count, "")


def _curvature_along_gradient(loss: FullLoss, index: int) -> tuple[float, float]:
    """g_Bᵀ H_B g_B and ‖g_B‖² of one mini-batch."""
    gradient = loss.gradient(batches=[index])
    hessian = HessianOperator(loss, batches=[index], memory_limit=0)
    return _dot(gradient, hessian @ gradient), _dot(gradient, gradient)


def _threshold(here: Here) -> tuple[float | None, str]:
    """2/η less the L2 term, or why there is no number to compare with: there is one for SGD without momentum."""
    if not here.optimizers or any(kind_of(optimizer) is not torch.optim.SGD for optimizer in here.optimizers):
        return None, "2/η is what SGD's batch sharpness is compared with, and the optimizer is another one"
    if any(group["momentum"] for optimizer in here.optimizers for group in optimizer.param_groups):
        return None, "with momentum the batch sharpness is not compared with 2/η"
    stability = stability_of(here.optimizers, here.walked())
    return stability.threshold, stability.reason


def _dot(first: Tensor, second: Tensor) -> float:
    return float(first.to(torch.float64) @ second.to(torch.float64))


def _check(num_batches: int | None) -> None:
    if num_batches is not None and (
        isinstance(num_batches, bool) or not isinstance(num_batches, int) or num_batches < 1
    ):
        raise InputError(f"num_batches={num_batches!r}: at least one mini-batch, or None for all.")
