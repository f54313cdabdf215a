"""The paper's statements about Figures 17 to 19 as tests: words, statistic, threshold set beforehand, verdict.

A verdict speaks of the trainings it was computed from, and says how many those are. A statement about the shape of one
walk is judged on that walk's updates; one that ranks two algorithms needs several seeds of each, and is *not resolved*
on a single pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

import sgdwalk

Verdict = Literal["supported", "contradicted", "not resolved", "not testable at this scale"]

FIRST_UPDATES = 40
"""The paper's figures show the first 40 updates of an epoch."""
BOUNCING_FROM = 15
"""Section 3.1: "after iteration 15"."""
CLOSE_FROM = 20
"""Figure 1: "close to -1 after around 20 iterations"."""
MOST = 0.9
"""A share that passes for "every" and "almost": nine updates of ten."""
HALF = 0.5
"""A share at or below which "every" and "almost" are contradicted."""
MANY = 0.25
""""Many ups and downs": at least a quarter of the floor's moves go up. At most 1 - MOST of them: almost monotone."""
CLOSE_TO_MINUS_ONE = -0.9
NOT_CLOSE_TO_MINUS_ONE = -0.5
RARE = 0.1
""""For most parts" no barrier: less than a tenth of the updates cross one."""
FEWEST_UPDATES = 20
"""With fewer defined values a share says too little."""

STUDENT_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 97.5 % quantile of Student's t by degrees of freedom (any table)."""

Walks = Mapping[str, Sequence[sgdwalk.Run]]
"""Runs by role (``gd``, ``gd-sum``, ``sgd``), one a seed, in the same order of seeds; the first of each is watched."""


@dataclass(frozen=True)
class Judgement:
    """What our trainings say to a claim."""

    verdict: Verdict
    finding: str
    """The statistic and what it was computed from, in words."""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and the test that it is put to."""

    name: str
    words: str
    """The paper's words."""
    source: str
    """Where they stand."""
    test: str
    """The statistic and its thresholds, in words."""
    judge: Callable[[Walks], Judgement]


def valley(role: str) -> Claim:
    """Between consecutive iterates of GD the loss has a minimum."""

    def judge(walks: Walks) -> Judgement:
        floor_alpha = _first(walks[role][0], epoch=None)["floor_alpha"].loc[BOUNCING_FROM:]
        interior = ((floor_alpha > 0) & (floor_alpha < 1))[floor_alpha.notna()]
        return _share(interior, "updates have their floor strictly between the iterates", at_least=MOST, at_most=HALF)

    return Claim(
        "valley",
        "the interpolated loss between every consecutive parameters from GD optimization update after iteration 15 "
        "appears to be a quadratic-like structure with a minimum in between",
        "Section 3.1 (Figure 1); Figure 17 for the MLP",
        f"Share of updates {BOUNCING_FROM} to {FIRST_UPDATES - 1} whose floor is strictly between the iterates: "
        f"supported from {MOST:.0%}, contradicted up to {HALF:.0%}.",
        judge,
    )


def negative_cosine(role: str) -> Claim:
    """Consecutive gradients of GD point against each other."""

    def judge(walks: Walks) -> Judgement:
        cosine = _first(walks[role][0], epoch=None)["cosine"].loc[BOUNCING_FROM:].dropna()
        return _share(cosine < 0, "cosines are negative", at_least=MOST, at_most=HALF)

    return Claim(
        "negative cosine",
        "The occurrence of valley-like structures between consecutive iterations along with negative cosine for two "
        "consecutive gradients are evident for all these architectures",
        "Section 3.1, of Figures 9, 17 and 20",
        f"Share of updates {BOUNCING_FROM} to {FIRST_UPDATES - 1} with a negative cosine: supported from {MOST:.0%}, "
        f"contradicted up to {HALF:.0%}.",
        judge,
    )


def opposite_gradients(role: str) -> Claim:
    """Consecutive gradients of GD are almost opposite."""

    def judge(walks: Walks) -> Judgement:
        cosine = _first(walks[role][0], epoch=None)["cosine"].loc[CLOSE_FROM:].dropna()
        if len(cosine) < FEWEST_UPDATES:
            return _too_few(len(cosine))
        median = float(cosine.median())
        verdict = _between(-median, low=-NOT_CLOSE_TO_MINUS_ONE, high=-CLOSE_TO_MINUS_ONE)
        return Judgement(verdict, f"The median of {len(cosine)} cosines of one training is {median:.3f}.")

    return Claim(
        "cosine close to -1",
        "close to -1 after around 20 iterations meaning the consecutive gradients are almost along opposite directions",
        'Figure 1; Appendix A: "The observations […] are all consistent for all these experiments"',
        f"Median cosine of updates {CLOSE_FROM} to {FIRST_UPDATES - 1}: supported up to {CLOSE_TO_MINUS_ONE}, "
        f"contradicted from {NOT_CLOSE_TO_MINUS_ONE}.",
        judge,
    )


def falling_floor(role: str) -> Claim:
    """The valley floor under GD falls almost monotonically."""

    def judge(walks: Walks) -> Judgement:
        return _share(_floor_moves(walks[role][0], epoch=None) < 0, "moves of the floor go down", MOST, HALF)

    return Claim(
        "falling floor",
        "for GD, the floor is reducing almost monotonously",
        "Section 3.1 (Figure 1); Figure 17 for the MLP",
        f"Share of the floor's moves from one of the first {FIRST_UPDATES} updates to the next that go down: supported "
        f"from {MOST:.0%}, contradicted up to {HALF:.0%}.",
        judge,
    )


def rough_floor(epoch: int) -> Claim:
    """The valley floor under SGD goes up and down."""

    def judge(walks: Walks) -> Judgement:
        moves = _floor_moves(walks["sgd"][0], epoch)
        return _share(moves > 0, "moves of the floor go up", at_least=MANY, at_most=1 - MOST)

    return Claim(
        "rough floor",
        "the height of valley floor has many ups and downs for consecutive iterations in contrast with that of GD",
        f"Section 3.1 (Figure 2); Figure {17 + epoch} for the MLP",
        f"Share of the floor's moves from one of epoch {epoch}'s first {FIRST_UPDATES} updates to the next that go up: "
        f"supported from {MANY:.0%}, contradicted up to {1 - MOST:.0%}.",
        judge,
    )


def less_negative_cosine(epoch: int, role: str) -> Claim:
    """Consecutive gradients of SGD point less against each other than those of GD."""

    def judge(walks: Walks) -> Judgement:
        sgd = [_first(run, epoch)["cosine"].iloc[BOUNCING_FROM:].mean() for run in walks["sgd"]]
        gd = [_first(run, epoch=None)["cosine"].iloc[BOUNCING_FROM:].mean() for run in walks[role]]
        return _paired(sgd, gd, "mean cosine of SGD", "of GD")

    return Claim(
        "cosine less negative than under GD",
        "the cosine of the angle between gradients from consecutive iterations are significantly less negative",
        f"Section 3.1 (Figure 2); Figures {17 + epoch} and 17 for the MLP",
        f"Mean cosine of updates {BOUNCING_FROM} to {FIRST_UPDATES - 1} of SGD's epoch {epoch} less that of GD, one "
        "pair a seed: supported where the 95 % interval lies above 0, contradicted where it lies below.",
        judge,
    )


def farther_than_gd(role: str) -> Claim:
    """SGD travels farther than GD."""

    def judge(walks: Walks) -> Judgement:
        sgd, gd = (
            [_first(run, epoch=None)["next_distance"].iloc[FIRST_UPDATES - 1] for run in walks[each]]
            for each in ("sgd", role)
        )
        return _paired(sgd, gd, "distance of SGD from its start", "of GD")

    return Claim(
        "SGD travels farther",
        "For all architectures, SGD travels farther than full batch gradient descent",
        "Section 3.1, of Figures 10, 18 and 21",
        f"‖θ_{FIRST_UPDATES} - θ_0‖ of SGD less that of GD, one pair a seed: supported where the 95 % interval lies "
        "above 0, contradicted where it lies below.",
        judge,
    )


def few_barriers(epoch: int) -> Claim:
    """SGD hardly ever crosses a barrier."""

    def judge(walks: Walks) -> Judgement:
        barrier = _first(walks["sgd"][0], epoch)["barrier"].dropna().astype(bool)
        if len(barrier) < FEWEST_UPDATES:
            return _too_few(len(barrier))
        crossed = int(barrier.sum())
        low, high = proportion_interval(crossed, len(barrier))
        verdict: Verdict = "supported" if high < RARE else "contradicted" if low > RARE else "not resolved"
        return Judgement(
            verdict,
            f"{crossed} of {len(barrier)} updates of one training cross a barrier; 95 % interval of the share "
            f"{low:.1%} to {high:.1%}, if these updates stand for the others.",
        )

    return Claim(
        "few barriers",
        "no barriers are crossed for most parts of the training",
        "Section 3.1, Table 1 (MLP: 0 of epoch 1's 450 updates)",
        f"Share of the first {FIRST_UPDATES} updates of epoch {epoch} that cross a barrier: supported where its 95 % "
        f"Clopper-Pearson interval lies below {RARE:.0%}, contradicted where it lies above.",
        judge,
    )


def proportion_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a proportion.

    The bounds solve P(X ≥ k; low) = P(X ≤ k; high) = (1 - confidence) / 2 for X ~ Binomial(n, p).

    >>> low, high = proportion_interval(0, 40)
    >>> low, round(high, 4)  # 1 - 0.025 ** (1 / 40)
    (0.0, 0.0881)
    """
    tail = (1 - confidence) / 2

    def at_most(k: int, p: float) -> float:
        return math.fsum(math.comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(k + 1))

    def solve(falls_below: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if falls_below(middle) else (middle, high)
        return (low + high) / 2

    low = 0.0 if successes == 0 else solve(lambda p: 1 - at_most(successes - 1, p) > tail)
    high = 1.0 if successes == trials else solve(lambda p: at_most(successes, p) < tail)
    return low, high


def _first(run: sgdwalk.Run, epoch: int | None) -> pd.DataFrame:
    """The first 40 steps of an epoch, or of the run."""
    steps = run.steps if epoch is None else run.steps[run.steps["epoch"] == epoch]
    return steps.iloc[:FIRST_UPDATES]


def _floor_moves(run: sgdwalk.Run, epoch: int | None) -> pd.Series:
    return _first(run, epoch)["floor"].diff().dropna()


def _share(shown: pd.Series, what: str, at_least: float, at_most: float) -> Judgement:
    if len(shown) < FEWEST_UPDATES:
        return _too_few(len(shown))
    share = float(shown.mean())
    return Judgement(
        _between(share, low=at_most, high=at_least),
        f"{int(shown.sum())} of {len(shown)} {what} ({share:.0%}), in one training.",
    )


def _between(value: float, low: float, high: float) -> Verdict:
    if value >= high:
        return "supported"
    return "contradicted" if value <= low else "not resolved"


def _paired(ours: Sequence[float], theirs: Sequence[float], name: str, other: str) -> Judgement:
    differences = np.array(ours) - np.array(theirs)
    differences = differences[np.isfinite(differences)]
    n = len(differences)
    if n == 0:
        return Judgement("not resolved", "No pair of trainings has both values defined.")
    means = f"{name} {np.mean(ours):.3f}, {other} {np.mean(theirs):.3f}"
    if n == 1:
        return Judgement("not resolved", f"{means}: one seed, and a difference without an interval.")
    half = STUDENT_T_975[n - 1] * float(differences.std(ddof=1)) / math.sqrt(n)
    mean = float(differences.mean())
    verdict: Verdict = "supported" if mean - half > 0 else "contradicted" if mean + half < 0 else "not resolved"
    return Judgement(verdict, f"{means}; difference {mean:.3f} ± {half:.3f} (95 %, {n} seeds).")


def _too_few(number: int) -> Judgement:
    return Judgement(
        "not testable at this scale", f"{number} updates have the value defined; at least {FEWEST_UPDATES} are wanted."
    )
