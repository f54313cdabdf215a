"""The full loss along a segment within a tolerance, for little more than one evaluation of its end.

The end is evaluated over all data, or its outputs were overheard in a pass of the user's own loop; the outputs at the
start are kept from the segment before. Between them the outputs are interpolated, and what that misses is found on
samples (see :mod:`sgdwalk.multilevel`).
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdwalk.multilevel import Outcome, certify, nodes, plan
from sgdwalk.objective import FullLoss, LossSums, as_sums, is_out_of_memory
from sgdwalk.outputs import OutputLoss, alike, floats, joined, lagrange, squared_moves, with_floats
from sgdwalk.overheard import Heard
from sgdwalk.params import lerp_into
from sgdwalk.records import SegmentPoint
from sgdwalk.segment import grid, losses_at
from sgdwalk.units import LossAsOutput, Units, source_of, units_of
from sgdwalk.valley import barrier

KEPT_BYTES = 1 << 28
"""Outputs at both ends of a segment are kept up to this size together; larger ones are computed again where needed."""
GROUP_BATCHES_BYTES = 1 << 20
"""Outputs of the evaluation batches whose chord is evaluated together."""
REMEMBERED = 8
"""Steps whose spread between units the next first look is planned by."""

Floats = list[Tensor]


class Certification(NamedTuple):
    """How certified segments are wanted.

    Attributes:
        tolerance: relative half-width of the height's interval.
        barriers: ``exact`` evaluates the points that leave a barrier undecided; ``estimated`` leaves it so.
        seed: of the sampling.
        largest_pass: examples up to which the ends are evaluated over all data; None: always.
    """

    tolerance: float
    barriers: str
    seed: int
    largest_pass: int | None = None

    def settings(self) -> dict[str, Any]:
        """As a run keeps them."""
        return {
            "tolerance": self.tolerance,
            "barriers": self.barriers,
            "sampling_seed": self.seed,
            "largest_pass": self.largest_pass,
        }


@dataclass
class Certified:
    """What came out along one segment."""

    points: tuple[SegmentPoint, ...]
    start: LossSums | None
    end: LossSums | None
    """L at the ends where it is known exactly."""
    looks: int
    nodes: int
    examples_evaluated: int
    looks_reason: str = ""
    """Why so many looks did not do."""
    losses: list[LossSums] | None = None
    """The losses at all points, over all evaluation batches or the first of them, to be compared with float64."""
    remarks: list[tuple[str, str]] = field(default_factory=list)
    bounds: dict[str, float] = field(default_factory=dict)
    """Bounds of height and barrier that are not those of the losses' intervals."""

    @property
    def columns(self) -> dict[str, float]:
        """Columns of the step."""
        effort = {"looks": self.looks, "nodes": self.nodes, "examples_evaluated": self.examples_evaluated}
        return {**effort, **self.bounds}


class CertifiedSegments:
    """Segments of one walk, each within a tolerance; remembers the outputs at the last end and the spreads seen.

    Args:
        full_loss: L.
        num_points: intervals of the grid.
        tolerance: relative half-width of the height's interval.
        barriers: ``exact`` evaluates the points that leave a barrier undecided; ``estimated`` leaves it so.
        seed: of the sampling.
    """

    def __init__(self, full_loss: FullLoss, num_points: int, tolerance: float, barriers: str, seed: int):
        self._full_loss = full_loss
        self._num_points, self._tolerance, self._barriers, self._seed = num_points, tolerance, barriers, seed
        self.kept: list[Floats] | None = None
        self._spreads: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self.passage: Passage | None = None
        self._gave_up = ""

    def forget(self) -> None:
        """The next segment starts elsewhere: no output is known there."""
        self.kept = None

    def start_at(self, heard: Heard) -> None:
        """The next segment starts where this was heard."""
        self.kept = [[output] for output in heard.outputs] or None

    @property
    def most_bytes(self) -> int:
        """The size up to which outputs at one point can serve as those of an end; 0 where none can."""
        of_use = not self._gave_up and (self.passage is None or self.passage.keeps_outputs)
        return KEPT_BYTES // 2 if of_use else 0

    def measure(
        self,
        start: Sequence[Tensor],
        end: Sequence[Tensor],
        known_start: LossSums | None,
        *,
        step: int,
        loss_noise: float,
        exactly: str = "",
        heard: Heard | None = None,
    ) -> Certified:
        """L along the segment. To be called inside ``full_loss.evaluating()``.

        Args:
            start, end: the walked parameters at both ends.
            known_start: L at the start where it is known.
            step: of which the draw is a function, with the seed.
            loss_noise: nats per example, NaN where it is not known.
            exactly: why this segment is to be evaluated exactly in any case; empty where it is not.
            heard: outputs at the end where they are known; without them they are evaluated.
        """
        if known_start is None:
            self.kept = None
        if not self._gave_up:
            try:
                return self._measure(start, end, known_start, step, loss_noise, exactly, heard)
            except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.kept = self.passage = None
                self._gave_up = "the outputs do not fit into memory"
        return self._exact(start, end, known_start, None, 0, self._gave_up)

    def _measure(
        self,
        start: Sequence[Tensor],
        end: Sequence[Tensor],
        known_start: LossSums | None,
        step: int,
        loss_noise: float,
        exactly: str,
        heard: Heard | None,
    ) -> Certified:
        remarks = []
        if self.passage is None:
            lerp_into(self._full_loss.site.targets, start, end, 0.0)
            source, why = source_of(self._full_loss)
            if why:
                remarks.append(("loss_interpolated", f"Along segments the loss itself is interpolated, since {why}."))
            self.passage = Passage(source, units_of(source), self._num_points)
        here = self.passage
        here.begin(start, end)
        known_start, chord, signs, last = here.ends(self.kept, known_start, heard)
        self.kept = here.kept
        count = math.fsum(last.counts)
        losses = chord / count
        losses[0], losses[-1] = known_start.mean, last.mean
        outcome: Outcome | None = None
        if not np.isfinite(losses).all():
            why = "a loss is not finite"
        elif known_start.counts != last.counts:
            why = "what loss_fn divides by changes along the step"
        else:
            noise = loss_noise if math.isfinite(loss_noise) else here.rounding * abs(losses).max()
            outcome = certify(
                here,
                losses,
                signs,
                plan(self._spreads, len(here.units), self._num_points),
                tolerance=self._tolerance,
                loss_noise=noise,
                random=generator(self._seed, step),
            )
            why = exactly or _why_not(outcome, self._tolerance)
            if outcome is not None and outcome.finite:
                self._spreads.append(outcome.spread)
        if why or outcome is None:
            certified = self._exact(start, end, known_start, last, here.examples, why)
        else:
            certified = self._estimated(start, end, known_start, last, outcome)
        certified.remarks += remarks
        here.end()
        return certified

    def _estimated(
        self, start: Sequence[Tensor], end: Sequence[Tensor], first: LossSums, last: LossSums, outcome: Outcome
    ) -> Certified:
        assert self.passage is not None
        losses, halfwidths = outcome.losses.copy(), outcome.halfwidths.copy()
        examples = self.passage.examples
        if self._barriers == "exact" and barrier(losses, halfwidths).item() is None:
            highest = max(losses[0], losses[-1])
            doubtful = [k for k in range(1, self._num_points) if losses[k] + halfwidths[k] > highest]
            alphas = grid(self._num_points)
            for k, sums in zip(
                doubtful, losses_at(self._full_loss, start, end, [alphas[k] for k in doubtful]), strict=True
            ):
                losses[k], halfwidths[k] = sums.mean, 0.0
            examples += len(doubtful) * self._full_loss.data.num_examples
        points = tuple(
            SegmentPoint(alpha, float(loss), "estimated" if width else "exact", float(width))
            for alpha, loss, width in zip(grid(self._num_points), losses, halfwidths, strict=True)
        )
        return Certified(points, first, last, outcome.looks, len(nodes(self._num_points)), examples)

    def _exact(
        self,
        start: Sequence[Tensor],
        end: Sequence[Tensor],
        first: LossSums | None,
        last: LossSums | None,
        examples: int,
        why: str,
    ) -> Certified:
        alphas = grid(self._num_points)
        wanted = [alpha for alpha in alphas if not ((alpha == 0.0 and first) or (alpha == 1.0 and last))]
        found = dict(zip(wanted, losses_at(self._full_loss, start, end, wanted), strict=True))
        if first is not None:
            found[0.0] = first
        if last is not None:
            found[1.0] = last
        losses = [found[alpha] for alpha in alphas]
        points = tuple(SegmentPoint(alpha, sums.mean) for alpha, sums in zip(alphas, losses, strict=True))
        examples += len(wanted) * self._full_loss.data.num_examples
        return Certified(points, losses[0], losses[-1], 3, len(alphas), examples, why, losses)

    def state_dict(self) -> dict[str, Any]:
        kept = None if self.kept is None else [[tensor.clone() for tensor in batch] for batch in self.kept]
        return {
            "spreads": [list(map(float, spread)) for spread in self._spreads],
            "outputs": kept,
            "gave_up": self._gave_up,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._spreads = deque([(float(one), float(other)) for one, other in state["spreads"]], maxlen=REMEMBERED)
        device = self._full_loss.site.vector.device
        kept = state["outputs"]
        self.kept = None if kept is None else [[tensor.to(device, copy=True) for tensor in batch] for batch in kept]
        self._gave_up = state["gave_up"]


def _why_not(outcome: Outcome | None, tolerance: float) -> str:
    """Why the looks at samples do not do; empty where they do."""
    if outcome is None:
        return "the data have too few units to sample from for this tolerance"
    if not outcome.finite:
        return "a loss is not finite"
    if outcome.accepted:
        return ""
    looks = "1 look" if outcome.looks == 1 else f"{outcome.looks} looks"
    return f"after {looks} the interval was wider than the tolerance {tolerance:g}"


def generator(seed: int, step: int) -> np.random.Generator:
    """Draws the units of one step: a pure function of the seed and the step."""
    digest = hashlib.blake2b(repr(("certified segment", seed, step)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


class Passage:
    """The evaluations along one segment: its ends over all data, and units of a sample at points between."""

    def __init__(self, source: FullLoss | LossAsOutput, units: Units, num_points: int):
        self.source, self.units = source, units
        self.kept: list[Floats] | None = None
        """Outputs at the end, batch by batch, where they are kept."""
        self.examples = 0
        """Examples evaluated along this segment, times the points at which they were."""
        self.rounding = float(torch.finfo(source.site.vector.dtype).eps)
        self._num_points = num_points
        self._loss = OutputLoss(source)  # pyright: ignore[reportArgumentType]
        self._interior = torch.arange(1, num_points)
        self._chord_weights = lagrange([0, num_points], num_points)
        self._middle_weights = lagrange(nodes(num_points), num_points)
        self._starts: list[Floats] | None = None
        self._first_unit = np.searchsorted(units.batch, np.arange(len(source.data) + 1))
        output, target = source.outputs(0)
        self._loss.check(output, target, source.data.sizes[0])
        size = sum(tensor.numel() * tensor.element_size() for tensor in floats(output)) / source.data.sizes[0]
        self._output_bytes = size
        self._keeps = 2 * size * source.data.num_examples <= KEPT_BYTES
        self._count = math.nan
        self._start: Sequence[Tensor] = ()
        self._end: Sequence[Tensor] = ()
        self._middles: dict[int, NDArray[np.float64]] = {}
        self._group = max(1, int(GROUP_BATCHES_BYTES // max(1.0, size * max(source.data.sizes))))

    @property
    def keeps_outputs(self) -> bool:
        """Whether the model's outputs at both ends are kept: they are neither too large nor something else."""
        return self._keeps and not isinstance(self.source, LossAsOutput)

    def begin(self, start: Sequence[Tensor], end: Sequence[Tensor]) -> None:
        self._start, self._end = start, end
        self.examples = 0
        self.kept = None
        self._middles = {}

    def end(self) -> None:
        """Let go of everything but what :attr:`kept` holds for others."""
        self._start, self._end = (), ()
        self._starts, self._middles, self.kept = None, {}, None

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
        chord = np.zeros(self._num_points + 1)
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
                sums = self._loss.along(
                    [_stacked([side[position] for position in positions]) for side in (starts, ends)],
                    self._chord_weights[self._interior],
                    joined([output for output, _ in chosen], torch.stack),
                    joined([target for _, target in chosen], torch.stack),
                    data.sizes[group[positions[0]]],
                )
                chord[1:-1] += sums.sum(axis=1)
            for index, one, other in zip(group, starts, ends, strict=True):
                self._sign(index, squared_moves(one, other), signs)
            if self.kept is not None:
                self.kept += ends
        end = as_sums(last) if heard is None else heard.sums
        self._count = math.fsum(end.counts)
        return (known_start or as_sums(first)), chord, signs, end

    def _groups(self) -> Iterator[range]:
        for low in range(0, len(self.source.data), self._group):
            yield range(low, min(low + self._group, len(self.source.data)))

    def _outputs(self, index: int) -> tuple[Any, Any]:
        self.examples += self.source.data.sizes[index]
        output, target = self.source.outputs(index)
        # Clones, since a model may hand out the same buffer every time.
        return with_floats(output, [tensor.clone() for tensor in floats(output)]), target

    def _sign(self, index: int, moves: Tensor, signs: NDArray[np.float64]) -> None:
        own = slice(self._first_unit[index], self._first_unit[index + 1])
        if self.units.whole:
            signs[own] = float(moves.sum())
        else:
            signs[own] = np.add.reduceat(moves.cpu().numpy().astype(np.float64), self.units.low[own])

    # --- units of a sample -------------------------------------------------------------------------------------------

    def middle_minus_chord(self, units: NDArray[np.intp]) -> NDArray[np.float64]:
        """What the middle level adds to the chord, as shares of the sum of losses over all data's count."""
        sides = self._ends_of(units)
        _, middle, _ = nodes(self._num_points)
        self._at(grid(self._num_points)[middle])
        outputs = self._evaluate(units)
        sides.insert(1, [floats(output) for output, _ in outputs])
        found = np.zeros((len(units), self._num_points + 1))
        for positions in alike(outputs):
            ends = [_stacked([side[position] for position in positions]) for side in sides]
            rest = (
                joined([outputs[position][0] for position in positions], torch.stack),
                joined([outputs[position][1] for position in positions], torch.stack),
                int(self.units.sizes[units[positions[0]]]),
            )
            chord = self._loss.along([ends[0], ends[2]], self._chord_weights[self._interior], *rest)
            along = self._loss.along(ends, self._middle_weights[self._interior], *rest)
            for column, position in enumerate(positions):
                self._middles[int(units[position])] = along[:, column]
                found[position, 1:-1] = along[:, column] - chord[:, column]
        return found / self._count

    def true_minus_middle(self, units: NDArray[np.intp]) -> NDArray[np.float64]:
        """What the true losses add to the middle level, in the same shares."""
        found = np.zeros((len(units), self._num_points + 1))
        for k in range(1, self._num_points):
            if k == nodes(self._num_points)[1] or not len(units):
                continue
            self._at(grid(self._num_points)[k])
            outputs = self._evaluate(units)
            for positions in alike(outputs):
                sums = self._loss.sums(
                    joined([outputs[position][0] for position in positions], torch.stack),
                    joined([outputs[position][1] for position in positions], torch.stack),
                    int(self.units.sizes[units[positions[0]]]),
                )
                for value, position in zip(sums, positions, strict=True):
                    found[position, k] = value - self._middles[int(units[position])][k - 1]
        return found / self._count

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
