"""The sentences under a figure: what is drawn, what was left out and why, how a line runs for who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from sgdwalk.analysis import left_out, within
from sgdwalk.columns import UPDATE_COLUMNS, looked_at
from sgdwalk.text import count, number, plain

if TYPE_CHECKING:
    from sgdwalk.run import Run


def sentences(*parts: str) -> str:
    """The non-empty parts, each once, as one text.

    >>> sentences("One.", "", "Two.", "One.")
    'One. Two.'
    """
    return " ".join(dict.fromkeys(part for part in parts if part))


def span(table: pd.DataFrame) -> str:
    """The steps of a table in words.

    >>> span(pd.DataFrame(index=[3, 4, 5]))
    'steps 3 to 5'
    """
    if len(table) == 0:
        return "no steps"
    return f"steps {table.index.min():,} to {table.index.max():,}"


def undefined(run: Run, columns: Sequence[str], steps: range | None = None) -> str:
    """How many values of some columns are left out of a figure and why, or '' where none is.

    Before it, of how many updates the figure is where cosine, distance and norms of some alone were kept.

    >>> undefined(run, ["cosine"])
    'Left out of SGD as undefined: 1 cosine (there is no gradient before the first).'
    """
    table = left_out(run, steps)
    table = table[table["column"].isin(columns)]
    parts = []
    for column in table["column"].unique():
        rows = table[table["column"] == column]
        reasons = [plain(reason, 100) for reason in rows["reason"]]
        shown = "; ".join(reasons[:2]) + ("; …" if len(reasons) > 2 else "")
        parts.append(
            f"{count(rows['number'].sum(), *_NOUNS.get(column, (f'value of {plain(column, 40)}',) * 2))} ({shown})"
        )
    left = f"Left out of {plain(run.name, 60)} as undefined: {', '.join(parts)}." if parts else ""
    return sentences(_looked_at(run, columns, steps), left)


def _looked_at(run: Run, columns: Sequence[str], steps: range | None) -> str:
    looked = looked_at(run)[within(run.steps, steps).index]
    if looked.all() or not {*UPDATE_COLUMNS} & {*columns}:
        return ""
    of = f"{looked.sum():,} of {count(len(looked), 'update')}"
    return f"Cosine, distance and norms of {plain(run.name, 60)} are those of {of}."


_NOUNS = {
    "segment": ("segment that failed", "segments that failed"),
    "loss": ("loss", "losses"),
    "floor": ("floor",),
    "height": ("height",),
    "barrier": ("barrier",),
    "alpha_star": ("α*", "α*"),
    "cosine": ("cosine",),
    "distance": ("distance",),
    "next_distance": ("distance",),
    "update_norm": ("update norm",),
    "param_norm": ("parameter norm",),
    "batch_loss": ("batch loss", "batch losses"),
}


def course(values: pd.Series) -> str:
    """How a line runs: its first and last value, its lowest and highest.

    >>> course(pd.Series([2.0, 5.0, float("nan"), 1.0]))
    'goes from 2 to 1, lowest 1, highest 5'
    """
    defined = values.dropna()
    if defined.empty:
        return "has no defined value"
    return (
        f"goes from {number(defined.iloc[0])} to {number(defined.iloc[-1])}, "
        f"lowest {number(defined.min())}, highest {number(defined.max())}"
    )
