"""Which columns the steps of a run have: those of every walk, and the families of those that measures added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from sgdwalk.errors import InputError
from sgdwalk.run import CERTIFIED_COLUMNS
from sgdwalk.text import plain

if TYPE_CHECKING:
    from sgdwalk.run import Run

SEGMENT_COLUMNS = (
    "loss",
    "next_loss",
    "floor",
    "floor_alpha",
    "height",
    "barrier",
    "barrier_height",
    "barrier_significant",
    "alpha_star",
)
"""Columns of ``run.steps`` that come from the losses along a segment: they exist on watched steps only."""
UPDATE_COLUMNS = ("cosine", "distance", "next_distance", "grad_norm", "param_norm", "update_norm")
"""Columns of ``run.steps`` that every update has, or those of ``columns`` and what is watched alone."""
_OTHER_COLUMNS = ("epoch", "learning_rate", "batch_loss", "loss_noise", "alpha_star_r2", *CERTIFIED_COLUMNS)


def measure_columns(run: Run) -> list[str]:
    """The columns of ``run.steps`` that the user's measures added, in their order."""
    known = {*SEGMENT_COLUMNS, *UPDATE_COLUMNS, *_OTHER_COLUMNS}
    names = list(run.steps.columns)
    return [name for name in names if name not in known and not _is_reason(name, names)]


DERIVED_COLUMNS = (
    *("watched", "looked_at", "interior_floor", "critical_ratio"),
    *("update_ratio", "path_length", "directness"),
)
"""Columns of ``sgdwalk.analysis.derived``."""


def looked_at(run: Run) -> pd.Series:
    """Whether cosine, distance and norms of an update were computed: one of them is known, or a reason for none.

    Of a run without any, all updates count as looked at: they are missing then, and not left out.
    """
    reasons = [f"{name}_reason" for name in UPDATE_COLUMNS]
    looked = run.steps[[name for name in (*UPDATE_COLUMNS, *reasons) if name in run.steps]].notna().any(axis=1)
    return looked | (not looked.any())


ENDINGS = (
    *("threshold", "edge_ratio", "standard_error", "low", "high"),
    *("residual", "num_products", "batch_size", "trace", "gradient_square"),
)
"""Endings of the columns that belong to a measure's own column: ``spectral_norm_residual`` to ``spectral_norm``."""


def family(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A measure's own column and those that belong to it by their endings."""
    return table[[column for column in (name, *(f"{name}_{ending}" for ending in ENDINGS)) if column in table]]


def check_runs(runs: Sequence[Any]) -> None:
    """Raise where a figure was given something else than runs, such as the names of columns."""
    for run in runs:
        if not hasattr(run, "steps"):
            raise InputError(
                "Runs are wanted, such as sgdwalk.open_run(folder) or walk.run, one argument each; got "
                f"{plain(run, 60)}, a {type(run).__name__}."
            )


def thresholded_measures(run: Run) -> list[str]:
    """Measures that bring a threshold along, which is defined at one step at least."""
    table = run.steps
    names = measure_columns(run)
    return [name for name in names if f"{name}_threshold" in names and table[f"{name}_threshold"].notna().any()]


def edge_ratios(table: pd.DataFrame, name: str) -> pd.Series:
    """A measure over its threshold at the steps where both are defined; above 1 it is beyond it."""
    return (table[name] / table[f"{name}_threshold"]).dropna()


def banded_measures(run: Run) -> list[str]:
    """Measures that bring an interval along and no threshold."""
    names, compared = measure_columns(run), thresholded_measures(run)
    return [name for name in names if {f"{name}_low", f"{name}_high"} <= {*names} and name not in compared]


SAMPLED_ENDINGS = ("height", "floor", "interior", "alpha_star", "loss", "next_loss", "num_units")
"""Endings of the columns of sampled segments; runs of before ``num_units`` lack the last."""


def sampled_measures(run: Run) -> list[str]:
    """Names of the measures that sampled segments, such as ``sampled`` of ``method="sampled"``."""
    names = measure_columns(run)
    heights = [name.removesuffix("_height") for name in names if name.endswith("_height")]
    return [name for name in heights if {f"{name}_{ending}" for ending in SAMPLED_ENDINGS[:-1]} <= {*names}]


def sampled_columns(run: Run) -> set[str]:
    """Their columns: a single one says little, only the means of an epoch do."""
    return {f"{name}_{ending}" for name in sampled_measures(run) for ending in SAMPLED_ENDINGS}


def plain_measures(run: Run) -> list[str]:
    """Columns of measures that belong to none with a threshold or an interval, and are no points of a curve.

    Columns that end in a number, ``compare_fine_0`` to ``compare_fine_100`` say, are points of one curve. Those of
    sampled segments are left to the means of an epoch.
    """
    told = sampled_columns(run) | {
        column for name in (*thresholded_measures(run), *banded_measures(run)) for column in family(run.steps, name)
    }
    names = measure_columns(run)
    return [name for name in names if name not in told and not name.rpartition("_")[2].isdigit()]


def _is_reason(name: str, names: list[str]) -> bool:
    return name.endswith("_reason") and (name[: -len("_reason")] in names or name == "segment_reason")
