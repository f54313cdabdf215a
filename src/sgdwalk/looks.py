"""Looks at samples along a segment, one after the other, until the height, or every loss, is known within a tolerance.

The first looks at few units, the second at as many more as the first shows to be needed at the points that may be the
floor, or at all; where these would not do, :func:`exact_look` is next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sgdwalk.multilevel import Array, Estimate, estimate, kurtosis, quantile
from sgdwalk.records import EXACT_LOOK
from sgdwalk.sample_sizes import Sizes, fits, second_look, with_certainty

WIDER = 3.0
"""Times the half-width that Student's t gives, where a point lies so high that it does not matter; see
:func:`widened`."""
WORTHWHILE = 0.75
"""Evaluations that a second look adds at most, as a share of those of all units at the points that are open: the exact
look evaluates one of these points after the other, and may stop early."""


class Levels(Protocol):
    """The differences between the levels of given units, as shares; every row is by increasing α, zero at its nodes."""

    def middle_minus_chord(self, units: NDArray[np.intp]) -> Array: ...  # (units, points)

    def true_minus_middle(self, units: NDArray[np.intp], inside: NDArray[np.intp]) -> Array:  # (units, points)
        """At the points ``inside``; zero at the others."""
        ...


class Wanted(NamedTuple):
    """What is to be known of a segment."""

    tolerance: float
    """Half-width, as a share of the height."""
    loss_noise: float
    """Rounding error of a loss, nats per example: every interval is wider by twice that."""
    curve: bool = False
    """Whether of every loss; else of the height alone."""

    def tolerated(self, losses: Array) -> float:
        """The half-width that is wanted: max(tolerance · height, 4 loss noise)."""
        floor = losses.min()
        return max(self.tolerance * (losses[0] - floor + losses[-1] - floor) / 2, 4 * self.loss_noise)

    def allowed(self, losses: Array) -> Array:
        """By how much each loss may be wrong: the floor's as the height, and others by as much more as they lie above
        it, or of a curve no more than that.

        The bounds of the floor may lie twice the tolerated half-width apart; of that, its own upper bound takes half,
        and nothing where the floor is an end, which is exact.
        """
        floor, tolerated = losses.min(), self.tolerated(losses)
        if self.curve:
            return np.full(len(losses), tolerated)
        return losses - floor + tolerated * (1 if floor < min(losses[0], losses[-1]) else 2)

    def leeway(self, losses: Array) -> Array:
        """:meth:`allowed`, less rounding, in units of the tolerated half-width.  # (points,)"""
        tolerated = self.tolerated(losses)
        return (self.allowed(losses) - 2 * self.loss_noise) / tolerated if tolerated > 0 else np.ones(len(losses))

    def open(self, losses: Array, halfwidths: Array) -> NDArray[np.intp]:
        """The points of which more is to be known: those that may be the floor, of a curve those with wide intervals.

        >>> losses, halfwidths = np.array([1.0, 0.5, 0.4, 0.9]), np.array([0.0, 0.2, 0.02, 0.1])
        >>> [Wanted(0.05, 0.0, curve).open(losses, halfwidths).tolist() for curve in (False, True)]
        [[1, 2], [1, 3]]
        """
        if self.curve:
            return np.flatnonzero(halfwidths > self.tolerated(losses))
        return contenders(losses, halfwidths)

    def widened(self, losses: Array, halfwidths: Array, significant: float) -> Array:
        """What :func:`widened` makes of them, of a curve up to the half-width that is wanted."""
        wider = widened(losses, halfwidths, significant)
        return np.maximum(halfwidths, np.minimum(wider, self.tolerated(losses))) if self.curve else wider

    def accepts(self, losses: Array, halfwidths: Array) -> bool:
        """Whether all that is wanted is known; with every loss the height is."""
        if self.curve:
            return len(self.open(losses, halfwidths)) == 0
        low, high = floor_interval(losses, halfwidths)
        return bool((high - low) / 2 <= self.tolerated(losses))


@dataclass(frozen=True)
class Outcome:
    """What the looks found."""

    losses: Array
    """Estimated L at every point of the grid.  # (points,)"""
    halfwidths: Array
    """Of the simultaneous interval; 0 at the ends, and where all units were evaluated.  # (points,)"""
    looks: int
    accepted: bool
    """Whether it is known as well as wanted; if not, :func:`exact_look` is needed."""
    spreads: Array
    """:attr:`Estimate.spreads` in units of the tolerated half-width; 0 at the ends.  # (2, points)"""
    wanted: Wanted
    significant: float = 0.0
    """Rise above the ends from which a barrier counts as more than rounding, nats per example."""

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.losses).all() and np.isfinite(self.halfwidths).all())


@np.errstate(invalid="ignore", over="ignore")
def certify(
    levels: Levels,
    chord: Array,
    signs: Array,
    sizes: Sizes,
    wanted: Wanted,
    *,
    significant: float = 0.0,
    random: np.random.Generator,
) -> Outcome | None:
    """Look at samples until the height, or every loss, is known as well as wanted.

    Args:
        levels: evaluates the units asked for.
        chord: L along the chord, the ends as they are.  # (points,)
        signs: for each unit how much its levels may differ; where it is largest they are taken with certainty.  # (U,)
        sizes: of the first look.
        wanted: when to stop.
        significant: :attr:`Outcome.significant`.
        random: draws the units.

    Returns:
        What was found, or None where the first sample would be more than half of the units: the exact losses cost no
        more.
    """
    num_units, num_points = len(signs), len(chord) - 1
    if not fits(sizes, num_units):
        return None
    certain = with_certainty(signs, sizes.certain)
    sizes = sizes._replace(certain=certain, first=min(sizes.first, num_units - certain))
    if not fits(sizes, num_units):
        return None
    order = np.argsort(-signs, kind="stable")
    surely, drawn = order[:certain], random.permutation(order[certain:])
    n1 = sizes.first
    middle = levels.middle_minus_chord(np.concatenate([surely, drawn[:n1]]))
    n2 = np.maximum(sizes.second, min(n1, num_units // 2 - certain, math.ceil(kurtosis(middle[certain:]))))
    least = n2.min()
    true = levels.true_minus_middle(np.concatenate([surely, drawn[:least]]), np.arange(1, num_points))
    known = middle[:certain].sum(axis=0) + true[:certain].sum(axis=0)
    first, second = middle[certain:], _more(levels, drawn, true[certain:], np.full_like(n2, least), n2)
    outcome = _outcome(estimate(chord, known, first, second, len(drawn), n2), 1, wanted)
    if outcome.finite and not outcome.accepted:
        inside = wanted.open(outcome.losses, outcome.halfwidths)  # what is wanted does not depend on the others
        spreads = outcome.spreads[:, inside] / wanted.leeway(outcome.losses)[inside]
        more1, more2 = second_look(spreads, n1, n2[inside], len(drawn))
        if more1 - n1 + (more2 - n2[inside]).sum() <= WORTHWHILE * len(inside) * len(drawn):
            first = np.concatenate([first, levels.middle_minus_chord(drawn[n1:more1])])
            counts = n2.copy()
            counts[inside] = more2
            second = _more(levels, drawn, second, n2, counts)
            found = estimate(chord, known, first, second, len(drawn), counts)
            outcome = _outcome(found, 2, wanted, outcome)
    if outcome.finite and outcome.accepted:
        outcome = replace(outcome, halfwidths=wanted.widened(outcome.losses, outcome.halfwidths, significant))
    return replace(outcome, significant=significant)


def _more(
    levels: Levels, drawn: NDArray[np.intp], known: Array, have: NDArray[np.intp], want: NDArray[np.intp]
) -> Array:
    """True - middle of the first ``want`` units drawn, at each point, where that of the first ``have`` is known; zero
    from there on.  # (largest of ``want``, points)"""
    found = np.pad(known, ((0, want.max() - len(known)), (0, 0)))
    for low, high in pairwise(np.unique([have, want])):
        points = np.flatnonzero((have <= low) & (want >= high))
        if len(points):
            found[low:high] += levels.true_minus_middle(drawn[low:high], points)
    return found


def exact_look(outcome: Outcome, loss_at: Callable[[int], float]) -> Outcome:
    """Give every point that may be the floor its exact loss, the likeliest first: then floor and height are exact, if
    the intervals of the others hold; for a curve those with wide intervals too. Ends at a loss that is not finite.

    >>> losses, halfwidths = np.array([1.0, 0.5, 0.4, 0.9]), np.array([0.0, 0.2, 0.05, 0.0])
    >>> seen = Outcome(losses, halfwidths, 2, False, np.zeros((2, 4)), Wanted(0.05, 0.0))
    >>> found = exact_look(seen, [1.0, 0.31, 0.42, 0.9].__getitem__)
    >>> found.losses.tolist(), found.halfwidths.round(9).tolist()
    ([1.0, 0.31, 0.4, 0.9], [0.0, 0.0, 0.09, 0.0])
    """
    losses, halfwidths, wanted = outcome.losses.copy(), outcome.halfwidths.copy(), outcome.wanted
    while np.isfinite(losses).all():
        left = np.union1d(contenders(losses, halfwidths), wanted.open(losses, halfwidths))
        if len(left) == 0:
            break
        point = int(left[(losses - halfwidths)[left].argmin()])
        losses[point], halfwidths[point] = loss_at(point), 0.0
    halfwidths = wanted.widened(losses, halfwidths, outcome.significant)
    return replace(outcome, losses=losses, halfwidths=halfwidths, looks=EXACT_LOOK)


def contenders(losses: Array, halfwidths: Array) -> NDArray[np.intp]:
    """The points whose loss is not known exactly and may be the floor.

    >>> contenders(np.array([1.0, 0.5, 0.4, 0.9]), np.array([0.0, 0.2, 0.05, 0.1])).tolist()
    [1, 2]
    """
    return np.flatnonzero((halfwidths > 0) & (losses - halfwidths <= (losses + halfwidths).min()))


def floor_interval(losses: Array, halfwidths: Array) -> tuple[float, float]:
    """The floor lies between the lowest lower and the lowest upper bound: the minimum is monotone in every loss."""
    return float((losses - halfwidths).min()), float((losses + halfwidths).min())


def widened(losses: Array, halfwidths: Array, significant: float = 0.0) -> Array:
    """Half-widths that are larger where no decision depends on it: few units may not show how far others lie off.

    An interval becomes ``WIDER`` times as wide as it is, as far as neither the floor nor a barrier that is decided, at
    any point, comes to be in doubt, nor whether a barrier is ``significant``.

    >>> widened(np.array([1.0, 0.5, 0.4, 0.9]), np.array([0.0, 0.02, 0.05, 0.0])).round(9).tolist()
    [0.0, 0.05, 0.05, 0.0]
    >>> widened(np.array([1.0, 1.5, 1.0]), np.array([0.0, 0.25, 0.0]), 0.125).round(9).tolist()
    [0.0, 0.375, 0.0]
    """
    room = losses - (losses + halfwidths).min()
    highest = max(losses[0], losses[-1])
    for threshold in (highest, highest + significant):
        away = np.abs(losses - threshold)
        room = np.where(halfwidths <= away, np.minimum(room, away), room)
    room = (1 - 1e-9) * room - 4 * np.finfo(np.float64).eps * np.abs(losses)  # less for rounding
    return np.maximum(halfwidths, np.minimum(WIDER * halfwidths, room))


def _outcome(found: Estimate, look: int, wanted: Wanted, before: Outcome | None = None) -> Outcome:
    """What a look found; at each point its interval or that of the look before, for both hold: the narrower."""
    losses, interior = found.losses, slice(1, -1)
    width = quantile(found.degrees, found.shapes) * found.deviation + 2 * wanted.loss_noise
    halfwidths = np.where(found.complete, 0.0, width)
    halfwidths[[0, -1]] = 0.0
    if before is not None:
        losses = np.where(before.halfwidths < halfwidths, before.losses, losses)
        halfwidths = np.minimum(before.halfwidths, halfwidths)
    spreads = np.zeros_like(found.spreads)
    if wanted.tolerated(losses) > 0:
        spreads[:, interior] = found.spreads[:, interior] / wanted.tolerated(losses)
    return Outcome(losses, halfwidths, look, wanted.accepts(losses, halfwidths), spreads, wanted)
