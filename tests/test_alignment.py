"""Angles between subspaces, ratios along eigenvectors and the power law, on cases known on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nets
import sgdwalk
from gradient_twins import cross_entropies, gradients_one_by_one, hessian_of_mean, losses_twin, net, parameters_of
from sgdwalk.eigensolver import Eigenpairs, extreme_eigenpairs
from sgdwalk.operators import HessianOperator
from sgdwalk.standing import StandingLoss


def rotation(size: int, seed: int = 0) -> Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix).Q


# -------------------------------------------------------------------------------------------------------- angles
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_angles_that_were_put_in_come_out(dtype):
    """Pairs of planes, each turned by its own angle, from one too small for a cosine to see up to a right angle."""
    put_in = torch.tensor([1e-9, 1e-3, 0.7, 0.9, math.pi / 2], dtype=torch.float64)
    basis = rotation(14)
    first = basis[:5]
    second = put_in.cos().unsqueeze(1) * basis[:5] + put_in.sin().unsqueeze(1) * basis[5:10]
    mixed = rotation(5, 1) @ second  # another basis of the same space
    result = sgdwalk.principal_angles(first.to(dtype), 3.0 * mixed.to(dtype))
    tolerance = {"rtol": 1e-6, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(result.angles, put_in, **tolerance)
    assert result.overlap == pytest.approx(float(put_in.cos().square().mean()), rel=1e-5)
    assert result.chance == pytest.approx(5 / 14)


def test_a_space_within_a_larger_one():
    basis = rotation(6)
    for spaces in ((basis[:2], basis[:4]), (basis[:4], basis[:2])):
        result = sgdwalk.principal_angles(*spaces)
        torch.testing.assert_close(result.angles, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)
        assert (result.overlap, result.chance) == (pytest.approx(1.0), 4 / 6)


def test_random_spaces_overlap_as_chance_says():
    overlaps = [sgdwalk.principal_angles(rotation(20, 2 * i)[:3], rotation(20, 2 * i + 1)[:5]) for i in range(200)]
    values = np.array([each.overlap for each in overlaps])
    assert abs(values.mean() - 5 / 20) < 4 * values.std() / math.sqrt(200)
    assert overlaps[0].chance == 5 / 20


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.eye(3)[:1], torch.eye(4)[:1], r"one length as rows; got \(\(1, 3\), \(1, 4\)\)"),
        (torch.ones(3), torch.eye(3), "takes two matrices"),
        (torch.empty(0, 3), torch.eye(3), "takes two matrices"),
        (torch.ones(2, 3), torch.eye(3), "2 vectors of 3 coordinates are linearly dependent"),
        (torch.randn(4, 3), torch.eye(3), "4 vectors of 3 coordinates are linearly dependent"),
    ],
    ids=["lengths", "one_vector", "none", "dependent", "too_many"],
)
def test_what_spans_no_space_is_refused(first, second, message):
    with pytest.raises(sgdwalk.InputError, match=message):
        sgdwalk.principal_angles(first, second)


# ----------------------------------------------------------------------------------------------------- power law
def test_a_power_law_without_noise_is_found_exactly():
    x = torch.tensor([10.0, 5.0, 2.0, 0.1, 1e-4], dtype=torch.float64)
    law = sgdwalk.power_law(x, 0.3 * x**1.5)
    assert (law.exponent, law.constant, law.r2) == (pytest.approx(1.5), pytest.approx(0.3), pytest.approx(1.0))
    assert law.high - law.low < 1e-6
    assert (law.num_pairs, law.reason) == (5, "")


def test_the_interval_against_a_textbook_regression():
    """ln y = 1.5 ln x + deviations: slope and standard error by the normal equations."""
    u = np.array([0.0, 1.0, 2.0, 3.0])
    v = 1.5 * u + np.array([0.1, -0.2, 0.1, 0.0])
    law = sgdwalk.power_law(np.exp(u).tolist(), np.exp(v).tolist())
    design = np.stack([np.ones(4), u], axis=1)
    coefficients, (squares,), *_ = np.linalg.lstsq(design, v, rcond=None)
    error = math.sqrt(squares / 2 * np.linalg.inv(design.T @ design)[1, 1])
    assert law.exponent == pytest.approx(coefficients[1])
    assert law.constant == pytest.approx(math.exp(coefficients[0]))
    assert (law.low, law.high) == pytest.approx((coefficients[1] - 4.30265 * error, coefficients[1] + 4.30265 * error))
    assert law.r2 == pytest.approx(1 - squares / ((v - v.mean()) ** 2).sum())


def test_the_interval_covers_the_exponent():
    random = np.random.default_rng(0)
    x = np.exp(random.normal(size=(400, 8)))
    y = x**1.3 * np.exp(0.5 * random.normal(size=(400, 8)))
    laws = [sgdwalk.power_law(*map(torch.from_numpy, pair)) for pair in zip(x, y, strict=True)]
    assert 0.92 <= np.mean([law.low <= 1.3 <= law.high for law in laws]) <= 0.98


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.0, 2.0], [1.0, 2.0], "2 pairs of positive values, 3 are needed"),
        ([1.0, 2.0, -3.0], [1.0, 2.0, 3.0], "2 pairs"),
        ([1.0, 2.0, 3.0], [1.0, math.nan, 0.0], "1 pairs"),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "values of x are equal"),
    ],
    ids=["two", "negative", "not_finite", "equal"],
)
def test_a_power_law_of_too_little_is_undefined(x, y, reason):
    law = sgdwalk.power_law(x, y)
    assert all(math.isnan(value) for value in (law.exponent, law.low, law.high, law.constant, law.r2))
    assert reason in law.reason


def test_pairs_are_wanted():
    with pytest.raises(sgdwalk.InputError, match="3 values of x and 2 of y"):
        sgdwalk.power_law([1.0, 2.0, 3.0], [1.0, 2.0])


# ----------------------------------------------------------------------------------------------------- alignment
def eigenpairs_of(model: nn.Module, data, k: int) -> Eigenpairs:
    loss = StandingLoss(model, nn.CrossEntropyLoss(), data, batch_size=8)
    hessian = HessianOperator(loss, guard=loss.evaluating)
    options = {"which": "largest", "tolerance": 1e-8, "max_products": 300, "dtype": torch.float64}
    return extreme_eigenpairs(hessian.__matmul__, hessian.size, k=k, generator=torch.Generator(), **options)


def test_noise_along_the_eigenvectors_of_a_hessian():
    """Against eigenvectors of the dense Hessian and the gradients of single examples."""
    model, data = net("tanh"), nets.classification(30, dtype=torch.float64)
    C = sgdwalk.gradient_second_moment(model, nn.CrossEntropyLoss(), data, batch_size=8)
    losses = losses_twin(model, list(C.full_loss.data), cross_entropies)
    gradients = gradients_one_by_one(losses, parameters_of(model))
    values, vectors = torch.linalg.eigh(hessian_of_mean(losses, parameters_of(model)))
    result = sgdwalk.noise_alignment(C, eigenpairs_of(model, data, 5))
    expected = (gradients @ vectors[:, -5:]).square().mean(0).flip(0)
    torch.testing.assert_close(result.curvatures, values[-5:].flip(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(result.noises, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.ratios, expected / values[-5:].flip(0), rtol=1e-6, atol=0)
    law = sgdwalk.power_law(values[-5:], expected.flip(0))
    assert (result.law.exponent, result.law.num_pairs) == (pytest.approx(law.exponent, rel=1e-5), 5)


def test_pairs_that_are_none_stay_out_of_the_law():
    inputs = 2 * torch.eye(4, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    C = sgdwalk.gradient_second_moment(model, nn.MSELoss(), (inputs, torch.zeros(4, 1, dtype=torch.float64)))
    values = torch.tensor([3.0, 2.0, 0.0, -1.0], dtype=torch.float64)
    converged = torch.tensor([True, True, True, False])
    pairs = Eigenpairs(values, torch.zeros(4), converged, torch.eye(4), 2, "after 2 products", torch.eye(4))
    result = sgdwalk.noise_alignment(C, pairs)
    torch.testing.assert_close(result.noises, C.diagonal())
    assert result.ratios.isnan().tolist() == [False, False, True, True]
    assert result.converged.tolist() == converged.tolist()
    assert (math.isnan(result.law.exponent), result.law.num_pairs) == (True, 2)
    assert result.reason == "after 2 products"
    assert repr(result).startswith("NoiseAlignment(ratios=[")
    assert repr(result).endswith(
        ", nan, nan], 2 pairs of positive values, 3 are needed, 1 NOT CONVERGED: after 2 products)"
    )
    with pytest.raises(sgdwalk.InputError, match=r"shape \(4, 3\), but the noise has 4 coordinates"):
        sgdwalk.noise_alignment(C, Eigenpairs(values, values, converged, torch.eye(4)[:, :3], 0, "", torch.eye(4)))
