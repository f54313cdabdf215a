"""The Hessian of the full loss: as an operator, its extreme eigenpairs, its spectral norm once or along a walk."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from sgdwalk.draws import generator
from sgdwalk.eigensolver import Eigenpairs, Progress, check_settings, extreme_eigenpairs
from sgdwalk.errors import InputError
from sgdwalk.hooks import bare_optimizer
from sgdwalk.isolation import isolated
from sgdwalk.measures import Here, Undefined
from sgdwalk.objective import LossFunction
from sgdwalk.operators import (
    MATRICES,
    GaussNewtonOperator,
    HessianOperator,
    LossOperator,
    Operator,
    ScaledOperator,
    check_operator,
)
from sgdwalk.replica import select
from sgdwalk.stability import stability_of
from sgdwalk.standing import LossOptions, StandingLoss

MAX_PRODUCTS = 200
"""Products after which an eigenvalue that has not converged is given up; a usual one takes 5 to 20."""

WATCHED = 2
"""Pairs beyond the top one that a look at all else must find roughly: one more than are kept, so a newcomer shows."""

RIVAL = 0.7
"""Share of the top eigenvalue from which the next one is kept in sight at every measurement."""

JUMP = 0.3
"""Relative change of a value since the last search beyond which a look is taken out of turn."""


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


class SpectralNorm:
    """The spectral norm along a walk, as a measure: ``watch(..., measures={"spectral_norm": SpectralNorm()})``.

    Each time it starts from the eigenvector that it found the time before in this walk (each walk, and each name in a
    walk, has its own memory), which would follow that one even when another eigenvalue has overtaken it. So the next
    one is kept in sight where it comes near, and every fourth time, and whenever the value has jumped, a random vector
    joins and the next two are looked for as well.

    Fills ``spectral_norm`` (undefined, with the reason, where it has not converged) and

    - ``_residual``: ‖H v - λ v‖; ``_num_products``: products that it took;
    - ``_threshold``: the eigenvalue beyond which the optimizer's update is unstable on a quadratic: 2/η for SGD, others
      in :func:`sgdwalk.stability_threshold`; undefined, with the reason, where none is known;
    - ``_edge_ratio``: λ / threshold; above 1 the full-batch update is over the edge of stability. For mini-batch SGD
      this is no bound: see :class:`sgdwalk.BatchSharpness`.

    Args:
        tolerance: converged when ‖H v - λ v‖ ≤ tolerance · |λ|.
        max_products: products a step after which it is given up for this step.
        matrix: ``hessian`` or ``gauss_newton``.
        which: ``magnitude``, or ``largest``: the one that stability depends on where negative curvature dominates.
        preconditioned: for Adam, AdamW and RMSprop the eigenvalue of the preconditioned Hessian P⁻¹ H, on which their
            stability depends.
        parameters: names of parameters or layers to restrict it to; it has no threshold then.
        gradient_scale: what the loop multiplies ∇L by before the optimizer has it; the threshold is divided by it.
        look_every: measurements between two looks at what may have overtaken the last eigenvalue; 1 looks each time.
            None follows the last eigenvector alone, as power iteration from it would: the cheapest, and blind to
            another eigenvalue that rises unless the followed one jumps.
        seed: of the random vectors.

    >>> import torch, sgdwalk
    >>> model, data = torch.nn.Linear(2, 1), (torch.randn(50, 2), torch.randn(50, 1))
    >>> optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss()
    >>> measures = {"spectral_norm": sgdwalk.at(sgdwalk.every(5), sgdwalk.SpectralNorm())}
    >>> with sgdwalk.watch(model, optimizer, loss_fn, data, measures=measures) as walk:
    ...     for step in range(6):
    ...         optimizer.zero_grad()
    ...         loss_fn(model(data[0]), data[1]).backward()
    ...         optimizer.step()
    >>> walk.run.steps["spectral_norm"].notna().tolist()
    [True, False, False, False, False, True]
    >>> float(walk.run.steps["spectral_norm_threshold"][5])
    20.0

    Source: paper, Figures 3 and 7; Cohen et al., 2021 (arXiv 2103.00065) for the edge.
    """

    def __init__(
        self,
        tolerance: float = 1e-3,
        *,
        max_products: int = MAX_PRODUCTS,
        matrix: Literal["hessian", "gauss_newton"] = "hessian",
        which: Literal["magnitude", "largest"] = "magnitude",
        preconditioned: bool = False,
        parameters: Sequence[str] | None = None,
        gradient_scale: float = 1.0,
        look_every: int | None = 4,
        seed: int = 0,
    ):
        check_settings(k=1, which=which, tolerance=tolerance, max_products=max_products, size=1)
        if matrix not in MATRICES:
            raise InputError(f"matrix={matrix!r} does not exist; there is {' and '.join(map(repr, MATRICES))}.")
        self.tolerance = tolerance
        self.max_products = max_products
        self.matrix = matrix
        self.which = which
        self.preconditioned = preconditioned
        self.parameters = parameters
        if not gradient_scale > 0:
            raise InputError(f"gradient_scale={gradient_scale!r}: a factor above zero is wanted.")
        self.gradient_scale = gradient_scale
        whole = isinstance(look_every, int) and not isinstance(look_every, bool)
        if not (look_every is None or (whole and look_every >= 1)):
            raise InputError(f"look_every={look_every!r}: an integer of at least 1 is wanted, or None for no looks.")
        self.look_every = look_every
        self.seed = seed
        self._forget()

    def _forget(self) -> None:
        self._start: Tensor | None = None
        self._value = math.nan
        self._searches = 0
        self._rival = False

    def for_walk(self, here: Here) -> SpectralNorm:
        """One with these settings and a memory of its own; InputError for parameters that the model does not have."""
        model = here.full_loss().site.source
        if self.parameters is not None:  # of the whole model: a layer may begin to walk later
            select([name for name, _ in model.named_parameters()], self.parameters)
        own = copy.copy(self)
        own._forget()
        return own

    def __call__(self, here: Here) -> dict[str, float | Undefined]:
        matrix: Operator = here.matrix(self.matrix, parameters=self.parameters)
        stability = stability_of(here.optimizers, here.walked(self.parameters))
        if self.preconditioned:
            if stability.preconditioner is None:
                return {"value": Undefined(stability.reason or "the optimizer has no preconditioner")}
            matrix = ScaledOperator(matrix, stability.preconditioner.rsqrt(), stability.l2)
        pairs = self._search(matrix, generator("start of SpectralNorm", self.seed, here.step))
        value, residual, converged = float(pairs.values[0]), float(pairs.residuals[0]), bool(pairs.converged[0])
        self._start, self._value = (pairs.start, value) if converged else (None, math.nan)
        self._rival = bool((pairs.others.abs() > RIVAL * abs(value)).any())
        threshold, why = self._threshold(stability)
        found = f"{pairs.reason}; the best value is {value:.6g} with residual {residual:.2g}"
        return {
            "value": value if converged else Undefined(found),
            "residual": residual,
            "num_products": float(pairs.num_products),
            "threshold": Undefined(why) if threshold is None else threshold,
            "edge_ratio": Undefined(why or found) if threshold is None or not converged else value / threshold,
        }

    def _search(self, matrix: Operator, draw: torch.Generator) -> Eigenpairs:
        """From where the last search ended; now and then, and where the value has jumped, with a look at all else."""

        def search(start: Tensor | None, spent: int = 0, *, look: bool) -> Eigenpairs:
            if start is not None and look:
                start = torch.cat([start, _random_unit(matrix, draw)[None]])
            found = extreme_eigenpairs(
                matrix.__matmul__,
                matrix.size,
                which=self.which,
                tolerance=self.tolerance,
                max_products=self.max_products - spent,
                start=start,
                cautious=start is None,
                watched=WATCHED if look else 0,
                num_kept=1,
                generator=draw,
                dtype=matrix.dtype,
                device=matrix.device,
            )
            return replace(found, num_products=spent + found.num_products)

        self._searches += 1
        start = self._start
        if start is None or start.shape[1] != matrix.size:
            return search(None, look=True)
        start = start.to(device=matrix.device, dtype=matrix.dtype)
        look = self.look_every is not None and (self._searches - 1) % self.look_every == 0
        alone = self.look_every is None or not (look or self._rival)
        pairs = search(start[:1] if alone else start, look=look)
        jumped = abs(float(pairs.values[0]) - self._value) > JUMP * abs(self._value)
        if look or (pairs.converged[0] and not jumped) or pairs.num_products == self.max_products:
            return pairs
        return search(pairs.start, pairs.num_products, look=True)

    def _threshold(self, stability: Any) -> tuple[float | None, str]:
        if self.parameters is not None:
            return None, "the matrix is restricted to some parameters"
        if stability.preconditioner is not None and not self.preconditioned:
            return None, "the threshold is one of the preconditioned Hessian: pass preconditioned=True"
        if stability.threshold is None or stability.reason:
            return None, stability.reason or "the optimizer has no threshold"
        return stability.threshold / self.gradient_scale, ""

    def state_dict(self) -> dict[str, Any]:
        """Where the next search starts, for a walk that is saved and resumed."""
        start = None if self._start is None else self._start.clone()
        return {"start": start, "value": self._value, "searches": self._searches, "rival": self._rival}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start = None if state["start"] is None else state["start"].clone()
        self._value, self._searches, self._rival = state["value"], state["searches"], state["rival"]


def _random_unit(matrix: Operator, draw: torch.Generator) -> Tensor:
    vector = torch.randn(matrix.size, generator=draw, dtype=torch.float64)
    return normalize(vector, dim=0).to(device=matrix.device, dtype=matrix.dtype)
