"""What lies in the graphs that autograd keeps: kernels that cannot be differentiated twice, and how much memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sgdwalk.data import leaves as leaves_of


class NoSecondDerivativeError(Exception):
    """A kernel on the way from the parameters to the loss can be differentiated once only."""


WRONG_TWICE = ("WeightNormInterfaceBackward0",)
"""Kernels whose second derivative is wrong without a word: the one of weight_norm along a weight's first or last axis
leaves out how the norms depend on the weight (torch 2.13)."""


def lacks_second_derivative(error: Exception) -> bool:
    return isinstance(error, NoSecondDerivativeError) or any(
        words in str(error) for words in ("derivative", "double backward", "differentiate twice")
    )


_ONCE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__
"""Of every backward pass that is marked as differentiable once."""


def refuse_dead_ends(tensors: Sequence[Tensor], *, wrong: Sequence[str] = WRONG_TWICE) -> None:
    """Find kernels behind a loss and its gradients that cannot be differentiated twice although autograd would not say.

    The error node of one that is marked as differentiable once lies off every path to the parameters, so that its part
    would be left out; and there is none where the gradient that reaches the kernel is constant, as in a fused loss.
    ``wrong`` names others; for J v alone, linear in what is differentiated, none is.
    """
    for node in _nodes(tensors):
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if (
            node.name() == "torch::autograd::Error"
            or node.name() in wrong
            or getattr(backward, "__code__", None) is _ONCE
        ):
            raise NoSecondDerivativeError


def held_bytes(graph: Any) -> int:
    """Bytes of the tensors that a graph saved for its backward passes, each storage once.

    Read from the graph's nodes. Hooks on saved tensors would count them too, and leave cycles through autograd that
    nothing collects.
    """
    storages: dict[int, int] = {}
    tensors = [tensor for tensor in leaves_of(graph) if isinstance(tensor, Tensor)]
    for node in _nodes(list(tensors)):
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                tensors += [saved for saved in leaves_of(getattr(node, name)) if isinstance(saved, Tensor)]
    for tensor in tensors:
        if tensor.is_sparse:
            tensor = tensor._values()
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def free_bytes(device: torch.device) -> int:
    """Memory that could be had now, on the parameters' device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/meminfo") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    return 8 << 30


def _nodes(tensors: Sequence[Tensor]) -> Iterator[Any]:
    """Every node of the graphs behind some tensors, once."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)
