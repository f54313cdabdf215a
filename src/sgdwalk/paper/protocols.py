"""The same segments by several protocols: what of Table 1's barriers and Table 2's heights is evaluation noise?

Reads the columns that ``compare`` left in a run. Everything here is a table: one row an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import sgdwalk

DRAWS = 2_000
"""Simulated noisy evaluations of every clean segment."""
DRAWS_SEED = 0
PAPERS_EXAMPLES = 45_000
"""Training examples over which the authors' loss is a mean."""


def losses(run: sgdwalk.Run, protocol: str, steps: Sequence[int] | pd.Index | None = None) -> pd.DataFrame:
    """Losses along the segments that were measured by a protocol.

    Args:
        run: of a training with ``compare``.
        protocol: ``authors``, ``eval``, ``quarter``, ``sixteenth`` or ``fine``; ``clean`` is the walk's own.
        steps: only these.

    Returns:
        One row a step, one column a point by increasing α; only steps of which all losses are finite.
    """
    table: pd.DataFrame
    if protocol == "clean":
        segments = run.segments
        table = segments.pivot_table(index="step", columns="alpha", values="loss", dropna=False)
    else:
        names = [name for name in run.steps.columns if _is_point(name, protocol)]
        names.sort(key=lambda name: int(name.rpartition("_")[2]))
        table = run.steps[names]
    kept = np.asarray(np.isfinite(table.to_numpy(float)).all(axis=1), dtype=bool) & bool(table.shape[1])
    if steps is not None:
        kept &= np.asarray(table.index.isin(list(steps)), dtype=bool)
    return table.loc[list(kept)]


def repeated(run: sgdwalk.Run) -> pd.DataFrame:
    """L(θ_t) by the authors' protocol several times over: one row a step, one column an evaluation."""
    names = [name for name in run.steps.columns if name == "compare_authors_0" or _is_point(name, "authors_repeat")]
    return run.steps[names].dropna()


def _is_point(name: str, protocol: str) -> bool:
    start, _, number = name.rpartition("_")
    return start == f"compare_{protocol}" and number.isdigit()


def authors_noise(run: sgdwalk.Run, epochs: Sequence[int]) -> pd.DataFrame:
    """Question (a): how many barriers, and how much of the height, does the authors' evaluation add?

    Same iterates, both protocols, epoch by epoch. ``deviation`` is that of repeated evaluations at one θ, pooled over
    the steps. ``expected_…`` is what independent normal noise of that deviation on each of the clean losses makes of
    the clean segments: mean over simulations, and for the barriers their 95 % range. A mean over N examples has a
    deviation of 1/√N: ``full_deviation`` and ``full_barriers`` are the same for the paper's 45,000.

    Args:
        run: of a training with ``compare=("authors", …)``.
        epochs: counted from 1.
    """
    rows = []
    for epoch in epochs:
        steps = run.steps.index[run.steps["epoch"] == epoch]
        authors = losses(run, "authors", steps)
        clean = losses(run, "clean", authors.index)
        evaluations = repeated(run)
        evaluations = evaluations[evaluations.index.isin(steps)].to_numpy(float)
        if len(clean) == 0 or len(evaluations) == 0:
            continue
        deviation = float(np.sqrt(evaluations.var(axis=1, ddof=1).mean()))
        barriers, heights = _noisy(clean.to_numpy(float), deviation)
        full_deviation = deviation * math.sqrt(run.info["data"]["num_examples"] / PAPERS_EXAMPLES)
        full_barriers, _ = _noisy(clean.to_numpy(float), full_deviation)
        rows.append(
            {
                "epoch": epoch,
                "updates": len(clean),
                "loss": float(clean.iloc[:, 0].mean()),
                "deviation": deviation,
                "clean_barriers": _num_barriers(clean),
                "authors_barriers": _num_barriers(authors),
                "expected_barriers": float(barriers.mean()),
                "expected_barriers_low": float(np.quantile(barriers, 0.025)),
                "expected_barriers_high": float(np.quantile(barriers, 0.975)),
                "clean_height": _mean_height(clean),
                "authors_height": _mean_height(authors),
                "expected_height": float(heights.mean()),
                "full_deviation": full_deviation,
                "full_barriers": float(full_barriers.mean()),
            }
        )
    return pd.DataFrame(rows)


def _noisy(clean: NDArray[np.float64], deviation: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Number of barriers and mean height of segments under simulated noise, one value a draw."""
    rng = np.random.default_rng(DRAWS_SEED)
    barriers, heights = np.empty(DRAWS), np.empty(DRAWS)
    for draw in range(DRAWS):
        noisy = clean + deviation * rng.standard_normal(clean.shape)
        barriers[draw] = (sgdwalk.valley.barrier_height(noisy) > 0).sum()
        heights[draw] = sgdwalk.valley.height(noisy).mean()
    return barriers, heights


def batchnorm_and_examples(run: sgdwalk.Run, epochs: Sequence[int]) -> pd.DataFrame:
    """Question (b): barriers and mean height with running statistics, and over fewer examples, on the same updates.

    Args:
        run: of a training with ``compare=("eval", "subset", …)``.
        epochs: counted from 1.
    """
    rows = []
    for epoch in epochs:
        steps = run.steps.index[run.steps["epoch"] == epoch]
        measured = {name: losses(run, name, steps) for name in ("eval", "quarter", "sixteenth")}
        if any(len(each) == 0 for each in measured.values()):
            continue
        tables = {"clean": losses(run, "clean", measured["eval"].index), **measured}
        row: dict[str, float] = {"epoch": epoch, "updates": len(tables["clean"])}
        for name, table in tables.items():
            row |= {f"{name}_barriers": _num_barriers(table), f"{name}_height": _mean_height(table)}
        rows.append(row)
    return pd.DataFrame(rows)


def finer_grid(run: sgdwalk.Run, epochs: Sequence[int]) -> pd.DataFrame:
    """Question (c): barriers on 100 intervals that 10 miss, and how far the coarse grid's floor is from the fine one's.

    ``floor_gap`` is (floor on 10 intervals - floor on 100) / height on 100, the mean and the largest over the updates.

    Args:
        run: of a training with ``compare=("fine", …)``.
        epochs: counted from 1.
    """
    rows = []
    for epoch in epochs:
        fine = losses(run, "fine", run.steps.index[run.steps["epoch"] == epoch])
        if len(fine) == 0:
            continue
        points = fine.to_numpy(float)
        coarse = points[:, :: (points.shape[1] - 1) // 10]
        height = sgdwalk.valley.height(points)
        gap = (sgdwalk.valley.floor(coarse) - sgdwalk.valley.floor(points)) / np.where(height > 0, height, np.nan)
        rows.append(
            {
                "epoch": epoch,
                "updates": len(fine),
                "coarse_barriers": int((sgdwalk.valley.barrier_height(coarse) > 0).sum()),
                "fine_barriers": int((sgdwalk.valley.barrier_height(points) > 0).sum()),
                "coarse_height": float(sgdwalk.valley.height(coarse).mean()),
                "fine_height": float(height.mean()),
                "floor_gap": float(np.nanmean(gap)) if np.isfinite(gap).any() else float("nan"),
                "largest_floor_gap": float(np.nanmax(gap)) if np.isfinite(gap).any() else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def parabolas(runs: Sequence[sgdwalk.Run], epochs: Sequence[int | None]) -> pd.DataFrame:
    """The segments against Mutschler and Zell (2021): are they parabolas, and where on them does the step land?

    ``r2``: median, and the value that 5 % of the segments stay below. ``alpha_star``: median position of the line's
    minimum, in steps; below ½ the step climbs higher than it left. ``beyond_minimum``: share of updates whose minimum
    lies inside the step, of all. ``line_search_rate``: the learning rate that an exact line search would take along
    the same direction, α* η, median and quartiles.

    Args:
        runs: of one kind, one a seed; their updates are pooled.
        epochs: counted from 1; None takes the whole run.
    """
    rows = []
    for epoch in epochs:
        steps = pd.concat([run.steps if epoch is None else run.steps[run.steps["epoch"] == epoch] for run in runs])
        r2, alpha_star = steps["alpha_star_r2"].dropna(), steps["alpha_star"].dropna()
        if len(r2) == 0:
            continue
        rate = (steps["alpha_star"] * steps["learning_rate"]).dropna()
        low, middle, high = rate.quantile([0.25, 0.5, 0.75]) if len(rate) else (float("nan"),) * 3
        rows.append(
            {
                "epoch": epoch,
                "updates": len(r2),
                "r2": float(r2.median()),
                "r2_low": float(r2.quantile(0.05)),
                "with_minimum": len(alpha_star) / len(r2),
                "alpha_star": float(alpha_star.median()),
                "beyond_minimum": float(((alpha_star > 0) & (alpha_star < 1)).sum()) / len(r2),
                "line_search_rate": float(middle),
                "line_search_rate_low": float(low),
                "line_search_rate_high": float(high),
            }
        )
    return pd.DataFrame(rows)


def _num_barriers(table: pd.DataFrame) -> int:
    return int((sgdwalk.valley.barrier_height(table.to_numpy(float)) > 0).sum())


def _mean_height(table: pd.DataFrame) -> float:
    return float(sgdwalk.valley.height(table.to_numpy(float)).mean())
