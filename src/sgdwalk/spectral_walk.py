"""The spectral norm of the Hessian along a walk: a measure that remembers where it looked the last time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sgdwalk.curvature import MAX_PRODUCTS, WATCHED
from sgdwalk.draws import generator
from sgdwalk.eigensolver import Eigenpairs, check_settings, extreme_eigenpairs
from sgdwalk.errors import InputError
from sgdwalk.measures import Here, Undefined
from sgdwalk.operators import MATRICES, Operator, ScaledOperator
from sgdwalk.replica import select
from sgdwalk.stability import stability_of

RIVAL = 0.7
"""Share of the top eigenvalue from which the next one is kept in sight at every measurement."""

JUMP = 0.3
"""Relative change of a value since the last search beyond which a look is taken out of turn."""

NEAR = 0.9
"""Cosine between the eigenvectors of two searches from which the next one follows the last. Below it the next start has
an equal random part, unless a rival is in sight: the vector may have turned within their plane."""


class SpectralNorm:
    """The spectral norm along a walk, as a measure: ``watch(..., measures={"spectral_norm": SpectralNorm()})``.

    Each time it starts from the eigenvector that it found the time before in this walk (each walk, and each name in a
    walk, has its own memory), which would follow that one even when another eigenvalue has overtaken it. So the next
    one is kept in sight where it comes near, and every fourth time, and whenever the value has jumped, a random vector
    joins and the next two are looked for as well. Where updates are so large that the eigenvector has turned by 25
    degrees since the time before, with no other near it, the search starts from it and an equal random part.

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
        self._near = True

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
        """From where the last search ended; now and then, and where the value asks for it, with a look at all else."""

        def search(start: Tensor | None, spent: int = 0, *, watched: int, cautious: bool = False) -> Eigenpairs:
            found = extreme_eigenpairs(
                matrix.__matmul__,
                matrix.size,
                which=self.which,
                tolerance=self.tolerance,
                max_products=self.max_products - spent,
                start=start,
                cautious=cautious,
                watched=watched,
                num_kept=1,
                generator=draw,
                dtype=matrix.dtype,
                device=matrix.device,
            )
            return replace(found, num_products=spent + found.num_products)

        self._searches += 1
        start = self._start
        if start is None or start.shape[1] != matrix.size:
            return search(None, watched=WATCHED, cautious=True)
        start = start.to(device=matrix.device, dtype=matrix.dtype)
        top = normalize(start[:1], dim=1)
        look = self.look_every is not None and (self._searches - 1) % self.look_every == 0
        turned = not self._near and not self._rival and self.look_every is not None
        if turned:  # one vector with something of everything in it
            pairs = search(top + _random_unit(matrix, draw), watched=WATCHED if look else 0, cautious=True)
        elif look:
            pairs = search(torch.cat([start, _random_unit(matrix, draw)]), watched=WATCHED)
        else:
            alone = self.look_every is None or not self._rival
            pairs = search(start[:1] if alone else start, watched=0)
        doubtful = not pairs.converged[0] or self._jumped(float(pairs.values[0]), fell_only=turned)
        if not look and doubtful and pairs.num_products < self.max_products:
            pairs = search(torch.cat([pairs.start, _random_unit(matrix, draw)]), pairs.num_products, watched=WATCHED)
        if pairs.converged[0]:
            self._near = abs(float(top[0] @ pairs.vectors[0])) >= NEAR
        return pairs

    def _jumped(self, value: float, *, fell_only: bool) -> bool:
        """Whether a value is too far from the last to be believed; a rise may be, as no search finds too much."""
        sign = 1.0 if self.which == "largest" else math.copysign(1.0, self._value)
        rise, most = sign * (value - self._value), JUMP * abs(self._value)
        return not -most <= rise <= (math.inf if fell_only else most)

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
        return {
            "start": start,
            "value": self._value,
            "searches": self._searches,
            "rival": self._rival,
            "near": self._near,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start = None if state["start"] is None else state["start"].clone()
        self._value, self._searches = state["value"], state["searches"]
        self._rival, self._near = state["rival"], state["near"]


def _random_unit(matrix: Operator, draw: torch.Generator) -> Tensor:
    """A random direction.  # (1, d)"""
    vector = torch.randn(1, matrix.size, generator=draw, dtype=torch.float64)
    return normalize(vector, dim=1).to(device=matrix.device, dtype=matrix.dtype)
