"""Layers of an ``nn.Sequential`` in place, where no gradient is taken.

A forward pass of a convolutional net moves its activations through memory several times. A normalization or a ReLU that
writes over the output of the layer before, instead of into memory of its own, spares one of them.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as _functional
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

F: Any = _functional  # the stubs have neither its checks
C: Any = torch._C  # nor this

NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d})
FRESH = NORMS | {nn.GroupNorm, nn.LayerNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear}
"""Layers whose output is new and held by no one else; subclasses may keep theirs."""


def compute_in_place(module: nn.Module) -> None:
    """Let the containers of a private copy that are plain ``nn.Sequential`` run in place what can be."""
    for layer in module.modules():
        if type(layer) is nn.Sequential and "forward" not in layer.__dict__:
            layer.__dict__["forward"] = types.MethodType(_forward, layer)


def _forward(container: nn.Sequential, input: Tensor) -> Tensor:
    fresh = False
    for layer in container._modules.values():
        assert layer is not None
        watched = _is_watched(layer)
        if not fresh or watched or torch.is_grad_enabled():
            input = layer(input)
        elif type(layer) is nn.ReLU:
            input = input.relu_()
        elif type(layer) in NORMS and _takes_batch_statistics(layer, input):
            input = _normalize(layer, input)
        else:
            input = layer(input)
        fresh = not watched and (type(layer) in FRESH or (fresh and type(layer) is nn.ReLU))
    return input


def _takes_batch_statistics(layer: nn.Module, input: Tensor) -> bool:
    """Whether torch would go to the operator below: on the CPU, in one precision, without running statistics."""
    alike = all(p is None or p.dtype == input.dtype for p in layer._parameters.values())
    plain = input.device.type == "cpu" and not C._functorch.is_functorch_wrapped_tensor(input)
    return layer.training and not layer.track_running_stats and alike and plain


def _normalize(layer: Any, input: Tensor) -> Tensor:
    """``F.batch_norm`` by the statistics of the batch, over its input: the operator takes them before it writes."""
    layer._check_input_dim(input)
    F._verify_batch_size(list(input.size()))
    statistics = (layer.weight, layer.bias, None, None, True, 0.0, layer.eps)
    mean, inverse = input.new_empty(2, input.size(1))
    operator = torch.ops.aten.native_batch_norm.out
    return operator(input, *statistics, out=input, save_mean=mean, save_invstd=inverse)[0]


def _is_watched(layer: nn.Module) -> bool:
    """Whether someone besides the container may see what the layer takes or gives, or decides about it."""
    return bool(
        "forward" in layer.__dict__
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or hooks_of_all._global_forward_hooks
        or hooks_of_all._global_forward_pre_hooks
    )
