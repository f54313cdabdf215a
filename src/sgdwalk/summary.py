"""A run in plain words: what it shows, said so that someone who never read the paper understands it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from sgdwalk.analysis import gauge_totals, sampled_totals, totals
from sgdwalk.columns import edge_ratios, looked_at, measure_columns, sampled_measures
from sgdwalk.records import EXACT_LOOK
from sgdwalk.text import count, number, plain

if TYPE_CHECKING:
    from sgdwalk.run import Run


NEAR = 0.9
"""Of the updates after which distances are compared; a walk not looked at since is left out."""
ROUGH = 0.5
"""Half-width of an interval, relative to the height, from which on a single height says little."""


def describe(run: Run) -> list[str]:
    """What a walk did, in five plain sentences: how far it was watched, its bounces, its barriers, its turns, its way.

    One more where its losses are estimated, one where it has a gauge, and one for each of its measures that has a
    threshold: how near it came.

    >>> len(describe(run))
    5
    """
    numbers = totals(run)
    return [
        _about_the_loss(run, numbers),
        _about_the_floor(run, numbers),
        _about_barriers(run, numbers),
        _about_turns(run, numbers),
        _about_the_way(run, numbers),
        *_about_the_estimate(run),
        *_about_the_gauge(run),
        *_about_edges(run),
    ]


def _about_the_loss(run: Run, numbers: dict[str, Any]) -> str:
    epochs = run.steps["epoch"].nunique()
    over = f" in {count(epochs, 'epoch')}" if epochs else ""
    made = f"{plain(run.name, 60)} made {count(numbers['num_updates'], 'update')}{over}"
    losses = run.steps[["loss", "next_loss"]].dropna()
    if losses.empty and (names := sampled_measures(run)):
        num_sampled = sampled_totals(run, names[0])["num_sampled"]
        return f"{made}; the full training loss was sampled along {num_sampled:,} of them."
    if losses.empty:
        return f"{made}; the full training loss was measured along none of them."
    num_estimated = run.segments.loc[run.segments["kind"] == "estimated", "step"].nunique()
    how = {0: "measured", numbers["num_watched"]: "estimated"}.get(num_estimated, "measured or estimated")
    return (
        f"{made}; the full training loss was {how} along {numbers['num_watched']:,} of them and went from "
        f"{number(losses['loss'].iloc[0])} to {number(losses['next_loss'].iloc[-1])}."
    )


def _about_the_estimate(run: Run) -> list[str]:
    if "looks" not in run.steps:
        return []
    steps = run.steps[run.steps["looks"].notna()]
    estimated = steps[steps["looks"] < EXACT_LOOK]
    if estimated.empty:
        return [f"No height is estimated: the floor is exact along all of {count(len(steps), 'segment')}."]
    told = f"Its height is estimated along {len(estimated):,} of {count(len(steps), 'segment')}"
    widths = (estimated["height_high"] - estimated["height_low"]) / 2 / estimated["height"]
    return [f"{told}{_how_well(widths.median())}."]


def _how_well(halfwidth: float) -> str:
    """What the median half-width of the 95 % intervals, relative to the height, says of single heights.

    >>> _how_well(0.0137)
    ', to within 1.4 % of it (the median of the 95 % intervals)'
    """
    if math.isnan(halfwidth):
        return ""
    if halfwidth >= ROUGH:
        return (
            ", only roughly: half of the 95 % intervals reach at least "
            f"{number(halfwidth)} times the height to either side"
        )
    width = "less than 0.1 %" if halfwidth < 0.001 else f"{number(100 * halfwidth, 2)} %"
    return f", to within {width} of it (the median of the 95 % intervals)"


def _about_the_floor(run: Run, numbers: dict[str, Any]) -> str:
    defined = numbers["num_watched"] - numbers["undefined_heights"]
    if numbers["num_watched"] == 0:
        names = sampled_measures(run)
        unknown = "How high it walks above the valley floor is unknown: no segment was measured."
        return _about_samples(sampled_totals(run, names[0])) if names else unknown
    if defined == 0:
        return "How high it walks above the valley floor is unknown: no segment has finite losses throughout."
    interior = round(numbers["interior_floor_share"] * defined)
    height = f"its mean height above the valley floor is {number(numbers['mean_height'])}"
    some = f"{interior:,}" if interior else "none"
    between = f"on {some} of {count(defined, 'step')} the loss is lowest between the two iterates"
    if 2 * interior >= defined:
        return f"It bounces between the walls of a valley: {between}, and {height}."
    # Where the loss falls all the way, the floor is where the step ends.
    only = "only " if interior else ""
    return f"It mostly walks downhill: {only}{between}; {height} (half of its descent, of a step that passes no floor)."


def _about_samples(found: dict[str, Any]) -> str:
    defined = found["num_sampled"] - found["undefined"]
    if defined == 0:
        return f"How high it walks above the valley floor is unknown: {_without_heights(found['num_sampled'])}."
    known = confidence(found["height_low"], found["height_high"], "an interval needs three sampled steps")
    batches = (
        ""
        if pd.isna(found["num_units"])
        else f"{count(found['num_units'], 'evaluation batch', 'evaluation batches')} of "
    )
    return (
        f"Its mean height above the valley floor is {number(found['mean_height'])}{known}, from {batches}"
        f"{count(defined, 'sampled step')}; on {100 * found['bounce_share']:.0f} % of the updates, as far as these "
        "stand for all, the sampled loss is lowest between the two iterates."
    )


def _without_heights(num_sampled: int) -> str:
    return (
        "no step was sampled"
        if num_sampled == 0
        else f"a loss along every one of {num_sampled:,} sampled steps is not finite"
    )


def confidence(low: float, high: float, why_not: str) -> str:
    """An interval in words, or why there is none."""
    return f" ({why_not})" if pd.isna(low) else f" ({number(low)} to {number(high)} with 95 % confidence)"


def _about_the_gauge(run: Run) -> list[str]:
    if "gauge" not in run.steps:
        return []
    found = gauge_totals(run)
    if math.isnan(found["mean_gauge"]):
        return ["The mean slope at the end of its updates is unknown."]
    updates, all_looked_at = found["num_updates"], found["num_gauged"] + found["undefined"] == found["num_updates"]
    which, they = "its updates", "they"
    if not all_looked_at:
        which, they = f"{found['num_gauged']:,} of its {updates:,} updates", "these"
    low, high = found["gauge_low"], found["gauge_high"]
    if low > 0:
        tells = f": on average {they} go past the floor of their segment"
    elif high < 0:
        tells = ": on average the loss still falls there"
    else:
        tells = f"; whether {they} go past the floor of their segment it does not tell"
    known = confidence(low, high, "an interval needs nine updates with a gauge")
    return [f"The mean slope of the loss at the end of {which} is {number(found['mean_gauge'])}{known}{tells}."]


def _about_barriers(run: Run, numbers: dict[str, Any]) -> str:
    watched, crossed, undecided = (numbers[name] for name in ("num_watched", "num_barriers", "undecided_barriers"))
    defined, undefined = watched - numbers["undefined_barriers"], numbers["undefined_barriers"] - undecided
    if watched == 0:
        return f"Whether it crosses barriers is unknown{': samples do not tell' if sampled_measures(run) else ''}."
    if defined == watched:
        told = f"It crosses {f'a barrier on {crossed:,} of' if crossed else 'no barrier in'} {count(defined, 'step')}"
    else:
        parts = [f"{what} on {n:,}" for what, n in (("undecided", undecided), ("undefined", undefined)) if n]
        why = ", as the intervals of the losses are too wide to tell" if undecided else ""
        told = f"Whether it crosses a barrier is {' and '.join(parts)} of {count(watched, 'step')}{why}"
        if defined:
            told += f"; on {f'{crossed:,} of ' if crossed else ''}the other {defined:,} it crosses "
            told += "one" if crossed else "none"
    if not (defined and crossed):
        return f"{told}."
    if pd.isna(numbers["num_significant_barriers"]):
        return f"{told}; how many of them exceed the noise of the loss was not measured."
    return f"{told}; {numbers['num_significant_barriers']:,} of them rise above twice the noise of the loss."


def cosines_known(numbers: dict[str, Any]) -> str:
    """Of how many updates a mean cosine is; '' where all were looked at.

    >>> cosines_known({"num_updates": 400, "num_looked_at": 40, "undefined_cosines": 1})
    'over 39 of 400 updates'
    """
    looked, updates = numbers["num_looked_at"], numbers["num_updates"]
    return "" if looked == updates else f"over {looked - numbers['undefined_cosines']:,} of {count(updates, 'update')}"


def _about_turns(run: Run, numbers: dict[str, Any]) -> str:
    if math.isnan(numbers["mean_cosine"]):
        turns = "The angle between consecutive gradients is unknown"
    else:
        side = next(words for bound, words in _TURNS if numbers["mean_cosine"] <= bound)
        if side == PERPENDICULAR and run.steps["cosine"].abs().median() > ACROSS:  # those that cancel in the mean
            side = "point now the same way, now against each other"
        mean = f"mean cosine {number(numbers['mean_cosine'])}"
        turns = f"Consecutive gradients {side} ({', '.join(filter(None, (mean, cosines_known(numbers))))})"
    defined = numbers["num_watched"] - numbers["undefined_alpha_stars"]
    if defined == 0:
        return f"{turns}."
    over = round(numbers["over_edge_share"] * defined)
    higher = "by the fitted parabola land higher than they left (α* below ½)"
    return f"{turns}; {over:,} of {count(defined, 'step')} {higher}."


ACROSS = 0.2
"""Cosine up to which gradients count as perpendicular."""
PERPENDICULAR = "are close to perpendicular"
_TURNS = (
    (-0.8, "point in nearly opposite directions"),
    (-ACROSS, "point mostly against each other"),
    (ACROSS, PERPENDICULAR),
    (0.8, "point mostly the same way"),
    (math.inf, "point in nearly the same direction"),
)


def _about_the_way(run: Run, numbers: dict[str, Any]) -> str:
    if math.isnan(numbers["distance"]):
        return "How far it came from its start is unknown."
    at_the_end = numbers["distance_after"] == run.steps.index[-1] + 1
    when = "It ends" if at_the_end else f"After {count(numbers['distance_after'], 'update')} it was"
    way = f"{when} at distance {number(numbers['distance'])} from its start"
    if math.isnan(numbers["directness"]):
        return f"{way}."
    return f"{way}, which is {number(100 * numbers['directness'])} % of the length of the path it took."


MOST_EDGES = 4
"""More measures with a threshold are left to the figures."""


def _about_edges(run: Run) -> list[str]:
    """How measures stand to their thresholds, spectral norm and batch sharpness to 2/η, say; by endings of columns."""
    names = [name for name in measure_columns(run) if f"{name}_threshold" in run.steps][:MOST_EDGES]
    return [_about_edge(run.steps, name, plain(name.replace("_", " "), 40)) for name in names]


def _about_edge(steps: pd.DataFrame, name: str, said: str) -> str:
    ratios, values = edge_ratios(steps, name), steps[name].dropna()
    if len(ratios):
        last = f"{number(values.loc[ratios.index[-1]])} at step {ratios.index[-1]:,}"
        over = f"{int((ratios > 1).sum()):,} of {count(len(ratios), 'measured step')}"
        return f"Its {said} was {last}, {number(ratios.iloc[-1])} times its threshold there; it was above it at {over}."
    column = f"{name}_threshold" if len(values) else name
    reasons = steps[f"{column}_reason"].dropna() if f"{column}_reason" in steps else values[:0]
    why = f": {plain(reasons.iloc[-1])}" if len(reasons) else ""
    if values.empty:
        return f"Its {said} is unknown{why}."
    last = f"{number(values.iloc[-1])} at step {values.index[-1]:,}"
    return f"Its {said} was {last}; there is no threshold to compare it with{why}."


def describe_together(runs: Sequence[Run]) -> list[str]:
    """What several walks show side by side; distances are compared after the same number of updates, or nearly.

    >>> describe_together([run])
    []
    """
    if len(runs) < 2:
        return []
    sentences = []
    shortest = min(len(run.steps) for run in runs)
    steps = [run.steps[:shortest] for run in runs]
    over = f"over the first {count(shortest, 'update')}" if max(len(run.steps) for run in runs) > shortest else ""
    if len({str(run.info.get("data")) for run in runs}) > 1:
        sentences.append("The full losses were measured on different data: heights of these runs cannot be compared.")
    else:
        heights = [table["height"].mean() for table in steps]
        mean = f"on average {over}".strip()
        higher = f"{{}} walks higher above the valley floor than {{}}: {{}} {mean}, against {{}}."
        highest = f"{{}} walks highest above the valley floor: {{}} {mean}; {{}}."
        sentences.append(_ranked(runs, heights, higher, highest))
    cosines = [table["cosine"].mean() for table in steps]
    mean = f"mean cosine {over}".strip()
    sharper = f"{{}} turns back more sharply than {{}}: {mean} {{}}, against {{}}."
    sharpest = f"{{}} turns back most sharply: {mean} {{}}; {{}}."
    sentences.append(_ranked(runs, cosines, sharper, sharpest, lowest_first=True))
    looked = [run.steps.index[looked_at(run)] for run in runs]
    if all(map(len, looked)):
        last = min(steps[-1] for steps in looked)
        nearest = [steps[steps <= last][-1] if steps[0] <= last else -1 for steps in looked]
        about = "" if min(nearest) == last else "about "
        after = f"After {about}{count(last + 1, 'update')} "
        distances = [
            run.steps["next_distance"].loc[step] if step >= NEAR * last else math.nan
            for run, step in zip(runs, nearest, strict=True)
        ]
        farther = after + "{} is farther from its start than {}: at {}, against {}."
        farthest = after + "{} is farthest from its start: at {}; {}."
        sentences.append(_ranked(runs, distances, farther, farthest))
    return [sentence for sentence in sentences if sentence]


def _ranked(runs: Sequence[Run], values: list[float], of_two: str, of_many: str, *, lowest_first: bool = False) -> str:
    """The first run in order of the values beside the others; '' unless two values are known and differ."""
    known = [(value, plain(run.name, 60)) for value, run in zip(values, runs, strict=True) if not math.isnan(value)]
    known.sort(key=lambda pair: pair[0], reverse=not lowest_first)
    shown = [(number(value), name) for value, name in known]
    if len({value for value, _ in shown}) < 2:
        return ""
    (first_value, first), *others = shown
    if len(others) == 1:
        return of_two.format(first, others[0][1], first_value, others[0][0])
    return of_many.format(first, first_value, ", ".join(f"{name} {value}" for value, name in others))
