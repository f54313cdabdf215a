"""The network as it stood before an update, for measures that look at it in other ways than the walk does."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def standing(model: nn.Module, here: Any) -> nn.Module:
    """A copy of the model at θ_t, with its buffers as they are right after update t.

    Args:
        model: the model that is trained, which stands at θ_{t+1}.
        here: what a measure is given.
    """
    own = copy.deepcopy(model)
    parameters = list(own.parameters())
    parts = here.parameters.split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, values in zip(parameters, parts, strict=True):
            parameter.copy_(values.view(parameter.shape))
    return own
