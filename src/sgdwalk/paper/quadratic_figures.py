"""Figure 28: rates of convergence on a quadratic, drawn from gradient descent that is computed at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from sgdwalk.paper import quadratic, quadratic_claims
from sgdwalk.paper.charts import COLOURS, INK, MUTED, RULE, Chart
from sgdwalk.paper.figure import Figure, Table
from sgdwalk.paper.trainings import Scale

TITLES: Mapping[str, str] = {"fig28": "Figure 28: convergence rates |λη - 1| of gradient descent on a quadratic"}


def chart(measured: pd.DataFrame) -> Chart:
    """The rates as lines, the measured ones as points on them.

    Args:
        measured: of ``quadratic.rates``; holds ``quadratic.SHOWN_RATE``.
    """
    eigenvalues = sorted(measured["eigenvalue"].unique())
    least, most = eigenvalues[0], eigenvalues[-1]
    eta = np.linspace(0, 1.05 * measured["learning_rate"].max(), 400)
    canvas = Canvas(figsize=(7.6, 4.6), layout="constrained")
    axis = canvas.subplots()
    axis.axvspan(1 / most, 2 / most, color=COLOURS[0], alpha=0.12, linewidth=0, label="underdamped along λ_max")
    ends = np.abs(np.outer((least, most), eta) - 1)
    bottom = np.where((least * eta < 1) & (most * eta > 1), 0.0, ends.min(axis=0))  # 1/η itself may be an eigenvalue
    axis.fill_between(
        eta, bottom, ends.max(axis=0), color=COLOURS[1], alpha=0.15, linewidth=0, label="graphs of other eigenvalues"
    )
    for eigenvalue in eigenvalues:
        outermost = eigenvalue in (least, most)
        axis.plot(eta, np.abs(eigenvalue * eta - 1), color=INK if outermost else MUTED, linewidth=1.2)
        axis.annotate(
            f"λ = {eigenvalue:g}",
            (eta[-1], abs(eigenvalue * eta[-1] - 1)),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            va="center",
            annotation_clip=False,
        )
    axis.plot(measured["learning_rate"], measured["measured"], ".", color=MUTED, markersize=4, label="measured")
    at = measured[measured["learning_rate"] == quadratic.SHOWN_RATE].set_index("eigenvalue")["measured"]
    axis.plot(quadratic.SHOWN_RATE, at[most], "D", color=COLOURS[2], label="oscillates (λ_max)")
    axis.plot(quadratic.SHOWN_RATE, at[least], "D", color=COLOURS[0], label="does not (λ_min)")
    axis.axhline(1, color=RULE, linewidth=1)
    axis.set_xlim(0, eta[-1])
    axis.set_ylim(0, 1.75)
    axis.set_xlabel("learning rate η", color=MUTED)
    axis.set_title("Rate of convergence |λη - 1| per update", loc="left", fontsize=11, fontweight="bold", color=INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    canvas.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    largest = float((measured["measured"] - measured["formula"]).abs().max())
    return Chart(
        canvas,
        f"Lines: |λη - 1| for λ = {', '.join(f'{each:g}' for each in eigenvalues)}. Points: the factor by which an "
        "update changes the distance from the minimum along an eigenvector, measured on gradient descent over "
        f"{quadratic.NUM_UPDATES} updates at most. Above 1 it diverges. Diamonds: η = {quadratic.SHOWN_RATE:g}, where "
        "the direction of λ_max oscillates and that of λ_min does not.",
        f"Rates of convergence against the learning rate; measured and computed differ by {largest:.1g} at most.",
        "Ours, drawn like the paper's",
    )


def _figure_28(scale: Scale) -> Figure:
    measured = quadratic.rates()
    return Figure(
        "fig28",
        scale,
        TITLES["fig28"],
        "Graph of |λ_i η - 1|: convergence rates of gradient descent on λ_min-strongly convex and λ_max-smooth "
        "quadratic surfaces.",
        (),
        {},
        (
            ("", quadratic_claims.formula(measured)),
            ("", quadratic_claims.underdamped_range(measured)),
            ("", quadratic_claims.one_direction_oscillates(measured, quadratic.SHOWN_RATE)),
            ("", quadratic_claims.optimal_rate(measured)),
        ),
        chart=lambda _: chart(measured),
        tables=(
            Table(
                "rates",
                "Rates, by the formula and measured",
                "Gradient descent on a quadratic in four dimensions, one row a learning rate and eigenvalue. updates: "
                "those over which the rate is measured, before rounding errors are all that is left. oscillates: every "
                "one lands on the other side of the minimum. Here at the learning rate of the diamonds; all are in "
                "all-rates.csv.",
                lambda _: _with_difference(measured[measured["learning_rate"] == quadratic.SHOWN_RATE]),
            ),
            Table("all-rates", "At every learning rate", "The same.", lambda _: _with_difference(measured)),
        ),
        deviations=("The paper draws the formula; here gradient descent on a quadratic is run beside it.",),
    )


def _with_difference(rates: pd.DataFrame) -> pd.DataFrame:
    """The rates with how far the measured one is off, which three digits would not show."""
    rates = rates.copy()
    rates.insert(list(rates).index("measured") + 1, "difference", rates["measured"] - rates["formula"])
    return rates


FIGURES: Mapping[str, Callable[[Scale], Figure]] = {"fig28": _figure_28}
"""Id -> what makes the figure at a scale."""
