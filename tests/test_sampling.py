"""Estimates from a few units of a few steps: no bias of the minimum, and intervals that hold what they promise."""

import math

import numpy as np
import pytest

from sgdwalk import valley
from sgdwalk.errors import InputError
from sgdwalk.sampling import mean_of_steps, sampled_segment, updates_stood_for
from sgdwalk.when import one_in

ALPHA = np.linspace(0, 1, 11)


def population(generator, num_units=450, spread=0.3):
    """Losses of units along a segment whose mean is a parabola with its minimum inside; units differ in all of it."""
    level = 1 + spread * generator.standard_normal((num_units, 1))
    slope = -0.1 + spread * generator.standard_normal((num_units, 1))
    bend = 0.12 + spread / 3 * generator.standard_normal((num_units, 1))
    return level + slope * ALPHA + bend * ALPHA**2 + 0.01 * generator.standard_normal((num_units, len(ALPHA)))


def test_the_jackknife_removes_the_minimums_bias():
    generator = np.random.default_rng(0)
    units = population(generator)
    truth = float(valley.height(units.mean(axis=0)))
    drawn = [units[generator.permutation(len(units))[:16]] for _ in range(4_000)]
    plain = np.mean([valley.height(each.mean(axis=0)) for each in drawn]) / truth - 1
    corrected = np.mean([sampled_segment(each).height for each in drawn]) / truth - 1
    assert plain > 0.1  # the test could fail: without correction the height is more than a tenth too high
    assert abs(corrected) < plain / 4


def test_a_segment_is_the_formula_written_out():
    losses = np.random.default_rng(1).random((5, 4))
    counts = np.array([3.0, 1.0, 2.0, 2.0, 4.0])

    def curve(rows):
        return [sum(counts[i] * losses[i, k] for i in rows) / sum(counts[i] for i in rows) for k in range(4)]

    def height(values):
        return (values[0] + values[-1] - 2 * min(values)) / 2

    whole = curve(range(5))
    # Two of five that lie side by side, going round, and the three others: five ways.
    parts = [curve(rows) for rows in ([0, 1], [1, 2], [2, 3], [3, 4], [4, 0])]
    parts += [curve(rows) for rows in ([2, 3, 4], [3, 4, 0], [4, 0, 1], [0, 1, 2], [1, 2, 3])]
    found = sampled_segment(losses, counts)
    # The bias goes as 1/n: 1/5 of the whole, on average (1/2 + 1/3)/2 of a part, so that 25/13 · 1/5 = 12/13 · 5/12.
    assert found.height == pytest.approx((25 * height(whole) - 12 * sum(map(height, parts)) / 10) / 13, rel=1e-12)
    assert found.floor == pytest.approx((25 * min(whole) - 12 * sum(map(min, parts)) / 10) / 13, rel=1e-12)
    assert (found.loss, found.next_loss) == pytest.approx((whole[0], whole[-1]), rel=1e-12)
    assert found.interior == (0 < int(np.argmin(whole)) < 3)


def test_equal_units_give_the_segment_itself():
    losses = np.tile((ALPHA - 0.4) ** 2, (6, 1))
    found = sampled_segment(losses)
    assert found.height == pytest.approx(float(valley.height(losses[0])), abs=1e-15)
    assert found.alpha_star == pytest.approx(0.4)
    assert found.interior


@pytest.mark.parametrize("shape", [(1, 11), (11,), (2, 2)])
def test_what_cannot_be_halved_is_refused(shape):
    with pytest.raises(InputError, match=r"units|points|shape"):
        sampled_segment(np.ones(shape))


@pytest.mark.parametrize("trend", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("factor", [1.0, 0.33])
def test_the_interval_of_an_epochs_mean_covers_it(trend, factor):
    """One step of each block of 14, heights that fall along the epoch, noise of their own size; 1/3 of it must fail."""
    generator = np.random.default_rng(2)
    steps = np.arange(448)
    heights = 0.05 * np.exp(-trend * steps / 448) * (1 + 0.5 * generator.standard_normal(448))
    missed, tries = 0, 600
    for _ in range(tries):
        chosen = [block + generator.integers(14) for block in range(0, 448, 14)]
        drawn = heights[chosen] * (1 + 0.8 * generator.standard_normal(len(chosen)))
        found = mean_of_steps(drawn)
        half = (found.high - found.low) / 2 * factor
        missed += not abs(found.value - heights.mean()) <= half
    if factor == 1.0:
        assert missed <= 0.1 * tries  # the promise: true coverage of at least 90 %
    else:
        assert missed > 0.3 * tries


@pytest.mark.parametrize("dense", [4, 0])
def test_heights_that_fall_fast_at_first_want_a_dense_start(dense):
    """A large part of the epoch's height lies in its first ten steps, as with an MLP on MNIST at a rate of 0.1."""
    generator = np.random.default_rng(3)
    steps = np.arange(450)
    heights = 0.005 * (1 + 0.8 * generator.random(450)) + 0.5 * np.exp(-steps / 3)
    errors, missed = [], 0
    for seed in range(400):
        due = one_in(5, seed=seed, dense=dense)
        chosen = np.array([step for step in steps if due(int(step))])
        drawn = heights[chosen] + 0.005 * generator.standard_normal(len(chosen))
        found = mean_of_steps(drawn, updates_stood_for(chosen))
        errors.append(found.value / heights.mean() - 1)
        missed += not found.low <= heights.mean() <= found.high
    if dense:
        assert np.sqrt(np.mean(np.square(errors))) < 0.1
        assert abs(np.mean(errors)) < 0.02
        assert missed <= 0.1 * len(errors)
    else:  # the test could fail
        assert np.sqrt(np.mean(np.square(errors))) > 0.2


def test_sampled_steps_stand_for_the_updates_that_are_nearest():
    generator = np.random.default_rng(4)
    chosen = np.array([block + generator.integers(5) for block in range(450, 900, 5)])
    nearest = np.abs(np.arange(450, 900)[:, None] - chosen).argmin(axis=1)
    difference = updates_stood_for(chosen) - np.bincount(nearest, minlength=len(chosen))
    assert np.abs(difference[1:-1]).max() <= 1  # those halfway go to either
    assert updates_stood_for(range(0, 60, 5)).tolist() == [5.0] * 12
    assert [updates_stood_for(few).tolist() for few in ([], [7])] == [[], [1.0]]


def test_too_few_steps_have_no_interval():
    assert math.isnan(mean_of_steps([]).value)
    found = mean_of_steps([1.0, float("nan"), 3.0])
    assert (found.value, found.num_steps) == (2.0, 2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
