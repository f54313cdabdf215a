"""The largest gradient variance, its bias, and the distributions that intervals need, against simulation and tables."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nets
import sgdwalk
from sgdwalk.distributions import expected_largest_variance, student_t_975
from test_noise import Mean, half_squared_errors

STUDENT_T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 29: 2.0452, 120: 1.9799}
"""Any table."""


def draw(num_examples: int, sigmas: Tensor, mean: Tensor, seed: int) -> Tensor:
    noise = torch.randn(num_examples, len(sigmas), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + noise * sigmas


def test_the_largest_variance_and_its_coordinate():
    x = draw(60, torch.linspace(2.0, 0.5, 12, dtype=torch.float64), torch.ones(12, dtype=torch.float64), seed=0)
    result = sgdwalk.max_gradient_variance(Mean(12), half_squared_errors, (x, x), batch_size=1)
    assert result.value == pytest.approx(float(x.var(0).max()), rel=1e-12)
    assert result.coordinate == int(x.var(0).argmax())
    assert (result.num_coordinates, result.batch_size, result.num_batches, result.num_left_out) == (12, 1, 60, 0)
    biased = sgdwalk.max_gradient_variance(Mean(12), half_squared_errors, (x, x), batch_size=1, divisor="K")
    assert biased.value == pytest.approx(float(x.var(0, correction=0).max()), rel=1e-12)
    assert biased.bias == pytest.approx(result.bias * 59 / 60, rel=1e-12)
    assert dataclasses.replace(biased, value=result.value, bias=result.bias, divisor="K-1") == result


def test_the_bias_of_a_maximum_is_the_one_that_is_told():
    """The whole measurement, 40 times, where all 400 true variances are 1."""
    values, bias = [], 0.0
    for seed in range(40):
        x = draw(36, torch.ones(400, dtype=torch.float64), torch.zeros(400, dtype=torch.float64), seed)
        result = sgdwalk.max_gradient_variance(Mean(400), half_squared_errors, (x, x), batch_size=4)
        values.append(result.value)
        bias = result.bias
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - bias) < 4 * error < 0.05 * bias * 4
    assert 2.9 < bias < 3.4


def test_the_expected_maximum_against_closed_forms():
    for num in (1, 2, 5, 100):
        # With two degrees of freedom χ²/2 is exponential: the maximum's mean is the harmonic number.
        harmonic = math.fsum(1 / j for j in range(1, num + 1))
        assert expected_largest_variance(num, 2) == pytest.approx(harmonic, rel=1e-6)
        # With one degree of freedom and two draws: E max(a², b²) = 1 + E|a² - b²| / 2 = 1 + 2/π.
    assert expected_largest_variance(2, 1) == pytest.approx(1 + 2 / math.pi, rel=1e-4)


def test_the_figures_of_the_papers_network():
    """d = 9.8 million: simulated by the inverse distribution function of the maximum of d uniform numbers."""
    from scipy import stats

    upper = -np.log(np.random.default_rng(0).uniform(size=20_000)) / 9.8e6  # 1 - U^(1/d)
    for num_batches, told in ((9, 6.2), (450, 1.40)):
        simulated = stats.chi2.isf(upper, num_batches - 1) / (num_batches - 1)
        error = simulated.std() / math.sqrt(len(simulated))
        expected = expected_largest_variance(9_800_000, num_batches - 1)
        assert abs(simulated.mean() - expected) < 4 * error
        assert expected == pytest.approx(told, rel=0.01)


@pytest.mark.parametrize(("freedom", "quantile"), STUDENT_T.items())
def test_student_t(freedom, quantile):
    assert student_t_975(freedom) == pytest.approx(quantile, abs=6e-5)


def test_student_t_goes_over_into_the_expansion():
    assert student_t_975(999) - student_t_975(1000) == pytest.approx(2.4e-6, abs=2e-7)


def test_another_divisor_is_refused():
    with pytest.raises(sgdwalk.InputError, match="divisor='N' does not exist"):
        sgdwalk.max_gradient_variance(
            nets.mlp(), nn.CrossEntropyLoss(), nets.classification(23), batch_size=5, divisor="N"
        )
