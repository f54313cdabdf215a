"""The evaluations along one segment: its ends over all data, and units of a sample at points between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdwalk.multilevel import middle_node
from sgdwalk.objective import FullLoss, LossSums, as_sums
from sgdwalk.outputs import OutputLoss, alike, floats, joined, lagrange, squared_moves, with_floats
from sgdwalk.overheard import Heard
from sgdwalk.params import lerp_into
from sgdwalk.segment import grid
from sgdwalk.shared_layer import NotShared, SharedLayer, find_shared_layer
from sgdwalk.units import LossAsOutput, Units

KEPT_BYTES = 1 << 28
"""Outputs at both ends of a segment are kept up to this size together; larger ones are computed again where needed."""
COUNTS_AGREE = 1e-6
"""Relative difference of two counts that are the same but for rounding."""
GROUP_BATCHES_BYTES = 1 << 20
"""Outputs of the evaluation batches whose chord is evaluated together."""

Floats = list[Tensor]


class Passage:
    """The evaluations along one segment after the other: each between ``begin()`` and ``end()``.

    Args:
        source: of the outputs.
        units: that may be drawn.
        num_points: intervals of the grid.
    """

    def __init__(self, source: FullLoss | LossAsOutput, units: Units, num_points: int):
        self.source, self.units = source, units
        self.kept: list[Floats] | None = None
        """Outputs at the end, batch by batch, where they are kept."""
        self.examples = 0
        """Examples evaluated along this segment, times the points at which they were."""
        self.counts_hold = True
        """Whether all that was seen of this segment counts at every point what it counts at the end."""
        self.rounding = float(torch.finfo(source.site.vector.dtype).eps)
        self._num_points = num_points
        self._loss = OutputLoss(source)  # pyright: ignore[reportArgumentType]
        self._interior = torch.arange(1, num_points)
        self._chord_weights = lagrange([0, num_points], num_points)
        self._node = num_points // 2
        self._starts: list[Floats] | None = None
        self._first_unit = np.searchsorted(units.batch, np.arange(len(source.data) + 1))
        output, target = source.outputs(0)
        self.shapes = [tensor.shape for tensor in floats(output)]
        """Of the first evaluation batch's outputs."""
        self._loss.check(output, target, source.data.sizes[0])
        size = sum(tensor.numel() * tensor.element_size() for tensor in floats(output)) / source.data.sizes[0]
        self._output_bytes = size
        self._keeps = 2 * size * source.data.num_examples <= KEPT_BYTES
        self._shared = find_shared_layer(source) if isinstance(source, FullLoss) else None
        self._count = math.nan
        self._start: Sequence[Tensor] = ()
        self._end: Sequence[Tensor] = ()
        self._middles: dict[int, NDArray[np.float64]] = {}
        self._unit_counts: dict[int, float] = {}
        self._seen: dict[tuple[int, int], Any] = {}
        """Sum and count of evaluation batches at points of the grid, where batches are the units."""
        self._batch_counts: Sequence[float] | None = None
        """What loss_fn counts for each evaluation batch at the end, where it is known."""
        self._group = max(1, int(GROUP_BATCHES_BYTES // max(1.0, size * max(source.data.sizes))))

    @property
    def keeps_outputs(self) -> bool:
        """Whether the model's outputs at both ends are kept: they are neither too large nor something else."""
        return self._keeps and not isinstance(self.source, LossAsOutput)

    @property
    def shares_layer(self) -> bool:
        """Whether the first layer's products can serve many points of a segment."""
        return self._shared is not None

    def begin(self, start: Sequence[Tensor], end: Sequence[Tensor]) -> None:
        self._start, self._end = start, end
        self.examples = 0
        self.kept = None
        self._middles, self._unit_counts, self._seen, self.counts_hold = {}, {}, {}, True

    def end(self) -> None:
        """Let go of everything but what :attr:`kept` holds for others."""
        self._start, self._end = (), ()
        self._starts, self._middles, self._unit_counts, self._seen, self.kept = None, {}, {}, {}, None

    def _at(self, alpha: float) -> None:
        lerp_into(self.source.site.targets, self._start, self._end, alpha)

    # --- all data ----------------------------------------------------------------------------------------------------

    def ends(
        self, known: list[Floats] | None, known_start: LossSums | None, heard: Heard | None = None
    ) -> tuple[LossSums, NDArray[np.float64], NDArray[np.float64], LossSums]:
        """L at the start, sums along the chord, a sign for every unit, and L at the end.

        The sign is the length of the way that a unit's outputs go: where it is long the chord may be far off.
        """
        data = self.source.data
        first: list[Any] = []
        if self._keeps and known is None:
            self._at(0.0)
            known = []
            for index in range(len(data)):
                output, target = self._outputs(index)
                known.append(floats(output))
                first.append(self.source.sum_and_count(output, target, data.sizes[index]))
        self._starts = known
        self.kept = [] if self._keeps else None
        last: list[Any] = []
        chord, counts = np.zeros(self._num_points + 1), np.zeros((self._num_points - 1, len(data)))
        signs = np.zeros(len(self.units))
        self._at(1.0)
        for group in self._groups():
            if heard is None:
                outputs = [self._outputs(index) for index in group]
                last += [self.source.sum_and_count(*outputs[i], data.sizes[index]) for i, index in enumerate(group)]
            else:
                outputs = [(heard.outputs[index], heard.targets[index]) for index in group]
            if known is None:
                self._at(0.0)
                before = [self._outputs(index) for index in group]
                first += [self.source.sum_and_count(*before[i], data.sizes[index]) for i, index in enumerate(group)]
                starts = [floats(output) for output, _ in before]
                self._at(1.0)
            else:
                starts = [known[index] for index in group]
            ends = [floats(output) for output, _ in outputs]
            for positions in alike(list(zip(outputs, starts, strict=True))):
                chosen = [outputs[position] for position in positions]
                first_side, last_side = (_stacked([side[i] for i in positions]) for side in (starts, ends))
                sums = self._loss.along(
                    [first_side, last_side],
                    self._chord_weights[self._interior],
                    joined([output for output, _ in chosen], torch.stack),
                    joined([target for _, target in chosen], torch.stack),
                    data.sizes[group[positions[0]]],
                )
                chord[1:-1] += sums.losses.sum(axis=1)
                counts[:, [group[position] for position in positions]] = sums.counts
                self._sign([group[position] for position in positions], first_side, last_side, signs)
            if self.kept is not None:
                self.kept += ends
        end = as_sums(last) if heard is None else heard.sums
        start = known_start or as_sums(first)
        self._count, self._batch_counts = math.fsum(end.counts), end.counts
        self._see_counts(counts, end.counts)
        inside = chord[1:-1] / (self._count or math.nan)
        self._node = middle_node(np.array([start.mean, *inside, end.mean]))
        return start, chord, signs, end

    def loss_at(self, k: int) -> LossSums:
        """L at a point of the grid, the units being evaluation batches: those of the sample are not evaluated again."""
        assert self.units.whole
        missing = [index for index in range(len(self.source.data)) if (index, k) not in self._seen]
        if missing:
            self._at(grid(self._num_points)[k])
        for index in missing:
            self._see([index], k, [self._outputs(index)])
        return as_sums([self._seen[index, k] for index in range(len(self.source.data))])

    def _see(self, units: Sequence[int] | NDArray[np.intp], k: int, outputs: Sequence[tuple[Any, Any]]) -> None:
        """Keep what makes the loss of units at a point of the grid, for the case that it is wanted of all."""
        if self.units.whole:
            for unit, (output, target) in zip(map(int, units), outputs, strict=True):
                self._seen[unit, k] = self.source.sum_and_count(output, target, self.source.data.sizes[unit])

    def _groups(self) -> Iterator[range]:
        for low in range(0, len(self.source.data), self._group):
            yield range(low, min(low + self._group, len(self.source.data)))

    def _outputs(self, index: int) -> tuple[Any, Any]:
        self.examples += self.source.data.sizes[index]
        output, target = self.source.outputs(index)
        # Clones, since a model may hand out the same buffer every time.
        return with_floats(output, [tensor.clone() for tensor in floats(output)]), target

    def _sign(self, batches: list[int], starts: Floats, ends: Floats, signs: NDArray[np.float64]) -> None:
        """Put how far the outputs of each unit in some batches move; starts and ends are stacked over the batches."""
        if self.units.whole:
            signs[batches] = squared_moves(starts, ends).double().cpu().numpy()
            return
        rows = [[tensor.flatten(0, 1) for tensor in side] for side in (starts, ends)]
        moves = squared_moves(*rows).view(len(batches), -1).double().cpu().numpy()
        for index, of_batch in zip(batches, moves, strict=True):
            own = slice(self._first_unit[index], self._first_unit[index + 1])
            signs[own] = np.add.reduceat(of_batch, self.units.low[own])

    # --- units of a sample -------------------------------------------------------------------------------------------

    def middle_minus_chord(self, units: NDArray[np.intp]) -> NDArray[np.float64]:
        """What the middle level adds to the chord, as shares of the sum of losses over all data's count."""
        sides = self._ends_of(units)
        self._at(grid(self._num_points)[self._node])
        outputs = self._evaluate(units)
        self._see(units, self._node, outputs)
        sides.insert(1, [floats(output) for output, _ in outputs])
        weights = lagrange((0, self._node, self._num_points), self._num_points)[self._interior]
        found = np.zeros((len(units), self._num_points + 1))
        for positions in alike(outputs):
            ends = [_stacked([side[position] for position in positions]) for side in sides]
            rest = (
                joined([outputs[position][0] for position in positions], torch.stack),
                joined([outputs[position][1] for position in positions], torch.stack),
                int(self.units.sizes[units[positions[0]]]),
            )
            chord = self._loss.along([ends[0], ends[2]], self._chord_weights[self._interior], *rest)
            along = self._loss.along(ends, weights, *rest)
            counts = self._expected_counts(units[positions], chord.counts[0])
            self._see_counts(np.concatenate([chord.counts, along.counts]), counts)
            for column, position in enumerate(positions):
                self._middles[int(units[position])] = along.losses[:, column]
                self._unit_counts[int(units[position])] = counts[column]
                found[position, 1:-1] = along.losses[:, column] - chord.losses[:, column]
        return found / self._count

    def true_minus_middle(self, units: NDArray[np.intp], inside: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """What the true losses add to the middle level at some points, in the same shares; at all where not given."""
        found = np.zeros((len(units), self._num_points + 1))

        def put(low: int, k: int, outputs: list[tuple[Any, Any]]) -> None:
            self._see(units[low : low + len(outputs)], k, outputs)
            for positions in alike(outputs):
                sums = self._loss.sums(
                    joined([outputs[position][0] for position in positions], torch.stack),
                    joined([outputs[position][1] for position in positions], torch.stack),
                    int(self.units.sizes[units[low + positions[0]]]),
                )
                self._see_counts(sums.counts, [self._unit_counts[int(units[low + position])] for position in positions])
                for value, position in zip(sums.losses, positions, strict=True):
                    found[low + position, k] = value - self._middles[int(units[low + position])][k - 1]

        wanted = range(1, self._num_points) if inside is None else map(int, inside)
        if len(units):
            self._evaluate_along(units, sorted({*wanted} - {self._node}), put)
        return found / self._count

    def _expected_counts(self, units: NDArray[np.intp], seen: NDArray[np.float64]) -> Sequence[float]:
        """What some units count: where nobody knows it of parts of a batch, what they were seen to."""
        if self._batch_counts is None or not self.units.whole:
            return seen.tolist()
        return [self._batch_counts[int(self.units.batch[unit])] for unit in units]

    def _see_counts(self, counts: NDArray[np.float64], expected: Sequence[float]) -> None:
        """Take note of whether units count what they are expected to: L along a segment is divided by one number."""
        self.counts_hold &= bool(np.allclose(counts, expected, rtol=COUNTS_AGREE, atol=0.0))

    def _evaluate_along(
        self, units: NDArray[np.intp], points: Sequence[int], take: Callable[[int, int, list[tuple[Any, Any]]], None]
    ) -> None:
        """Evaluate units at points of the grid; by groups, where the products of a first layer serve all points.

        ``take`` gets the position of the first unit, the point, and the units' outputs and targets there; what it gets
        for them last counts.
        """
        alphas, before = grid(self._num_points), self.examples
        if self._shared is not None and len(points) > 2:  # two products are what the layer's ends cost
            try:
                return self._with_shared_layer(self._shared, units, points, take)
            except NotShared:
                self._shared, self.examples = None, before
        for k in points:
            self._at(alphas[k])
            take(0, k, self._evaluate(units))
        return None

    def _with_shared_layer(
        self,
        shared: SharedLayer,
        units: NDArray[np.intp],
        points: Sequence[int],
        take: Callable[[int, int, list[tuple[Any, Any]]], None],
    ) -> None:
        assert isinstance(self.source, FullLoss)
        low, alphas = 0, grid(self._num_points)
        with shared.installed(self._start, self._end):
            for group in shared.grouped(self.units.together(self.source, units)):
                for k in points:
                    self._at(alphas[k])
                    outputs = []
                    for index, (batch, bounds) in enumerate(group):
                        shared.at(alphas[k], index, batch)
                        outputs += self.units.outputs(self.source, batch, bounds)
                        self.examples += bounds[-1]
                    take(low, k, outputs)
                shared.forget()
                low += sum(len(bounds) - 1 for _, bounds in group)

    def _ends_of(self, units: NDArray[np.intp]) -> list[list[Floats]]:
        """The outputs of units at the start and at the end; evaluated where they are not kept."""
        if self._starts is not None and self.kept is not None:
            return [[self._rows(side, unit) for unit in units] for side in (self._starts, self.kept)]
        sides = []
        for alpha in (0.0, 1.0):
            self._at(alpha)
            sides.append([floats(output) for output, _ in self._evaluate(units)])
        return sides

    def _evaluate(self, units: NDArray[np.intp]) -> list[tuple[Any, Any]]:
        self.examples += int(self.units.sizes[units].sum())
        return self.units.evaluate(self.source, units)

    def _rows(self, side: list[Floats], unit: int) -> Floats:
        tensors = side[int(self.units.batch[unit])]
        if self.units.whole:
            return tensors
        return [tensor[int(self.units.low[unit]) : int(self.units.high[unit])] for tensor in tensors]


def _stacked(units: Sequence[Floats]) -> Floats:
    """Tensor by tensor, stacked over units of the same shapes."""
    return [torch.stack(tensors) for tensors in zip(*units, strict=True)]
