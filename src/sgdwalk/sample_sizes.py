"""How many units a look takes at each level: the fewest evaluations by which the height is known as well as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgdwalk.multilevel import Array, quantile, welch

AIMS = (0.9, 0.65)
"""Shares of the tolerated half-width that the looks are planned for. The second is the last before the exact look, and
is planned by what the first look saw."""
AT_FIRST = 2
"""So many times the fewest units a first look has at the second level at most: what it sees tells where others are
needed."""
SHAPES = 3.0
"""Effective number of points (see :func:`sgdwalk.multilevel.num_shapes`) that looks are planned for."""
NOTABLE = 3.5
"""Standard deviations above the median from which a sign tells that a unit is none like the others; made of the median
deviation, which the others alone decide (B. Iglewicz and D. C. Hoaglin, "How to Detect and Handle Outliers", 1993)."""
OUTSTANDING = 5.0
"""Times the median from which a sign makes a unit stand out; at most one unit in forty does."""
FEWEST = 6
"""Units drawn at random for the second level, at least; the first level has twice as many."""
NEARLY_ALL = 0.8
"""Share of the units from which a second look takes all of them at a point: then it is exact there."""


class Sizes(NamedTuple):
    """Units of a look: at most so many with certainty, at random at the first level, and of those at the second."""

    certain: int
    first: int
    second: NDArray[np.intp]
    """At each point of the grid.  # (points,)"""


def smallest(num_units: int, num_points: int) -> Sizes:
    """The sizes of a look where the levels hardly differ between units, and where nothing is known yet."""
    second = max(FEWEST, num_units // 80)
    return Sizes(-(-second // 3), max(2 * FEWEST, num_units // 16), np.full(num_points + 1, second))


def plan(spreads: Sequence[Array], leeway: Array, num_units: int) -> Sizes:
    """Sizes for the first look: the cheapest, with levels that spread as at earlier steps.

    Args:
        spreads: :attr:`Outcome.spreads` of earlier steps.
        leeway: :meth:`Wanted.leeway` of this one, as far as the chord tells: it has the floor nearly where L has it.
            # (points,)
        num_units: U.

    Where the loss lies high fewer units do:

    >>> leeway = np.array([20.0, 5.0, 1.0, 5.0, 20.0])
    >>> plan([np.array([[0.0] * 5, [0.0, 1.5, 1.0, 1.5, 0.0]])], leeway, 450)
    Sizes(certain=2, first=28, second=array([ 6,  6, 12,  6,  6]))
    """
    small = smallest(num_units, len(leeway) - 1)
    if not spreads or len(leeway) <= 2:
        return small
    inside, second = slice(1, -1), small.second.copy()
    spread = np.sqrt(np.square(spreads).mean(axis=0))[:, inside] / leeway[inside]  # few units seldom show heavy tails
    first, second[inside] = sizes_for(spread, num_units, AIMS[0], small.first, second[inside])
    second = np.minimum(second, AT_FIRST * small.second)
    sizes = Sizes(small.certain, min(max(first, int(second.max())), num_units - small.certain), second)
    return sizes if fits(sizes, num_units) else small


def second_look(spreads: Array, n1: int, n2: NDArray[np.intp], num_random: int) -> tuple[int, NDArray[np.intp]]:
    """Units at random of the second look, at the first level and at the second at each point that is open.

    Args:
        spreads: that were seen at the points of which more is to be known.  # (2, open points)
        n1: units at the first level that are evaluated.
        n2: units at the second level that are evaluated at these points.
        num_random: M, the units that may be drawn.
    """
    first, seconds = sizes_for(spreads, num_random, AIMS[1], n1, n2)
    seconds[seconds > NEARLY_ALL * num_random] = num_random
    return max(first, int(seconds.max())), seconds


def sizes_for(
    spreads: Array, num_units: int, aim: float, first: int, second: ArrayLike
) -> tuple[int, NDArray[np.intp]]:
    """The cheapest sizes that make the half-width ``aim`` of the tolerated one at every point.

    A unit costs one evaluation at the first level, and one at each point at which it belongs to the second.

    Args:
        spreads: of both levels at the points, in units of what the loss there may be wrong by.  # (2, points)
        num_units: U.
        aim: share of the tolerated half-width.
        first: units at the first level, at least.
        second: units at the second level, at least, at every point or at each.

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
    others = np.full((len(ones), spreads.shape[1]), second, float)
    part1 = square1 * np.maximum(1 / ones - 1 / num_units, 0.0)
    for _ in range(4):  # the quantile depends on the sizes
        part2 = square2 / others
        with np.errstate(invalid="ignore", divide="ignore"):
            degrees = welch(part1, ones, part2, others)
            wanted = (aim / quantile(np.fmax(degrees, others - 1), min(SHAPES, spreads.shape[1]))) ** 2
            left = wanted - part1 + square2 / num_units
            others = np.clip(np.where(left > 0, np.ceil(square2 / left), num_units), second, num_units)
    best = (np.fmax(ones[:, 0], others.max(axis=1)) + others.sum(axis=1)).argmin()
    return int(ones[best, 0]), others[best].astype(np.intp)


def fits(sizes: Sizes, num_units: int) -> bool:
    """Whether a sample of these sizes can be drawn, and costs clearly less than the exact losses."""
    return 2 * (sizes.certain + sizes.second.max()) <= num_units and sizes.certain + sizes.first <= num_units


def with_certainty(signs: Array, most: int) -> int:
    """How many units are taken with certainty, those with the largest signs: as far as they tell anything, ``most`` of
    them, and all that are :func:`outstanding`.

    >>> alike = np.linspace(1.0, 1.5, 100)
    >>> with_certainty(alike, 2), with_certainty(np.append(alike, 2.0), 2)
    (0, 1)
    """
    above = signs - np.median(signs)
    notable = above > NOTABLE * 1.4826 * np.median(np.abs(above))
    return max(min(most, int(notable.sum())), outstanding(signs))


def outstanding(signs: Array) -> int:
    """How many units stand out by their signs: a sample would hardly meet them, and they may hold most of the error.

    >>> outstanding(np.array([1.0] * 97 + [9.0, 9.0, 2.0])), outstanding(np.ones(100))
    (2, 0)
    """
    return min(int((signs > OUTSTANDING * np.median(signs)).sum()), len(signs) // 40)
