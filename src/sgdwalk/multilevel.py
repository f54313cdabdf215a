"""The mean loss along a segment from a few units of the data: the estimate, and how far it may be off.

A unit is a part of the data whose loss can be evaluated alone. Every unit's loss is known along the chord of its
outputs (through both ends of the segment); what the chord misses is found on samples, in two levels: middle - chord,
where the middle runs through one more node, and true - middle. Nothing here knows where the values come from, nor how
many units to look at (:mod:`sgdwalk.sample_sizes`) and when to stop (:mod:`sgdwalk.looks`).

Shares: a unit's values are its sum of losses divided by the count of all data, so that L is their sum over units.

Sources: M. B. Giles, "Multilevel Monte Carlo methods", Acta Numerica 24 (2015), for the levels; W. G. Cochran,
"Sampling Techniques", 3rd edition (1977), chapters 2 and 12, for finite populations and nested samples; B. L. Welch,
Biometrika 34 (1947), for the degrees of freedom; N. W. Galwey, Genetic Epidemiology 33 (2009), for the effective number
of tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from sgdwalk.records import EXACT_LOOK

MISSES = 0.05
"""Share of the intervals that may miss, over both looks and all points together."""
LOOKS = EXACT_LOOK - 1
"""Looks at samples; the one after them is exact."""
CAUTION = 1.5
"""Times the effective number of points: it is itself estimated from few units, which see too few shapes."""

NUM_NODES = 3
"""Points through which the outputs are interpolated at the middle level."""
NEAREST_NODE = 0.3
"""To an end the node between them is not nearer, as a share of the segment; in the middle where no point is so far."""

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """L along the grid with the standard deviation of the estimate."""

    losses: Array
    deviation: Array
    degrees: Array
    """Degrees of freedom of the deviation, Welch's."""
    spreads: Array
    """Standard deviations between the units drawn, times their number: of what more units at the first level tell, and
    of the second level.  # (2, points)"""
    shapes: float
    """As how many independent ones the errors at all points count: they have nearly one shape along a segment."""
    complete: NDArray[np.bool_]
    """Whether all units were evaluated at the point."""


def middle_node(chord: Array) -> int:
    """The point through which the middle level runs, beside both ends: where the chord has its floor, if not too near
    an end to tell of the whole segment. There the first level tells the truth.

    >>> middle_node(np.array([3.0, 2.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    3
    >>> middle_node(np.linspace(1.0, 0.0, 11)), middle_node(np.zeros(3))
    (7, 1)
    """
    num_points = len(chord) - 1
    nearest = math.ceil(NEAREST_NODE * num_points)
    return int(np.clip(np.argmin(chord), nearest, max(nearest, num_points - nearest)))


def estimate(
    chord: Array, certain: Array, first: Array, second: Array, num_random: int, counts: NDArray[np.intp] | None = None
) -> Estimate:
    """L = Σ chord + Σ over certain units + M (mean of the first level + mean of the second level).

    With X = middle - chord on n₁ units drawn from M at random and Y = true - middle on the first n₂ of them, the
    variance is M² [(s²(X) + 2 cov(X, Y)) (1/n₁ - 1/M) + s²(Y) (1/n₂ - 1/M)], where s²(X) + 2 cov(X, Y) is
    s²(true - chord) - s²(Y): where the middle tells nothing of the truth, a larger n₁ tells nothing either.

    Args:
        chord: L along the chord.  # (points,)
        certain: true - chord, summed over the units taken with certainty.  # (points,)
        first: X of the units drawn.  # (n₁, points)
        second: Y of the first of them, zero from n₂ on.  # (largest n₂, points)
        num_random: M, the units among which was drawn.
        counts: n₂ at each point; where not given, that of all rows.  # (points,)

    >>> import numpy as np
    >>> whole = estimate(np.ones(1), np.zeros(1), np.full((4, 1), 0.5), np.full((4, 1), -0.25), 4)
    >>> float(whole.losses[0]), float(whole.deviation[0])
    (2.0, 0.0)
    """
    n1, n2 = len(first), np.full(len(chord), len(second)) if counts is None else counts
    mean = second.sum(axis=0) / n2
    total = chord + certain + num_random * (first.mean(axis=0) + mean)
    away = np.where(np.arange(len(second))[:, None] < n2, second - mean, 0.0)
    square = num_random**2
    covariance = square * (away * first[: len(second)]).sum(axis=0) / (n2 - 1)
    of_first, of_second = square * first.var(axis=0, ddof=1), square * (away**2).sum(axis=0) / (n2 - 1)
    part1 = of_first * (1 / n1 - 1 / num_random)
    part2 = of_second * (1 / n2 - 1 / num_random) + 2 * covariance * (1 / n1 - 1 / num_random)
    variance = np.maximum(part1 + part2, 0.0)
    degrees = np.where(variance > 0, np.clip(welch(part1, n1, part2, n2), n2 - 1, n1 + n2 - 2), n2 - 1)
    of_units = [(first - first.mean(axis=0)) * math.sqrt((1 / n1 - 1 / num_random) / (n1 - 1))]
    of_units.append(away * np.sqrt((1 / n2 - 1 / num_random) / (n2 - 1)))
    spreads = np.sqrt([np.maximum(of_first + 2 * covariance, 0.0), of_second])
    complete = (n2 == num_random) & (n1 == num_random)
    return Estimate(total, np.sqrt(variance), degrees, spreads, num_shapes(np.concatenate(of_units)), complete)


def welch(part1: Array, n1: ArrayLike, part2: Array, n2: ArrayLike) -> Array:
    """Degrees of freedom of a variance whose two parts are each known from a sample; NaN where both are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (part1 + part2) ** 2 / (part1**2 / np.subtract(n1, 1) + part2**2 / np.subtract(n2, 1))


def num_shapes(errors: Array) -> float:
    """Effective number of independent columns: (Σ √λ)² / Σ λ over the eigenvalues λ of their correlations.

    >>> import numpy as np
    >>> num_shapes(np.array([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]))  # one shape
    1.0
    >>> round(num_shapes(np.eye(4) - 0.25), 9)  # any three of these four are independent
    3.0
    """
    sizes = np.linalg.norm(errors, axis=0)
    if not np.isfinite(sizes).all() or not sizes.any():
        return 1.0
    singular = np.linalg.svd(errors[:, sizes > 0] / sizes[sizes > 0], compute_uv=False)
    return float(singular.sum() ** 2 / (singular**2).sum())


def quantile(degrees: Array | float, shapes: float) -> Array:
    """Student's quantile that makes the intervals of all points hold at once, at every look (Bonferroni)."""
    return stdtrit(degrees, 1 - MISSES / (2 * LOOKS * CAUTION * max(1.0, shapes)))


def kurtosis(values: Array) -> float:
    """Fourth moment of each column by the square of its second, the median over the columns that vary; at least 1.

    The second level has as many units at random as the first level has kurtosis: the heavier the tails, the more units
    it takes until a mean of them is as Student's t has it. The first level has more units, and shows them better.

    >>> kurtosis(np.array([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0], [0.0, -1.0]]))
    1.0
    """
    away = values - values.mean(axis=0)
    square = (away**2).mean(axis=0)
    varies = np.isfinite(square) & (square > 0)
    if not varies.any():
        return 1.0
    scaled = away[:, varies] / np.sqrt(square[varies])
    return float(np.median((scaled**4).mean(axis=0)))
