"""The mean height of an epoch from a few steps and a few units of each: estimators without the minimum's bias.

Along a sampled step the losses are means over few units (evaluation batches), so they are noisy, and the lowest of
noisy means lies too low on average: the height comes out too high. Halving the units doubles the noise and, to first
order, the bias; so 2 h(all) - mean of h over two halves is free of it (the jackknife of Quenouille, 1949). What is left
is of higher order, and the noise of a step does not matter in a mean over many: few units of many steps are worth more
than many of few, since the steps of one epoch differ by more than their mean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from sgdwalk import valley
from sgdwalk.errors import InputError

CONFIDENCE = 0.95
NUM_UNITS = 4
"""Evaluation batches drawn at a sampled step: with fewer the bias that is left shows, with more there are fewer steps
for the same price."""


class SampledSegment(NamedTuple):
    """What a few units say of one step; each is right on average over many steps, and no single one is accurate."""

    loss: float
    """L(θ_t), nats per example."""
    next_loss: float
    """L(θ_{t+1})."""
    floor: float
    """Lowest loss along the segment, the minimum's bias removed."""
    height: float
    """Height above it; may be negative where the height is below the noise, which keeps its mean right."""
    interior: bool
    """Whether the lowest of the noisy means lies strictly between the iterates."""
    alpha_star: float
    """Position of the minimum of the parabola through the noisy means; NaN where there is none."""


class Mean(NamedTuple):
    """A mean over an epoch's sampled steps with its interval."""

    value: float
    low: float
    high: float
    num_steps: int
    """Sampled steps whose value is defined."""


def sampled_segment(losses: ArrayLike, counts: ArrayLike | None = None, num_units: int | None = None) -> SampledSegment:
    """Floor and height of a step from the losses of some randomly drawn units.

    They are cut into halves as often as they can be while going round: a mean over cuts is less noisy than one cut.

    Args:
        losses: mean loss of each unit at α = 0, …, 1, nats per example, shape ``(units, points)``; units in random
            order.
        counts: examples of each unit, shape ``(units,)``; equal where not given.
        num_units: units there are, from which these were drawn without replacement; without end where not given. With
            n of U the noise goes as 1/n - 1/U, so the weight of the whole is 2 - n/U for even n: all of them need no
            correction.

    Raises:
        InputError: fewer than two units, which cannot be halved, or fewer than three points.

    >>> losses = [[1.0, 0.0, 1.0], [3.0, 2.0, 1.0]]  # floors of the halves: 0 and 1, of their mean: 1
    >>> found = sampled_segment(losses)
    >>> found.floor, found.height
    (1.5, 0.0)

    Source: the definitions of "A Walk with SGD", Table 2, and Quenouille's correction with two halves.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 2 or len(losses) < 2:
        raise InputError(f"At least two units are wanted, of losses (units, points); got the shape {losses.shape}.")
    weights = np.ones(len(losses)) if counts is None else np.asarray(counts, dtype=np.float64)
    of_all = 0.0 if num_units is None else 1 / num_units
    of_halves = (1 / (len(losses) // 2) + 1 / -(-len(losses) // 2)) / 2  # mean of 1 / size, which is no 2 / n for odd n
    weight = (of_halves - of_all) / (of_halves - 1 / len(losses))
    curve, halves = _mean(losses, weights), []
    for shift in range(len(losses) // 2 if len(losses) % 2 == 0 else len(losses)):
        order = np.roll(np.arange(len(losses)), -shift)
        halves += [_mean(losses[part], weights[part]) for part in np.split(order, [len(losses) // 2])]
    floor, height = (
        weight * float(of(curve)) - (weight - 1) * float(of(np.stack(halves)).mean())
        for of in (valley.floor, valley.height)
    )
    alpha = np.linspace(0.0, 1.0, len(curve))
    where = float(valley.floor_alpha(alpha, curve))
    return SampledSegment(
        float(curve[0]),
        float(curve[-1]),
        floor,
        height,
        0.0 < where < 1.0,
        float(valley.fit_parabola(alpha, curve).alpha_star),
    )


def mean_of_steps(values: ArrayLike, weights: ArrayLike | None = None) -> Mean:
    """Mean over steps of which one was drawn from each of many blocks, with a 95 % interval.

    Neighbouring blocks are alike, so their difference tells the variance: with equal weights
    Σ (v_{i+1} - v_i)² / (2 (n - 1)) is that of a draw, the noise of the units included. A trend makes the interval a
    little wider than it need be.

    Args:
        values: by increasing step, NaN where undefined (left out).
        weights: updates that each stands for, of the same shape; equal where not given.

    Returns:
        NaN for ``low`` and ``high`` with fewer than three values.

    >>> mean_of_steps([1.0, 1.0, 1.0, float("nan")])
    Mean(value=1.0, low=1.0, high=1.0, num_steps=3)
    >>> mean_of_steps([1.0, 4.0], weights=[2, 1]).value
    2.0

    Source: the estimator of successive differences (von Neumann and others, 1941), for one draw a stratum.
    """
    all_values: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    all_weights = np.ones(len(all_values)) if weights is None else np.asarray(weights, dtype=np.float64)
    known, shares = all_values[np.isfinite(all_values)], all_weights[np.isfinite(all_values)]
    n = len(known)
    if not n:
        return Mean(math.nan, math.nan, math.nan, n)
    shares = shares / shares.sum()
    value = float(shares @ known)
    if n < 3:
        return Mean(value, math.nan, math.nan, n)
    squares = shares[1:] * shares[:-1] * np.diff(known) ** 2
    variance = float(squares.sum()) / 2 * n / (n - 1)
    # 2 n / 3 degrees of freedom for draws of equal variance, as neighbouring differences share a value; fewer where a
    # part of the epoch, such as its start, has most of the variance (Satterthwaite).
    freedom = 2 * float(squares.sum()) ** 2 / float((squares**2).sum()) if squares.any() else 2 * n / 3
    quantile = float(stdtrit(min(max(1.0, freedom), 2 * n / 3), (1 + CONFIDENCE) / 2))
    half = quantile * math.sqrt(variance)
    return Mean(value, value - half, value + half, n)


def updates_stood_for(steps: ArrayLike) -> NDArray[np.float64]:
    """How many updates are nearer to each sampled step than to any other.

    Beyond the outermost ones as many are counted as on their other side: samples say nothing of what lies far away.

    Args:
        steps: the sampled ones, increasing.

    >>> updates_stood_for([0, 1, 2, 6]).tolist()
    [1.0, 1.0, 2.5, 4.0]
    """
    gaps = np.diff(np.asarray(steps, dtype=np.float64))
    if not len(gaps):
        return np.ones(np.size(steps))
    return np.concatenate([gaps[:1], gaps[:-1] + gaps[1:], gaps[-1:]]) / np.array([1] + [2] * (len(gaps) - 1) + [1])


def mean_of_consecutive(values: ArrayLike) -> Mean:
    """Mean of a series whose neighbours depend on each other, with a 95 % interval by the method of batch means.

    Args:
        values: every value of the series, in order, finite.

    Returns:
        NaN for ``low`` and ``high`` with fewer than 9 values.

    >>> mean_of_consecutive([2.0] * 16)
    Mean(value=2.0, low=2.0, high=2.0, num_steps=16)

    Source: the method of batch means of simulation, with √n batches.
    """
    series = np.asarray(values, dtype=np.float64)
    n = len(series)
    value = float(series.mean()) if n else math.nan
    batches = math.isqrt(n)
    if batches < 3:
        return Mean(value, math.nan, math.nan, n)
    means = np.array([batch.mean() for batch in np.array_split(series, batches)])
    half = float(stdtrit(batches - 1, (1 + CONFIDENCE) / 2)) * float(means.std(ddof=1)) / math.sqrt(batches)
    return Mean(value, value - half, value + half, n)


def _mean(losses: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve of all these units together.  # (points,)"""
    return (weights[:, None] * losses).sum(axis=0) / weights.sum()
