"""Statements about Equation 3, H = C + R, over a training that ends in interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from sgdwalk.paper.judging import Claim, Judgement, Verdict, Walks
from sgdwalk.paper.judging import above as judged_above
from sgdwalk.paper.spectral_tables import decompositions

ROUNDING = 1e-12
"""A relative error in float64 that passes for rounding: some thousands of units in the last place."""
NO_ROUNDING = 1e-6
"""One that does not."""
ALMOST_EQUAL = 0.1
"""‖R‖ / ‖H‖ up to which H and C pass for almost equal."""
NOT_EQUAL = 0.5
"""The ratio from which they do not."""
INTERPOLATED = 0.05
"""With a training loss up to this, in nats per example, and every example told rightly, θ passes for near a minimum."""
VANISHED = 0.1
"""‖R‖ at the end by ‖R‖ at the start, up to which it passes for tending to zero."""
ALIGNED = 0.5
"""Overlap of two eigenspaces from which they pass for roughly aligned."""

NEAR_MINIMA = (
    "the Hessian and covariance at any point θ are closely related, and are almost equal near minima where the second "
    "term tends to zero"
)


def identity(role: str, source: str) -> Claim:
    """H = C + R holds at every θ."""

    def judge(walks: Walks) -> Judgement:
        tables = _tables(walks, role)
        if not tables:
            return _nothing()
        errors = pd.concat([table[["identity", "identity_running"]] for table in tables]).to_numpy(float)
        known = errors[np.isfinite(errors)]
        verdict: Verdict = "not resolved"
        if len(known) and known.max() > NO_ROUNDING:
            verdict = "contradicted"
        elif len(known) == errors.size and known.max() <= ROUNDING:
            verdict = "supported"
        largest = f"{known.max():.2g}" if len(known) else "unknown"
        return Judgement(
            verdict,
            f"Largest relative error {largest}, at {len(known)} of {errors.size} points and BatchNorm modes where it "
            f"is defined, in {_trainings(len(tables))}.",
        )

    return Claim(
        "H = C + R",
        "The relation between the Hessian H(θ) and the gradient covariance matrix C(θ) for the negative log likelihood "
        "case is given as, H(θ) = C(θ) + 1/N Σ ∂L_i/∂p_i · ∂²p_i/∂θ²",
        source,
        "‖H - C - R‖ / ‖H‖ (Frobenius norms), each matrix computed on its own in float64: written out with BatchNorm "
        "in train mode, and as products with three random vectors with its running statistics. Supported where it is "
        f"at most {ROUNDING:g} at every point of every training, contradicted where it exceeds {NO_ROUNDING:g} at one.",
        judge,
    )


def almost_equal(role: str, source: str) -> Claim:
    """Near a minimum H is C."""

    def judge(walks: Walks) -> Judgement:
        ends = [_nearest(table) for table in _tables(walks, role)]
        near = [end for end in ends if _is_near(end)]
        if not near:
            return Judgement(
                "not testable at this scale",
                f"No training of {len(ends)} has all examples told rightly and a loss up to {INTERPOLATED:g}.",
            )
        shares = np.array([end["residual_share"] for end in near])
        known = bool(np.isfinite(shares).all()) and len(near) == len(ends)
        verdict: Verdict = "not resolved"
        if known and shares.max() <= ALMOST_EQUAL:
            verdict = "supported"
        elif known and shares.min() >= NOT_EQUAL:
            verdict = "contradicted"
        moments = [end["second_moment_share"] for end in near]
        losses = [end["loss"] for end in near]
        return Judgement(
            verdict,
            f"Near the minimum of {len(near)} of {_trainings(len(ends))}, at losses of {_list(losses)}: ‖R‖/‖H‖ "
            f"{_list(shares)}; ‖C‖/‖H‖ {_list(moments)}.",
        )

    return Claim(
        "H ≈ C near minima",
        NEAR_MINIMA,
        source,
        "‖R‖/‖H‖ in spectral norms where a training's loss is lowest, if it interpolates there (every training example "
        f"told rightly, loss up to {INTERPOLATED:g}): supported where it is at most {ALMOST_EQUAL:g} in all trainings, "
        f"contradicted where it is at least {NOT_EQUAL:g} in all; open where one does not interpolate.",
        judge,
    )


def vanishing_residual(role: str, source: str) -> Claim:
    """The second term tends to zero, in absolute terms."""

    def judge(walks: Walks) -> Judgement:
        tables = _tables(walks, role)
        first = [float(table["residual"].iloc[0]) for table in tables]
        ends = [_nearest(table) for table in tables]
        nearest = [float(end["residual"]) if _is_near(end) else math.nan for end in ends]
        falls = [a / b if b > 0 else math.nan for a, b in zip(first, nearest, strict=True)]
        largest = [table["residual"].max() / a for table, a in zip(tables, first, strict=True)]
        return judged_above(
            [math.log(fall) if fall > 0 else math.nan for fall in falls],
            math.log(1 / VANISHED),
            "‖R‖ at the start by ‖R‖ where the loss is lowest",
            f" Its largest value is {_list(largest)} times the first." if tables else "",
            shown=math.exp,
        )

    return Claim(
        "the second term tends to zero",
        NEAR_MINIMA,
        source,
        "Spectral norm ‖R‖ at the initial parameters by that where the loss is lowest, one number a training "
        f"(Student's interval of the logarithm over the seeds), defined where a training interpolates as above: "
        f"supported where it lies above {1 / VANISHED:g}, contradicted where it lies below, open where one training "
        "does not interpolate.",
        judge,
    )


def aligned(role: str, source: str) -> Claim:
    """The top eigenvectors of C are those of H."""

    def judge(walks: Walks) -> Judgement:
        tables = _tables(walks, role)
        chance = f" Two random spaces overlap by {tables[0]['chance'].iloc[0]:.2g}." if tables else ""
        ranges = [f"{table['overlap'].min():.2f} to {table['overlap'].max():.2f}" for table in tables]
        more = f" Over a training: {', '.join(ranges)}.{chance}" if tables else ""
        return judged_above([float(table["overlap"].mean()) for table in tables], ALIGNED, "mean overlap", more)

    return Claim(
        "noise along sharp directions",
        "Although we do not empirically confirm this, the above relationship may imply that the mini-batch induced "
        "noise is roughly aligned with sharper directions of the loss landscape.",
        source,
        "Overlap (mean squared cosine of the principal angles) of the spaces of the top ten eigenvectors of C and of "
        "H, one for each class, mean over the points of a training, one number a seed (Student's interval): supported "
        f"where it lies above {ALIGNED:g}, contradicted where it lies below.",
        judge,
    )


def _tables(walks: Walks, role: str) -> list[pd.DataFrame]:
    return [table for table in map(decompositions, walks[role]) if len(table)]


def _nearest(table: pd.DataFrame) -> pd.Series:
    """Of the points at which Equation 3 was written out, the one of the lowest loss: the nearest to a minimum."""
    return table.sort_values("loss").iloc[0]


def _is_near(end: pd.Series) -> bool:
    """Whether a training's nearest point to a minimum passes for near one: it interpolates."""
    return bool(end["accuracy"] == 1 and end["loss"] <= INTERPOLATED)


def _nothing() -> Judgement:
    return Judgement("not testable at this scale", "Equation 3 was written out in no training.")


def _trainings(count: int) -> str:
    return "one training" if count == 1 else f"{count} trainings"


def _list(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
