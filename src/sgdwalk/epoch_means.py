"""Means of epochs as texts, for the terminal and for the report: of sampled segments, and of the gauge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from sgdwalk.analysis import gauge_epochs, sampled_epochs
from sgdwalk.columns import sampled_measures
from sgdwalk.text import count, number, plain

if TYPE_CHECKING:
    from sgdwalk.run import Run


@dataclass(frozen=True)
class EpochMeans:
    """A table of texts, one row an epoch, and what must be said beside it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def epoch_means(run: Run) -> list[EpochMeans]:
    """A table for each measure that sampled segments, and one for the gauge; none where there is neither.

    >>> epoch_means(run)
    []
    """
    return [*(_of_samples(run, name) for name in sampled_measures(run)), *_of_gauge(run)]


def _of_samples(run: Run, name: str) -> EpochMeans:
    table = sampled_epochs(run, name)
    header = ["epoch", "sampled", "mean height", "mean floor", "bounces", "mean α*"]
    rows = [
        [
            _epoch(epoch),
            f"{row['num_sampled']:,} of {row['num_updates']:,}",
            with_interval(row["mean_height"], row["height_low"], row["height_high"]),
            with_interval(row["mean_floor"], row["floor_low"], row["floor_high"]),
            share(row["bounce_share"]),
            number(row["mean_alpha_star"], zeros=True),
        ]
        for epoch, row in _rows(table)
    ]
    units = " or ".join(f"{units:,}" for units in table["num_units"].dropna().unique()) or "a few"
    notes = [
        f"From {units} evaluation batches of each sampled update, in nats per example, with 95 % intervals, a "
        "sampled update counted as those nearest to it. Bounces: updates whose lowest loss lies between the iterates.",
        "Bounces and α* have no interval: both are read off the noisy losses of a few batches, which moves them to one "
        "side.",
    ]
    if table["height_low"].isna().any():
        notes.append("Where height and floor have none, fewer than three sampled updates have them.")
    if undefined := int(table["undefined"].sum()):
        reasons = "; ".join(plain(reason, 100) for reason in run.steps[f"{name}_height_reason"].dropna().unique()[:2])
        notes.append(f"{count(undefined, 'sampled update')} without a height left out ({reasons}).")
    title = "Sampled segments" if name == "sampled" else f"Sampled segments ({plain(name, 40)})"
    return EpochMeans(title, header, rows, [*notes, *_without_epoch(table)])


def _of_gauge(run: Run) -> Iterator[EpochMeans]:
    if "gauge" not in run.steps:
        return
    table = gauge_epochs(run)
    header = ["epoch", "updates", "mean slope", "positive", "undefined"]
    rows = [
        [
            _epoch(epoch),
            _of_updates(row),
            with_interval(row["mean_gauge"], row["gauge_low"], row["gauge_high"]),
            share(row["positive_share"]),
            f"{row['undefined']:,}",
        ]
        for epoch, row in _rows(table)
    ]
    notes = [
        "The slope of the full loss at the end of updates, as the next mini-batch has it, with 95 % intervals; "
        "above zero an update went past the floor of its segment. Single ones are noisy, so that the share of "
        "positive ones lies nearer to one half than that of bounces."
    ]
    if (table["num_gauged"] + table["undefined"] < table["num_updates"]).any():
        notes.append("They are of the updates with a gauge, and stand for the others where those were drawn fairly.")
    if table["gauge_low"].isna().any():
        notes.append("An interval needs nine updates with a gauge.")
    yield EpochMeans("Gauge", header, rows, [*notes, *_without_epoch(table)])


def with_interval(value: float, low: float, high: float) -> str:
    """A mean with its interval where there is one.

    >>> with_interval(0.15, 0.1, 0.2), with_interval(0.15, float("nan"), float("nan"))
    ('0.150 (0.10 to 0.20)', '0.150 (–)')
    """
    if pd.isna(value):
        return "–"
    known = not (pd.isna(low) or pd.isna(high))
    within = f"{number(low, 2, zeros=True)} to {number(high, 2, zeros=True)}" if known else "–"
    return f"{number(value, zeros=True)} ({within})"


def _of_updates(row: dict[str, Any]) -> str:
    """How many updates; where not all were looked at, how many of them have a gauge."""
    if row["num_gauged"] + row["undefined"] == row["num_updates"]:
        return f"{row['num_updates']:,}"
    return f"{row['num_gauged']:,} of {row['num_updates']:,}"


def share(value: float) -> str:
    """A share in whole percent, a dash where it is not known."""
    return "–" if pd.isna(value) else f"{100 * value:.0f} %"


def _rows(table: pd.DataFrame) -> Iterator[tuple[Any, dict[str, Any]]]:
    return zip(table.index, table.to_dict("records"), strict=True)  # pyright: ignore[reportReturnType]


def _epoch(epoch: Any) -> str:
    return "–" if pd.isna(epoch) else f"{epoch:,}"


def _without_epoch(table: pd.DataFrame) -> list[str]:
    return ["Row –: the loop did not say the epoch."] if table.index.isna().any() else []
