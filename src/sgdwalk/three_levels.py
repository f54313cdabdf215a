"""The mean loss along a segment from a sample of units alone, ends included: three levels, one within the other.

Of n₀ units drawn at random the losses along the chord of their outputs (through both ends) are evaluated; on n₁ of
these what the middle level adds, on n₂ of those what the truth adds to that. Nothing is known of the other units, so
the cost is what the spread between units asks for, however many there are.

The loss itself differs much between units, what a step does to it far less. So height and barrier are not taken from
the intervals of the losses: the same estimate and the same variance are those of any weighted sum of the losses along
a segment, such as D_k = (L_0 + L_K)/2 - L_k, whose maximum over k is the height, and L_k - L_0 and L_k - L_K, from
which the barrier follows.

Shares: a unit's values are its sum of losses divided by the count of all data, so that L is their sum over all units.

Sources: those of :mod:`sgdwalk.multilevel`; J. Neyman, JASA 33 (1938), and W. G. Cochran, "Sampling Techniques", 3rd
edition (1977), chapter 12, for samples in two phases: the units of the sample whose outputs move far are a stratum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sgdwalk.sample_sizes import outstanding

MISSES = {"height": 0.03, "losses": 0.01, "barrier": 0.01}
"""Share of the segments on which these intervals may miss, over all looks and all points: 5 % together."""
GROWTH = (1, 2, 4, 8)
"""The first look, and what a second may have times its units. Which of these it has, the first decides: every one is
fixed before and its interval paid for, so that it holds whatever decided."""
AIM = 0.85
"""Share of the tolerated half-width that a look is planned for."""
WORTHWHILE = 0.9
"""A second look is taken where its interval can be expected to have at most this share of the first one's width."""
PLANNED_FOR = 0.5
"""Share of the steps remembered whose spread between units the first look is planned for."""
FEWEST = (24, 12, 6)
"""Units at the three levels, at least: fewer tell too little of how much they differ."""
UNPLANNED = (8, 16, 64)
"""The most units that may be drawn, over those drawn at each level where nothing is known of their spread yet."""

Array = NDArray[np.float64]
Spread = tuple[float, float, float]


class Sizes(NamedTuple):
    """How many units a look takes: with both ends, at the first and at the second level, each among those before."""

    ends: int
    first: int
    second: int


class Levels(Protocol):
    """Evaluates units. Every row holds shares by increasing α; the differences between levels are zero at the ends."""

    def along_chord(self, units: NDArray[np.intp]) -> tuple[Array, Array]:
        """Losses along the chord, and for each unit how much the levels above may add.  # (units, points), (units,)"""
        ...

    def middle_minus_chord(self, units: NDArray[np.intp]) -> Array: ...  # (units, points)

    def true_minus_middle(self, units: NDArray[np.intp]) -> Array: ...  # (units, points)


class Sampled(NamedTuple):
    """The units of a look, in one order: those taken with certainty at every level, then the others as drawn."""

    chord: Array
    """A, of all n₀ units.  # (n₀, points)"""
    first: Array
    """X = middle - chord, of the first of them.  # (c + n₁, points)"""
    second: Array
    """Y = true - middle, of the first of these.  # (c + n₂, points)"""
    certain: int
    """c, units taken with certainty among the n₀."""


class Estimate(NamedTuple):
    """Weighted sums of the losses along the grid, with the standard deviation of each estimate."""

    values: Array
    deviation: Array
    degrees: Array
    """Degrees of freedom of the deviation, Welch's."""


@dataclass(frozen=True)
class Outcome:
    """What the looks found; NaN where it is not known."""

    losses: Array
    """Estimated L at every point of the grid.  # (points,)"""
    halfwidths: Array
    """Of the simultaneous intervals of the losses.  # (points,)"""
    height: tuple[float, float]
    """Between these the height lies."""
    barrier_height: tuple[float, float]
    """Between these the highest loss inside less the higher end lies."""
    looks: int
    accepted: bool
    """Whether the height is known as well as wanted."""
    spread: Spread
    """Standard deviations of the three levels between units, times their number, in units of the tolerated height."""

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.losses).all())


# --- the estimate ----------------------------------------------------------------------------------------------------


def estimate(sampled: Sampled, weights: Array, num_units: int) -> Estimate:
    """Σ_k w_k L_k from n₀ of U units: U/n₀ [Σ A + Σ over certain units (X + Y) + M (mean X + mean Y of the others)].

    The n₀ units are a first phase, on which T = A + X + Y is wanted; the certain units and a sample of the M = n₀ - c
    others, on which the means are, a second. So the variance is

    U² s²(T) (1/n₀ - 1/U) + (U M / n₀)² [s²(X) (1/n₁ - 1/M) + s²(Y) (1/n₂ - 1/M) + 2 cov(X, Y) (1/n₁ - 1/M)],

    where the spreads of the second part are those of the M units, and s²(T) is put together from A, X and Y, each part
    from the units where it is known. Without certain units this is U² [s²(A) (1/n₀ - 1/U) + s²(X) (1/n₁ - 1/U) +
    s²(Y) (1/n₂ - 1/U) + 2 (cov(A, X) + cov(A, Y)) (1/n₀ - 1/U) + 2 cov(X, Y) (1/n₁ - 1/U)].

    Args:
        sampled: the values of the units.
        weights: w, one row for each sum wanted.  # (sums, points)
        num_units: U.

    >>> import numpy as np
    >>> everyone = Sampled(np.ones((4, 1)), np.full((4, 1), 0.5), np.full((4, 1), -0.25), 0)
    >>> found = estimate(everyone, np.eye(1), 4)
    >>> float(found.values[0]), float(found.deviation[0])
    (5.0, 0.0)
    """
    parts = [level @ weights.T for level in (sampled.chord, sampled.first, sampled.second)]
    certain, n0 = sampled.certain, len(parts[0])
    others = [part[certain:] for part in parts]
    n1, n2, rest = len(others[1]), len(others[2]), n0 - certain
    rest_means = [part.mean(axis=0) for part in others]
    means = [(part[:certain].sum(axis=0) + rest * mean) / n0 for part, mean in zip(parts, rest_means, strict=True)]

    def covariance(one: int, other: int) -> tuple[Array, Array]:
        """Between two levels, over the units that are not certain and over all n₀, as far as it is known."""
        known = min(len(others[one]), len(others[other]))
        pair = [others[level][:known] for level in (one, other)]
        within = ((pair[0] - pair[0].mean(axis=0)) * (pair[1] - pair[1].mean(axis=0))).sum(axis=0) / (known - 1)
        away = [parts[level][:certain] - means[level] for level in (one, other)]
        between = rest * (rest_means[one] - means[one]) * (rest_means[other] - means[other])
        return within, ((away[0] * away[1]).sum(axis=0) + between + (rest - 1) * within) / (n0 - 1)

    (_, whole0), (within1, whole1), (within2, whole2) = (covariance(level, level) for level in range(3))
    (_, whole01), (_, whole02), (within12, whole12) = (covariance(*pair) for pair in ((0, 1), (0, 2), (1, 2)))
    phase1, phase2 = num_units**2 * (1 / n0 - 1 / num_units), (num_units * rest / n0) ** 2
    beyond1, beyond2 = 1 / n1 - 1 / rest, 1 / n2 - 1 / rest
    # What is known from n₀, from n₁ and from n₂ units.
    part0 = phase1 * whole0
    part1 = phase1 * (whole1 + 2 * whole01) + phase2 * within1 * beyond1
    part2 = phase1 * (whole2 + 2 * whole02 + 2 * whole12) + phase2 * (within2 * beyond2 + 2 * within12 * beyond1)
    variance = np.maximum(part0 + part1 + part2, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = variance**2 / (part0**2 / (n0 - 1) + part1**2 / (n1 - 1) + part2**2 / (n2 - 1))
    degrees = np.where(variance > 0, np.clip(degrees, n2 - 1, n0 + n1 + n2 - 3), n2 - 1)
    return Estimate(num_units * np.sum(means, axis=0), np.sqrt(variance), degrees)


def quantile(degrees: Array | float, misses: Array | float) -> Array:
    """Student's quantile of an interval that may miss so often over all looks that there may be (Bonferroni)."""
    return stdtrit(degrees, 1 - misses / (2 * len(GROWTH)))


def height_weights(num_points: int) -> Array:
    """D_k = (L_0 + L_K)/2 - L_k for every k as weighted sums of the losses.  # (points, points)

    >>> height_weights(2).tolist()
    [[-0.5, 0.0, 0.5], [0.5, -1.0, 0.5], [0.5, 0.0, -0.5]]
    """
    weights = np.zeros((num_points + 1, num_points + 1))
    weights[:, [0, -1]] = 0.5
    return weights - np.eye(num_points + 1)


def barrier_weights(num_points: int) -> Array:
    """L_k - L_0, then L_k - L_K, for every k inside.  # (2 (points - 2), points)

    >>> barrier_weights(2).tolist()
    [[-1.0, 1.0, 0.0], [0.0, 1.0, -1.0]]
    """
    inside = np.eye(num_points + 1)[1:-1]
    above = [inside.copy(), inside.copy()]
    above[0][:, 0], above[1][:, -1] = -1.0, -1.0
    return np.concatenate(above)


def height_interval(differences: Array, halfwidths: Array) -> tuple[float, float]:
    """The height is the largest D_k, and never negative: the maximum is monotone in every one."""
    return max(0.0, float((differences - halfwidths).max())), float((differences + halfwidths).max())


def barrier_interval(differences: Array, halfwidths: Array) -> tuple[float, float]:
    """The barrier height is the largest over k of the lower of L_k - L_0 and L_k - L_K: monotone in every one too."""
    low, high = (
        bound.reshape(2, -1).min(axis=0).max() for bound in (differences - halfwidths, differences + halfwidths)
    )
    return float(low), float(high)


# --- how many units --------------------------------------------------------------------------------------------------


def plan(spreads: Sequence[Spread], most: int, num_units: int, num_points: int) -> tuple[Sizes, ...]:
    """Sizes of the first look and those that a second may have: n ∝ sqrt(variance / cost) of each level.

    Args:
        spreads: :attr:`Outcome.spread` of earlier steps.
        most: units that may be drawn.
        num_units: U.
        num_points: intervals of the grid.

    >>> plan([], 512, 10**4, 10)[0]
    Sizes(ends=64, first=32, second=8)
    >>> plan([(10.0, 1.0, 0.1)], 512, 10**4, 10)[0]  # as many as may be had
    Sizes(ends=512, first=73, second=6)
    """
    counts = np.array([most / one_in for one_in in UNPLANNED])
    if not spreads:
        return ladder(counts, most)
    spread = np.quantile(np.asarray(spreads), PLANNED_FOR, axis=0)
    costs = np.sqrt([2.0, 1.0, max(1.0, num_points - 2.0)])  # evaluations of a unit
    for _ in range(4):  # the quantile depends on the sizes
        wanted = (AIM / _quantile_of_height(spread, ladder(counts, most)[0], num_points)) ** 2
        common = (spread * costs).sum() / (wanted + (spread**2).sum() / num_units)
        counts = spread / costs * common
        if counts[0] > most:  # the best that may be had
            counts *= most / counts[0]
    return ladder(counts, most)


def ladder(counts: Sequence[float] | Array, most: int) -> tuple[Sizes, ...]:
    """``counts`` units at the three levels, and these times each growth: at least the fewest, at most those there are.

    >>> ladder((100, 20, 1), 300)[::2]
    (Sizes(ends=100, first=20, second=6), Sizes(ends=300, first=80, second=6))
    """
    found = []
    for growth in GROWTH:
        ends, first, second = (max(few, math.ceil(growth * n)) for few, n in zip(FEWEST, counts, strict=True))
        first = max(first, second)
        found.append(Sizes(*(min(size, most) for size in (max(ends, first), first, second))))
    return tuple(found)


def _quantile_of_height(spread: Array, sizes: Sizes, num_points: int) -> float:
    return float(quantile(_degrees(spread, sizes), MISSES["height"] / num_points))


def _promised(spread: Array, sizes: Sizes, num_units: int, num_points: int) -> float:
    """The half-width that a look of these sizes can be expected to have, in units of the tolerated one."""
    variance = (spread**2 * (1 / np.array(sizes) - 1 / num_units)).sum()
    return _quantile_of_height(spread, sizes, num_points) * math.sqrt(max(0.0, variance))


def _degrees(spread: Array, sizes: Sizes) -> float:
    parts = spread**2 / np.array(sizes)
    total = parts.sum()
    return max(sizes.second - 1, float(total**2 / (parts**2 / (np.array(sizes) - 1)).sum()) if total else 0.0)


def certify(
    levels: Levels,
    sizes: Sequence[Sizes],
    *,
    num_units: int,
    most: int,
    num_points: int,
    tolerance: float,
    loss_noise: float,
    rounding: float,
    random: np.random.Generator,
) -> Outcome:
    """Look at one sample, and at a larger one where the height's half-width is more than tolerated after it.

    Tolerated is max(tolerance · height, 4 loss noise). The second look's intervals stand as they are.

    Args:
        levels: evaluates the units asked for.
        sizes: of the first look, and those that the second may have; from earlier steps only.
        num_units: U.
        most: units that may be drawn.
        num_points: intervals of the grid.
        tolerance: relative, on the height.
        loss_noise: rounding error of a loss, nats per example; every interval is wider by twice that. NaN: not known.
        rounding: of a loss relative to it: the loss noise is taken to be so much at least.
        random: draws the units.
    """
    assert len(sizes) == len(GROWTH)
    assert sizes[-1].ends <= most <= num_units
    sample = _Sample(levels, random.permutation(num_units), random.permutation(num_units))

    def look(number: int, size: Sizes) -> Outcome:
        with np.errstate(invalid="ignore", over="ignore"):
            return _outcome(sample.take(size), num_units, num_points, number, tolerance, loss_noise, rounding)

    outcome = look(1, sizes[0])
    if outcome.accepted or not outcome.finite or sizes[0] == sizes[-1]:
        return outcome
    spread = np.array(outcome.spread)
    promised = [_promised(spread, size, num_units, num_points) for size in sizes]
    chosen = next((place for place, width in enumerate(promised) if place and width <= AIM), len(sizes) - 1)
    return look(2, sizes[chosen]) if promised[chosen] < WORTHWHILE * promised[0] else outcome


class _Sample:
    """The units evaluated so far. Which of the n₀ go to the levels above is a draw of its own: by increasing rank."""

    def __init__(self, levels: Levels, order: NDArray[np.intp], ranks: NDArray[np.intp]):
        self._levels, self._order, self._ranks = levels, order, ranks
        self._chord: Array | None = None
        self._signs = np.empty(0)
        self._first: dict[int, Array] = {}
        self._second: dict[int, Array] = {}

    def take(self, sizes: Sizes) -> Sampled:
        """Evaluate what is missing of a look of these sizes; the levels above only where the chord is finite."""
        have = 0 if self._chord is None else len(self._chord)
        chord, signs = self._levels.along_chord(self._order[have : sizes.ends])
        self._chord = chord if self._chord is None else np.concatenate([self._chord, chord])
        self._signs = np.concatenate([self._signs, signs])
        if not np.isfinite(self._chord).all():
            nothing = np.full_like(self._chord, np.nan)
            nothing[:, [0, -1]] = 0.0
            return Sampled(self._chord, nothing, nothing, 0)
        certain = min(max(-(-sizes.second // 3), outstanding(self._signs)), len(self._chord) // 4)
        by_sign = np.argsort(-self._signs, kind="stable")
        others = by_sign[certain:]
        places = np.concatenate([by_sign[:certain], others[np.argsort(self._ranks[self._order[others]])]])
        units = self._order[places]
        first = self._known(self._first, units[: certain + sizes.first], self._levels.middle_minus_chord)
        second = self._known(self._second, units[: certain + sizes.second], self._levels.true_minus_middle)
        return Sampled(self._chord[places], first, second, certain)

    @staticmethod
    def _known(known: dict[int, Array], units: NDArray[np.intp], evaluate: Callable[..., Array]) -> Array:
        missing = np.array([unit for unit in units.tolist() if unit not in known], dtype=np.intp)
        if len(missing):
            known.update(zip(missing.tolist(), evaluate(missing), strict=True))
        return np.array([known[unit] for unit in units.tolist()])


def _outcome(
    sampled: Sampled,
    num_units: int,
    num_points: int,
    look: int,
    tolerance: float,
    loss_noise: float,
    rounding: float,
) -> Outcome:
    finite = np.logical_and.reduce([np.isfinite(level).all(axis=0) for level in sampled[:3]])
    chord, first, second = (np.where(finite, level, 0.0) for level in sampled[:3])
    sampled = Sampled(chord, first, second, sampled.certain)
    heights = height_weights(num_points)
    sums = (np.eye(num_points + 1), heights, barrier_weights(num_points))
    found = estimate(sampled, np.concatenate(sums), num_units)
    # D_K = -D_0, so that there are as many differences as intervals.
    estimated = {"losses": num_points + 1, "height": num_points, "barrier": 2 * (num_points - 1)}
    single = np.repeat([MISSES[name] / number for name, number in estimated.items()], [len(each) for each in sums])
    places = np.cumsum([len(each) for each in sums])[:-1]
    losses, differences, rises = np.split(found.values, places)
    loss_noise = float(np.fmax(loss_noise, rounding * np.abs(losses).max()))
    widths = quantile(found.degrees, single) * found.deviation + 2 * loss_noise
    halfwidths, height_widths, rise_widths = np.split(widths, places)
    if not finite.all():
        losses, halfwidths = (np.where(finite, each, np.nan) for each in (losses, halfwidths))
        unknown = (math.nan, math.nan)
        return Outcome(losses, halfwidths, unknown, unknown, look, False, (0.0, 0.0, 0.0))
    low, high = height_interval(differences, height_widths)
    tolerated = max(tolerance * float(differences.max()), 4 * loss_noise)
    deciding = heights[_deciding(differences, height_widths, tolerated)]
    levels = (chord, first[sampled.certain :], second[sampled.certain :])
    spread = [
        num_units * float((level @ deciding).std(ddof=1)) / (tolerated - 2 * loss_noise) if tolerated > 0 else 0.0
        for level in levels
    ]
    return Outcome(
        losses,
        halfwidths,
        (low, high),
        barrier_interval(rises, rise_widths),
        look,
        bool((high - low) / 2 <= tolerated),
        (spread[0], spread[1], spread[2]),
    )


def _deciding(differences: Array, widths: Array, tolerated: float) -> int:
    """The point on whose spread depends how many units do: its D has the upper bound of the height then.

    With fewer units it may be another one, an end mostly, that differs more and can still be the highest.
    """
    low, high = 1e-3, 1e3  # times the half-widths, which more units make smaller
    for _ in range(30):
        middle = math.sqrt(low * high)
        bounds = height_interval(differences, middle * widths)
        low, high = (middle, high) if (bounds[1] - bounds[0]) / 2 <= tolerated else (low, middle)
    return int((differences + low * widths).argmax())
