"""Statements about gradient descent on a quadratic (Figure 28, section 6), judged on measured rates.

They are about one computation without chance, so they hold or they do not: there are no seeds and no intervals.
"""

from __future__ import annotations

import pandas as pd

from sgdwalk.paper.judging import Claim, Judgement, Walks

TOLERANCE = 1e-6
"""Measured rates agree with the formula up to this, where rounding errors allow some 1e-8."""
CAPTION = "Section 6, Figure 28"


def formula(measured: pd.DataFrame) -> Claim:
    """The rates are those of the formula.

    Args:
        measured: of ``quadratic.rates``, as for the other statements.
    """

    def judge(_: Walks) -> Judgement:
        largest = float((measured["measured"] - measured["formula"]).abs().max())
        verdict = "supported" if largest <= TOLERANCE else "contradicted"
        return Judgement(verdict, f"Largest difference {largest:.2g} over {len(measured)} measured rates.")

    return Claim(
        "rates by the formula",
        "Graph of |λ_i η - 1|: convergence rates of gradient descent on λ_min-strongly convex and λ_max-smooth "
        "quadratic surfaces",
        CAPTION,
        f"Largest difference between measured and computed rates: supported up to {TOLERANCE:g}.",
        judge,
    )


def underdamped_range(measured: pd.DataFrame) -> Claim:
    """The steepest direction oscillates and converges between 1/λ_max and 2/λ_max, and nowhere else."""

    def judge(_: Walks) -> Judgement:
        steepest = measured[measured["eigenvalue"] == measured["eigenvalue"].max()]
        product = steepest["eigenvalue"] * steepest["learning_rate"]
        within = (product > 1) & (product < 2)
        seen = steepest["oscillates"].astype(bool) & (steepest["measured"] < 1)
        wrong = int((within != seen).sum())
        verdict = "contradicted" if wrong else "supported"
        return Judgement(
            verdict,
            f"{int((within & seen).sum())} of {int(within.sum())} learning rates within the range oscillate and "
            f"converge, {int((seen & ~within).sum())} of {int((~within).sum())} outside it.",
        )

    return Claim(
        "underdamped range",
        "In the range of learning rates shaded by blue, trajectory underdamps in the direction of the maximum "
        "eigenvalue",
        CAPTION,
        "Along the eigenvector of λ_max every update changes the side and comes nearer: supported where that is so for "
        "all learning rates between 1/λ_max and 2/λ_max and for no other.",
        judge,
    )


def one_direction_oscillates(measured: pd.DataFrame, learning_rate: float) -> Claim:
    """At one learning rate the steepest direction oscillates and all others do not."""

    def judge(_: Walks) -> Judgement:
        rows = measured[measured["learning_rate"] == learning_rate]
        steepest = rows["eigenvalue"] == rows["eigenvalue"].max()
        oscillates = rows["oscillates"].astype(bool)
        converges = bool((rows["measured"] < 1).all())
        holds = bool(oscillates[steepest].all()) and not oscillates[~steepest].any() and converges
        found = ", ".join(
            f"λ = {row.eigenvalue:g} {'oscillates' if row.oscillates else 'does not'} (rate {row.measured:.3f})"
            for row in rows.itertuples()
        )
        return Judgement("supported" if holds else "contradicted", f"η = {learning_rate:g}: {found}.")

    return Claim(
        "one direction oscillates",
        "For a certain learning rate, while the trajectory oscillates in the direction of the maximum eigenvalue "
        "(green diamond), it overdamps in all the others (e.g. blue diamond - in a 'flat' direction)",
        CAPTION,
        "At the diamonds' learning rate: supported where only the direction of λ_max oscillates and all converge.",
        judge,
    )


def optimal_rate(measured: pd.DataFrame) -> Claim:
    """The learning rate that converges fastest is underdamped in the steepest direction."""

    def judge(_: Walks) -> Judgement:
        slowest = measured.groupby("learning_rate")["measured"].max()
        best = measured["learning_rate"].unique()[int(slowest.to_numpy().argmin())]
        rows = measured[measured["learning_rate"] == best]
        steep = rows[rows["eigenvalue"] * best > 1]
        holds = len(steep) > 0 and bool(steep["oscillates"].all()) and bool((rows["measured"] < 1).all())
        known = 2 / (measured["eigenvalue"].min() + measured["eigenvalue"].max())
        return Judgement(
            "supported" if holds else "contradicted",
            f"Of {len(slowest)} learning rates {best:g} is best, its slowest direction has rate {slowest.min():.3f} "
            f"(2 / (λ_min + λ_max) = {known:.4f}). There {int(steep['oscillates'].sum())} of {len(steep)} directions "
            f"with λη > 1 oscillate, and {int((rows['measured'] < 1).sum())} of {len(rows)} directions converge.",
        )

    return Claim(
        "the optimal rate underdamps",
        "the optimal learning rate η causes under-damping without divergence along eigenvectors of the Hessian which "
        "have eigenvalues λ_i such that λ_i^{-1} < η < 2λ_i^{-1}",
        "Section 6",
        "The learning rate whose slowest direction is fastest: supported where all directions with λη > 1, of which "
        "there is one at least, oscillate, and all directions converge.",
        judge,
    )
