"""Pictures of curvature over a training: Figures 3 and 7, and Equation 3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import sgdwalk
from sgdwalk.paper.charts import COLOURS, INK, MUTED, RULE, Chart, dress
from sgdwalk.paper.spectral_tables import curve, decompositions

MODES = {
    "train": ("statistics of each batch (train mode)", COLOURS[0], "o-"),
    "eval": ("running statistics (validation mode)", COLOURS[1], "s--"),
    "whole": ("train mode, all training images", INK, "D"),
    "authors": ("as the authors' code", COLOURS[2], "x"),
}
"""Column -> what it is, colour, marker and line."""
TERMS = {
    "hessian": ("‖H‖", INK, "o-"),
    "second_moment": ("‖C‖", COLOURS[0], "s-"),
    "residual": ("‖R‖", COLOURS[1], "^-"),
}


def spectral_curves(runs: Sequence[sgdwalk.Run], name: str) -> Chart:
    """Figures 3 and 7: spectral norm above, validation accuracy below, over the epochs; one line a seed.

    Args:
        runs: trainings, one a seed; the first is drawn strongest.
        name: of the network.
    """
    figure = Figure(figsize=(7.6, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    tables = [curve(run) for run in runs]
    for number, (run, table) in enumerate(zip(runs, tables, strict=True)):
        strength = 1.0 if number == 0 else 0.4
        for column, (label, colour, style) in MODES.items():
            known = table[table[column].notna()]
            if len(known):
                hollow = "none" if column == "whole" else colour
                size = 8 if column in ("whole", "authors") else 5
                top.plot(
                    known["epoch"],
                    known[column].abs(),
                    style,
                    color=colour,
                    markerfacecolor=hollow,
                    markersize=size,
                    alpha=strength,
                    label=label if number == 0 else None,
                )
        if "validation_accuracy" in run.epochs:
            accuracy = run.epochs["validation_accuracy"]
            bottom.plot(accuracy.index, accuracy, color=COLOURS[0], alpha=strength, linewidth=1.2)
    top.set_yscale("log")
    top.set_ylabel("|λ| of largest magnitude,\nnats / unit of θ²", color=MUTED)
    bottom.set_ylabel("validation accuracy", color=MUTED)
    bottom.set_xlabel("epoch", color=MUTED)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    _title(top, f"Spectral norm of the Hessian, {name}")
    _title(bottom, "Validation accuracy")
    handles, labels = top.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    else:
        top.text(0.5, 0.5, "no spectral norm was measured", ha="center", transform=top.transAxes, color=MUTED)
    first = tables[0]
    said = "; ".join(
        f"epoch {epoch:.0f}: {_number(train)}, {_number(running)} with running statistics"
        for epoch, train, running in first[["epoch", "train", "eval"]].to_numpy(float)
    )
    missing = sum(int(table[column].isna().sum()) for table in tables for column in ("train", "eval"))
    left_out = f" {missing} that had not converged are left out." if missing else ""
    return Chart(
        figure,
        "Top: magnitude of the Hessian's eigenvalue of largest magnitude before the last update of an epoch, both "
        "BatchNorm modes at the same parameters. Bottom: accuracy on the validation images after each epoch. Strong "
        f"lines: the first seed; pale lines: the others.{left_out} The paper shows one training, in train mode.",
        f"Spectral norm and validation accuracy over training. First seed: {said}.",
        "Ours, drawn like the paper's",
    )


def equation_3(runs: Sequence[sgdwalk.Run]) -> Chart:
    """Norms of the three matrices, what of H they are, and how far their top eigenvectors agree; one line a seed."""
    figure = Figure(figsize=(7.6, 6.4), layout="constrained")
    (norms, shares), (overlaps, losses) = figure.subplots(2, 2, sharex=True)
    tables = [table for table in map(decompositions, runs) if len(table)]
    for number, table in enumerate(tables):
        x, strength = table.index + 1, 1.0 if number == 0 else 0.4
        first = number == 0
        for column, (label, colour, style) in TERMS.items():
            norms.plot(x, table[column], style, color=colour, alpha=strength, markersize=4, label=label * first)
            if column != "hessian":
                share = table[f"{column}_share"]
                shares.plot(x, share, style, color=colour, alpha=strength, markersize=4, label=f"{label} / ‖H‖" * first)
        overlaps.plot(x, table["overlap"], "o-", color=COLOURS[2], alpha=strength, markersize=4, label="ours" * first)
        overlaps.plot(x, table["chance"], ":", color=MUTED, label="two random spaces" * first)
        losses.plot(x, table["loss"], "o-", color=INK, alpha=strength, markersize=4)
    for axis in (norms, shares, losses):
        axis.set_yscale("log")
    norms.set_xscale("log")
    overlaps.set_ylim(0, 1.02)
    _title(norms, "Spectral norms")
    _title(shares, "By that of H")
    _title(overlaps, "Overlap of top eigenspaces")
    _title(losses, "Training loss, nats per example")
    shares.axhline(1.0, color=RULE, linewidth=0.8, zorder=0)
    for axis in (overlaps, losses):
        axis.set_xlabel("update t + 1", color=MUTED)
    for axis in (norms, shares, overlaps):
        if tables:
            axis.legend(fontsize=9, frameon=False)
    said = "; ".join(
        f"update {row.Index}: loss {row.loss:.2g}, ‖C‖/‖H‖ {row.second_moment_share:.2g}, "
        f"‖R‖/‖H‖ {row.residual_share:.2g}, overlap {row.overlap:.2f}"
        for row in (tables[0].itertuples() if tables else ())
    )
    return Chart(
        figure,
        "H = C + R before some updates of a training that ends in interpolation: spectral norms of the three matrices; "
        "those of C and R by that of H; the overlap of the spaces of the top eigenvectors of C and H, as many as "
        "classes (1: the same space); the training loss. Strong lines: the first seed; pale lines: the others.",
        f"Equation 3 over a training. First seed: {said}.",
        "Ours; the paper shows no picture of it",
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "not converged"


def _title(axis, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK)
    dress(axis)
