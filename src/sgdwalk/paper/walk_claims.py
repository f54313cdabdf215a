"""Statements about the first updates of an epoch (Figures 1, 2, 9 to 21): valleys, cosines, distances."""

from __future__ import annotations

import numpy as np
import pandas as pd

import sgdwalk
from sgdwalk.paper.config import AUTHORS_GD_BATCHES
from sgdwalk.paper.judging import FEWEST_UPDATES, Claim, Judgement, Tally, Verdict, Walks, paired, share, tally
from sgdwalk.paper.selections import (
    FIRST_UPDATES,
    HALF,
    MOST,
    MOSTLY,
    first_steps,
    is_watched,
    num_watched,
    span,
    too_few,
)

BOUNCING_FROM = 15
"""Section 3.1: "after iteration 15"."""
CLOSE_FROM = 20
"""Figure 1: "close to -1 after around 20 iterations"."""
MANY = 0.25
""""Many ups and downs": at least a quarter of the floor's moves go up. At most 1 - MOST of them: almost monotone."""
CLOSE_TO_MINUS_ONE = -0.9
NOT_CLOSE_TO_MINUS_ONE = -0.5
QUADRATIC_R2 = 0.99
""""Quadratic-like": a parabola explains 99 % of the variance of the losses along a segment."""
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
            tallies.append(tally(fits, num_watched(run, steps)))
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
            return too_few()
        verdict: Verdict = "not resolved"
        if values.max() <= CLOSE_TO_MINUS_ONE:
            verdict = "supported"
        elif values.min() >= NOT_CLOSE_TO_MINUS_ONE:
            verdict = "contradicted"
        return Judgement(verdict, f"Median cosine of {len(values)} training(s): {span(values)}.")

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
        tallies = [_floor_moves(run, first_steps(run), down=True) for run in walks[role]]
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
        table = first_steps(run)
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
        return Judgement(verdict, f"‖θ_{FIRST_UPDATES} - θ_0‖ of {len(found)} training(s): {span(found)}.")

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
        ours = [first_steps(run, epoch)["cosine"].iloc[BOUNCING_FROM:].mean() for run in walks[role]]
        theirs = [first_steps(run)["cosine"].iloc[BOUNCING_FROM:].mean() for run in walks[gd]]
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
        tallies = [_floor_moves(run, first_steps(run, epoch), down=False) for run in walks[role]]
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


def _from(run: sgdwalk.Run, step: int) -> pd.DataFrame:
    """The steps from one on, of the first 40 of the run."""
    return first_steps(run).loc[step:]


def _floor_moves(run: sgdwalk.Run, steps: pd.DataFrame, *, down: bool) -> Tally:
    """How many moves of the floor, from an update to the one after it, go down or up; where both were watched."""
    watched = pd.Series(is_watched(run, steps), steps.index)
    floor = steps["floor"]
    moves = floor.diff()[floor.notna() & floor.shift().notna()]
    asked = int((watched & watched.shift(fill_value=False)).sum())
    return tally(moves < 0 if down else moves > 0, asked)


def _interior_floors(run: sgdwalk.Run, steps: pd.DataFrame) -> Tally:
    """How many of the watched updates have their floor strictly between the iterates."""
    floor_alpha = steps["floor_alpha"].dropna()
    return tally((floor_alpha > 0) & (floor_alpha < 1), num_watched(run, steps))


def _distance(run: sgdwalk.Run) -> float:
    return float(run.steps["next_distance"].iloc[FIRST_UPDATES - 1])


def _median(values: pd.Series) -> float:
    values = values.dropna()
    return float(values.median()) if len(values) >= FEWEST_UPDATES else float("nan")
