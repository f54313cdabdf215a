"""The tables of a report: key numbers, epochs, steps, what was left out, events, settings and provenance."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from sgdwalk.analysis import by_epoch, derived, left_out, sampled_totals, totals
from sgdwalk.columns import measure_columns, sampled_columns, sampled_measures
from sgdwalk.epoch_means import epoch_means, share
from sgdwalk.report_figures import BARRIER_WORDS, LABELS, RunLabel, barrier_codes, best_known, evenly, spoken
from sgdwalk.summary import cosines_known
from sgdwalk.text import count, number, plain

if TYPE_CHECKING:
    from sgdwalk.run import Run

MOST_ROWS = 200
"""Rows of a table of steps or epochs; more are thinned evenly, and the caption says so."""
MOST_LINES = 100
"""Rows of the other tables; the caption says how many there are."""
MOST_COLUMNS = 6
"""Measures or noted values that get a column in a table."""


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row is its heading."""

    run: RunLabel
    caption: str
    header: list[str]
    rows: list[list[str]]
    numbers: bool = False
    text: str = ""
    """What must be said beside it."""


@dataclass(frozen=True)
class KeyNumber:
    """A row of the key numbers: ``(value, note)`` for each run."""

    label: str
    explanation: str
    values: list[tuple[str, str]]


@dataclass(frozen=True)
class SettingRow:
    """One setting of all runs."""

    label: str
    values: list[str]
    differs: bool


@dataclass(frozen=True)
class SettingGroup:
    """Settings that belong together."""

    name: str
    rows: list[SettingRow]


def key_numbers(runs: Sequence[Run]) -> list[KeyNumber]:
    """The numbers to see first."""
    all_totals = [totals(run) | _sampled_totals(run) for run in runs]

    def row(label: str, explanation: str, value: Any) -> KeyNumber:
        return KeyNumber(label, explanation, [value(one) for one in all_totals])

    return [
        row(
            "Height above the valley floor",
            "mean, in nats per example",
            _height,
        ),
        row(
            "Steps across the floor",
            "the loss is lowest between the iterates",
            _bounces,
        ),
        row(
            "Steps over a barrier",
            "a loss between the iterates lies above both",
            lambda one: _barriers(one),
        ),
        row(
            "Steps over the edge",
            "by the fitted parabola they land higher than they left, α* < ½",
            lambda one: _share(one["over_edge_share"], one["num_watched"] - one["undefined_alpha_stars"]),
        ),
        row(
            "Cosine of consecutive gradients",
            "mean; −1 is straight back, 1 straight on",
            lambda one: (number(one["mean_cosine"]), cosines_known(one)),
        ),
        row(
            "Distance from the start",
            "of the parameters, after so many updates",
            lambda one: (number(one["distance"]), f"after {one['distance_after']:,}"),
        ),
    ]


def _sampled_totals(run: Run) -> dict[str, Any]:
    """Under ``sampled`` what samples say of the whole walk, where no segment was measured; else None."""
    names = sampled_measures(run) if run.segments.empty else []
    return {"sampled": sampled_totals(run, names[0]) if names else None}


def _height(one: dict[str, Any]) -> tuple[str, str]:
    sampled = one["sampled"]
    if sampled is None:
        undefined = one["undefined_heights"]
        return number(one["mean_height"]), f"{undefined:,} undefined, left out" if undefined else ""
    known = f"{number(sampled['height_low'])} to {number(sampled['height_high'])} with 95 % confidence"
    steps = count(sampled["num_sampled"] - sampled["undefined"], "sampled step")
    return number(sampled["mean_height"]), steps if math.isnan(sampled["height_low"]) else f"{known}; {steps}"


def _bounces(one: dict[str, Any]) -> tuple[str, str]:
    sampled = one["sampled"]
    if sampled is None:
        return _share(one["interior_floor_share"], one["num_watched"] - one["undefined_heights"])
    return share(
        sampled["bounce_share"]
    ), f"from {count(sampled['num_sampled'] - sampled['undefined'], 'sampled step')}"


def _share(share: float, total: int) -> tuple[str, str]:
    if total == 0:
        return "–", ""
    return f"{round(share * total):,}", f"of {total:,}"


def _barriers(one: dict[str, Any]) -> tuple[str, str]:
    total = one["num_watched"] - one["undefined_barriers"]
    undecided = f"{one['undecided_barriers']:,} undecided" if one["undecided_barriers"] else ""
    if total == 0:
        return "–", undecided
    beyond = ""
    if one["num_barriers"]:
        significant = one["num_significant_barriers"]
        beyond = "noise unknown" if pd.isna(significant) else f"{significant:,} beyond noise"
    return f"{one['num_barriers']:,}", "; ".join(filter(None, (f"of {total:,}", beyond, undecided)))


def steps_table(run: Run, label: RunLabel) -> Table:
    """The steps of a run; of many, those of which most is known, evenly spaced."""
    table = run.steps.join(derived(run))
    table["barrier"] = barrier_codes(table)
    if len(table) <= MOST_ROWS:
        caption = count(len(table), "step")
    else:
        choice = best_known(run)
        kind = "watched step" if len(run.segments) else "measured step"
        caption = _how_many(min(MOST_ROWS, len(choice)), len(choice), "step" if len(choice) == len(table) else kind)
        table = table.loc[evenly(choice, MOST_ROWS)]
    sampled = sampled_columns(run)
    measures = [name for name in measure_columns(run) if name not in sampled]
    if len(measures) > MOST_COLUMNS:
        caption += f"; {MOST_COLUMNS} of {len(measures):,} measures"
    names = [name for name in (*_STEP_COLUMNS, *measures[:MOST_COLUMNS]) if table[name].notna().any()]
    cells = [[f"{step:,}" for step in table.index]]
    cells += [[_cell(name, value) for value in table[name]] for name in names]
    header = ["step", *(LABELS.get(name, spoken(name)) for name in names)]
    return Table(label, caption, header, [list(row) for row in zip(*cells, strict=True)], numbers=True)


_STEP_COLUMNS = (
    "epoch",
    "loss",
    "next_loss",
    "floor",
    "height",
    "barrier",
    "alpha_star",
    "cosine",
    "distance",
    "update_ratio",
    "batch_loss",
)


def _cell(name: str, value: float) -> str:
    if name == "barrier":
        return "–" if math.isnan(value) else BARRIER_WORDS[int(value)]
    return number(value, 4, zeros=name != "epoch")


def epochs_table(run: Run, label: RunLabel) -> Table:
    """The summary of each epoch, with what the loop noted for it."""
    table = by_epoch(run)
    table = table[table.index.notna()]
    noted = run.epochs
    more = list(noted.columns)[:MOST_COLUMNS]
    table = table.join(noted[more].rename(columns=lambda name: ("noted", name)), how="outer")
    header = ["epoch", "updates", "watched", "mean height", "barriers", "beyond noise", "floor inside", "over the edge"]
    header += ["mean cosine", "distance", "after updates", "directness", "undefined", *(spoken(name) for name in more)]
    sparse = (table["num_looked_at"] < table["num_updates"]).any()
    rows = []
    for epoch, row in table.loc[evenly(table.index, MOST_ROWS)].iterrows():
        undefined = row[[name for name in table.columns if str(name).startswith("undefined_")]].sum()
        counts = [row[name] for name in ("num_updates", "num_watched")]
        shares = [row["interior_floor_share"], row["over_edge_share"]]
        rows.append(
            [
                f"{epoch:,}",
                *(_whole(value) for value in counts),
                number(row["mean_height"], zeros=True),
                *(_whole(row[name]) for name in ("num_barriers", "num_significant_barriers")),
                *(f"{number(100 * share)} %" if not pd.isna(share) else "–" for share in shares),
                *(number(row[name], zeros=True) for name in ("mean_cosine", "distance")),
                _whole(row["distance_after"]) if sparse else "–",
                number(row["directness"], zeros=True),
                _whole(undefined),
                *(number(row[("noted", name)], 4, zeros=True) for name in more),
            ]
        )
    caption = _how_many(len(rows), len(table), "epoch")
    if len(noted.columns) > MOST_COLUMNS:
        caption += f"; {MOST_COLUMNS} of {len(noted.columns):,} noted values"
    told = [index for index in range(len(header)) if index < 1 or any(row[index] != "–" for row in rows)]
    return Table(
        label,
        caption,
        [header[index] for index in told],
        [[row[index] for index in told] for row in rows],
        numbers=True,
    )


def means_tables(run: Run, label: RunLabel) -> list[Table]:
    """What is known of epochs and of no single step: sampled segments and the gauge."""
    tables = []
    for means in epoch_means(run):
        chosen = evenly(pd.RangeIndex(len(means.rows)), MOST_ROWS)
        caption = f"{means.title}, {_how_many(len(chosen), len(means.rows), 'epoch')}"
        rows = [means.rows[index] for index in chosen]
        tables.append(Table(label, caption, means.header, rows, numbers=True, text=" ".join(means.notes)))
    return tables


def _whole(value: Any) -> str:
    return "–" if pd.isna(value) else f"{int(value):,}"


def left_out_table(run: Run, label: RunLabel) -> Table:
    """Why which values are undefined; columns undefined at the same steps for the same reason share a row."""
    table = left_out(run)
    rows = []
    for (first_step, reason, quantity), part in table.groupby(["first_step", "reason", "number"]):
        names = ", ".join(LABELS.get(name, spoken(name)) for name in part["column"])
        rows.append([names, plain(reason, 300), f"{quantity:,}", f"{first_step:,}"])
    caption = _the_first(len(rows), "reason")
    return Table(label, caption, ["values", "reason", "steps", "first at step"], rows[:MOST_LINES])


def events_table(run: Run, label: RunLabel) -> Table:
    """What happened to the walk."""
    events = run.events
    rows = [
        [f"{row.step:,}", plain(row.kind, 60), plain(row.message, 500)] for row in events.head(MOST_LINES).itertuples()
    ]
    return Table(label, _the_first(len(events), "event"), ["after updates", "kind", "what happened"], rows)


def _how_many(shown: int, total: int, noun: str) -> str:
    return count(total, noun) if shown == total else f"{shown:,} of {count(total, noun)}, evenly spaced"


def _the_first(total: int, noun: str) -> str:
    return count(total, noun) if total <= MOST_LINES else f"the first {MOST_LINES} of {count(total, noun)}"


_GROUPS = {
    "settings": "What was measured, and how",
    "optimizers": "Optimizer",
    "data": "Data",
    "model": "Model",
    "config": "Configuration of the experiment",
    "provenance": "Provenance",
}


def settings(runs: Sequence[Run]) -> list[SettingGroup]:
    """Everything recorded about the runs, side by side, rows that differ marked."""
    infos = [run.info for run in runs]
    rest = [{key: value for key, value in info.items() if key not in _GROUPS} for info in infos]
    groups = [_group("Run", rest)]
    groups += [_group(title, [info.get(key) for info in infos]) for key, title in _GROUPS.items()]
    return [group for group in groups if group.rows]


def _group(title: str, values: Sequence[Any]) -> SettingGroup:
    flat = [dict(_flatten(value)) for value in values]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = []
    for key in keys[:MOST_LINES]:
        texts = [one.get(key, "–") for one in flat]
        rows.append(SettingRow(plain(key, 80), texts, len(set(texts)) > 1))
    if len(keys) > MOST_LINES:
        rows.append(SettingRow(f"{len(keys) - MOST_LINES:,} more are in run.info", [""] * len(values), False))
    return SettingGroup(title, rows)


def _flatten(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Leaves with their names joined by a dot; entries of a list are counted where there are several."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flatten(part, f"{name} · {plain(key, 60)}" if name else plain(key, 60))
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for index, part in enumerate(value, start=1):
            yield from _flatten(part, f"{name} {index}".strip() if len(value) > 1 else name)
    elif name == "argv" and isinstance(value, list):
        yield name, plain(shlex.join(map(str, value)), 300)
    elif name or value is not None:
        yield name.replace("_", " "), _leaf(value)


def _leaf(value: Any) -> str:
    if isinstance(value, list):
        return plain(", ".join(_leaf(part) for part in value[:100]), 300) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value, 300)
