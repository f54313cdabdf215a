"""Figures of measures that bring a threshold or an interval along, and of a spectral density.

What a measure's columns mean is told by their endings alone: ``m_threshold`` is what ``m`` is to be compared with,
``m_standard_error``, or ``m_low`` and ``m_high``, how well it is known. No measure is known by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sgdwalk import drawing
from sgdwalk.analysis import within
from sgdwalk.captions import course, sentences, span, undefined
from sgdwalk.columns import banded_measures, check_runs, edge_ratios, family, thresholded_measures
from sgdwalk.drawing import COLOURS, FLOOR_DASHES, WIDTH, Panel, Picture
from sgdwalk.errors import InputError
from sgdwalk.text import count, number, plain

if TYPE_CHECKING:
    from sgdwalk.run import Run
    from sgdwalk.spectrum import SpectralDensity

MOST_LINES = 4
"""More measures in one panel are named in the caption and not drawn."""
LOGARITHMIC_FROM = 30
TAIL = 1e-8
"""Of the highest density: what is lower is not drawn."""


def curvature(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """Measures with a threshold, a panel a run: spectral norm and batch sharpness, say, beside 2/η.

    Lines join the steps at which a measure was taken; the threshold is dashed; bands are 95 % intervals.

    Raises:
        InputError: no run has a column ``<measure>_threshold``.

    >>> from sgdwalk.records import StepRecord
    >>> from sgdwalk.run import Run
    >>> measured = {"norm": 15.0, "norm_threshold": 20.0}
    >>> curvature(Run({"name": "SGD"}, [StepRecord(0, measures=measured)])).title
    'Curvature against its threshold'
    """
    check_runs(runs)
    chosen = [run for run in runs if thresholded_measures(run)]
    if not chosen:
        raise InputError(
            "None of these runs has a measure with a threshold: pass measures={'spectral_norm': "
            "sgdwalk.SpectralNorm()} to watch() to have one."
        )
    names = list(dict.fromkeys(name for run in chosen for name in thresholded_measures(run)))
    drawn, rest = names[:MOST_LINES], names[MOST_LINES:]
    labels = [drawing.drawable(name.replace("_", " ")) for name in drawn] + ["threshold"]
    samples = [drawing.key(*drawing.style_of(index)) for index in range(len(drawn))]
    samples.append(drawing.key("ink", line=FLOOR_DASHES))
    rows = drawing.legend_rows(labels, width)
    several = len(chosen) > 1
    titles = [drawing.drawable(run.name, 40) if several else "Eigenvalue" for run in chosen]
    picture, axes = drawing.panels(
        "Curvature against its threshold",
        [Panel(title, 130 if several else 180, 0 if index else rows) for index, title in enumerate(titles)],
        width,
    )
    notes, courses = [], []
    for ax, run in zip(axes, chosen, strict=True):
        table = within(run.steps, steps)
        shown = [name for name in drawn if name in table]
        for name in shown:
            _line(ax, table, name, drawn.index(name))
        thresholds = _distinct(table, [f"{name}_threshold" for name in shown if f"{name}_threshold" in table])
        for threshold in thresholds:
            ax.plot(threshold.index, threshold, color=COLOURS["ink"], linestyle=FLOOR_DASHES, linewidth=1.2, zorder=3)
        notes.append(_vertical(ax, [*(table[name] for name in shown), *thresholds]))
        for name in shown:
            said = f"{plain(run.name, 60)}, {plain(name.replace('_', ' '), 40)}"
            courses.append(f"{said}: {course(table[name])}.")
            notes.append(_edge(said, table, name))
        notes.append(undefined(run, shown, steps))
    drawing.legend(axes[0], samples, labels, rows)
    picture.caption = sentences(
        "Dashed: the largest eigenvalue at which the optimizer's own step is stable on a quadratic, 2/η for gradient "
        "descent. For mini-batch SGD it bounds nothing; there batch sharpness is what it is compared with.",
        f"Not drawn: {', '.join(plain(name, 40) for name in rest)}." if rest else "",
    )
    picture.notes = sentences(*notes)
    tables = pd.concat([within(run.steps, steps) for run in chosen])
    picture.alternative = sentences(f"Lines over {span(tables)}.", *courses)
    return picture


def intervals(*runs: Run, steps: range | None = None, width: float = WIDTH) -> Picture:
    """Measures with an interval and no threshold, a panel a measure: the gradient noise scale, say.

    Raises:
        InputError: no run has columns ``<measure>_low`` and ``<measure>_high``.

    >>> from sgdwalk.records import StepRecord
    >>> from sgdwalk.run import Run
    >>> measured = {"noise": 40.0, "noise_low": 30.0, "noise_high": 60.0}
    >>> intervals(Run({"name": "SGD"}, [StepRecord(0, measures=measured)])).title
    'Measures with their intervals'
    """
    check_runs(runs)
    names = list(dict.fromkeys(name for run in runs for name in banded_measures(run)))
    if not names:
        raise InputError(
            "None of these runs has a measure with an interval: pass measures={'noise': sgdwalk.GradientNoiseScale()} "
            "to watch() to have one."
        )
    drawn, rest = names[:MOST_LINES], names[MOST_LINES:]
    labels = [drawing.drawable(run.name) for run in runs] if len(runs) > 1 else []
    rows = drawing.legend_rows(labels, width)
    picture, axes = drawing.panels(
        "Measures with their intervals",
        [
            Panel(drawing.drawable(name.replace("_", " "), 40), 140, 0 if index else rows)
            for index, name in enumerate(drawn)
        ],
        width,
    )
    notes, courses = [], []
    for ax, name in zip(axes, drawn, strict=True):
        lines = []
        for index, run in enumerate(runs):
            table = within(run.steps, steps)
            if name not in table:
                continue
            _line(ax, table, name, index)
            lines.append(table[name])
            courses.append(f"{plain(run.name, 60)}, {plain(name.replace('_', ' '), 40)}: {course(table[name])}.")
            notes.append(undefined(run, [name, f"{name}_high"], steps))
        notes.append(_vertical(ax, lines))
    drawing.legend(axes[0], [drawing.key(*drawing.style_of(index)) for index in range(len(labels))], labels, rows)
    picture.caption = sentences(
        "Bands: 95 % intervals; a bar upwards has no upper end.",
        f"Not drawn: {', '.join(plain(name, 40) for name in rest)}." if rest else "",
    )
    picture.notes = sentences(*notes)
    tables = pd.concat([within(run.steps, steps) for run in runs])
    picture.alternative = sentences(f"Lines over {span(tables)}.", *courses)
    return picture


def spectral_density(
    densities: Mapping[str, SpectralDensity] | SpectralDensity,
    *,
    threshold: float | None = None,
    smoothing: float | None = None,
    width: float = WIDTH,
) -> Picture:
    """The spectral density on a logarithmic axis, and each single eigenvalue that stands apart as a tick below it.

    Args:
        densities: what :func:`sgdwalk.spectral_density` returned, or several by label.
        threshold: an eigenvalue to mark, such as the 2/η of gradient descent.
        smoothing: deviation of the normal curve that each node is widened to; 1 % of the range by default.
        width: in inches.

    Raises:
        InputError: for no density, or more than four.
    """
    given = dict(densities) if isinstance(densities, Mapping) else {"": densities}
    if not 1 <= len(given) <= MOST_LINES:
        raise InputError(f"spectral_density() draws 1 to {MOST_LINES} densities, got {len(given)}.")
    ends = [(density.nodes.min(), density.nodes.max()) for density in given.values()]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if threshold is not None:
        high = max(high, threshold)
    reach = high - low or abs(high) or 1.0
    deviation = reach / 100 if smoothing is None else smoothing
    grid = np.linspace(low - 0.05 * reach, high + 0.05 * reach, 1500)
    labels = [drawing.drawable(label) for label in given] if len(given) > 1 else []
    samples = [drawing.key(*drawing.style_of(index)) for index in range(len(labels))]
    if threshold is not None:
        samples.append(drawing.key("ink", line=FLOOR_DASHES))
        labels.append("threshold")
    rows = drawing.legend_rows(labels, width)
    picture, (ax,) = drawing.panels("Spectral density", [Panel("Density", 200, rows, over_steps=False)], width)
    told = []
    curves = [density.density(grid, width=deviation) for density in given.values()]
    top = max(curve.max() for curve in curves)
    for index, ((label, density), curve) in enumerate(zip(given.items(), curves, strict=True)):
        colour = COLOURS[drawing.style_of(index)[0]]
        ax.plot(grid, np.where(curve > TAIL * top, curve, np.nan), color=colour, linewidth=1.3, zorder=3)
        apart = outliers(density)
        base = TAIL * top * 4.0**index
        ax.plot(apart, np.full(len(apart), base), "|", color=colour, markersize=7, zorder=4)
        of = f" of {plain(label, 40)}" if label else ""
        told.append(
            f"The eigenvalues{of} reach from {number(density.nodes.min())} to {number(density.nodes.max())}; "
            f"{count(len(apart), 'of them stands', 'of them stand')} apart."
        )
    if threshold is not None:
        ax.axvline(threshold, color=COLOURS["ink"], linestyle=FLOOR_DASHES, linewidth=1.2)
    ax.set_yscale("log")
    ax.minorticks_off()
    ax.set_ylim(TAIL * top / 3, top * 3)
    ax.set_xlabel("eigenvalue")
    drawing.legend(ax, samples, labels, rows)
    picture.caption = (
        f"Share of the eigenvalues at each value, widened to a normal curve of deviation {number(deviation)}. Ticks: "
        "single eigenvalues that stand apart from the rest."
    )
    picture.alternative = sentences(*told)
    return picture


def outliers(density: SpectralDensity) -> np.ndarray:
    """Nodes of the first random vector that stand for about one eigenvalue, with a weight below 3/d, far from zero."""
    nodes, weights = density.nodes[0], density.weights[0]
    single = (weights > 1e-12) & (weights < 3 / density.size)
    bulk = float(np.sqrt((weights * nodes**2).sum()))
    return nodes[single & (np.abs(nodes) > 3 * bulk)]


def _line(ax: Axes, table: pd.DataFrame, name: str, index: int) -> None:
    """A measure over the steps at which it was taken, with its band; undefined values break the line."""
    colour, marker = drawing.style_of(index)
    taken = table.index[family(table, name).notna().any(axis=1)]
    values = table.loc[taken, name]
    x, y = np.asarray(taken, dtype=float), values.to_numpy(dtype=float)
    ax.plot(*drawing.thinned(x, y), color=COLOURS[colour], linewidth=1.3, zorder=4)
    marked = np.isfinite(y) if np.isfinite(y).sum() <= drawing.MOST_MARKED else drawing.lonely(y)
    ax.plot(x[marked], y[marked], marker, color=COLOURS[colour], markersize=3.6, markeredgewidth=0, zorder=5)
    low, high = _band(table.loc[taken], name)
    if low is None or high is None:
        return
    open_ended = np.isfinite(low) & ~np.isfinite(high) & np.isfinite(y)
    both = np.isfinite(low) & np.isfinite(high)
    ax.fill_between(x, low, high, where=both.tolist(), color=COLOURS[colour], alpha=0.15, linewidth=0, zorder=2)
    ax.plot(x[open_ended], y[open_ended], "^", color=COLOURS[colour], markersize=6, fillstyle="none", zorder=5)


def _band(table: pd.DataFrame, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    if f"{name}_low" in table and f"{name}_high" in table:
        return table[f"{name}_low"].to_numpy(dtype=float), table[f"{name}_high"].to_numpy(dtype=float)
    if f"{name}_standard_error" in table:
        reach = 1.96 * table[f"{name}_standard_error"].to_numpy(dtype=float)
        return table[name].to_numpy(dtype=float) - reach, table[name].to_numpy(dtype=float) + reach
    return None, None


def _distinct(table: pd.DataFrame, columns: Sequence[str]) -> list[pd.Series]:
    """The threshold columns that have values, each only once where several measures share one."""
    found: list[pd.Series] = []
    for column in columns:
        values = table[column].dropna()
        known = any(
            values.equals(other.reindex(values.index)) or other.equals(values.reindex(other.index)) for other in found
        )
        if len(values) and not known:
            found.append(values)
    return found


def _vertical(ax: Axes, lines: Sequence[pd.Series]) -> str:
    values: Any = pd.concat([line.dropna() for line in lines]) if lines else pd.Series(dtype=float)
    if values.empty:
        return ""
    if values.min() > 0 and values.max() > LOGARITHMIC_FROM * values.min():
        drawing.decades(ax, values.min(), values.max())
        return "Logarithmic."
    ax.set_ylim(bottom=min(0.0, 1.1 * values.min()))
    return ""


def _edge(said: str, table: pd.DataFrame, name: str) -> str:
    """How a measure stands to its threshold, in words; '' where it has none."""
    if f"{name}_threshold" not in table:
        return ""
    ratios = edge_ratios(table, name)
    if ratios.empty:
        return ""
    over = int((ratios > 1).sum())
    return (
        f"{said} was {number(ratios.iloc[-1])} of its threshold at the end, and above it at {over:,} of "
        f"{count(len(ratios), 'measured step')}."
    )
