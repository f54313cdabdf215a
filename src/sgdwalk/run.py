"""A run as tables: what was measured, and what follows from it, at one moment of the walk or after it."""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdwalk import valley
from sgdwalk.records import NAN, EpochNote, Event, StepRecord
from sgdwalk.rows import normalized
from sgdwalk.store import read_run_folder

STEP_TABLE_COLUMNS = (
    "epoch",
    "learning_rate",
    "batch_loss",
    "loss",
    "next_loss",
    "floor",
    "floor_alpha",
    "height",
    "barrier",
    "barrier_height",
    "alpha_star",
    "cosine",
    "distance",
    "next_distance",
    "grad_norm",
    "param_norm",
    "update_norm",
    "loss_noise",
    "barrier_significant",
    "alpha_star_r2",
)
"""The columns that ``Run.steps`` always has, in order; measures and reasons follow."""

PAIRED_COLUMNS = ("height_low", "height_high", "barrier_height_low", "barrier_height_high")
"""Bounds that a step whose ends are estimated too brings along: of differences, known better than the losses."""
BOUND_COLUMNS = (*PAIRED_COLUMNS, "floor_low", "floor_high")
EFFORT_COLUMNS = ("looks", "nodes", "examples_evaluated")
CERTIFIED_COLUMNS = (*BOUND_COLUMNS, *EFFORT_COLUMNS)
"""Columns that follow them in a walk watched with ``method="certified"``."""


UNDECIDED = "the interval of the estimated losses leaves it undecided"


class Run:
    """An immutable snapshot of a walk: raw measurements, and every table derived from them.

    Numbers are float64 with NaN where undefined; ``barrier`` and ``barrier_significant`` are nullable booleans. Each
    table is a copy that the caller may change.

    Args:
        info: what the run is: name, settings, data, model, optimizers, provenance.
        steps: one record an update, by increasing step.
        epochs: values noted for epochs, in the order of noting.
        events: what a reader of the numbers should know.
        path: the folder it was read from, None for a walk in memory.

    >>> from sgdwalk.records import SegmentPoint, StepRecord
    >>> segment = tuple(SegmentPoint(k / 10, (k / 10 - 0.5) ** 2) for k in range(11))
    >>> run = Run({"name": "bowl"}, [StepRecord(0, segment=segment)])
    >>> run.steps[["loss", "floor", "height"]].to_numpy().tolist()
    [[0.25, 0.0, 0.25]]
    >>> int(run.steps["barrier"].sum())
    0
    """

    def __init__(
        self,
        info: dict[str, Any],
        steps: Iterable[StepRecord],
        epochs: Iterable[EpochNote] = (),
        events: Iterable[Event] = (),
        path: Path | None = None,
    ):
        self.path = path
        self._info = copy.deepcopy(info)
        self._steps = [normalized(record) for record in steps]
        self._notes = list(epochs)
        self._events = list(events)

    @property
    def info(self) -> dict[str, Any]:
        """Name, settings, data, model, optimizers and provenance, as ``run.json`` holds them."""
        return copy.deepcopy(self._info)

    @property
    def name(self) -> str:
        """What the run is called: text to show, no path."""
        return self._info["name"]

    @property
    def steps(self) -> pd.DataFrame:
        """One row an update, indexed by ``step``: ``STEP_TABLE_COLUMNS``, then one column a measure, then reasons.

        A walk watched with ``method="certified"`` has ``CERTIFIED_COLUMNS`` before the measures.

        A reason column ``<name>_reason`` says why a value is undefined, and is there only where any value is;
        ``segment_reason`` speaks for all that comes from the losses along the segment. ``loss_noise`` of a watched
        step is the last one measured.
        """
        return self._step_table.copy()

    @property
    def segments(self) -> pd.DataFrame:
        """One row a point: ``step``, ``alpha`` (0 and 1 included), ``loss``, ``kind``, ``halfwidth``."""
        return self._segment_table.copy()

    @property
    def epochs(self) -> pd.DataFrame:
        """What the loop noted for each epoch, indexed by ``epoch`` (from 1): one column a value."""
        values: dict[int, dict[str, float]] = defaultdict(dict)
        for note in self._notes:
            values[note.epoch].update(note.values)
        names = list(dict.fromkeys(name for note in self._notes for name in note.values))
        index = pd.Index(sorted(values), dtype="int64", name="epoch")
        columns = {name: [float(values[epoch].get(name, NAN)) for epoch in index] for name in names}
        return pd.DataFrame(columns, index=index, dtype="float64")

    @property
    def events(self) -> pd.DataFrame:
        """One row an event, in order: ``sequence``, ``step``, ``kind``, ``message``."""
        return pd.DataFrame(
            {
                "sequence": np.array([event.sequence for event in self._events], dtype=np.int64),
                "step": np.array([event.step for event in self._events], dtype=np.int64),
                "kind": [event.kind for event in self._events],
                "message": [event.message for event in self._events],
            }
        )

    @functools.cached_property
    def _segment_table(self) -> pd.DataFrame:
        points = [point for record in self._steps for point in record.segment]
        counts = [len(record.segment) for record in self._steps]
        return pd.DataFrame(
            {
                "step": np.repeat(np.array([record.step for record in self._steps], dtype=np.int64), counts),
                "alpha": _floats(point.alpha for point in points),
                "loss": _floats(point.loss for point in points),
                "kind": [point.kind for point in points],
                "halfwidth": _floats(point.halfwidth for point in points),
            }
        )

    @functools.cached_property
    def _step_table(self) -> pd.DataFrame:
        raw = {
            name: _floats(getattr(record, name) for record in self._steps)
            for name in STEP_TABLE_COLUMNS
            if name in StepRecord.__dataclass_fields__ and name != "epoch"
        }
        raw["epoch"] = _floats(NAN if record.epoch is None else record.epoch for record in self._steps)
        watched = np.array([bool(record.segment) for record in self._steps], dtype=bool)
        raw["loss_noise"] = _last_known(raw["loss_noise"], watched)
        columns: dict[str, Any] = {**raw, **_derived(self._steps, raw["loss_noise"])}
        for name in ("barrier", "barrier_significant"):
            columns[name] = pd.array(columns[name], dtype="boolean")
        table = {name: columns[name] for name in STEP_TABLE_COLUMNS}
        names = dict.fromkeys(name for record in self._steps for name in record.measures)
        if "looks" in names:
            table.update({name: columns[name] for name in BOUND_COLUMNS})
            names = dict.fromkeys([*EFFORT_COLUMNS, *(name for name in names if name not in PAIRED_COLUMNS)])
        for name in names:
            table[name] = _floats(record.measures.get(name, NAN) for record in self._steps)
        table.update(self._reasons(watched, columns))
        return pd.DataFrame(table, index=pd.Index([record.step for record in self._steps], dtype="int64", name="step"))

    def _reasons(self, watched: NDArray[np.bool_], columns: dict[str, Any]) -> dict[str, Any]:
        reasons: dict[str, list[str | None]] = defaultdict(lambda: [None] * len(self._steps))
        for index, record in enumerate(self._steps):
            for name, reason in record.reasons.items():
                reasons[name][index] = reason
        undefined = watched & np.isnan(columns["barrier_height"])
        for index in np.flatnonzero(undefined):
            reasons["barrier"][index] = self._steps[index].reasons["segment"]
        for index in np.flatnonzero(watched & ~undefined & pd.isna(columns["barrier"])):
            reasons["barrier"][index] = UNDECIDED
        for index in np.flatnonzero(watched & np.isnan(columns["alpha_star"])):
            reasons["alpha_star"][index] = (
                self._steps[index].reasons["segment"]
                if undefined[index]
                else _why_no_minimum(columns["alpha_star_r2"][index])
            )
        return {f"{name}_reason": pd.array(texts, dtype="string") for name, texts in reasons.items()}


def open_run(path: str | Path) -> Run:
    """Read a run from its folder; also while it is being written, as it stood at the last commit.

    Args:
        path: the folder that was given to ``watch(run=...)``.

    Returns:
        A snapshot. Open it again to see more of a walk that goes on.

    Raises:
        RunFolderError: there is no run, or one of another schema version, or a damaged one.

    >>> import tempfile
    >>> from sgdwalk.store import RunWriter
    >>> folder = Path(tempfile.mkdtemp()) / "mine"
    >>> RunWriter.create(folder, {"name": "mine"}).close()
    True
    >>> open_run(folder).name
    'mine'
    """
    info, steps, epochs, events = read_run_folder(Path(path))
    return Run(info, steps, epochs, events, Path(path))


def _derived(records: Sequence[StepRecord], loss_noise: NDArray[np.float64]) -> dict[str, NDArray]:
    """The columns of :mod:`sgdwalk.valley` for all steps; undefined where a step was not watched."""
    by_grid: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.segment:
            by_grid[tuple([point.alpha for point in record.segment])].append(index)
    columns = {
        name: np.full(len(records), None if column.dtype == object else NAN, dtype=column.dtype)
        for name, column in _of_segments([0.0, 0.5, 1.0], np.empty((0, 3)), np.empty((0, 3)), np.empty(0)).items()
    }
    for grid, indices in by_grid.items():
        losses = np.array([[point.loss for point in records[index].segment] for index in indices])
        halfwidths = np.array([[point.halfwidth for point in records[index].segment] for index in indices])
        for name, column in _of_segments(grid, losses, halfwidths, loss_noise[indices]).items():
            columns[name][indices] = column
    for index, record in enumerate(records):
        if PAIRED_COLUMNS[0] in record.measures:
            low, high = _as_measured(record, index, columns)
            columns["barrier"][index] = valley.decided(low, high)
            above = 2 * loss_noise[index]
            columns["barrier_significant"][index] = None if np.isnan(above) else valley.decided(low, high, above)
    return columns


def _as_measured(record: StepRecord, index: int, columns: dict[str, NDArray]) -> tuple[float, float]:
    """Put the bounds that a step brings along in place of those of its losses; returns those of the barrier height."""
    for name in PAIRED_COLUMNS:
        columns[name][index] = record.measures[name]
    return record.measures["barrier_height_low"], record.measures["barrier_height_high"]


def _of_segments(grid: Any, losses: NDArray, halfwidths: NDArray, loss_noise: NDArray) -> dict[str, NDArray]:
    return {**valley.summarize(grid, losses, loss_noise, halfwidths), **valley.bounds(losses, halfwidths)}


def _last_known(noise: NDArray[np.float64], watched: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The loss noise last measured, at each watched step."""
    known = np.full(len(noise), NAN)
    known[watched] = pd.Series(noise[watched]).ffill()
    return known


def _why_no_minimum(r2: float) -> str:
    if np.isnan(r2):
        return "all losses along the segment are equal"
    if r2 < valley.MIN_R2:
        return f"bad fit, R² = {r2:.2f} < {valley.MIN_R2}"
    return "not convex"


def _floats(values: Iterable[float]) -> NDArray[np.float64]:
    return np.fromiter(values, dtype=np.float64)
