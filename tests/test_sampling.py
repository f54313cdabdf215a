"""Estimates from a few units of a few steps: no bias of the minimum, and intervals that hold what they promise."""

import math

import numpy as np
import pytest

from sgdwalk import valley
from sgdwalk.errors import InputError
from sgdwalk.sampling import mean_of_steps, sampled_segment

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

    whole, one, two = curve(range(5)), curve(range(2)), curve(range(2, 5))
    found = sampled_segment(losses, counts)
    assert found.height == pytest.approx(2 * height(whole) - (height(one) + height(two)) / 2, rel=1e-12)
    assert found.floor == pytest.approx(2 * min(whole) - (min(one) + min(two)) / 2, rel=1e-12)
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


def test_too_few_steps_have_no_interval():
    assert math.isnan(mean_of_steps([]).value)
    found = mean_of_steps([1.0, float("nan"), 3.0])
    assert (found.value, found.num_steps) == (2.0, 2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
