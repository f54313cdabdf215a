"""Extreme eigenpairs against spectra known on paper, and what is said of those that were not found."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgdwalk.eigensolver import WHICH, extreme_eigenpairs
from sgdwalk.errors import InputError

ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}
"""Relative to the largest |eigenvalue|: a few units in the last place, from bases of up to 40 vectors."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotated(spectrum, seed: int = 1) -> Tensor:
    """A dense float64 matrix of this spectrum, whose eigenvectors are no coordinate axes."""
    values = torch.as_tensor(spectrum, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=seeded(seed), dtype=torch.float64))
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def solve(matrix: Tensor, **options):
    """The pairs of a dense matrix, with the products taken in ``dtype``."""
    dtype = options.setdefault("dtype", torch.float64)
    operator = matrix.to(dtype)
    options.setdefault("generator", seeded())
    return extreme_eigenpairs(lambda vector: operator @ vector, len(matrix), **options)


def ordered(spectrum, which: str) -> list[float]:
    key = {"magnitude": lambda value: -abs(value), "largest": lambda value: -value, "smallest": lambda value: value}
    return sorted(torch.as_tensor(spectrum, dtype=torch.float64).tolist(), key=key[which])


def true_residuals(matrix: Tensor, pairs) -> Tensor:
    vectors = pairs.vectors.to(torch.float64)
    return torch.linalg.vector_norm(vectors @ matrix - pairs.values[:, None] * vectors, dim=1)


def spread(size: int = 200) -> Tensor:
    """Both signs, no two magnitudes equal, five outliers on a side."""
    values = torch.linspace(-1.0, 1.2, size, dtype=torch.float64)
    values[:10] = torch.tensor([9.0, -7.0, 6.0, -5.5, 5.0, -4.0, 3.5, -3.0, 2.5, -2.2], dtype=torch.float64)
    return values


# ------------------------------------------------------------------------------------------------------ known spectra
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_the_pairs_of_a_known_spectrum(k, which, dtype):
    matrix, tolerance = rotated(spread()), 1e-4
    pairs = solve(matrix, k=k, which=which, dtype=dtype, tolerance=tolerance)
    expected = torch.tensor(ordered(spread(), which)[:k], dtype=torch.float64)
    assert pairs.reason == ""
    assert pairs.converged.tolist() == [True] * k
    # A residual of 1e-4 λ bounds the value by its square over the gap to the next one.
    torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=0)
    assert pairs.vectors.dtype == dtype
    gram = pairs.vectors.to(torch.float64) @ pairs.vectors.to(torch.float64).T
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), rtol=0, atol=10 * ROUNDING[dtype])
    assert (true_residuals(matrix, pairs) <= 1.01 * tolerance * pairs.values.abs() + 9 * ROUNDING[dtype]).all()


def test_a_dominant_negative_eigenvalue_is_found_with_its_sign():
    values = torch.linspace(0.0, 1.0, 100, dtype=torch.float64)
    values[0] = -3.0
    pairs = solve(rotated(values))
    assert math.isclose(pairs.values.item(), -3.0, rel_tol=1e-6)
    assert math.isclose(solve(rotated(values), which="largest").values.item(), 1.0, rel_tol=1e-4)


@pytest.mark.parametrize(("multiplicity", "k"), [(2, 1), (2, 2), (2, 3), (3, 2), (3, 3)])
def test_a_multiple_eigenvalue_is_found_as_often_as_it_occurs(multiplicity, k):
    values = torch.linspace(-1.0, 1.0, 300, dtype=torch.float64)
    values[:multiplicity] = 4.0
    matrix = rotated(values)
    pairs = solve(matrix, k=k, dtype=torch.float32)
    torch.testing.assert_close(pairs.values, torch.tensor(ordered(values, "magnitude")[:k]).double(), rtol=1e-4, atol=0)
    assert pairs.converged.all()
    assert (true_residuals(matrix, pairs) < 5e-3).all()


def test_two_ends_of_equal_magnitude_are_both_found():
    values = torch.linspace(-0.5, 0.5, 300, dtype=torch.float64)
    values[:2] = torch.tensor([2.0, -2.0])
    one, both = solve(rotated(values)), solve(rotated(values), k=2)
    assert math.isclose(abs(one.values.item()), 2.0, rel_tol=1e-6)
    assert true_residuals(rotated(values), one).item() <= 2.1e-3
    torch.testing.assert_close(both.values.sort().values, torch.tensor([-2.0, 2.0]).double(), rtol=1e-6, atol=0)
    assert one.converged.all()
    assert both.converged.all()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_zero_matrix_has_the_eigenvalue_zero(dtype, k):
    pairs = solve(torch.zeros(50, 50), dtype=dtype, k=k)
    assert pairs.values.tolist() == pairs.residuals.tolist() == [0.0] * k
    assert pairs.converged.all()
    assert pairs.num_products <= k + 1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_identity(k):
    pairs = solve(torch.eye(50), dtype=torch.float32, k=k)
    torch.testing.assert_close(pairs.values, torch.ones(k, dtype=torch.float64))
    assert pairs.converged.all()
    assert pairs.num_products <= k + 1


def test_rank_one():
    vector = torch.randn(400, generator=seeded(2), dtype=torch.float64)
    matrix = torch.outer(vector, vector)
    square = float(vector @ vector)
    pairs = solve(matrix, k=2, dtype=torch.float32, tolerance=1e-3)
    assert math.isclose(pairs.values[0].item(), square, rel_tol=1e-6)
    assert pairs.converged[0]
    assert abs(float(pairs.vectors[0].double() @ vector)) > 0.999999 * math.sqrt(square)
    assert abs(pairs.values[1].item()) < 1e-5 * square


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_as_many_pairs_as_there_are_coordinates(size, dtype, which):
    spectrum = [-3.0, 2.0, 0.5][:size]
    pairs = solve(rotated(spectrum), k=size, which=which, dtype=dtype)
    expected = torch.tensor(ordered(spectrum, which), dtype=torch.float64)
    torch.testing.assert_close(pairs.values, expected, rtol=0, atol=5 * ROUNDING[dtype])
    assert pairs.converged.all()
    assert pairs.num_products == size


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_any_scale(scale):
    """In float32, whose squares end at 1e-38 and 1e38."""
    matrix = scale * rotated(spread())
    pairs = solve(matrix, k=2, dtype=torch.float32, num_kept=1)
    torch.testing.assert_close(pairs.values / scale, torch.tensor([9.0, -7.0]).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(pairs.vectors.double().norm(dim=1), torch.ones(2).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(pairs.start.double().norm(dim=1), torch.ones(3).double(), rtol=1e-6, atol=0)
    assert pairs.converged.all()
    assert (pairs.residuals <= 1e-3 * pairs.values.abs()).all()
    again = solve(matrix, k=2, dtype=torch.float32, start=pairs.start, cautious=False)
    assert again.converged.all()
    assert again.num_products < pairs.num_products


def test_a_cluster_at_the_top():
    """Ten eigenvalues within 1 % of the top: the value is good although which vector it belongs to is open."""
    values = torch.linspace(-1.0, 1.0, 500, dtype=torch.float64)
    values[:10] = torch.linspace(2.98, 3.0, 10, dtype=torch.float64)
    pairs = solve(rotated(values), tolerance=1e-2)
    assert pairs.converged.all()
    assert 2.98 - 0.03 <= pairs.values.item() <= 3.0 + 1e-12
    sharp = solve(rotated(values), k=3, tolerance=1e-5)
    assert sharp.converged.all()
    torch.testing.assert_close(sharp.values, values[:10].flip(0)[:3], rtol=1e-7, atol=0)


# -------------------------------------------------------------------------------------------------- where it stops
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_product_that_is_not_finite_ends_the_search_with_a_reason(value):
    pairs = extreme_eigenpairs(lambda vector: torch.full_like(vector, value), 20, k=2, generator=seeded())
    assert pairs.reason == "a product with the operator is not finite"
    assert pairs.num_products == 1
    assert not pairs.converged.any()
    assert pairs.values.isnan().all()
    assert pairs.residuals.isnan().all()
    assert pairs.values.shape == pairs.residuals.shape == pairs.converged.shape == (2,)
    assert pairs.vectors.shape == (2, 20)
    assert pairs.start.shape == (0, 20)


@pytest.mark.parametrize("good", [1, 2, 3, 4])
def test_a_product_that_turns_not_finite_leaves_what_was_found_as_not_converged(good):
    matrix, taken = rotated(spread()), []

    def product(vector):
        taken.append(vector)
        return matrix @ vector if len(taken) <= good else torch.full_like(vector, math.nan)

    pairs = extreme_eigenpairs(product, 200, k=3, dtype=torch.float64, generator=seeded())
    assert pairs.reason == "a product with the operator is not finite"
    assert pairs.num_products == good + 1
    assert pairs.converged.tolist() == [False] * 3
    found = min(good, 3)
    assert pairs.values.isfinite().tolist() == pairs.residuals.isfinite().tolist() == [i < found for i in range(3)]
    assert pairs.vectors.isfinite().all(1).tolist() == [i < found for i in range(3)]
    torch.testing.assert_close(true_residuals(matrix, pairs)[:found], pairs.residuals[:found], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_no_more_products_than_allowed(limit):
    matrix = rotated(spread())
    pairs = solve(matrix, k=3, max_products=limit, tolerance=1e-9)
    assert pairs.num_products == limit
    assert pairs.reason == f"not converged after {limit} products"
    assert not pairs.converged.any()
    assert pairs.values.shape == (3,)
    found = min(limit, 3)
    torch.testing.assert_close(true_residuals(matrix, pairs)[:found], pairs.residuals[:found], rtol=1e-9, atol=1e-12)
    assert pairs.values[found:].isnan().all()


def test_the_pairs_that_converged_are_told_from_the_one_that_did_not():
    values = torch.linspace(0.0, 1.0, 1000, dtype=torch.float64)
    values[0] = 100.0
    pairs = solve(rotated(values), k=2, max_products=8, tolerance=1e-3)
    assert pairs.converged.tolist() == [True, False]
    assert pairs.reason == "not converged after 8 products"


def test_one_product_shows_no_eigenvalue_at_rest():
    pairs = solve(torch.eye(50), max_products=1)
    assert pairs.residuals.item() < 1e-15
    assert not pairs.converged.item()
    assert pairs.reason == "not converged after 1 products"
    assert solve(torch.eye(50), max_products=1, cautious=False).converged.item()


def test_a_tolerance_below_rounding_is_told_and_ends():
    small = solve(rotated(spread(30)), k=2, tolerance=1e-12, dtype=torch.float32)
    assert small.reason == "tolerance is below the rounding of the operator's products"
    assert small.num_products == 30
    large = solve(rotated(spread()), tolerance=1e-12, max_products=60, dtype=torch.float32)
    assert large.reason == "not converged after 60 products"
    for pairs in (small, large):
        assert not pairs.converged.any()
        assert math.isclose(pairs.values[0].item(), 9.0, rel_tol=1e-6)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("max_basis", [1, 6, 8, 12])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_basis_that_restarts_gives_the_same_pairs(k, max_basis, which):
    values = torch.linspace(-1.0, 1.1, 400, dtype=torch.float64)
    values[:6] = torch.tensor([1.4, -1.3, 1.35, -1.25, 1.3, -1.2])
    matrix = rotated(values)
    pairs = solve(matrix, k=k, max_basis=max_basis, which=which, tolerance=1e-5, max_products=2000)
    expected = torch.tensor(ordered(values, which)[:k], dtype=torch.float64)
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, expected, rtol=1e-7, atol=0)
    assert pairs.num_products > max(max_basis, 2 * k + 4), "the basis never restarted"
    torch.testing.assert_close(true_residuals(matrix, pairs), pairs.residuals, rtol=1e-6, atol=1e-12)


def test_a_restart_is_no_evidence_that_a_value_is_at_rest():
    """Six vectors fill the basis, the residual at λ = 1 is small, and λ = 1.5 shows in it: only a product can tell."""
    values = torch.linspace(0.0, 0.3, 40, dtype=torch.float64)
    values[:2] = torch.tensor([1.0, 1.5])
    start = torch.eye(40, dtype=torch.float64)[[0, 5, 6, 7, 8, 9]]
    start[0, 1] = 1e-5
    pairs = solve(torch.diag(values), start=start, max_basis=6)
    assert pairs.num_products > 6
    assert math.isclose(pairs.values.item(), 1.5, rel_tol=1e-6)


def test_more_start_vectors_than_the_basis_would_hold():
    matrix = rotated(spread())
    start = torch.randn(50, 200, generator=seeded(3), dtype=torch.float64)
    pairs = solve(matrix, start=start, max_basis=6)
    assert math.isclose(pairs.values.item(), 9.0, rel_tol=1e-5)
    assert pairs.converged.item()


# ---------------------------------------------------------------------------------------------------- start vectors
def eigenvectors(matrix: Tensor) -> Tensor:
    """As rows, by falling magnitude."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors.T[torch.argsort(-values.abs())]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "start",
    [
        lambda vectors: torch.zeros(2, 200),
        lambda vectors: torch.stack([vectors[0], torch.zeros(200)]),
        lambda vectors: torch.ones(3, 200),
        lambda vectors: torch.stack([vectors[3], -2 * vectors[3], vectors[0] + vectors[3], 1e-9 * vectors[1]]),
        lambda vectors: torch.cat([vectors[:2], vectors[:2]]),
        lambda vectors: torch.full((1, 200), math.nan),
        lambda vectors: torch.stack([1e30 * vectors[0], 1e-30 * vectors[1]]),
    ],
    ids=["zeros", "one_zero", "all_equal", "dependent", "twice", "nan", "lengths"],
)
def test_start_vectors_need_not_be_independent(start, dtype, k):
    matrix = rotated(spread())
    vectors = start(eigenvectors(matrix).to(torch.float32).to(torch.float64))
    pairs = solve(matrix, k=k, start=vectors, dtype=dtype)
    torch.testing.assert_close(pairs.values, torch.tensor([9.0, -7.0]).double()[:k], rtol=1e-5, atol=0)
    assert pairs.converged.all()


def test_start_vectors_that_nearly_agree_make_an_orthonormal_basis():
    """What is left of the second is a thousandth of it, its rounding a thousandfold: one projection leaves 1e-4."""
    matrix, draw = rotated(spread()), seeded(8)
    first = eigenvectors(matrix)[0]
    start = torch.stack([first, first + 1e-4 * torch.randn(200, generator=draw, dtype=torch.float64)])
    pairs = solve(matrix, k=2, start=start, dtype=torch.float32, max_products=2)
    gram = pairs.vectors.to(torch.float64) @ pairs.vectors.to(torch.float64).T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64), rtol=0, atol=2e-6)


def test_a_start_at_the_eigenvectors_takes_one_product_each():
    matrix = rotated(spread())
    pairs = solve(matrix, k=3, start=eigenvectors(matrix)[:3], cautious=False)
    torch.testing.assert_close(pairs.values, torch.tensor([9.0, -7.0, 6.0]).double(), rtol=1e-12, atol=0)
    assert pairs.num_products == 3
    assert (pairs.residuals < 1e-12).all()


def test_a_start_at_wrong_eigenvectors_stays_there():
    """Products with eigenvectors stay within their span: nothing can be known of the rest."""
    matrix = rotated(spread())
    pairs = solve(matrix, start=eigenvectors(matrix)[3:5], cautious=False)
    assert math.isclose(pairs.values.item(), -5.5, rel_tol=1e-9)
    assert pairs.num_products == 2


def test_start_is_a_step_of_power_iteration_ahead_of_the_vectors():
    matrix = rotated(spread())
    pairs = solve(matrix, k=2, num_kept=2, tolerance=1e-9)
    assert pairs.start.shape == (4, 200)
    ahead = torch.nn.functional.normalize(pairs.vectors @ matrix)
    torch.testing.assert_close(pairs.start[:2], ahead, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------- an eigenvalue that overtakes
class Turned:
    """A diagonal matrix between two reflections: any size, known spectrum, no eigenvector along an axis."""

    def __init__(self, size: int):
        axis = torch.randn(size, generator=seeded(4), dtype=torch.float32)
        self.axis = axis / axis.norm()

    def turn(self, vector: Tensor) -> Tensor:
        return vector - 2 * (self.axis @ vector) * self.axis

    def product(self, spectrum: Tensor):
        return lambda vector: self.turn(spectrum * self.turn(vector))


def spectrum_of_a_net(size: int) -> Tensor:
    """λ = 1 above nine outliers from 0.8 to 0.2, and a bulk of both signs at 1e-3; the second is to be overwritten."""
    values = 1e-3 * torch.randn(size, generator=seeded(5))
    values[0], values[2:11] = 1.0, torch.linspace(0.8, 0.2, 9)
    return values


def random_unit(size: int, draw: torch.Generator) -> Tensor:
    vector = torch.randn(size, generator=draw)
    return vector / vector.norm()


def overtaken(
    size: int, speed: float, tolerance: float, *, every: int, alone: bool = False
) -> tuple[list[float], list[int]]:
    """Relative errors and products while an eigenvalue rises through all others to 1.5, its vector at first absent.

    Each search starts where the one before ended; ``every`` so many, a random vector joins and three pairs are seen to.
    ``alone``: without the outliers, and the second vector is let go where its value is below 70 % of the top.
    """
    turned, draw, spectrum, start = Turned(size), seeded(6), spectrum_of_a_net(size), None
    errors, products, rising, step = [], [], 0.3, 0
    if alone:
        spectrum[2:11] = 0.0
    while rising < 1.5:
        spectrum[1] = rising
        looks = start is not None and step % every == 0
        pairs = extreme_eigenpairs(
            turned.product(spectrum),
            size,
            tolerance=tolerance,
            start=torch.cat([start, random_unit(size, draw)[None]]) if looks else start,
            cautious=start is None,
            watched=2 if looks else 0,
            num_kept=1,
            generator=draw,
        )
        assert pairs.converged.item()
        errors.append(abs(pairs.values.item() - max(1.0, rising)) / max(1.0, rising))
        products.append(pairs.num_products)
        near = bool((pairs.others.abs() > 0.7 * pairs.values.abs()).any())
        start = pairs.start[:1] if alone and not near else pairs.start
        rising, step = rising * (1 + speed), step + 1
    return errors, products


@pytest.mark.parametrize("tolerance", [0.05, 1e-2, 1e-3])
@pytest.mark.parametrize("size", [1_000, 20_000])
@pytest.mark.parametrize(("speed", "every"), [(0.01, 4), (0.05, 4), (0.2, 2)], ids=["1%", "5%", "20%"])
def test_watching_for_an_eigenvalue_that_overtakes(speed, every, size, tolerance):
    errors, products = overtaken(size, speed, tolerance, every=every)
    assert max(errors) < 0.01
    assert sum(products[1:]) / len(products[1:]) < (3.5 if every == 4 else 5.0)


def test_it_is_met_where_a_random_vector_has_next_to_no_residual():
    """Two values alone above a bulk of 1e-3: a random vector is nearly a pair of the bulk, with a residual of 1e-3."""
    errors, products = overtaken(50_000, 0.05, 1e-2, every=4, alone=True)
    assert max(errors) < 0.01
    assert sum(products[1:]) / len(products[1:]) < 4.5


def test_a_warm_start_alone_misses_an_eigenvalue_that_overtakes():
    """What ``watched`` is for: each search ends with a small residual, at what is no longer the top."""
    errors, products = overtaken(1_000, 0.05, 1e-3, every=1_000_000)
    assert max(errors) > 0.1
    assert sum(products[1:]) / len(products[1:]) < 2.5


def test_watching_leads_from_wrong_eigenvectors_to_the_top():
    matrix = rotated(spread())
    wrong, draw = eigenvectors(matrix)[3:5], seeded(7)
    start = torch.cat([wrong, torch.randn(1, 200, generator=draw, dtype=torch.float64)])
    pairs = solve(matrix, start=start, cautious=False, watched=2, generator=draw)
    assert math.isclose(pairs.values.item(), 9.0, rel_tol=1e-5)
    assert pairs.values.shape == pairs.residuals.shape == pairs.converged.shape == (1,)
    assert pairs.vectors.shape == (1, 200)


@pytest.mark.parametrize("watched", [1, 2, 50])
def test_where_there_is_nothing_more_to_watch_it_ends(watched):
    """Of rank one, whose other values are rounding of the first; and smaller than what is watched."""
    vector = torch.randn(3000, generator=seeded(2))
    pairs = extreme_eigenpairs(lambda v: vector * (vector @ v), 3000, watched=watched, generator=seeded())
    assert pairs.converged.item()
    assert pairs.reason == ""
    assert pairs.num_products <= watched + 3
    few = solve(rotated([3.0, -2.0, 1.0]), watched=watched)
    assert few.num_products <= 3
    assert few.converged.item()


def test_watched_pairs_that_were_not_found_are_told_while_the_wanted_one_counts():
    values = torch.linspace(-1.0, 1.0, 500, dtype=torch.float64)
    values[0] = 12.0
    pairs = solve(rotated(values), watched=1, max_products=5)
    assert pairs.converged.item()
    assert pairs.reason == "not converged after 5 products"


# ------------------------------------------------------------------------------------------------------ what is told
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("max_products", [4, 9, 200])
def test_residuals_are_those_of_the_returned_pairs(dtype, max_products):
    matrix = rotated(spread())
    pairs = solve(matrix, k=3, dtype=dtype, max_products=max_products, max_basis=10)
    expected = true_residuals(matrix, pairs)
    torch.testing.assert_close(pairs.residuals, expected, rtol=1e-4, atol=9 * ROUNDING[dtype])


def test_the_same_generator_gives_the_same_bits():
    matrix = rotated(spread())
    first, again, other = (solve(matrix, k=2, dtype=torch.float32, generator=seeded(s)) for s in (1, 1, 2))
    for name in ("values", "residuals", "vectors", "start"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.vectors, other.vectors)


def test_only_the_given_generator_is_drawn_from():
    before = torch.get_rng_state()
    solve(rotated(spread()), k=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_tells_every_round():
    told = []
    pairs = solve(rotated(spread()), k=2, progress=lambda *numbers: told.append(numbers))
    products, converged, residuals = zip(*told, strict=True)
    assert list(products) == sorted(set(products))
    assert products[-1] == pairs.num_products
    assert converged[-1] == 2
    assert residuals[0] > residuals[-1]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    k=st.integers(1, 4),
    which=st.sampled_from(WHICH),
    tolerance=st.sampled_from([0.3, 1e-2, 1e-5]),
    max_products=st.integers(1, 15),
    single=st.booleans(),
    rank=st.integers(0, 12),
)
def test_an_eigenvalue_lies_within_each_residual_and_converged_means_small(
    size, seed, k, which, tolerance, max_products, single, rank
):
    draw, k = seeded(seed), min(k, size)
    factor = torch.randn(size, min(rank, size), generator=draw, dtype=torch.float64)
    signs = torch.sign(torch.randn(factor.shape[1], generator=draw, dtype=torch.float64))
    matrix = (factor * signs) @ factor.T
    dtype = torch.float32 if single else torch.float64
    pairs = solve(matrix, k=k, which=which, tolerance=tolerance, max_products=max_products, dtype=dtype, generator=draw)
    truth = torch.linalg.eigvalsh(matrix)
    rounding = 20 * torch.finfo(dtype).eps * max(1.0, float(truth.abs().max()))
    for value, residual, converged in zip(pairs.values, pairs.residuals, pairs.converged, strict=True):
        if math.isnan(value):
            assert not converged
            continue
        assert (truth - value).abs().min() <= residual + rounding
        assert not converged or residual <= tolerance * value.abs()
    assert pairs.num_products <= max_products
    assert pairs.converged.all() or pairs.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": "biggest"}, "which='biggest' does not exist; there is 'magnitude', 'largest', 'smallest'"),
        ({"k": 0}, "k=0: ask for 1 to 3 eigenpairs"),
        ({"k": 4}, "k=4: ask for 1 to 3 eigenpairs"),
        ({"k": True}, "k=True"),
        ({"k": 1.0}, "k=1.0"),
        ({"tolerance": 0.0}, "tolerance=0.0: a relative residual between 0 and 1"),
        ({"tolerance": 1}, "tolerance=1:"),
        ({"tolerance": "small"}, "tolerance='small'"),
        ({"max_products": 0}, "max_products=0: at least one product"),
        ({"max_products": 2.5}, "max_products=2.5"),
        ({"start": torch.ones(3)}, "start has shape (3,): vectors as rows are wanted, (m, 3)"),
        ({"start": torch.ones(1, 4)}, "start has shape (1, 4)"),
        ({"start": np.ones((1, 3))}, "start is a ndarray: a tensor with vectors as rows is wanted, (m, 3)"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        solve(torch.eye(3), **options)
