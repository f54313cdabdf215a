"""What a budget buys: every row of the table, and against a search through all rows and spacings."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdwalk.budget import Costs, certified_seconds, choose, exact_seconds

PAPER = Costs(
    step=3.0,
    columns=0.3,
    overhead=0.0,
    evaluation=1.0,
    loss=0.0,
    look=3.0,
    num_batches=450,
    num_units=450,
    keeps_start=True,
)
"""The paper's MNIST in the time of a forward pass over a batch of 100, a step three of them: 450 updates an epoch."""


def test_an_exact_update_costs_what_the_paper_says():
    """1 + 10 N / (3 B) times the training, and a little for the noise of the loss."""
    multiple = 1 + exact_seconds(PAPER, 10) / PAPER.step
    assert multiple == pytest.approx(1 + 10 * 45_000 / (3 * 100), rel=1e-3)
    assert exact_seconds(PAPER, 10, alone=True) - exact_seconds(PAPER, 10) == pytest.approx(450)
    moving = dataclasses.replace(PAPER, keeps_start=False)
    assert exact_seconds(moving, 10) == exact_seconds(PAPER, 10, alone=True)


def test_a_certified_update_costs_its_ends_a_sample_and_its_share_of_exact_ones():
    # The smallest first look at 450 units is 2 + 28 of them halfway and 2 + 6 at the eight other points; twice that.
    sample = 2 * (30 + 8 * 8)
    exact = 0.05 * 10 * 450
    noise = 11 * 10 * 2 / 100
    assert certified_seconds(PAPER, 10) == pytest.approx(450 + sample + exact + noise)
    assert certified_seconds(PAPER, 10, alone=True) == pytest.approx(900 + sample + exact + noise)
    with_losses = dataclasses.replace(PAPER, loss=0.01)
    assert certified_seconds(with_losses, 10) - certified_seconds(PAPER, 10) == pytest.approx(450 * 9 * 0.01)
    assert certified_seconds(dataclasses.replace(PAPER, num_units=15), 10) == math.inf


@pytest.mark.parametrize(
    ("budget", "changed", "method", "one_in", "num_batches"),
    [
        pytest.param(2000, {}, "exact", 1, 450, id="exact"),
        pytest.param(400, {}, "certified", 1, 450, id="certified"),
        pytest.param(30, {}, "certified", 19, 450, id="certified-thinned"),
        pytest.param(1.5, {}, "sampled", 14, 4, id="sampled"),
        pytest.param(1.3, {}, "sampled", 29, 4, id="sampled-seldom"),
        pytest.param(1.18, {}, None, 0, 0, id="nothing-fits"),
        pytest.param(1.1, {}, None, 0, 0, id="columns-alone"),
        pytest.param(3.0, {"num_batches": 4, "num_units": 4}, "exact", 11, 4, id="too-few-units-to-certify"),
        pytest.param(1.5, {"num_batches": 4, "num_units": 4}, "sampled", 14, 4, id="a-sample-of-all"),
        pytest.param(1.5, {"num_batches": 1, "num_units": 1}, "exact", 15, 1, id="one-batch"),
        pytest.param(1.25, {"num_batches": 1, "num_units": 1}, None, 0, 0, id="one-batch-cannot-be-halved"),
    ],
)
def test_the_first_row_that_fits_is_taken(budget, changed, method, one_in, num_batches):
    plan = choose(dataclasses.replace(PAPER, **changed), budget, steps_per_epoch=450)
    assert (plan.method, plan.one_in, plan.num_batches) == (method, one_in, num_batches)


def test_an_epoch_of_unknown_or_small_length_counts_as_400_updates():
    for budget in (24, 30, 1.3, 1.28):
        assert choose(PAPER, budget) == choose(PAPER, budget, steps_per_epoch=1)
        assert choose(PAPER, budget) == choose(PAPER, budget, steps_per_epoch=400)
    # One update in 30 leaves 20 watched ones in an epoch of 600, and 13 in 400.
    assert (choose(PAPER, 20, steps_per_epoch=600).method, choose(PAPER, 20).method) == ("certified", "sampled")


def test_what_is_told():
    told = {budget: choose(PAPER, budget, steps_per_epoch=450).told(budget) for budget in (1.1, 1.5, 30, 2000)}
    assert told[1.1].startswith("budget=1.1 chose only what needs no evaluation, for about 1.1 times the unwatched")
    assert "gauge_epochs" in told[1.1]
    assert "method sampled at 1 update in 14 with 4 evaluation batches" in told[1.5]
    assert "That is a guess" in told[1.5]
    assert "sampled_epochs" in told[1.5]
    assert "exact at every update 1,502, certified at every update 290" in told[1.5]
    assert "to within 5 % of it, or four times the loss noise where that is more, at 95 %" in told[30]
    assert "about 23 are watched in an epoch" in told[30]
    assert told[2000].endswith("to rounding (loss_noise).")


# --- for any times ----------------------------------------------------------------------------------------------------

seconds = st.floats(1e-6, 1e3)
budgets = st.floats(1.001, 1e5)
epochs = st.none() | st.integers(1, 5000)


@st.composite
def any_costs(draw):
    return Costs(
        step=draw(seconds),
        columns=draw(seconds),
        overhead=draw(seconds),
        evaluation=draw(seconds),
        loss=draw(seconds),
        look=draw(seconds),
        num_batches=draw(st.integers(1, 1000)),
        num_units=draw(st.integers(1, 600)),
        keeps_start=draw(st.booleans()),
    )


def rows_and_spacings(costs, stretch):
    """Every row with every spacing, by preference: (method, one in, batches, seconds an update on average)."""
    every = costs.num_batches
    certified, exact = (price(costs, 10, alone=True) for price in (certified_seconds, exact_seconds))
    yield "exact", 1, every, exact_seconds(costs, 10)
    yield "certified", 1, every, certified_seconds(costs, 10)
    for k in range(1, stretch // 20 + 1):
        yield ("certified" if certified < exact else "exact"), k, every, min(certified, exact) / k
    units = min(4, every)
    for k in range(1, stretch // 5 + 1 if every > 1 else 1):
        yield "sampled", k, units, (costs.overhead + units * costs.look) / k


@given(any_costs(), budgets, epochs)
def test_the_choice_is_that_of_a_search_and_costs_at_most_the_budget(costs, budget, steps_per_epoch):
    plan = choose(costs, budget, steps_per_epoch=steps_per_epoch)
    allowed = 0.8 * (budget - 1) * costs.step
    for method, one_in, num_batches, average in rows_and_spacings(costs, max(400, steps_per_epoch or 0)):
        if costs.columns + average <= allowed * (1 - 1e-9):
            # A row that fits by a hair may be taken one spacing wider: rounding.
            assert (plan.method, plan.num_batches) == (method, num_batches)
            assert plan.one_in in (one_in, one_in - 1)
            break
        if costs.columns + average <= allowed * (1 + 1e-9):
            return  # on the edge
    else:
        assert (plan.method, plan.one_in, plan.num_batches) == (None, 0, 0)
    if plan.method is not None:
        assert 1 <= plan.cost <= budget
        assert plan.cost - 1 <= 0.8 * (budget - 1) * (1 + 1e-9)
    else:
        assert plan.cost == pytest.approx(1 + costs.columns / costs.step)


@given(any_costs(), budgets, budgets, epochs)
def test_more_budget_never_yields_less(costs, one, other, steps_per_epoch):
    def rank(plan):
        order = ["exact", "certified", "thinned", "sampled", None]
        kind = "thinned" if plan.one_in > 1 and plan.method != "sampled" else plan.method
        return order.index(kind), -plan.num_batches, plan.one_in

    small, large = (choose(costs, budget, steps_per_epoch=steps_per_epoch) for budget in sorted((one, other)))
    assert rank(large) <= rank(small)
    assert large.cost >= small.cost * (1 - 1e-9)
