"""The figures of a report, each drawn for a wide and a narrow column, and the numbers that pointing at them tells."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from sgdwalk import figures
from sgdwalk.analysis import derived
from sgdwalk.captions import sentences
from sgdwalk.columns import banded_measures, looked_at, plain_measures, sampled_measures, thresholded_measures
from sgdwalk.drawing import Picture, style_of
from sgdwalk.svg import StyleSheet, geometry, inline_svg
from sgdwalk.text import plain

if TYPE_CHECKING:
    from sgdwalk.run import Run

ALONE, WIDE, NARROW = 752 / 72, 560 / 72, 328 / 72
"""Inches: a figure that has a row for itself, one of two columns, and the page on a phone of 360 pixels."""
MOST_STEPS = 2000
"""So many steps of a run, watched ones first, can be pointed at; those of the three-panel figures always can."""
MOST_EVENTS = 1000
"""Events that are told at their step; the table of events says how many there are."""
LABELS = {
    "segment": "segment",
    "loss": "full loss",
    "next_loss": "after the step",
    "floor": "floor",
    "height": "height",
    "barrier": "barrier",
    "barrier_height": "rise inside",
    "alpha_star": "α*",
    "cosine": "cosine",
    "distance": "distance",
    "update_ratio": "update ratio",
    "directness": "directness",
    "batch_loss": "batch loss",
    "learning_rate": "learning rate",
}
"""What the columns are called where a step's numbers are told."""
BARRIER_WORDS = ["no", "yes", "within noise"]

_WALK = ("loss", "next_loss", "floor", "height", "barrier", "alpha_star", "cosine", "distance")


@dataclass(frozen=True)
class RunLabel:
    """How a run is named and marked throughout the page."""

    name: str
    colour: str
    shape: str


@dataclass(frozen=True)
class FigureView:
    """A figure as the template shows it."""

    id: str
    heading: str
    run: RunLabel | None
    caption: str
    alternative: str
    wide: Markup
    narrow: Markup
    panels: str
    runs: str
    columns: str
    steps: str
    spans: bool


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and figures; None keeps a place in the grid empty."""

    id: str
    heading: str
    text: str
    figures: Sequence[FigureView | None]


def label_of(run: Run, index: int) -> RunLabel:
    """The run's name as it can be shown, its colour and the shape of its marker."""
    colour, marker = style_of(index)
    return RunLabel(plain(run.name, 60), colour, {"o": "round", "s": "square", "^": "triangle", "D": "diamond"}[marker])


def sections(runs: Sequence[Run], styles: StyleSheet) -> list[Section]:
    """Every figure of the report, in the order of the page."""
    watched = [run for run in runs if len(run.segments)]
    draw = _Drawer(runs, styles)
    sampled = any(map(sampled_measures, runs))
    measured = [
        *([figures.heights, figures.alpha_star, figures.barriers] if watched else []),
        *([figures.epoch_means] if sampled or any("gauge" in run.steps for run in runs) else []),
        figures.progress,
    ]
    travel = [figures.comparison, figures.training, *([figures.measures] if any(map(plain_measures, runs)) else [])]
    curved = [
        *([figures.curvature] if any(map(thresholded_measures, runs)) else []),
        *([figures.intervals] if any(map(banded_measures, runs)) else []),
    ]
    unwatched = (
        "Segments were sampled, a few evaluation batches of a few steps: that gives the mean height of an epoch, and "
        "no single step's."
        if sampled
        else "No segment was measured, so there is no floor, no height, no barrier and no α*."
    )
    page = [
        Section("walk", "The walk, step by step", _WALK_TEXT if watched else unwatched, draw.walks()),
        Section(
            "height",
            "Height, edge, barriers, reach",
            "How high above the valley floor the walk bounces, whether its steps are so long that the loss rises, "
            "whether something stands in their way, and how much of their length leads anywhere.",
            [draw.over_all(figure) for figure in measured],
        ),
        Section(
            "run",
            "The whole run",
            "From the first update to the last: the full loss and the one that the loop saw, how sharply the walk "
            "turns, how far it comes, and what the loop and the measures noted.",
            [draw.over_all(figure) for figure in travel],
        ),
    ]
    if curved:
        page.append(Section("curvature", "Curvature and noise", _CURVATURE_TEXT, [*map(draw.over_all, curved)]))
    return page


_WALK_TEXT = (
    "Between two grey lines lies one update. The line with the dots is the full training loss on the straight way "
    "from one iterate to the next: where it dips below both, the step went across a valley, whose floor the dashed "
    "line follows. A cosine near −1 means that the walk turns back on itself; a growing distance, that it travels. "
    "Each loss has its own scale, distances in a row share one."
)
_CURVATURE_TEXT = (
    "How sharp the valley is where the walk stands, against what the optimizer's step can take: on a quadratic a step "
    "beyond the threshold overshoots further each time. And how large the gradient's noise is. Each was taken at steps "
    "of its own."
)
_COLUMNS: dict[Callable[..., Picture], tuple[str, ...]] = {
    figures.heights: ("height", "loss", "next_loss", "floor"),
    figures.alpha_star: ("alpha_star", "loss", "next_loss"),
    figures.barriers: ("barrier", "barrier_height"),
    figures.comparison: ("loss", "cosine", "distance"),
    figures.progress: ("update_ratio", "directness", "distance"),
    figures.training: ("loss", "batch_loss", "learning_rate"),
}


class _Drawer:
    """Draws figures twice and numbers them."""

    def __init__(self, runs: Sequence[Run], styles: StyleSheet):
        self._runs = runs
        self._styles = styles
        self._count = 0

    def walks(self) -> list[FigureView | None]:
        """The three-panel figures, those of the same stretch of all runs beside each other."""
        views: list[FigureView | None] = []
        stretches = [figures.windows(run) for run in self._runs]
        alone = len(stretches) == 1 == len(stretches[0])
        for row in zip_longest(*stretches):
            present = [(run, steps) for run, steps in zip(self._runs, row, strict=True) if steps is not None]
            limits = figures.shared_limits(*zip(*present, strict=True))
            limits.pop("loss", None)
            for index, (run, steps) in enumerate(zip(self._runs, row, strict=True)):
                if steps is None:
                    views.append(None)
                    continue
                draw = partial(figures.three_panels, run, steps=steps, limits=limits, style=index)
                heading = f"steps {steps.start:,} to {steps.stop - 1:,}"
                views.append(self._view(draw, [index], _WALK, heading=heading, steps=steps, alone=alone))
        return views

    def over_all(self, figure: Callable[..., Picture]) -> FigureView:
        """A figure of all runs over all their steps."""
        columns = _COLUMNS.get(figure) or [f"measure-{index}" for index in _told(figure, self._runs)]
        return self._view(partial(figure, *self._runs), range(len(self._runs)), columns)

    def _view(
        self,
        draw: Callable[..., Picture],
        runs: Sequence[int],
        columns: Sequence[str],
        *,
        heading: str = "",
        steps: range | None = None,
        alone: bool = False,
    ) -> FigureView:
        self._count += 1
        identifier = f"figure-{self._count}"
        wide, narrow = draw(width=ALONE if alone else WIDE), draw(width=NARROW)
        indices = [self._runs[run].steps.index for run in runs]
        last = max((int(index.max()) for index in indices if len(index)), default=0)
        shown = [steps.start, steps.stop - 1] if steps else [0, last]
        return FigureView(
            identifier,
            heading or wide.title,
            label_of(self._runs[runs[0]], runs[0]) if steps else None,
            sentences(wide.caption, wide.notes) if not steps else wide.notes,
            wide.alternative,
            # Both are matplotlib's own SVG, parsed and written again: texts in it are escaped.
            Markup(inline_svg(wide, f"{identifier}w", self._styles, "wide")),
            Markup(inline_svg(narrow, f"{identifier}n", self._styles, "narrow")),
            json.dumps([geometry(wide), geometry(narrow)]) if wide.step_axes else "",
            json.dumps(list(runs)),
            json.dumps(list(columns)),
            json.dumps(shown),
            steps is not None,
        )


def _told(figure: Callable[..., Picture], runs: Sequence[Run]) -> list[int]:
    """Which of the told measures belong to one of the figures of measures."""
    wanted: set[str] = set()
    for run in runs:
        if figure is figures.measures:
            wanted.update(plain_measures(run))
        else:
            names = thresholded_measures(run) if figure is figures.curvature else banded_measures(run)
            wanted.update(f"{name}{ending}" for name in names for ending in _TOLD_ENDINGS)
    return [index for index, name in enumerate(_measures(runs)) if name in wanted]


_TOLD_ENDINGS = ("", "_threshold", "_standard_error", "_low", "_high")


def _measures(runs: Sequence[Run]) -> list[str]:
    """The columns of measures whose numbers the page tells."""
    plainly = dict.fromkeys(name for run in runs for name in plain_measures(run))
    names = dict.fromkeys(name for run in runs for name in (*thresholded_measures(run), *banded_measures(run)))
    have = {column for run in runs for column in run.steps.columns}
    compared = [f"{name}{ending}" for name in names for ending in _TOLD_ENDINGS]
    return [*list(plainly)[: figures.MOST_PANELS], *(column for column in compared if column in have)]


def pointed_at(run: Run) -> pd.Index:
    """The steps whose numbers the page can tell: ``MOST_STEPS`` evenly spaced ones at most, and those of the walks.

    Of more steps those are chosen from of which most is known.
    """
    index = run.steps.index
    if len(index) <= MOST_STEPS:
        return index
    chosen = evenly(best_known(run), MOST_STEPS)
    for steps in figures.windows(run):
        chosen = chosen.union(index[(index >= steps.start) & (index < steps.stop)])
    return chosen


def best_known(run: Run) -> pd.Index:
    """The watched steps; where there is none, those that were looked at, and all where none was."""
    watched = pd.Index(run.segments["step"].unique(), name="step")
    looked = run.steps.index[looked_at(run)]
    return next((steps for steps in (watched, looked) if len(steps)), run.steps.index)


def evenly(index: pd.Index, most: int) -> pd.Index:
    """At most ``most`` entries, evenly spaced, the first and the last among them."""
    return index[np.unique(np.linspace(0, max(len(index) - 1, 0), min(len(index), most)).round().astype(int))]


def step_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's script tells about a step: plain numbers, None where undefined, and the reasons."""
    measures = _measures(runs)
    labels = {**LABELS, **{f"measure-{index}": spoken(name) for index, name in enumerate(measures)}}
    return {
        "labels": labels,
        "words": {"barrier": BARRIER_WORDS},
        "runs": [_numbers(run, measures) for run in runs],
    }


def _numbers(run: Run, measures: Sequence[str]) -> dict[str, Any]:
    table = run.steps.join(derived(run))
    table["barrier"] = barrier_codes(table)
    table = table.loc[pointed_at(run)]
    sources = {name: name for name in ("epoch", *LABELS)} | {f"measure-{i}": name for i, name in enumerate(measures)}
    columns, reasons = {}, {}
    for key, name in sources.items():
        if name in table and table[name].notna().any():
            columns[key] = [_short(value) for value in table[name]]
        said = table.get(f"{name}_reason", pd.Series(dtype="string")).dropna()
        if len(said):
            reasons[key] = {int(step): plain(reason, 160) for step, reason in zip(said.index, said, strict=True)}
    events: dict[int, list[str]] = {}
    happened = run.events.head(MOST_EVENTS)
    for step, kind, message in zip(happened["step"], happened["kind"], happened["message"], strict=True):
        events.setdefault(int(step), []).append(f"{plain(kind, 40)}: {plain(message, 200)}")
    return {
        "name": plain(run.name, 60),
        "steps": [int(step) for step in table.index],
        "columns": columns,
        "reasons": reasons,
        "events": events,
    }


def spoken(name: str) -> str:
    """A column's name as a heading: spaces for underscores, so that it can wrap."""
    return plain(name.replace("_", " "), 40)


def barrier_codes(table: pd.DataFrame) -> pd.Series:
    """Positions in ``BARRIER_WORDS``; what is not known to be significant is within noise. NaN where undefined."""
    crossed, significant = table["barrier"].fillna(False), table["barrier_significant"].fillna(False)
    return table["barrier"].astype("Float64").mask(crossed & ~significant, 2.0).astype("float64")


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
