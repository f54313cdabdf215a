"""Tables 1 and 2: the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

import sgdwalk
from sgdwalk.paper import protocols
from sgdwalk.paper.height_claims import mean_height
from sgdwalk.paper.judging import proportion_interval, student
from sgdwalk.paper.selections import FIRST_UPDATES
from sgdwalk.paper.trainings import Architecture

UPDATES_IN_PAPERS_EPOCH = 450
NAMES: Mapping[str, str] = {"vgg11": "VGG-11", "resnet56": "ResNet", "mlp": "MLP"}
"""Networks as tables and charts call them; at a cut scale the ResNet has another depth."""
PAPER_BARRIERS: Mapping[str, Mapping[int, int]] = {
    "vgg11": {1: 0, 10: 0, 25: 5, 100: 13},
    "resnet56": {1: 0, 10: 0, 25: 2, 100: 23},
    "mlp": {1: 0, 10: 3, 25: 5},
}
"""Table 1: barriers crossed in an epoch of 450 updates."""
PAPER_HEIGHTS: Mapping[tuple[str, float], Mapping[int, float]] = {
    ("vgg11", 0.1): {1: 0.0625, 10: 0.0199, 25: 0.0104, 100: 0.0025},
    ("vgg11", 0.05): {1: 0.0102, 10: 0.0050, 25: 0.0035, 100: 0.0011},
    ("resnet56", 0.3): {1: 0.0380, 10: 0.0131, 25: 0.0094, 100: 0.0017},
}
"""Table 2: mean height over an epoch, nats per example."""
PAPER_DISTANCE = {"gd": 1.4, "sgd": 1.7}
"""Section 3.1: "~ 1.4" and "~ 1.7" after 40 iterations of VGG-11 on CIFAR-10."""


def barriers(
    runs: Mapping[str, Sequence[sgdwalk.Run]], epochs: Mapping[Architecture, Mapping[int, int]]
) -> pd.DataFrame:
    """Table 1: one row a network and epoch.

    Args:
        runs: by architecture, one a seed; the first is the one that was watched throughout.
        epochs: by architecture, the paper's epoch -> ours.
    """
    rows = []
    for network, each in epochs.items():
        for paper_epoch, epoch in each.items():
            steps = runs[network][0].steps
            steps = steps[(steps["epoch"] == epoch) & steps["barrier"].notna()]
            crossed, updates = int(steps["barrier"].sum()), len(steps)
            low, high = proportion_interval(crossed, updates) if updates else (float("nan"),) * 2
            authors = protocols.losses(runs[network][0], "authors", steps.index)
            authors_crossed = (
                int((sgdwalk.valley.barrier_height(authors.to_numpy(float)) > 0).sum()) if len(authors) else 0
            )
            sampled = [run.steps[run.steps["epoch"] == epoch]["barrier"].dropna() for run in runs[network][1:]]
            rows.append(
                {
                    "network": NAMES[network],
                    "epoch": epoch,
                    "paper_barriers": PAPER_BARRIERS[network][paper_epoch],
                    "paper_share": PAPER_BARRIERS[network][paper_epoch] / UPDATES_IN_PAPERS_EPOCH,
                    "barriers": crossed,
                    "significant": int(steps["barrier_significant"].fillna(False).astype(bool).sum()),
                    "updates": updates,
                    "share": crossed / updates if updates else float("nan"),
                    "low": low,
                    "high": high,
                    "other_seeds_barriers": int(sum(each.sum() for each in sampled)),
                    "other_seeds_updates": int(sum(len(each) for each in sampled)),
                    "authors_barriers": authors_crossed if len(authors) else None,
                    "authors_updates": len(authors),
                    "authors_share": authors_crossed / len(authors) if len(authors) else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def heights(
    runs: Mapping[str, Sequence[sgdwalk.Run]],
    roles: Mapping[str, tuple[Architecture, float]],
    epochs: Mapping[int, int],
) -> pd.DataFrame:
    """Table 2: one row a network, learning rate and epoch; mean over the seeds with Student's 95 % interval.

    Args:
        runs: by role, one a seed.
        roles: role -> network and learning rate.
        epochs: the paper's epoch -> ours.
    """
    rows = []
    for role, (network, learning_rate) in roles.items():
        for paper_epoch, epoch in epochs.items():
            values = np.array([mean_height(run, epoch) for run in runs[role]])
            values = values[np.isfinite(values)]
            mean, half = student(values) if len(values) > 1 else (float(values.mean()), float("nan"))
            rows.append(
                {
                    "network": NAMES[network],
                    "learning_rate": learning_rate,
                    "epoch": epoch,
                    "paper": PAPER_HEIGHTS[network, learning_rate][paper_epoch],
                    "mean": mean,
                    "low": mean - half,
                    "high": mean + half,
                    "seeds": len(values),
                    "throughout": mean_height(runs[role][0], epoch, every=1),
                }
            )
    return pd.DataFrame(rows)


def distances(runs: Mapping[str, Sequence[sgdwalk.Run]], roles: Mapping[str, str]) -> pd.DataFrame:
    """Distance from the start after 40 updates, one row a role: mean, lowest and highest over the seeds.

    Args:
        runs: by role, one a seed.
        roles: role -> what it is, in words.
    """
    rows = []
    for role, words in roles.items():
        found = np.array([float(run.steps["next_distance"].iloc[FIRST_UPDATES - 1]) for run in runs[role]])
        start = np.array([float(run.steps["param_norm"].iloc[0]) for run in runs[role]])
        rows.append(
            {
                "walk": words,
                "seeds": len(found),
                "distance": float(found.mean()),
                "lowest": float(found.min()),
                "highest": float(found.max()),
                "start_norm": float(start.mean()),
            }
        )
    return pd.DataFrame(rows)
