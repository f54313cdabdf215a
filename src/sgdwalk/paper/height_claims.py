"""Statements about the height above the valley floor (Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

import sgdwalk
from sgdwalk.paper.judging import Claim, Judgement, Verdict, Walks, student
from sgdwalk.paper.trainings import OTHERS_WATCH_EVERY


def falling_height(role: str, epochs: Sequence[int], source: str) -> Claim:
    """SGD bounces lower and lower."""

    def judge(walks: Walks) -> Judgement:
        return _ordered(
            [
                (f"epoch {early} / epoch {late}", _height_ratios(walks[role], early, walks[role], late))
                for early, late in pairwise(epochs)
            ],
            wanted=len(epochs) - 1,
        )

    return Claim(
        "height falls over training",
        "We observe from table 2 that the optimization oscillates at a lower height as training progresses",
        source,
        f"Ratio of the mean heights of epochs {', '.join(map(str, epochs))}, each by the next, over the seeds, each at "
        f"every {OTHERS_WATCH_EVERY}th update "
        "(Student's interval of the logarithm): supported where all intervals lie above 1, contradicted where one lies "
        "below.",
        judge,
    )


def lower_at_small_rate(low: str, high: str, epochs: Sequence[int], source: str) -> Claim:
    """A smaller learning rate bounces lower."""
    wanted = max(1, len(epochs) - 1)

    def judge(walks: Walks) -> Judgement:
        return _ordered(
            [(f"epoch {epoch}", _height_ratios(walks[high], epoch, walks[low], epoch)) for epoch in epochs],
            wanted=wanted,
        )

    return Claim(
        "smaller learning rate, smaller height",
        "for almost all epochs, a smaller learning rate leads to a smaller height from the valley floor",
        source,
        "Ratio of the mean height at the larger learning rate to that at the smaller one, epoch by epoch, over the "
        f"seeds (Student's interval of the logarithm): supported where at least {wanted} of {len(epochs)} intervals "
        f"lie above 1, contradicted where more than {len(epochs) - wanted} lie below.",
        judge,
    )


def _ordered(ratios: Sequence[tuple[str, np.ndarray]], *, wanted: int) -> Judgement:
    above = below = 0
    said = []
    for name, values in ratios:
        logs = np.log(values[np.isfinite(values) & (values > 0)])
        if len(logs) < 2:
            said.append(f"{name}: {len(logs)} seed(s), no interval")
            continue
        mean, half = student(logs)
        above += mean - half > 0
        below += mean + half < 0
        low, high = np.exp([mean - half, mean + half])
        said.append(f"{name}: {np.exp(mean):.3g} ({low:.3g} to {high:.3g}, {len(logs)} seeds)")
    exceptions = len(ratios) - wanted
    verdict: Verdict = "contradicted" if below > exceptions else "supported" if above >= wanted else "not resolved"
    return Judgement(verdict, f"Ratios of mean heights: {'; '.join(said)}.")


def _height_ratios(
    above: Sequence[sgdwalk.Run], epoch_above: int, below: Sequence[sgdwalk.Run], epoch_below: int
) -> np.ndarray:
    """Mean height of an epoch by that of another, one pair a seed; only where both were watched."""
    pairs = zip(above, below, strict=False)
    return np.array([mean_height(one, epoch_above) / mean_height(other, epoch_below) for one, other in pairs])


def mean_height(run: sgdwalk.Run, epoch: int, every: int = OTHERS_WATCH_EVERY) -> float:
    """Mean height over an epoch (paper, Table 2), nats per example; NaN where none is known.

    Over every fifth update, which is watched in the trainings of all seeds: their means can then be compared.
    """
    steps = run.steps
    return float(steps.loc[(steps["epoch"] == epoch) & (steps.index % every == 0), "height"].mean())
