"""How gradient noise and curvature are aligned: angles between eigenspaces, a power law along eigenvectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdwalk.distributions import student_t_975
from sgdwalk.eigensolver import Eigenpairs
from sgdwalk.errors import InputError
from sgdwalk.operators import Operator, check_operator

FEWEST_PAIRS = 3
"""Points that a line with an interval needs: with two there is no residual."""


@dataclass(frozen=True, slots=True, eq=False)
class PrincipalAngles:
    """The angles between two subspaces.

    Attributes:
        angles: radians, ascending, 0 (shared direction) to π/2 (orthogonal).  # (min(k, m),)
        overlap: the mean of their squared cosines, 1 where the smaller subspace lies in the larger one.
        chance: the expected overlap of two random subspaces of these dimensions, max(k, m) / d.
    """

    angles: Tensor
    overlap: float
    chance: float


def principal_angles(first: Tensor, second: Tensor) -> PrincipalAngles:
    """The principal angles between the spaces spanned by the rows of two matrices, such as two sets of eigenvectors.

    With orthonormal bases P and Q of the spaces, the cosines of the angles are the singular values of P Qᵀ. Angles
    below π/4 come from their sines, the singular values of what P lacks of Q: a cosine near 1 loses half the digits.

    Args:
        first: k linearly independent vectors, such as ``eigenpairs(...).vectors``.  # (k, d)
        second: m linearly independent vectors.  # (m, d)

    Raises:
        InputError: where the vectors have different lengths, are none, or are linearly dependent.

    >>> import torch, sgdwalk
    >>> first, second = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    >>> round(sgdwalk.principal_angles(first, second).angles.item(), 4)  # π/4
    0.7854

    Source: Björck and Golub 1973, "Numerical Methods for Computing Angles Between Linear Subspaces".
    """
    shapes = tuple(first.shape), tuple(second.shape)
    if not (
        first.dim() == second.dim() == 2 and first.shape[1] == second.shape[1] and 0 not in (*shapes[0], *shapes[1])
    ):
        raise InputError(f"principal_angles() takes two matrices with vectors of one length as rows; got {shapes}.")
    p, q = (_orthonormal(vectors) for vectors in (first, second))
    if len(p) < len(q):
        p, q = q, p
    products = q @ p.T
    cosines = torch.linalg.svdvals(products).clamp(max=1.0)
    sines = torch.linalg.svdvals(q - products @ p).flip(0).clamp(max=1.0)
    angles = torch.where(cosines.square() > 0.5, torch.arcsin(sines), torch.arccos(cosines))
    return PrincipalAngles(angles.cpu(), float(cosines.square().mean()), len(p) / p.shape[1])


def _orthonormal(vectors: Tensor) -> Tensor:
    wide = torch.nn.functional.normalize(vectors.detach().to(torch.float64))
    q, r = torch.linalg.qr(wide.T)
    if len(vectors) > vectors.shape[1] or float(r.diagonal().abs().min()) < 1e-6:
        raise InputError(
            f"{len(vectors)} vectors of {vectors.shape[1]} coordinates are linearly dependent: they span no space of "
            "that dimension. Pass fewer vectors, those that have converged."
        )
    return q.T


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """y ≈ constant · x^exponent, fitted to logarithms.

    Attributes:
        exponent: the slope γ of ln y over ln x; NaN where undefined.
        low: lower end of its 95 % interval.
        high: upper end.
        constant: y at x = 1.
        r2: the share of the variance of ln y that the line explains.
        num_pairs: pairs that were fitted.
        reason: why the fit is undefined; empty where it is not.
    """

    exponent: float
    low: float
    high: float
    constant: float
    r2: float
    num_pairs: int
    reason: str


def power_law(x: Sequence[float] | Tensor, y: Sequence[float] | Tensor) -> PowerLaw:
    """Fit y ≈ c · x^γ by least squares on logarithms, with the t interval of the regression's slope.

    The interval assumes that the deviations of ln y from the line are independent and normal, of one variance. Top
    eigenvalues are neither drawn at random nor independent: it says how well a line fits these pairs, not what other
    pairs would give. Pairs with a value that is not positive or not finite are left out.

    Args:
        x: such as eigenvalues of the Hessian.  # (k,)
        y: such as the noise along their eigenvectors.  # (k,)

    Raises:
        InputError: where x and y have different lengths.

    >>> import sgdwalk
    >>> law = sgdwalk.power_law([1.0, 2.0, 4.0, 8.0], [3.0, 12.0, 48.0, 192.0])
    >>> round(law.exponent, 6), round(law.constant, 6), round(law.r2, 6), law.num_pairs
    (2.0, 3.0, 1.0, 4)
    """
    xs, ys = (torch.as_tensor(values, dtype=torch.float64).reshape(-1).cpu() for values in (x, y))
    if len(xs) != len(ys):
        raise InputError(f"power_law() got {len(xs)} values of x and {len(ys)} of y: it takes pairs.")
    usable = (xs > 0) & (ys > 0) & torch.isfinite(xs) & torch.isfinite(ys)
    u, v = xs[usable].log(), ys[usable].log()
    count = len(u)
    if count < FEWEST_PAIRS:
        return _undefined(count, f"{count} pairs of positive values, {FEWEST_PAIRS} are needed")
    du, dv = u - u.mean(), v - v.mean()
    spread = float(du @ du)
    if spread <= count * (1e-8 * float(u.abs().max())) ** 2:
        return _undefined(count, "all values of x are equal, so they have no slope")
    slope = float(du @ dv) / spread
    left = dv - slope * du
    variance = float(left @ left) / (count - 2)
    half = student_t_975(count - 2) * math.sqrt(variance / spread)
    total = float(dv @ dv)
    r2 = 1.0 - float(left @ left) / total if total > 0.0 else math.nan
    return PowerLaw(slope, slope - half, slope + half, math.exp(float(v.mean() - slope * u.mean())), r2, count, "")


def _undefined(count: int, reason: str) -> PowerLaw:
    return PowerLaw(math.nan, math.nan, math.nan, math.nan, math.nan, count, reason)


@dataclass(frozen=True, slots=True, eq=False)
class NoiseAlignment:
    """Gradient noise along eigenvectors v_i of the Hessian; undefined entries are NaN.

    Attributes:
        curvatures: v_iᵀ H v_i, the eigenvalues.  # (k,)
        noises: v_iᵀ C v_i.  # (k,)
        ratios: noises / curvatures; all 1 where C = H, as Eq. 3 predicts near minima. NaN where v_i has not converged,
            so that it is no eigenvector, and where the curvature is zero.  # (k,)
        converged: whether v_i has converged.  # (k,)
        law: noises ≈ constant · curvatures^γ over the pairs that converged with a positive eigenvalue.
        reason: why some have not converged; empty where all have.
    """

    curvatures: Tensor
    noises: Tensor
    ratios: Tensor
    converged: Tensor
    law: PowerLaw
    reason: str

    def __repr__(self) -> str:
        ratios = ", ".join(f"{ratio:.3g}" for ratio in self.ratios.tolist())
        law = f"exponent {self.law.exponent:.3g} of {self.law.num_pairs} pairs"
        unconverged = int((~self.converged).sum())
        told = f", {unconverged} NOT CONVERGED: {self.reason}" if unconverged else ""
        return f"NoiseAlignment(ratios=[{ratios}], {self.law.reason or law}{told})"


def noise_alignment(noise: Operator, eigenpairs: Eigenpairs) -> NoiseAlignment:
    """v_iᵀ C v_i and its ratio to v_iᵀ H v_i along the Hessian's top eigenvectors v_i, and C_ii ∝ H_ii^γ among them.

    The paper's Eq. 3 has C = H near minima, so ratios of 1 and γ = 1. Zhang, Yang and Tu find that C goes with the mean
    square of the single examples' Hessians instead, and 1 ≤ γ ≤ 2. What γ is for S_B in place of C is the same question
    for the noise of mini-batches.

    Args:
        noise: :func:`sgdwalk.gradient_second_moment` or :func:`sgdwalk.gradient_noise`, at the same θ and of the same
            parameters as the Hessian; one product for each eigenvector.
        eigenpairs: of the Hessian. Pairs that have not converged are no eigenpairs: they have no ratio and stay out of
            the power law.

    Raises:
        InputError: where the eigenvectors have another length than the operator's.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> inputs = 2 * torch.eye(3) * torch.tensor([1.0, 2.0, 4.0])
    >>> targets = model(inputs).detach() - 1.0  # residuals of 1: C = 4 XᵀX / N = 2 H
    >>> C = sgdwalk.gradient_second_moment(model, torch.nn.MSELoss(), (inputs, targets))
    >>> vectors, one = torch.eye(3), torch.ones(3)
    >>> values = 2 * inputs.diagonal().double() ** 2 / 3
    >>> from sgdwalk.eigensolver import Eigenpairs
    >>> pairs = Eigenpairs(values, 0 * one, one > 0, vectors, 0, "", vectors)
    >>> result = sgdwalk.noise_alignment(C, pairs)
    >>> [round(ratio, 4) for ratio in result.ratios.tolist()], round(result.law.exponent, 4)
    ([2.0, 2.0, 2.0], 1.0)

    Source: Zhang, Yang and Tu 2026 (arXiv 2602.05600); the paper, Eq. 3.
    """
    check_operator(noise)
    if not isinstance(eigenpairs, Eigenpairs):
        raise InputError(
            f"Eigenpairs are wanted, such as sgdwalk.eigenpairs(hessian, 5) gives; got a {type(eigenpairs).__name__}."
        )
    vectors = eigenpairs.vectors
    if vectors.dim() != 2 or vectors.shape[1] != noise.size:
        raise InputError(
            f"The eigenvectors have shape {tuple(vectors.shape)}, but the noise has {noise.size} coordinates: both "
            "must be of the same parameters."
        )
    curvatures = eigenpairs.values.to(torch.float64)
    along = [float((noise @ vector).to(torch.float64) @ vector.to(noise.device, torch.float64)) for vector in vectors]
    noises = torch.tensor(along, dtype=torch.float64)
    chosen = eigenpairs.converged
    ratios = torch.where(chosen & (curvatures != 0), noises / curvatures, math.nan)
    law = power_law(curvatures[chosen], noises[chosen])
    reason = "" if bool(chosen.all()) else eigenpairs.reason or "the search for eigenpairs stopped short"
    return NoiseAlignment(curvatures, noises, ratios, chosen, law, reason)
