"""Where an optimizer's step becomes unstable: the largest curvature of a quadratic on which it does not diverge.

Each threshold is the λ at which the recursion on L = λ θ² / 2 has a characteristic root at z = -1; below it all roots
lie inside the unit circle. With learning rate η, momentum β and dampening τ as PyTorch has them:

- SGD with momentum: u ← β u + (1 - τ) λ θ, θ ← θ - η u. Roots of z² - (1 + β - η (1 - τ) λ) z + β = 0; at z = -1:
  λ = (2 + 2 β) / ((1 - τ) η). Without momentum: 2 / η.
- Nesterov's: u ← β u + λ θ, θ ← θ - η (λ θ + β u). Roots of z² - (1 + β - η (1 + β) λ) z + β (1 - η λ) = 0; at
  z = -1: λ = (2 + 2 β) / ((1 + 2 β) η).
- Adam with a preconditioner P that stands still: u ← β₁ u + (1 - β₁) λ θ, θ ← θ - η u on the curvature of
  P^(-1/2) H P^(-1/2): heavy ball with τ = β₁, λ = (2 + 2 β₁) / ((1 - β₁) η).
- AdamW decays θ apart from that, θ ← (1 - η γ) θ - η u; at z = -1: λ = (2 - η γ) (1 + β₁) / ((1 - β₁) η).
- RMSprop: heavy ball on its preconditioner.

An L2 term γ adds γ to the curvature that SGD sees, so that on the Hessian of L its threshold is lower by γ. Where there
is a preconditioner it adds γ P⁻¹, which is part of the matrix then (``l2``).

Source: Cohen et al., 2021 (arXiv 2103.00065), for gradient descent with and without momentum; Cohen et al., 2022
(arXiv 2207.14484), for Adam.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from sgdwalk.hooks import bare_optimizer


@dataclass(frozen=True, slots=True, eq=False)
class Stability:
    """Where an optimizer's step becomes unstable.

    Attributes:
        threshold: largest stable eigenvalue of the Hessian of L, or of P⁻¹ (H + l2 I) where there is a preconditioner;
            None where none is known.
        reason: why there is no threshold, or no preconditioner for one that goes with it; empty otherwise.
        preconditioner: the diagonal of P, as the last update had it; None where the optimizer has none.  # (d,)
        l2: the L2 term that goes through the preconditioner; 0 without one.
    """

    threshold: float | None
    reason: str
    preconditioner: Tensor | None = None
    l2: float = 0.0

    def __repr__(self) -> str:
        return f"Stability(threshold={self.threshold}, reason={self.reason!r}, l2={self.l2})"


def stability_threshold(optimizer: Optimizer | Sequence[Optimizer]) -> Stability:
    """The largest curvature of a quadratic at which the optimizer, as it is set now, does not diverge.

    2/η for SGD, (2 + 2β) / ((1 - τ) η) with momentum β and dampening τ, (2 + 2β) / ((1 + 2β) η) with Nesterov's, each
    less the L2 term γ; on the preconditioned Hessian (2 + 2β₁) / ((1 - β₁) η) for Adam, (2 - ηγ)(1 + β₁) / ((1 - β₁) η)
    for AdamW and (2 + 2β) / η for RMSprop. None of them is a bound for mini-batch training. A subclass of one of these
    that leaves ``step`` as it is has the same threshold.

    Args:
        optimizer: the optimizer, or a list of those that together make one update.

    Returns:
        A :class:`Stability`: ``threshold`` is None, with a ``reason``, where none is known.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(2, 1)
    >>> sgdwalk.stability_threshold(torch.optim.SGD(model.parameters(), lr=0.1)).threshold
    20.0
    >>> sgdwalk.stability_threshold(torch.optim.Adagrad(model.parameters())).reason
    'no threshold is known for Adagrad'

    Source: Cohen et al., 2021 (arXiv 2103.00065) and 2022 (arXiv 2207.14484).
    """
    optimizers = [optimizer] if not isinstance(optimizer, (list, tuple)) else optimizer
    bare = [bare_optimizer(each) for each in optimizers]
    parameters = {id(p): p for each in bare for group in each.param_groups for p in group["params"]}
    return stability_of(bare, list(parameters.values()))


def stability_of(optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter]) -> Stability:
    """The same for some of the optimizers' parameters, the preconditioner in their order."""
    if not optimizers:
        return Stability(None, "no optimizer is known")
    kinds = {kind_of(optimizer) for optimizer in optimizers}
    if len(kinds) > 1:
        return Stability(
            None, f"several optimizers ({', '.join(sorted(kind.__name__ for kind in kinds))}) share the update"
        )
    (kind,) = kinds
    if kind not in _THRESHOLDS:
        return Stability(None, f"no threshold is known for {kind.__name__}")
    groups = {id(p): group for each in optimizers for group in each.param_groups for p in group["params"]}
    foreign = sum(id(parameter) not in groups for parameter in parameters)
    if foreign:
        return Stability(None, f"{foreign} of the {len(parameters)} parameters are not the optimizer's")
    chosen = [{key: _plain(groups[id(parameter)][key]) for key in _KEYS[kind]} for parameter in parameters]
    threshold, reason = _common_threshold(kind, chosen)
    if kind is SGD:
        return Stability(threshold, reason)
    coupled = [0.0 if kind is AdamW or each.get("decoupled_weight_decay") else each["weight_decay"] for each in chosen]
    if len(set(coupled)) > 1:
        return Stability(None, "the parameter groups differ in weight_decay")
    scales = [_preconditioner(optimizers, p, kind, each) for p, each in zip(parameters, chosen, strict=True)]
    if any(scale is None for scale in scales):
        none_yet = f"{kind.__name__} has no preconditioner before its first update of every parameter"
        return Stability(threshold, reason or none_yet)
    preconditioner = torch.cat([scale.reshape(-1) for scale in scales if scale is not None])
    zeros = int((~(preconditioner > 0)).sum())
    if zeros:  # eps=0, and coordinates that never had a gradient
        none_there = (
            f"{zeros:,} of the {len(preconditioner):,} coordinates of {kind.__name__}'s preconditioner are zero"
        )
        return Stability(threshold, reason or none_there, None, coupled[0])
    return Stability(threshold, reason, preconditioner, coupled[0])


def kind_of(optimizer: Optimizer) -> type[Optimizer]:
    """The optimizer's class, or the one that it inherits ``step`` from where that one's threshold is known."""
    step = inspect.unwrap(type(optimizer).step)  # torch wraps the step of each class whose instances it has seen
    inherited = (kind for kind in type(optimizer).__mro__ if kind in _THRESHOLDS and inspect.unwrap(kind.step) is step)
    return next(inherited, type(optimizer))


def _common_threshold(kind: type[Optimizer], chosen: Sequence[dict[str, Any]]) -> tuple[float | None, str]:
    """The threshold that all parameters share, or why there is none."""
    settings = chosen[0]
    differing = sorted(key for key in settings if len({each[key] for each in chosen}) > 1)
    if differing:
        return None, f"the parameter groups differ in {', '.join(differing)}"
    if settings["maximize"]:
        return None, "the optimizer maximizes"
    if not settings["lr"] > 0:
        return None, f"the learning rate is {settings['lr']:g}"
    momentum = settings["momentum"] if "momentum" in settings else settings["betas"][0]
    if momentum >= 1:
        return None, f"with a momentum of {momentum:g} no step is stable"
    if momentum and settings.get("dampening", 0) >= 1:
        return None, f"no threshold is known for a dampening of {settings['dampening']:g}"
    threshold = _THRESHOLDS[kind](settings)
    if threshold is None:
        return None, "no threshold is known for centered RMSprop"
    if kind is SGD:
        threshold -= settings["weight_decay"]
    if threshold <= 0:
        return None, "weight decay alone makes the step unstable"
    return threshold, ""


def _sgd(settings: dict[str, Any]) -> float:
    rate, beta = settings["lr"], settings["momentum"]
    if settings["nesterov"]:
        return (2 + 2 * beta) / ((1 + 2 * beta) * rate)
    return (2 + 2 * beta) / ((1 - settings["dampening"] * (beta != 0)) * rate)


def _adam(settings: dict[str, Any]) -> float:
    rate, beta = settings["lr"], settings["betas"][0]
    decay = settings["weight_decay"] if settings["decoupled_weight_decay"] else 0.0
    return (2 - rate * decay) * (1 + beta) / ((1 - beta) * rate)


def _rmsprop(settings: dict[str, Any]) -> float | None:
    return None if settings["centered"] else (2 + 2 * settings["momentum"]) / settings["lr"]


_THRESHOLDS: dict[type[Optimizer], Any] = {SGD: _sgd, Adam: _adam, AdamW: _adam, RMSprop: _rmsprop}
_ADAM_KEYS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")
_KEYS: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize"),
    Adam: _ADAM_KEYS,
    AdamW: _ADAM_KEYS,
    RMSprop: ("lr", "momentum", "alpha", "eps", "weight_decay", "centered", "maximize"),
}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value


def _preconditioner(
    optimizers: Sequence[Optimizer], parameter: nn.Parameter, kind: type[Optimizer], settings: dict[str, Any]
) -> Tensor | None:
    """The denominator of the parameter's last update, with the bias correction of both moments."""
    state = next((optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state), {})
    if not state or float(state["step"]) == 0:
        return None
    if kind is RMSprop:
        return state["square_avg"].sqrt() + settings["eps"]
    first, second = settings["betas"]
    step = float(state["step"])
    square = state["max_exp_avg_sq" if settings["amsgrad"] else "exp_avg_sq"]
    return (1 - first**step) * ((square / (1 - second**step)).sqrt() + settings["eps"])
