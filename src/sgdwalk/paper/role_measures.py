"""What is read from walks at several learning rates and batch sizes: one number a training, and slopes over many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd

import sgdwalk
from sgdwalk.paper.judging import CONFIDENCE, clustered_proportion_interval, student
from sgdwalk.paper.role_trainings import WATCHED, Setting

Runs = Mapping[str, Sequence[sgdwalk.Run]]
Factor = Literal["learning rate", "batch size"]
FACTORS: tuple[Factor, ...] = ("learning rate", "batch size")


@dataclass(frozen=True)
class Quantity:
    """One number of a training at a moment."""

    name: str
    words: str
    logarithmic: bool
    """Slopes are those of its logarithm, exponents of a power law; else they are changes a doubling."""


HEIGHT = Quantity("height", "height, nats per example", True)
DISTANCE = Quantity("distance", "distance from θ_0", True)
COSINE = Quantity("cosine", "cosine of consecutive gradients", False)
SPECTRAL_NORM = Quantity("spectral_norm", "spectral norm (over a part)", True)
ACCURACY = Quantity("validation_accuracy", "validation accuracy", False)
VALIDATION_LOSS = Quantity("validation_loss", "validation loss, nats per example", True)
QUANTITIES = (HEIGHT, DISTANCE, COSINE, SPECTRAL_NORM, ACCURACY, VALIDATION_LOSS)


@dataclass(frozen=True)
class Moment:
    """When walks are compared: after a fixed number of updates, or of epochs."""

    number: int
    unit: Literal["updates", "epochs"]

    def __str__(self) -> str:
        return f"{self.number} {self.unit}"

    @property
    def kind(self) -> str:
        """What it is whatever its number: statements are told apart by this."""
        return f"a fixed number of {self.unit}"

    def step(self, run: sgdwalk.Run) -> int:
        """How many updates a training has made then."""
        return self.number if self.unit == "updates" else self.number * int((run.steps["epoch"] == 1).sum())


def window(run: sgdwalk.Run, moment: Moment) -> range:
    """The updates whose cosines are averaged: the second half of those up to the moment."""
    step = moment.step(run)
    return range(step // 2, step)


def value(run: sgdwalk.Run, quantity: Quantity, moment: Moment) -> float:
    """A quantity of one training at a moment; NaN where it is not known.

    The distance and the validation are those after the last update before the moment, the cosine is the mean over the
    second half of the updates up to it, the height the mean over the watched updates from it on.
    """
    steps, step = run.steps, moment.step(run)
    if step > len(steps):
        return float("nan")
    if quantity is DISTANCE:
        return float(steps["next_distance"].iloc[step - 1])
    if quantity is COSINE:
        cosines = window(run, moment)
        return float(steps["cosine"].iloc[cosines.start : cosines.stop].mean())
    if quantity is HEIGHT:
        return float(steps["height"].iloc[step : step + WATCHED].mean())
    if quantity is SPECTRAL_NORM:
        known = "part_spectral_norm" in steps and step < len(steps)
        return float(steps["part_spectral_norm"].iloc[step]) if known else float("nan")
    notes = run.epochs
    epoch = int(steps["epoch"].iloc[step - 1])
    return float(notes[quantity.name].get(epoch, float("nan"))) if quantity.name in notes else float("nan")


def values(runs: Runs, settings: Sequence[Setting], quantity: Quantity, moment: Moment) -> np.ndarray:
    """One row a setting, one column a seed."""  # (settings, seeds)
    return np.array([[value(run, quantity, moment) for run in runs[each.role]] for each in settings])


def slopes(runs: Runs, settings: Sequence[Setting], quantity: Quantity, moment: Moment) -> np.ndarray:
    """How a quantity depends on learning rate and batch size, seed by seed.

    Least squares of y = a + b log₂ η + c log₂ B over the settings, y the quantity or, where it is logarithmic, its
    log₂: b and c are the changes of y a doubling. A factor that does not vary has no slope. Settings at which the
    quantity is not known are left out; a seed with fewer settings than coefficients has none.

    Returns:
        b and c of each seed, no row at all of no setting.  # (seeds, 2)
    """
    if not settings:
        return np.empty((0, 2))
    found = values(runs, settings, quantity, moment)
    if quantity.logarithmic:
        found = np.log2(np.where(found > 0, found, np.nan))
    factors = np.log2([[each.learning_rate, each.batch_size] for each in settings])
    varying = np.ptp(factors, axis=0) > 0
    coefficients = np.full((found.shape[1], 2), np.nan)
    for seed, column in enumerate(found.T):
        known = np.isfinite(column)
        design = np.column_stack([np.ones(int(known.sum())), factors[known][:, varying]])
        if np.linalg.matrix_rank(design) < design.shape[1]:
            continue
        coefficients[seed, varying] = np.linalg.lstsq(design, column[known], rcond=None)[0][1:]
    return coefficients


def unknown(runs: Runs, settings: Sequence[Setting], quantity: Quantity, moment: Moment) -> int:
    """Trainings in which the quantity is not known, or has no logarithm."""
    found = values(runs, settings, quantity, moment)
    return int((~np.isfinite(found) | (quantity.logarithmic & (found <= 0))).sum())


def equivalence_interval(differences: np.ndarray) -> tuple[float, float]:
    """The interval that two one-sided t tests at 5 % compare with a margin: Student's 90 % interval.

    >>> low, high = equivalence_interval(np.array([0.0, 0.1, 0.2]))
    >>> round(low, 4), round(high, 4)  # 0.1 ± 2.920 · 0.1 / √3
    (-0.0686, 0.2686)
    """
    mean, half = student(differences, 2 * CONFIDENCE - 1)
    return mean - half, mean + half


def is_bouncing(runs: Runs, setting: Setting, moment: Moment) -> bool:
    """Whether updates at the moment pass their floor, where that was watched: most of them, of all seeds."""
    inside = []
    for run in runs[setting.role]:
        step = moment.step(run)
        where = run.steps["floor_alpha"].iloc[step : step + WATCHED].dropna()
        inside += [0.0 < alpha < 1.0 for alpha in where]
    return not inside or 2 * sum(inside) > len(inside)


def equal_ratios(settings: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
    """Pairs of settings with one learning rate / batch size, the smaller rate first; ordered by the larger rate."""
    pairs = [
        (one, other)
        for one, other in combinations(sorted(settings), 2)
        if np.isclose(one.learning_rate * other.batch_size, other.learning_rate * one.batch_size)
        and one.learning_rate < other.learning_rate
    ]
    return sorted(pairs, key=lambda pair: (pair[1].learning_rate, pair[0].learning_rate))


def log_ratios(runs: Runs, pair: tuple[Setting, Setting], quantity: Quantity, moment: Moment) -> np.ndarray:
    """log (value at the larger learning rate / value at the smaller), seeds with both only."""
    small, large = values(runs, pair, quantity, moment)
    known = (small > 0) & (large > 0)
    return np.log(large[known] / small[known])


def barriers(runs: Runs, settings: Sequence[Setting]) -> tuple[list[int], list[int]]:
    """Watched updates that cross a barrier, and watched updates, of every training of some settings."""
    known = [run.steps["barrier"].dropna().astype(bool) for each in settings for run in runs[each.role]]
    return [int(each.sum()) for each in known], [len(each) for each in known]


def settings_table(runs: Runs, settings: Sequence[Setting], moments: Sequence[Moment]) -> pd.DataFrame:
    """Figures 4 and 22 to 24 in numbers: one row a setting and moment, with Student's 95 % interval over the seeds."""
    rows = []
    for each in settings:
        for moment in moments:
            row: dict[str, object] = {"learning_rate": each.learning_rate, "batch_size": each.batch_size}
            row |= {"after": str(moment), "updates": moment.step(runs[each.role][0]), "seeds": len(runs[each.role])}
            for quantity in (COSINE, DISTANCE, ACCURACY):
                mean, half = _interval(values(runs, [each], quantity, moment)[0])
                row |= {quantity.name: mean, f"{quantity.name}_low": mean - half, f"{quantity.name}_high": mean + half}
            rows.append(row)
    return pd.DataFrame(rows)


def grid_table(runs: Runs, settings: Sequence[Setting], moments: Sequence[Moment]) -> pd.DataFrame:
    """Every cell of the grid at every moment: the mean over the seeds of each quantity."""
    rows = []
    for moment in moments:
        found = {quantity.name: values(runs, settings, quantity, moment) for quantity in QUANTITIES}
        for number, each in enumerate(settings):
            row: dict[str, object] = {
                "after": str(moment),
                "learning_rate": each.learning_rate,
                "batch_size": each.batch_size,
            }
            rows.append(row | {name: _interval(table[number])[0] for name, table in found.items()})
    return pd.DataFrame(rows)


def slopes_table(runs: Runs, settings: Sequence[Setting], moments: Sequence[Moment]) -> pd.DataFrame:
    """How every quantity depends on learning rate and batch size: mean slope and Student's 95 % interval."""
    rows = []
    for moment in moments:
        for quantity in QUANTITIES:
            found = slopes(runs, settings, quantity, moment)
            row: dict[str, object] = {
                "after": str(moment),
                "quantity": f"log {quantity.name}" if quantity.logarithmic else quantity.name,
                "seeds": int(np.isfinite(found).all(axis=1).sum()),
                "unknown": unknown(runs, settings, quantity, moment),
            }
            for factor, column in zip(("rate", "batch"), found.T, strict=True):
                mean, half = _interval(column)
                row |= {factor: mean, f"{factor}_low": mean - half, f"{factor}_high": mean + half}
            rows.append(row)
    return pd.DataFrame(rows)


def ratios_table(runs: Runs, settings: Sequence[Setting], moment: Moment) -> pd.DataFrame:
    """Pairs with one ratio of learning rate to batch size: the larger rate's value by the smaller's, 90 % intervals."""
    rows = []
    for small, large in equal_ratios(settings):
        row: dict[str, object] = {
            "small_rate": small.learning_rate,
            "small_batch": small.batch_size,
            "large_rate": large.learning_rate,
            "large_batch": large.batch_size,
        }
        for quantity in (DISTANCE, VALIDATION_LOSS, HEIGHT):
            logs = log_ratios(runs, (small, large), quantity, moment)
            low, high = equivalence_interval(logs) if len(logs) > 1 else (float("nan"),) * 2
            ratio = float(np.exp(logs.mean())) if len(logs) else float("nan")
            row |= {quantity.name: ratio, f"{quantity.name}_low": np.exp(low), f"{quantity.name}_high": np.exp(high)}
        rows.append(row)
    return pd.DataFrame(rows)


def barriers_table(runs: Runs, settings: Sequence[Setting]) -> pd.DataFrame:
    """Barriers at the watched updates, learning rate by learning rate."""
    rows = []
    for rate in sorted({each.learning_rate for each in settings}):
        chosen = [each for each in settings if each.learning_rate == rate]
        crossed, updates = barriers(runs, chosen)
        low, high = clustered_proportion_interval(crossed, updates) if any(updates) else (float("nan"),) * 2
        rows.append(
            {"learning_rate": rate, "barriers": sum(crossed), "updates": sum(updates), "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def _interval(found: np.ndarray) -> tuple[float, float]:
    """Mean and half-width over the seeds whose value is known; no half-width for one."""
    found = found[np.isfinite(found)]
    if len(found) > 1:
        return student(found)
    return (float(found[0]) if len(found) else float("nan")), float("nan")
