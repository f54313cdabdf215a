"""What a budget buys: from the seconds of a step and of an evaluation to what is watched, and how exactly.

Arithmetic only: nothing here knows a clock or a model. Of these the first is taken that fits:

| method | watched updates | data of a watched update |
|---|---|---|
| exact | every one | all, at every point |
| certified | every one | all at the ends, a sample in between |
| certified, or exact where that is cheaper | one in k at random, at least 20 in a stretch | the same |
| sampled | one in k at random, at least 5 in a stretch | 4 evaluation batches |
| none | none | none: cosine, distance, norms and gauge at every update |

A stretch is an epoch, or 400 updates where an epoch is shorter or of unknown length; k is the smallest that fits. What
may be spent on an update is (budget - 1) × the seconds of a bare step. A fifth of it is kept in reserve, and from the
rest the columns of every update are paid first.

The choice is made once. An account kept along the way, which left out a step that is due while it is overdrawn, would
leave out what is dear, and what is dear depends on the losses (a certified step that needs the exact ones): means over
watched steps would be biased. So the reserve has to do, and what the watching came to is told at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sgdwalk.sample_sizes import fits, smallest
from sgdwalk.sampling import NUM_UNITS
from sgdwalk.text import count, number

PLANNED_SHARE = 0.8
"""Share of the allowance that is planned for; the rest is for the timing and for steps dearer than thought."""
STRETCH = 400
"""Updates over which means are wanted, at least; an epoch where that is longer."""
FEWEST_WATCHED = 20
"""Watched updates in a stretch, or it is sampled instead."""
FEWEST_SAMPLED = 5
"""Sampled updates in a stretch, or it is not worth it: an interval needs three."""
SAMPLES = 2
"""Samples of a certified step, in those of the smallest first look; steps plan larger ones by what they saw."""
EXACT_SHARE = 0.05
"""Share of certified steps that are taken to end exact: each hundredth does in any case."""
NOISE_COST = 2 * 10 / 100
"""Evaluations of one batch at each point for ``loss_noise``: ten batches in float64 at each hundredth watched step."""
SAMPLED_HALFWIDTH = 1.8
"""Half-width of a sampled mean height's 95 % interval, relative to it, times the root of the number of looks. Over
an epoch of 450 updates with 75 looks at 4 batches 1.5 was seen with an MLP on MNIST and with a small VGG-11 on CIFAR-10
(benchmarks/error_against_cost.py); a little more is expected where the start is not looked at densely."""

Method = Literal["exact", "certified", "sampled"]


@dataclass(frozen=True)
class Costs:
    """Seconds, as measured while the training runs."""

    step: float
    """A training step by itself."""
    columns: float
    """Cosine, distance, norms and gauge of an update."""
    overhead: float
    """What watching an update takes besides evaluations: guarding the training, committing the row."""
    evaluation: float
    """The loss of one evaluation batch at one point."""
    loss: float
    """``loss_fn`` on the output for one evaluation batch, as part of that."""
    look: float
    """What ``sampled`` does with one evaluation batch: outputs at three points, losses at all."""
    num_batches: int
    """Evaluation batches."""
    num_units: int
    """Parts of the data that ``certified`` draws from."""
    keeps_start: bool
    """Whether what was evaluated at the end of a segment serves as the start of the next."""

    @property
    def one_pass(self) -> float:
        """The full loss at one point."""
        return self.num_batches * self.evaluation


@dataclass(frozen=True)
class Plan:
    """What is watched, from the choice to the end of the run."""

    method: Method | None
    """None for no evaluation at all."""
    one_in: int
    """One update of so many is watched, drawn at random; 1 for every one, 0 for none."""
    num_batches: int
    """Evaluation batches that a watched update looks at."""
    cost: float
    """Expected cost of the watched training, as a multiple of the unwatched one."""
    precision: str
    """What precision to expect."""
    why: str
    """Why nothing better: what that would cost. Empty where there is nothing better."""

    def told(self, budget: float) -> str:
        """The choice in words."""
        often = "no update" if not self.one_in else "every update" if self.one_in == 1 else f"1 update in {self.one_in}"
        what = "only what needs no evaluation" if self.method is None else f"method {self.method} at {often}"
        drawn = f" with {self.num_batches} evaluation batches" if self.method == "sampled" else ""
        sentences = [
            f"budget={budget:g} chose {what}{drawn}, for about {number(self.cost)} times the unwatched training.",
            f"Precision to expect: {self.precision}.",
            f"{self.why}." if self.why else "",
        ]
        return " ".join(filter(None, sentences))


@dataclass(frozen=True)
class _Row:
    """A row of the table above."""

    method: Method
    seconds: float
    """Of a watched update, beyond the columns."""
    most: int
    """One update in so many is watched at least."""
    num_batches: int


def choose(
    costs: Costs, budget: float, *, num_points: int = 10, tolerance: float = 0.05, steps_per_epoch: int | None = None
) -> Plan:
    """The first row of the table that fits into the budget, thinned as far as it must be.

    Args:
        costs: seconds, with ``costs.step`` above 0.
        budget: what the watched training may cost, as a multiple of the unwatched one; above 1.
        num_points: intervals of a segment.
        tolerance: of ``certified``.
        steps_per_epoch: updates an epoch, None where it is not known.

    Returns:
        A plan whose cost is at most ``budget``, unless it watches nothing and the columns alone cost more. A larger
        budget never takes a later row, nor a larger k of the same.

    >>> costs = Costs(0.004, 0.001, 0.001, 0.0007, 0.00003, 0.002, 450, 450, keeps_start=True)
    >>> plan = choose(costs, 1.5, steps_per_epoch=450)
    >>> plan.method, plan.one_in, round(plan.cost, 2)
    ('sampled', 15, 1.4)
    """
    assert costs.step > 0, costs
    room = PLANNED_SHARE * (budget - 1) * costs.step - costs.columns
    stretch = max(steps_per_epoch or 0, STRETCH)
    refused = []
    for row in _rows(costs, num_points, stretch):
        one_in = max(1, math.ceil(row.seconds / room)) if room > 0 and math.isfinite(row.seconds) else math.inf
        if one_in <= row.most:
            one_in = int(one_in)
            cost = _multiple(costs, row.seconds / one_in)
            precision = _precision(row, one_in, tolerance, stretch, costs.num_batches)
            return Plan(row.method, one_in, row.num_batches, cost, precision, _why(costs, refused))
        refused.append(row)
    precision = "no height; the mean slope at the ends of updates with its interval, by sgdwalk.analysis.gauge_epochs"
    why = _why(costs, refused)
    if room <= 0:
        why = "What needs no evaluation takes all that is planned for already"
    return Plan(None, 0, 0, _multiple(costs, 0.0), precision, why)


def _rows(costs: Costs, num_points: int, stretch: int) -> Iterator[_Row]:
    every = costs.num_batches
    yield _Row("exact", exact_seconds(costs, num_points), 1, every)
    yield _Row("certified", certified_seconds(costs, num_points), 1, every)
    thinned = certified_seconds(costs, num_points, alone=True), exact_seconds(costs, num_points, alone=True)
    yield _Row("certified" if thinned[0] < thinned[1] else "exact", min(thinned), stretch // FEWEST_WATCHED, every)
    if costs.num_batches > 1:
        drawn = min(NUM_UNITS, every)
        yield _Row("sampled", costs.overhead + drawn * costs.look, stretch // FEWEST_SAMPLED, drawn)


def exact_seconds(costs: Costs, num_points: int, *, alone: bool = False) -> float:
    """An exact watched update; ``alone`` where the update before it is not watched.

    >>> exact_seconds(Costs(1, 0, 0, 1, 0, 3, 100, 100, keeps_start=True), 10) / 100
    10.022
    """
    passes = num_points + (alone or not costs.keeps_start)
    return costs.overhead + passes * costs.one_pass + _noise_seconds(costs, num_points)


def certified_seconds(costs: Costs, num_points: int, *, alone: bool = False) -> float:
    """A certified watched update, on average; ``alone`` where the update before it is not watched.

    Infinite where the data have too few units to sample from, so that every step would be exact.
    """
    sizes = smallest(costs.num_units, num_points)
    if not fits(sizes, costs.num_units):
        return math.inf
    ends = 1 + (alone or not costs.keeps_start)
    units = sizes.certain + sizes.first + (num_points - 2) * (sizes.certain + int(sizes.second.max()))
    passes = ends + SAMPLES * units / costs.num_units + EXACT_SHARE * num_points
    chord = costs.num_batches * (num_points - 1) * costs.loss
    return costs.overhead + passes * costs.one_pass + chord + _noise_seconds(costs, num_points)


def _noise_seconds(costs: Costs, num_points: int) -> float:
    return NOISE_COST * (num_points + 1) * costs.evaluation


def _multiple(costs: Costs, watching: float) -> float:
    return 1 + (costs.columns + watching) / costs.step


def _precision(row: _Row, one_in: int, tolerance: float, stretch: int, num_batches: int) -> str:
    over = "an epoch" if stretch > STRETCH else f"{STRETCH} updates"
    watched = f"; about {stretch // one_in:,} are watched in {over}" if one_in > 1 else ""
    if row.method == "exact":
        return f"losses and heights of watched updates to rounding (loss_noise){watched}"
    if row.method == "certified":
        return (
            f"the height of a watched update to within {100 * tolerance:g} % of it, or four times the loss noise where "
            f"that is more, at 95 %{watched}"
        )
    looks = stretch / one_in
    halfwidth = SAMPLED_HALFWIDTH * math.sqrt(min(NUM_UNITS, num_batches) / row.num_batches / looks)
    return (
        f"no single height; the mean height over {over} from {count(int(looks), 'look')} to within roughly "
        f"{100 * halfwidth:.0f} % at 95 %. That is a guess, as it depends on how much heights differ between updates: "
        "the interval itself comes with sgdwalk.analysis.sampled_epochs"
    )


def _why(costs: Costs, refused: list[_Row]) -> str:
    """What the rows that were passed over would have cost, at their widest spacing."""
    told: dict[str, str] = {}
    for row in refused:
        if math.isfinite(row.seconds):
            often = "every update" if row.most == 1 else f"1 update in {row.most}"
            drawn = f" with {row.num_batches} batches" if row.method == "sampled" else ""
            told[f"{row.method} at {often}{drawn}"] = number(_multiple(costs, row.seconds / row.most))
    return f"Times the training: {', '.join(f'{what} {cost}' for what, cost in told.items())}" if told else ""
