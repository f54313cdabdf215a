"""The parameters that the optimizer moves, as one vector: read, keep, compare, interpolate, reduce.

Kept copies are flat vectors in the order of the optimizer's groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from sgdwalk.errors import InputError


class ParameterVector:
    """The distinct parameters of one or several optimizers, in order, seen as one vector θ of d coordinates."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]):
        self.parameters: list[torch.nn.Parameter] = []
        known: set[int] = set()
        for parameter in parameters:
            if id(parameter) not in known:
                known.add(id(parameter))
                self.parameters.append(parameter)
        _check(self.parameters)
        self.offsets = [0]
        for parameter in self.parameters:
            self.offsets.append(self.offsets[-1] + parameter.numel())
        self.bounds = np.array(self.offsets)
        self.index = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        self._layout = self._present_layout()

    @property
    def size(self) -> int:
        """d, the number of coordinates."""
        return self.offsets[-1]

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype

    def check_layout(self) -> None:
        """Raise where a parameter changed its shape, dtype or device: the kept vectors no longer fit it."""
        if self._present_layout() == self._layout:
            return
        for parameter, (shape, dtype, device) in zip(self.parameters, self._layout, strict=True):
            if (parameter.shape, parameter.dtype) != (shape, dtype):
                raise InputError(
                    f"A parameter of shape {tuple(shape)} and dtype {dtype} now has shape {tuple(parameter.shape)} and "
                    f"dtype {parameter.dtype}: no segment leads from one to the other. Close the walk and watch again."
                )
            if parameter.device != device:
                raise InputError(
                    f"A parameter that was on {device} is on {parameter.device} now, away from the walk's vectors: "
                    "move the model before watch(), or close the walk and watch again."
                )

    def _present_layout(self) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
        return [(parameter.shape, parameter.dtype, parameter.device) for parameter in self.parameters]

    def zeros(self) -> Tensor:
        return torch.zeros(self.size, dtype=self.dtype, device=self.device)

    def read(self) -> Tensor:
        """A flat copy of θ.  # (d,)"""
        flat = torch.empty(self.size, dtype=self.dtype, device=self.device)
        self.read_into(flat)
        return flat

    def read_into(self, flat: Tensor) -> None:
        for view, parameter in zip(self.views(flat), self.parameters, strict=True):
            view.copy_(parameter.detach())

    def views(self, flat: Tensor) -> list[Tensor]:
        """The flat vector cut into tensors of the parameters' shapes, without a copy."""
        return [
            flat[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(self.offsets[:-1], self.parameters, strict=True)
        ]


def dense_gradient(parameter: torch.nn.Parameter, dtype: torch.dtype) -> Tensor | None:
    """A parameter's ``.grad``, dense and of a dtype; None where there is none, which counts as zeros."""
    gradient = parameter.grad
    if gradient is None:
        return None
    if gradient.dtype is dtype and gradient.layout is torch.strided and not gradient.requires_grad:
        return gradient  # as almost always: three calls less a parameter
    return _dense(gradient.detach()).to(dtype)


_PIECE = 1 << 18
"""Coordinates converted at a time."""


def lerp_into(targets: Sequence[Tensor], starts: Sequence[Tensor], ends: Sequence[Tensor], alpha: float) -> None:
    """Write (1 - α) start + α end into each target; the ends themselves are copied, bit for bit."""
    for target, start, end in zip(targets, starts, ends, strict=True):
        if alpha == 0.0:
            target.copy_(start)
        elif alpha == 1.0:
            target.copy_(end)
        elif target.dtype == start.dtype and target.stride() == start.stride():
            torch.lerp(start, end, alpha, out=target)
        elif target.is_contiguous() and start.is_contiguous() and end.is_contiguous():
            # Another dtype: in pieces, or the converted ends would be vectors of their own.
            for part, low, high in zip(*(t.view(-1).split(_PIECE) for t in (target, start, end)), strict=True):
                part.copy_(low).lerp_(high.to(part.dtype), alpha)
        else:
            target.copy_(start).lerp_(end.to(target.dtype), alpha)


def tensor_bytes(tensor: Tensor) -> bytes:
    """The tensor's values as bytes, in logical order, whatever its dtype."""
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    flat = dense.to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def _check(parameters: list[torch.nn.Parameter]) -> None:
    if not parameters:
        raise InputError("The optimizer has no parameters: there is nothing to watch. Give it the model's parameters.")
    for parameter in parameters:
        if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
            raise InputError(
                "The model has lazy parameters that are not initialized yet: run one forward pass before watch()."
            )
        if hasattr(parameter, "_in_backward_optimizers"):
            raise InputError(
                "The optimizer steps inside the backward pass, where no update as a whole can be seen: "
                "step it after backward()."
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"A parameter has dtype {parameter.dtype}; a point between two iterates needs float32 or float64, or a "
                "small step falls below one unit in the last place. Keep float32 weights and use autocast."
            )
    for what, values in (("dtypes", {p.dtype for p in parameters}), ("devices", {p.device for p in parameters})):
        if len(values) > 1:
            names = ", ".join(sorted(str(value) for value in values))
            raise InputError(f"The parameters have several {what} ({names}); sgdwalk watches parameters of one.")
