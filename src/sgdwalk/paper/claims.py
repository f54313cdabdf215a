"""The paper's statements about its walks as tests: words, statistic, thresholds set before the runs, verdict."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

import sgdwalk
from sgdwalk.paper.config import AUTHORS_GD_BATCHES
from sgdwalk.paper.judging import (
    FEWEST_UPDATES,
    Claim,
    Judgement,
    Tally,
    Verdict,
    Walks,
    paired,
    proportion_interval,
    share,
    student,
    tally,
)
from sgdwalk.paper.trainings import OTHERS_WATCH_EVERY

FIRST_UPDATES = 40
"""The paper's figures show the first 40 updates of an epoch."""
BOUNCING_FROM = 15
"""Section 3.1: "after iteration 15"."""
CLOSE_FROM = 20
"""Figure 1: "close to -1 after around 20 iterations"."""
MOST = 0.9
"""A share that passes for "every" and "almost": nine updates of ten."""
HALF = 0.5
"""A share at or below which "every", "almost" and "most" are contradicted."""
MOSTLY = 0.75
"""A share that passes for "most of the training"."""
MANY = 0.25
""""Many ups and downs": at least a quarter of the floor's moves go up. At most 1 - MOST of them: almost monotone."""
CLOSE_TO_MINUS_ONE = -0.9
NOT_CLOSE_TO_MINUS_ONE = -0.5
RARE = 0.1
""""For most parts" no barrier: less than a tenth of the updates cross one."""
QUADRATIC_R2 = 0.99
""""Quadratic-like": a parabola explains 99 % of the variance of the losses along a segment."""
SMALL_AGAINST_LOSS = 0.1
""""Substantially smaller compared with the loss": at most a tenth of it. From a half on: not substantially smaller."""
FEWEST_BARRIERS = 5
"""Updates with a barrier without which nothing is said of their heights."""
FEWEST_CURVATURES = 5
"""Measured spectral norms without which a share of them says too little."""
NEAR, FAR = 0.1, 0.2
"""A distance that is read from a figure ("~ 1.4") is met within 0.1, and missed from 0.2 on."""


def valley(role: str, shown: str) -> Claim:
    """Between consecutive iterates of GD the loss has a minimum."""

    def judge(walks: Walks) -> Judgement:
        tallies = [_interior_floors(run, _from(run, BOUNCING_FROM)) for run in walks[role]]
        return share(tallies, "updates have their floor strictly between the iterates", at_least=MOST, at_most=HALF)

    return Claim(
        "valley",
        "the interpolated loss between every consecutive parameters from GD optimization update after iteration 15 "
        "appears to be a quadratic-like structure with a minimum in between",
        f"Section 3.1 (Figure 1); {shown}",
        f"Share of updates {BOUNCING_FROM} to {FIRST_UPDATES - 1} whose floor is strictly between the iterates, in "
        f"each training: supported from {MOST:.0%} in all, contradicted up to {HALF:.0%} in all.",
        judge,
    )


def quadratic(role: str, shown: str) -> Claim:
    """The loss along GD's segments is a parabola."""

    def judge(walks: Walks) -> Judgement:
        tallies = []
        for run in walks[role]:
            steps = _from(run, BOUNCING_FROM)
            known = steps[steps["alpha_star_r2"].notna()]
            fits = known["alpha_star"].notna() & (known["alpha_star_r2"] >= QUADRATIC_R2)
            tallies.append(tally(fits, _num_watched(run, steps)))
        what = f"updates go along a parabola with a minimum, R² ≥ {QUADRATIC_R2}"
        return share(tallies, what, at_least=MOST, at_most=HALF)

    return Claim(
        "quadratic-like",
        "the interpolated loss between every consecutive parameters from GD optimization update after iteration 15 "
        "appears to be a quadratic-like structure",
        f"Section 3.1 (Figure 1); {shown}",
        f"Share of updates {BOUNCING_FROM} to {FIRST_UPDATES - 1} along which a parabola that opens upwards explains "
        f"{QUADRATIC_R2:.0%} of the losses' variance: supported from {MOST:.0%} in all trainings, contradicted up to "
        f"{HALF:.0%} in all.",
        judge,
    )


def negative_cosine(role: str, shown: str, *, words: str = "") -> Claim:
    """Consecutive gradients of GD point against each other."""

    def judge(walks: Walks) -> Judgement:
        cosines = [_from(run, BOUNCING_FROM)["cosine"] for run in walks[role]]
        tallies = [tally(cosine.dropna() < 0, len(cosine)) for cosine in cosines]
        return share(tallies, "cosines are negative", at_least=MOST, at_most=HALF)

    return Claim(
        "negative cosine",
        words
        or "The occurrence of valley-like structures between consecutive iterations along with negative cosine for two "
        "consecutive gradients are evident for all these architectures",
        f"Section 3.1; {shown}",
        f"Share of updates {BOUNCING_FROM} to {FIRST_UPDATES - 1} with a negative cosine: supported from {MOST:.0%} in "
        f"all trainings, contradicted up to {HALF:.0%} in all.",
        judge,
    )


def opposite_gradients(role: str, shown: str) -> Claim:
    """Consecutive gradients of GD are almost opposite."""

    def judge(walks: Walks) -> Judgement:
        medians = [_median(_from(run, CLOSE_FROM)["cosine"]) for run in walks[role]]
        values = np.array([median for median in medians if np.isfinite(median)])
        if len(values) == 0:
            return _too_few()
        verdict: Verdict = "not resolved"
        if values.max() <= CLOSE_TO_MINUS_ONE:
            verdict = "supported"
        elif values.min() >= NOT_CLOSE_TO_MINUS_ONE:
            verdict = "contradicted"
        return Judgement(verdict, f"Median cosine of {len(values)} training(s): {_span(values)}.")

    return Claim(
        "cosine close to -1",
        "close to -1 after around 20 iterations meaning the consecutive gradients are almost along opposite directions",
        f'Figure 1; Appendix A: "The observations […] are all consistent for all these experiments"; {shown}',
        f"Median cosine of updates {CLOSE_FROM} to {FIRST_UPDATES - 1}: supported up to {CLOSE_TO_MINUS_ONE} in all "
        f"trainings, contradicted from {NOT_CLOSE_TO_MINUS_ONE} in all.",
        judge,
    )


def falling_floor(role: str, shown: str) -> Claim:
    """The valley floor under GD falls almost monotonically."""

    def judge(walks: Walks) -> Judgement:
        tallies = [_floor_moves(run, _first(run), down=True) for run in walks[role]]
        return share(tallies, "moves of the floor go down", at_least=MOST, at_most=HALF)

    return Claim(
        "falling floor",
        "for GD, the floor is reducing almost monotonously",
        f"Section 3.1 (Figure 1); {shown}",
        f"Share of the floor's moves from one of the first {FIRST_UPDATES} updates to the next that go down: supported "
        f"from {MOST:.0%} in all trainings that were watched throughout, contradicted up to {HALF:.0%} in all.",
        judge,
    )


def underdamped(role: str, name: str) -> Claim:
    """The learning rate is such that the sharpest direction oscillates without diverging."""
    scale = AUTHORS_GD_BATCHES if role == "gd-sum" else 1

    def judge(walks: Walks) -> Judgement:
        (run, *_) = walks[role]
        table = _first(run)
        measured = "spectral_norm" in table
        products = (scale * table["learning_rate"] * table["spectral_norm"]).dropna() if measured else pd.Series()
        if len(products) < FEWEST_CURVATURES:
            return Judgement(
                "not testable at this scale", f"{len(products)} spectral norms were measured in these updates."
            )
        inside = float(((products > 1) & (products < 2)).mean())
        verdict: Verdict = "supported" if inside >= MOST else "contradicted" if inside <= HALF else "not resolved"
        return Judgement(
            verdict,
            f"In one training {inside:.0%} of {len(products)} measured λη lie in (1, 2); they go from "
            f"{products.iloc[0]:.2f} to {products.iloc[-1]:.2f}, lowest {products.min():.2f}, highest "
            f"{products.max():.2f}.".replace("%", " %"),
        )

    return Claim(
        f"under-damped: λη between 1 and 2 ({name})",
        "This is reminiscent of optimization in a quadratic loss setting […] where the optimal learning rate η causes "
        "under-damping without divergence along eigenvectors of the Hessian which have eigenvalues λ_i such that "
        "λ_i⁻¹ < η < 2λ_i⁻¹",
        "Section 6 (Discussion)",
        f"Share of the spectral norms λ measured in the first {FIRST_UPDATES} updates with 1 < λη < 2: supported from "
        f"{MOST:.0%}, contradicted up to {HALF:.0%}.",
        judge,
    )


def distance(role: str, value: float, words: str, source: str, *, testable: bool) -> Claim:
    """The walk is so far from its start after 40 updates; testable where the network is the paper's."""

    def judge(walks: Walks) -> Judgement:
        found = np.array([_distance(run) for run in walks[role]])
        off = abs(float(found.mean()) - value)
        verdict: Verdict = "supported" if off <= NEAR else "contradicted" if off >= FAR else "not resolved"
        return Judgement(verdict, f"‖θ_{FIRST_UPDATES} - θ_0‖ of {len(found)} training(s): {_span(found)}.")

    return Claim(
        f"distance ≈ {value}",
        words,
        source,
        f"Mean of ‖θ_{FIRST_UPDATES} - θ_0‖ over the trainings: supported within {NEAR} of {value}, contradicted from "
        f"{FAR} on. A smaller network, or GD over fewer examples, has other distances.",
        judge,
        paper_scale_only=not testable,
    )


def less_negative_cosine(role: str, epoch: int, gd: str, shown: str) -> Claim:
    """Consecutive gradients of SGD point less against each other than those of GD."""

    def judge(walks: Walks) -> Judgement:
        ours = [_first(run, epoch)["cosine"].iloc[BOUNCING_FROM:].mean() for run in walks[role]]
        theirs = [_first(run)["cosine"].iloc[BOUNCING_FROM:].mean() for run in walks[gd]]
        return paired(ours, theirs, "Mean cosine of SGD", "of GD")

    return Claim(
        "cosine less negative than under GD",
        "the cosine of the angle between gradients from consecutive iterations are significantly less negative",
        f"Section 3.1 (Figure 2); {shown}",
        f"Mean cosine of updates {BOUNCING_FROM} to {FIRST_UPDATES - 1} of SGD's epoch {epoch} less that of GD's first "
        f"{FIRST_UPDATES} updates, one pair a seed: supported where the 95 % interval lies above 0, contradicted where "
        "it lies below.",
        judge,
    )


def farther_than_gd(role: str, gd: str, shown: str) -> Claim:
    """SGD travels farther than GD."""

    def judge(walks: Walks) -> Judgement:
        ours, theirs = ([_distance(run) for run in walks[each]] for each in (role, gd))
        return paired(ours, theirs, "Distance of SGD from its start", "of GD")

    return Claim(
        "SGD travels farther",
        "For all architectures, SGD travels farther than full batch gradient descent",
        f"Section 3.1 and footnote 4; {shown}",
        f"‖θ_{FIRST_UPDATES} - θ_0‖ of SGD less that of GD, one pair a seed: supported where the 95 % interval lies "
        "above 0, contradicted where it lies below.",
        judge,
    )


def rough_floor(role: str, epoch: int, shown: str) -> Claim:
    """The valley floor under SGD goes up and down."""

    def judge(walks: Walks) -> Judgement:
        tallies = [_floor_moves(run, _first(run, epoch), down=False) for run in walks[role]]
        return share(tallies, "moves of the floor go up", at_least=MANY, at_most=1 - MOST)

    return Claim(
        "rough floor",
        "the height of valley floor has many ups and downs for consecutive iterations in contrast with that of GD",
        f"Section 3.1 (Figure 2); {shown}",
        f"Share of the floor's moves from one of epoch {epoch}'s first {FIRST_UPDATES} updates to the next that go up: "
        f"supported from {MANY:.0%} in all trainings that were watched throughout, contradicted up to {1 - MOST:.0%} "
        "in all.",
        judge,
    )


def bounces(role: str, shown: str) -> Claim:
    """SGD's updates have a floor between their ends."""

    def judge(walks: Walks) -> Judgement:
        tallies = [_interior_floors(run, run.steps) for run in walks[role]]
        what = "watched updates have their floor strictly between the iterates"
        return share(tallies, what, at_least=MOSTLY, at_most=HALF)

    return Claim(
        "bounces off valley walls",
        "the optimizer bounces off these valley walls at a height from the valley floor for most of the training",
        f"Section 1; {shown}",
        "Share of all watched updates, early and late, whose floor is strictly between the iterates: supported from "
        f"{MOSTLY:.0%} in all trainings, contradicted up to {HALF:.0%} in all.",
        judge,
    )


def few_barriers(role: str, epoch: int, source: str, *, first: int | None = None, words: str = "") -> Claim:
    """SGD hardly ever crosses a barrier."""
    which = f"of epoch {epoch}'s updates" if first is None else f"of the first {first} updates of epoch {epoch}"

    def judge(walks: Walks) -> Judgement:
        barrier = _first(walks[role][0], epoch, first)["barrier"].dropna().astype(bool)
        if len(barrier) < FEWEST_UPDATES:
            return _too_few()
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
        f"{RARE:.0%} (of 50 updates none may then cross one, of 450 up to 32), contradicted where it lies above.",
        judge,
    )


def no_barrier(role: str, epoch: int, words: str, source: str) -> Claim:
    """Not one barrier is crossed."""

    def judge(walks: Walks) -> Judgement:
        counts = [_barriers(_first(run, epoch)) for run in walks[role]]
        watched, crossed, significant = (sum(each) for each in zip(*counts, strict=True))
        if watched < FEWEST_UPDATES:
            return _too_few()
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
        before, after = (_barriers(_first(run, epoch, None))[:2] for epoch in (early, late))
        if min(before[0], after[0]) < FEWEST_UPDATES:
            return _too_few()
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
        counts = [_barriers(_first(run, epoch, None))[:2] for epoch in epochs]
        known = [crossed for watched, crossed in counts if watched >= FEWEST_UPDATES]
        if len(known) < len(epochs):
            return _too_few()
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


def _first(run: sgdwalk.Run, epoch: int | None = None, number: int | None = FIRST_UPDATES) -> pd.DataFrame:
    """The first steps of an epoch, or of the run; all of them with ``number=None``."""
    steps = run.steps if epoch is None else run.steps[run.steps["epoch"] == epoch]
    return steps if number is None else steps.iloc[:number]


def _from(run: sgdwalk.Run, step: int) -> pd.DataFrame:
    """The steps from one on, of the first 40 of the run."""
    return _first(run).loc[step:]


def _floor_moves(run: sgdwalk.Run, steps: pd.DataFrame, *, down: bool) -> Tally:
    """How many moves of the floor, from an update to the one after it, go down or up; where both were watched."""
    watched = pd.Series(_is_watched(run, steps), steps.index)
    floor = steps["floor"]
    moves = floor.diff()[floor.notna() & floor.shift().notna()]
    asked = int((watched & watched.shift(fill_value=False)).sum())
    return tally(moves < 0 if down else moves > 0, asked)


def _interior_floors(run: sgdwalk.Run, steps: pd.DataFrame) -> Tally:
    """How many of the watched updates have their floor strictly between the iterates."""
    floor_alpha = steps["floor_alpha"].dropna()
    return tally((floor_alpha > 0) & (floor_alpha < 1), _num_watched(run, steps))


def _is_watched(run: sgdwalk.Run, steps: pd.DataFrame) -> np.ndarray:
    return np.asarray(steps.index.isin(run.segments["step"].unique()))


def _num_watched(run: sgdwalk.Run, steps: pd.DataFrame) -> int:
    return int(_is_watched(run, steps).sum())


def _barriers(steps: pd.DataFrame) -> tuple[int, int, int]:
    """Updates with a known answer, those that cross a barrier, those whose barrier is significant."""
    barrier = steps["barrier"].dropna().astype(bool)
    significant = steps["barrier_significant"].fillna(False).astype(bool)
    return len(barrier), int(barrier.sum()), int(significant.sum())


def _distance(run: sgdwalk.Run) -> float:
    return float(run.steps["next_distance"].iloc[FIRST_UPDATES - 1])


def _median(values: pd.Series) -> float:
    values = values.dropna()
    return float(values.median()) if len(values) >= FEWEST_UPDATES else float("nan")


def _fisher(table: list[list[int]], alternative: str) -> float:
    """p of Fisher's exact test: P(at least as many successes in the first row), hypergeometric."""
    (success, failure), (other_success, other_failure) = table
    law = stats.hypergeom(success + failure + other_success + other_failure, success + other_success, success + failure)
    return float(law.sf(success - 1) if alternative == "greater" else law.cdf(success))


def _span(values: np.ndarray) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.min():.3f} to {values.max():.3f}, on average {values.mean():.3f}"


def _too_few() -> Judgement:
    return Judgement(
        "not testable at this scale", f"Fewer than {FEWEST_UPDATES} updates of a training have the value defined."
    )
