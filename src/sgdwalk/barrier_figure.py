"""The figure of barriers: the rise of each segment's inside above its ends, and the barriers of each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sgdwalk import drawing
from sgdwalk.analysis import by_epoch, within
from sgdwalk.captions import sentences, span, undefined
from sgdwalk.columns import check_runs
from sgdwalk.drawing import COLOURS, WIDTH, Panel, Picture
from sgdwalk.text import count, number, plain

if TYPE_CHECKING:
    from sgdwalk.run import Run


def barriers(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """How far each segment's inside rises above its ends, and how many barriers each epoch has.

    Above zero is a barrier; it is significant (filled) when it exceeds twice the loss noise, the band around zero. The
    axis is linear within the band and logarithmic outside. Epochs are counted where at least two are known.

    >>> barriers(run).title
    'What stands in the way'

    Source: "A Walk with SGD", Table 1 and Figure 8.
    """
    check_runs(runs)
    counted = [by_epoch(run)["num_barriers"].dropna() for run in runs] if steps is None else []
    counted = [counts[counts.index.notna()] for counts in counted]
    names = [drawing.drawable(run.name) for run in runs] if len(runs) > 1 else []
    legend_rows = drawing.legend_rows(names, width)
    specification = [Panel("Rise of the segment's inside above its ends", 180, legend_rows)]
    if any(len(counts) > 1 for counts in counted):
        specification.append(Panel("Barriers in each epoch", 80, over_steps=False))
    picture, axes = drawing.panels("What stands in the way", specification, width)
    tables = [within(run.steps, steps) for run in runs]
    bands = [2 * table["loss_noise"].max() for table in tables]
    band = np.nanmax([*bands, 0.0])
    _signed_logarithmic(axes[0], pd.concat([table["barrier_height"] for table in tables]).dropna(), band)
    said = []
    for index, (run, table) in enumerate(zip(runs, tables, strict=True)):
        colour, marker = drawing.style_of(index)
        _draw_rises(axes[0], table, COLOURS[colour], marker)
        num_known, num = int(table["barrier"].count()), int(table["barrier"].sum())
        significant = int((table["barrier"] & table["barrier_significant"]).sum())
        on = f"{count(num, 'barrier')} on {count(num_known, 'step')}"
        said.append(f"{plain(run.name, 60)}: {on}, {significant:,} significant.")
        said.append(undefined(run, ("barrier",), steps))
    samples = [drawing.key(*drawing.style_of(index), line="") for index in range(len(names))]
    drawing.legend(axes[0], samples, names, legend_rows)
    if len(axes) > 1:
        _draw_counts(axes[1], counted)
    picture.caption = sentences(
        "The highest loss inside each segment less the higher of its ends, in nats per example: above zero the step "
        "crosses a barrier. Filled markers rise above twice the noise of the loss"
        + (f" (the band, ± {number(band)})." if band > 0 else ", which was not measured here.")
    )
    picture.notes = sentences(*said)
    picture.alternative = sentences(f"Points over {span(pd.concat(tables))}.", *said)
    return picture


def _signed_logarithmic(ax: Axes, values: pd.Series, band: float) -> None:
    """A y axis for values of both signs over many decades, linear within ± band."""
    ax.axhline(0, color=COLOURS["ink"], linewidth=1, zorder=1)
    largest = values.abs().max() if len(values) else 0.0
    if not largest > 0:
        drawing.bounds(ax, -1, 1, (0,))
        return
    linear = band if 0 < band < largest else largest / 1e3
    low, high = min(values.min(), -linear) * 1.6, max(values.max(), linear) * 1.6
    drawing.signed_decades(ax, low, high, linear)
    if band > 0:
        ax.axhspan(-band, band, color=COLOURS["shade"], linewidth=0, zorder=0)


def _draw_rises(ax: Axes, table: pd.DataFrame, colour: str, marker: str) -> None:
    crossed = table["barrier"].fillna(False)
    significant = crossed & table["barrier_significant"].fillna(False)
    for rows, size, style in (
        (table[~crossed], 2.2, {"markerfacecolor": colour, "markeredgewidth": 0.0, "alpha": 0.55}),
        (table[crossed & ~significant], 4.5, {"markerfacecolor": COLOURS["paper"], "markeredgewidth": 1.2}),
        (table[significant], 5.5, {"markerfacecolor": colour, "markeredgewidth": 0.0}),
    ):
        x, y = drawing.thinned(rows.index.to_numpy(float), rows["barrier_height"].to_numpy())
        ax.plot(x, y, marker, color=colour, markersize=size, zorder=3, **style)


def _draw_counts(ax: Axes, counted: list[pd.Series]) -> None:
    """Bars beside each other: the barriers of each run in each epoch."""
    share = 0.8 / len(counted)
    for index, counts in enumerate(counted):
        x = counts.index.to_numpy(float) + (index - (len(counted) - 1) / 2) * share
        ax.bar(x, counts.to_numpy(float), share * 0.92, color=COLOURS[drawing.style_of(index)[0]], linewidth=0)
    most = max((counts.max() for counts in counted if len(counts)), default=0)
    drawing.whole_numbers(ax, most)
    if most == 0:
        drawing.words(ax, "none in any epoch")
