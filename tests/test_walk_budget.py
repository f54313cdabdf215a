"""``watch(budget=...)`` on whole trainings, by a clock that only tells what the test lets pass."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional
from torch.optim import SGD

import nets
import sgdwalk
from sgdwalk import calibration
from sgdwalk.budget import Plan

CHOSEN = 15
"""The first update that can be watched: 5 to warm up and 10 that are timed come before."""
STEP, COLUMNS = 1.0, 1e-3
"""Seconds of a training step, and of whatever the hooks do: the clock is read twice, before and after."""
READS = 6
"""Readings of the clock in an update: on entering and leaving the hooks' three calls."""


class Clock:
    """Advances by a step for a forward pass of the training, by less for one of an evaluation, by little when read."""

    def __init__(self, monkeypatch):
        self.seconds, self.evaluation, self.training, self.slowed = 0.0, 0.0, 0.0, 1.0
        monkeypatch.setattr(calibration, "now", self.read)

    def read(self, device):
        self.seconds += COLUMNS / READS
        return self.seconds

    def forward(self, module, arguments, output):
        if sgdwalk.is_measuring():
            self.seconds += self.evaluation
        else:
            self.seconds += STEP * self.slowed
            self.training += STEP


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


EVALUATION = {"exact": 1e-4, "certified": 0.04, "sampled": 0.5, None: 50.0}
"""Seconds of an evaluation batch with which ``budget=5`` and forty batches make each choice."""
DATA = nets.classification(800)
BATCHED = {"batch_size": 20, "on_error": "raise"}


def built(clock, *, dropout=0.0, seed=0):
    model = nets.mlp(dropout=dropout, batchnorm=True, seed=seed)
    model.register_forward_hook(clock.forward)
    return model, SGD(model.parameters(), lr=0.3, momentum=0.9)


def watched(clock, model, optimizer, evaluation, **watching):
    clock.evaluation = evaluation
    data = watching.pop("data", DATA)
    return sgdwalk.watch(model, optimizer, functional.cross_entropy, data, **{**BATCHED, "budget": 5, **watching})


def train(model, optimizer, steps):
    for step in steps:
        rows = torch.randint(len(DATA[0]), (20,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        functional.cross_entropy(model(DATA[0][rows]), DATA[1][rows]).backward()
        optimizer.step()


def run_of(clock, evaluation, *, steps: int = 40, seed: int = 0, **watching: Any):
    model, optimizer = built(clock, seed=seed)
    with watched(clock, model, optimizer, evaluation, **watching) as walk:
        train(model, optimizer, range(steps))
    return walk


def plan_of(walk) -> Plan:
    assert walk.plan is not None
    return walk.plan


def watched_steps(walk):
    steps = walk.run.steps
    heights = steps["sampled_height"] if plan_of(walk).method == "sampled" else steps["height"]
    return list(steps.index[heights.notna()])


def state_after(clock, updates, evaluation=None, **watching):
    """All of a training after some updates, and its walk if it was watched, by evaluations of so many seconds."""
    nets.seed_everything(3)
    model, optimizer = built(clock, dropout=0.2)
    walk = None if evaluation is None else watched(clock, model, optimizer, evaluation, **watching)
    train(model, optimizer, range(updates))
    return nets.everything(model, [optimizer]), walk


# --- the walk is the user's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("method", EVALUATION, ids=str)
def test_training_is_bitwise_what_it_is_unwatched(clock, method, evaluate_on):
    state, walk = state_after(clock, CHOSEN + 5, EVALUATION[method], evaluate_on=evaluate_on)
    assert walk is not None
    assert plan_of(walk).method == method
    nets.assert_identical(state, state_after(clock, CHOSEN + 5)[0])


@pytest.mark.parametrize("updates", [5, CHOSEN - 1, CHOSEN])
def test_the_timing_itself_leaves_nothing_behind(clock, updates):
    """Right before and right after the evaluations that are timed."""
    state, walk = state_after(clock, updates, EVALUATION["sampled"])
    assert walk is not None
    assert (walk.plan is None) == (updates < CHOSEN)
    nets.assert_identical(state, state_after(clock, updates)[0])


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVALUATION, ids=str)
def test_what_is_watched_is_what_was_chosen(clock, method):
    walk = run_of(clock, EVALUATION[method], steps=80)
    assert plan_of(walk).method == method
    due = sgdwalk.one_in(plan_of(walk).one_in) if plan_of(walk).one_in > 1 else lambda step: plan_of(walk).one_in == 1
    assert watched_steps(walk) == [step for step in range(CHOSEN, 80) if due(step)]
    steps = walk.run.steps
    assert steps["distance"].notna().all()
    assert steps["gauge"].notna().sum() == 79
    assert ("looks" in steps) == (method == "certified")
    assert list(walk.run.events["kind"]) == ["budget_chosen", "budget_met"]


def test_the_losses_are_those_of_a_walk_that_was_told_so(clock):
    walk = run_of(clock, EVALUATION["certified"], steps=30)
    told = run_of(
        clock,
        EVALUATION["certified"],
        steps=30,
        budget=None,
        method="certified",
        when=lambda step: step in watched_steps(walk),
    )
    pd.testing.assert_frame_equal(walk.run.segments, told.run.segments, check_exact=True)


def test_the_ends_of_what_a_budget_chose_are_over_all_data_whatever_the_largest_pass(clock):
    """Its price and its precision are those of such ends."""
    walk = run_of(clock, EVALUATION["certified"], steps=30, largest_pass=300)
    assert plan_of(walk).method == "certified"
    pd.testing.assert_frame_equal(
        walk.run.segments, run_of(clock, EVALUATION["certified"], steps=30).run.segments, check_exact=True
    )
    assert (walk.run.steps["examples_evaluated"].dropna() >= len(DATA[0])).all()


def test_costs_are_what_the_clock_says(clock, monkeypatch):
    seen = []
    choose = calibration.choose
    monkeypatch.setattr(
        calibration, "choose", lambda costs, *rest, **more: seen.append(costs) or choose(costs, *rest, **more)
    )
    run_of(clock, 0.05, data=nets.classification(810), steps_per_epoch=7)
    (costs,) = seen
    # A reading of the clock takes a little, too, on whichever side it falls.
    assert costs.step == pytest.approx(STEP, abs=COLUMNS)
    # The hooks themselves, twenty calls of which are timed together, are no part of the step, nor is what the columns
    # make it wait for.
    columns = COLUMNS / 2 * (1 + calibration.EVICTED)
    assert costs.columns == pytest.approx(columns + COLUMNS / READS / calibration.CALLS, rel=1e-6)
    # Four batches of 20 were timed; the forty-one of 810 hold 19.76 on average.
    assert costs.evaluation == pytest.approx(0.05 * 4 * (810 / 41) / 80, rel=0.01)
    assert costs.look == pytest.approx(3 * costs.evaluation, rel=0.1)
    assert costs.loss < 2 * COLUMNS
    assert costs.overhead < 2 * COLUMNS
    assert (costs.num_batches, costs.num_units) == (41, 41)
    assert costs.keeps_start


def test_buffers_that_the_loss_reads_and_that_move_are_seen(clock, monkeypatch):
    seen = []
    monkeypatch.setattr(calibration, "choose", lambda costs, *_, **__: seen.append(costs))
    for batchnorm in ("eval", "train"):
        run_of(clock, 0.05, steps=CHOSEN, on_error="disable", batchnorm=batchnorm)
    assert [costs.keeps_start for costs in seen] == [False, True]


def test_which_updates_are_watched_does_not_depend_on_what_they_are(clock):
    walks = [run_of(clock, EVALUATION["sampled"], steps=60, seed=seed) for seed in (0, 1)]
    assert plan_of(walks[0]).one_in == plan_of(walks[1]).one_in > 1
    assert watched_steps(walks[0]) == watched_steps(walks[1])
    assert not np.array_equal(walks[0].run.steps["grad_norm"], walks[1].run.steps["grad_norm"])


def test_the_choice_is_told_once_and_recorded(clock, caplog, tmp_path):
    with caplog.at_level(logging.WARNING, "sgdwalk"):
        walk = run_of(clock, EVALUATION["certified"], run=tmp_path / "run", tolerance=0.1)
    (record,) = caplog.records
    stored = sgdwalk.open_run(tmp_path / "run")
    event = stored.events.iloc[0]
    assert (event["kind"], event["step"]) == ("budget_chosen", CHOSEN)
    assert record.getMessage() == f"step {CHOSEN}: {event['message']}"
    assert event["message"].startswith(plan_of(walk).told(5))
    assert "within 10 %" in event["message"]
    settings = stored.info["settings"]
    assert (settings["budget"], settings["tolerance"], settings["sampling_seed"]) == (5, 0.1, 0)
    assert settings["method"] == settings["when"] == "chosen by the budget"


@pytest.mark.parametrize("method", EVALUATION, ids=str)
def test_the_cost_that_was_met_is_told_at_the_end(clock, method):
    model, optimizer = built(clock)
    with watched(clock, model, optimizer, EVALUATION[method]) as walk:
        before = clock.seconds
        train(model, optimizer, range(100))
    (told,) = map(float, re.findall(r"took (\S+) times", walk.run.events.iloc[-1]["message"]))
    # The first step of the training passed before the first update, so that it was not seen.
    assert told == pytest.approx((clock.seconds - before - STEP) / (clock.training - STEP), abs=0.01)
    assert told < 5


@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_steps_that_the_watching_slows_down_are_its_cost(clock, method):
    model, optimizer = built(clock)
    with watched(clock, model, optimizer, EVALUATION[method]) as walk:
        before = clock.seconds
        train(model, optimizer, range(CHOSEN))
        clock.slowed = 1.5
        train(model, optimizer, range(CHOSEN, 100))
    (told,) = map(float, re.findall(r"took (\S+) times", walk.run.events.iloc[-1]["message"]))
    assert told == pytest.approx((clock.seconds - before - STEP) / (clock.training - STEP), abs=0.02)
    assert "a step counted as 1,000 ms" in walk.run.events.iloc[-1]["message"]


def test_a_pause_between_updates_is_the_loops_own_time(clock):
    model, optimizer = built(clock)
    with watched(clock, model, optimizer, EVALUATION["exact"]) as walk:
        before = clock.seconds
        train(model, optimizer, range(50))
        clock.seconds += 100 * STEP  # a validation, say
        clock.training += 100 * STEP
        train(model, optimizer, range(50, 100))
    (told,) = map(float, re.findall(r"took (\S+) times", walk.run.events.iloc[-1]["message"]))
    assert told == pytest.approx((clock.seconds - before - STEP) / (clock.training - STEP), abs=0.03)


def test_a_training_too_short_to_be_timed_says_so(clock, caplog):
    with caplog.at_level(logging.WARNING, "sgdwalk"):
        walk = run_of(clock, EVALUATION["exact"], steps=CHOSEN - 1)
    assert walk.plan is None
    assert list(walk.run.events["kind"]) == ["budget_unused"]
    assert "ended after 14 updates" in caplog.text


def test_by_hand_it_is_the_same(clock):
    model, _ = built(clock)
    with watched(clock, model, None, EVALUATION["exact"]) as walk:
        for _ in range(CHOSEN + 3):
            model.zero_grad()
            functional.cross_entropy(model(DATA[0]), DATA[1]).backward()
            walk.before_step(learning_rate=0.1)
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad
            walk.after_step()
    assert plan_of(walk).method == "exact"
    assert watched_steps(walk) == [CHOSEN, CHOSEN + 1, CHOSEN + 2]


def test_measures_with_steps_of_their_own_are_taken(clock):
    measures = {"loss_there": sgdwalk.at(sgdwalk.every(10), lambda here: here.loss())}
    walk = run_of(clock, EVALUATION["exact"], measures=measures)
    taken = walk.run.steps["loss_there"].dropna()
    assert list(taken.index) == [0, 10, 20, 30]
    assert taken[20] == walk.run.steps["loss"][20]


# --- going on ---------------------------------------------------------------------------------------------------------


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def in_parts(clock, first, second, folder, *, stop, evaluations):
    """A training that is cut off some updates after its state was saved, and goes on from there."""
    model, optimizer = built(clock)
    walk = watched(clock, model, optimizer, evaluations[0], run=folder)
    train(model, optimizer, range(first))
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "walk": walk.state_dict()}
    state = through_a_file(parts)
    train(model, optimizer, range(first, stop))
    walk.close()
    model, optimizer = built(clock)
    walk = watched(clock, model, optimizer, evaluations[1], run=folder, resume=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    walk.load_state_dict(state["walk"])
    train(model, optimizer, range(first, second))
    walk.close()
    return walk


@pytest.mark.parametrize("method", EVALUATION, ids=str)
def test_a_resumed_run_keeps_the_choice_whatever_the_machine_is_now(clock, method, tmp_path):
    whole = run_of(clock, EVALUATION[method], steps=50)
    other = EVALUATION["sampled" if method == "exact" else "exact"]
    walk = in_parts(clock, 20, 50, tmp_path / "run", stop=25, evaluations=(EVALUATION[method], other))
    assert dataclasses.replace(plan_of(walk), cost=0) == dataclasses.replace(plan_of(whole), cost=0)
    assert plan_of(walk).cost == pytest.approx(plan_of(whole).cost)  # the clock's sums are rounded
    for name in ("steps", "segments"):
        pd.testing.assert_frame_equal(getattr(walk.run, name), getattr(whole.run, name), check_exact=True)
    assert list(walk.run.events["kind"]) == ["budget_chosen", "resumed", "budget_met"]


def test_a_run_resumed_before_the_choice_makes_it_then(clock, tmp_path):
    evaluations = (EVALUATION["sampled"], EVALUATION["exact"])
    walk = in_parts(clock, 8, 40, tmp_path / "run", stop=30, evaluations=evaluations)
    assert plan_of(walk).method == "exact"
    assert watched_steps(walk) == list(range(8 + CHOSEN, 40))
    assert list(walk.run.events["kind"]) == ["resumed", "budget_chosen", "budget_met"]


def test_another_budget_is_another_run(clock, tmp_path):
    run_of(clock, EVALUATION["exact"], run=tmp_path / "run")
    model, optimizer = built(clock)
    with pytest.raises(sgdwalk.ResumeError, match=r"settings\.budget was 5 and is 6"):
        watched(clock, model, optimizer, 0.1, run=tmp_path / "run", resume=True, budget=6)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"method": "exact"}, "method was given too: leave out method", id="method"),
        pytest.param({"when": sgdwalk.every(1)}, "when was given too: leave out when", id="when"),
        pytest.param({"when": None}, "when was given too", id="when-none"),
        pytest.param({"method": "sampled", "when": sgdwalk.every(2)}, "method and when was given too", id="both"),
        pytest.param({"budget": 1}, "budget=1: a finite multiple", id="one"),
        pytest.param({"budget": 0.5}, "above 1 is wanted", id="less"),
        pytest.param({"budget": float("inf")}, "budget=inf: a finite", id="infinite"),
        pytest.param({"budget": float("nan")}, "budget=nan: a finite", id="nan"),
        pytest.param({"budget": True}, "budget=True", id="bool"),
        pytest.param({"budget": "1.5"}, "budget='1.5'", id="text"),
        pytest.param({"data": None}, "pass both", id="no-data"),
        pytest.param({"measures": {"mine": lambda here: 0.0}}, r"'mine'.*sgdwalk\.at", id="measure"),
        pytest.param(
            {"measures": {"sampled": sgdwalk.at(sgdwalk.every(9), lambda here: 0.0)}}, "'sampled'", id="taken-name"
        ),
    ],
)
def test_what_does_not_go_with_a_budget_is_refused(clock, options, message):
    model, optimizer = built(clock)
    with pytest.raises(sgdwalk.InputError, match=message):
        watched(clock, model, optimizer, 0.1, **options)


def test_an_evaluation_that_fails_ends_the_budget_and_not_the_training(clock):
    def fails(output, target):
        if sgdwalk.is_measuring() and len(walks):
            raise RuntimeError("no loss today")
        return functional.cross_entropy(output, target)

    for on_error in ("disable", "raise"):
        walks = []
        model, optimizer = built(clock)
        walk = sgdwalk.watch(model, optimizer, fails, DATA, batch_size=20, budget=5, on_error=on_error)
        walks.append(walk)
        train(model, optimizer, range(CHOSEN - 1))
        if on_error == "raise":
            with pytest.raises(RuntimeError, match="no loss today"):
                train(model, optimizer, range(1))
            continue
        train(model, optimizer, range(20))
        walk.close()
        assert walk.plan is None
        assert walk.run.steps["distance"].notna().all()
        assert list(walk.run.events["kind"]) == ["measurement_failed", "budget_met"]
        assert "budget is switched off: RuntimeError: no loss today" in walk.run.events["message"][0]


def test_a_walk_put_back_before_the_choice_makes_it_again(clock):
    model, optimizer = built(clock)
    walk = watched(clock, model, optimizer, EVALUATION["exact"])
    train(model, optimizer, range(8))
    state = through_a_file({"model": model.state_dict(), "walk": walk.state_dict()})
    train(model, optimizer, range(8, 30))
    assert plan_of(walk).method == "exact"
    model.load_state_dict(state["model"])
    walk.load_state_dict(state["walk"])
    assert walk.plan is None
    train(model, optimizer, range(8, 40))
    walk.close()
    assert plan_of(walk).method == "exact"
    assert watched_steps(walk) == list(range(8 + CHOSEN, 40))
