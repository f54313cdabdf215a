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
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sgdwalk.records import EXACT_LOOK

MISSES = 0.05
"""Share of the intervals that may miss, over both looks and all points together."""
LOOKS = EXACT_LOOK - 1
"""Looks at samples; the one after them is exact."""
AIMS = (0.9, 0.75)
"""Shares of the tolerated half-width that the looks are planned for. The second is the last before the exact look, and
is planned by what the first look saw."""
GROWTH = 2
"""The second look has at least so many times the units of the first, as far as there are as many; a first one that
would have more than so many times the fewest at the second level leaves them to it."""
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
CHANCE = 1.5
"""Half-width that a second look may promise, in units of the tolerated one: what the first saw may be too large."""

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
    """Standard deviations of the two levels between the units drawn, times their number.  # (2, points)"""
    shapes: float
    """As how many independent ones the errors at all points count: they have nearly one shape along a segment."""

    def at(self, points: NDArray[np.intp], elsewhere: Estimate) -> Estimate:
        """This one at some points, and another at those where it has too little."""
        here = np.isin(np.arange(len(self.losses)), points)
        return Estimate(
            np.where(here, self.losses, elsewhere.losses),
            np.where(here, self.deviation, elsewhere.deviation),
            np.where(here, self.degrees, elsewhere.degrees),
            np.where(here, self.spreads, elsewhere.spreads),
            elsewhere.shapes,
        )


@dataclass(frozen=True)
class Outcome:
    """What the looks found."""

    losses: Array
    """Estimated L at every point of the grid.  # (points,)"""
    halfwidths: Array
    """Of the simultaneous interval; 0 at the ends.  # (points,)"""
    looks: int
    accepted: bool
    """Whether the height is known as well as wanted; if not, :func:`exact_look` is needed."""
    spread: tuple[float, float]
    """Of each level, the largest over the points of its standard deviation between units, times their number, in units
    of what the loss at the point may be wrong by: as much as the height, and the more the higher above the floor."""

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.losses).all() and np.isfinite(self.halfwidths).all())


def nodes(num_points: int) -> tuple[int, int, int]:
    """The points through which the middle level runs: the ends and the point at or next below the middle.

    >>> nodes(10), nodes(5)
    ((0, 5, 10), (0, 2, 5))
    """
    return 0, num_points // 2, num_points


def estimate(chord: Array, certain: Array, first: Array, second: Array, num_random: int) -> Estimate:
    """L = Σ chord + Σ over certain units + M (mean of the first level + mean of the second level).

    With X = middle - chord on n₁ units drawn from M at random and Y = true - middle on the first n₂ of them, the
    variance is M² [s²(X) (1/n₁ - 1/M) + s²(Y) (1/n₂ - 1/M) + 2 cov(X, Y) (1/n₁ - 1/M)].

    Args:
        chord: L along the chord.  # (points,)
        certain: true - chord, summed over the units taken with certainty.  # (points,)
        first: X of the units drawn.  # (n₁, points)
        second: Y of the first n₂ of them.  # (n₂, points)
        num_random: M, the units among which was drawn.

    >>> import numpy as np
    >>> whole = estimate(np.ones(1), np.zeros(1), np.full((4, 1), 0.5), np.full((4, 1), -0.25), 4)
    >>> float(whole.losses[0]), float(whole.deviation[0])
    (2.0, 0.0)
    """
    n1, n2 = len(first), len(second)
    total = chord + certain + num_random * (first.mean(axis=0) + second.mean(axis=0))
    away = second - second.mean(axis=0)
    covariance = (away * first[:n2]).sum(axis=0) / (n2 - 1)
    square = num_random**2
    part1 = square * first.var(axis=0, ddof=1) * (1 / n1 - 1 / num_random)
    part2 = square * (
        (away**2).sum(axis=0) / (n2 - 1) * (1 / n2 - 1 / num_random) + 2 * covariance * (1 / n1 - 1 / num_random)
    )
    variance = np.maximum(part1 + part2, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = variance**2 / (part1**2 / (n1 - 1) + part2**2 / (n2 - 1))
    degrees = np.where(variance > 0, np.clip(degrees, n2 - 1, n1 + n2 - 2), n2 - 1)
    errors = np.concatenate([(first - first.mean(axis=0)) / math.sqrt(n1 * (n1 - 1)), away / math.sqrt(n2 * (n2 - 1))])
    spreads = num_random * np.array([level.std(axis=0, ddof=1) for level in (first, second)])
    return Estimate(total, np.sqrt(variance), degrees, spreads, num_shapes(errors))


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
    """Sizes for the first look: n ∝ sqrt(variance / cost) of each level, as earlier steps had them.

    Args:
        spreads: :attr:`Outcome.spread` of earlier steps.
        num_units: U.
        num_points: intervals of the grid.
    """
    if not spreads:
        return smallest(num_units)
    spread1, spread2 = np.quantile(np.asarray(spreads), PLANNED_FOR, axis=0)
    small = smallest(num_units)
    sizes = sizes_for(float(spread1), float(spread2), num_units, num_points, AIMS[0])
    if sizes.second > GROWTH * small.second:  # a few tell at which points of the grid the others are needed
        takes_all = sizes.certain + sizes.first >= num_units
        sizes = small._replace(first=num_units - small.certain if takes_all else sizes.first)
    return sizes if fits(sizes, num_units) else small


def sizes_for(
    spread1: float,
    spread2: float,
    num_units: int,
    num_points: int,
    aim: float,
    *,
    num_inside: int | None = None,
    certain: int | None = None,
) -> Sizes:
    """The cheapest sizes whose half-width is ``aim`` of the tolerated one where the levels spread so; see :func:`plan`.

    ``num_inside``: points at which a unit of the second level is evaluated; all but the nodes where not given.
    ``certain``: units taken with certainty, where that is decided.

    Where all units are alike the smallest look does:

    >>> sizes_for(0.0, 0.0, 450, 10, 0.9) == smallest(450)
    True
    """
    sizes = smallest(num_units)
    cost = max(1, num_points - 2 if num_inside is None else num_inside)  # of the second level, in those of the first
    first, second = sizes.first, sizes.second
    for _ in range(4):  # the quantile depends on the sizes
        part1, part2 = spread1**2 * max(0.0, 1 / first - 1 / num_units), spread2**2 / second
        degrees = (part1 + part2) ** 2 / (part1**2 / (first - 1) + part2**2 / (second - 1)) if part1 + part2 else 1.0
        wanted = (aim / float(quantile(max(degrees, second - 1), min(SHAPES, num_points - 1)))) ** 2
        common = (spread1 + math.sqrt(cost) * spread2) / (wanted + (spread1**2 + spread2**2) / num_units)
        second = max(sizes.second, math.ceil(spread2 * common / math.sqrt(cost)))
        first = max(sizes.first, math.ceil(spread1 * common), second)
        if first > num_units - _certain(second, certain):  # with all units the first level adds no variance
            second = max(sizes.second, math.ceil(spread2**2 / (wanted + spread2**2 / num_units)))
            first = max(num_units - _certain(second, certain), second)
    return Sizes(_certain(second, certain), first, second)


def _certain(second: int, decided: int | None = None) -> int:
    """Units taken with certainty beside so many at random at the second level, where it is not decided."""
    return -(-second // 3) if decided is None else decided


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
        What was found, or None where the sample would be more than half of the units: the exact losses cost no more.
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
        num_inside = len(inside) - int(nodes(num_points)[1] in inside)
        more1, more2 = second_look(outcome.spread, n1, n2, certain, num_units, num_points, num_inside)
        if _promises(outcome.spread, (more1, more2), len(drawn), num_points):
            first = np.concatenate([first, levels.middle_minus_chord(drawn[n1:more1])])
            second = np.concatenate([second, levels.true_minus_middle(drawn[n2:more2], inside)])
            everywhere = estimate(chord, known, first, second[:n2], len(drawn))
            found = estimate(chord, known, first, second, len(drawn)).at(inside, everywhere)
            outcome = _outcome(found, 2, tolerance, loss_noise)
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

    >>> seen = Outcome(np.array([1.0, 0.5, 0.4, 0.9]), np.array([0.0, 0.2, 0.05, 0.0]), 2, False, (9.0, 9.0))
    >>> found = exact_look(seen, [1.0, 0.31, 0.42, 0.9].__getitem__)
    >>> found.losses.tolist(), found.halfwidths.round(9).tolist()
    ([1.0, 0.31, 0.4, 0.9], [0.0, 0.0, 0.09, 0.0])
    """
    losses, halfwidths = outcome.losses.copy(), outcome.halfwidths.copy()
    while len(left := contenders(losses, halfwidths)) and np.isfinite(losses).all():
        point = int(left[(losses - halfwidths)[left].argmin()])
        losses[point], halfwidths[point] = loss_at(point), 0.0
    return replace(outcome, losses=losses, halfwidths=widened(losses, halfwidths), looks=EXACT_LOOK)


def second_look(
    spread: tuple[float, float], n1: int, n2: int, certain: int, num_units: int, num_points: int, num_inside: int
) -> tuple[int, int]:
    """Units at random at both levels of the second look: what the spread seen asks for, as far as there are as many."""
    wanted = sizes_for(*spread, num_units, num_points, AIMS[1], num_inside=num_inside, certain=certain)
    most1, most2 = num_units - certain, num_units // 2 - certain
    return min(most1, max(GROWTH * n1, wanted.first)), max(n2, min(most2, max(GROWTH * n2, wanted.second)))


def _outcome(found: Estimate, look: int, tolerance: float, loss_noise: float) -> Outcome:
    losses, interior = found.losses, slice(1, -1)
    halfwidths = np.zeros_like(losses)
    width = quantile(found.degrees[interior], found.shapes) * found.deviation[interior]
    halfwidths[interior] = width + 2 * loss_noise
    low, high = floor_interval(losses, halfwidths)
    floor = losses.min()
    height = (losses[0] - floor + losses[-1] - floor) / 2
    tolerated = max(tolerance * height, 4 * loss_noise)
    accepted = bool((high - low) / 2 <= tolerated)
    spread = (found.spreads / allowed(losses, tolerated))[:, interior].max(axis=1) if tolerated > 0 else np.zeros(2)
    return Outcome(losses, halfwidths, look, accepted, (float(spread[0]), float(spread[1])))


def allowed(losses: Array, tolerated: float) -> Array:
    """By how much each loss may be wrong: the floor's as the height, and others by as much more as they lie above it.

    The bounds of the floor may lie twice the tolerated half-width apart; of that, its own upper bound takes half, and
    nothing where the floor is an end, which is exact.
    """
    floor = losses.min()
    return losses - floor + tolerated * (1 if floor < min(losses[0], losses[-1]) else 2)


def _promises(spread: tuple[float, float], sizes: tuple[int, int], num_random: int, num_points: int) -> bool:
    """Whether a look of these sizes has a fair chance of being accepted, judged by the spread seen."""
    variance = sum(one**2 * (1 / size - 1 / num_random) for one, size in zip(spread, sizes, strict=True))
    return float(quantile(sizes[1] - 1, min(SHAPES, num_points - 1))) * math.sqrt(variance) <= CHANCE
