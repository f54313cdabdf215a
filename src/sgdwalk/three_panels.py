"""The paper's figure of a walk: the full loss along consecutive segments, the cosine, the distance from the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sgdwalk import drawing
from sgdwalk.analysis import derived, within
from sgdwalk.captions import course, sentences, span, undefined
from sgdwalk.drawing import COLOURS, Panel, Picture
from sgdwalk.text import count, plain

if TYPE_CHECKING:
    from sgdwalk.run import Run

MOST_LINES = 60
"""Vertical lines at the iterates are drawn for so many steps at most."""
MOST_LOSSES = 4000
"""A loss curve of more points is drawn through the lowest and highest of half as many equal stretches."""


def windows(run: Run, length: int = 40, most: int = 4) -> list[range]:
    """Stretches of steps worth a figure: the first ``length`` watched steps of each stretch that was watched.

    A run watched throughout gives its first and its last ``length`` steps; up to one and a half times as many stay one
    stretch. Of more than ``most`` stretches the first ones and the last are kept. In the paper: the first 40 updates of
    epochs 1, 2, 25 and 100 (Figures 2, 14 to 16).

    Args:
        run: the run, of which any steps may have been watched.
        length: watched steps in a stretch.
        most: number of stretches at most.

    >>> windows(run)
    [range(0, 60)]
    """
    watched = np.sort(run.segments["step"].unique())
    if len(watched) == 0:
        return []
    gaps = np.diff(watched)
    stretches = np.split(watched, np.flatnonzero(gaps > gaps.min(initial=watched[-1] + 1)) + 1)
    if len(stretches) == 1:
        whole = len(watched) <= 1.5 * length
        stretches = [watched] if whole else [watched[:length], watched[max(length, len(watched) - length) :]]
    else:
        stretches = [stretch[:length] for stretch in stretches]
    if len(stretches) > most:
        stretches = [*stretches[: most - 1], stretches[-1]]
    return [range(int(stretch[0]), int(stretch[-1]) + 1) for stretch in stretches]


def three_panels(
    run: Run,
    *,
    steps: range | None = None,
    width: float = drawing.WIDTH,
    limits: dict[str, tuple[float, float]] | None = None,
    style: int = 0,
) -> Picture:
    """The full loss along consecutive segments, the cosine of consecutive gradients, the distance from the start.

    On top L along every segment, the iterates marked, a vertical grey line at each, the valley floor dashed; then
    cos(g_{t-1}, g_t); then ‖θ_t - θ_0‖₂. Lines end where a step was not watched.

    Args:
        run: the run to draw.
        steps: a range of steps; all of them when None.
        width: of the figure, in inches.
        limits: y ranges from :func:`shared_limits`, to draw several walks to one scale.
        style: which of the runs' colours and markers to use, counted from 0.

    >>> three_panels(run, steps=range(10)).title
    'SGD, steps 0 to 9'

    Source: "A Walk with SGD", Figures 1, 2 and 9 to 21.
    """
    table = within(run.steps.join(derived(run)["watched"]), steps)
    rows = within(run.segments, steps)
    watched = table[table["watched"]]
    barriers = watched[watched["barrier_significant"].fillna(False)]
    colour, marker = drawing.style_of(style)
    labels = ["full loss", "iterates", "floor", "barrier"][: 4 if len(barriers) else 3]
    samples = [
        drawing.key("ink"),
        drawing.key(colour, marker, line=""),
        drawing.key("floor", line=drawing.FLOOR_DASHES),
        drawing.key("alarm", "v", line=""),
    ]
    legend_rows = drawing.legend_rows(labels, width)
    picture, (top, middle, bottom) = drawing.panels(
        f"{plain(run.name, 60)}, {span(table)}",
        [
            Panel("Full training loss along the segments", 190, legend_rows),
            Panel("Cosine of consecutive gradients", 84),
            Panel("Distance from the start", 84),
        ],
        width,
    )
    drawing.legend(top, samples[: len(labels)], labels, legend_rows)
    notes = _draw_losses(top, watched, rows, colour, marker)
    if len(barriers):
        crossed = rows[rows["step"].isin(barriers.index)]
        peaks = crossed.loc[crossed.groupby("step")["loss"].idxmax()]
        top.plot(
            peaks["step"] + peaks["alpha"],
            peaks["loss"],
            "v",
            color=COLOURS["alarm"],
            markersize=6,
            markeredgewidth=0,
            zorder=6,
        )
    notes.append(drawing.series(middle, table.index, table["cosine"], colour, marker))
    drawing.bounds(middle, -1.08, 1.08, (-1, 0, 1))
    distances = _with_ends(table, "distance", "next_distance")
    notes.append(drawing.series(bottom, distances.index, distances, colour, marker))
    bottom.set_ylim(bottom=0)
    for name, ax in {"loss": top, "distance": bottom}.items():
        if limits and name in limits:
            ax.set_ylim(*limits[name])
    for ax in (top, middle, bottom):
        _lines_at_iterates(ax, table)

    unwatched = len(table) - len(watched)
    picture.caption = sentences(
        "Top: the full training loss along the segment between every two consecutive iterates; the dashed line joins "
        "the lowest points, the valley floor. Middle: the cosine of the angle between consecutive gradients. Bottom: "
        "the distance of the parameters from their start.",
    )
    picture.notes = sentences(
        f"The loss was not measured along {unwatched:,} of {count(len(table), 'step')}: a gap." if unwatched else "",
        undefined(run, ("segment", "floor", "cosine", "distance"), steps),
        *notes,
    )
    losses = _with_ends(watched, "loss", "next_loss")
    interior = int(watched["floor_alpha"].between(0, 1, inclusive="neither").sum())
    picture.alternative = sentences(
        f"Three line charts over {span(table)}.",
        f"The full loss {course(losses)}; the floor lies between the iterates on {interior:,} of "
        f"{count(len(watched), 'watched step')}; {count(len(barriers), 'significant barrier')}.",
        f"The cosine {course(table['cosine'])}.",
        f"The distance {course(distances)}.",
    )
    return picture


def shared_limits(runs: Sequence[Run], ranges: Sequence[range | None]) -> dict[str, tuple[float, float]]:
    """The y ranges of loss and distance that hold all of the given walks, for the ``limits`` of :func:`three_panels`.

    Args:
        runs: the runs to draw.
        ranges: for each of them the steps that will be drawn.

    >>> sorted(shared_limits([run, run], [None, range(40)]))
    ['distance', 'loss']
    """
    pairs = list(zip(runs, ranges, strict=True))
    loss = pd.concat([within(run.segments, steps)["loss"] for run, steps in pairs]).dropna()
    distance = pd.concat([within(run.steps, steps)["next_distance"] for run, steps in pairs]).dropna()
    limits = {}
    if loss.nunique() > 1:
        margin = 0.05 * (loss.max() - loss.min())
        limits["loss"] = (loss.min() - margin, loss.max() + margin)
    if len(distance) and distance.max() > 0:
        limits["distance"] = (0.0, 1.06 * distance.max())
    return limits


def _with_ends(table: pd.DataFrame, column: str, next_column: str) -> pd.Series:
    """The value at each θ_t, and at θ_{t+1} where the next step lacks it."""
    ends = table[next_column].set_axis(table.index + 1)
    return table[column].combine_first(ends)


def _draw_losses(ax: Axes, watched: pd.DataFrame, rows: pd.DataFrame, colour: str, marker: str) -> list[str]:
    """Losses along segments, floor and iterates; returns what the caption must say."""
    # Points of a segment are at most half a step apart, and where one segment ends the next one begins.
    x, loss = drawing.with_gaps(rows["step"] + rows["alpha"], rows["loss"], largest=0.75)
    ax.plot(*drawing.thinned(x, loss, MOST_LOSSES, bridge=True), color=COLOURS["ink"], linewidth=1.1, zorder=3)
    estimated = rows[rows["kind"] == "estimated"]
    if len(estimated):
        _draw_intervals(ax, rows)
    steps = watched.index.to_numpy()
    floor = drawing.with_gaps(steps, watched["floor"])[1]
    where = drawing.with_gaps(steps, steps + watched["floor_alpha"])[1]
    dashes = {"linestyle": drawing.FLOOR_DASHES, "linewidth": 1.6}
    ax.plot(*drawing.thinned(where, floor, bridge=True), color=COLOURS["floor"], zorder=4, **dashes)
    # Where every watched step stands alone no line can join the floors.
    where, floor = drawing.thinned(where[drawing.lonely(floor)], floor[drawing.lonely(floor)])
    ax.plot(where, floor, "_", color=COLOURS["floor"], markersize=7, markeredgewidth=1.6, zorder=4)
    iterates = _with_ends(watched, "loss", "next_loss").dropna()
    notes = []
    if len(iterates) <= 2 * drawing.MOST_MARKED:
        ax.plot(iterates.index, iterates, marker, color=COLOURS[colour], markersize=3.8, markeredgewidth=0, zorder=5)
    else:
        notes.append("There are too many iterates to mark them.")
    if len(estimated):
        number, total = estimated["step"].nunique(), rows["step"].nunique()
        notes.append(
            f"On {number:,} of {count(total, 'segment')} the loss is estimated; the band is its 95 % interval."
        )
    if len(rows) > MOST_LOSSES:
        notes.append("The loss is drawn through the lowest and the highest value of every short stretch.")
    return notes


def _draw_intervals(ax: Axes, rows: pd.DataFrame) -> None:
    """The bands in which estimated losses lie; segments too many to be told apart get none."""
    if len(rows) > MOST_LOSSES:
        return
    where = rows["step"] + rows["alpha"]
    x, low = drawing.with_gaps(where, rows["loss"] - rows["halfwidth"], largest=0.75)
    _, high = drawing.with_gaps(where, rows["loss"] + rows["halfwidth"], largest=0.75)
    ax.fill_between(x, low, high, color=COLOURS["ink"], alpha=0.2, linewidth=0, zorder=2)


def _lines_at_iterates(ax: Axes, table: pd.DataFrame) -> None:
    if len(table) == 0:
        return
    first, last = int(table.index[0]), int(table.index[-1]) + 1
    margin = max(0.5, 0.01 * (last - first))
    ax.set_xlim(first - margin, last + margin)
    if last - first <= MOST_LINES:
        x = np.repeat(np.arange(first, last + 1.0), 3)
        y = np.tile([0, 1, np.nan], last + 1 - first)
        ax.plot(x, y, color=COLOURS["rule"], linewidth=0.6, zorder=0, transform=ax.get_xaxis_transform())
