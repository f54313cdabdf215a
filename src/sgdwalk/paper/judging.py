"""How a statement of the paper is judged: a statistic for each training, thresholds set beforehand, a verdict.

A verdict speaks of the trainings it was computed from, and says how many those are. Updates of one training depend on
each other, so wherever several seeds are there the training, not the update, is the unit that is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

import sgdwalk

Verdict = Literal["supported", "contradicted", "not resolved", "not testable at this scale"]

FEWEST_UPDATES = 10
"""With fewer defined values a share of one training's updates says too little."""
CONFIDENCE = 0.95

Walks = Mapping[str, Sequence[sgdwalk.Run]]
"""Runs by role (``gd``, ``gd-sum``, ``sgd``, …), one a seed, in the same order of seeds; every watched update of the
first is there, the others may be watched now and then."""


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
    paper_scale_only: bool = False
    """The statement is about a number that only the published setting can give."""


@dataclass(frozen=True)
class Tally:
    """How many updates of one training show something."""

    shown: int
    defined: int
    """Updates at which the answer is known."""
    asked: int
    """Updates at which it was asked: fewer are defined where a value is not finite, say."""


def tally(answers: pd.Series, asked: int) -> Tally:
    """Count the updates of one training.

    Args:
        answers: True or False at each update where the answer is known.
        asked: updates at which it was asked.
    """
    return Tally(int(answers.sum()), len(answers), asked)


def share(tallies: Sequence[Tally], what: str, *, at_least: float, at_most: float) -> Judgement:
    """Judge the share of updates that show something, one share a training.

    Supported where every training reaches ``at_least``, contradicted where none exceeds ``at_most``. A training that
    was not asked at enough updates says nothing; one that was asked but has too few answers, having diverged say,
    leaves the statement open.

    Args:
        tallies: one a training.
        what: what is shared, in the plural.
        at_least: from here on a share supports.
        at_most: up to here it contradicts.
    """
    told = [each for each in tallies if each.asked >= FEWEST_UPDATES]
    if not told:
        return Judgement("not testable at this scale", f"No training was asked at {FEWEST_UPDATES} updates.")
    known = [each for each in told if each.defined >= FEWEST_UPDATES]
    values = [each.shown / each.defined for each in known]
    verdict: Verdict = "not resolved"
    if known == told and min(values) >= at_least:
        verdict = "supported"
    elif known == told and max(values) <= at_most:
        verdict = "contradicted"
    counts = ", ".join(
        f"{each.shown} of {each.defined}" + (f" ({each.asked - each.defined} undefined)" * (each.defined < each.asked))
        for each in told
    )
    trainings = "one training" if len(told) == 1 else f"{len(told)} trainings"
    return Judgement(verdict, f"In {trainings} {counts} {what}.")


def paired(ours: Sequence[float], theirs: Sequence[float], name: str, other: str) -> Judgement:
    """Judge that one number is above another, one pair a seed, by Student's interval of their difference."""
    differences = np.array(ours, dtype=float) - np.array(theirs, dtype=float)
    known = np.isfinite(differences)
    n = int(known.sum())
    if n == 0:
        return Judgement("not testable at this scale", "No pair of trainings has both values defined.")
    means = f"{name} {np.mean(np.array(ours)[known]):.3g}, {other} {np.mean(np.array(theirs)[known]):.3g}"
    undefined = f" {len(known) - n} pair(s) undefined." if n < len(known) else ""
    if n == 1:
        return Judgement("not resolved", f"{means}: one seed, and a difference without an interval.{undefined}")
    mean, half = student(differences[known])
    said = f"{means}; difference {mean:.3g} ± {half:.2g} (95 %, {n} seeds).{undefined}"
    return Judgement(side(differences, 0.0), said)


def above(
    values: Sequence[float],
    threshold: float,
    name: str,
    more: str = "",
    *,
    shown: Callable[[float], float] = float,
    wanted: Literal["above", "below"] = "above",
) -> Judgement:
    """Judge that a number, one a training, lies above a threshold, by Student's interval of its mean.

    Args:
        values: one a training; those that are not finite are counted, and leave the statement open.
        threshold: on the scale of the values.
        name: of the number.
        more: what else is to be said.
        shown: a value as it is told, such as ``math.exp`` of a logarithm.
        wanted: the side of the threshold that supports the statement.
    """
    known = [value for value in values if math.isfinite(value)]
    undefined = (
        f" Undefined in {len(values) - len(known)} of {len(values)} trainings." if len(known) < len(values) else ""
    )
    if not known:
        return Judgement("not testable at this scale", f"No training has the {name} defined.{more}")
    if len(known) == 1:
        said = f"{name} {shown(known[0]):.3g}: one seed, and no interval.{undefined}{more}"
        return Judgement("not resolved", said[0].upper() + said[1:])
    mean, half = student(known)
    interval = f"{shown(mean - half):.3g} to {shown(mean + half):.3g}"
    said = f"{name} {shown(mean):.3g} ({interval}, 95 %, {len(known)} seeds).{undefined}{more}"
    return Judgement(side(values, threshold, wanted=wanted), said[0].upper() + said[1:])


def side(
    values: Sequence[float] | np.ndarray,
    threshold: float,
    *,
    wanted: Literal["above", "below"] = "above",
    confidence: float = CONFIDENCE,
) -> Verdict:
    """On which side of a threshold the mean of a number lies, one value a training, by Student's interval.

    A training whose value is not finite, having diverged say, leaves the statement open: it must not help by vanishing.
    """
    values = np.asarray(values, dtype=float)
    known = np.isfinite(values)
    if not known.any():
        return "not testable at this scale"
    if known.sum() == 1 or not known.all():
        return "not resolved"
    mean, half = student(values, confidence)
    if wanted == "below":
        mean, threshold = -mean, -threshold
    return "supported" if mean - half > threshold else "contradicted" if mean + half < threshold else "not resolved"


def student(values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Mean and half-width of Student's two-sided interval; at 0.9 it is what one-sided tests at 5 % compare.

    >>> mean, half = student([1.0, 1.5, 1.4])
    >>> round(mean, 3), round(half, 3)  # 4.303 s / √3
    (1.3, 0.657)
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    quantile = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    return float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(n)


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a proportion.

    >>> low, high = proportion_interval(0, 40)
    >>> low, round(high, 4)  # 1 - 0.025 ** (1 / 40)
    (0.0, 0.0881)
    """
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def clustered_proportion_interval(successes: Sequence[int], trials: Sequence[int]) -> tuple[float, float]:
    """95 % interval of a proportion over trials of which those of one cluster, a training say, may be alike.

    The effective number of trials is that of independent ones whose proportion would vary as much as it does between
    clusters, never more than there are, by the squared ratio of Student's quantiles less for the few clusters.

    Args:
        successes: of each cluster.
        trials: of each cluster, one at least in all.

    >>> low, high = clustered_proportion_interval([10, 0, 0, 0], [10, 10, 10, 10])  # all in one cluster of four
    >>> round(low, 2), round(high, 2)
    (0.0, 0.99)

    Source: Korn and Graubard, "Confidence Intervals For Proportions With Small Expected Number of Positive Counts
    Estimated From Survey Data", Survey Methodology 24 (1998).
    """
    hits, sizes = np.asarray(successes, float), np.asarray(trials, float)
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    total, clusters = float(sizes.sum()), len(sizes)
    share = float(hits.sum()) / total
    effective = total
    if clusters > 1:
        variance = clusters / (clusters - 1) * float(((hits - share * sizes) ** 2).sum()) / total**2
        fewer = (stats.t.ppf(1 - (1 - CONFIDENCE) / 2, [total - 1, clusters - 1])) ** 2
        effective = min(total, share * (1 - share) / variance if variance else total) * float(fewer[0] / fewer[1])
    tail, positive = (1 - CONFIDENCE) / 2, share * effective
    negative = effective - positive
    low = float(stats.beta.ppf(tail, positive, negative + 1)) if positive else 0.0
    high = float(stats.beta.ppf(1 - tail, positive + 1, negative)) if negative else 1.0
    return low, high
