"""Statements about barriers between consecutive iterates (Table 1, Figures 8 and 21)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy import stats

from sgdwalk.paper.judging import FEWEST_UPDATES, Claim, Judgement, Verdict, Walks, proportion_interval
from sgdwalk.paper.selections import FIRST_UPDATES, HALF, MOSTLY, first_steps, too_few

RARE = 0.1
""""For most parts" no barrier: less than a tenth of the updates cross one."""
SMALL_AGAINST_LOSS = 0.1
""""Substantially smaller compared with the loss": at most a tenth of it. From a half on: not substantially smaller."""
FEWEST_BARRIERS = 5
"""Updates with a barrier without which nothing is said of their heights."""


def few_barriers(role: str, epoch: int, source: str, *, first: int | None = None, words: str = "") -> Claim:
    """SGD hardly ever crosses a barrier."""
    which = f"of epoch {epoch}'s updates" if first is None else f"of the first {first} updates of epoch {epoch}"

    def judge(walks: Walks) -> Judgement:
        barrier = first_steps(walks[role][0], epoch, first)["barrier"].dropna().astype(bool)
        if len(barrier) < FEWEST_UPDATES:
            return too_few()
        crossed = int(barrier.sum())
        low, high = proportion_interval(crossed, len(barrier))
        verdict: Verdict = "supported" if high < RARE else "contradicted" if low > RARE else "not resolved"
        return Judgement(
            verdict,
            f"{crossed} of {len(barrier)} updates of one training cross a barrier; 95 % interval of the share "
            f"{low:.1%} to {high:.1%}, if these updates stand for the others.",
        )

    return Claim(
        f"few barriers in epoch {epoch}",
        words or "no barriers are crossed for most parts of the training",
        source,
        f"Share {which} that cross a barrier: supported where its 95 % Clopper-Pearson interval lies below "
        f"{RARE:.0%} (of 40 updates none may then cross one, of 450 up to 32), contradicted where it lies above.",
        judge,
    )


def no_barrier(role: str, epoch: int, words: str, source: str) -> Claim:
    """Not one barrier is crossed."""

    def judge(walks: Walks) -> Judgement:
        counts = [_barriers(first_steps(run, epoch)) for run in walks[role]]
        watched, crossed, significant = (sum(each) for each in zip(*counts, strict=True))
        if watched < FEWEST_UPDATES:
            return too_few()
        verdict: Verdict = "contradicted" if significant else "not resolved" if crossed else "supported"
        return Judgement(
            verdict,
            f"{crossed} of {watched} watched updates of {len(counts)} training(s) cross a barrier, {significant} of "
            "these above twice the loss noise.",
        )

    return Claim(
        "no barrier at all",
        words,
        source,
        f"Barriers among the first {FIRST_UPDATES} updates: supported where there is none, contradicted where one is "
        "above twice the loss noise.",
        judge,
    )


def more_barriers_late(role: str, early: int, late: int, words: str, source: str) -> Claim:
    """Barriers come late in training."""

    def judge(walks: Walks) -> Judgement:
        (run, *_) = walks[role]
        before, after = (_barriers(first_steps(run, epoch, None))[:2] for epoch in (early, late))
        if min(before[0], after[0]) < FEWEST_UPDATES:
            return too_few()
        table = [[after[1], after[0] - after[1]], [before[1], before[0] - before[1]]]
        more, fewer = (_fisher(table, side) for side in ("greater", "less"))
        verdict: Verdict = "supported" if more < 0.05 else "contradicted" if fewer < 0.05 else "not resolved"
        return Judgement(
            verdict,
            f"{after[1]} of {after[0]} updates of epoch {late} cross a barrier, {before[1]} of {before[0]} of epoch "
            f"{early} (one training; Fisher's exact test, p = {more:.2g}, if updates were independent).",
        )

    return Claim(
        "more barriers late in training",
        words,
        source,
        f"Barriers among the updates of epoch {late} against epoch {early}: supported where there are more at a "
        "one-sided p below 0.05 (Fisher's exact test), contradicted where there are fewer.",
        judge,
    )


def low_barriers(role: str, source: str, epochs: Sequence[int] | None = None) -> Claim:
    """Heights at barriers are small against the loss."""
    which = "all watched updates" if epochs is None else f"the watched updates of epochs {', '.join(map(str, epochs))}"

    def judge(walks: Walks) -> Judgement:
        steps = pd.concat([run.steps for run in walks[role]])
        if epochs is not None:
            steps = steps[steps["epoch"].isin(list(epochs))]
        crossed = steps[steps["barrier"].fillna(False).astype(bool)]
        if len(crossed) < FEWEST_BARRIERS:
            return Judgement(
                "not testable at this scale",
                f"{len(crossed)} of the watched updates of {len(walks[role])} training(s) cross a barrier.",
            )
        ratio = crossed["height"] / crossed["loss"]
        median = float(ratio.median())
        verdict: Verdict = (
            "supported" if median <= SMALL_AGAINST_LOSS else "contradicted" if median >= HALF else "not resolved"
        )
        return Judgement(
            verdict,
            f"At {len(crossed)} updates with a barrier, of {len(walks[role])} training(s), the median of height / loss "
            f"is {median:.3g}, the highest {float(ratio.max()):.3g}.",
        )

    return Claim(
        "low barriers",
        "even for the barriers that are crossed towards the end, we find that their heights are substantially smaller "
        "compared with the loss value at the corresponding point during training",
        source,
        f"Median of height / loss over those of {which} that cross a barrier, {FEWEST_BARRIERS} at least: supported up "
        f"to {SMALL_AGAINST_LOSS}, contradicted from {HALF}.",
        judge,
    )


def most_epochs_without(role: str, epochs: Sequence[int], source: str) -> Claim:
    """Most epochs have no barrier at all."""

    def judge(walks: Walks) -> Judgement:
        (run, *_) = walks[role]
        counts = [_barriers(first_steps(run, epoch, None))[:2] for epoch in epochs]
        known = [crossed for watched, crossed in counts if watched >= FEWEST_UPDATES]
        if len(known) < len(epochs):
            return too_few()
        without = sum(crossed == 0 for crossed in known) / len(known)
        verdict: Verdict = "supported" if without >= MOSTLY else "contradicted" if without <= HALF else "not resolved"
        return Judgement(
            verdict,
            f"{sum(crossed == 0 for crossed in known)} of {len(known)} watched epochs of one training are without a "
            f"barrier; the others have {', '.join(str(crossed) for crossed in known if crossed) or 'none'}.",
        )

    return Claim(
        "most epochs without a barrier",
        "no barriers are crossed for most of the epochs",
        source,
        f"Share of epochs {', '.join(map(str, epochs))} in which no watched update crosses a barrier: supported from "
        f"{MOSTLY:.0%}, contradicted up to {HALF:.0%}.",
        judge,
    )


def _barriers(steps: pd.DataFrame) -> tuple[int, int, int]:
    """Updates with a known answer, those that cross a barrier, those whose barrier is significant."""
    barrier = steps["barrier"].dropna().astype(bool)
    significant = steps["barrier_significant"].fillna(False).astype(bool)
    return len(barrier), int(barrier.sum()), int(significant.sum())


def _fisher(table: list[list[int]], alternative: str) -> float:
    """p of Fisher's exact test: P(at least as many successes in the first row), hypergeometric."""
    (success, failure), (other_success, other_failure) = table
    law = stats.hypergeom(success + failure + other_success + other_failure, success + other_success, success + failure)
    return float(law.sf(success - 1) if alternative == "greater" else law.cdf(success))
