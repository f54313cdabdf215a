"""Isotropic noise in numbers: how strong it was, where trainings ended, and what the paper's norms would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

import sgdwalk
from sgdwalk.paper.noise_claims import final_accuracy, final_distance, final_loss, final_norm
from sgdwalk.paper.noise_trainings import FACTORS, NOISE_ROLES, READINGS, noise_role
from sgdwalk.paper.trainings import AUTHORS_WEIGHT_DECAY
from sgdwalk.paper.walk_claims import CLOSE_FROM

PAPER_VARIANCES: Mapping[float, float] = {0.1: 0.028, 0.05: 0.014}
"""Section 4, VGG-11: factor -> "isotropic variance"."""
PAPER_NORMS: Mapping[str, float] = {
    "gd": 87,
    "sgd": 82,
    **{noise_role(reading, factor): norm for reading in READINGS for factor, norm in ((0.1, 443), (0.05, 369))},
}
"""Section 4, VGG-11: role -> norm of the final parameters."""
PAPER_START_NORM, PAPER_PARAMETERS, PAPER_RATE = 87.1, 9_756_426, 0.1
"""The authors' VGG-11 as their code starts it."""
PAPER_UPDATES = 1_500
"""Figure 5 shows at least so many."""

Runs = Mapping[str, Sequence[sgdwalk.Run]]


def ends(runs: Runs, labels: Mapping[str, str]) -> pd.DataFrame:
    """Where trainings ended, one row a role: means over the seeds, and the lowest and highest of two of them.

    Args:
        runs: by role, one a seed.
        labels: role -> what it is, in words.
    """
    rows = []
    for role, label in labels.items():
        loss = np.array([final_loss(run) for run in runs[role]])
        accuracy = np.array([final_accuracy(run) for run in runs[role]])
        cosine = [float(run.steps["cosine"].iloc[CLOSE_FROM:].median()) for run in runs[role]]
        rows.append(
            {
                "training": label,
                "seeds": len(loss),
                "updates": len(runs[role][0].steps),
                "loss": _mean(loss),
                "loss_low": float(loss.min()),
                "loss_high": float(loss.max()),
                "accuracy": _mean(accuracy),
                "accuracy_low": float(accuracy.min()),
                "accuracy_high": float(accuracy.max()),
                "median_cosine": _mean(cosine),
                "distance": _mean([final_distance(run) for run in runs[role]]),
            }
        )
    return pd.DataFrame(rows)


def norms(runs: Runs, labels: Mapping[str, str], paper: Mapping[str, float]) -> pd.DataFrame:
    """Norms of the parameters, one row a role: ours, what noise alone would make of them, the paper's.

    Args:
        runs: by role, one a seed.
        labels: role -> what it is, in words.
        paper: role -> the paper's norm, where it gives one.
    """
    rows = []
    for role, label in labels.items():
        start = _mean([float(run.steps["param_norm"].iloc[0]) for run in runs[role]])
        end = np.array([final_norm(run) for run in runs[role]])
        expected = _mean([noise_alone(run) for run in runs[role]])
        rows.append(
            {
                "training": label,
                "paper": paper.get(role, float("nan")),
                "paper_by_start": paper.get(role, float("nan")) / PAPER_START_NORM,
                "parameters": runs[role][0].info["model"]["num_parameters"],
                "start_norm": start,
                "norm": _mean(end),
                "norm_low": float(end.min()),
                "norm_high": float(end.max()),
                "norm_by_start": _mean(end) / start,
                "noise_alone": expected,
            }
        )
    return pd.DataFrame(rows)


def noise_alone(run: sgdwalk.Run) -> float:
    """The norm that weight decay and the noise, without any gradient, would give before the last update."""
    config = run.info["config"]
    noise = config.get("isotropic_noise")
    if noise is None:
        return float("nan")
    return sgdwalk.norm_under_noise(
        float(run.steps["param_norm"].iloc[0]),
        sigma=noise["sigma"],
        num_parameters=run.info["model"]["num_parameters"],
        learning_rate=config["experiment"]["learning_rate"],
        num_updates=len(run.steps) - 1,
        weight_decay=config["experiment"]["weight_decay"],
    )


def arithmetic() -> pd.DataFrame:
    """The paper's norms and what they would take, by reading: pure calculation, for the published network."""
    rows = []
    for role, (reading, factor) in NOISE_ROLES.items():
        variance = PAPER_VARIANCES[factor]
        sigma = variance**0.5 if reading == "variance" else variance
        setting = {"sigma": sigma, "num_parameters": PAPER_PARAMETERS, "learning_rate": PAPER_RATE}
        start, norm = PAPER_START_NORM, PAPER_NORMS[role]
        decay = AUTHORS_WEIGHT_DECAY
        needed = sgdwalk.updates_to_norm(norm, start_norm=start, **setting)
        needed_with_decay = sgdwalk.updates_to_norm(norm, start_norm=start, weight_decay=decay, **setting)
        after = sgdwalk.norm_under_noise(start, num_updates=PAPER_UPDATES, weight_decay=decay, **setting)
        rows.append(
            {
                "reading": READINGS[reading],
                "factor": factor,
                "sigma": sigma,
                "paper_norm": norm,
                "updates_needed": needed,
                "updates_needed_with_decay": needed_with_decay,
                f"norm_after_{PAPER_UPDATES}": after,
            }
        )
    return pd.DataFrame(rows)


def strengths(runs: Runs) -> pd.DataFrame:
    """The largest gradient variance at the initial weights, one row a seed, by both settings, and what follows."""
    rows = []
    first, *_ = NOISE_ROLES
    for run in runs[first]:
        noise = run.info["config"]["isotropic_noise"]
        for setting in ("authors", "less_biased"):
            if setting not in noise:
                continue
            found = noise[setting]
            rows.append(
                {
                    "seed": run.info["config"]["seed"],
                    "setting": setting.replace("_", " "),
                    **{name: found[name] for name in ("batch_size", "num_batches", "divisor", "value", "bias")},
                    **{f"sigma2_at_{factor}": factor * found["value"] for factor in FACTORS},
                }
            )
    return pd.DataFrame(rows)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean; not a number where one of them is none."""
    return float(np.mean(values))
