"""Trainings of Figures 6 and 27: a grid for each schedule, and what the best of each grid is trained again with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import sgdwalk
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.trainings import NUM_UNWATCHED_SEEDS, Architecture, Scale, base, seeds

EPOCHS: Mapping[Scale, int] = {"smoke": 6, "small": 12, "paper": 90}
"""The paper does not say how long it trains; multiples of six, so that EQUAL_COST and the halves are whole."""
EQUAL_COST = (2, 3)
"""A training that holds the height is measured once in each epoch of its first half, in three passes over the examples
(both ends and the middle of a segment); an epoch of training costs three too, backward twice forward. So 2/3 of the
epochs cost as many passes as all epochs of the others."""
FIRST_RATE = 0.02
"""Where rising schedules start and end."""

SCHEDULES: Mapping[str, str] = {
    "cyclical": "cyclical (CLR)",
    "trapezoid": "trapezoid",
    "stepwise": "stepwise annealing",
    "hold": "height held",
}
"""What is compared: role -> its name."""
EQUAL = "hold-equal"
"""Role of the trainings that hold the height for as many forward passes as the others take."""

Points = Mapping[str, tuple[dict[str, float | int], ...]]
"""Settings to choose from, by schedule."""


def _points(rates: Sequence[float], heights: Sequence[float]) -> Points:
    """Every rate with each of two shapes, every height with each of two caps."""
    raised = tuple({"peak_rate": peak, "cycles": cycles} for peak in rates for cycles in (2, 4))
    return {
        "cyclical": raised,
        "trapezoid": raised,
        "stepwise": tuple({"learning_rate": rate, "decay": decay} for rate in rates for decay in (0.1, 0.3)),
        "hold": tuple({"target_height": height, "peak_rate": peak} for height in heights for peak in (0.5, 1.0)),
    }


_SMALL = _points(rates=(0.15, 0.5), heights=(0.005, 0.03))
GRID: Mapping[Scale, Points] = {
    "smoke": {schedule: points[:1] for schedule, points in _SMALL.items()},
    "small": _SMALL,
    "paper": _points(rates=(0.1, 0.3, 1.0), heights=(0.005, 0.02, 0.08)),
}
"""As many settings of each schedule. The heights of ``small`` are about those that a fixed learning rate of 0.1 has
there in epoch 1, and from epoch 10 on."""


def grid(architecture: Architecture, scale: Scale) -> dict[str, dict[str, Experiment]]:
    """The trainings to choose from: schedule -> role -> experiment, all with the first seed."""
    plain = replace(base(architecture, scale), epochs=EPOCHS[scale], learning_rate=FIRST_RATE)
    points = GRID[scale]
    return {
        schedule: {
            f"{schedule}, {', '.join(f'{name} {value:g}' for name, value in point.items())}": replace(
                plain, schedule=schedule, **point, **_watching(schedule, plain.epochs)
            )
            for point in points[schedule]
        }
        for schedule in SCHEDULES
    }


def best(runs: Mapping[str, Sequence[sgdwalk.Run]], roles: Mapping[str, Experiment]) -> str:
    """The role whose training ends with the highest validation accuracy; of several, the first."""
    return max(roles, key=lambda role: float(runs[role][0].epochs["validation_accuracy"].iloc[-1]))


def tuned(chosen: Mapping[str, Experiment], scale: Scale) -> dict[str, tuple[Experiment, ...]]:
    """The trainings that are compared, by role, from the chosen setting of each schedule.

    Their seeds played no part in choosing it, but at ``smoke``, where there is one.
    """
    chosen_by = 0 if scale == "smoke" else 1
    fresh = [seed + chosen_by for seed in seeds(scale, NUM_UNWATCHED_SEEDS)]
    numerator, denominator = EQUAL_COST
    hold = chosen["hold"]
    epochs = hold.epochs * numerator // denominator
    roles = {**chosen, EQUAL: replace(hold, epochs=epochs, **_watching("hold", epochs))}
    return {role: tuple(replace(each, seed=seed) for seed in fresh) for role, each in roles.items()}


def _watching(schedule: str, epochs: int) -> dict:
    """The height is measured at the first update of each epoch up to the annealing, where it steers the rate."""
    if schedule != "hold":
        return {"watch": False}
    return {"watch_first": 1, "watch_epochs": tuple(range(1, epochs // 2 + 1)), "num_points": 2}
