"""The full loss along a segment, exactly: every point of the grid over all evaluation batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sgdwalk.objective import NOISE_BATCHES, FullLoss, LossSums
from sgdwalk.params import lerp_into
from sgdwalk.records import NAN, SegmentPoint


def grid(num_points: int) -> list[float]:
    """α = k / num_points for k = 0 … num_points (the paper's grid has 10 intervals)."""
    return [k / num_points for k in range(num_points + 1)]


def exact_segment(
    full_loss: FullLoss, start: Sequence[Tensor], end: Sequence[Tensor], num_points: int, known_start: LossSums | None
) -> list[LossSums]:
    """L at (1 - α) start + α end for every α of the grid; ``known_start`` saves the first of its evaluations.

    To be called inside ``full_loss.evaluating()``; afterwards the site stands at the segment's end.
    """
    losses = []
    for alpha in grid(num_points):
        if alpha == 0.0 and known_start is not None:
            losses.append(known_start)
            continue
        lerp_into(full_loss.site.targets, start, end, alpha)
        losses.append(full_loss.sums())
    return losses


def loss_noise(
    full_loss: FullLoss, start: Sequence[Tensor], end: Sequence[Tensor], losses: Sequence[LossSums]
) -> float:
    """max over the grid of |L_used - L_float64| on the first evaluation batches; NaN where either is not finite."""
    batches = min(NOISE_BATCHES, len(full_loss.data))
    twin = full_loss.in_float64()
    differences = []
    for alpha, used in zip(grid(len(losses) - 1), losses, strict=True):
        lerp_into(twin.site.targets, start, end, alpha)
        differences.append(abs(used.first(batches).mean - twin.sums(batches).mean))
    return max(differences) if all(map(math.isfinite, differences)) else NAN


def as_points(losses: Sequence[LossSums]) -> tuple[SegmentPoint, ...]:
    """The losses as records, by increasing α."""
    return tuple(SegmentPoint(alpha, sums.mean) for alpha, sums in zip(grid(len(losses) - 1), losses, strict=True))
