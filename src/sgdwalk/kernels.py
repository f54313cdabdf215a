"""The sums over coordinates that every update needs: cosine, distance and norms from one read of each vector.

Three kernels give the same numbers up to rounding: on the CPU fused loops compiled by numba, or NumPy's operations
where numba is not installed; on other devices torch's. All take the partial sum over a block of at most 512
coordinates in the parameters' own precision and total the blocks in float64; where products may have left the range of
float32, they sum once more in float64 throughout.
"""

from __future__ import annotations

import importlib
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sgdwalk.params import ParameterVector

BLOCK = 512
"""Coordinates whose partial sum may stay in float32; its rounding error is then far below the norms' own."""

SMALL = 128 * BLOCK
"""Pieces of fewer coordinates are gathered, as many at a time: copying them costs less than calls for each."""

SAFE_SUM = 1e-30
"""A sum above this per coordinate has lost nothing that matters in products too small for float32 (below 1e-38)."""


class GradientSums(NamedTuple):
    """Over the coordinates of a gradient g_t."""

    dot: float
    """g_t·g_{t-1}."""
    square: float
    """‖g_t‖²."""
    slope: float = math.nan
    """(θ_t - θ_{t-1})·g_t; NaN where θ_{t-1} is not kept."""


class PositionSums(NamedTuple):
    """Over the coordinates of the parameters θ."""

    param: float
    """‖θ‖²."""
    update: float
    """‖θ - θ_t‖²."""
    distance: float
    """‖θ - θ_0‖²."""
    mark: int | None = None
    """A number that is another one where θ is, but for one chance in 2^32; None from kernels that make none."""


class Kernel(Protocol):
    """The reductions of an update. What is kept are flat vectors of d coordinates."""

    name: str

    def moved(self, vector: ParameterVector, point: Tensor, mark: int | None = None) -> bool:
        """Whether θ differs in any bit from the kept ``point``, whose mark may be known."""
        ...

    def gradient_sums(
        self, vector: ParameterVector, gradients: Sequence[Tensor | None], previous: Tensor
    ) -> GradientSums:
        """Those of g_t where ``previous`` holds g_{t-1}; afterwards it holds g_t. None counts as zeros."""
        ...

    def position_sums(self, vector: ParameterVector, point: Tensor, start: Tensor) -> PositionSums:
        """Those of θ where ``point`` is θ_t and ``start`` θ_0."""
        ...

    def update_sums(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        previous: Tensor,
        point: Tensor,
        start: Tensor,
        before: Tensor | None = None,
        *,
        advance: bool,
    ) -> tuple[GradientSums, PositionSums]:
        """Both after an update, from one read of each vector; ``before`` is θ_{t-1}, for the slope.

        With ``advance`` θ_{t+1} replaces the oldest point that is kept, ``before`` if given, else ``point``.
        """
        ...


def choose_kernel(device: torch.device) -> Kernel:
    """On the CPU the fused loops where numba is installed, else NumPy's operations; torch's on other devices."""
    if device.type != "cpu":
        return TorchKernel()
    try:
        import numba  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return NumpyKernel()
    return NumbaKernel()


class ChunkedKernel(ABC):
    """Cuts the parameters into chunks and reduces each with a few operations.

    Differences and what is gathered go to arrays that stay, as fresh ones would be mapped and cleared by the system
    each time. Only parameters or gradients whose coordinates do not lie in order are copied whole.
    """

    chunk: int
    """Coordinates taken at a time."""
    _difference: Any
    _gathered: Any
    _subtract: Callable[..., Any]
    _concatenate: Callable[..., Any]

    def __init__(self) -> None:
        self._vector: ParameterVector | None = None

    @torch.no_grad()
    def moved(self, vector: ParameterVector, point: Tensor, mark: int | None = None) -> bool:
        others = self._flat(point)
        return any(self._differ(chunk, others[span]) for span, chunk in self._chunks(vector, vector.parameters))

    def gradient_sums(
        self, vector: ParameterVector, gradients: Sequence[Tensor | None], previous: Tensor
    ) -> GradientSums:
        return self._of_gradients(vector, gradients, previous)

    def position_sums(self, vector: ParameterVector, point: Tensor, start: Tensor) -> PositionSums:
        return self._of_position(vector, point, start)

    def update_sums(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        previous: Tensor,
        point: Tensor,
        start: Tensor,
        before: Tensor | None = None,
        *,
        advance: bool,
    ) -> tuple[GradientSums, PositionSums]:
        step = None if before is None else (point, before)
        into = None if not advance else point if before is None else before
        return self._of_gradients(vector, gradients, previous, step), self._of_position(vector, point, start, into)

    @torch.no_grad()
    @np.errstate(all="ignore")
    def _of_gradients(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        previous: Tensor,
        step: tuple[Tensor, Tensor] | None = None,
    ) -> GradientSums:
        """``step``: θ_t and θ_{t-1}."""
        dot = square = 0.0
        slope = math.nan if step is None else 0.0
        olds, ends = self._flat(previous), None if step is None else [self._flat(end) for end in step]
        for span, chunk in self._chunks(vector, gradients):
            old = olds[span]
            dot += self._dot(chunk, old)
            square += self._dot(chunk, chunk)
            if ends is not None:
                slope += self._slope(chunk, *(end[span] for end in ends))
            old[:] = chunk
        return GradientSums(dot, square, slope)

    @torch.no_grad()
    @np.errstate(all="ignore")
    def _of_position(
        self, vector: ParameterVector, point: Tensor, start: Tensor, into: Tensor | None = None
    ) -> PositionSums:
        """``into`` takes θ; it may be ``point`` itself."""
        param = update = distance = 0.0
        here, origin, taken = self._flat(point), self._flat(start), None if into is None else self._flat(into)
        for span, chunk in self._chunks(vector, vector.parameters):
            difference = self._difference[: len(chunk)]
            param += self._dot(chunk, chunk)
            update += self._square(chunk, here[span], out=difference)
            distance += self._square(chunk, origin[span], out=difference)
            if taken is not None:
                taken[span] = chunk
        return PositionSums(param, update, distance)

    def _chunks(self, vector: ParameterVector, pieces: Sequence[Tensor | None]) -> Iterator[tuple[slice, Any]]:
        """Runs of at most ``chunk`` coordinates: (span in the flat vector, values). None counts as zeros.

        Large pieces are cut into views; small neighbours are gathered.
        """
        if self._vector is not vector:
            self._vector, self._runs = vector, _runs(vector.offsets, self.chunk)
            self._zero = torch.zeros(1, dtype=vector.dtype, device=vector.device)
            self._make_room(vector, max(span.stop - span.start for span, *_ in self._runs))
        flat = [
            self._flat(self._zero.expand(parameter.numel()) if piece is None else piece)
            for parameter, piece in zip(vector.parameters, pieces, strict=True)
        ]
        for span, first, last, part in self._runs:
            if last == first + 1:
                yield span, flat[first][part]
            else:
                yield span, self._concatenate(flat[first:last], out=self._gathered[: span.stop - span.start])

    def _dot(self, values: Any, others: Any) -> float:
        """Σ x y; once more in float64 where products that matter may have left the range of float32."""
        total = self._narrow_dot(values, others)
        return total if self._in_range(total, values) else float(self._wide(values) @ self._wide(others))

    def _square(self, values: Any, others: Any, out: Any) -> float:
        """Σ (x - y)², so too; ``out`` takes x - y."""
        self._subtract(values, others, out=out)
        total = self._narrow_dot(out, out)
        if self._in_range(total, values):
            return total
        difference = self._wide(values) - self._wide(others)  # that of large numbers may be none of float32's
        return float(difference @ difference)

    def _slope(self, values: Any, here: Any, before: Any) -> float:
        """Σ x (y - z), so too."""
        difference = self._difference[: len(values)]
        self._subtract(here, before, out=difference)
        total = self._narrow_dot(values, difference)
        if self._in_range(total, values):
            return total
        return float(self._wide(values) @ (self._wide(here) - self._wide(before)))

    @staticmethod
    def _in_range(total: float, values: Any) -> bool:
        return SAFE_SUM * len(values) < abs(total) < math.inf

    @abstractmethod
    def _make_room(self, vector: ParameterVector, widest: int) -> None:
        """Make ``_difference`` and ``_gathered``, of ``widest`` coordinates each."""

    @abstractmethod
    def _flat(self, tensor: Tensor) -> Any:
        """Its coordinates in order, without a copy where they lie so."""

    @abstractmethod
    def _differ(self, values: Any, others: Any) -> bool:
        """Whether any bit differs."""

    @abstractmethod
    def _narrow_dot(self, values: Any, others: Any) -> float:
        """Σ x y, each block's in their own precision."""

    @abstractmethod
    def _wide(self, values: Any) -> Any:
        """The values in float64."""


class NumpyKernel(ChunkedKernel):
    """The CPU's without numba: NumPy's operations, on the tensors' own memory, cost less to call than torch's.

    A chunk and what meets it, a quarter of a megabyte each in float32, are meant to stay in the second-level cache from
    one operation to the next.
    """

    name = "numpy"
    chunk = 1 << 16
    _subtract, _concatenate = staticmethod(np.subtract), staticmethod(np.concatenate)

    def _make_room(self, vector: ParameterVector, widest: int) -> None:
        dtype = np.float32 if vector.dtype == torch.float32 else np.float64
        self._bits = np.int32 if vector.dtype == torch.float32 else np.int64
        self._difference, self._gathered = np.empty((2, widest), dtype)
        self._same, self._sums = np.empty(widest, bool), np.empty(widest // BLOCK, dtype)

    def _flat(self, tensor: Tensor) -> np.ndarray:
        return tensor.detach().reshape(-1).resolve_neg().numpy()

    def _differ(self, values: np.ndarray, others: np.ndarray) -> bool:
        same = np.equal(values.view(self._bits), others.view(self._bits), out=self._same[: len(values)])
        return not np.logical_and.reduce(same)

    def _narrow_dot(self, values: np.ndarray, others: np.ndarray) -> float:
        blocks, rest = divmod(len(values), BLOCK)
        total, whole = 0.0, len(values) - rest
        if blocks:
            pairs = values[:whole].reshape(-1, BLOCK), others[:whole].reshape(-1, BLOCK)
            total = float(np.add.reduce(np.vecdot(*pairs, out=self._sums[:blocks]), dtype=np.float64))
        return total + float(values[whole:] @ others[whole:]) if rest else total

    def _wide(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64)


class TorchKernel(ChunkedKernel):
    """Torch's own operations, wherever the parameters lie."""

    name = "torch"
    chunk = 1 << 19
    _subtract, _concatenate = staticmethod(torch.sub), staticmethod(torch.cat)

    def _make_room(self, vector: ParameterVector, widest: int) -> None:
        self._bits = torch.int32 if vector.dtype == torch.float32 else torch.int64
        self._difference, self._gathered = torch.empty(2, widest, dtype=vector.dtype, device=vector.device)

    def _flat(self, tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(-1).resolve_neg()

    def _differ(self, values: Tensor, others: Tensor) -> bool:
        return not torch.equal(values.view(self._bits), others.view(self._bits))

    def _narrow_dot(self, values: Tensor, others: Tensor) -> float:
        whole = len(values) // BLOCK * BLOCK
        blocks = torch.linalg.vecdot(values[:whole].view(-1, BLOCK), others[:whole].view(-1, BLOCK))
        return float(blocks.sum(dtype=torch.float64) + torch.linalg.vecdot(values[whole:], others[whole:]).double())

    def _wide(self, values: Tensor) -> Tensor:
        return values.double()


def _runs(offsets: Sequence[int], chunk: int) -> list[tuple[slice, int, int, slice]]:
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
            for low in range(begin, end, chunk):
                high = min(low + chunk, end)
                runs.append((slice(low, high), index, index + 1, slice(low - begin, high - begin)))
            first = index + 1
    if first < len(offsets) - 1:
        runs.append((slice(offsets[first], offsets[-1]), first, len(offsets) - 1, slice(None)))
    return runs


FLOAT32, FLOAT64 = np.empty(0, np.float32), np.empty(0, np.float64)
NO_SKETCH = np.empty(0)


def _words(vector: ParameterVector) -> tuple[int, np.ndarray]:
    """Of 32 bits a coordinate, and an array like the parameters."""
    return (1, FLOAT32) if vector.dtype == torch.float32 else (2, FLOAT64)


class NumbaKernel:
    """One fused loop over all vectors; on a CPU it costs little more than reading them once."""

    name = "numba"

    def __init__(self) -> None:
        loops: Any = importlib.import_module("sgdwalk.fused_loops")  # compiled at its first import, and kept on disk
        self._differs, self._marks, self._sums = loops.differs, loops.marks, loops.update_sums
        self._sketch_of = loops.sketch_of

    def moved(self, vector: ParameterVector, point: Tensor, mark: int | None = None) -> bool:
        held = _in_order(vector.parameters)
        places, words = np.array(_addresses(held)), vector.dtype.itemsize // 4
        if mark is not None:  # θ alone is read
            return self._marks(places, vector.bounds, words) != mark
        return self._differs(places, vector.bounds, words, point.data_ptr())

    def gradient_sums(
        self, vector: ParameterVector, gradients: Sequence[Tensor | None], previous: Tensor
    ) -> GradientSums:
        nothing = [None] * len(gradients)
        kept = [previous, None, None, None]
        return self._both(vector, _in_order(gradients), nothing, kept, (True, False, False))[0]

    def position_sums(self, vector: ParameterVector, point: Tensor, start: Tensor) -> PositionSums:
        nothing = [None] * len(vector.parameters)
        return self._both(vector, nothing, vector.parameters, [None, point, start, None], (False, True, False))[1]

    def update_sums(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        previous: Tensor,
        point: Tensor,
        start: Tensor,
        before: Tensor | None = None,
        *,
        advance: bool,
    ) -> tuple[GradientSums, PositionSums]:
        kept, nothing, taken = [previous, point, start, before], [None] * len(gradients), _in_order(gradients)
        if all(map(operator.is_, taken, gradients)):
            return self._both(vector, gradients, vector.parameters, kept, (True, True, advance))[:2]
        # Copies of one vector at a time.
        of_gradients, *_ = self._both(vector, taken, nothing, kept, (True, False, False))
        del taken
        return of_gradients, self._both(vector, nothing, vector.parameters, kept, (False, True, advance))[1]

    def _both(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        parameters: Sequence[Tensor | None],
        kept: Sequence[Tensor | None],
        do: tuple[bool, bool, bool],
        sketch: np.ndarray = NO_SKETCH,
        rate: float = 0.0,
    ) -> tuple[GradientSums, PositionSums, float]:
        """``gradients`` in order; ``kept``: g_{t-1}, θ_t, θ_0, θ_{t-1}; ``do``: sum over the former, over θ, keep θ."""
        held = [*gradients, *_in_order(parameters), *kept]
        words, like = _words(vector)
        sums = self._sums(np.array(_addresses(held)), vector.bounds, words, like, *do, sketch, rate)
        return GradientSums(*sums[:3]), PositionSums(*sums[3:7]), sums[7]

    # Where the updates are -η g_t they are followed without θ_t: a vector less is read, and one less written.

    @staticmethod
    def can_follow(vector: ParameterVector) -> bool:
        """Whether θ can be followed without a copy of it at every update."""
        return all(parameter.is_contiguous() for parameter in vector.parameters)

    def sketch(self, vector: ParameterVector) -> np.ndarray:
        """Of θ: a weighted sum of the coordinates of each block.  # (blocks,)"""
        found = np.empty(sum(-(-parameter.numel() // BLOCK) for parameter in vector.parameters))
        self._look_at(vector, found, compare=False)
        return found

    def strayed(self, vector: ParameterVector, sketch: np.ndarray) -> bool:
        """Whether θ is elsewhere than where ``sketch`` was made, by more than rounding."""
        return not self._look_at(vector, sketch, compare=True)

    def _look_at(self, vector: ParameterVector, sketch: np.ndarray, *, compare: bool) -> bool:
        held = _in_order(vector.parameters)
        return self._sketch_of(np.array(_addresses(held)), vector.bounds, *_words(vector), sketch, compare)

    def followed_sums(
        self,
        vector: ParameterVector,
        gradients: Sequence[Tensor | None],
        previous: Tensor,
        start: Tensor,
        sketch: np.ndarray,
        rate: float,
    ) -> tuple[GradientSums, PositionSums, float]:
        """As :meth:`update_sums` after an update of which only the ``sketch`` of θ_t is known, and becomes that of
        θ_{t+1}: without ‖θ_{t+1} - θ_t‖², and with ‖θ_{t+1} - θ_t + η g_t‖² as the sketches tell it, infinite where
        that is more than rounding; η is ``rate``."""
        kept, do = [previous, None, start, None], (True, True, False)
        sums, position, residual = self._both(vector, _in_order(gradients), vector.parameters, kept, do, sketch, rate)
        return sums, position._replace(mark=None), residual


def _in_order(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors, or copies where their coordinates do not lie in order; to be held while their addresses are used."""
    return [
        tensor
        if tensor is None or (tensor.is_contiguous() and not tensor.is_neg())
        else tensor.detach().clone(memory_format=torch.contiguous_format)
        for tensor in tensors
    ]


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Where each tensor's first coordinate lies; -1 for None, for an empty one may lie at 0."""
    return [-1 if tensor is None else tensor.data_ptr() for tensor in tensors]
