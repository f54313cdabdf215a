"""In which order of memory a convolutional net is evaluated on the CPU, layer by layer.

channels_last makes most convolutions, poolings and normalizations faster. Not the deep layers of a VGG: weights that
do not fit into the second cache are read once for every row of the output, and rows of a few pixels do not repay that
(512 channels, rows of 2: three times the time). Such layers compute in torch's usual order, all else in channels_last:
poolings and normalizations take several times as long in the usual one.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MANY_WEIGHTS = 1 << 19
"""Numbers in a weight that the second cache does not hold (2 MiB in float32)."""

SHORT_ROWS = range(2, 7)
"""Pixels in a row of the output that do not repay reading the weights; a single one makes a plain product."""

_METHOD = "_conv_forward"
_C: Any = torch._C  # its stubs are silent on functorch


class SlowConvolutions(TorchFunctionMode):
    """Inside, take note of the 2-D convolutions that channels_last makes slower at every call."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[bool, set[int]] = {True: set(), False: set()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.conv2d and len(args) > 1:
            self._weights[is_slow(args[1], result)].add(id(args[1]))
        return result

    def layers(self, module: nn.Module) -> frozenset[str]:
        """Names of the noted layers: plain ones, for a subclass may convolve in a way of its own."""
        slow = self._weights[True] - self._weights[False]
        return frozenset(name for name, layer in _convolutions(module) if id(layer._parameters.get("weight")) in slow)


def is_slow(weight: Tensor, output: Tensor) -> bool:
    """Whether channels_last makes a convolution slower: many weights, read again for each of its short rows."""
    return weight.numel() >= MANY_WEIGHTS and output.size(-1) in SHORT_ROWS and weight[0, 0].numel() > 1


def set_memory_format(module: nn.Module, memory_format: torch.memory_format, usual: Collection[str] = ()) -> None:
    """Store four-dimensional parameters in an order of memory; the values stay.

    Convolutions named in ``usual`` compute in torch's usual order; what they take and give is in channels_last.
    """
    module.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    for name, layer in _convolutions(module):
        ours = getattr(layer.__dict__.get(_METHOD), "__func__", None) is _in_usual_order
        if name in usual and (ours or _METHOD not in layer.__dict__):
            layer.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            layer.__dict__[_METHOD] = types.MethodType(_in_usual_order, layer)
        elif ours:
            del layer.__dict__[_METHOD]


def _in_usual_order(layer: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if input.dim() != 4 or _C._functorch.peek_interpreter_stack() is not None:  # one image, or vmap
        return nn.Conv2d._conv_forward(layer, input, weight, bias)
    output = nn.Conv2d._conv_forward(layer, input.contiguous(), weight, bias)
    return output.contiguous(memory_format=torch.channels_last)


def _convolutions(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    return ((name, layer) for name, layer in module.named_modules() if type(layer) is nn.Conv2d)
