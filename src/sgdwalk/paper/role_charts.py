"""Pictures of Figures 4 and 22 to 24, cosine and distance by setting, and of the grid of ``roles``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from sgdwalk.paper.charts import INK, MUTED, Chart, dress
from sgdwalk.paper.role_measures import (
    ACCURACY,
    COSINE,
    DISTANCE,
    HEIGHT,
    SPECTRAL_NORM,
    Moment,
    Quantity,
    Runs,
    values,
)
from sgdwalk.paper.role_trainings import Setting
from sgdwalk.paper.trainings import ARCHITECTURES, Architecture

BLOCKS = 20
"""The cosine is averaged over so many blocks of updates."""
SHOWN: tuple[Quantity, ...] = (HEIGHT, DISTANCE, COSINE, SPECTRAL_NORM, ACCURACY)


def cosine_and_distance(runs: Runs, batches: Sequence[Setting], rates: Sequence[Setting], updates: int) -> Chart:
    """Cosine (top) and distance (bottom) over the first updates: batch sizes on the left, learning rates on the right.

    Args:
        runs: by role, one a seed.
        batches: settings with several batch sizes.
        rates: settings with several learning rates.
        updates: how many updates are shown.
    """
    figure = Figure(figsize=(8.6, 6.0), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    columns = (
        (f"batch size, at η = {batches[0].learning_rate:g}", [(f"B = {each.batch_size}", each) for each in batches]),
        (f"learning rate, at B = {rates[0].batch_size}", [(f"η = {each.learning_rate:g}", each) for each in rates]),
    )
    said = []
    labels: dict[Any, list[tuple[float, str, Any]]] = {}
    for (top, bottom), (title, settings) in zip(grid.T, columns, strict=True):
        for (label, setting), shade in zip(settings, np.linspace(0.15, 0.8, len(settings)), strict=True):
            colour = colormaps["viridis"](shade)
            mean, deviation, centres = _blocks(runs[setting.role], "cosine", updates)
            top.fill_between(centres, mean - deviation, mean + deviation, color=colour, alpha=0.13, linewidth=0)
            top.plot(centres, mean, color=colour, linewidth=1.8)
            distance = np.mean([run.steps["next_distance"].iloc[:updates] for run in runs[setting.role]], axis=0)
            bottom.plot(np.arange(1, updates + 1), distance, color=colour, linewidth=1.8)
            for axis, end in ((top, mean[-1]), (bottom, distance[-1])):
                labels.setdefault(axis, []).append((float(end), label, colour))
            said.append(f"{label}: cosine {mean[-1]:.3f}, distance {distance[-1]:.3g}")
        top.plot([0, updates], [0, 0], color=MUTED, linewidth=0.7)
        top.set_title(f"By {title}", loc="left", fontsize=11, fontweight="bold", color=INK)
        bottom.set_xlabel("updates", color=MUTED)
        bottom.set_xlim(0, 1.17 * updates)
        dress(top)
        dress(bottom)
    grid[1, 0].set_ylim(0, None)
    for axis, ends in labels.items():
        _label(axis, updates, ends)
    grid[0, 0].set_ylabel("cosine of consecutive gradients", color=MUTED)
    grid[1, 0].set_ylabel("distance ‖θ_t - θ_0‖", color=MUTED)
    return Chart(
        figure,
        f"Top: mean cosine of consecutive gradients in each of {BLOCKS} equal blocks of the first {updates} updates, "
        "all seeds together; bands: one standard deviation of the single cosines. Bottom: distance from the start, "
        "mean over the seeds. Dark to light: small to large.",
        f"Cosine and distance over {updates} updates. At the end: {'; '.join(said)}.",
        "Ours, drawn like the paper's",
    )


def _label(axis: Any, x: float, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Write names beside the ends of lines, moved apart where they would cover each other."""
    low, high = axis.get_ylim()
    height = (high - low) / 16
    below = low - height
    for y, label, colour in sorted(ends):
        below = max(y, below + height)
        axis.text(
            1.01 * x,
            below,
            label,
            va="center",
            fontsize=8,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )


def _blocks(runs: Sequence, column: str, updates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of a column in each block, over updates and seeds, and the blocks' centres."""
    edges = np.linspace(0, updates, BLOCKS + 1).round().astype(int)
    table = pd.concat([run.steps[column].iloc[:updates] for run in runs])
    groups = table.groupby(np.digitize(table.index, edges[1:-1]))
    return groups.mean().to_numpy(float), groups.std().to_numpy(float), (edges[:-1] + edges[1:]) / 2


def grids(
    runs: Runs, settings: Mapping[Architecture, Sequence[Setting]], moments: Mapping[Architecture, Sequence[Moment]]
) -> Chart:
    """The grid of learning rates and batch sizes: one row of maps a network and moment, one map a quantity."""
    rows: list[tuple[Architecture, Moment]] = [(network, moment) for network in settings for moment in moments[network]]
    figure = Figure(figsize=(12.0, 2.4 * len(rows) + 0.4), layout="constrained")
    panels = np.atleast_2d(figure.subplots(len(rows), len(SHOWN)))
    for number, ((network, moment), line) in enumerate(zip(rows, panels, strict=True)):
        cells = settings[network]
        rates = sorted({each.learning_rate for each in cells})
        sizes = sorted({each.batch_size for each in cells})
        for axis, quantity in zip(line, SHOWN, strict=True):
            found = values(runs, cells, quantity, moment)
            known = np.isfinite(found)
            means = np.where(known, found, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
            table = np.full((len(sizes), len(rates)), np.nan)
            for each, mean in zip(cells, means, strict=True):
                table[sizes.index(each.batch_size), rates.index(each.learning_rate)] = mean
            _map(axis, table, logarithmic=quantity.logarithmic)
            axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            axis.set_yticks(range(len(sizes)), [str(size) for size in sizes])
            axis.tick_params(colors=MUTED, labelsize=8, length=0)
            if number == 0:
                axis.set_title(
                    quantity.words.replace(", ", "\n").replace(" (", "\n(").replace(" of ", "\nof ", 1),
                    fontsize=10,
                    color=INK,
                )
            if number == len(rows) - 1:
                axis.set_xlabel("learning rate η", color=MUTED, fontsize=9)
        line[0].set_ylabel(
            f"{ARCHITECTURES[network].partition(' on ')[0]}\nafter {moment}\n\nbatch size B", color=INK, fontsize=9
        )
    return Chart(
        figure,
        "Mean over the seeds at every learning rate (left to right) and batch size (bottom to top), after a fixed "
        "number of updates and of epochs. Colour: low to high within each map, by the logarithm but for cosine and "
        "accuracy. A quantity that follows the learning rate alone has columns of one colour, one that follows the "
        "batch size alone rows.",
        f"Maps of {', '.join(quantity.words for quantity in SHOWN)} over learning rate and batch size for "
        f"{' and '.join(ARCHITECTURES[network] for network in settings)}; the numbers are in the tables of the grid.",
        "Ours",
    )


def _map(axis, table: np.ndarray, *, logarithmic: bool) -> None:
    """Coloured cells with their numbers written into them."""
    shown = np.log(np.where(table > 0, table, np.nan)) if logarithmic else table
    known = shown[np.isfinite(shown)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    axis.imshow(shown, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for (row, column), number in np.ndenumerate(table):
        shade = (shown[row, column] - low) / (high - low) if high > low else 0.0
        dark = shade > 0.55 or not np.isfinite(number)
        axis.text(column, row, _cell(number), ha="center", va="center", fontsize=8, color=INK if dark else "white")
    for side in axis.spines.values():
        side.set_visible(False)


def _cell(number: float) -> str:
    """A number that fits into a cell.

    >>> _cell(0.0123), _cell(0.0000623), _cell(float("nan"))
    ('0.012', '6e-5', '–')
    """
    if not np.isfinite(number):
        return "–"
    return f"{number:.2g}" if number == 0 or abs(number) >= 0.001 else f"{number:.0e}".replace("e-0", "e-")
