"""ReLUs of an ``nn.Sequential`` in place, where no gradient is taken.

A forward pass of a convolutional net moves its activations through memory several times; a ReLU that writes over the
output of the layer before, instead of into memory of its own, spares one of them.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

FRESH = frozenset(
    {
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm),
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    }
)
"""Layers whose output is new and held by no one else; subclasses may keep theirs."""


def rectify_in_place(module: nn.Module) -> None:
    """Let the containers of a private copy that are plain ``nn.Sequential`` run their ReLUs in place."""
    for layer in module.modules():
        if type(layer) is nn.Sequential and "forward" not in layer.__dict__:
            layer.__dict__["forward"] = types.MethodType(_forward, layer)


def _forward(container: nn.Sequential, input: Tensor) -> Tensor:
    fresh = False
    for layer in container._modules.values():
        assert layer is not None
        if fresh and type(layer) is nn.ReLU and not _is_hooked(layer) and not torch.is_grad_enabled():
            input = input.relu_()
        else:
            input = layer(input)
            fresh = type(layer) in FRESH and not _is_hooked(layer)
    return input


def _is_hooked(layer: nn.Module) -> bool:
    """Whether someone besides the container may see what the layer takes or gives."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or hooks_of_all._global_forward_hooks
        or hooks_of_all._global_forward_pre_hooks
    )
