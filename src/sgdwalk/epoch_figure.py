"""The figure of what is known of epochs and not of single steps: sampled heights and the gauge, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sgdwalk import drawing
from sgdwalk.analysis import gauge_epochs, sampled_epochs
from sgdwalk.captions import course, sentences
from sgdwalk.columns import check_runs, sampled_measures
from sgdwalk.drawing import COLOURS, WIDTH, Panel, Picture
from sgdwalk.errors import InputError
from sgdwalk.text import plain

if TYPE_CHECKING:
    from sgdwalk.run import Run


def epoch_means(*runs: Run, width: float = WIDTH) -> Picture:
    """Mean height of each epoch from sampled segments, and mean slope at the end of updates, with 95 % intervals.

    Raises:
        InputError: no run has sampled segments or a gauge.

    >>> from sgdwalk.records import StepRecord
    >>> from sgdwalk.run import Run
    >>> epoch_means(Run({"name": "SGD"}, [StepRecord(0, epoch=1, measures={"gauge": 0.1})])).title
    'What epochs come to'
    """
    check_runs(runs)
    sampled = {
        (run.name if name == "sampled" else f"{run.name}, {name}", index): sampled_epochs(run, name)
        for index, run in enumerate(runs)
        for name in sampled_measures(run)
    }
    gauged = {(run.name, index): gauge_epochs(run) for index, run in enumerate(runs) if "gauge" in run.steps}
    panels = [
        ("Mean height above the valley floor, sampled", "mean_height", "height", sampled),
        ("Mean slope at the end of updates (gauge)", "mean_gauge", "gauge", gauged),
    ]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        raise InputError(
            "None of these runs has sampled segments or a gauge: pass method='sampled' or gauge=True to watch()."
        )
    labels = [drawing.drawable(run.name) for run in runs] if len(runs) > 1 else []
    rows = drawing.legend_rows(labels, width)
    picture, axes = drawing.panels(
        "What epochs come to",
        [Panel(title, 140, 0 if index else rows, over_steps=False) for index, (title, *_) in enumerate(panels)],
        width,
    )
    courses = []
    for ax, (title, mean, bound, tables) in zip(axes, panels, strict=True):
        for position, ((said, index), table) in enumerate(tables.items()):
            known = table[table.index.notna()]
            offset = 0.1 * (position - (len(tables) - 1) / 2)
            _draw(ax, known.index.to_numpy(float) + offset, known, mean, bound, index)
            courses.append(f"{plain(said, 60)}, {title}: {course(known[mean])}.")
        if not ax.has_data():
            drawing.words(ax, "the loop did not say the epoch")
        ax.axhline(0, color=COLOURS["muted"], linewidth=1, zorder=1)
    drawing.legend(axes[0], [drawing.key(*drawing.style_of(index)) for index in range(len(labels))], labels, rows)
    picture.caption = sentences(
        "Mean height of each epoch from a few evaluation batches of a few steps, in nats per example."
        if sampled
        else "",
        "Gauge: the mean slope of the full loss at the end of updates; above zero they go past their segment's floor."
        if gauged
        else "",
        "Bars: 95 % intervals, where there are steps enough.",
    )
    picture.alternative = sentences("Points over epochs.", *courses)
    return picture


def _draw(ax: Axes, x: np.ndarray, table: pd.DataFrame, mean: str, bound: str, index: int) -> None:
    colour, marker = drawing.style_of(index)
    y = table[mean].to_numpy(float)
    if not np.isfinite(y).any():
        return
    ax.plot(x, y, color=COLOURS[colour], linewidth=1.0, zorder=2)
    ax.plot(x, y, marker, color=COLOURS[colour], markersize=4.5, markeredgewidth=0, zorder=4)
    ax.vlines(x, table[f"{bound}_low"], table[f"{bound}_high"], color=COLOURS[colour], linewidth=1.6, zorder=3)
