"""Gradient descent with isotropic noise: ε_t ~ N(0, σ² I) is added to the gradient at every update (paper, section 4).

ε_t is a function of (seed, t) alone: drawing it moves no other random stream, and resuming needs no generator's state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch._compile import _disable_dynamo
from torch.optim import LBFGS, Optimizer

from sgdwalk.errors import InputError
from sgdwalk.hooks import bare_optimizer, closure_of, step_depth, was_skipped, with_closure
from sgdwalk.params import ParameterVector


class IsotropicNoise:
    """Noise on the gradients of one optimizer, until ``close()``; made by :func:`isotropic_noise`.

    Attributes:
        sigma: σ, the standard deviation of each coordinate of ε_t, in units of the gradient.
        seed: of the noise.
        step: t of the next ε_t: how many updates have had their noise.
    """

    def __init__(self, optimizer: Optimizer, sigma: float, seed: int):
        if isinstance(optimizer, LBFGS):
            raise InputError(
                "L-BFGS evaluates its gradient many times in one step, so there is no one gradient to add noise to: "
                "use an optimizer that takes one gradient an update, such as SGD."
            )
        if any(
            isinstance(getattr(hook, "__self__", None), IsotropicNoise)
            for hook in optimizer._optimizer_step_pre_hooks.values()
        ):
            raise InputError("This optimizer's gradients have isotropic noise already: close the other noise first.")
        self.sigma = sigma
        self.seed = seed
        self.step = 0
        _vector(optimizer)  # raises where the parameters cannot have noise
        self._handle = optimizer.register_step_pre_hook(self._before)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, enough to go on with the very noise that an uninterrupted training would have had."""
        return {"seed": self.seed, "step": self.step, "sigma": self.sigma}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict()`` was taken; its seed and σ replace those given at the start."""
        self.seed, self.step, self.sigma = int(state["seed"]), int(state["step"]), float(state["sigma"])

    def close(self) -> None:
        """Take the hook off: from here on gradients are left as they are."""
        self._handle.remove()

    def __enter__(self) -> IsotropicNoise:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_disable_dynamo
    def _before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if step_depth(optimizer) > 1:
            return None
        if kwargs.get("grad_scaler") is not None:
            raise InputError(
                f"The step() of {type(optimizer).__name__} takes the gradient scaler itself and unscales within, where "
                "no noise can be added: call scaler.unscale_(optimizer) and optimizer.step() without it."
            )
        closure = closure_of(args, kwargs)
        if closure is None:
            self._add(optimizer)
            return None
        return with_closure(args, kwargs, self._with_noise(optimizer, closure))

    def _with_noise(self, optimizer: Optimizer, original: Callable[[], Any]) -> Callable[[], Any]:
        """A closure's gradient does not exist before the step: it gets its noise right after it was computed."""
        done = False

        def closure() -> Any:
            nonlocal done
            if done:
                raise InputError(
                    f"{type(optimizer).__name__} calls its closure a second time in one step, and only one of the two "
                    "gradients can have the update's noise: use an optimizer that takes one gradient an update."
                )
            loss = original()
            done = True
            self._add(optimizer)
            return loss

        return closure

    @torch.no_grad()
    def _add(self, optimizer: Optimizer) -> None:
        """Add ε_t to every ``.grad``, in place."""
        if was_skipped(optimizer):  # such a step has no t
            return
        if self.sigma > 0:
            vector = _vector(optimizer)
            for parameter in vector.parameters:
                if parameter.grad is not None and parameter.grad.layout != torch.strided:
                    raise InputError(
                        f"A parameter of shape {tuple(parameter.shape)} has a sparse gradient, and isotropic noise is "
                        "dense: make its gradient dense, such as with sparse=False of an embedding."
                    )
            # A fused optimizer divides by this in its step: its gradients are still those of the scaled loss.
            scale = getattr(optimizer, "grad_scale", None)
            generator = torch.Generator(vector.device).manual_seed(stream_seed(self.seed, self.step))
            for parameter in vector.parameters:
                # Drawn for frozen ones too, so that freezing a layer leaves the noise of the others as it is.
                noise = torch.randn(
                    parameter.shape, generator=generator, dtype=parameter.dtype, device=parameter.device
                ).mul_(self.sigma)
                if not parameter.requires_grad:
                    continue
                if scale is not None:
                    noise.mul_(scale)
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(noise)
        self.step += 1


def isotropic_noise(
    optimizer: Optimizer,
    max_gradient_variance: float,
    *,
    factor: float = 0.1,
    noise: Literal["variance", "std"] = "variance",
    seed: int = 0,
) -> IsotropicNoise:
    """Add ε_t ~ N(0, σ² I) to the gradient that an optimizer receives, at each of its updates: g_t ← g_t + ε_t.

    σ² = factor × max_gradient_variance with ``noise="variance"``, the paper's words. The authors' code hands that
    number to a sampler as the standard deviation: σ = factor × max_gradient_variance with ``noise="std"``.

    Active on return; use it in a ``with`` statement or call ``close()``. ``.grad`` itself gets the noise when the step
    begins (with a closure: when that returns), so the g_t of ``watch`` has it, whichever of the two was called first.
    The noise is on all parameters: a missing ``.grad`` counts as zeros and becomes ε_t, so the optimizer moves that
    parameter, too. Those that do not require a gradient stay as they are. A step that a gradient scaler skips has no
    noise and no t; with a fused optimizer the noise is scaled as the gradients are. Memory: one tensor of the size of
    the largest parameter, for a moment.

    ε_t depends on the seed, on t and on the parameters' shapes, dtype and kind of device. Neither torch's, NumPy's nor
    Python's random streams move. Two optimizers of one model want two seeds, or they get the same numbers.

    Args:
        optimizer: any that takes one gradient an update; wrappers are seen through.
        max_gradient_variance: largest coordinate of the diagonal of the mini-batch noise's covariance at θ_0, in units
            of the gradient squared.
        factor: of that variance; the paper has 0.1 and 0.05.
        noise: what ``factor`` × ``max_gradient_variance`` is: ``variance`` σ², or ``std`` σ.
        seed: of the noise.

    Returns:
        An object with ``sigma``, ``step``, ``close()``, ``state_dict()`` and ``load_state_dict(state)``.

    Raises:
        InputError: for L-BFGS, an optimizer that has such noise already, parameters that are not all float32 or all
            float64 on one device, numbers that make no σ; at an update for sparse gradients, before any is changed,
            for a closure's second call in one step, and for a step() that takes the gradient scaler itself.

    >>> import torch, sgdwalk
    >>> weights = torch.nn.Parameter(torch.zeros(10_000))
    >>> optimizer = torch.optim.SGD([weights], lr=0.1)
    >>> with sgdwalk.isotropic_noise(optimizer, 0.28) as noise:
    ...     for step in range(3):
    ...         weights.grad = torch.ones(10_000)
    ...         optimizer.step()
    >>> round(noise.sigma**2, 3), noise.step
    (0.028, 3)
    >>> print(f"{weights.grad.mean():.2f} {weights.grad.std():.2f}")
    1.00 0.17

    Source: paper, section 4, Figure 5; :func:`sgdwalk.norm_under_noise` says how far it carries.
    """
    if isinstance(optimizer, (list, tuple)):
        raise InputError(
            f"isotropic_noise() takes one optimizer, got {len(optimizer)}: call it for each, with a seed for each."
        )
    known = ("variance", "std")
    if noise not in known:
        raise InputError(f"noise={noise!r} does not exist; there is {' and '.join(map(repr, known))}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed must be an integer, got {seed!r}.")
    product = _amount("factor", factor) * _amount("max_gradient_variance", max_gradient_variance)
    return IsotropicNoise(bare_optimizer(optimizer), math.sqrt(product) if noise == "variance" else product, seed)


def stream_seed(seed: int, step: int) -> int:
    """The 32-bit seed of one update's draw: no two of a run's first 2³² updates share it.

    torch's CPU generator reads a seed's lowest 32 bits only. Hashed into so few, two of 100,000 updates would have the
    very same noise more likely than not; a Feistel network whose rounds are hashes permutes the steps instead.
    """
    left, right = step >> 16 & 0xFFFF, step & 0xFFFF
    for stage in range(4):
        key = f"sgdwalk isotropic noise, seed {seed}, stage {stage}: {right}"
        mixed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=2).digest())
        left, right = right, left ^ mixed
    return left << 16 | right


def _vector(optimizer: Optimizer) -> ParameterVector:
    return ParameterVector(parameter for group in optimizer.param_groups for parameter in group["params"])


def _amount(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a number, got {value!r}.") from error
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise InputError(f"{name} must be finite and not negative, got {value!r}.")
    return number
