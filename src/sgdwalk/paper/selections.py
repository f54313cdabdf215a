"""What claims share: which updates of a walk they look at, and the words that stand for shares of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

import sgdwalk
from sgdwalk.paper.judging import FEWEST_UPDATES, Judgement

FIRST_UPDATES = 40
"""The paper's figures show the first 40 updates of an epoch."""
MOST = 0.9
"""A share that passes for "every" and "almost": nine updates of ten."""
HALF = 0.5
"""A share at or below which "every", "almost" and "most" are contradicted."""
MOSTLY = 0.75
"""A share that passes for "most of the training"."""


def first_steps(run: sgdwalk.Run, epoch: int | None = None, number: int | None = FIRST_UPDATES) -> pd.DataFrame:
    """The first steps of an epoch, or of the run; all of them with ``number=None``."""
    steps = run.steps if epoch is None else run.steps[run.steps["epoch"] == epoch]
    return steps if number is None else steps.iloc[:number]


def is_watched(run: sgdwalk.Run, steps: pd.DataFrame) -> np.ndarray:
    return np.asarray(steps.index.isin(run.segments["step"].unique()))


def num_watched(run: sgdwalk.Run, steps: pd.DataFrame) -> int:
    return int(is_watched(run, steps).sum())


def span(values: np.ndarray) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.min():.3f} to {values.max():.3f}, on average {values.mean():.3f}"


def too_few() -> Judgement:
    return Judgement(
        "not testable at this scale", f"Fewer than {FEWEST_UPDATES} updates of a training have the value defined."
    )
