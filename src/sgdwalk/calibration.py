"""The time of the first updates and of an evaluation, measured inside the training that is to be watched.

A walk with a budget watches nothing until it has seen some bare steps of the user's own loop. Then it times a few
evaluations on the private copy, chooses (:mod:`sgdwalk.budget`), and holds to that. The training's own time is what
passes outside the walk's part of the optimizer's hooks, so nothing is run for the timing that would not run anyway.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.optim import SGD, Optimizer

from sgdwalk.budget import PLANNED_SHARE, Costs, Plan, choose
from sgdwalk.certified import Certification
from sgdwalk.hooks import Listener, UpdateHooks
from sgdwalk.measures import Here, Measured
from sgdwalk.measuring import Measuring
from sgdwalk.outputs import floats
from sgdwalk.passage import KEPT_BYTES
from sgdwalk.sampled import SampledSegments, unit_losses
from sgdwalk.text import count, number
from sgdwalk.units import source_of, units_of
from sgdwalk.when import StepPredicate, every, one_in

WARM_UP = 5
"""Updates before the first one that is timed: allocators, caches and kernels find their form."""
TIMED = 10
"""Updates whose median is the time of a step."""
BATCHES = 4
"""Evaluation batches that are timed together; one alone where it takes longer than a step."""
REPEATS = 3
"""Evaluations whose median counts, after one that does not; one alone where a batch takes longer than a step."""
CALLS = 20
"""Calls of the hooks that are timed together."""
EVICTED, MOST_EVICTED = 0.25, 0.1
"""Share of the time for what every update has that the step takes longer beside it, up to a share of the step: its
vectors push the training's out of the cache. Seen with the paper's MLP, whose columns take 1.3 ms beside a step of 3.7
(benchmarks/budget.py)."""
PAUSE = 4
"""Times a step beyond which what passes between two updates is no slow step, but something else that the loop does."""

Schedules = dict[str, StepPredicate | None]
Measures = dict[str, Callable[[Here], Measured]]


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class BudgetedWalk(Listener, Protocol):
    """What a budget asks of the walk."""

    def choose(self) -> None:
        """Enough is timed: decide what is watched from the next update on."""


class Budgeted:
    """One walk's budget: times its first updates, makes the choice, and keeps the account.

    Args:
        budget: what the watched training may cost, as a multiple of the unwatched one.
        measuring: evaluates L.
        certification: how certified segments are wanted, if it comes to them; its seed draws the watched updates too.
        steps_per_epoch: updates an epoch, None where it is not known.
        hooked: whether updates are seen through optimizer hooks, not told by hand.
    """

    def __init__(
        self,
        budget: float,
        measuring: Measuring,
        certification: Certification,
        steps_per_epoch: int | None,
        hooked: bool,
    ):
        self.budget = budget
        self.training_seconds = self.watching_seconds = 0.0
        """Since the first update: outside and inside the walk's part of the hooks."""
        self.unwatched_seconds = 0.0
        """What the training would have taken by itself; see :meth:`step_done`."""
        self.step_seconds: float | None = None
        """A training step by itself; None before enough were timed."""
        self._counted = 0.0
        """The training's seconds that are in ``unwatched_seconds`` already."""
        self._measuring = measuring
        self._certification = certification
        self._steps_per_epoch = steps_per_epoch
        self._hooked = hooked
        self._device = measuring.full_loss.site.vector.device
        self._plan: Plan | None = None
        self._left: float | None = None
        self._steps: list[tuple[float, float]] = []

    # --- the account -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """What runs inside is the watching's; what passes until the next time is the training's."""
        entered = now(self._device)
        if self._left is not None:
            self.training_seconds += entered - self._left
        try:
            yield
        finally:
            self._left = now(self._device)
            self.watching_seconds += self._left - entered

    def step_done(self) -> bool:
        """Take note of an update; True where enough of them are timed to choose.

        The training's own steps are slower beside evaluations, which take the caches from them: so each counts as at
        most what one took before the first evaluation. What lasts far longer is a pause, the loop's own work.
        """
        seconds, self._counted = self.training_seconds - self._counted, self.training_seconds
        step = self.step_seconds
        self.unwatched_seconds += seconds if step is None else min(seconds, step) + max(0.0, seconds - PAUSE * step)
        if self._plan is not None or len(self._steps) == WARM_UP + TIMED:
            return False
        self._steps.append((self.training_seconds, self.watching_seconds))
        return len(self._steps) == WARM_UP + TIMED

    def met(self) -> str:
        """What the watching came to, in words."""
        if not self.unwatched_seconds:
            return ""
        total = self.training_seconds + self.watching_seconds
        told = (
            f"From its first update the training took {number(total / self.unwatched_seconds)} times as long as by "
            f"itself (budget {self.budget:g})"
        )
        if self.step_seconds is None:
            return f"{told}."
        return (
            f"{told}, a step counted as {number(1000 * self.step_seconds)} ms, by what it took before any evaluation."
        )

    # --- the choice --------------------------------------------------------------------------------------------------

    def choose(self, commit: Callable[[], None]) -> tuple[Plan, str]:
        """Time some evaluations and choose; returns the plan, and what to tell.

        Args:
            commit: stores a row, as after every watched update.
        """
        began = now(self._device)
        step, columns = (
            statistics.median(later - earlier for earlier, later in itertools.pairwise(totals))
            for totals in zip(*self._steps[WARM_UP - 1 :], strict=True)
        )
        evicted = min(EVICTED * columns, MOST_EVICTED * step) if self._device.type == "cpu" else 0.0
        beside = self._hook_seconds() + evicted
        step = self.step_seconds = max(step - beside, 1e-9)
        costs = self._costs(step, columns + beside, commit)
        plan = choose(
            costs,
            self.budget,
            num_points=self._measuring.num_points,
            tolerance=self._certification.tolerance,
            steps_per_epoch=self._steps_per_epoch,
        )
        seconds = now(self._device) - began
        reserve = (1 - PLANNED_SHARE) * (self.budget - 1) * costs.step
        return plan, (
            f"{plan.told(self.budget)} Measured: {number(1000 * costs.step)} ms for a step, "
            f"{number(1000 * costs.columns)} ms for what every update has, {number(1000 * costs.one_pass)} ms for one "
            f"evaluation of the full loss. Timing that took as long as {count(round(seconds / costs.step), 'step')}, "
            f"which the reserve makes up for within {count(round(seconds / reserve), 'update')}."
        )

    def follow(self, plan: Plan | None) -> tuple[Schedules, Measures]:
        """Hold to a plan: the schedules and the measures that it stands for; none before there is one."""
        self._plan = plan
        self._measuring.certify(None)
        if plan is None or plan.method is None:
            return {}, {}
        seed, num_points = self._certification.seed, self._measuring.num_points
        when = every(1) if plan.one_in == 1 else one_in(plan.one_in, seed=seed)
        if plan.method == "sampled":
            return {"sampled": when}, {"sampled": SampledSegments(plan.num_batches, num_points=num_points, seed=seed)}
        if plan.method == "certified":
            # The plan's price and precision are those of ends over all data.
            self._measuring.certify(self._certification._replace(largest_pass=None))
        return {"segment": when}, {}

    def _costs(self, step: float, columns: float, commit: Callable[[], None]) -> Costs:
        """Evaluate a few batches where training stands, and keep nothing of it but the time."""
        full_loss, num_points = self._measuring.full_loss, self._measuring.num_points
        data, site = full_loss.data, full_loss.site
        mean_size = data.num_examples / len(data)

        def enter() -> None:
            with full_loss.evaluating():
                full_loss.fingerprint()

        overhead = self._median(enter, REPEATS) + self._median(commit, 1)  # a second commit has nothing to store
        with full_loss.evaluating():
            site.write(site.here)
            output, target = full_loss.outputs(0)
            size = sum(tensor.numel() * tensor.element_size() for tensor in floats(output)) / data.sizes[0]
            num_units = len(units_of(source_of(full_loss)[0]))
            quick = self._median(lambda: full_loss.sums(1), 1) < step
            repeats, batches = (REPEATS, list(range(min(BATCHES, len(data))))) if quick else (1, [0])
            loss = self._median(lambda: full_loss.sum_and_count(output, target, data.sizes[0]), REPEATS)
            evaluation = self._median(lambda: full_loss.sums(len(batches)), repeats)
            look = self._median(lambda: unit_losses(full_loss, site.here, site.here, batches, num_points), repeats)
            unmoved = self._measuring.only_parameters_moved()
        share = mean_size / sum(data.sizes[index] for index in batches)
        return Costs(
            step,
            columns,
            overhead,
            evaluation=evaluation * share,
            loss=loss * mean_size / data.sizes[0],
            look=look * share,
            num_batches=len(data),
            num_units=num_units,
            keeps_start=unmoved and 2 * size * data.num_examples <= KEPT_BYTES,
        )

    def _hook_seconds(self) -> float:
        """What the hooks of an update take by themselves, before and after the walk's part of them."""
        if not self._hooked:
            return 0.0
        stand_in = SGD([torch.zeros(1, requires_grad=True)])
        hooks = UpdateHooks([stand_in], Silent())
        before, after = (
            next(iter(each.values()))
            for each in (stand_in._optimizer_step_pre_hooks, stand_in._optimizer_step_post_hooks)
        )

        def call() -> None:
            for _ in range(CALLS):
                before(stand_in, (stand_in,), {})
                after(stand_in, (stand_in,), {})

        seconds = self._median(call, REPEATS) / CALLS
        hooks.remove()
        return seconds

    def _median(self, run: Callable[[], object], repeats: int) -> float:
        if repeats > 1:
            run()
        seconds = []
        for _ in range(repeats):
            began = now(self._device)
            run()
            seconds.append(now(self._device) - began)
        return statistics.median(seconds)

    # --- to go on with -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        plan = None if self._plan is None else dataclasses.asdict(self._plan)
        return {
            "plan": plan,
            "training_seconds": self.training_seconds,
            "watching_seconds": self.watching_seconds,
            "unwatched_seconds": self.unwatched_seconds,
            "step_seconds": self.step_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Plan | None:
        """Go on with the account; returns the plan to be held to, None where none was made yet."""
        self.training_seconds, self.watching_seconds = state["training_seconds"], state["watching_seconds"]
        self.unwatched_seconds, self.step_seconds = state["unwatched_seconds"], state["step_seconds"]
        self._counted = self.training_seconds
        self._left, self._steps = None, []
        return None if state["plan"] is None else Plan(**state["plan"])


class Silent:
    """A listener that does nothing with what it is told."""

    def before_update(self) -> None: ...
    def gradients_final(self, optimizer: Optimizer, *, keep: bool) -> None: ...
    def after_update(self) -> None: ...
    def update_skipped(self) -> None: ...
    def round_incomplete(self) -> None: ...


class Timed:
    """Stands between the hooks and a walk with a budget, and tells its time from the training's."""

    def __init__(self, walk: BudgetedWalk, budgeted: Budgeted):
        self._walk, self._budgeted = walk, budgeted

    def before_update(self) -> None:
        with self._budgeted.watching():
            self._walk.before_update()

    def gradients_final(self, optimizer: Optimizer, *, keep: bool) -> None:
        with self._budgeted.watching():
            self._walk.gradients_final(optimizer, keep=keep)

    def after_update(self) -> None:
        with self._budgeted.watching():
            self._walk.after_update()
        if self._budgeted.step_done():
            with self._budgeted.watching():
                self._walk.choose()

    def update_skipped(self) -> None:
        with self._budgeted.watching():
            self._walk.update_skipped()

    def round_incomplete(self) -> None:
        with self._budgeted.watching():
            self._walk.round_incomplete()
