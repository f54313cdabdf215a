"""Pictures of what the paper prints as tables, and of Figure 8: our numbers, with the paper's beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import sgdwalk

INK, MUTED, RULE = "#1b1f24", "#59616b", "#d4d8dd"
COLOURS = ("#0b62a8", "#cc4a10", "#00785a")
MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class Chart:
    """A picture with what must be said about it."""

    figure: Figure
    caption: str
    alternative: str
    label: str = "The paper's numbers and ours"


def barrier_shares(table: pd.DataFrame) -> Chart:
    """Table 1 as a picture: the share of an epoch's updates that cross a barrier.

    Args:
        table: of ``tables.barriers``: network, epoch, share, low, high, authors_share, paper_share.
    """
    networks = list(dict.fromkeys(table["network"]))
    figure, axes = _row(len(networks), "share of updates that cross a barrier")
    for axis, network, colour in zip(axes, networks, COLOURS, strict=False):
        rows = table[table["network"] == network]
        x = np.arange(len(rows))
        errors = np.clip([rows["share"] - rows["low"], rows["high"] - rows["share"]], 0, None)
        axis.errorbar(x, rows["share"], errors, fmt="o", color=colour, capsize=3, label="ours")
        axis.plot(x + 0.12, rows["authors_share"], "x", color=colour, label="ours, authors' evaluation")
        axis.plot(x - 0.12, rows["paper_share"], "D", color=INK, markerfacecolor="none", label="the paper")
        _epochs(axis, network, rows["epoch"])
    _legend(figure, axes[0])
    known = table[table["share"].notna()]
    said = "; ".join(f"{row.network}, epoch {row.epoch}: {row.share:.1%}" for row in known.itertuples())
    return Chart(
        figure,
        "Share of an epoch's watched updates that cross a barrier, with its 95 % interval (Clopper and Pearson), by "
        "the clean evaluation; crosses: the same updates as the authors' code evaluates them, where that was measured; "
        "diamonds: the paper's counts by 450.",
        f"Barriers by epoch. {said}.",
    )


def heights(table: pd.DataFrame) -> Chart:
    """Table 2 as a picture: the mean height above the valley floor.

    Args:
        table: of ``tables.heights``: network, learning_rate, epoch, mean, low, high, paper.
    """
    networks = list(dict.fromkeys(table["network"]))
    figure, axes = _row(len(networks), "mean height, nats per example")
    for axis, network in zip(axes, networks, strict=False):
        rows = table[table["network"] == network]
        for (rate, each), colour, marker in zip(rows.groupby("learning_rate"), COLOURS, MARKERS, strict=False):
            x = np.arange(len(each))
            errors = np.nan_to_num(np.clip([each["mean"] - each["low"], each["high"] - each["mean"]], 0, None))
            errors[0] = np.minimum(errors[0], 0.95 * each["mean"].to_numpy())  # zero has no place on this axis
            axis.errorbar(x, each["mean"], errors, fmt=f"{marker}-", color=colour, capsize=3, label=f"ours, η = {rate}")
            axis.plot(x, each["paper"], "D--", color=colour, markerfacecolor="none", label=f"the paper, η = {rate}")
        axis.set_yscale("log")
        _epochs(axis, network, rows["epoch"].unique())
        axis.legend(fontsize=9, frameon=False)
    said = "; ".join(
        f"{row.network}, η = {row.learning_rate}, epoch {row.epoch}: {row.mean:.3g}" for row in table.itertuples()
    )
    return Chart(
        figure,
        "Mean height (L(θ_t) + L(θ_{t+1}) - 2 floor) / 2 over the watched updates of an epoch: mean over the seeds "
        "with Student's 95 % interval (filled), and the paper's Table 2 (hollow).",
        f"Mean heights. {said}.",
    )


def barriers_by_epoch(run: sgdwalk.Run, epochs: Sequence[int]) -> Chart:
    """Figure 8: barriers in each epoch; below, the heights at the updates that cross one, against the loss there."""
    steps = run.steps[run.steps["epoch"].isin(list(epochs))]
    known = steps[steps["barrier"].notna()]
    counts = known["barrier"].astype(int).groupby(known["epoch"]).sum().reindex(list(epochs))
    crossed = known[known["barrier"].astype(bool)]
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.bar(counts.index, counts.to_numpy(float), color=COLOURS[0])
    top.set_title("Barriers in an epoch", loc="left", fontsize=11, fontweight="bold", color=INK)
    top.set_ylim(0, max(1.0, 1.15 * float(counts.max())))
    bottom.plot(crossed["epoch"], crossed["loss"], "_", color=MUTED, markersize=9, label="loss L(θ_t)")
    bottom.plot(crossed["epoch"], crossed["height"].where(crossed["height"] > 0), "o", color=COLOURS[1], label="height")
    bottom.set_title("At these updates", loc="left", fontsize=11, fontweight="bold", color=INK)
    bottom.set_xlabel("epoch", color=MUTED)
    if len(crossed):
        bottom.set_yscale("log")
        bottom.legend(fontsize=9, frameon=False)
    else:
        bottom.text(0.5, 0.5, "no barrier in any watched epoch", ha="center", transform=bottom.transAxes, color=MUTED)
    for axis in (top, bottom):
        dress(axis)
    said = ", ".join(f"epoch {epoch}: {int(count)}" for epoch, count in counts.dropna().items())
    return Chart(
        figure,
        f"Top: updates that cross a barrier, of those watched in epochs {', '.join(map(str, epochs))} of one training. "
        "Bottom: the height of Table 2 at each of them, and the loss there, nats per example.",
        f"Barriers by epoch. {said}.",
        "Ours, drawn like the paper's",
    )


def _row(number: int, label: str) -> tuple[Figure, list]:
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, number)))
    axes[0].set_ylabel(label, color=MUTED)
    for axis in axes:
        dress(axis)
    return figure, axes


def _epochs(axis, title: str, epochs: Sequence[int] | np.ndarray | pd.Series) -> None:
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axis.set_xticks(np.arange(len(epochs)), [str(int(epoch)) for epoch in epochs])
    axis.set_xlim(-0.5, len(epochs) - 0.5)
    axis.set_xlabel("epoch", color=MUTED)


def _legend(figure: Figure, axis) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)


def dress(axis) -> None:
    """Thin rules, no frame: the look of every chart."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(RULE)
    axis.grid(axis="y", color=RULE, linewidth=0.6)
    axis.tick_params(which="both", colors=MUTED, labelsize=9)
