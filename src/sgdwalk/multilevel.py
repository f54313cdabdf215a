"""The mean loss along a segment from a few of its units: estimate, band, and how many units to look at.

A unit is a part of the data whose loss can be evaluated alone. Every unit's loss is known along the chord of its
outputs (through both ends of the segment); what the chord misses is found on samples, in two levels: middle - chord,
where the middle runs through one more node, and true - middle. Nothing here knows where the values come from.

Shares: a unit's values are its sum of losses divided by the count of all data, so that L is their sum over units.

Sources: M. B. Giles, "Multilevel Monte Carlo methods", Acta Numerica 24 (2015), for the levels; W. G. Cochran,
"Sampling Techniques", 3rd edition (1977), chapters 2 and 12, for finite populations and nested samples; B. L. Welch,
Biometrika 34 (1947), for the degrees of freedom; N. W. Galwey, Genetic Epidemiology 33 (2009), for the effective number
of tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sgdwalk.records import EXACT_LOOK

MISSES = 0.05
"""Share of the intervals that may miss, over both looks and all points together."""
LOOKS = EXACT_LOOK - 1
"""Looks at samples; the one after them is exact."""
AIMS = (0.9, 0.65)
"""Shares of the tolerated half-width that the looks are planned for. The second is the last before the exact look, and
is planned by what the first look saw."""
AT_FIRST = 2
"""So many times the fewest units a first look has at the second level at most; nor may it cost more than a pass there,
but for the fewest. What it sees tells where in the grid others are needed."""
CAUTION = 1.5
"""Times the effective number of points: it is itself estimated from few units, which see too few shapes."""
SHAPES = 3.0
"""Effective number of points (see :func:`num_shapes`) that looks are planned for."""
PLANNED_FOR = 0.5
"""Share of the steps remembered whose spread between units the first look is planned for."""
OUTSTANDING = 5.0
"""Times the median from which a sign makes a unit stand out; at most one unit in forty does."""
FEWEST = 6
"""Units drawn at random for the second level, at least; the first level has twice as many."""
WIDER = 3.0
"""Times the half-width that Student's t gives, where a point lies so high that it does not matter; see
:func:`widened`."""
NEARLY_ALL = 0.8
"""Share of the units from which a second look takes all of them at a point: then it is exact there."""
WORTHWHILE = 0.75
"""Share of the units that a second look takes at most, on average over the points that may be the floor: the exact look
evaluates one of these points after the other, and may stop early."""

NUM_NODES = 3
"""Points through which the outputs are interpolated at the middle level."""
NEAREST_NODE = 0.3
"""To an end the node between them is not nearer, as a share of the segment; in the middle where no point is so far."""

Array = NDArray[np.float64]


class Sizes(NamedTuple):
    """How many units a look takes: with certainty, and at random at each level, the second's among the first's."""

    certain: int
    first: int
    second: int


class Levels(Protocol):
    """The differences between the levels of given units, as shares; every row is by increasing α, zero at its nodes."""

    def middle_minus_chord(self, units: NDArray[np.intp]) -> Array: ...  # (units, points)

    def true_minus_middle(self, units: NDArray[np.intp], inside: NDArray[np.intp]) -> Array:  # (units, points)
        """At the points ``inside``; zero at the others."""
        ...


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


@dataclass(frozen=True)
class Outcome:
    """What the looks found."""

    losses: Array
    """Estimated L at every point of the grid.  # (points,)"""
    halfwidths: Array
    """Of the simultaneous interval; 0 at the ends, and where all units were evaluated.  # (points,)"""
    looks: int
    accepted: bool
    """Whether the height is known as well as wanted; if not, :func:`exact_look` is needed."""
    spreads: Array
    """:attr:`Estimate.spreads` in units of what the loss at the point may be wrong by: as much as the height, and the
    more the higher above the floor; 0 at the ends.  # (2, points)"""

    @property
    def spread(self) -> tuple[float, float]:
        """Of each level the largest over the points: what later first looks are planned by."""
        one, other = self.spreads.max(axis=1)
        return float(one), float(other)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.losses).all() and np.isfinite(self.halfwidths).all())


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
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = variance**2 / (part1**2 / (n1 - 1) + part2**2 / (n2 - 1))
    degrees = np.where(variance > 0, np.clip(degrees, n2 - 1, n1 + n2 - 2), n2 - 1)
    of_units = [(first - first.mean(axis=0)) * math.sqrt((1 / n1 - 1 / num_random) / (n1 - 1))]
    of_units.append(away * np.sqrt((1 / n2 - 1 / num_random) / (n2 - 1)))
    spreads = np.sqrt([np.maximum(of_first + 2 * covariance, 0.0), of_second])
    complete = (n2 == num_random) & (n1 == num_random)
    return Estimate(total, np.sqrt(variance), degrees, spreads, num_shapes(np.concatenate(of_units)), complete)


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


def floor_interval(losses: Array, halfwidths: Array) -> tuple[float, float]:
    """The floor lies between the lowest lower and the lowest upper bound: the minimum is monotone in every loss."""
    return float((losses - halfwidths).min()), float((losses + halfwidths).min())


def contenders(losses: Array, halfwidths: Array) -> NDArray[np.intp]:
    """The points whose loss is not known exactly and may be the floor.

    >>> contenders(np.array([1.0, 0.5, 0.4, 0.9]), np.array([0.0, 0.2, 0.05, 0.1])).tolist()
    [1, 2]
    """
    return np.flatnonzero((halfwidths > 0) & (losses - halfwidths <= (losses + halfwidths).min()))


def smallest(num_units: int) -> Sizes:
    """The sizes of a look where the levels hardly differ between units, and where nothing is known yet."""
    second = max(FEWEST, num_units // 80)
    return Sizes(_certain(second), max(2 * FEWEST, num_units // 16), second)


def plan(spreads: Sequence[tuple[float, float]], num_units: int, num_points: int) -> Sizes:
    """Sizes for the first look: the cheapest, with levels that spread as at earlier steps.

    Args:
        spreads: :attr:`Outcome.spread` of earlier steps.
        num_units: U.
        num_points: intervals of the grid.
    """
    small = smallest(num_units)
    if not spreads:
        return small
    spread = np.quantile(np.asarray(spreads), PLANNED_FOR, axis=0)
    inside = max(1, num_points - 2)  # points at which a unit of the second level is evaluated
    first, seconds = sizes_for(np.tile(spread[:, None], inside), num_units, AIMS[0], small.first, small.second)
    second = min(int(seconds[0]), max(small.second, min(AT_FIRST * small.second, num_units // inside)))
    certain = _certain(second)
    sizes = Sizes(certain, min(max(first, second), num_units - certain), second)
    return sizes if fits(sizes, num_units) else small


def sizes_for(spreads: Array, num_units: int, aim: float, first: int, second: int) -> tuple[int, NDArray[np.intp]]:
    """The cheapest sizes that make the half-width ``aim`` of the tolerated one at every point.

    A unit costs one evaluation at the first level, and one at each point at which it belongs to the second.

    Args:
        spreads: of both levels at the points, as in :attr:`Outcome.spreads`.  # (2, points)
        num_units: U.
        aim: share of the tolerated half-width.
        first: units at the first level, at least.
        second: units at the second level, at least.

    Returns:
        Units at the first level, and at the second at each point.

    Where all units are alike the smallest do:

    >>> sizes_for(np.zeros((2, 3)), 450, 0.9, 28, 6)
    (28, array([6, 6, 6]))

    Where the second level alone differs, each point has what it asks for:

    >>> sizes_for(np.array([[0.0, 0.0], [1.0, 8.0]]), 450, 0.9, 28, 6)
    (28, array([ 12, 250]))
    """
    square1, square2 = spreads**2
    ones = np.unique(np.ceil(np.geomspace(first, max(first, num_units), 24)))[:, None]  # tried, each with its others
    others = np.full((len(ones), spreads.shape[1]), float(second))
    part1 = square1 * np.maximum(1 / ones - 1 / num_units, 0.0)
    for _ in range(4):  # the quantile depends on the sizes
        part2 = square2 / others
        with np.errstate(invalid="ignore", divide="ignore"):
            degrees = (part1 + part2) ** 2 / (part1**2 / (ones - 1) + part2**2 / (others - 1))
            wanted = (aim / quantile(np.fmax(degrees, others - 1), min(SHAPES, spreads.shape[1]))) ** 2
            left = wanted - part1 + square2 / num_units
            others = np.clip(np.where(left > 0, np.ceil(square2 / left), num_units), second, num_units)
    best = (np.fmax(ones[:, 0], others.max(axis=1)) + others.sum(axis=1)).argmin()
    return int(ones[best, 0]), others[best].astype(np.intp)


def _certain(second: int) -> int:
    """Units taken with certainty beside so many at random at the second level."""
    return -(-second // 3)


def fits(sizes: Sizes, num_units: int) -> bool:
    """Whether a sample of these sizes can be drawn, and costs clearly less than the exact losses."""
    return 2 * (sizes.certain + sizes.second) <= num_units and sizes.certain + sizes.first <= num_units


def outstanding(signs: Array) -> int:
    """How many units stand out by their signs: a sample would hardly meet them, and they may hold most of the error.

    >>> import numpy as np
    >>> outstanding(np.array([1.0] * 97 + [9.0, 9.0, 2.0])), outstanding(np.ones(100))
    (2, 0)
    """
    return min(int((signs > OUTSTANDING * np.median(signs)).sum()), len(signs) // 40)


def certify(
    levels: Levels,
    chord: Array,
    signs: Array,
    sizes: Sizes,
    *,
    tolerance: float,
    loss_noise: float,
    random: np.random.Generator,
) -> Outcome | None:
    """Look at samples until the half-width of the height is at most max(tolerance · height, 4 loss noise).

    Args:
        levels: evaluates the units asked for.
        chord: L along the chord, the ends as they are.  # (points,)
        signs: for each unit how much its levels may differ; where it is largest they are taken with certainty.  # (U,)
        sizes: of the first look.
        tolerance: relative, on the height.
        loss_noise: rounding error of a loss, nats per example; every interval is wider by twice that.
        random: draws the units.

    Returns:
        What was found, or None where the first sample would be more than half of the units: the exact losses cost no
        more.
    """
    num_units, num_points = len(signs), len(chord) - 1
    certain = max(sizes.certain, outstanding(signs))
    sizes = sizes._replace(certain=certain, first=min(sizes.first, num_units - certain))
    if not fits(sizes, num_units):
        return None
    order = np.argsort(-signs, kind="stable")
    surely, drawn = order[:certain], random.permutation(order[certain:])
    n1, n2 = sizes.first, sizes.second
    middle = levels.middle_minus_chord(np.concatenate([surely, drawn[:n1]]))
    n2 = max(n2, min(n1, num_units // 2 - certain, math.ceil(kurtosis(middle[certain:]))))
    true = levels.true_minus_middle(np.concatenate([surely, drawn[:n2]]), np.arange(1, num_points))
    known = middle[:certain].sum(axis=0) + true[:certain].sum(axis=0)
    first, second = middle[certain:], true[certain:]
    outcome = _outcome(estimate(chord, known, first, second, len(drawn)), 1, tolerance, loss_noise)
    if outcome.finite and not outcome.accepted:
        inside = contenders(outcome.losses, outcome.halfwidths)  # the height does not depend on the others
        more1, more2 = second_look(outcome.spreads[:, inside], n1, n2, len(drawn))
        if more2.mean() <= WORTHWHILE * len(drawn):
            first = np.concatenate([first, levels.middle_minus_chord(drawn[n1:more1])])
            counts = np.full(num_points + 1, n2)
            counts[inside] = more2
            for low, high in pairwise(np.unique([n2, *more2])):
                further = levels.true_minus_middle(drawn[low:high], inside[more2 >= high])
                second = np.concatenate([second, further])
            found = estimate(chord, known, first, second, len(drawn), counts)
            outcome = _outcome(found, 2, tolerance, loss_noise, outcome)
    if outcome.finite and outcome.accepted:
        outcome = replace(outcome, halfwidths=widened(outcome.losses, outcome.halfwidths))
    return outcome


def widened(losses: Array, halfwidths: Array) -> Array:
    """Half-widths that are larger where it costs nothing: few units may not show how far others lie off.

    An interval becomes ``WIDER`` times as wide as it is, as far as neither the floor nor a barrier that is decided, at
    any point, comes to be in doubt.

    >>> widened(np.array([1.0, 0.5, 0.4, 0.9]), np.array([0.0, 0.02, 0.05, 0.0])).round(9).tolist()
    [0.0, 0.05, 0.05, 0.0]
    """
    room = losses - (losses + halfwidths).min()
    to_barrier = np.abs(losses - np.maximum(losses[0], losses[-1]))
    room = np.where(halfwidths <= to_barrier, np.minimum(room, to_barrier), room)
    return np.maximum(halfwidths, np.minimum(WIDER * halfwidths, (1 - 1e-9) * room))  # less for rounding


def exact_look(outcome: Outcome, loss_at: Callable[[int], float]) -> Outcome:
    """Give every point that may be the floor its exact loss, the likeliest first: then floor and height are exact, if
    the intervals of the others hold. Ends at a loss that is not finite.

    >>> seen = Outcome(np.array([1.0, 0.5, 0.4, 0.9]), np.array([0.0, 0.2, 0.05, 0.0]), 2, False, np.zeros((2, 4)))
    >>> found = exact_look(seen, [1.0, 0.31, 0.42, 0.9].__getitem__)
    >>> found.losses.tolist(), found.halfwidths.round(9).tolist()
    ([1.0, 0.31, 0.4, 0.9], [0.0, 0.0, 0.09, 0.0])
    """
    losses, halfwidths = outcome.losses.copy(), outcome.halfwidths.copy()
    while len(left := contenders(losses, halfwidths)) and np.isfinite(losses).all():
        point = int(left[(losses - halfwidths)[left].argmin()])
        losses[point], halfwidths[point] = loss_at(point), 0.0
    return replace(outcome, losses=losses, halfwidths=widened(losses, halfwidths), looks=EXACT_LOOK)


def second_look(spreads: Array, n1: int, n2: int, num_random: int) -> tuple[int, NDArray[np.intp]]:
    """Units at random of the second look, at the first level and at the second at each point that may be the floor.

    Args:
        spreads: that were seen at these points.  # (2, points that may be the floor)
        n1: units at the first level that are evaluated.
        n2: units at the second level that are evaluated.
        num_random: M, the units that may be drawn.
    """
    first, seconds = sizes_for(spreads, num_random, AIMS[1], n1, n2)
    seconds[seconds > NEARLY_ALL * num_random] = num_random
    return max(first, int(seconds.max())), seconds


def _outcome(found: Estimate, look: int, tolerance: float, loss_noise: float, before: Outcome | None = None) -> Outcome:
    """What a look found; at each point its interval or that of the look before, for both hold: the narrower."""
    losses, interior = found.losses, slice(1, -1)
    width = quantile(found.degrees, found.shapes) * found.deviation + 2 * loss_noise
    halfwidths = np.where(found.complete, 0.0, width)
    halfwidths[[0, -1]] = 0.0
    if before is not None:
        losses = np.where(before.halfwidths < halfwidths, before.losses, losses)
        halfwidths = np.minimum(before.halfwidths, halfwidths)
    low, high = floor_interval(losses, halfwidths)
    floor = losses.min()
    height = (losses[0] - floor + losses[-1] - floor) / 2
    tolerated = max(tolerance * height, 4 * loss_noise)
    accepted = bool((high - low) / 2 <= tolerated)
    spreads = np.zeros_like(found.spreads)
    if tolerated > 0:
        spreads[:, interior] = (found.spreads / allowed(losses, tolerated))[:, interior]
    return Outcome(losses, halfwidths, look, accepted, spreads)


def allowed(losses: Array, tolerated: float) -> Array:
    """By how much each loss may be wrong: the floor's as the height, and others by as much more as they lie above it.

    The bounds of the floor may lie twice the tolerated half-width apart; of that, its own upper bound takes half, and
    nothing where the floor is an end, which is exact.
    """
    floor = losses.min()
    return losses - floor + tolerated * (1 if floor < min(losses[0], losses[-1]) else 2)
