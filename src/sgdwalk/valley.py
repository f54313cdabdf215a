"""Floor, height, barrier and α* of segments, derived from the losses stored along them.

Each function takes the losses of one segment, shape ``(points,)``, or of many at once, shape ``(segments, points)``,
ordered by α with both ends included, and returns one value per segment. A segment with a loss that is not finite has
neither floor nor barrier: its values are NaN, never a guess from the points that are left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgdwalk.errors import InputError

MIN_R2 = 0.9
"""A parabola that explains less of the losses' variance gives no α*. Along real updates R² is 0.998 and more."""


class Parabola(NamedTuple):
    """Least-squares parabola through the losses of a segment, and how well it fits."""

    alpha_star: NDArray[np.float64]
    """Position of its minimum; NaN where it has none or fits badly."""
    r2: NDArray[np.float64]
    """Share of the losses' variance that it explains; NaN where all losses are equal or one is not finite."""


def floor(losses: ArrayLike) -> NDArray[np.float64]:
    """Lowest loss on the segment: min_k L(α_k), ends included.

    Args:
        losses: full losses by increasing α, nats per example, shape ``(points,)`` or ``(segments, points)``.

    Returns:
        The floor of each segment, nats per example; NaN where a loss is not finite.

    Raises:
        InputError: fewer than three points, so that there is no interior.

    >>> float(floor([1.0, 0.25, 0.5]))
    0.25

    Source: Xing, Arpit, Tsirigotis and Bengio, "A Walk with SGD" (2018), section 3.1.
    """
    losses, finite = _checked(losses)
    return np.where(finite, losses.min(axis=-1), np.nan)


def floor_alpha(alpha: ArrayLike, losses: ArrayLike) -> NDArray[np.float64]:
    """Where the floor is: the α_k with the lowest loss, the first one where several share it.

    Args:
        alpha: positions on the segment, shape ``(points,)``.
        losses: full losses there, nats per example, shape ``(points,)`` or ``(segments, points)``.

    Returns:
        α of each segment's floor, between 0 and 1; NaN where a loss is not finite.

    Raises:
        InputError: fewer than three points, so that there is no interior.

    >>> float(floor_alpha([0.0, 0.5, 1.0], [1.0, 0.25, 0.5]))
    0.5

    Source: "A Walk with SGD", section 3.1 (a floor inside the segment means that the walk bounces between walls).
    """
    losses, finite = _checked(losses)
    return np.where(finite, np.asarray(alpha, dtype=np.float64)[losses.argmin(axis=-1)], np.nan)


def height(losses: ArrayLike) -> NDArray[np.float64]:
    """Height above the floor: (L(θ_t) + L(θ_{t+1}) - 2 floor) / 2.

    It is never below |L(θ_t) - L(θ_{t+1})| / 2.

    Args:
        losses: full losses by increasing α, nats per example, shape ``(points,)`` or ``(segments, points)``.

    Returns:
        The height of each segment, nats per example; NaN where a loss is not finite.

    Raises:
        InputError: fewer than three points, so that there is no interior.

    >>> float(height([1.0, 0.25, 0.5]))
    0.5

    Source: "A Walk with SGD", Table 2.
    """
    losses, finite = _checked(losses)
    lowest = losses.min(axis=-1)
    # Differences first: each is exact or rounds monotonically, so the inequality above holds to the last bit.
    return np.where(finite, ((losses[..., 0] - lowest) + (losses[..., -1] - lowest)) / 2, np.nan)


def barrier_height(losses: ArrayLike) -> NDArray[np.float64]:
    """How far the segment's inside rises above its ends: max interior loss - max of the two ends, signed.

    The walk crosses a barrier where this is positive.

    Args:
        losses: full losses by increasing α, nats per example, shape ``(points,)`` or ``(segments, points)``.

    Returns:
        The barrier height of each segment, nats per example; NaN where a loss is not finite.

    Raises:
        InputError: fewer than three points, so that there is no interior.

    >>> float(barrier_height([1.0, 1.75, 0.5])), float(barrier_height([1.0, 0.25, 0.5]))
    (0.75, -0.75)

    Source: "A Walk with SGD", Table 1.
    """
    losses, finite = _checked(losses)
    ends = np.maximum(losses[..., 0], losses[..., -1])
    return np.where(finite, losses[..., 1:-1].max(axis=-1) - ends, np.nan)


def barrier(losses: ArrayLike, halfwidths: ArrayLike = 0.0, above: ArrayLike = 0.0) -> NDArray[np.object_]:
    """Whether some interior loss is above both ends: True, False, or None where that is undefined or undecided.

    With losses known within an interval: True where an interior lower bound is above both ends' upper bounds, False
    where no interior upper bound is above the higher of the ends' lower bounds.

    Args:
        losses: full losses by increasing α, nats per example, shape ``(points,)`` or ``(segments, points)``.
        halfwidths: of their intervals, in the same shape or a scalar; 0 for exact losses.
        above: by how much a barrier must rise to count, nats per example, shape ``(segments,)`` or a scalar.

    Returns:
        One answer a segment.

    Raises:
        InputError: fewer than three points, so that there is no interior.

    >>> barrier([1.0, 1.75, 0.5]).item(), barrier([1.0, 1.75, 0.5], [0.0, 0.8, 0.0]).item()
    (True, None)

    Source: "A Walk with SGD", Table 1.
    """
    losses, finite = _checked(losses)
    halfwidths = np.broadcast_to(np.asarray(halfwidths, dtype=np.float64), losses.shape)
    lower, upper = losses - halfwidths, losses + halfwidths
    # Differences, as in barrier_height: exact losses then give the same answer to the last bit.
    surely = lower[..., 1:-1].max(axis=-1) - np.maximum(upper[..., 0], upper[..., -1]) > above
    maybe = upper[..., 1:-1].max(axis=-1) - np.maximum(lower[..., 0], lower[..., -1]) > above
    return _true_false_unknown(np.asarray(surely), finite & (surely == maybe))


def bounds(losses: ArrayLike, halfwidths: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Between what floor, height and barrier height lie where the losses lie within their intervals.

    The floor is monotone in every loss, so it lies between the lowest lower and the lowest upper bound; height and
    barrier height, with the ends in their intervals, lie accordingly.

    Args:
        losses: full losses by increasing α, nats per example, shape ``(points,)`` or ``(segments, points)``.
        halfwidths: of their intervals, in the same shape; 0 for exact losses, as the ends mostly are.

    Returns:
        ``floor_low``, ``floor_high``, ``height_low``, ``height_high``, ``barrier_height_low``,
        ``barrier_height_high``, one value a segment; NaN where a loss is not finite.

    Raises:
        InputError: fewer than three points, so that there is no interior.

    >>> found = bounds([1.0, 0.25, 0.5], [0.0, 0.125, 0.0])
    >>> float(found["height_low"]), float(found["height_high"])
    (0.375, 0.625)
    """
    losses, finite = _checked(losses)
    halfwidths = np.asarray(halfwidths, dtype=np.float64)
    lower, upper = losses - halfwidths, losses + halfwidths
    low, high = lower.min(axis=-1), upper.min(axis=-1)
    columns = {
        "floor_low": low,
        "floor_high": high,
        "height_low": ((lower[..., 0] - high) + (lower[..., -1] - high)) / 2,
        "height_high": ((upper[..., 0] - low) + (upper[..., -1] - low)) / 2,
        "barrier_height_low": lower[..., 1:-1].max(axis=-1) - np.maximum(upper[..., 0], upper[..., -1]),
        "barrier_height_high": upper[..., 1:-1].max(axis=-1) - np.maximum(lower[..., 0], lower[..., -1]),
    }
    return {name: np.where(finite, column, np.nan) for name, column in columns.items()}


def decided(low: float, high: float, above: float = 0.0) -> bool | None:
    """Whether a barrier height between two bounds is above what counts: True, False, or None where they leave it open.

    >>> decided(0.1, 0.3), decided(-0.3, -0.1), decided(-0.1, 0.1), decided(0.1, 0.3, above=0.2)
    (True, False, None, None)
    """
    if low > above:
        return True
    return False if high <= above else None


def fit_parabola(alpha: ArrayLike, losses: ArrayLike) -> Parabola:
    """α*: the minimum of the parabola c₀ + c₁ α + c₂ α² fitted to the segment's losses, α* = -c₁ / (2 c₂).

    α* = ½ says that the step lands as high as it left; below ½ the loss rises. The critical step is 2 α* times the
    step taken, for any optimizer.

    Args:
        alpha: positions on the segment, shape ``(points,)``.
        losses: full losses there, nats per example, shape ``(points,)`` or ``(segments, points)``.

    Returns:
        ``alpha_star`` and ``r2`` of each segment. ``alpha_star`` is NaN where the parabola is not convex, where
        R² < 0.9, and where a loss is not finite.

    Raises:
        InputError: fewer than three points, through which no parabola is determined.

    >>> fit = fit_parabola([0.0, 0.5, 1.0], [0.25, 0.0, 0.25])
    >>> round(float(fit.alpha_star), 12), round(float(fit.r2), 12)
    (0.5, 1.0)

    Source: M. Mutschler and A. Zell, "Empirically explaining SGD from a line search perspective" (2021), whose
    parabolas these are; the factor 2 α* is that of a quadratic along the step.
    """
    losses, finite = _checked(losses)
    lowest = losses.min(axis=-1)
    spread = losses.max(axis=-1) - lowest
    fits = finite & (spread > 0)
    # The fit of losses scaled to [0, 1]: neither tiny nor huge losses then overflow in a square.
    scaled = np.where(fits[..., None], (losses - lowest[..., None]) / np.where(fits, spread, 1.0)[..., None], 0.0)
    basis = np.vander(np.asarray(alpha, dtype=np.float64), 3, increasing=True)  # (points, 3)
    # A sum, not a matrix product: one segment gives bitwise what it gives among others.
    coefficients = (scaled[..., None, :] * np.linalg.pinv(basis)).sum(axis=-1)  # (..., 3)
    fitted = (coefficients[..., None, :] * basis).sum(axis=-1)
    residual = ((scaled - fitted) ** 2).sum(axis=-1)
    total = ((scaled - scaled.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    r2 = np.where(fits, 1.0 - residual / np.where(fits, total, 1.0), np.nan)
    # Curvature within the rounding of the stored losses is none: a straight line has no minimum.
    rounding = 32 * np.finfo(np.float64).eps * np.abs(losses).max(axis=-1) / np.where(fits, spread, 1.0)
    convex = coefficients[..., 2] > rounding
    trusted = fits & convex & (r2 >= MIN_R2)
    alpha_star = -coefficients[..., 1] / (2 * np.where(trusted, coefficients[..., 2], 1.0))
    return Parabola(np.where(trusted, alpha_star, np.nan), r2)


def summarize(
    alpha: ArrayLike, losses: ArrayLike, loss_noise: ArrayLike, halfwidths: ArrayLike = 0.0
) -> dict[str, NDArray]:
    """Every derived column of many segments at once.

    A barrier is significant when it rises above the ends by more than 2 loss_noise. Where a loss is known within an
    interval only, ``barrier`` and ``barrier_significant`` are None where the interval does not decide; all other
    columns are those of the losses as they are, and :func:`bounds` says how far off they may be.

    Args:
        alpha: the grid shared by all segments, increasing from 0 to 1, shape ``(points,)``.
        losses: full losses, nats per example, shape ``(segments, points)``.
        loss_noise: largest known rounding error of a loss, nats per example, NaN where unknown, shape ``(segments,)``.
        halfwidths: of the losses' intervals, shape ``(segments, points)`` or a scalar; 0 for exact losses.

    Returns:
        Columns of shape ``(segments,)``: ``loss``, ``next_loss``, ``floor``, ``floor_alpha``, ``height``, ``barrier``,
        ``barrier_height``, ``barrier_significant``, ``alpha_star``, ``alpha_star_r2``. ``barrier`` and
        ``barrier_significant`` hold True, False or None (undefined); the others are float64, NaN where undefined.

    Raises:
        InputError: fewer than three points.

    >>> columns = summarize([0.0, 0.5, 1.0], [[1.0, 1.75, 0.5], [1.0, 0.0, float("nan")]], [0.1, 0.1])
    >>> columns["barrier"].tolist(), columns["barrier_significant"].tolist(), columns["loss"].tolist()
    ([True, None], [True, None], [1.0, 1.0])

    Source: "A Walk with SGD", section 3.1, Tables 1 and 2.
    """
    losses = np.asarray(losses, dtype=np.float64)
    loss_noise = np.asarray(loss_noise, dtype=np.float64)
    rise = barrier_height(losses)
    significant = barrier(losses, halfwidths, 2 * np.nan_to_num(loss_noise))
    significant[~np.isfinite(loss_noise)] = None
    parabola = fit_parabola(alpha, losses)
    ends = np.where(np.isfinite(losses), losses, np.nan)
    return {
        "loss": ends[:, 0],
        "next_loss": ends[:, -1],
        "floor": floor(losses),
        "floor_alpha": floor_alpha(alpha, losses),
        "height": height(losses),
        "barrier": barrier(losses, halfwidths),
        "barrier_height": rise,
        "barrier_significant": significant,
        "alpha_star": parabola.alpha_star,
        "alpha_star_r2": parabola.r2,
    }


def _checked(losses: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The losses, zeros in place of every segment with one that is not finite, and which segments have none."""
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim == 0 or losses.shape[-1] < 3:
        raise InputError(
            f"A segment needs its two ends and a point between them; got losses of shape {losses.shape}: "
            "pass at least three losses along the last axis."
        )
    finite = np.asarray(np.isfinite(losses).all(axis=-1))
    return np.where(finite[..., None], losses, 0.0), finite


def _true_false_unknown(value: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.object_]:
    answers = value.astype(object)
    answers[~known] = None
    return answers
