"""From optimizer hooks to updates: when one starts, when its gradient is final, when it is done.

What an update is, whatever the loop does: the outermost ``step()`` of a subclass that calls its parent's, one round of
several optimizers, the whole of L-BFGS's inner iterations; a step that a gradient scaler skipped is none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch._compile import _disable_dynamo
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from sgdwalk.errors import InputError

IN_BACKWARD = (
    "The optimizer steps inside the backward pass, where no update as a whole can be seen: step it after backward()."
)

_STEP_CODE = Optimizer.profile_hook_step(lambda: None).__code__
"""Code of the function that torch wraps around every optimizer's ``step`` and that calls the hooks."""


class Listener(Protocol):
    """Told of each update in this order: before, gradients of each optimizer, after or skipped."""

    def before_update(self) -> None: ...
    def gradients_final(self, optimizer: Optimizer, *, keep: bool) -> None: ...
    def after_update(self) -> None: ...
    def update_skipped(self) -> None: ...
    def round_incomplete(self) -> None: ...


def bare_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer whose ``step`` calls its hooks: inside Accelerate's and Lightning's wrappers it is another one."""
    while not getattr(type(optimizer).step if hasattr(type(optimizer), "step") else None, "hooked", False):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer):
            inner = getattr(optimizer, "_optimizer", None)
        if not isinstance(inner, Optimizer) or inner is optimizer:
            break
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer: pass the optimizer that steps, a "
            "list of them, or None and call walk.before_step() and walk.after_step() yourself."
        )
    if not getattr(type(optimizer).step, "hooked", False):
        raise InputError(
            f"The step() of {type(optimizer).__name__} calls no hooks, so its updates cannot be seen: pass the "
            "optimizer inside it, or None and call walk.before_step() and walk.after_step() yourself."
        )
    return optimizer


class UpdateHooks:
    """Hooks on one or several optimizers, until ``remove()``."""

    def __init__(self, optimizers: Sequence[Optimizer], listener: Listener):
        self._optimizers = list(optimizers)
        self._listener = listener
        self._stepped: list[Optimizer] = []
        self._skipped: list[Optimizer] = []
        self._open = False
        if len({id(optimizer) for optimizer in self._optimizers}) < len(self._optimizers):
            raise InputError("The list of optimizers names one of them twice: name each once.")
        for optimizer in self._optimizers:
            if any(
                isinstance(getattr(hook, "__self__", None), UpdateHooks)
                for hook in optimizer._optimizer_step_pre_hooks.values()
            ):
                raise InputError("This optimizer is being watched already: close the other walk first.")
        self._handles: list[RemovableHandle] = []
        for optimizer in self._optimizers:
            before = optimizer.register_step_pre_hook(self._before)
            after = optimizer.register_step_post_hook(self._after)
            # First of all hooks after the step: another's may clear the gradients or move the parameters.
            optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # pyright: ignore[reportAttributeAccessIssue]
            self._handles += [before, after]

    def remove(self) -> None:
        """Take the hooks off; a round of several optimizers that stands open is finished first."""
        if self._open:
            self._finish_round()
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers, self._stepped, self._skipped = [], [], [], []

    @_disable_dynamo
    def _before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if step_depth(optimizer) > 1:
            return None
        if torch._C._current_graph_task_id() != -1:
            raise InputError(IN_BACKWARD)
        if self._open and optimizer in self._stepped:
            self._finish_round()
        if not self._open or not self._stepped:  # a round in which nothing has stepped was broken off by an exception
            self._open, self._stepped, self._skipped = True, [], []
            self._listener.before_update()
        return self._with_first_gradient(optimizer, args, kwargs) if isinstance(optimizer, LBFGS) else None

    @_disable_dynamo
    def _after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if step_depth(optimizer) > 1 or not self._open:
            return
        if was_skipped(optimizer):
            self._skipped.append(optimizer)
        elif not isinstance(optimizer, LBFGS):
            self._listener.gradients_final(optimizer, keep=len(self._optimizers) > 1)
        self._stepped.append(optimizer)
        if len(self._stepped) == len(self._optimizers):
            self._finish_round()

    def _finish_round(self) -> None:
        self._open = False
        if not self._stepped:  # an exception broke it off before the first step was done
            return
        if len(self._stepped) < len(self._optimizers):
            self._listener.round_incomplete()
        if len(self._skipped) == len(self._stepped):
            self._listener.update_skipped()
        else:
            self._listener.after_update()

    def _with_first_gradient(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """L-BFGS evaluates its closure many times in one step; g_t is the gradient of the first, at θ_t."""
        original = closure_of(args, kwargs)
        assert original is not None
        first = True

        def closure() -> Any:
            nonlocal first
            loss = original()
            if first:
                first = False
                self._listener.gradients_final(optimizer, keep=True)
            return loss

        return with_closure(args, kwargs, closure)


def closure_of(args: tuple, kwargs: dict) -> Callable[[], Any] | None:
    """The closure among the arguments of a ``step`` call as a pre-hook gets them, or None."""
    closure = kwargs["closure"] if "closure" in kwargs else (*args[1:2], None)[0]
    return closure if callable(closure) else None


def with_closure(args: tuple, kwargs: dict, closure: Callable[[], Any]) -> tuple[tuple, dict]:
    """The same arguments with another closure, as a pre-hook may return them."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


def step_depth(optimizer: Optimizer) -> int:
    """How many wrapped ``step`` calls of this optimizer are on the stack.

    Counted on the stack, because a counter of our own would be off for good after a step that raises.
    """
    depth = 0
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code is _STEP_CODE and frame.f_locals["args"][0] is optimizer:
            depth += 1
        frame = frame.f_back
    return depth


def was_skipped(optimizer: Optimizer) -> bool:
    """A gradient scaler lets a fused optimizer step and hands it the infinities it found; it then changes nothing."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, torch.Tensor) and bool(found.item())
