"""The sums over coordinates that every update needs: cosine, distance and norms from one read of each vector.

Two kernels give the same numbers up to rounding: fused loops compiled by numba, for parameters on the CPU where numba
is installed; and plain operations, which always work. Both take the partial sum over a block of 512 coordinates in the
parameters' own precision and total the blocks in float64; where products may have left the range of float32, they sum
once more in float64 throughout.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sgdwalk.params import ParameterVector

BLOCK = 512
"""Coordinates whose partial sum may stay in float32; its rounding error is then far below the norms' own."""

CHUNK = 1024 * BLOCK
"""Coordinates that the plain kernel takes at a time: 2 MiB of float32; smaller ones cost more calls."""

SMALL = 128 * BLOCK
"""Pieces of fewer coordinates are gathered, as many at a time: copying them costs less than calls for each."""

SAFE_SUM = 1e-30
"""A sum above this per coordinate has lost nothing that matters in products too small for float32 (below 1e-38)."""


class Kernel(Protocol):
    """The reductions of an update. ``kept`` and ``start`` are flat vectors of d coordinates."""

    name: str

    def moved(self, vector: ParameterVector, kept: Tensor) -> bool:
        """Whether θ differs from the kept copy in any bit."""
        ...

    def gradient_sums(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        kept: Tensor,
        displacement: Tensor | None = None,
    ) -> tuple[float, float, float]:
        """g_t·g_{t-1}, ‖g_t‖² and d_{t-1}·g_t where ``kept`` holds g_{t-1}; afterwards it holds g_t.

        None among the gradients counts as zeros; without ``displacement`` the last is NaN.
        """
        ...

    def position_sums(
        self,
        vector: ParameterVector,
        kept: Tensor,
        start: Tensor,
        *,
        advance: bool,
        displacement: Tensor | None = None,
    ) -> tuple[float, float, float]:
        """‖θ‖², ‖θ - kept‖² and ‖θ - start‖²; with ``advance`` θ replaces the kept copy in the same pass.

        ``displacement`` takes θ - kept.
        """
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
    """Cuts the parameters into chunks and reduces each with a few operations; nothing larger than a chunk is copied.

    On the CPU the operations are NumPy's, on the tensors' own memory: they cost less to call, compare many coordinates
    at a time and multiply block by block without writing the products.
    """

    name = "torch"

    def __init__(self) -> None:
        self._vector: ParameterVector | None = None

    @torch.no_grad()
    def moved(self, vector: ParameterVector, kept: Tensor) -> bool:
        bits = torch.int32 if vector.dtype == torch.float32 else torch.int64
        same = np.array_equal if vector.device.type == "cpu" else torch.equal
        others = _array(kept.view(bits))
        chunks = self._chunks(vector, vector.parameters)
        return any(not same(_array(chunk.view(bits)), others[span]) for span, chunk in chunks)

    @torch.no_grad()
    @np.errstate(all="ignore")
    def gradient_sums(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        kept: Tensor,
        displacement: Tensor | None = None,
    ) -> tuple[float, float, float]:
        dot = square = 0.0
        slope = math.nan if displacement is None else 0.0
        previous, moved = _array(kept), None if displacement is None else _array(displacement)
        for span, values in self._chunks(vector, gradients):
            chunk = _array(values)
            dot += _dot(chunk, previous[span])
            square += _dot(chunk, chunk)
            if moved is not None:
                slope += _dot(chunk, moved[span])
            previous[span] = chunk
        return dot, square, slope

    @torch.no_grad()
    @np.errstate(all="ignore")
    def position_sums(
        self,
        vector: ParameterVector,
        kept: Tensor,
        start: Tensor,
        *,
        advance: bool,
        displacement: Tensor | None = None,
    ) -> tuple[float, float, float]:
        param = update = distance = 0.0
        before, origin = _array(kept), _array(start)
        moved = None if displacement is None else _array(displacement)
        subtract: Any = np.subtract if vector.device.type == "cpu" else torch.sub
        for span, values in self._chunks(vector, vector.parameters):
            chunk, difference = _array(values), _array(self._buffers[1, : len(values)])
            param += _dot(chunk, chunk)
            subtract(chunk, before[span], out=difference)
            update += _dot(difference, difference)
            if moved is not None:
                moved[span] = difference
            subtract(chunk, origin[span], out=difference)
            distance += _dot(difference, difference)
            if advance:
                before[span] = chunk
        return param, update, distance

    def _chunks(self, vector: ParameterVector, pieces: Sequence[Tensor | None]) -> Iterator[tuple[slice, Tensor]]:
        """Runs of at most CHUNK coordinates: (span in the flat vector, values). None counts as zeros.

        Large pieces are cut into views; small neighbours are gathered in a buffer that stays, as a fresh one would be
        mapped and cleared by the system each time.
        """
        if self._vector is not vector:
            self._vector, self._runs = vector, _runs(vector.offsets)
            widest = max(span.stop - span.start for span, *_ in self._runs)
            self._buffers = torch.empty(2, widest, dtype=vector.dtype, device=vector.device)
            self._zero = torch.zeros(1, dtype=vector.dtype, device=vector.device)
        for span, first, last, part in self._runs:
            flat = [
                self._zero.expand(vector.offsets[index + 1] - vector.offsets[index])
                if (piece := pieces[index]) is None
                else piece.reshape(-1)
                for index in range(first, last)
            ]
            size = span.stop - span.start
            yield span, flat[0][part] if len(flat) == 1 else torch.cat(flat, out=self._buffers[0, :size])


def _runs(offsets: Sequence[int]) -> list[tuple[slice, int, int, slice]]:
    """How to cut pieces into chunks: (span in the flat vector, first piece, behind the last, part of a single one)."""
    runs: list[tuple[slice, int, int, slice]] = []
    first = 0
    for index in range(len(offsets) - 1):
        begin, end = offsets[index], offsets[index + 1]
        large = end - begin >= SMALL
        if first < index and (large or end - offsets[first] > SMALL):
            runs.append((slice(offsets[first], begin), first, index, slice(None)))
            first = index
        if large:
            for low in range(begin, end, CHUNK):
                high = min(low + CHUNK, end)
                runs.append((slice(low, high), index, index + 1, slice(low - begin, high - begin)))
            first = index + 1
    if first < len(offsets) - 1:
        runs.append((slice(offsets[first], offsets[-1]), first, len(offsets) - 1, slice(None)))
    return runs


def _array(tensor: Tensor) -> Any:
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _dot(values: Any, others: Any) -> float:
    """Σ x y; once more in float64 where products that matter may have left the range of float32."""
    total = _block_sums(values, others)
    if not SAFE_SUM * len(values) < abs(total) < math.inf:
        widen: Any = np.float64 if isinstance(values, np.ndarray) else Tensor.double
        total = _block_sums(widen(values), widen(others))
    return total


def _block_sums(values: Any, others: Any) -> float:
    whole = len(values) // BLOCK * BLOCK
    if isinstance(values, np.ndarray):
        blocks = values[:whole].reshape(-1, 1, BLOCK) @ others[:whole].reshape(-1, BLOCK, 1)
        return float(blocks.sum(dtype=np.float64)) + float(values[whole:] @ others[whole:])
    blocks = torch.linalg.vecdot(values[:whole].view(-1, BLOCK), others[:whole].view(-1, BLOCK))
    return float(blocks.sum(dtype=torch.float64) + torch.linalg.vecdot(values[whole:], others[whole:]).double())


class NumbaKernel:
    """One fused loop over all parameters; on a CPU it costs little more than reading the vectors once."""

    name = "numba"

    def __init__(self) -> None:
        loops: Any = importlib.import_module("sgdwalk.fused_loops")  # compiled at its first import, and kept on disk
        self._differs, self._gradient, self._position = loops.differs, loops.gradient_sums, loops.position_sums

    def moved(self, vector: ParameterVector, kept: Tensor) -> bool:
        dense = _dense(vector.parameters)
        bits = np.int32 if vector.dtype == torch.float32 else np.int64
        return self._differs(_addresses(dense), vector.bounds, kept.numpy().view(bits))

    def gradient_sums(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        kept: Tensor,
        displacement: Tensor | None = None,
    ) -> tuple[float, float, float]:
        dense = _dense(gradients)
        moved = kept[:0] if displacement is None else displacement
        return self._gradient(_addresses(dense), vector.bounds, kept.numpy(), moved.numpy())

    def position_sums(
        self,
        vector: ParameterVector,
        kept: Tensor,
        start: Tensor,
        *,
        advance: bool,
        displacement: Tensor | None = None,
    ) -> tuple[float, float, float]:
        dense = _dense(vector.parameters)
        moved = kept[:0] if displacement is None else displacement
        return self._position(_addresses(dense), vector.bounds, kept.numpy(), start.numpy(), moved.numpy(), advance)


def _dense(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors, or copies where their coordinates do not lie in order; to be held while their addresses are used."""
    return [
        tensor
        if tensor is None or (tensor.is_contiguous() and not tensor.is_neg())
        else tensor.detach().clone(memory_format=torch.contiguous_format)
        for tensor in tensors
    ]


def _addresses(tensors: Sequence[Tensor | None]) -> np.ndarray:
    """Where each tensor's first coordinate lies; 0 for None."""
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], dtype=np.int64)
