"""Statements about what learning rate and batch size do (sections 3.2 and 6, footnote 1; Figures 4 and 22 to 24)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from sgdwalk.paper.barrier_claims import RARE
from sgdwalk.paper.judging import (
    FEWEST_UPDATES,
    Claim,
    Judgement,
    Verdict,
    Walks,
    clustered_proportion_interval,
    side,
    student,
)
from sgdwalk.paper.role_measures import (
    ACCURACY,
    COSINE,
    DISTANCE,
    FACTORS,
    HEIGHT,
    SPECTRAL_NORM,
    VALIDATION_LOSS,
    Factor,
    Moment,
    Quantity,
    barriers,
    equal_ratios,
    equivalence_interval,
    is_bouncing,
    log_ratios,
    slopes,
    unknown,
    values,
    window,
)
from sgdwalk.paper.role_trainings import Setting
from sgdwalk.paper.selections import too_few
from sgdwalk.paper.walk_claims import BOUNCING_FROM

COSINE_MARGIN = 0.05
""""No significant effect" on the cosine, for a learning rate twice or half as large: a twentieth of the way from
orthogonal to opposite."""
SAME = 1.1
""""Remains the same": a ratio between 1 / 1.1 and 1.1."""
RULING = 2.0
""""Controls", and "hard to achieve by changing" the other: at least twice the effect."""
SMALL_RATE = 0.05
""""A small learning rate": half the paper's usual one, and less."""
USUAL_RATE = 0.1
"""Up to the paper's usual learning rate the view of stochastic differential equations is asked to hold; above it, to
fail."""
Sign = Literal["rises", "falls"]


def follows(settings: Sequence[Setting], quantity: Quantity, factor: Factor, sign: Sign, moment: Moment) -> Claim:
    """A quantity rises or falls with the learning rate or the batch size."""

    def judge(walks: Walks) -> Judgement:
        chosen, left_out = _bouncing(walks, settings, moment) if quantity is COSINE else (settings, "")
        found = slopes(walks, chosen, quantity, moment)[:, FACTORS.index(factor)]
        signed = found if sign == "rises" else -found
        verdict = _open_if_lost(side(signed, 0.0), walks, chosen, quantity, moment)
        return Judgement(
            verdict,
            f"{_slope_words(quantity)} with the {factor}: {_interval(found)}."
            f"{_lost(walks, chosen, quantity, moment)}{left_out}",
        )

    words, source = FOLLOWS[quantity.name, factor]
    return Claim(
        f"{quantity.name.replace('_', ' ')} {sign} with the {factor}, after {moment.kind}",
        words,
        source,
        f"{_slope_words(quantity)} with the {factor} (least squares over the settings, one slope a seed), after "
        f"{moment}: supported where Student's 95 % interval over the seeds lies "
        f"{'above' if sign == 'rises' else 'below'} 0, contradicted where it lies on the other side."
        f"{_caveat(quantity, factor, moment)}",
        judge,
        # A large batch makes few updates in few epochs: walks that bounce would be set beside walks that do not yet.
        paper_scale_only=quantity is COSINE and moment.unit == "epochs",
    )


def rules(settings: Sequence[Setting], quantity: Quantity, factor: Factor, moment: Moment) -> Claim:
    """One of the two factors changes a quantity more than the other does."""
    other = FACTORS[1 - FACTORS.index(factor)]

    def judge(walks: Walks) -> Judgement:
        found = slopes(walks, settings, quantity, moment)
        ours, theirs = found[:, FACTORS.index(factor)], found[:, FACTORS.index(other)]
        clear, less = np.abs(ours) - RULING * np.abs(theirs), np.abs(ours) - np.abs(theirs)
        verdict = side(less, 0.0)
        if verdict == "supported" and side(clear, 0.0) != "supported":
            verdict = "not resolved"
        return Judgement(
            _open_if_lost(verdict, walks, settings, quantity, moment),
            f"{_slope_words(quantity)}: {_mean(ours)} with the {factor}, {_mean(theirs)} with the {other}; difference "
            f"of sizes {_interval(less)}.{_lost(walks, settings, quantity, moment)}",
        )

    words, source = RULES[quantity.name]
    return Claim(
        f"{factor} rules the {quantity.name}, after {moment.kind}",
        words,
        source,
        f"{_slope_words(quantity)} after {moment}, its size with the {factor} against that with the {other}, one pair "
        f"a seed: supported where Student's 95 % interval of the former less {RULING:g} times the latter lies above 0, "
        "contradicted where that of their difference lies below.",
        judge,
    )


def batch_changes_cosine_more(batches: Sequence[Setting], rates: Sequence[Setting], moment: Moment) -> Claim:
    """A doubling of the batch size changes the cosine more than one of the learning rate."""

    def judge(walks: Walks) -> Judgement:
        by_batch = slopes(walks, batches, COSINE, moment)[:, 1]
        by_rate = slopes(walks, rates, COSINE, moment)[:, 0]
        difference = np.abs(by_batch) - np.abs(by_rate)
        return Judgement(
            side(difference, 0.0),
            f"Change of the cosine a doubling: {_mean(by_batch)} with the batch size, {_mean(by_rate)} with the "
            f"learning rate; difference of sizes {_interval(difference)}.",
        )

    return Claim(
        f"batch size changes the cosine more than the learning rate does, after {moment.kind}",
        "This shows batch size has a qualitatively different role compared with learning rate",
        "Captions of Figures 4 and 22 to 24",
        f"Size of the change of the mean cosine a doubling of the batch size less that a doubling of the learning "
        f"rate, second half of the first {moment}, one difference a seed: supported where Student's 95 % interval lies "
        "above 0, contradicted where it lies below.",
        judge,
    )


def same_cosine_at_any_rate(settings: Sequence[Setting], batches: Sequence[Setting], moment: Moment) -> Claim:
    """The learning rate has no significant effect on the cosine: two one-sided tests for each pair of neighbours.

    What passes for none is less than a doubling of the batch size does, which the paper does call significant.
    """

    def judge(walks: Walks) -> Judgement:
        said, inside, outside = [], 0, 0
        effect = abs(float(np.mean(slopes(walks, batches, COSINE, moment)[:, 1])))
        margin = min(COSINE_MARGIN, effect) if math.isfinite(effect) else 0.0
        for low, high in pairwise(settings):
            before, after = values(walks, (low, high), COSINE, moment)
            differences = (after - before)[np.isfinite(after - before)]
            name = f"η = {low.learning_rate:g} to {high.learning_rate:g}"
            if len(differences) < 2:
                said.append(f"{name}: {len(differences)} seed(s), no interval")
                continue
            left, right = equivalence_interval(differences)
            inside += left > -margin and right < margin
            outside += left > COSINE_MARGIN or right < -COSINE_MARGIN
            said.append(f"{name}: {differences.mean():+.3f} ({left:+.3f} to {right:+.3f}, {len(differences)} seeds)")
        return Judgement(
            _all_or_any(inside, outside, len(settings) - 1),
            f"Change of the mean cosine: {'; '.join(said)}. A doubling of the batch size changes it by {effect:.3f}.",
        )

    return Claim(
        f"no effect of the learning rate on the cosine, after {moment.kind}",
        "changing learning rate does not have any significant effect on the cosine",
        "Captions of Figures 4 and 22 to 24; Appendix B: “For all architectures, changing learning rate doesn't change "
        "the angles”",
        f"Difference of the mean cosine between neighbouring learning rates, second half of the first {moment}; two "
        f"one-sided t tests at 5 % (90 % interval over the seeds) against a margin of {COSINE_MARGIN}: supported where "
        "every interval lies within the margin and within the change that a doubling of the batch size makes, "
        "contradicted where one lies outside the margin.",
        judge,
    )


def same_at_equal_ratio(settings: Sequence[Setting], moment: Moment, *, large: bool) -> Claim:
    """One ratio of learning rate to batch size is one walk while learning rates are small, and is not when large."""
    pairs = [pair for pair in equal_ratios(settings) if (pair[1].learning_rate > USUAL_RATE) == large]

    def judge(walks: Walks) -> Judgement:
        said: list[str] = []
        same, different = 0, 0
        for pair in pairs:
            intervals = []
            for quantity in (DISTANCE, VALIDATION_LOSS):
                logs = log_ratios(walks, pair, quantity, moment)
                if len(logs) == len(walks[pair[0].role]) > 1:
                    low, high = np.exp(equivalence_interval(logs))
                    intervals.append((low, high))
                    shown = f"{quantity.name.replace('_', ' ')} × {np.exp(logs.mean()):.3g} ({low:.3g} to {high:.3g})"
                    said.append(f"{_pair(pair)}: {shown}")
            same += len(intervals) == 2 and all(low > 1 / SAME and high < SAME for low, high in intervals)
            different += any(low > SAME or high < 1 / SAME for low, high in intervals)
        if not said:
            return Judgement(
                "not testable at this scale", "No pair of settings has both values for all seeds, two at least."
            )
        if large:
            verdict: Verdict = _all_or_any(different, same, len(pairs))
        else:
            verdict = _all_or_any(same, different, len(pairs))
        return Judgement(verdict, f"{same} pair(s) the same, {different} different of {len(pairs)}: {'; '.join(said)}.")

    small_words = (
        "A main result of these papers is that the SDE dynamics remains the same as long as the ratio of learning rate "
        "to batch size remains unchanged […] under the assumption of using small learning rates"
    )
    large_words = (
        "except when using a reasonably small learning rate (which would make the SDE approximation hold), the effect "
        "of small batch size with a certain learning rate cannot be achieved by using a large batch size with a "
        "proportionally large learning rate"
    )
    what = "another walk" if large else "the same walk"
    return Claim(
        f"{what} at one ratio of learning rate to batch size, after {moment.kind}",
        large_words if large else small_words,
        "Footnote 1" if large else "Section 1",
        f"Distance and validation loss after {moment}, the time of that equation, at the larger "
        f"of two learning rates by those at the smaller one, for pairs whose larger rate is "
        f"{'above' if large else 'at most'} {USUAL_RATE}; two one-sided t tests at 5 % (90 % interval of the log ratio "
        f"over the seeds). A pair is the same where both intervals lie within 1 / {SAME} to {SAME}, different where "
        "one lies outside; a seed without a value leaves its pair open. "
        f"Supported where all pairs are {'different' if large else 'the same'}, contradicted where "
        f"one is {'the same' if large else 'different'}.",
        judge,
    )


def no_barriers_at_small_rates(settings: Sequence[Setting]) -> Claim:
    """SGD with a small learning rate does not meet the barriers of the valley's floor."""
    small = [each for each in settings if each.learning_rate <= SMALL_RATE]
    others = [each for each in settings if each.learning_rate > SMALL_RATE]

    def judge(walks: Walks) -> Judgement:
        crossed, updates = barriers(walks, small)
        if sum(updates) < FEWEST_UPDATES:
            return too_few()
        low, high = clustered_proportion_interval(crossed, updates)
        verdict: Verdict = "supported" if high < RARE else "contradicted" if low > RARE else "not resolved"
        above, of = barriers(walks, others)
        return Judgement(
            verdict,
            f"{sum(crossed)} of {sum(updates)} watched updates at learning rates up to {SMALL_RATE} cross a barrier "
            f"(95 % interval {low:.1%} to {high:.1%} if these updates stand for the others); at larger ones "
            f"{sum(above)} of {sum(of)}.",
        )

    return Claim(
        "no barriers at small learning rates",
        "if we use a small learning rate, SGD should encounter such barriers and likely cross them. But we found in "
        "our experiments that this was not the case",
        "Section 6 (Discussion)",
        f"Share of the watched updates at learning rates up to {SMALL_RATE}, of all batch sizes and seeds, that cross "
        f"a barrier: supported where its 95 % interval (Korn and Graubard's, updates of one training being alike) lies "
        f"below {RARE:.0%}, contradicted where it lies above.",
        judge,
    )


HEIGHT_WORDS = "the learning rate controls the height from the valley floor at which the optimization oscillates"
FLATTER_WORDS = (
    "model parameters that are in a region of flatter minima generalize better […] and […] SGD finds such minima when "
    "used with small batch size and high learning rate"
)
FOLLOWS: dict[tuple[str, Factor], tuple[str, str]] = {
    (COSINE.name, "batch size"): ("the cosine is significantly more negative for larger batch sizes", "Section 3.2"),
    (DISTANCE.name, "batch size"): (
        "This behavior is verified by the smaller distance of parameters from initialization during training for "
        "larger batch size",
        "Section 3.2",
    ),
    (DISTANCE.name, "learning rate"): (
        "This 'bouncing off walls at a height' mechanism helps SGD traverse larger distance for small batch sizes and "
        "large learning rates",
        "Abstract",
    ),
    (HEIGHT.name, "learning rate"): (HEIGHT_WORDS, "Section 3.2"),
    (ACCURACY.name, "learning rate"): (
        "small learning rates empirically correlate with bad generalization",
        "Section 6",
    ),
    (ACCURACY.name, "batch size"): (
        "the noise from a small mini-batch size facilitates exploration that may lead to better minima",
        "Section 3.2",
    ),
    (SPECTRAL_NORM.name, "learning rate"): (
        "smaller learning rates lead to sharper minima and poor generalization",
        "Section 3.2",
    ),
    (SPECTRAL_NORM.name, "batch size"): (FLATTER_WORDS, "Section 1"),
}
"""Quantity and factor -> the paper's words and where they stand."""
RULES: dict[str, tuple[str, str]] = {
    HEIGHT.name: (
        "Learning rate controls the height at which the optimization bounces above the valley floor while batch size "
        "controls the level of noise",
        "Section 1, contribution 3",
    ),
    DISTANCE.name: (
        "batch size controls the level of noise due to gradient covariance which seems to facilitate exploration of "
        "different regions in the valley. This is visible from the parameter distance from initialization",
        "Section 1, contribution 3; section 3.2: “this is hard to achieve by changing the learning rate”",
    ),
}


def _slope_words(quantity: Quantity) -> str:
    name = quantity.name.replace("_", " ")
    return f"Exponent of the {name}" if quantity.logarithmic else f"Change of the {name} a doubling"


def _interval(found: np.ndarray) -> str:
    """A number over the seeds as it is told."""
    known = found[np.isfinite(found)]
    lost = f"; undefined for {len(found) - len(known)}" if len(known) < len(found) else ""
    if len(known) == 0:
        return "not known for any seed"
    if len(known) == 1:
        return f"{known[0]:.3g}, one seed, no interval{lost}"
    mean, half = student(known)
    return f"{mean:+.3g} ± {half:.2g} (95 %, {len(known)} seeds{lost})"


def _all_or_any(for_it: int, against: int, number: int) -> Verdict:
    """Supported by all, contradicted by any."""
    return "contradicted" if against else "supported" if for_it == number else "not resolved"


def _mean(found: np.ndarray) -> str:
    return f"{np.nanmean(found):+.3g}" if np.isfinite(found).any() else "not known"


def _pair(pair: tuple[Setting, Setting]) -> str:
    return " and ".join(f"η = {each.learning_rate:g}, B = {each.batch_size}" for each in pair)


def _open_if_lost(
    verdict: Verdict, walks: Walks, settings: Sequence[Setting], quantity: Quantity, moment: Moment
) -> Verdict:
    """A training without a value, having diverged say, must not help by vanishing."""
    decided = verdict in ("supported", "contradicted")
    return "not resolved" if decided and unknown(walks, settings, quantity, moment) else verdict


def _caveat(quantity: Quantity, factor: Factor, moment: Moment) -> str:
    """What the reader must know of a comparison after as many epochs."""
    if quantity is DISTANCE and factor == "batch size" and moment.unit == "epochs":
        return " A larger batch makes fewer updates in them: walks that do not depend on the batch would do this, too."
    return ""


def _lost(walks: Walks, settings: Sequence[Setting], quantity: Quantity, moment: Moment) -> str:
    number = unknown(walks, settings, quantity, moment)
    return f" Undefined in {number} training(s), which are left out." if number else ""


def _bouncing(walks: Walks, settings: Sequence[Setting], moment: Moment) -> tuple[Sequence[Setting], str]:
    """The settings whose walks can have begun to bounce and, where that was watched, do; and which are left out."""
    begun = [each for each in settings if window(walks[each.role][0], moment).start >= BOUNCING_FROM]
    chosen = [each for each in begun if is_bouncing(walks, each, moment)]
    late = ", ".join(map(str, dict.fromkeys(each.batch_size for each in settings if each not in begun)))
    said = f" Left out, fewer than {BOUNCING_FROM} updates before the half: batch size {late}." if late else ""
    still = "; ".join(f"η = {each.learning_rate:g}, B = {each.batch_size}" for each in begun if each not in chosen)
    return chosen, said + (f" Left out, most watched updates do not pass their floor: {still}." if still else "")
