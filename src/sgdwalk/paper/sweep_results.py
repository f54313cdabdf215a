"""One table and one figure over all trainings of a sweep, made again from their run folders."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter
from numpy.typing import NDArray
from scipy import stats

import sgdwalk
from sgdwalk.paper import record
from sgdwalk.paper.charts import COLOURS, INK, MARKERS, MUTED, dress
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.sweep import training_name

MEASURES = ("spectral_norm", "batch_sharpness", "noise_scale")
"""Columns that a training has where ``curvature_every`` asks for them."""
COUNTS = ("seed", "num_updates", "num_watched", "num_barriers", "undefined_heights", "undefined_cosines")
PANELS = {
    "mean_height": "Mean height above the floor, nats",
    "mean_cosine": "Mean cosine of consecutive gradients",
    "distance": "Distance from the start",
    "validation_accuracy": "Validation accuracy",
    "spectral_norm": "Spectral norm, last measured",
}
"""Columns of the table that are drawn where any training has them, and the titles of their panels."""
MOST_LINES = len(COLOURS) * len(MARKERS)
"""Lines that differ in colour or marker."""
LOGARITHMIC_FROM = 4.0
"""Positive values of the first setting that span this factor are drawn on a logarithmic axis."""


def results_table(
    varied: Iterable[str], experiments: Sequence[Experiment], folder: Path, failures: Mapping[str, str]
) -> pd.DataFrame:
    """One row a training: the settings that vary, the seed, its state, and of a finished one the numbers.

    - ``loss``: the full training loss at the end, where the last update was watched; nats per example;
    - ``validation_loss``, ``validation_accuracy``: at the end;
    - ``mean_height`` over all watched updates, ``last_epoch_height`` over those of the last epoch with any;
    - ``mean_cosine`` over all updates, ``last_epoch_cosine`` over those of the last epoch;
    - ``distance`` and ``directness`` at the end; shares and counts as in ``sgdwalk.analysis.compare``;
    - ``spectral_norm`` and other measures of curvature and noise, as last measured;
    - ``run``: the run folder; ``failure``: what went wrong.

    Args:
        varied: settings that have a column each.
        experiments: the trainings, one row each, in this order.
        folder: where their run folders are.
        failures: what went wrong, by the training's name.
    """
    varied = list(varied)
    rows = [_row(varied, experiment, folder, failures) for experiment in experiments]
    last = ("run", "failure")
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in last))
    table = pd.DataFrame(rows, columns=[*columns, *last])
    return table.astype({name: "Int64" for name in COUNTS if name in table})


def _row(varied: Sequence[str], experiment: Experiment, folder: Path, failures: Mapping[str, str]) -> dict[str, Any]:
    name = training_name(experiment)
    row: dict[str, Any] = {setting: _cell(getattr(experiment, setting)) for setting in varied}
    row["seed"] = experiment.seed
    numbers: dict[str, Any] = {}
    if name in failures:
        row["state"] = "failed"
    elif not (folder / name / "run.json").exists():
        row["state"] = "not begun"
    else:
        run = sgdwalk.open_run(folder / name)
        finished = record.is_finished(run)
        row["state"] = "finished" if finished else f"{len(run.steps)} of {experiment.num_updates} updates"
        numbers = _numbers(run) if finished else {}
    return {**row, **numbers, "run": name, "failure": failures.get(name)}


def _numbers(run: sgdwalk.Run) -> dict[str, Any]:
    steps, totals = run.steps, sgdwalk.analysis.totals(run)
    epochs = sgdwalk.analysis.by_epoch(run)
    watched = epochs[epochs["num_watched"] > 0]
    validated = run.epochs
    return {
        "num_updates": totals["num_updates"],
        "loss": steps["next_loss"].iloc[-1],
        "validation_loss": validated["validation_loss"].iloc[-1],
        "validation_accuracy": validated["validation_accuracy"].iloc[-1],
        "mean_height": totals["mean_height"],
        "last_epoch_height": watched["mean_height"].iloc[-1] if len(watched) else None,
        "mean_cosine": totals["mean_cosine"],
        "last_epoch_cosine": epochs["mean_cosine"].iloc[-1],
        **{name: totals[name] for name in ("distance", "directness", "interior_floor_share", "over_edge_share")},
        **{name: totals[name] for name in ("num_watched", "num_barriers", "undefined_heights", "undefined_cosines")},
        **{name: _last(steps[name]) for name in MEASURES if name in steps},
    }


def _last(values: pd.Series) -> float | None:
    known = values.dropna()
    return None if known.empty else float(known.iloc[-1])


def _cell(value: Any) -> Any:
    """A setting as a cell: the widths of a network as one text."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def write_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV, whole or not at all; numbers read back bitwise."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        table.to_csv(partial, index=False)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise sgdwalk.SgdwalkError(f"{path} could not be written: {error.strerror}.") from error
    return path


def summary(table: pd.DataFrame, varied: Sequence[str]) -> pd.DataFrame:
    """One row a combination of settings: how many of its trainings are finished, and means over those.

    Args:
        table: of :func:`results_table`.
        varied: its columns of settings.
    """
    drawn = [name for name in PANELS if name in table]
    rows = []
    for point, group in _groups(table, varied):
        finished = group[group["state"] == "finished"]
        rows.append(
            {
                **dict(zip(varied, point, strict=True)),
                "finished": len(finished),
                "of": len(group),
                **{name: finished[name].astype("float64").mean() for name in drawn},
            }
        )
    return pd.DataFrame(rows)


def _groups(table: pd.DataFrame, names: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The rows that agree in some columns, in order of appearance."""
    if not names:
        return [((), table)]
    return [
        (point if isinstance(point, tuple) else (point,), group)
        for point, group in table.groupby(list(names), sort=False, dropna=False)
    ]


class SweepFigure(Figure):
    """A matplotlib Figure that brings its caption and its text alternative along."""

    title: str = ""
    caption: str = ""
    alternative: str = ""


def draw(table: pd.DataFrame, varied: Sequence[str]) -> SweepFigure:
    """The numbers of ``PANELS`` against the first setting that varies, one line for each combination of the others.

    Large markers are means over the seeds with Student's 95 % interval, small ones single seeds.

    Args:
        table: of :func:`results_table`.
        varied: its columns of settings.
    """
    finished = table[table["state"] == "finished"]
    drawn = [name for name in PANELS if name in finished and finished[name].notna().any()]
    num_rows = max(1, -(-len(drawn) // 2))
    figure = SweepFigure(figsize=(9.0, 0.9 + 2.9 * num_rows), layout="constrained", facecolor="white")
    figure.title = f"A sweep over {' and '.join([*varied, 'seeds'])}"
    axis = _Axis(varied[0] if varied else None, table)
    lines = _groups(finished, varied[1:])[:MOST_LINES]
    for position, name in enumerate(drawn):
        ax = figure.add_subplot(num_rows, 2, position + 1)
        _dress(ax, PANELS[name], axis)
        for index, (point, group) in enumerate(lines):
            label = ", ".join(f"{_word(key)} {value}" for key, value in zip(varied[1:], point, strict=True))
            _line(ax, axis, group, name, index, len(lines), label)
    if drawn and len(varied) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    if not drawn:
        figure.text(0.5, 0.5, "No training is finished yet.", ha="center", color=MUTED)
    figure.caption = _caption(table, finished, drawn, len(_groups(finished, varied[1:])) - len(lines))
    figure.supxlabel(textwrap.fill(figure.caption, 125), x=0.01, ha="left", fontsize=8.5, color=MUTED)
    figure.alternative = figure.caption + " " + _told(table, varied)
    return figure


class _Axis:
    """The x axis: the values of the first setting that varies, as numbers where they are, else as names."""

    def __init__(self, name: str | None, table: pd.DataFrame):
        self.name = name
        values = ["all seeds"] if name is None else list(dict.fromkeys(table[name]))
        self.numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        self.values: list[Any] = sorted(values) if self.numeric else values
        low, high = (self.values[0], self.values[-1]) if self.numeric else (0, 0)
        self.logarithmic = low > 0 and high >= LOGARITHMIC_FROM * low
        self.positions = self._positions(self.values)
        self.span = max(float(np.ptp(self.positions)), 1e-9) if len(values) > 1 else 1.0

    def _positions(self, values: Sequence[Any]) -> NDArray[np.float64]:
        if not self.numeric:
            return np.array([self.values.index(value) for value in values], dtype=np.float64)
        numbers = np.array(values, dtype=np.float64)
        return np.log(numbers) if self.logarithmic else numbers

    def of(self, rows: pd.DataFrame, index: int, number: int) -> NDArray[np.float64]:
        """Where these rows stand; lines stand a little beside each other."""
        values = ["all seeds"] * len(rows) if self.name is None else list(rows[self.name])
        return self._positions(values) + (index - (number - 1) / 2) * 0.03 * self.span


def _line(ax: Axes, axis: _Axis, group: pd.DataFrame, name: str, index: int, number: int, label: str) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
    known = group[group[name].notna()]
    x = axis.of(known, index, number)
    y = known[name].to_numpy(np.float64)
    ax.plot(x - 0.012 * axis.span, y, marker, color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
    places = np.unique(x)
    values = [y[x == place] for place in places]
    means = np.array([each.mean() for each in values])
    halfwidths = np.array([_halfwidth(each) for each in values])
    ax.errorbar(
        places, means, halfwidths, fmt=f"{marker}-", color=colour, capsize=3, markersize=6, linewidth=1.3, label=label
    )


def _halfwidth(values: NDArray[np.float64]) -> float:
    """Half of Student's 95 % interval of the mean; undefined for a single value."""
    if len(values) < 2:
        return np.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def _dress(ax: Axes, title: str, axis: _Axis) -> None:
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    dress(ax)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    labels = [f"{value:g}" if axis.numeric else str(value) for value in axis.values]
    ax.set_xticks(axis.positions, labels, parse_math=False)
    margin = 0.08 * axis.span if len(axis.values) > 1 else 0.5
    ax.set_xlim(axis.positions.min() - margin, axis.positions.max() + margin)
    ax.set_xlabel("" if axis.name is None else _word(axis.name), color=MUTED, fontsize=9)


def _caption(table: pd.DataFrame, finished: pd.DataFrame, drawn: Sequence[str], num_hidden: int) -> str:
    num_seeds = finished["seed"].nunique()
    parts = [
        f"{len(finished)} of {len(table)} trainings are finished and shown.",
        "Large: mean over the seeds, with Student's 95 % interval; small, to its left: each seed."
        if num_seeds > 1
        else "One seed only: nothing tells how far seeds differ.",
    ]
    if "mean_height" in drawn or "mean_cosine" in drawn:
        parts.append("Means of height and cosine are over all updates of a training (heights: all watched ones).")
    undefined = [f"{_word(name)}: {count}" for name in drawn if (count := int(finished[name].isna().sum()))]
    if undefined:
        parts.append(f"Undefined, as where a loss is not finite, and left out: {', '.join(undefined)}.")
    num_heights = int(finished["undefined_heights"].sum()) if "mean_height" in drawn else 0
    if num_heights:
        parts.append(f"{num_heights:,} heights of single updates are undefined and left out of the means.")
    if num_hidden > 0:
        parts.append(f"{num_hidden} more lines are in the table and not drawn.")
    return " ".join(parts)


def _told(table: pd.DataFrame, varied: Sequence[str]) -> str:
    rows: list[dict[Any, Any]] = summary(table, varied).to_dict("records")
    return " ".join(
        f"{', '.join(f'{_word(name)} {row[name]}' for name in varied) or 'All seeds'}: "
        + ", ".join(f"{_word(name)} {row[name]:.3g}" for name in PANELS if name in row and pd.notna(row[name]))
        + "."
        for row in rows
        if row["finished"]
    )


def _word(name: str) -> str:
    return name.replace("_", " ")
