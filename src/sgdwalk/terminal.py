"""A run, or a folder of runs, in a terminal. Whatever a name holds, what is printed is inert."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import sgdwalk
from sgdwalk.epoch_means import epoch_means
from sgdwalk.lock import is_held
from sgdwalk.paper import record
from sgdwalk.paper.registry import TITLES
from sgdwalk.summary import describe
from sgdwalk.text import count, number, plain, sparkline

COLUMNS = {
    "epoch": "epoch",
    "loss": "L(θ_t)",
    "next_loss": "L(θ_t+1)",
    "floor": "floor",
    "height": "height",
    "barrier": "barrier",
    "alpha_star": "α*",
    "cosine": "cosine",
    "distance": "distance",
}
"""Columns of ``run.steps`` in the table, and their headings."""


def show(run: sgdwalk.Run, rows: int | None = 20) -> None:
    """Print a run: in words, its height as a line of bars, what is known of its epochs alone, and a table of its steps.

    Args:
        run: the run.
        rows: the first and last rows of each table, this many together; None lists every step, watched or not.
    """
    named = run.path is not None and run.path.name == run.name
    print(f"{plain(run.path) if named else f'{plain(run.name, 100)} ({plain(run.path)})'}, {state(run)}")
    for sentence in describe(run):
        print(f"  {sentence}")
    height = run.steps["height"].dropna()
    if len(height):
        print(f"height {sparkline(height)} {number(height.min())} to {number(height.max())} nats, {steps_of(height)}")
    for _, event in run.events.iterrows():
        print(f"  before step {event['step']}: {plain(event['message'], 300)}")
    for means in epoch_means(run):
        print(f"{means.title}, by epoch:")
        print_rows(means.header, means.rows, rows)
        for note in means.notes:
            print(f"  {note}")
    watched = run.steps.loc[np.sort(run.segments["step"].unique())]
    if len(watched) or rows is None:
        print_table(run.steps if rows is None else watched, rows)
    elif len(run.steps):
        print("No segment was measured whole: --all lists every step.")


def print_table(steps: pd.DataFrame, rows: int | None) -> None:
    """Print rows of ``run.steps``, the first and the last of them where they are more than ``rows``."""
    texts = [
        [str(step), *(cell(row[name]) for name in COLUMNS)]
        for step, row in zip(steps.index, steps.to_dict("records"), strict=True)
    ]
    if left_out := print_rows(["step", *COLUMNS.values()], texts, rows):
        print(f"{left_out:,} steps more: --rows {len(steps)} lists all that were watched, --all every step.")


def print_rows(header: list[str], texts: list[list[str]], rows: int | None) -> int:
    """Print a table of texts, the first and the last where they are more than ``rows``; returns how many it omits."""
    left_out = 0 if rows is None else max(len(texts) - rows, 0)
    head = len(texts) if not left_out else (len(texts) - left_out + 1) // 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in header:
        table.add_column(heading, justify="right", no_wrap=True)
    for position in [*range(head), *range(head + left_out, len(texts))]:
        table.add_row(*map(Text, texts[position]))
        if left_out and position == head - 1:
            table.add_row("…", *("" for _ in header[1:]))
    console = Console(file=sys.stdout, highlight=False)
    console = console if console.is_terminal else Console(file=sys.stdout, highlight=False, width=100)
    console.print(table)
    return left_out


def list_all(folder: Path) -> None:
    """Print what can be reproduced, and the runs anywhere in a folder with their state."""
    print("Can be reproduced (sgdwalk reproduce ID --scale smoke|small|paper):")
    for name, title in TITLES.items():
        print(f"  {name}  {title}")
    found = sorted(path.parent for path in folder.rglob("run.json"))
    looked_at = plain(folder.absolute())
    if found:
        print(f"Runs in {plain(folder)}:")
    else:
        none = f"No run in {looked_at} or any folder in it" if folder.is_dir() else f"No runs: {looked_at} is no folder"
        print(f"{none}. If yours are elsewhere: sgdwalk list FOLDER.")
        print("To make one: sgdwalk run, or sgdwalk.watch(..., run=FOLDER) around a loop of your own.")
    for path in found:
        try:
            run = sgdwalk.open_run(path)
        except sgdwalk.SgdwalkError as error:
            print(f"  {plain(path)}: cannot be read: {plain(error, 300)}")
        else:
            print(f"  {plain(path)}: {plain(run.name, 60)}, {state(run)}")


def state(run: sgdwalk.Run) -> str:
    """How far a run is, in words."""
    config = run.info["config"]
    planned = config.get("num_updates") if "settings_hash" in config else None
    done = count(len(run.steps), "update") if planned is None else f"{len(run.steps):,} of {count(planned, 'update')}"
    if run.path is not None and is_held(run.path):
        return f"{done}, being written"
    if planned is None:
        return done
    return f"{done}, finished" if record.is_finished(run) else f"{done}, not finished"


def steps_of(values: pd.Series) -> str:
    """``steps 0 to 39``."""
    return f"steps {values.index[0]} to {values.index[-1]}"


def cell(value: float | bool | None) -> str:
    """A value of the table in few characters."""
    if value is pd.NA or value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    return number(value, digits=4)
