"""The sums over coordinates that every update needs: cosine, distance and norms from one read of each vector.

Partial sums over a block of 512 coordinates are taken in the parameters' own precision and totalled in float64. Two
kernels give the same numbers up to that rounding: a fused loop compiled by numba, for parameters on the CPU where numba
is installed, and plain torch operations, which always work.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sgdwalk.params import ParameterVector

BLOCK = 512
"""Coordinates whose partial sum may stay in float32; its rounding error is then far below the norms' own."""

CHUNK = 512 * BLOCK
"""Coordinates that the plain torch kernel gathers at a time: 1 MiB of float32, which stays in a cache."""


class Kernel(Protocol):
    """The reductions of an update. ``kept`` and ``start`` are flat vectors of d coordinates."""

    name: str

    def moved(self, vector: ParameterVector, kept: Tensor) -> bool:
        """Whether θ differs from the kept copy in any bit."""
        ...

    def gradient_sums(
        self, vector: ParameterVector, gradients: Sequence[Tensor | None], kept: Tensor
    ) -> tuple[float, float]:
        """g_t·g_{t-1} and ‖g_t‖² where ``kept`` holds g_{t-1}; afterwards it holds g_t. None counts as zeros."""
        ...

    def position_sums(self, vector: ParameterVector, kept: Tensor, start: Tensor) -> tuple[float, float, float]:
        """‖θ‖², ‖θ - kept‖² and ‖θ - start‖²."""
        ...


def choose_kernel(device: torch.device) -> Kernel:
    """The fused kernel where numba is installed and the parameters are on the CPU, else plain torch."""
    if device.type == "cpu":
        try:
            import numba  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            return TorchKernel()
        return NumbaKernel()
    return TorchKernel()


class TorchKernel:
    """Gathers the parameters chunk by chunk into a scratch buffer and reduces each chunk with a few operations."""

    name = "torch"

    def moved(self, vector: ParameterVector, kept: Tensor) -> bool:
        bits = {torch.float32: torch.int32, torch.float64: torch.int64}[vector.dtype]
        return any(
            not torch.equal(chunk.view(bits), kept[span].view(bits))
            for span, chunk in self._chunks(vector, _flat(vector))
        )

    def gradient_sums(
        self, vector: ParameterVector, gradients: Sequence[Tensor | None], kept: Tensor
    ) -> tuple[float, float]:
        flat = [None if gradient is None else gradient.reshape(-1) for gradient in gradients]
        sums = []
        for span, chunk in self._chunks(vector, flat):
            sums.append(torch.stack([_block_total(chunk * kept[span]), _block_total(chunk * chunk)]))
            kept[span].copy_(chunk)
        dot, square = torch.stack(sums).sum(0).tolist()
        return dot, square

    def position_sums(self, vector: ParameterVector, kept: Tensor, start: Tensor) -> tuple[float, float, float]:
        sums = []
        for span, chunk in self._chunks(vector, _flat(vector)):
            update, displacement = chunk - kept[span], chunk - start[span]
            squares = [chunk * chunk, update.square_(), displacement.square_()]
            sums.append(torch.stack([_block_total(square) for square in squares]))
        param, updated, distance = torch.stack(sums).sum(0).tolist()
        return param, updated, distance

    def _chunks(self, vector: ParameterVector, pieces: Sequence[Tensor | None]):
        """The pieces gathered into runs of at most CHUNK coordinates: (span in the flat vector, values)."""
        scratch = torch.empty(min(CHUNK, vector.size), dtype=vector.dtype, device=vector.device)
        index = 0
        for begin in range(0, vector.size, CHUNK):
            end = min(begin + CHUNK, vector.size)
            while vector.offsets[index + 1] <= begin:
                index += 1
            piece = index
            while piece < len(pieces) and vector.offsets[piece] < end:
                low = max(begin, vector.offsets[piece])
                high = min(end, vector.offsets[piece + 1])
                target, values = scratch[low - begin : high - begin], pieces[piece]
                if values is None:
                    target.zero_()
                else:
                    target.copy_(values[low - vector.offsets[piece] : high - vector.offsets[piece]])
                piece += 1
            yield slice(begin, end), scratch[: end - begin]


def _flat(vector: ParameterVector) -> list[Tensor]:
    return [parameter.detach().reshape(-1) for parameter in vector.parameters]


def _block_total(values: Tensor) -> Tensor:
    whole = values.numel() // BLOCK * BLOCK
    blocks = values[:whole].view(-1, BLOCK).sum(1).sum(dtype=torch.float64)
    return blocks + values[whole:].sum(dtype=torch.float64)


class NumbaKernel:
    """One fused loop over each parameter; on a CPU it costs little more than reading the vectors once."""

    name = "numba"

    def __init__(self) -> None:
        self._differs, self._gradient, self._position = _compiled()

    def moved(self, vector: ParameterVector, kept: Tensor) -> bool:
        bits = np.int32 if vector.dtype == torch.float32 else np.int64
        return any(self._differs(values.view(bits), other.view(bits)) for values, other in self._pairs(vector, kept))

    def gradient_sums(
        self, vector: ParameterVector, gradients: Sequence[Tensor | None], kept: Tensor
    ) -> tuple[float, float]:
        dot = square = 0.0
        target = kept.numpy()
        for index, gradient in enumerate(gradients):
            span = slice(vector.offsets[index], vector.offsets[index + 1])
            if gradient is None:
                target[span] = 0.0
                continue
            with_previous, with_itself = self._gradient(gradient.reshape(-1).numpy(), target[span])
            dot += with_previous
            square += with_itself
        return dot, square

    def position_sums(self, vector: ParameterVector, kept: Tensor, start: Tensor) -> tuple[float, float, float]:
        param = update = distance = 0.0
        origin = start.numpy()
        for index, (values, other) in enumerate(self._pairs(vector, kept)):
            span = slice(vector.offsets[index], vector.offsets[index + 1])
            sums = self._position(values, other, origin[span])
            param += sums[0]
            update += sums[1]
            distance += sums[2]
        return param, update, distance

    def _pairs(self, vector: ParameterVector, kept: Tensor):
        flat = kept.numpy()
        for index, values in enumerate(_flat(vector)):
            yield values.numpy(), flat[vector.offsets[index] : vector.offsets[index + 1]]


@functools.cache
def _compiled() -> tuple[Any, Any, Any]:
    """The three loops, compiled once a process. Sums may be reordered, but NaN and infinity keep their meaning."""
    import numba  # pyright: ignore[reportMissingImports]

    jit = numba.njit(fastmath={"reassoc", "contract", "nsz"})

    @jit
    def block_differs(values, other):
        difference = values.dtype.type(0)
        for i in range(values.size):
            difference |= values[i] ^ other[i]
        return difference != 0

    @jit
    def differs(values, other):
        for begin in range(0, values.size, BLOCK):
            if block_differs(values[begin : begin + BLOCK], other[begin : begin + BLOCK]):
                return True
        return False

    @jit
    def gradient_block(gradient, kept):
        dot = gradient.dtype.type(0)
        square = gradient.dtype.type(0)
        for i in range(gradient.size):
            value = gradient[i]
            dot += value * kept[i]
            square += value * value
            kept[i] = value
        return dot, square

    @jit
    def gradient_sums(gradient, kept):
        dot = 0.0
        square = 0.0
        for begin in range(0, gradient.size, BLOCK):
            sums = gradient_block(gradient[begin : begin + BLOCK], kept[begin : begin + BLOCK])
            dot += sums[0]
            square += sums[1]
        return dot, square

    @jit
    def position_block(values, kept, start):
        param = values.dtype.type(0)
        update = values.dtype.type(0)
        distance = values.dtype.type(0)
        for i in range(values.size):
            value = values[i]
            step = value - kept[i]
            displacement = value - start[i]
            param += value * value
            update += step * step
            distance += displacement * displacement
        return param, update, distance

    @jit
    def position_sums(values, kept, start):
        param = 0.0
        update = 0.0
        distance = 0.0
        for begin in range(0, values.size, BLOCK):
            end = begin + BLOCK
            sums = position_block(values[begin:end], kept[begin:end], start[begin:end])
            param += sums[0]
            update += sums[1]
            distance += sums[2]
        return param, update, distance

    return differs, gradient_sums, position_sums
