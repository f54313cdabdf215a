"""Tables over steps, epochs and runs, made again from what a run holds; undefined values are left out and counted.

In the examples ``run`` is what ``sgdwalk.open_run`` returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sgdwalk.columns import SEGMENT_COLUMNS, UPDATE_COLUMNS, looked_at, measure_columns
from sgdwalk.errors import InputError
from sgdwalk.run import UNDECIDED
from sgdwalk.sampling import mean_of_consecutive, mean_of_steps, updates_stood_for
from sgdwalk.text import plain

if TYPE_CHECKING:
    from sgdwalk.run import Run

_USUAL_REASONS = {"barrier_significant": "the noise of the loss was not measured"}
_COUNTS = (
    "num_updates",
    "num_watched",
    "num_looked_at",
    "distance_after",
    "num_barriers",
    "num_significant_barriers",
    "undefined_heights",
    "undefined_barriers",
    "undecided_barriers",
    "undefined_alpha_stars",
    "undefined_cosines",
)


def derived(run: Run) -> pd.DataFrame:
    """Columns that follow from those of ``run.steps``, with the same index.

    - ``watched``: the losses along the segment were measured;
    - ``looked_at``: cosine, distance and norms were computed;
    - ``interior_floor``: the floor lies between the iterates, 0 < floor_alpha < 1 (NA where undefined);
    - ``critical_ratio``: critical step / taken step = 2 α*, below 1 where the loss rises;
    - ``update_ratio``: ‖θ_{t+1} - θ_t‖ / ‖θ_t‖;
    - ``path_length``: Σ ‖θ_{s+1} - θ_s‖ over s = 0 … t, undefined from the first undefined or missing summand on;
    - ``directness``: ‖θ_{t+1} - θ_0‖ / path_length, 1 for a straight line (undefined where nothing moved).

    Source: the path length and its directness quantify the paper's "traverses larger distance" (section 3.1).

    >>> round(float(derived(run).directness[0]), 12)
    1.0
    """
    steps = run.steps
    without_gap = steps.index.to_numpy() == np.arange(len(steps))
    path = steps["update_norm"].where(without_gap).cumsum(skipna=False)
    floor_alpha = steps["floor_alpha"]
    interior = ((floor_alpha > 0) & (floor_alpha < 1)).astype("boolean").mask(floor_alpha.isna())
    return pd.DataFrame(
        {
            "watched": steps.index.isin(run.segments["step"].unique()),
            "looked_at": looked_at(run),
            "interior_floor": interior,
            "critical_ratio": 2 * steps["alpha_star"],
            "update_ratio": steps["update_norm"] / steps["param_norm"].where(steps["param_norm"] > 0),
            "path_length": path,
            "directness": steps["next_distance"] / path.where(path > 0),
        },
        index=steps.index,
    )


def directional_sharpness(run: Run) -> pd.Series:
    """The curvature of L along each update of full-batch gradient descent, 1 / (η α*).

    For d = -η ∇L the parabola through the segment gives ∇Lᵀ H ∇L / ‖∇L‖² = 1 / (η α*); above 2/η the loss rises. For a
    mini-batch the same number is no sharpness of L: only the caller knows that every gradient was the full one.

    Args:
        run: a run whose every update was plain gradient descent on the full loss.

    Raises:
        InputError: the record names another optimizer than plain SGD (momentum, weight decay, Adam, …).

    >>> directional_sharpness(run).name
    'directional_sharpness'
    """
    for optimizer in run.info["optimizers"]:
        for group in optimizer["groups"]:
            changed = [name for name in ("momentum", "weight_decay") if group.get(name)]
            if optimizer["class"] != "SGD" or changed:
                seen = (
                    f"{plain(optimizer['class'], 60)} with {' and '.join(changed)}" if changed else optimizer["class"]
                )
                raise InputError(
                    f"1 / (η α*) is a sharpness only where an update is -η ∇L, that is plain full-batch gradient "
                    f"descent; this run used {plain(seen, 100)}. Read alpha_star or critical_ratio instead: they hold "
                    "for any optimizer."
                )
    product = run.steps["learning_rate"] * run.steps["alpha_star"]
    return (1 / product.where(product != 0)).rename("directional_sharpness")


def by_epoch(run: Run) -> pd.DataFrame:
    """One row an epoch: what the paper's Tables 1 and 2 and Figure 8 count, and how much was left out.

    Columns as in :func:`compare`, without the name; index ``epoch``, NA where the loop did not say the epoch.

    >>> by_epoch(run)[["num_barriers", "mean_height"]].columns.tolist()
    ['num_barriers', 'mean_height']
    """
    table = run.steps.join(derived(run))
    groups = table.groupby("epoch", dropna=False, sort=True)
    rows = {epoch: _totals(group) for epoch, group in groups}
    frame = _as_counts(pd.DataFrame(list(rows.values()), columns=_TOTALS))
    frame.index = pd.Index(list(rows), dtype="Int64", name="epoch")
    return frame


def sampled_epochs(run: Run, name: str = "sampled") -> pd.DataFrame:
    """One row an epoch of a sampled walk: mean height and floor with 95 % intervals, bounces, α*.

    Columns: ``num_updates``, ``num_sampled``, ``num_units`` (evaluation batches that each sampled step looked at, NA
    where the run does not say), ``mean_height`` with ``height_low`` and ``height_high``, ``mean_floor`` with
    ``floor_low`` and ``floor_high`` (nats per example), ``bounce_share`` (of updates whose sampled loss is
    lowest strictly between the iterates), ``mean_alpha_star``, ``undefined`` (sampled steps without a height). Index
    ``epoch``, NA where the loop did not say the epoch. A sampled step counts as the updates that are nearer to it than
    to any other. Intervals are of the epoch's mean, from units and steps both; they are NaN with fewer than three
    sampled steps. Share and α* have none: each is read off noisy losses, which moves it to one side.

    Args:
        run: a run with :class:`sgdwalk.SampledSegments` among its measures, one step of each of many blocks.
        name: what the measure was called.

    Raises:
        InputError: the run has no such measure.

    Source: the height is that of "A Walk with SGD", Table 2.
    """
    table = run.steps
    if f"{name}_height" not in table:
        raise InputError(
            f"The run has no sampled heights: there is no column {plain(name, 40)}_height. They come from "
            "sgdwalk.SampledSegments among the measures of watch(), or from method='sampled'."
        )
    rows = {epoch: _sampled(steps, name) for epoch, steps in table.groupby("epoch", dropna=False, sort=True)}
    return _by_epoch(rows).astype({"num_units": "Int64"})


def sampled_totals(run: Run, name: str = "sampled") -> dict[str, Any]:
    """The row of :func:`sampled_epochs` for all updates of a walk together."""
    return _sampled(run.steps, name)


def _sampled(steps: pd.DataFrame, name: str) -> dict[str, Any]:
    """The means of some steps, those among them that were sampled."""
    reason = steps.get(f"{name}_height_reason", pd.Series(None, index=steps.index, dtype="object"))
    chosen = steps[steps[f"{name}_height"].notna() | reason.notna()]
    weights = updates_stood_for(chosen.index)
    height, floor, bounce, alpha_star = (
        mean_of_steps(chosen[f"{name}_{column}"], weights) for column in ("height", "floor", "interior", "alpha_star")
    )
    units = chosen.get(f"{name}_num_units", pd.Series(dtype="float64")).dropna()
    return {
        "num_updates": len(steps),
        "num_sampled": len(chosen),
        "num_units": int(units.max()) if len(units) else pd.NA,
        "mean_height": height.value,
        "height_low": height.low,
        "height_high": height.high,
        "mean_floor": floor.value,
        "floor_low": floor.low,
        "floor_high": floor.high,
        "bounce_share": bounce.value,
        "mean_alpha_star": alpha_star.value,
        "undefined": len(chosen) - height.num_steps,
    }


def gauge_epochs(run: Run) -> pd.DataFrame:
    """One row an epoch of a walk with a gauge: the mean slope at the ends of its updates, with a 95 % interval.

    Columns: ``num_updates``, ``num_gauged`` (those with a gauge), ``mean_gauge`` with ``gauge_low`` and ``gauge_high``
    (nats per example; positive: updates go past the floor of their segment on average), ``positive_share``,
    ``undefined``. Index ``epoch``. A single gauge is one mini-batch's word: its mean is the mean slope, but the share
    of positive ones lies nearer to one half than the share of bounces. The interval is that of the means of √n runs of
    consecutive ones of the n that are known (batch means), as neighbours are not independent; NaN with fewer than 9.
    Both are of the updates with a gauge: they stand for all where those were drawn fairly, as by ``columns=one_in(k)``.

    Raises:
        InputError: the run has no gauge.

    Source: d·∇L is the directional derivative along the update; "A Walk with SGD", section 3, for what a bounce is.
    """
    if "gauge" not in run.steps:
        raise InputError("The run has no column gauge: pass gauge=True to watch(), and columns that are kept.")
    groups = run.steps.assign(looked_at=looked_at(run)).groupby("epoch", dropna=False, sort=True)
    return _by_epoch({epoch: _gauged(steps) for epoch, steps in groups})


def gauge_totals(run: Run) -> dict[str, Any]:
    """The row of :func:`gauge_epochs` for all updates of a walk together."""
    return _gauged(run.steps.assign(looked_at=looked_at(run)))


def _gauged(steps: pd.DataFrame) -> dict[str, Any]:
    known = steps["gauge"].dropna().to_numpy(float)
    mean = mean_of_consecutive(known)
    return {
        "num_updates": len(steps),
        "num_gauged": len(known),
        "mean_gauge": mean.value,
        "gauge_low": mean.low,
        "gauge_high": mean.high,
        "positive_share": float((known > 0).mean()) if len(known) else math.nan,
        "undefined": int((steps["gauge"].isna() & steps["looked_at"]).sum()),
    }


def _by_epoch(rows: dict[Any, dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows.values()))
    frame.index = pd.Index(list(rows), dtype="Int64", name="epoch")
    return frame


def compare(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run, index ``run`` (its name): the whole run in the words of :func:`by_epoch`.

    Columns: ``num_updates``, ``num_watched`` and ``num_looked_at`` (with cosine, distance and norms: all of them unless
    ``columns`` of :func:`sgdwalk.watch` says otherwise), ``mean_height`` (nats per example), ``num_barriers``,
    ``num_significant_barriers`` (above twice the loss noise), ``interior_floor_share``, ``over_edge_share`` (α* < ½),
    ``mean_cosine``, ``distance`` (‖θ - θ_0‖ after the last update that was looked at) and ``distance_after`` (how many
    updates that was after), ``directness``, and how many watched heights, barriers and α* and how many cosines were
    undefined and are left out of the numbers before; ``undecided_barriers`` are those of the undefined ones that the
    intervals of estimated losses leave open.

    >>> compare([run]).num_updates.tolist()
    [60]
    """
    rows = [totals(run) for run in runs]
    frame = _as_counts(pd.DataFrame(rows, columns=_TOTALS))
    frame.index = pd.Index([run.name for run in runs], name="run")
    return frame


_TOTALS = (
    "num_updates",
    "num_watched",
    "num_looked_at",
    "mean_height",
    "num_barriers",
    "num_significant_barriers",
    "interior_floor_share",
    "over_edge_share",
    "mean_cosine",
    "distance",
    "distance_after",
    "directness",
    "undefined_heights",
    "undefined_barriers",
    "undecided_barriers",
    "undefined_alpha_stars",
    "undefined_cosines",
)


def totals(run: Run) -> dict[str, Any]:
    """The row of :func:`compare` for one run; counts are ``int``, or NA where nothing was defined.

    >>> totals(run)["num_updates"]
    60
    """
    return _totals(run.steps.join(derived(run)))


def _totals(table: pd.DataFrame) -> dict[str, Any]:
    """The summary of some steps; ``table`` is ``run.steps`` joined with ``derived(run)``."""
    watched = table[table["watched"]]
    alpha_star = watched["alpha_star"].dropna()
    looked = table[table["looked_at"]]
    last = looked.iloc[-1] if len(looked) else None
    return {
        "num_updates": len(table),
        "num_watched": len(watched),
        "num_looked_at": len(looked),
        "mean_height": watched["height"].mean(),
        "num_barriers": watched["barrier"].sum(min_count=1),
        # False & NA is False: no barrier is no significant barrier, whatever the noise.
        "num_significant_barriers": (watched["barrier"] & watched["barrier_significant"]).sum(min_count=1),
        "interior_floor_share": watched["interior_floor"].dropna().astype(float).mean(),
        "over_edge_share": (alpha_star < 0.5).mean() if len(alpha_star) else math.nan,
        "mean_cosine": table["cosine"].mean(),
        "distance": math.nan if last is None else last["next_distance"],
        "distance_after": 0 if last is None else int(looked.index[-1]) + 1,
        "directness": math.nan if last is None else last["directness"],
        "undefined_heights": watched["height"].isna().sum(),
        "undefined_barriers": watched["barrier"].isna().sum(),
        "undecided_barriers": int((watched["barrier_reason"] == UNDECIDED).sum()) if "barrier_reason" in watched else 0,
        "undefined_alpha_stars": watched["alpha_star"].isna().sum(),
        "undefined_cosines": looked["cosine"].isna().sum(),
    }


def _as_counts(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: "Int64" if name in _COUNTS else "float64" for name in frame.columns})


def within(frame: pd.DataFrame, steps: range | None) -> pd.DataFrame:
    """The rows of some steps: all for None, else from ``steps.start`` to before ``steps.stop``."""
    if steps is None:
        return frame
    of_row = frame.get("step", frame.index)
    return frame[(of_row >= steps.start) & (of_row < steps.stop)]


def left_out(run: Run, steps: range | None = None) -> pd.DataFrame:
    """The undefined values of a run: one row for each column and reason, with their number and the first step.

    Columns ``column``, ``reason``, ``number``, ``first_step``. A value counts where it was to be measured: cosine,
    distance and norms at every update that was looked at, the columns of a segment on watched steps, others where a
    reason is recorded.

    Args:
        run: the run.
        steps: only these; all of them when None.

    >>> left_out(run).columns.tolist()
    ['column', 'reason', 'number', 'first_step']
    """
    table = within(run.steps.join(derived(run)[["watched", "looked_at"]]), steps)
    watched, looked = table["watched"], table["looked_at"]
    nothing = pd.Series(None, index=table.index, dtype="object")
    segment_reason = table.get("segment_reason", nothing)
    rows = []
    failed = segment_reason.notna() & ~watched
    rows += _grouped("segment", segment_reason[failed])
    for column in (*SEGMENT_COLUMNS, *UPDATE_COLUMNS, "batch_loss", *measure_columns(run)):
        own = table.get(f"{column}_reason", nothing)
        expected = watched if column in SEGMENT_COLUMNS else looked if column in UPDATE_COLUMNS else own.notna()
        missing = expected & table[column].isna()
        if missing.any():
            reasons = own[missing].fillna(segment_reason[missing]) if column in SEGMENT_COLUMNS else own[missing]
            if column == "barrier_significant":
                reasons = reasons.mask(reasons.isna() & table["loss_noise"][missing].notna(), UNDECIDED)
            rows += _grouped(column, reasons.fillna(_USUAL_REASONS.get(column, "no reason was recorded")))
    return pd.DataFrame(rows, columns=["column", "reason", "number", "first_step"])


def _grouped(column: str, reasons: pd.Series) -> list[tuple[str, str, int, int]]:
    return [
        (column, str(reason), len(part), int(part.index[0])) for reason, part in reasons.groupby(reasons, sort=False)
    ]


def export_csv(run: Run, folder: str | Path) -> list[Path]:
    """Write ``steps.csv``, ``segments.csv``, ``epochs.csv`` and ``events.csv`` into a folder; returns their paths.

    Floats are written so that they read back bitwise; undefined ones are empty. A text that a spreadsheet would run as
    a formula (one that starts with =, +, -, @, a tab or a carriage return) gets an apostrophe in front.

    Args:
        run: the run to export.
        folder: made where it does not exist.

    Raises:
        InputError: one of the files exists already; none is overwritten.

    >>> import tempfile
    >>> [path.name for path in export_csv(run, tempfile.mkdtemp())]
    ['steps.csv', 'segments.csv', 'epochs.csv', 'events.csv']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"steps": run.steps, "segments": run.segments, "epochs": run.epochs, "events": run.events}
    paths = [folder / f"{name}.csv" for name in tables]
    for path in paths:
        if path.exists():
            raise InputError(f"{path} exists and is not overwritten: name another folder, or move the file away.")
    for path, table in zip(paths, tables.values(), strict=True):
        safe = table.rename(columns=_inert_cell)
        for column in safe.columns[~safe.dtypes.map(pd.api.types.is_numeric_dtype).to_numpy(bool)]:
            safe[column] = safe[column].map(_inert_cell)
        # RFC 4180's line ends: with them a carriage return inside a cell is quoted.
        index = safe.index.name is not None
        safe.to_csv(path, index=index, mode="x", errors="backslashreplace", lineterminator="\r\n")
    return paths


def _inert_cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
