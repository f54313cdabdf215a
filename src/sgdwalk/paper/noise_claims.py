"""Statements about isotropic noise (section 4, Figures 5, 25 and 26, footnote 6): loss, accuracy, distance, norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

import sgdwalk
from sgdwalk.paper.judging import Claim, Judgement, Verdict, Walks, above, paired, share, tally
from sgdwalk.paper.selections import HALF, MOST
from sgdwalk.paper.walk_claims import CLOSE_FROM, CLOSE_TO_MINUS_ONE

END = 0.1
"""The share of a training's updates that its final loss is a mean over."""
LAST_VALIDATIONS = 3
"""The final accuracy is a mean over so many."""
STUCK, MOVING = 0.95, 0.8
"""Stuck: the loss of the last quarter of the updates is no more than 5 % below that of the quarter before. Not stuck:
20 % and more below."""
MUCH = 2.0
""""Much larger": at least twice."""
REDUCED = 0.9
"""A reduction of the loss: by more than a tenth."""
NEAR, FAR = 0.1, 0.2
"""A norm of the paper is met within a tenth of it, and missed from a fifth on."""


def final_loss(run: sgdwalk.Run) -> float:
    """Mean over the last tenth of the updates, nats per example; NaN where one of them is not finite.

    Of GD it is the full loss before each update, of SGD the mini-batches'.
    """
    losses = run.steps["batch_loss"].to_numpy(float)
    return float(losses[-max(1, round(END * len(losses))) :].mean())


def final_accuracy(run: sgdwalk.Run) -> float:
    """Mean of the last three validation accuracies."""
    return float(run.epochs["validation_accuracy"].iloc[-LAST_VALIDATIONS:].mean())


def final_distance(run: sgdwalk.Run) -> float:
    """‖θ_T - θ_0‖ after the last update."""
    return float(run.steps["next_distance"].iloc[-1])


def final_norm(run: sgdwalk.Run) -> float:
    """‖θ‖ before the last update."""
    return float(run.steps["param_norm"].iloc[-1])


def slowing(run: sgdwalk.Run) -> float:
    """Mean loss of the last quarter of the updates, by that of the quarter before."""
    losses = run.steps["batch_loss"].to_numpy(float)
    quarter = len(losses) // 4
    return float(losses[-quarter:].mean() / losses[-2 * quarter : -quarter].mean())


def ratios(
    over: Sequence[sgdwalk.Run], under: Sequence[sgdwalk.Run], value: Callable[[sgdwalk.Run], float]
) -> np.ndarray:
    """A value of one training by that of the other, one pair a seed."""
    return np.array([value(one) / value(other) for one, other in zip(over, under, strict=False)])


def against(
    values: np.ndarray, threshold: float, what: str, *, wanted: Literal["above", "below"] = "above"
) -> Judgement:
    """Judge on which side of a threshold ratios lie, by Student's interval of their logarithm over the seeds."""
    logs = [math.log(value) if value > 0 else math.nan for value in values]
    return above(logs, math.log(threshold), what, shown=math.exp, wanted=wanted)


def higher_loss(role: str, shown: str) -> Claim:
    """Noise ends at a higher loss than GD."""
    return _more(
        "noise: higher loss than GD",
        "adding even a small isotropic noise makes both the convergence and generalization worse compared with the "
        "model trained with GD",
        f"Section 4; {shown}",
        f"Mean loss of the last {END:.0%} of the updates, with noise less without",
        (role, "loss with noise"),
        ("gd", "of GD"),
        final_loss,
    )


def stuck(role: str, shown: str) -> Claim:
    """The loss under noise has stopped to fall."""

    def judge(walks: Walks) -> Judgement:
        values = np.array([slowing(run) for run in walks[role]])
        known = values[np.isfinite(values)]
        if len(known) == 0:
            return Judgement("not testable at this scale", "The loss is finite in no training.")
        verdict: Verdict = "not resolved"
        if known.min() >= STUCK and len(known) == len(values):
            verdict = "supported"
        elif known.max() <= MOVING and len(known) == len(values):
            verdict = "contradicted"
        left_out = f" ({len(values) - len(known)} undefined)" * (len(known) < len(values))
        said = ", ".join(f"{value:.3g}" for value in known)
        return Judgement(verdict, f"Last quarter by the one before, in {len(known)} training(s): {said}{left_out}.")

    return Claim(
        "noise: stuck",
        "Models trained using GD with added isotropic noise get stuck in terms of training loss",
        shown,
        "Mean loss of the last quarter of the updates by that of the quarter before: supported where it is at least "
        f"{STUCK} in all trainings, contradicted where it is at most {MOVING} in all.",
        judge,
        paper_scale_only=True,
    )


def worse_accuracy(role: str, shown: str) -> Claim:
    """Noise generalizes worse than GD."""
    return _more(
        "noise: worse accuracy than GD",
        "and have worse validation performance compared with the model trained with GD",
        shown,
        f"Mean of the last {LAST_VALIDATIONS} validation accuracies, of GD less with noise",
        ("gd", "accuracy of GD"),
        (role, "with noise"),
        final_accuracy,
    )


def farther_than_gd(role: str, shown: str) -> Claim:
    """Noise carries the parameters farther than GD goes."""
    return _more(
        "noise: farther than GD",
        "models trained with isotropic noise travel farther away compared with the model trained using noiseless GD",
        f"Section 4; {shown}",
        "‖θ_T - θ_0‖ with noise less without",
        (role, "distance with noise"),
        ("gd", "of GD"),
        final_distance,
    )


def much_farther_than_sgd(role: str, shown: str) -> Claim:
    """Noise carries the parameters much farther than as many updates by SGD."""
    return Claim(
        "noise: much farther than SGD",
        "These distances are much larger even compared with models trained with mini-batch SGD (not shown here) for "
        "the same number of updates",
        f"Section 4; {shown}",
        f"‖θ_T - θ_0‖ with noise by that of SGD, T the same, one pair a seed (Student's interval of the logarithm): "
        f"supported where the interval lies above {MUCH:g}, contradicted where it lies below.",
        lambda walks: against(ratios(walks[role], walks["sgd"], final_distance), MUCH, "ratio of the distances"),
        paper_scale_only=True,
    )


def much_larger_norm(role: str, shown: str) -> Claim:
    """Noise ends at parameters of a much larger norm."""
    return Claim(
        "noise: much larger norm than GD",
        "isotropic noise solutions have much larger norms and get stuck",
        f"Section 4; {shown}",
        "‖θ‖ before the last update, with noise by without, one pair a seed (Student's interval of the logarithm): "
        f"supported where the interval lies above {MUCH:g}, contradicted where it lies below.",
        lambda walks: against(ratios(walks[role], walks["gd"], final_norm), MUCH, "ratio of the norms"),
        paper_scale_only=True,
    )


def opposite_throughout(role: str, shown: str) -> Claim:
    """Consecutive gradients of GD are almost opposite all through training."""

    def judge(walks: Walks) -> Judgement:
        cosines = [run.steps["cosine"].iloc[CLOSE_FROM:] for run in walks[role]]
        tallies = [tally(each.dropna() <= CLOSE_TO_MINUS_ONE, len(each)) for each in cosines]
        return share(tallies, f"cosines are {CLOSE_TO_MINUS_ONE} or less", at_least=MOST, at_most=HALF)

    return Claim(
        "GD: cosine close to -1 throughout",
        "The cosine of the angle between gradients of two consecutive iterations is close to -1 for 1500 iterations "
        "for GD, which means two consecutive gradients are almost along opposite directions",
        f"Section 4; {shown}",
        f"Share of the updates from {CLOSE_FROM} on whose cosine is {CLOSE_TO_MINUS_ONE} or less: supported from "
        f"{MOST:.0%} in all trainings, contradicted up to {HALF:.0%} in all.",
        judge,
    )


def gd_generalizes_worse(shown: str) -> Claim:
    """SGD generalizes better than GD."""
    return _more(
        "GD: worse accuracy than SGD",
        "full dataset gradient descent (without any noise), which is well known to be worse compared with "
        "generalization from SGD with small mini-batches",
        f"Section 4; {shown}",
        f"Mean of the last {LAST_VALIDATIONS} validation accuracies, of SGD less of GD after as many updates",
        ("sgd", "accuracy of SGD"),
        ("gd", "of GD"),
        final_accuracy,
    )


def sgd_has_the_smaller_norm(shown: str) -> Claim:
    """SGD ends at parameters of a smaller norm than GD."""
    return _more(
        "SGD: smaller norm than GD",
        "SGD finds solutions with small ℓ^2 norm (Zhang et al., 2016) compared with GD",
        f"Section 4; {shown}",
        "‖θ‖ before the last update, of GD less of SGD after as many updates",
        ("gd", "norm of GD"),
        ("sgd", "of SGD"),
        final_norm,
    )


def norm(role: str, value: float) -> Claim:
    """The paper's very number, which only its own number of parameters can give."""

    def judge(walks: Walks) -> Judgement:
        found = np.array([final_norm(run) for run in walks[role]])
        off = np.abs(found / value - 1)
        verdict: Verdict = "supported" if off.max() <= NEAR else "contradicted" if off.min() > FAR else "not resolved"
        said = ", ".join(f"{each:.4g}" for each in found)
        return Judgement(verdict, f"Norms of {len(found)} training(s): {said}; the paper: {value:g}.")

    return Claim(
        f"norm ≈ {value:g}",
        "The parameter norms are 87 and 82 for GD and SGD respectively, and 369 and 443 for the 0.014 and 0.028 "
        "isotropic variance case",
        "Section 4 (Figure 5)",
        f"‖θ‖ before the last update: supported within {NEAR:.0%} of {value:g} in all trainings, contradicted from "
        f"{FAR:.0%} off in all.",
        judge,
        paper_scale_only=True,
    )


def no_help(change: str, start: str, changed: str) -> Claim:
    """What does not get a noisy training out of where it is stuck."""
    return _after_change(
        f"{changed}: no help",
        "neither reducing learning rate, nor switching to GD at this point leads to reduction in training loss",
        (change, start),
        "above",
    )


def helps(change: str, start: str, changed: str) -> Claim:
    """What gets a noisy training out of where it is stuck."""
    return _after_change(
        f"{changed}: the loss falls",
        "switching to SGD makes the loss go down",
        (change, start),
        "below",
        " The loss of SGD is that of its mini-batches, whose BatchNorm sees fewer examples than GD's.",
    )


def _after_change(
    name: str, words: str, roles: tuple[str, str], wanted: Literal["above", "below"], caveat: str = ""
) -> Claim:
    """The loss after a change, by that before, against what counts as reduced."""
    change, start = roles
    return Claim(
        name,
        words,
        "Footnote 6",
        f"Mean loss of the last {END:.0%} of the updates after the change, by that before, one ratio a seed (Student's "
        f"interval of the logarithm): supported where the interval lies {wanted} {REDUCED:g}, contradicted where it "
        f"lies {'below' if wanted == 'above' else 'above'}. Not testable where a training was not shown to be stuck "
        f"before.{caveat}",
        lambda walks: _if_stuck(
            walks[start],
            against(ratios(walks[change], walks[start], final_loss), REDUCED, "loss after by before", wanted=wanted),
        ),
        paper_scale_only=True,
    )


def noise_helps_sgd(role: str) -> Claim:
    """Isotropic noise on top of mini-batches' improves on plain SGD."""
    return _more(
        "noise on top of SGD: better accuracy",
        "Neelakantan et al. (2015) suggest adding isotropic noise to gradients and report performance improvement on a "
        "number of tasks […] on top of the noise due to the minibatch induced stochasticity",
        "Section 4",
        f"Mean of the last {LAST_VALIDATIONS} validation accuracies, of SGD with noise less without",
        (role, "accuracy of SGD with noise"),
        ("sgd", "without"),
        final_accuracy,
    )


def smaller_batch_matters(role: str) -> Claim:
    """A smaller batch does better than noise on top of the larger one, so it should have been compared."""
    return _more(
        "smaller mini-batches: better than noise on top",
        "Neelakantan et al. (2015) do not compare the performance of the additive isotropic noise with SGD with "
        "different batch sizes as a baseline, which we believe is important",
        "Section 4",
        f"Mean of the last {LAST_VALIDATIONS} validation accuracies, of SGD at half the batch size less that of SGD "
        "with noise, after as many updates",
        ("sgd-half", "accuracy at half the batch"),
        (role, "with noise"),
        final_accuracy,
    )


def _if_stuck(before: Sequence[sgdwalk.Run], found: Judgement) -> Judgement:
    """The footnote speaks of stuck trainings; of others it says nothing, whatever was found."""
    values = [slowing(run) for run in before]
    if all(value >= STUCK for value in values):
        return found
    said = ", ".join(f"{value:.3g}" for value in values)
    return Judgement(
        "not testable at this scale",
        f"Not shown to be stuck before (last quarter by the one before: {said}). {found.finding}",
    )


def _more(
    name: str,
    words: str,
    source: str,
    statistic: str,
    higher: tuple[str, str],
    lower: tuple[str, str],
    value: Callable[[sgdwalk.Run], float],
) -> Claim:
    """One kind of training ends with more of something than another; each is given as (role, words)."""

    def judge(walks: Walks) -> Judgement:
        ours, theirs = ([value(run) for run in walks[role]] for role, _ in (higher, lower))
        return paired(ours, theirs, higher[1], lower[1])

    return Claim(
        name,
        words,
        source,
        f"{statistic}, one pair a seed: supported where Student's 95 % interval of the difference lies above 0, "
        "contradicted where it lies below.",
        judge,
    )
