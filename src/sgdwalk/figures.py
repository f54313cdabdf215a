"""The figures of a run as matplotlib Figures: data in, picture out; nothing is read, saved or shown.

Each function takes one run or several, which are then drawn over each other (:func:`three_panels` takes one), and
returns a :class:`~sgdwalk.drawing.Picture`: a matplotlib Figure with ``title``, ``caption``, ``notes`` (what was left
out and why) and ``alternative`` (what a reader who cannot see it should know). ``steps`` restricts it to a range of
steps, ``width`` is in inches. In the examples ``run`` is what ``sgdwalk.open_run`` returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sgdwalk import drawing
from sgdwalk.analysis import derived, within
from sgdwalk.barrier_figure import barriers
from sgdwalk.captions import course, sentences, span, undefined
from sgdwalk.columns import check_runs, looked_at, plain_measures
from sgdwalk.curvature_figures import curvature, intervals, spectral_density
from sgdwalk.drawing import COLOURS, WIDTH, Panel, Picture
from sgdwalk.epoch_figure import epoch_means
from sgdwalk.errors import InputError
from sgdwalk.text import count, plain
from sgdwalk.three_panels import shared_limits, three_panels, windows

if TYPE_CHECKING:
    from sgdwalk.run import Run

__all__ = [
    "alpha_star",
    "barriers",
    "comparison",
    "curvature",
    "epoch_means",
    "heights",
    "intervals",
    "measures",
    "progress",
    "shared_limits",
    "spectral_density",
    "three_panels",
    "training",
    "windows",
]

MOST_PANELS = 6
"""More measures, or more values noted for an epoch, are named in the caption and not drawn."""
LOGARITHMIC_FROM = 30
"""Positive values that span more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class _Column:
    """A panel of :func:`_over_steps`."""

    name: str
    """Of the column in ``run.steps`` or ``derived(run)``."""
    title: str
    finish: Callable[[Axes, list[pd.Series]], str] = lambda ax, lines: ""
    """Set the axes once the lines are there; returns what the caption must say."""
    undefined: tuple[str, ...] = ()
    """The columns whose undefined values make this one undefined; its own name where empty."""


def _over_steps(
    runs: Sequence[Run],
    title: str,
    caption: str,
    columns: Sequence[_Column],
    steps: range | None,
    width: float,
    height: float = 110,
    below: Sequence[Panel] = (),
    sample: tuple[Line2D, str] | None = None,
) -> tuple[Picture, list[Axes]]:
    """One panel a column, one line a run; ``below``: panels left empty, ``sample``: one more entry in the legend."""
    labels = [drawing.drawable(run.name) for run in runs] if len(runs) > 1 else []
    samples = [drawing.key(*drawing.style_of(index)) for index in range(len(labels))]
    if sample:
        samples.append(sample[0])
        labels.append(sample[1])
    legend_rows = drawing.legend_rows(labels, width)
    picture, axes = drawing.panels(
        title,
        [*(Panel(column.title, height, 0 if index else legend_rows) for index, column in enumerate(columns)), *below],
        width,
    )
    tables = [within(run.steps.join(derived(run)), steps) for run in runs]
    notes, courses = [], []
    for ax, column in zip(axes, columns, strict=False):
        lines = [table[column.name] for table in tables if column.name in table]
        for index, (run, table) in enumerate(zip(runs, tables, strict=True)):
            if column.name in table:
                notes.append(drawing.series(ax, table.index, table[column.name], *drawing.style_of(index)))
                courses.append(f"{plain(run.name, 60)}, {column.title}: {course(table[column.name])}.")
            else:
                notes.append(f"{plain(run.name, 60)} has no {column.title}.")
        notes.append(column.finish(ax, lines))
        if not any(line.notna().any() for line in lines):
            ax.set_yticks([])
            drawing.words(ax, "no defined value")
    told = [name for column in columns for name in column.undefined or (column.name,)]
    notes += [undefined(run, told, steps) for run in runs]
    drawing.legend(axes[0], samples, labels, legend_rows)
    picture.caption, picture.notes = caption, sentences(*notes)
    picture.alternative = sentences(f"Lines over {span(pd.concat(tables))}.", *courses)
    return picture, axes


def _logarithmic(ax: Axes, lines: list[pd.Series]) -> str:
    """A logarithmic y axis where the positive values span more than a factor of 30."""
    values = pd.concat(lines).dropna()
    positive = values[values > 0]
    if positive.empty or positive.max() <= LOGARITHMIC_FROM * positive.min():
        ax.set_ylim(bottom=0)
        return ""
    drawing.decades(ax, positive.min(), positive.max())
    zeros = len(values) - len(positive)
    return f"Logarithmic; {count(zeros, 'value')} of zero cannot be drawn." if zeros else "Logarithmic."


def _cosine_axis(ax: Axes, _: list[pd.Series]) -> str:
    drawing.bounds(ax, -1.08, 1.08, (-1, 0, 1))
    return ""


def _from_zero(ax: Axes, _: list[pd.Series]) -> str:
    ax.set_ylim(bottom=0)
    return ""


def _share_axis(ax: Axes, _: list[pd.Series]) -> str:
    drawing.bounds(ax, 0, 1.08, (0, 0.5, 1))
    return ""


def comparison(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """Full loss L(θ_t), cosine and distance over the steps, one line a run.

    >>> comparison(run).title
    'Where it goes'

    Source: "A Walk with SGD", Figures 1 and 2 show GD and SGD so.
    """
    check_runs(runs)
    columns = [
        _Column("loss", "Full training loss"),
        _Column("cosine", "Cosine of consecutive gradients", _cosine_axis),
        _Column("distance", "Distance from the start", _from_zero),
    ]
    caption = (
        "The full training loss at the iterates, the cosine of consecutive gradients, the distance from the start."
    )
    return _over_steps(runs, "Where it goes", caption, columns, steps, width)[0]


def heights(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """Height above the valley floor at each watched step, (L(θ_t) + L(θ_{t+1}) - 2 floor) / 2, in nats per example.

    >>> heights(run).title
    'How high above the floor'

    Source: "A Walk with SGD", Table 2 gives its mean over an epoch.
    """
    check_runs(runs)
    caption = "Half the sum of the losses at both ends of a segment less the lowest loss along it, in nats per example."
    columns = [_Column("height", "Height above the valley floor", _logarithmic)]
    certified = [run for run in runs if "height_low" in run.steps]
    if certified:
        caption = f"{caption[:-1]}; the band is the 95 % interval of an estimated height."
    picture, (ax,) = _over_steps(runs, "How high above the floor", caption, columns, steps, width, height=180)
    for run in certified:
        table = within(run.steps, steps)
        x, low = drawing.with_gaps(table.index, table["height_low"])
        _, high = drawing.with_gaps(table.index, table["height_high"])
        colour, _ = drawing.style_of(runs.index(run))
        ax.fill_between(x, low, high, color=drawing.COLOURS[colour], alpha=0.2, linewidth=0)
        ax.set_ylim(top=max(ax.get_ylim()[1], 1.05 * np.max(high, where=np.isfinite(high), initial=0.0)))
    return picture


def progress(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """Update ratio ‖θ_{t+1} - θ_t‖ / ‖θ_t‖, and directness: distance from the start / length of the path.

    >>> progress(run).title
    'How far each step reaches'
    """
    check_runs(runs)
    columns = [
        _Column("update_ratio", "Update ratio", _logarithmic, ("update_norm", "param_norm")),
        _Column("directness", "Directness", _share_axis, ("update_norm", "next_distance")),
    ]
    caption = (
        "Update ratio: the length of an update over the norm of the parameters. Directness: the distance from the "
        "start over the length of the path so far; 1 is a straight line."
    )
    if not all(looked_at(run).all() for run in runs):
        caption += " It is known as long as every update was looked at."
    return _over_steps(runs, "How far each step reaches", caption, columns, steps, width)[0]


def measures(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """The columns that the user's own measures added, a panel each, at most six.

    Those with a threshold are in :func:`curvature`, those with an interval in :func:`intervals`, those of sampled
    segments in :func:`epoch_means`.

    Raises:
        InputError: no run has such a column.

    >>> measures(run).title
    'Measures'
    """
    check_runs(runs)
    names = list(dict.fromkeys(name for run in runs for name in plain_measures(run)))
    if not names:
        raise InputError("None of these runs has a column of a measure: pass measures={...} to watch() to have one.")
    rest = ", ".join(plain(name, 40) for name in names[MOST_PANELS:])
    caption = sentences("What the measures of the run returned.", f"Not drawn: {rest}." if rest else "")
    columns = [_Column(name, drawing.drawable(name, 40)) for name in names[:MOST_PANELS]]
    return _over_steps(runs, "Measures", caption, columns, steps, width)[0]


def alpha_star(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """α*, where the parabola through a segment's losses is lowest, with the edge at ½ below which the loss rises.

    Critical step / taken step = 2 α*. Where more than a twentieth of the values exceed 1.75 the axis goes on
    logarithmically above 1; values outside the panel stand at its border as triangles.

    >>> alpha_star(run).title
    'Where each step should have ended'
    """
    check_runs(runs)
    low = -0.25

    def finish(ax: Axes, lines: list[pd.Series]) -> str:
        values = pd.concat(lines).dropna()
        far = (values > 1.75).mean() > 0.05
        high = min(1.3 * values.max(), 1e4) if far else 1.75
        if far:
            drawing.signed_decades(ax, low, high, linear=1.0)
        ticks = (0, 0.5, 1, 10, 100, 1e3, 1e4) if far else (0, 0.5, 1, 1.5)
        drawing.bounds(ax, low, high, [tick for tick in ticks if tick < high])
        ax.axhspan(low, 0.5, color=COLOURS["shade"], linewidth=0, zorder=0)
        ax.axhline(0.5, color=COLOURS["alarm"], linewidth=1.2, zorder=1)
        num_outside = 0
        for index, line in enumerate(lines):
            for edge, mark, outside in ((high, "^", line[line > high]), (low, "v", line[line < low])):
                x, _ = drawing.thinned(outside.index.to_numpy(float), outside.to_numpy(), 200)
                colour = COLOURS[drawing.style_of(index)[0]]
                ax.plot(x, np.full(len(x), edge), mark, color=colour, markersize=4.5, markeredgewidth=0, clip_on=False)
                num_outside += len(outside)
        return f"{count(num_outside, 'value')} outside the panel: triangles at its border." if num_outside else ""

    caption = (
        "α* is where the parabola fitted to a segment is lowest. At 1 the step ends there; at ½ it lands as high as it "
        "left; below ½ the loss rises. The largest step that does not raise the loss is 2 α* times the step taken."
    )
    columns = [_Column("alpha_star", "α*, the lowest point of the segment's parabola", finish)]
    edge = (drawing.key("alarm"), "edge: below it the loss rises")
    title = "Where each step should have ended"
    picture, _ = _over_steps(runs, title, caption, columns, steps, width, height=180, sample=edge)
    over = []
    for run in runs:
        values = within(run.steps, steps)["alpha_star"].dropna()
        over.append(
            f"{plain(run.name, 60)}: over the edge on {(values < 0.5).sum():,} of {count(len(values), 'step')}."
        )
    picture.notes = sentences(*over, picture.notes)
    picture.alternative = sentences(picture.alternative, *over)
    return picture


def training(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """Full loss and mini-batch loss, the learning rate where it moves, and what the loop noted for each epoch.

    >>> training(run).title
    'Training'
    """
    check_runs(runs)
    tables = [within(run.steps, steps) for run in runs]
    columns = [_Column("loss", "Full training loss")]
    if any(table["batch_loss"].notna().any() for table in tables):
        columns.append(_Column("batch_loss", "Loss of the mini-batches"))
    if any(table["learning_rate"].nunique() > 1 for table in tables):
        columns.append(_Column("learning_rate", "Learning rate", _from_zero))
    noted = list(dict.fromkeys(name for run in runs for name in run.epochs.columns)) if steps is None else []
    rest = ", ".join(plain(name, 40) for name in noted[MOST_PANELS:])
    drawn = noted[:MOST_PANELS]
    panels = [Panel(drawing.drawable(name, 40), over_steps=False) for name in drawn]
    caption = sentences(
        "The full training loss at the iterates, what the mini-batches said, and what was noted for each epoch.",
        f"Not drawn: {rest}." if rest else "",
    )
    picture, axes = _over_steps(runs, "Training", caption, columns, steps, width, below=panels)
    for ax, name in zip(axes[len(columns) :], drawn, strict=True):
        for index, run in enumerate(runs):
            if name in run.epochs:
                values = run.epochs[name].dropna()
                drawing.series(ax, values.index, values, *drawing.style_of(index))
                said = f"{plain(run.name, 60)}, {plain(name, 40)}: {course(values)}."
                picture.alternative = sentences(picture.alternative, said)
    return picture
