"""Measures of the user's own: plain functions of where the optimizer stands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from sgdwalk.errors import InputError
from sgdwalk.objective import FullLoss, LossSums
from sgdwalk.operators import MATRICES, LossOperator, Operator, contiguous
from sgdwalk.when import StepPredicate


@dataclass(frozen=True, slots=True)
class Undefined:
    """What a measure returns in place of a number that has no meaning: the column is then NaN, with this reason."""

    reason: str


Measured = float | Undefined | Mapping[str, float | Undefined]


class Here:
    """θ_t, the point that the row of step t describes, as a measure sees it.

    Attributes:
        step: t, counted from 0.
        epoch: counted from 1; None where the loop did not say.
        learning_rate: of the first parameter group.
        optimizers: those whose update t was just performed, with the state that it left; to be read only.
    """

    def __init__(
        self,
        step: int,
        epoch: int | None,
        learning_rate: float,
        point: Tensor,
        full_loss: FullLoss | None,
        known_loss: LossSums | None,
        optimizers: Sequence[Optimizer] = (),
    ):
        self.step = step
        self.epoch = epoch
        self.learning_rate = learning_rate
        self.optimizers = tuple(optimizers)
        self._point = point
        self._full_loss = full_loss
        self._known_loss = known_loss
        self._stands = False
        self._operators: dict[tuple[type, tuple[int, ...] | None], LossOperator] = {}
        self._resources = contextlib.ExitStack()

    @property
    def parameters(self) -> Tensor:
        """A copy of θ_t, flat, in the order of the optimizer's groups.  # (d,)"""
        return self._point.clone()

    @property
    def hvp_method(self) -> str:
        """How the last :meth:`hvp` was had: ``double_backward`` or ``finite_difference``."""
        return self._objective().hvp_method

    def loss(self) -> float:
        """The full loss L(θ_t), nats per example."""
        if self._known_loss is None:
            objective = self._objective()
            self._known_loss = objective.sums()
        return self._known_loss.mean

    def gradient(self) -> Tensor:
        """∇L(θ_t) over all of ``data``, flat.  # (d,)"""
        return self._objective().gradient()

    def hvp(self, vector: Tensor) -> Tensor:
        """∇²L(θ_t) v over all of ``data``, flat.  # (d,) -> (d,)

        Raises:
            InputError: where v is not a vector of d coordinates.
        """
        if vector.shape != self._point.shape:
            raise InputError(
                f"hvp() got a vector of shape {tuple(vector.shape)}; it takes one of {tuple(self._point.shape)}."
            )
        return self.matrix("hessian") @ vector

    def matrix(self, name: str = "hessian", *, parameters: Sequence[str] | None = None) -> Operator:
        """A matrix of L at θ_t as an operator, ``matrix @ v``; all measures of a step share what it keeps.

        Args:
            name: ``hessian`` or ``gauss_newton``.
            parameters: names of parameters or layers to restrict it to; all walked ones by default.

        Raises:
            InputError: for another name, or for parameters that do not walk.
        """
        if name not in MATRICES:
            raise InputError(f"matrix {name!r} does not exist; there is {' and '.join(map(repr, MATRICES))}.")
        objective = self._objective()
        indices = None if parameters is None else tuple(objective.site.indices(parameters))
        key = (MATRICES[name], indices)
        if key not in self._operators:
            if not self._operators:
                self._resources.enter_context(contiguous(objective))
            self._operators[key] = MATRICES[name](objective, indices)
            self._resources.callback(self._operators[key].release)
        return self._operators[key]

    def walked(self, parameters: Sequence[str] | None = None) -> list[nn.Parameter]:
        """The user's own parameters that walk, or those of them that are named, in the order of the operators.

        They stand at θ_{t+1} already; their values at θ_t are those of :attr:`parameters`.
        """
        site = self._objective().site
        own = site.vector.parameters
        return own if parameters is None else [own[index] for index in site.indices(parameters)]

    def full_loss(self) -> FullLoss:
        """L, standing at θ_t, for measures that look at single evaluation batches."""
        return self._objective()

    def leave(self) -> None:
        """Let go of all that was kept for the measures of this step."""
        self._operators = {}
        self._resources.close()

    def _objective(self) -> FullLoss:
        if self._full_loss is None:
            raise InputError("This walk was given no data and loss_fn, so the full loss cannot be measured.")
        if not self._stands:  # once: writing would spoil graphs that are kept
            self._full_loss.site.write(self._full_loss.site.vector.views(self._point))
            self._stands = True
        return self._full_loss


class Measure(Protocol):
    """A function of :class:`Here`; one with a memory also has ``state_dict`` and ``load_state_dict``.

    One that may be used in several walks, or can tell at once what it cannot measure, has a method ``for_walk(here)``:
    :func:`sgdwalk.watch` calls it at θ_0, before training starts, and takes what it returns in this walk: another
    measure with a memory of its own, or itself. It raises :class:`sgdwalk.InputError` where it could never be taken.
    """

    def __call__(self, here: Here, /) -> Measured: ...


@dataclass(frozen=True)
class At:
    """A measure with a schedule of its own; made by :func:`at`."""

    when: StepPredicate
    measure: Callable[[Here], Measured]


def at(when: StepPredicate, measure: Callable[[Here], Measured]) -> At:
    """Take a measure at steps of its own instead of those at which segments are measured.

    Args:
        when: predicate over steps, as for ``watch``.
        measure: ``f(here)``, returning a float, ``sgdwalk.Undefined(reason)``, or a dict of these. The dict's key
            ``"value"`` fills the measure's own column; another key ``k`` fills ``name_k``.

    >>> import sgdwalk
    >>> every_tenth = sgdwalk.at(sgdwalk.every(10), lambda here: float(here.gradient().norm()))
    >>> every_tenth.when(20)
    True
    """
    return At(when, measure)


def columns(name: str, measured: Any) -> tuple[dict[str, float], dict[str, str]]:
    """What a measure returned as columns, and reasons for those that are undefined."""
    parts = dict(measured) if isinstance(measured, Mapping) else {"value": measured}
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for key, part in parts.items():
        column = name if key == "value" else f"{name}_{key}"
        if isinstance(part, Undefined):
            values[column], reasons[column] = math.nan, part.reason
            continue
        if isinstance(part, Tensor) and part.numel() == 1:
            part = part.item()
        if isinstance(part, bool) or not isinstance(part, (int, float)):
            try:
                part = float(part)
            except (TypeError, ValueError):
                raise InputError(
                    f"The measure {name!r} returned a {type(part).__name__}: return a float, or a dict of floats."
                ) from None
        values[column] = float(part) if math.isfinite(part) else math.nan
        if not math.isfinite(part):
            reasons[column] = f"the measure returned {float(part)}"
    return values, reasons


def for_walk(name: str, measure: Callable[[Here], Measured], here: Here) -> Callable[[Here], Measured]:
    """The measure to take in the walk that starts here.

    Raises:
        InputError: where the measure says that it cannot be taken in this walk.
    """
    if not hasattr(measure, "for_walk"):
        return measure
    try:
        return measure.for_walk(here)  # pyright: ignore[reportFunctionMemberAccess]
    except InputError as error:
        raise InputError(f"measures[{name!r}] cannot be taken. {error}") from None


def state_of(measure: Callable[[Here], Measured]) -> dict[str, Any] | None:
    """The memory of a measure that has one."""
    return measure.state_dict() if hasattr(measure, "state_dict") else None  # pyright: ignore[reportFunctionMemberAccess]
