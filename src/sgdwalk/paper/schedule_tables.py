"""Figures 6 and 27 in numbers: the grids, the tuned schedules, how well the height was held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

import sgdwalk
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.judging import student
from sgdwalk.paper.schedule_claims import final_accuracies
from sgdwalk.paper.schedule_trainings import EQUAL, SCHEDULES, best

Runs = Mapping[str, Sequence[sgdwalk.Run]]
NAMES: Mapping[str, str] = {**SCHEDULES, EQUAL: "height held, equal passes"}
"""Role -> what is compared, as charts and tables call it."""


def settings_of(run: sgdwalk.Run) -> Experiment:
    """The experiment that a training was made with."""
    return Experiment.from_dict(run.info["config"]["experiment"])


def training_loss(run: sgdwalk.Run) -> pd.Series:
    """Mean loss of the mini-batches of each epoch, nats per example; NaN where one was not finite."""
    return run.steps.groupby("epoch")["batch_loss"].agg(lambda losses: losses.mean(skipna=False))


def passes(run: sgdwalk.Run) -> float:
    """What a training cost, in forward passes over the training examples: training counts three times forward."""
    experiment = settings_of(run)
    measured = int(run.segments["step"].nunique())
    trained = len(run.steps) * experiment.batch_size / experiment.num_examples
    return 3 * trained + (experiment.num_points + 1) * measured


def chosen(runs: Runs, grid: Mapping[str, Mapping[str, Experiment]]) -> pd.DataFrame:
    """Every point of every grid: schedule, setting, validation accuracy and training loss at its end, chosen or not."""
    rows = []
    for schedule, roles in grid.items():
        winner = best(runs, roles)
        for role in roles:
            (run,) = runs[role]
            rows.append(
                {
                    "schedule": SCHEDULES[schedule],
                    "setting": role.partition(", ")[2],
                    "validation_accuracy": final_accuracies([run])[0],
                    "training_loss": float(training_loss(run).iloc[-1]),
                    "chosen": "chosen" if role == winner else "",
                }
            )
    return pd.DataFrame(rows)


def compared(runs: Runs) -> pd.DataFrame:
    """The tuned schedules: mean validation accuracy at the end with its interval, training loss, passes."""
    rows = []
    for role, name in NAMES.items():
        accuracies = final_accuracies(runs[role])
        mean, half = student(accuracies) if len(accuracies) > 1 else (accuracies[0], np.nan)
        losses = [float(training_loss(run).iloc[-1]) for run in runs[role]]
        rows.append(
            {
                "schedule": name,
                "seeds": len(accuracies),
                "updates": len(runs[role][0].steps),
                "passes": passes(runs[role][0]),
                "validation_accuracy": mean,
                "low": mean - half,
                "high": mean + half,
                "lowest_seed": min(accuracies),
                "highest_seed": max(accuracies),
                "training_loss": float(np.mean(losses)),
                "highest_rate": max(float(run.steps["learning_rate"].max()) for run in runs[role]),
            }
        )
    return pd.DataFrame(rows)


def held(runs: Runs) -> pd.DataFrame:
    """How near the measured heights came to the target, seed by seed, over the second half of the measurements."""
    rows = []
    for role in ("hold", EQUAL):
        for run in runs[role]:
            experiment = settings_of(run)
            measured = run.steps["height"].iloc[[step for step in run.steps.index if experiment.watched(step)]]
            late = measured.iloc[len(measured) // 2 :]
            known = late[late > 0]
            rates = run.steps["learning_rate"]
            assert experiment.peak_rate is not None
            rows.append(
                {
                    "training": NAMES[role],
                    "seed": experiment.seed,
                    "target": experiment.target_height,
                    "measured": len(measured),
                    "undefined": int(measured.isna().sum()),
                    "geometric_mean_late": float(np.exp(np.log(known).mean())) if len(known) else np.nan,
                    "lowest_late": float(late.min()),
                    "highest_late": float(late.max()),
                    "highest_rate": float(rates.max()),
                    "updates_at_peak_rate": int(np.isclose(rates, experiment.peak_rate).sum()),
                }
            )
    return pd.DataFrame(rows)
