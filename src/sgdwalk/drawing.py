"""How figures look: palette, panels, lines with honest gaps. What they show is in :mod:`sgdwalk.figures`.

A figure is measured in units of 1/72 inch, so that one unit is one CSS pixel of a report and one point in print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from sgdwalk.text import number, plain

COLOURS = {
    "ink": "#1b1f24",
    "muted": "#59616b",
    "rule": "#d4d8dd",
    "shade": "#eceef1",
    "paper": "#ffffff",
    "floor": "#ad7a00",
    "alarm": "#a3123b",
    "blue": "#0b62a8",
    "red": "#cc4a10",
    "green": "#00785a",
    "purple": "#8a4a9e",
}
"""Every colour of a figure. Blue and red-orange stay apart in all forms of colour blindness; shapes differ as well."""

RUN_COLOURS = ("blue", "red", "green", "purple")
RUN_MARKERS = ("o", "s", "^", "D")
FLOOR_DASHES = (0, (3, 1.6))

WIDTH = 7.6
"""Inches of a figure where nothing else is asked for: about a column of text."""
SMALL, NORMAL = 11.0, 12.0
LEFT, RIGHT, BOTTOM = 54.0, 12.0, 40.0
TITLE, LEGEND, GAP = 24.0, 20.0, 12.0

MOST_MARKED = 80
"""With more points than this in a panel, lines carry no markers."""
MOST_POINTS = 800
"""A line of more points is drawn through the lowest and highest of each of half as many equal stretches."""
MOST_PLAIN = 300
"""Above so many points a line is drawn faint, with its running mean over it."""


class Picture(Figure):
    """A matplotlib Figure that brings its caption and its text alternative along."""

    title: str = ""
    """A few words."""
    caption: str = ""
    """What is drawn, in sentences."""
    notes: str = ""
    """What was left out and why, how the lines were thinned, what was counted; may be empty."""
    alternative: str = ""
    """What a reader who cannot see the figure should know."""
    step_axes: tuple[Axes, ...] = ()
    """The axes whose x is the step."""


@dataclass(frozen=True)
class Panel:
    """One panel of a picture."""

    title: str
    height: float = 110.0
    """Height of the axes, in units."""
    legend: int = 0
    """Rows of a legend between title and axes."""
    over_steps: bool = True
    """x is the step, shared with the panels above and below."""


class _Numbers(Formatter):
    """Ticks in the words of :func:`sgdwalk.text.number`, with as many digits as tell them apart."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return number(x)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        tried = ([number(value, digits) for value in values] for digits in range(3, 12))
        return next((labels for labels in tried if len(set(labels)) == len(set(values))), [f"{x:g}" for x in values])


def panels(title: str, specification: Sequence[Panel], width: float) -> tuple[Picture, list[Axes]]:
    """A picture with panels below each other, their left edges in line, room for titles above them.

    Args:
        title: a few words, kept with the picture.
        specification: the panels from top to bottom.
        width: in inches.
    """
    full = 72 * width
    tops, bottom = [], 0.0
    for index, panel in enumerate(specification):
        ends_axis = index + 1 == len(specification) or panel.over_steps != specification[index + 1].over_steps
        tops.append(bottom + TITLE + LEGEND * panel.legend)
        bottom = tops[-1] + panel.height + (BOTTOM if ends_axis or not panel.over_steps else GAP)
    picture = Picture(figsize=(width, bottom / 72), dpi=72, facecolor=COLOURS["paper"])
    picture.title = title
    axes: list[Axes] = []
    shared: Axes | None = None
    for index, (panel, top) in enumerate(zip(specification, tops, strict=True)):
        box = (LEFT / full, 1 - (top + panel.height) / bottom, 1 - (LEFT + RIGHT) / full, panel.height / bottom)
        ax = picture.add_axes(box, sharex=shared if panel.over_steps else None)
        shared = ax if panel.over_steps else shared
        axes.append(ax)
        last = index + 1 == len(specification) or not specification[index + 1].over_steps or not panel.over_steps
        _dress(ax, panel, labelled=last)
    picture.step_axes = tuple(ax for ax, panel in zip(axes, specification, strict=True) if panel.over_steps)
    return picture, axes


def _dress(ax: Axes, panel: Panel, *, labelled: bool) -> None:
    ax.set_facecolor("none")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(COLOURS["rule"])
    ax.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(colors=COLOURS["muted"], labelsize=SMALL, length=0, pad=5, labelbottom=labelled)
    # Titles stand at the figure's edge, above the numbers of the axis: there is no room to waste at phone width.
    offset = 9 + LEGEND * panel.legend
    text = ax.annotate(
        panel.title,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-LEFT + 2, offset),
        textcoords="offset points",
        fontsize=NORMAL,
        fontweight="bold",
        color=COLOURS["ink"],
        annotation_clip=False,
    )
    text.set_parse_math(False)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(_Numbers())
    ax.yaxis.set_major_formatter(_Numbers())
    if labelled:
        label = "update t" if panel.over_steps else "epoch"
        ax.set_xlabel(label, fontsize=SMALL, color=COLOURS["muted"], labelpad=3)


def style_of(index: int) -> tuple[str, str]:
    """Colour and marker of the run with this index among those drawn together; 16 runs differ in one or the other."""
    rounds = index // len(RUN_COLOURS)
    return RUN_COLOURS[index % len(RUN_COLOURS)], RUN_MARKERS[(index + rounds) % len(RUN_MARKERS)]


def words(ax: Axes, text: str) -> None:
    """Say something in the middle of a panel that would be empty otherwise."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=SMALL, color=COLOURS["muted"])


def bounds(ax: Axes, low: float, high: float, ticks: Sequence[float]) -> None:
    """Fix the range of y and its ticks."""
    ax.set_ylim(low, high)
    ax.set_yticks(list(ticks))


def signed_decades(ax: Axes, low: float, high: float, linear: float) -> None:
    """Make y logarithmic to both sides of zero beyond ± ``linear``, with few ticks."""
    largest = max(-low, high)
    first, last = int(np.ceil(np.log10(linear))), int(np.floor(np.log10(largest)))
    powers = [10.0**k for k in range(last, first - 1, -max(1, (last - first) // 2))]
    ax.set_yscale("symlog", linthresh=linear, linscale=0.6)
    bounds(
        ax, low, high, [tick for tick in (*(-power for power in powers), 0.0, *reversed(powers)) if low < tick < high]
    )
    _plain_ticks(ax)


def _plain_ticks(ax: Axes) -> None:
    ax.yaxis.set_major_formatter(_Numbers())
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def whole_numbers(ax: Axes, most: float) -> None:
    """A y axis for counts from zero to ``most``."""
    ax.set_ylim(0, max(1.0, 1.1 * most))
    ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def decades(ax: Axes, low: float, high: float) -> None:
    """Make y logarithmic from ``low`` to ``high``, with few ticks and numbers that need no mathematical typesetting."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    ax.set_yscale("log")
    ax.set_ylim(max(low / 1.3, 10.0**first / 1.3), high * 1.3)
    factors = (1.0, 3.0) if last - first <= 2 else (1.0,)
    stride = max(1, (last - first) // 4)
    ticks = [factor * 10.0**k for k in range(last, first - 1, -stride) for factor in factors]
    ax.set_yticks(sorted(tick for tick in ticks if low / 1.3 <= tick <= high * 1.3))
    _plain_ticks(ax)


def drawable(text: str, limit: int = 28) -> str:
    """A name that the figures' font can draw: characters that it lacks become □."""
    glyphs = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in glyphs else "□" for character in _cut(plain(text, 1000), limit))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def legend_rows(labels: Sequence[str], width: float) -> int:
    """Rows that a legend of these labels needs in a figure of this width: 6.5 units a character, 44 a sample line."""
    for rows in range(1, len(labels)):
        columns = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        if sum(44 + 6.5 * max(map(len, column)) for column in columns) <= 72 * width:
            return rows
    return len(labels)


def legend(ax: Axes, handles: Sequence[Line2D], labels: Sequence[str], rows: int = 1) -> None:
    """A legend between the panel's title and its axes, none without labels; these are taken literally."""
    if not labels:
        return
    left = -(LEFT - 2) / ax.get_window_extent().width
    box = ax.legend(
        list(handles),
        list(labels),
        loc="lower left",
        bbox_to_anchor=(left, 1),
        bbox_transform=ax.transAxes,
        ncols=-(-len(labels) // rows),
        frameon=False,
        fontsize=SMALL,
        labelcolor=COLOURS["ink"],
        borderaxespad=0,
        borderpad=0.3,
        handlelength=1.7,
        handletextpad=0.5,
        columnspacing=1.3,
    )
    box.set_in_layout(False)
    for text in box.get_texts():
        text.set_parse_math(False)


def key(colour: str, marker: str = "", *, line: Any = "-") -> Line2D:
    """A legend's sample of a line or marker."""
    return Line2D([], [], color=COLOURS[colour], marker=marker, linestyle=line, linewidth=1.5, markersize=4.5)


Points = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x and y of as many points; an undefined one breaks the line."""


def with_gaps(x: ArrayLike, y: ArrayLike, largest: float = 1.0) -> Points:
    """The same points with an undefined one wherever x jumps by more than ``largest``: no line crosses a gap."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    jumps = np.flatnonzero(np.diff(x) > largest + 1e-9) + 1
    return np.insert(x, jumps, np.nan), np.insert(y, jumps, np.nan)


def lonely(y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which defined values have an undefined one, or none, to both sides: no line shows them."""
    defined = np.isfinite(y)
    beside = np.concatenate([[False], defined, [False]])
    return defined & ~beside[:-2] & ~beside[2:]


def thinned(x: NDArray[np.float64], y: NDArray[np.float64], most: int = MOST_POINTS, *, bridge: bool = False) -> Points:
    """At most ``most`` of the defined points: the lowest and the highest of each of ``most // 2`` equal stretches of x.

    No peak is lost, and gaps stay gaps; with ``bridge`` only those that a stretch without any point lies in, which are
    the ones that can be seen.
    """
    defined = np.isfinite(y) & np.isfinite(x)
    if defined.sum() <= most:
        return x, y
    first, last = x[defined].min(), x[defined].max()
    stretch = np.minimum((x[defined] - first) / (last - first) * (most // 2), most // 2 - 1).astype(int)
    groups = pd.Series(y[defined], index=np.flatnonzero(defined)).groupby(stretch)
    kept = ~defined
    if bridge:
        kept[:] = False
        before = np.flatnonzero(defined)[:-1][np.diff(stretch) > 1]
        kept[before + 1] = ~defined[before + 1]
    kept[groups.idxmin()] = kept[groups.idxmax()] = True
    return x[kept], y[kept]


def series(ax: Axes, x: ArrayLike, y: ArrayLike, colour: str, marker: str = "o") -> str:
    """Draw one value a step with gaps where it is undefined; returns what a caption must say about it, or ''.

    Few points get markers, lonely ones always do; many are thinned and drawn faint, with their running mean on top.
    """
    x, y = with_gaps(x, y)
    defined = np.isfinite(y)
    num_defined = int(defined.sum())
    many = num_defined > MOST_PLAIN
    style: dict[str, Any] = {"color": COLOURS[colour], **({"alpha": 0.35} if many else {})}
    ax.plot(*thinned(x, y), linewidth=0.8 if many else 1.3, zorder=2, **style)
    marked = defined if num_defined <= MOST_MARKED else lonely(y)
    if marked.any():
        size = 2.2 if many else 3.6
        ax.plot(*thinned(x[marked], y[marked]), marker, markersize=size, markeredgewidth=0, zorder=4, **style)
    if not many:
        return ""
    window = 2 * (num_defined // 60) + 1
    ax.plot(*thinned(*_running_mean(x[defined], y[defined], window)), color=COLOURS[colour], linewidth=1.8, zorder=3)
    thin = " Faint: the lowest and highest of every short stretch." if num_defined > MOST_POINTS else ""
    return f"Bold: mean over {window} values.{thin}"


def _running_mean(x: NDArray[np.float64], y: NDArray[np.float64], window: int) -> Points:
    """The mean over ``window`` values around each, within stretches of the usual spacing; a gap between stretches.

    Usual is what nine in ten are spaced by at most: steps that are drawn at random lie closer and farther apart.
    """
    spacing = np.diff(x)
    stretch = np.concatenate([[0], np.cumsum(spacing > 1.5 * np.quantile(spacing, 0.9))])
    mean = pd.Series(y).groupby(stretch).transform(lambda part: part.rolling(window, center=True, min_periods=1).mean())
    breaks = np.flatnonzero(np.diff(stretch)) + 1
    return np.insert(x, breaks, np.nan), np.insert(mean.to_numpy(), breaks, np.nan)
