"""Statements about the spectral norm over training, and the validation accuracy beside it (Figures 3 and 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

import sgdwalk
from sgdwalk.paper.judging import Claim, Judgement, Walks
from sgdwalk.paper.judging import above as judged_above
from sgdwalk.paper.spectral_tables import curve

START = 0.1
"""The start of a training: its first tenth of the epochs."""
SECOND_HALF = 0.5
END = 0.9
"""Towards the end: the last tenth, against the two tenths before."""
BEFORE_END = 0.7
SIGNIFICANTLY = 1.2
"""A factor from which a norm passes for significantly larger."""

CAPTION = "The spectral norm roughly decreases with training but starts increasing slightly towards the end."
ACCURACY = "Similarly validation accuracy roughly improves throughout training but drops towards the end."


def falling_norm(role: str, last: int, source: str) -> Claim:
    """The spectral norm falls over training."""
    early, late = f"epochs 1 to {START * last:g}", f"epochs after {SECOND_HALF * last:g}"

    def judge(walks: Walks) -> Judgement:
        return _ratios(
            walks[role], lambda run: _norms(run, 0, START, last), lambda run: _norms(run, SECOND_HALF, 1, last)
        )

    return Claim(
        "spectral norm falls",
        CAPTION,
        f"{source}; Section 3.1: “the spectral norm reduces as training progresses (hence SGD finds flatter regions)”",
        f"Geometric mean of the magnitudes measured in {early} by that in {late}, over the seeds (Student's interval "
        "of the logarithm): supported where it lies above 1, contradicted where it lies below.",
        judge,
    )


def late_rise(role: str, last: int, source: str) -> Claim:
    """It rises slightly at the end."""

    def judge(walks: Walks) -> Judgement:
        return _ratios(
            walks[role], lambda run: _norms(run, END, 1, last), lambda run: _norms(run, BEFORE_END, END, last)
        )

    return Claim(
        "spectral norm rises at the end",
        CAPTION,
        source,
        f"Geometric mean of the magnitudes measured after epoch {END * last:g} by that of epochs after "
        f"{BEFORE_END * last:g} and up to {END * last:g}, over the seeds (Student's interval of the logarithm): "
        "supported where it lies above 1, contradicted where it lies below.",
        judge,
        paper_scale_only=True,
    )


def improving_accuracy(role: str, last: int, source: str) -> Claim:
    """Validation accuracy improves over training."""

    def judge(walks: Walks) -> Judgement:
        return _differences(
            walks[role], lambda run: _accuracy(run, SECOND_HALF, 1, last), lambda run: _accuracy(run, 0, START, last)
        )

    return Claim(
        "validation accuracy improves",
        ACCURACY,
        source,
        f"Mean validation accuracy of epochs after {SECOND_HALF * last:g} less that of epochs 1 to {START * last:g}, "
        "over the seeds (Student's interval): supported where it lies above 0, contradicted where it lies below.",
        judge,
    )


def late_drop(role: str, last: int, source: str) -> Claim:
    """It drops at the end."""

    def judge(walks: Walks) -> Judgement:
        return _differences(
            walks[role], lambda run: _accuracy(run, BEFORE_END, END, last), lambda run: _accuracy(run, END, 1, last)
        )

    return Claim(
        "validation accuracy drops at the end",
        ACCURACY,
        source,
        f"Mean validation accuracy of epochs after {BEFORE_END * last:g} and up to {END * last:g} less that of the "
        "epochs after, over the seeds (Student's interval): supported where it lies above 0, contradicted where it "
        "lies below.",
        judge,
        paper_scale_only=True,
    )


def inverse_trends(role: str, source: str) -> Claim:
    """Where the norm is low, accuracy is high."""

    def judge(walks: Walks) -> Judgement:
        found, said = [], []
        for run in walks[role]:
            table, left_out = _converged(run, "train")
            table = table[table["accuracy"].notna()]
            usable = len(table) >= 3 and table["train"].nunique() > 1 and table["accuracy"].nunique() > 1
            found.append(_rank_correlation(table["train"].abs(), table["accuracy"]) if usable else math.nan)
            said.append(left_out)
        return judged_above([-value for value in found], 0.0, "negated rank correlation", _left_out(said))

    return Claim(
        "inverse trends",
        "Although we expect the trends of these two plots to be roughly inversely proportional (which is true), we do "
        "not hope for a very strong correlation between them",
        f"Section 3.1; {source}",
        "Spearman's rank correlation of the spectral norm's magnitude and the validation accuracy over the epochs at "
        "which both were measured, negated, one number a training (Student's interval over the seeds): supported where "
        "it lies above 0, contradicted where it lies below.",
        judge,
    )


def larger_with_running_statistics(role: str, source: str) -> Claim:
    """Validation mode makes the spectral norm larger."""

    def judge(walks: Walks) -> Judgement:
        logs, said = [], []
        larger = measured = 0
        for run in walks[role]:
            table, left_out = _converged(run, "train", "eval")
            ratios = (table["eval"] / table["train"]).abs().to_numpy(float)
            larger, measured = larger + int((ratios > 1).sum()), measured + len(ratios)
            logs.append(float(np.log(ratios).mean()) if len(ratios) else math.nan)
            said.append(left_out)
        more = f" Larger at {larger} of {measured} points.{_left_out(said)}"
        return judged_above(logs, math.log(SIGNIFICANTLY), "ratio", more, shown=math.exp)

    return Claim(
        "larger with running statistics",
        "Note that we track the spectral norm in the train mode of batchnorm; we observe that in validation mode the "
        "values are significantly larger.",
        f"Footnote 5; {source}",
        "Magnitude of the spectral norm with BatchNorm's running statistics by that with the statistics of each batch, "
        "at the same parameters: geometric mean over a training, one number a seed (Student's interval of the "
        f"logarithm): supported where it lies above {SIGNIFICANTLY:g}, contradicted where it lies below.",
        judge,
    )


Part = tuple[float, int]
"""The mean of the logarithms that are known, and how many measurements had not converged."""


def _ratios(
    runs: Sequence[sgdwalk.Run], above: Callable[[sgdwalk.Run], Part], below: Callable[[sgdwalk.Run], Part]
) -> Judgement:
    pairs = [(above(run), below(run)) for run in runs]
    logs = [one - other for (one, _), (other, _) in pairs]
    return judged_above(logs, 0.0, "ratio", _left_out([a + b for (_, a), (_, b) in pairs]), shown=math.exp)


def _differences(
    runs: Sequence[sgdwalk.Run], high: Callable[[sgdwalk.Run], float], low: Callable[[sgdwalk.Run], float]
) -> Judgement:
    return judged_above([high(run) - low(run) for run in runs], 0.0, "difference", "")


def _norms(run: sgdwalk.Run, after: float, up_to: float, last: int) -> Part:
    """Over the epochs of a stretch of the training, given as shares of the last epoch."""
    table, _ = _converged(run, "train")
    inside = _inside(table["epoch"], after, up_to, last)
    everything = curve(run)
    left_out = int((_inside(everything["epoch"], after, up_to, last) & everything["train"].isna()).sum())
    magnitudes = table.loc[inside, "train"].abs()
    return (float(np.log(magnitudes).mean()) if len(magnitudes) else math.nan), left_out


def _accuracy(run: sgdwalk.Run, after: float, up_to: float, last: int) -> float:
    if "validation_accuracy" not in run.epochs:
        return math.nan
    accuracy = run.epochs["validation_accuracy"]
    return float(accuracy[_inside(accuracy.index.to_series(), after, up_to, last)].mean())


def _inside(epochs: pd.Series, after: float, up_to: float, last: int) -> pd.Series:
    return (epochs > after * last) & (epochs <= up_to * last)


def _converged(run: sgdwalk.Run, *names: str) -> tuple[pd.DataFrame, int]:
    """The measurements of which all these are known, and how many others there are."""
    table = curve(run)
    known = table[list(names)].notna().all(axis=1) & (table[list(names)] != 0).all(axis=1)
    return table[known], int((~known).sum())


def _rank_correlation(x: pd.Series, y: pd.Series) -> float:
    """Spearman's."""
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _left_out(counts: Sequence[int]) -> str:
    total = sum(counts)
    return f" {total} measurement(s) had not converged and are left out." if total else ""
