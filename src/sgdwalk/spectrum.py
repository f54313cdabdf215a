"""The whole spectrum of a symmetric operator in outline: its trace and its density, each from random vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sgdwalk.draws import generator
from sgdwalk.eigensolver import NOT_SYMMETRIC, Basis
from sgdwalk.errors import InputError
from sgdwalk.isolation import isolated
from sgdwalk.operators import Operator, check_operator
from sgdwalk.text import count


@dataclass(frozen=True, slots=True)
class TraceEstimate:
    """An estimate of a trace.

    Attributes:
        value: the estimate.
        standard_error: of it, from the spread of the random vectors; 0 where the trace was taken exactly.
        num_products: products that it took.
    """

    value: float
    standard_error: float
    num_products: int


def trace(matrix: Operator, *, num_products: int = 60, seed: int = 0) -> TraceEstimate:
    """The trace by Hutch++: exactly on a random part of the range, by random vectors on what is left.

    tr A = tr QᵀAQ + E[gᵀ (I - QQᵀ) A (I - QQᵀ) g], Q an orthonormal basis of A S for random S. A third of the products
    makes Q, a third takes its part, a third are samples of the rest, whose spread gives the standard error.

    Args:
        matrix: a symmetric operator.
        num_products: products to spend, at least 12; with d or more the trace is exact.
        seed: of the random vectors.

    Raises:
        InputError: for fewer than 12 products, or where products turn out not to be symmetric.

    >>> import torch, sgdwalk
    >>> inputs, targets = torch.eye(3) * torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 1)
    >>> matrix = sgdwalk.hessian(torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss(), (inputs, targets))
    >>> round(sgdwalk.trace(matrix).value, 4)  # 2/3 (1 + 4 + 9)
    9.3333

    Source: Meyer, Musco, Musco and Woodruff, "Hutch++: Optimal Stochastic Trace Estimation", 2021.
    """
    if isinstance(num_products, bool) or not isinstance(num_products, int) or num_products < 12:
        raise InputError(f"num_products={num_products!r}: a trace with a standard error needs at least 12 products.")
    check_operator(matrix)
    with isolated(matrix.device):
        return _trace(matrix, num_products, seed)


def _trace(matrix: Operator, num_products: int, seed: int) -> TraceEstimate:
    if num_products >= matrix.size:
        units = torch.eye(matrix.size, dtype=matrix.dtype, device=matrix.device)
        return TraceEstimate(math.fsum(float((matrix @ unit) @ unit) for unit in units), 0.0, matrix.size)
    draw = generator("probes of a trace", seed)
    third = num_products // 3

    basis = Basis(matrix.size, third, matrix.dtype, matrix.device)
    for _ in range(third):
        column = basis.orthonormal(matrix @ _signs(matrix, draw))
        if column is not None:
            basis.add(column, matrix @ column)
    _check_symmetry(basis)
    spent = third + basis.length
    samples = []
    for _ in range(num_products - spent):
        rest = basis.outside(_signs(matrix, draw))
        samples.append(float(rest.to(torch.float64) @ (matrix @ rest).to(torch.float64)))
    inside = float(torch.trace(basis.projected))
    error = float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
    return TraceEstimate(inside + float(np.mean(samples)), error, num_products)


@dataclass(frozen=True, slots=True, eq=False)
class SpectralDensity:
    """A spectral density as weighted nodes: a measure of total weight 1 that has the spectrum's moments.

    Attributes:
        nodes: Ritz values.  # (probes, steps)
        weights: of the nodes; each probe's add up to 1.  # (probes, steps)
        size: d; a weight w stands for w d eigenvalues.
        num_products: products that it took.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    size: int
    num_products: int

    def __repr__(self) -> str:
        probes, steps = self.nodes.shape
        return (
            f"SpectralDensity({count(probes, 'probe')} of {steps} steps, eigenvalues from {self.nodes.min():.4g} to "
            f"{self.nodes.max():.4g}, {self.num_products} products)"
        )

    def density(self, grid: ArrayLike, *, width: float) -> NDArray[np.float64]:
        """The density at the points of a grid, each node widened to a normal curve of deviation ``width``.

        It integrates to 1; times d it counts eigenvalues.
        """
        points = np.asarray(grid, dtype=np.float64)[:, None]
        nodes, weights = self.nodes.reshape(1, -1), self.weights.reshape(1, -1) / len(self.nodes)
        curves = np.exp(-0.5 * ((points - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return (curves * weights).sum(1)


def spectral_density(matrix: Operator, *, num_probes: int = 4, num_steps: int = 40, seed: int = 0) -> SpectralDensity:
    """The spectral density by stochastic Lanczos quadrature.

    For a random v the tridiagonal matrix of ``num_steps`` Lanczos steps has eigenvalues θ_j and eigenvectors with first
    components τ_j; Σ τ_j² f(θ_j) is Gauss quadrature of vᵀ f(A) v, exact for polynomials of degree 2 · num_steps - 1.
    Lanczos vectors are kept orthogonal. Memory: 2 · num_steps vectors of d coordinates.

    Draw it with :func:`sgdwalk.figures.spectral_density`.

    Args:
        matrix: a symmetric operator.
        num_probes: random vectors.
        num_steps: Lanczos steps with each; products are the product of both.
        seed: of the random vectors.

    Raises:
        InputError: for numbers below 1.

    >>> import torch, sgdwalk
    >>> inputs, targets = torch.eye(3) * torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 1)
    >>> matrix = sgdwalk.hessian(torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss(), (inputs, targets))
    >>> [round(1.5 * node, 3) for node in sgdwalk.spectral_density(matrix, num_probes=1).nodes[0].tolist()]
    [1.0, 4.0, 9.0]

    Source: Ubaru, Chen and Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", 2017; Ghorbani,
    Krishnan and Xiao, "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density", 2019.
    """
    for name, number in (("num_probes", num_probes), ("num_steps", num_steps)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name}={number!r}: an integer of at least 1 is wanted.")
    check_operator(matrix)
    with isolated(matrix.device):
        return _density(matrix, num_probes, num_steps, seed)


def _density(matrix: Operator, num_probes: int, num_steps: int, seed: int) -> SpectralDensity:
    draw = generator("probes of a spectral density", seed)
    steps = min(num_steps, matrix.size)
    before = matrix.num_products
    nodes, weights = np.full((num_probes, steps), np.nan), np.zeros((num_probes, steps))
    for probe in range(num_probes):
        basis = Basis(matrix.size, steps, matrix.dtype, matrix.device)
        vector = basis.orthonormal(_signs(matrix, draw))
        while vector is not None and basis.length < steps:
            image = matrix @ vector
            basis.add(vector, image)
            vector = basis.orthonormal(image)
        _check_symmetry(basis)
        values, vectors = torch.linalg.eigh(basis.projected)
        nodes[probe, : basis.length] = values.numpy()
        weights[probe, : basis.length] = vectors[0].square().numpy()
        nodes[probe, basis.length :] = values[-1]  # the space was exhausted: nodes without weight
    return SpectralDensity(nodes, weights, matrix.size, matrix.num_products - before)


def _check_symmetry(basis: Basis) -> None:
    if not basis.symmetric:
        raise InputError(f"The operator cannot be measured: {NOT_SYMMETRIC}.")


def _signs(matrix: Operator, draw: torch.Generator) -> Tensor:
    """A vector of random signs.  # (d,)"""
    bits = torch.randint(0, 2, (matrix.size,), generator=draw, dtype=torch.int8)
    return (2 * bits - 1).to(device=matrix.device, dtype=matrix.dtype)
