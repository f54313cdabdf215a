"""Extreme eigenpairs of matrices whose spectrum is given: values, residuals, what is said where there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from sgdwalk.eigensolver import Eigenpairs, extreme_eigenpairs

F64 = torch.float64


class Turned:
    """A symmetric matrix with a given spectrum in a basis turned by a reflection; counts its products."""

    def __init__(self, spectrum: Tensor, seed: int = 0):
        self.spectrum = spectrum
        draw = torch.Generator().manual_seed(seed)
        self.axis = normalize(torch.randn(len(spectrum), generator=draw, dtype=F64), dim=0).to(spectrum)
        self.calls = 0

    def turn(self, vector: Tensor) -> Tensor:
        return vector - 2 * (self.axis @ vector) * self.axis

    def __call__(self, vector: Tensor) -> Tensor:
        self.calls += 1
        return self.turn(self.spectrum * self.turn(vector))


def solve(matrix, size: int, seed: int = 0, **options) -> Eigenpairs:
    options = {"dtype": F64, "tolerance": 1e-8, **options}
    return extreme_eigenpairs(matrix, size, generator=torch.Generator().manual_seed(seed), **options)


def spectrum(*top: float, bulk: int = 60) -> Tensor:
    return torch.cat([torch.tensor(top, dtype=F64), torch.linspace(-0.5, 0.5, bulk, dtype=F64)])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
def test_values_vectors_and_residuals_are_right(k, which):
    given_values = spectrum(7.0, -9.0, 3.0, -2.0, 4.0, 1.0)
    matrix = Turned(given_values)
    order = {"magnitude": -given_values.abs(), "largest": -given_values, "smallest": given_values}[which].argsort()
    pairs = solve(matrix, len(given_values), k=k, which=which)
    assert pairs.converged.all()
    assert pairs.reason == ""
    assert pairs.num_products == matrix.calls
    torch.testing.assert_close(pairs.values, given_values[order[:k]], rtol=1e-12, atol=1e-12)
    for value, residual, vector in zip(pairs.values, pairs.residuals, pairs.vectors, strict=True):
        actual = torch.linalg.vector_norm(matrix(vector) - value * vector)
        assert math.isclose(float(actual), float(residual), rel_tol=1e-3, abs_tol=1e-12)
        assert float(actual) <= 1e-8 * abs(float(value))


@pytest.mark.parametrize("multiplicity", [2, 3])
def test_a_degenerate_top_has_its_multiplicity(multiplicity):
    given_values = spectrum(*[5.0] * multiplicity, 2.0)
    pairs = solve(Turned(given_values), len(given_values), k=multiplicity + 1)
    assert pairs.converged.all()
    assert pairs.values.tolist() == pytest.approx([5.0] * multiplicity + [2.0], rel=1e-12)


def test_equal_magnitudes_of_both_signs_are_both_found():
    given_values = spectrum(4.0, -4.0)
    pairs = solve(Turned(given_values), len(given_values), k=2)
    assert sorted(pairs.values.tolist()) == pytest.approx([-4.0, 4.0], rel=1e-10)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_matrices(size):
    given_values = torch.tensor([3.0, -1.0, 0.5], dtype=F64)[:size]
    pairs = solve(Turned(given_values), size, k=size)
    assert pairs.converged.all()
    assert pairs.values.tolist() == pytest.approx(given_values.tolist(), rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_multiples_of_the_identity_need_one_product(value):
    pairs = solve(lambda v: value * v, 50, cautious=False)
    assert (pairs.values.item(), pairs.converged.item(), pairs.num_products) == (pytest.approx(value), True, 1)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e20])
def test_no_scale_matters_in_float32(scale):
    given_values = spectrum(7.0, -3.0).float()
    pairs = solve(Turned(given_values * scale), len(given_values), dtype=torch.float32, tolerance=1e-3, num_kept=1)
    assert pairs.converged.all()
    assert pairs.values.item() == pytest.approx(7.0 * scale, rel=1e-5)
    torch.testing.assert_close(torch.linalg.vector_norm(pairs.start.double(), dim=1), torch.ones(2, dtype=F64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("after", [0, 3])
def test_a_product_that_is_not_finite_is_told(bad, after):
    matrix = Turned(spectrum(7.0, 5.0, 3.0))

    def product(vector):
        return matrix(vector) if matrix.calls < after else torch.full_like(vector, bad)

    pairs = solve(product, 63, k=2)
    assert not pairs.converged.any()
    assert pairs.reason == "a product with the operator is not finite"
    assert pairs.vectors.shape == (2, 63)


def test_products_that_do_not_suffice_are_told():
    pairs = solve(Turned(torch.linspace(0.9, 1.0, 500, dtype=F64)), 500, max_products=6)
    assert (pairs.num_products, pairs.converged.item()) == (6, False)
    assert pairs.reason == "not converged after 6 products"


def test_what_float32_cannot_reach_ends_unconverged():
    pairs = solve(Turned(spectrum(7.0).float()), 61, dtype=torch.float32, tolerance=1e-12, max_products=150)
    assert not pairs.converged.item()
    assert pairs.reason
    assert pairs.values.item() == pytest.approx(7.0, rel=1e-6)


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
def test_thick_restarts_lose_nothing(which):
    given_values = torch.cat([torch.tensor([1.2, -1.3]), torch.linspace(-1.0, 1.0, 300)]).double()
    matrix = Turned(given_values)
    pairs = solve(matrix, len(given_values), which=which, max_basis=8, tolerance=1e-6)
    expected = float({"magnitude": given_values[1], "largest": given_values[0], "smallest": given_values[1]}[which])
    assert pairs.converged.item()
    assert pairs.num_products > 8
    assert pairs.values.item() == pytest.approx(expected, rel=1e-9)


def test_poor_starts_do_no_harm():
    given_values = spectrum(7.0, 5.0)
    matrix = Turned(given_values)
    unit = matrix.turn(torch.eye(len(given_values), dtype=F64)[1])  # the second eigenvector
    for start in (torch.zeros(2, 62, dtype=F64), torch.stack([unit, unit, 2 * unit])):
        pairs = solve(matrix, len(given_values), start=start)
        assert pairs.values.item() == pytest.approx(7.0, rel=1e-9)


def test_the_same_generator_gives_the_same_bits():
    first, again = (
        solve(Turned(spectrum(7.0, 5.0).float()), 62, dtype=torch.float32, tolerance=1e-4) for _ in range(2)
    )
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.vectors, again.vectors)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=25),
    st.integers(1, 3),
    st.sampled_from(["magnitude", "largest", "smallest"]),
    st.sampled_from([0.1, 1e-3, 1e-8]),
)
def test_an_eigenvalue_lies_within_each_residual(values, k, which, tolerance):
    given_values = torch.tensor(values, dtype=F64)
    pairs = solve(Turned(given_values), len(values), k=min(k, len(values)), which=which, tolerance=tolerance)
    rounding = 1e-12 * max(1.0, float(given_values.abs().max()))
    for value, residual, converged in zip(pairs.values, pairs.residuals, pairs.converged, strict=True):
        assert float((given_values - value).abs().min()) <= float(residual) + rounding
        assert not converged or float(residual) <= tolerance * abs(float(value))


@pytest.mark.parametrize("others", [0.0, 1e-9], ids=["rank one", "nearly"])
def test_nothing_is_spent_on_a_runner_up_that_is_no_rival(others):
    given_values = torch.full((80,), others, dtype=torch.float32)
    given_values[0] = 3.0
    pairs = solve(Turned(given_values), 80, dtype=torch.float32, tolerance=1e-3, watched=1)
    assert pairs.converged.item()
    assert pairs.num_products <= 5


# --- along a walk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.05, 1e-3])
@pytest.mark.parametrize("speed", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("size", [1_000, 20_000])
def test_an_eigenvalue_that_rises_from_below_is_followed(size, speed, tolerance):
    """The top falls and another, in a direction of its own, rises past it: the values stay within 1 %.

    The start is the last one's, with a tenth of a random vector in its last row, as SpectralNorm has it.
    """
    bulk = torch.linspace(-0.2, 0.4, size, dtype=F64)
    draw = torch.Generator().manual_seed(0)
    start, products = None, []
    for step in range(int(0.8 / speed)):
        given_values = bulk.clone()
        falling, rising = 1.0 - 0.5 * speed * step, 0.5 + speed * step
        given_values[3], given_values[7] = falling, rising
        if start is not None:
            start[-1] += 0.1 * normalize(torch.randn(size, generator=draw, dtype=F64), dim=0)
        options = {"cautious": start is None, "watched": 1, "num_kept": 1, "tolerance": tolerance, "seed": step}
        pairs = solve(Turned(given_values), size, start=start, **options)
        assert pairs.values.item() == pytest.approx(max(falling, rising), rel=0.01), step
        start = pairs.start
        products.append(pairs.num_products)
    assert np.mean(products[1:]) < products[0]
