"""The full loss along a segment, exactly: every point of the grid over all evaluation batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sgdwalk.objective import NOISE_BATCHES, FullLoss, LossSums, as_sums, is_out_of_memory
from sgdwalk.params import lerp_into
from sgdwalk.records import NAN, SegmentPoint
from sgdwalk.shared_layer import NotShared, SharedLayer, find_shared_layer


def grid(num_points: int) -> list[float]:
    """α = k / num_points for k = 0 … num_points (the paper's grid has 10 intervals)."""
    return [k / num_points for k in range(num_points + 1)]


def exact_segment(
    full_loss: FullLoss, start: Sequence[Tensor], end: Sequence[Tensor], num_points: int, known_start: LossSums | None
) -> list[LossSums]:
    """L at (1 - α) start + α end for every α of the grid; ``known_start`` saves the first of its evaluations.

    To be called inside ``full_loss.evaluating()``; afterwards the site stands at the segment's end.
    """
    alphas = [alpha for alpha in grid(num_points) if alpha > 0.0 or known_start is None]
    losses = losses_at(full_loss, start, end, alphas)
    return losses if known_start is None else [known_start, *losses]


def losses_at(
    full_loss: FullLoss, start: Sequence[Tensor], end: Sequence[Tensor], alphas: Sequence[float]
) -> list[LossSums]:
    """L at (1 - α) start + α end for every α given, over all evaluation batches.

    To be called inside ``full_loss.evaluating()``; afterwards the site stands at the last α.
    """
    try:
        shared = find_shared_layer(full_loss)
        if shared is not None and len(alphas) > 2:  # two products are what the layer's ends cost
            with contextlib.suppress(NotShared):
                return _with_shared_layer(full_loss, start, end, alphas, shared)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):  # where memory lacks, batches are cut below
            raise
    losses = []
    for alpha in alphas:
        lerp_into(full_loss.site.targets, start, end, alpha)
        losses.append(full_loss.sums())
    return losses


def _with_shared_layer(
    full_loss: FullLoss, start: Sequence[Tensor], end: Sequence[Tensor], alphas: Sequence[float], shared: SharedLayer
) -> list[LossSums]:
    """The same, batch group by batch group, so that a group's inputs and first outputs serve all points."""
    pairs: list[list[Any]] = [[] for _ in alphas]
    batches = ((full_loss.prepared(index), index) for index in range(len(full_loss.data)))
    with shared.installed(start, end):
        for group in shared.grouped(batches):
            for alpha, found in zip(alphas, pairs, strict=True):
                lerp_into(full_loss.site.targets, start, end, alpha)
                for batch, index in group:
                    shared.at(alpha, index, batch)
                    output, target = full_loss.forward(full_loss.site.module, batch)
                    found.append(full_loss.sum_and_count(output, target, full_loss.data.sizes[index]))
            shared.forget()
    return [as_sums(found) for found in pairs]


def loss_noise(
    full_loss: FullLoss, start: Sequence[Tensor], end: Sequence[Tensor], losses: Sequence[LossSums]
) -> float:
    """max over the grid of |L_used - L_float64| on the first evaluation batches; NaN where either is not finite.

    ``losses`` may be those of the first evaluation batches alone.
    """
    batches = min(NOISE_BATCHES, len(losses[0].sums))
    twin = full_loss.in_float64()
    differences = []
    for alpha, used in zip(grid(len(losses) - 1), losses, strict=True):
        lerp_into(twin.site.targets, start, end, alpha)
        differences.append(abs(used.first(batches).mean - twin.sums(batches).mean))
    return max(differences) if all(map(math.isfinite, differences)) else NAN


def as_points(losses: Sequence[LossSums]) -> tuple[SegmentPoint, ...]:
    """The losses as records, by increasing α."""
    return tuple(SegmentPoint(alpha, sums.mean) for alpha, sums in zip(grid(len(losses) - 1), losses, strict=True))
