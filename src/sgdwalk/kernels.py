"""The sums over coordinates that every update needs: cosine, distance and norms from one read of each vector.

Two kernels give the same numbers up to rounding: fused loops compiled by numba, in float64 throughout, for parameters
on the CPU where numba is installed; and plain torch operations, which always work. The latter take the partial sum over
a block of 512 coordinates in the parameters' own precision and total the blocks in float64; where squares may have left
the range of float32, they sum once more in float64 throughout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sgdwalk.params import ParameterVector

BLOCK = 512
"""Coordinates whose partial sum may stay in float32; its rounding error is then far below the norms' own."""

CHUNK = 1024 * BLOCK
"""Coordinates that the plain torch kernel gathers at a time: 2 MiB of float32; smaller ones cost more calls."""

SAFE_SUM = 1e-30
"""A sum above this per coordinate has lost nothing that matters in products too small for float32 (below 1e-38)."""


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

    def position_sums(
        self, vector: ParameterVector, kept: Tensor, start: Tensor, *, advance: bool
    ) -> tuple[float, float, float]:
        """‖θ‖², ‖θ - kept‖² and ‖θ - start‖²; with ``advance`` θ replaces the kept copy in the same pass."""
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

    def __init__(self) -> None:
        self._kept_buffers = torch.empty(2, 0)

    def _buffers(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        kept = self._kept_buffers
        if kept.shape[1] != size or kept.dtype != dtype or kept.device != device:
            self._kept_buffers = torch.empty(2, size, dtype=dtype, device=device)
        return self._kept_buffers

    def moved(self, vector: ParameterVector, kept: Tensor) -> bool:
        bits = {torch.float32: torch.int32, torch.float64: torch.int64}[vector.dtype]
        pairs = zip(_flat(vector), vector.views(kept), strict=True)
        return any(not torch.equal(values.view(bits), other.view(-1).view(bits)) for values, other in pairs)

    def gradient_sums(
        self, vector: ParameterVector, gradients: Sequence[Tensor | None], kept: Tensor
    ) -> tuple[float, float]:
        def sums(span: slice, chunk: Tensor, spare: Tensor) -> list[Tensor]:
            return [_total(torch.mul(chunk, kept[span].to(chunk), out=spare)), _square_total(chunk)]

        flat = [None if gradient is None else gradient.reshape(-1) for gradient in gradients]
        dot, square = self._sums(vector, flat, sums)
        for view, gradient in zip(vector.views(kept), gradients, strict=True):
            view.zero_() if gradient is None else view.copy_(gradient)
        return dot, square

    def position_sums(
        self, vector: ParameterVector, kept: Tensor, start: Tensor, *, advance: bool
    ) -> tuple[float, float, float]:
        def sums(span: slice, chunk: Tensor, spare: Tensor) -> list[Tensor]:
            differences = (_square_total(torch.sub(chunk, other[span], out=spare)) for other in (kept, start))
            return [_square_total(chunk), *differences]

        param, update, distance = self._sums(vector, _flat(vector), sums)
        if advance:
            vector.read_into(kept)
        return param, update, distance

    def _sums(
        self,
        vector: ParameterVector,
        pieces: Sequence[Tensor | None],
        sums: Callable[[slice, Tensor, Tensor], list[Tensor]],
    ) -> list[float]:
        """``sums(span, chunk, spare)`` over all chunks; once more in float64 where one left the range of float32.

        All work is done in two buffers that stay: fresh ones would be mapped and cleared by the system each time.
        """
        totals: list[float] = []
        for dtype in dict.fromkeys((vector.dtype, torch.float64)):
            scratch, spare = self._buffers(min(CHUNK, vector.size), dtype, vector.device)
            parts = [
                torch.stack(sums(span, chunk, spare[: len(chunk)]))
                for span, chunk in self._chunks(vector, pieces, scratch)
            ]
            totals = torch.stack(parts).sum(0).tolist()
            if all(SAFE_SUM * vector.size < abs(total) < math.inf for total in totals):
                break
        return totals

    def _chunks(
        self, vector: ParameterVector, pieces: Sequence[Tensor | None], scratch: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """The pieces gathered into runs of at most CHUNK coordinates: (span in the flat vector, values)."""
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


def _total(values: Tensor) -> Tensor:
    whole = values.numel() // BLOCK * BLOCK
    return values[:whole].view(-1, BLOCK).sum(1).sum(dtype=torch.float64) + values[whole:].sum(dtype=torch.float64)


def _square_total(values: Tensor) -> Tensor:
    """Σ x² from the norms of the blocks, which take one read and write nothing."""
    whole = values.numel() // BLOCK * BLOCK
    blocks = torch.linalg.vector_norm(values[:whole].view(-1, BLOCK), dim=1).to(torch.float64)
    return blocks.square_().sum() + torch.linalg.vector_norm(values[whole:]).to(torch.float64).square_()


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

    def position_sums(
        self, vector: ParameterVector, kept: Tensor, start: Tensor, *, advance: bool
    ) -> tuple[float, float, float]:
        param = update = distance = 0.0
        origin = start.numpy()
        for index, (values, other) in enumerate(self._pairs(vector, kept)):
            span = slice(vector.offsets[index], vector.offsets[index + 1])
            sums = self._position(values, other, origin[span], advance)
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
    def gradient_sums(gradient, kept):
        dot = 0.0
        square = 0.0
        for i in range(gradient.size):
            value = np.float64(gradient[i])
            dot += value * np.float64(kept[i])
            square += value * value
            kept[i] = gradient[i]
        return dot, square

    @jit
    def position_sums(values, kept, start, advance):
        param = 0.0
        update = 0.0
        distance = 0.0
        for i in range(values.size):
            value = np.float64(values[i])
            step = value - np.float64(kept[i])
            displacement = value - np.float64(start[i])
            param += value * value
            update += step * step
            distance += displacement * displacement
            if advance:
                kept[i] = values[i]
        return param, update, distance

    return differs, gradient_sums, position_sums
