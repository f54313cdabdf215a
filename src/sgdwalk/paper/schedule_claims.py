"""Statements about learning rate schedules (section 5, Figures 6 and 27)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import sgdwalk
from sgdwalk.paper.judging import CONFIDENCE, Claim, Judgement, Walks, paired, side, student

MARGIN = 0.02
"""Accuracies that differ by less than two percentage points pass for similar."""


def final_accuracies(runs: Sequence[sgdwalk.Run]) -> list[float]:
    """Validation accuracy after the last epoch, one a training."""
    return [float(run.epochs["validation_accuracy"].iloc[-1]) for run in runs]


def cycles_are_redundant(one: str, cyclical: str, source: str) -> Claim:
    """One rise and fall does as well as several: not worse by a margin."""

    def judge(walks: Walks) -> Judgement:
        return not_worse(final_accuracies(walks[one]), final_accuracies(walks[cyclical]), "trapezoid", "cyclical")

    return Claim(
        "cycles are redundant",
        "multiple cycles of CLR are redundant, and simply increasing the learning rate until a certain point, and then "
        "annealing it leads to similar or better performance",
        source,
        "Validation accuracy after the last epoch, trapezoid less cyclical, one pair a seed: supported where a "
        f"one-sided {CONFIDENCE:.0%} bound (Student) lies above -{MARGIN:g}, contradicted where one lies below it.",
        judge,
    )


def not_worse(ours: Sequence[float], theirs: Sequence[float], name: str, other: str) -> Judgement:
    """Judge that one number is not below another by ``MARGIN`` or more, one pair a seed, by one-sided tests."""
    found = paired(ours, theirs, name, other)
    differences = np.array(ours, dtype=float) - np.array(theirs, dtype=float)
    verdict = side(differences, -MARGIN, confidence=2 * CONFIDENCE - 1)
    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return found
    mean, half = student(known, 2 * CONFIDENCE - 1)
    bounds = f"One-sided {CONFIDENCE:.0%} bounds of the difference: {mean - half:.3g} and {mean + half:.3g}."
    return Judgement(verdict, f"{found.finding} {bounds}")


def raising_is_better(raised: str, stepwise: str, name: str, source: str) -> Claim:
    """A schedule that raises the learning rate first ends better than one that only lowers it."""
    return _higher(
        raised,
        stepwise,
        name,
        "raising the rate is slightly better",
        "we find that methods which increase learning rate during training may be considered slightly better",
        source,
    )


def height_is_an_advantage(held: str, other: str, other_name: str, source: str) -> Claim:
    """The guideline that the paper draws and leaves to future work, put to a test of our own."""
    return _higher(
        held,
        other,
        "height held",
        f"maintaining a height is an advantage over {other_name}",
        "it should be advantageous for SGD to maintain a large height from the floor of the valley to facilitate "
        "further exploration",
        source,
        other_name,
    )


def _higher(
    better: str, worse: str, name: str, title: str, words: str, source: str, other_name: str = "stepwise"
) -> Claim:
    def judge(walks: Walks) -> Judgement:
        return paired(final_accuracies(walks[better]), final_accuracies(walks[worse]), name, other_name)

    return Claim(
        title,
        words,
        source,
        f"Validation accuracy after the last epoch, {name} less {other_name}, one pair a seed: supported where "
        "Student's 95 % interval lies above 0, contradicted where it lies below.",
        judge,
    )
