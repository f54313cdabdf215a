"""The Hessian of the full loss: as an operator, its extreme eigenpairs, its spectral norm once or along a walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Unpack

from torch import Tensor, nn
from torch.optim import Optimizer

from sgdwalk.draws import generator
from sgdwalk.eigensolver import Eigenpairs, Progress, check_settings, extreme_eigenpairs
from sgdwalk.errors import InputError
from sgdwalk.hooks import bare_optimizer
from sgdwalk.isolation import isolated
from sgdwalk.objective import LossFunction
from sgdwalk.operators import (
    GaussNewtonOperator,
    HessianOperator,
    LossOperator,
    Operator,
    ScaledOperator,
    check_operator,
)
from sgdwalk.stability import stability_of
from sgdwalk.standing import LossOptions, StandingLoss

MAX_PRODUCTS = 200
"""Products after which an eigenvalue that has not converged is given up; a usual one takes 5 to 20."""

WATCHED = 2
"""Pairs beyond the top one that a look at all else must find roughly: one more than are kept, so a newcomer shows."""


def hessian(model: nn.Module, loss_fn: LossFunction, data: Any, **options: Unpack[LossOptions]) -> HessianOperator:
    """∇²L at the model's parameters as an operator: ``hessian(...) @ v``.

    The model is copied: it may go on training, the operator stays where it was. Evaluation mode but for BatchNorm, as
    in :func:`sgdwalk.watch`. A product costs about six forward passes over ``data``, the first three more; gradient
    graphs are kept between products while they fit into a quarter of the free memory (``release()`` lets them go).

    Args:
        model: the model; θ are its parameters that need a gradient, in its order.
        loss_fn: ``loss_fn(output, target)`` returning a batch mean, per-example losses, or a pair (sum, count).
        data: defines L: a pair of tensors, a map-style data set, a DataLoader or a list of batches.
        **options: ``batch_size``, ``batchnorm``, ``parameters``, ``forward``, ``partition_seed``: see
            :class:`sgdwalk.LossOptions`.

    Raises:
        InputError: for a model, loss_fn or data that cannot be measured.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> inputs, targets = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> sgdwalk.hessian(model, torch.nn.MSELoss(), (inputs, targets)).dense().tolist()  # 2 XᵀX / N
    [[1.0, 0.0], [0.0, 4.0]]
    """
    loss = StandingLoss(model, loss_fn, data, **options)
    return HessianOperator(loss, guard=loss.evaluating)


def gauss_newton(
    model: nn.Module, loss_fn: LossFunction, data: Any, **options: Unpack[LossOptions]
) -> GaussNewtonOperator:
    """The generalized Gauss-Newton matrix (1/N) Σ J_iᵀ ∇²_z ℓ_i J_i as an operator; z are the model's outputs.

    It is the Hessian of L without the curvature of the outputs themselves, and positive semi-definite where the loss
    is convex in z (cross-entropy, squared error). Arguments and errors are those of :func:`sgdwalk.hessian`.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> inputs, targets = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> sgdwalk.gauss_newton(model, torch.nn.MSELoss(), (inputs, targets)).dense().tolist()
    [[1.0, 0.0], [0.0, 4.0]]

    Source: Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent", 2002.
    """
    loss = StandingLoss(model, loss_fn, data, **options)
    return GaussNewtonOperator(loss, guard=loss.evaluating)


def preconditioned(matrix: LossOperator, optimizer: Optimizer) -> ScaledOperator:
    """P^(-1/2) (A + γ I) P^(-1/2) for the optimizer's preconditioner P and the L2 term γ that goes through it.

    It has the eigenvalues of P⁻¹ (A + γ I), on which the stability of Adam depends as that of SGD does on those of A.
    Both are of one moment: make the matrix after an update, and this before the next one. P stays as it is now.

    Args:
        matrix: :func:`sgdwalk.hessian` or :func:`sgdwalk.gauss_newton` of the model that the optimizer trains.
        optimizer: Adam, AdamW or RMSprop, after at least one update.

    Raises:
        InputError: for an optimizer without a preconditioner, or before its first update; where the model has moved
            since the matrix was made.

    >>> import torch, sgdwalk
    >>> model, data = torch.nn.Linear(2, 1), (torch.randn(8, 2), torch.randn(8, 1))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> torch.nn.functional.mse_loss(model(data[0]), data[1]).backward()
    >>> optimizer.step()
    >>> matrix = sgdwalk.preconditioned(sgdwalk.hessian(model, torch.nn.MSELoss(), data), optimizer)
    >>> sgdwalk.eigenpairs(matrix).converged.tolist()
    [True]

    Source: Cohen et al., "Adaptive Gradient Methods at the Edge of Stability", 2022 (arXiv 2207.14484).
    """
    check_operator(matrix, LossOperator)
    site = matrix.full_loss.site
    stability = stability_of([bare_optimizer(optimizer)], [site.vector.parameters[index] for index in matrix.indices])
    if stability.preconditioner is None:
        raise InputError(f"There is no preconditioner to apply: {stability.reason or 'the optimizer has none'}.")
    if not site.stands_here():
        raise InputError(
            "The model has moved since the matrix was made, so that the optimizer's preconditioner belongs to another "
            "point: make the matrix anew, after the last update."
        )
    return ScaledOperator(matrix, stability.preconditioner.rsqrt(), stability.l2)


def eigenpairs(
    matrix: Operator,
    k: int = 1,
    *,
    which: Literal["magnitude", "largest", "smallest"] = "magnitude",
    tolerance: float = 1e-3,
    max_products: int = MAX_PRODUCTS,
    start: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The k eigenpairs of largest magnitude, or the k algebraically largest or smallest ones.

    Each with its residual ‖A x - λ x‖, within which an eigenvalue of A lies. Near the true one the error of λ is about
    the residual's square over the distance to the next eigenvalue. Memory: two vectors of d coordinates for each vector
    of the basis, which grows by one with each product, to 40 at most.

    Args:
        matrix: a symmetric operator, such as :func:`sgdwalk.hessian` gives.
        k: how many pairs.
        which: ``magnitude`` (signed values), ``largest`` or ``smallest``.
        tolerance: a pair has converged when its residual is at most tolerance · |λ|.
        max_products: products after which the rest is given up: ``converged`` is then false for it.
        start: unit vectors near the wanted ones, such as another point's ``.start``; random ones by default.  # (m, d)
        seed: of the random vectors; the same seed gives the same numbers.
        progress: called after each product with the products so far, the wanted pairs that have converged, and the
            relative residual of the one that is worked on.

    Raises:
        InputError: for a matrix that is no operator, or a setting that means nothing.

    >>> import torch, sgdwalk
    >>> inputs, targets = torch.eye(3) * torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 1)
    >>> matrix = sgdwalk.hessian(torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss(), (inputs, targets))
    >>> pairs = sgdwalk.eigenpairs(matrix, 2, which="smallest")
    >>> [round(3 * value / 2, 3) for value in pairs.values.tolist()], pairs.converged.tolist()
    ([1.0, 4.0], [True, True])
    """
    check_operator(matrix)
    with isolated(matrix.device):
        return extreme_eigenpairs(
            matrix.__matmul__,
            matrix.size,
            k=k,
            which=which,
            tolerance=tolerance,
            max_products=max_products,
            start=start,
            cautious=start is None,
            watched=min(WATCHED, matrix.size - k) if start is None else 0,
            num_kept=1,
            generator=generator("start of an eigensolver", seed),
            progress=progress,
            dtype=matrix.dtype,
            device=matrix.device,
        )


@dataclass(frozen=True, slots=True, eq=False)
class SpectralNormResult:
    """The eigenvalue of largest magnitude, and what it is worth.

    Attributes:
        value: λ, signed, nats per squared unit of the parameters.
        residual: ‖H v - λ v‖₂: some eigenvalue of H lies within this distance of λ.
        num_products: products H v that it took.
        converged: whether the residual is at most tolerance · |λ|.
        vector: the unit eigenvector v.  # (d,)
        reason: why it has not converged; empty where it has.
        method: ``double_backward``, or ``finite_difference`` where a kernel has no second derivative.
        start: pass it as ``start=`` for a model close to this one.  # (2, d)
    """

    value: float
    residual: float
    num_products: int
    converged: bool
    vector: Tensor
    reason: str
    method: str
    start: Tensor

    def __repr__(self) -> str:
        state = "converged" if self.converged else f"NOT CONVERGED: {self.reason}"
        number = f"value={self.value:.7g}, residual={self.residual:.2g}"
        return f"SpectralNormResult({number}, {self.num_products} products, {state})"


def spectral_norm(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    tolerance: float = 1e-3,
    max_products: int = MAX_PRODUCTS,
    start: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Unpack[LossOptions],
) -> SpectralNormResult:
    """The eigenvalue of largest magnitude of the Hessian of L at the model's parameters (paper, Figures 3 and 7).

    Costs about six forward passes over ``data`` for each product and three more at the beginning; 10 to 20 products
    from a random start, 3 to 7 from a ``start`` close by.

    Args:
        model: the model; it is copied and stays as it is.
        loss_fn: ``loss_fn(output, target)`` returning a batch mean, per-example losses, or a pair (sum, count).
        data: defines L: a pair of tensors, a map-style data set, a DataLoader or a list of batches.
        tolerance: converged when ‖H v - λ v‖ ≤ tolerance · |λ|. The error of λ is about its square in relative terms,
            so 0.05 is enough for a value within 1 % where the largest eigenvalues are apart.
        max_products: products after which it is given up; the result then says ``converged=False`` and why.
        start: vectors to begin with, such as the last result's ``start``.  # (m, d)
        seed: of the random start.
        progress: called after each product with the products so far, the pairs that have converged (0 or 1) and the
            relative residual.
        **options: ``batch_size`` (required with BatchNorm), ``batchnorm``, ``parameters``, ``forward``,
            ``partition_seed``: see :class:`sgdwalk.LossOptions`.

    Raises:
        InputError: for a model, loss_fn, data or setting that cannot be measured.

    >>> import torch, sgdwalk
    >>> inputs, targets = torch.eye(3) * torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 1)
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> result = sgdwalk.spectral_norm(model, torch.nn.MSELoss(), (inputs, targets))  # 2/3 · 3²
    >>> round(result.value, 4), result.converged
    (6.0, True)
    """
    matrix = hessian(model, loss_fn, data, **options)
    check_settings(k=1, which="magnitude", tolerance=tolerance, max_products=max_products, size=matrix.size)
    pairs = eigenpairs(
        matrix, tolerance=tolerance, max_products=max_products, start=start, seed=seed, progress=progress
    )
    return SpectralNormResult(
        value=float(pairs.values[0]),
        residual=float(pairs.residuals[0]),
        num_products=pairs.num_products,
        converged=bool(pairs.converged[0]),
        vector=pairs.vectors[0],
        reason=pairs.reason,
        method=matrix.method,
        start=pairs.start,
    )
