"""Pictures of trainings with and without isotropic noise, over their updates: Figures 5, 25 and 26, footnote 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import sgdwalk
from sgdwalk.paper.charts import INK, MUTED, RULE, Chart, dress
from sgdwalk.paper.figure import published_name
from sgdwalk.paper.noise_claims import final_accuracy, final_distance, final_loss
from sgdwalk.paper.noise_trainings import FACTORS, Reading, change_role, noise_role
from sgdwalk.paper.trainings import Architecture

POINTS = 50
"""Of a curve: each is a mean over as many updates as that leaves."""
STYLES: Mapping[str, tuple[str, str, float]] = {
    "gd": ("#1b1f24", "-", 2.0),
    "sgd": ("#00785a", "-", 1.6),
    "noise-variance-0.1": ("#cc4a10", "-", 1.6),
    "noise-variance-0.05": ("#cc4a10", "--", 1.6),
    "noise-std-0.1": ("#0b62a8", "-", 1.6),
    "noise-std-0.05": ("#0b62a8", "--", 1.6),
}
"""Role -> colour, line and width."""
SHORT: Mapping[str, str] = {
    "gd": "GD",
    "sgd": "SGD",
    "noise-variance-0.1": "σ², 0.1",
    "noise-variance-0.05": "σ², 0.05",
    "noise-std-0.1": "σ, 0.1",
    "noise-std-0.05": "σ, 0.05",
}
"""Role -> what stands at the end of its curve."""
CHANGES: Mapping[str, tuple[str, str]] = {
    "lower": ("learning rate 0.01", "#59616b"),
    "gd": ("GD", "#1b1f24"),
    "sgd": ("SGD", "#00785a"),
}
"""What is tried from where the noisy training ended -> its words and colour."""


def against_gd(runs: Mapping[str, Sequence[sgdwalk.Run]], labels: Mapping[str, str]) -> Chart:
    """Training loss, validation accuracy, cosine and distance over the updates; the first seed of each role.

    Args:
        runs: by role, one a seed.
        labels: role -> what it is, in words.
    """
    figure = Figure(figsize=(9.6, 7.0), layout="constrained")
    (loss, accuracy), (cosine, distance) = figure.subplots(2, 2)
    _dress(loss, "Training loss", "nats per example", log=True)
    _dress(accuracy, "Validation accuracy", "share of the images")
    _dress(cosine, "Cosine of consecutive gradients", "")
    _dress(distance, "Distance from the start, ‖θ_t - θ_0‖", "", log=True)
    ends: list[dict[str, tuple[float, float]]] = [{}, {}, {}, {}]
    shown = {role: style for role, style in STYLES.items() if role in runs}
    for role, (colour, line, width) in shown.items():
        run = runs[role][0]
        validated = run.epochs["validation_accuracy"]
        curves = (
            blocks(run.steps["batch_loss"]),
            pd.Series(validated.to_numpy(), index=_updates(run, validated.index)),
            blocks(run.steps["cosine"]),
            blocks(run.steps["next_distance"]),
        )
        for axis, curve, end in zip((loss, accuracy, cosine, distance), curves, ends, strict=True):
            axis.plot(curve.index, curve, line, color=colour, linewidth=width, label=labels[role])
            known = curve.dropna()
            if len(known):
                end[role] = (known.index[-1], known.iloc[-1])
    cosine.set_ylim(-1.05, 1.05)
    for axis, end in zip((loss, accuracy, cosine, distance), ends, strict=True):
        label_ends(axis, {SHORT[role]: (*point, STYLES[role][0]) for role, point in end.items()})
    handles, names = loss.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    said = "; ".join(
        f"{labels[role]}: loss {final_loss(runs[role][0]):.3g}, accuracy {final_accuracy(runs[role][0]):.1%}, distance "
        f"{final_distance(runs[role][0]):.3g}"
        for role in shown
    )
    return Chart(
        figure,
        "One training of each, the first seed. Loss: of GD the full loss before an update, of SGD its mini-batches'. "
        f"Loss, cosine and distance are means over blocks of updates ({POINTS} a curve), accuracies single "
        "validations.",
        f"At the end: {said}.",
        "Ours, drawn like the paper's",
    )


def going_on(runs: Mapping[str, Sequence[sgdwalk.Run]], starts: Sequence[tuple[Architecture, Reading]]) -> Chart:
    """The loss of trainings with noise, and what is tried from where they ended; the first seed.

    Args:
        runs: by role, one a seed.
        starts: network and reading of the noisy trainings.
    """
    figure = Figure(figsize=(3.2 + 3.2 * len(starts), 3.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(starts), sharey=True))
    said = []
    for axis, (architecture, reading) in zip(axes, starts, strict=True):
        title = f"{published_name(architecture)}, {SHORT[noise_role(reading, FACTORS[0])]}"
        _dress(axis, title, "training loss, nats per example" if axis is axes[0] else "", log=True)
        before = runs[change_role("stuck", architecture, reading)][0]
        curve = blocks(before.steps["batch_loss"])
        axis.plot(curve.index, curve, color="#cc4a10", linewidth=1.6, label="GD with noise, factor 0.1")
        axis.axvline(len(before.steps), color=RULE)
        ends = {}
        found = []
        for change, (words, colour) in CHANGES.items():
            run = runs[change_role(change, architecture, reading)][0]
            curve = blocks(run.steps["batch_loss"])
            axis.plot(len(before.steps) + curve.index, curve, color=colour, linewidth=1.6, label=f"then {words}")
            ends[words] = (len(before.steps) + curve.index[-1], curve.iloc[-1], colour)
            found.append(f"{words} {final_loss(run):.3g}")
        label_ends(axis, ends)
        said.append(f"{title}: {final_loss(before):.3g} before, then {', '.join(found)}")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return Chart(
        figure,
        "Training loss of GD with isotropic noise (left of the line) and of trainings that go on from its last "
        "parameters: with the noise at a tenth of the learning rate, by GD without noise, by SGD. The first seed; "
        f"means over blocks of updates ({POINTS} a curve); of SGD the mini-batches' losses.",
        f"Final losses. {'; '.join(said)}.",
        "Ours",
    )


def blocks(values: pd.Series) -> pd.Series:
    """Means over blocks of consecutive updates, each at its block's last update; undefined ones are left out."""
    size = -(-len(values) // POINTS)
    block = np.arange(len(values)) // size
    means = values.groupby(block).mean()
    means.index = pd.Index([min((number + 1) * size, len(values)) for number in means.index], name="update")
    return means


def label_ends(axis: Any, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Write each curve's name beside its end, in its colour, and apart from the others."""
    axis.margins(x=0.02)
    to_axis = axis.transData + axis.transAxes.inverted()
    axis.autoscale_view()
    places = sorted((to_axis.transform((x, y))[1], name, colour) for name, (x, y, colour) in ends.items())
    height = -1.0
    for place, name, colour in places:
        height = max(place, height + 0.065)
        axis.annotate(
            name,
            (1.01, height),
            xycoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def _updates(run: sgdwalk.Run, epochs: pd.Index) -> np.ndarray:
    """Updates performed at the end of epochs."""
    last = run.steps.groupby("epoch").size().cumsum()
    return last.reindex(epochs).to_numpy()


def _dress(axis: Any, title: str, label: str, *, log: bool = False) -> None:
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axis.set_xlabel("updates", color=MUTED)
    axis.set_ylabel(label, color=MUTED)
    if log:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    dress(axis)
