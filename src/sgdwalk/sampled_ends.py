"""Segments of data so large that one pass a step is too much: their ends too are evaluated on a sample of units.

Each step draws units afresh. On all of them the outputs at both ends give the chord, on some the middle, on a few the
truth (see :mod:`sgdwalk.three_levels`), so that the cost of a step does not grow with the data.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdwalk import text
from sgdwalk.certified import (
    COUNTS_CHANGE,
    NOT_FINITE,
    REMEMBERED,
    Certification,
    Certified,
    CertifiedSegments,
    Query,
    Segments,
    generator,
)
from sgdwalk.multilevel import NUM_NODES
from sgdwalk.objective import NOISE_BATCHES, FullLoss, LossSums
from sgdwalk.outputs import alike, floats, joined, squared_moves
from sgdwalk.params import lerp_into
from sgdwalk.passage import GROUP_BATCHES_BYTES, KEPT_BYTES, Floats, Passage
from sgdwalk.records import NAN, SegmentPoint
from sgdwalk.segment import grid
from sgdwalk.three_levels import FEWEST, Outcome, Spread, certify, plan
from sgdwalk.units import LossAsOutput, Units, units_of, whole_batches


def segments_of(full_loss: FullLoss, num_points: int, certification: Certification) -> Segments:
    """How the segments of a certified walk are measured: with the ends over all data, or sampled too.

    ``barriers="exact"`` asks for losses over all data, and ``certify="curve"`` for losses as precise as the height, so
    that the ends are evaluated over them too.
    """
    tolerance, barriers, seed, largest_pass, certify = certification
    over_all = CertifiedSegments(full_loss, num_points, certification)
    needs_all = barriers == "exact" or certify == "curve"
    if largest_pass is None or needs_all or full_loss.data.num_examples <= largest_pass:
        return over_all
    return SampledEnds(full_loss, num_points, tolerance, seed, largest_pass, over_all)


class SampledEnds(Segments):
    """Segments each of which is known from a sample of its own, ends included; remembers the spreads seen.

    Args:
        full_loss: L.
        num_points: intervals of the grid.
        tolerance: relative half-width of the height's interval.
        seed: of the sampling.
        largest_pass: examples that are evaluated at an end at most.
        over_all: measures segments that cannot be sampled, its ends over all data.
    """

    def __init__(
        self,
        full_loss: FullLoss,
        num_points: int,
        tolerance: float,
        seed: int,
        largest_pass: int,
        over_all: CertifiedSegments,
    ):
        super().__init__(full_loss)
        self._num_points, self._tolerance, self._seed = num_points, tolerance, seed
        self._largest_pass = largest_pass
        self._over_all = over_all
        self.told = over_all.told
        self._spreads: deque[Spread] = deque(maxlen=REMEMBERED)
        self._counts: list[float] | None = None
        self.passage: SampledPassage | None = None

    def forget(self) -> None:
        self._over_all.forget()

    def _give_up(self, why: str) -> None:
        super()._give_up(why)
        self._spent += 0 if self.passage is None else self.passage.examples
        self.passage = None
        self._remarks.append(("ends_over_all_data", f"The ends of segments are evaluated over all data, since {why}."))

    def _without_samples(self, query: Query) -> Certified:
        return self._over_all.measure(query)

    def _from_samples(self, query: Query) -> Certified:
        if self.passage is None or query.exactly:
            self.passage = self._passage(self._source(query))
            if self.passage is None:
                return self._over_all.measure(query)
        here = self.passage
        here.begin(query.start, query.end)
        try:
            outcome = certify(
                here,
                plan(list(self._spreads), here.most, len(here.units), self._num_points),
                num_units=len(here.units),
                most=here.most,
                num_points=self._num_points,
                tolerance=self._tolerance,
                loss_noise=query.loss_noise,
                rounding=here.rounding,
                random=generator(self._seed, query.step),
            )
        finally:
            here.end()
        why = "" if here.counts_hold else COUNTS_CHANGE
        if not why and not outcome.finite and np.isfinite(outcome.losses[[0, -1]]).all():
            why = NOT_FINITE
        if why:
            self._spent += here.examples
            return self._over_all.measure(query._replace(exactly=why))
        if outcome.finite:
            self._spreads.append(outcome.spread)
        self._over_all.forget()
        certified = self._estimated(outcome, query.known_start, here.examples)
        if query.exactly:
            certified.losses = self._first_batches(query)
            certified.examples_evaluated += len(certified.losses) * sum(
                self._full_loss.data.sizes[: len(certified.losses[0].sums)]
            )
        return certified

    def _passage(self, source: FullLoss | LossAsOutput) -> SampledPassage | None:
        """The data cut into units, whose size does not depend on how many data there are; None where that is no use."""
        output, target = self._full_loss.outputs(0)
        if isinstance(self._full_loss.loss_fn(output, target), Tensor):
            counts, total = None, float(self._full_loss.data.num_examples)
            units = units_of(source, self._largest_pass)
        else:
            # What a unit counts is known beforehand for whole batches alone: it must be the same along every step.
            if self._counts is None:
                self._counts = list(self._full_loss.sums().counts)
                self._spent += self._full_loss.data.num_examples
            counts, total = self._counts, math.fsum(self._counts)
            units = whole_batches(source.data.sizes)
        size = float(units.sizes.max())
        most = min(len(units), int(self._largest_pass // size))
        if most < FEWEST[0]:
            sample, unit = text.count(self._largest_pass, "example"), text.count(int(size), "example")
            self._give_up(
                f"a sample of {sample} (largest_pass) would hold {text.count(most, 'unit')} of {unit}, and {FEWEST[0]} "
                "units are needed"
            )
            return None
        return SampledPassage(source, units, self._num_points, most, total, counts)

    def _estimated(self, outcome: Outcome, known_start: LossSums | None, examples: int) -> Certified:
        # A half-width that is not known stands beside a loss that is not finite, which needs none.
        widths = np.where(np.isfinite(outcome.losses), outcome.halfwidths, 0.0)
        points = tuple(
            SegmentPoint(alpha, float(loss) if math.isfinite(loss) else NAN, "estimated", float(width))
            for alpha, loss, width in zip(grid(self._num_points), outcome.losses, widths, strict=True)
        )
        bounds = {}
        if outcome.finite:
            bounds = {
                **dict(zip(("height_low", "height_high"), outcome.height, strict=True)),
                **dict(zip(("barrier_height_low", "barrier_height_high"), outcome.barrier_height, strict=True)),
            }
        looks = "1 look" if outcome.looks == 1 else f"{outcome.looks} looks"
        reason = (
            f"after {looks} the interval was wider than the tolerance {self._tolerance:g}, and all data are more than "
            f"largest_pass={self._largest_pass}"
        )
        return Certified(
            points,
            known_start,
            None,
            outcome.looks,
            NUM_NODES,
            examples,
            reason if outcome.finite and not outcome.accepted else "",
            bounds=bounds,
        )

    def _first_batches(self, query: Query) -> list[LossSums]:
        """L over the first evaluation batches at every point; no more examples than a pass may have."""
        sizes = np.cumsum(self._full_loss.data.sizes[:NOISE_BATCHES]) * (self._num_points + 1)
        batches = max(1, int((sizes <= self._largest_pass).sum()))
        losses = []
        for alpha in grid(self._num_points):
            lerp_into(self._full_loss.site.targets, query.start, query.end, alpha)
            losses.append(self._full_loss.sums(batches))
        return losses

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "spreads": [list(spread) for spread in self._spreads],
            "counts": None if self._counts is None else list(self._counts),
            "over_all": self._over_all.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._spreads = deque([(float(a), float(b), float(c)) for a, b, c in state["spreads"]], maxlen=REMEMBERED)
        self._counts = None if state["counts"] is None else [float(count) for count in state["counts"]]
        self._over_all.load_state_dict(state["over_all"])


class SampledPassage(Passage):
    """The evaluations of sampled units along one segment, both ends included.

    Args:
        source: of the outputs.
        units: that may be drawn.
        num_points: intervals of the grid.
        most: units that may be drawn at most.
        total: what L is divided by.
        counts: what loss_fn counts for each evaluation batch, where it counts for itself; units are whole batches then.
    """

    def __init__(
        self, source: Any, units: Units, num_points: int, most: int, total: float, counts: Sequence[float] | None
    ):
        super().__init__(source, units, num_points)
        self.most = most
        self._count, self._batch_counts = total, counts
        self._known_ends: dict[int, tuple[Floats, Floats]] = {}
        self._unit_bytes = max(1.0, self._output_bytes * float(units.sizes.max()))

    def end(self) -> None:
        super().end()
        self._known_ends = {}

    def along_chord(self, units: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Losses of units along the chord of their outputs, as shares, and how far the outputs move.

        The outputs are kept for the levels above as far as memory set aside for them goes.
        """
        shares, signs = np.zeros((len(units), self._num_points + 1)), np.zeros(len(units))
        at_once = max(1, int(KEPT_BYTES // (2 * self._unit_bytes)))
        for low in range(0, len(units), at_once):
            part = slice(low, low + at_once)
            shares[part], signs[part] = self._part_along_chord(units[part])
        return shares, signs

    def _part_along_chord(self, units: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shares, signs = np.zeros((len(units), self._num_points + 1)), np.zeros(len(units))
        self._at(0.0)
        before = self._evaluate(units)
        self._at(1.0)
        after = self._evaluate(units)
        starts, ends = ([floats(output) for output, _ in side] for side in (before, after))
        at_once = max(1, int(GROUP_BATCHES_BYTES // self._unit_bytes))
        for group in alike(list(zip(after, starts, strict=True))):
            for low in range(0, len(group), at_once):
                positions = group[low : low + at_once]
                size = int(self.units.sizes[units[positions[0]]])
                first, last = (joined([side[i][0] for i in positions], torch.stack) for side in (before, after))
                old, targets = (joined([side[i][1] for i in positions], torch.stack) for side in (before, after))
                # The ends by themselves: a weight of 0 does not silence an output that is not finite.
                sums = [self._loss.sums(first, old, size), self._loss.sums(last, targets, size)]
                weights = self._chord_weights[self._interior]
                along = self._loss.along([floats(first), floats(last)], weights, last, targets, size)
                shares[positions, 0], shares[positions, -1] = (each.losses for each in sums)
                shares[positions, 1:-1] = along.losses.T
                counts = [*(each.counts for each in sums), *along.counts]
                self._see_counts(np.array(counts), self._expected_counts(units[positions], counts[0]))
                signs[positions] = squared_moves(floats(first), floats(last)).double().cpu().numpy()
        room = int(KEPT_BYTES // (2 * self._unit_bytes)) - len(self._known_ends)
        self._known_ends.update(list(zip(units.tolist(), zip(starts, ends, strict=True), strict=True))[: max(0, room)])
        return shares / self._count, signs

    def _ends_of(self, units: NDArray[np.intp]) -> list[list[Floats]]:
        missing = np.array([unit for unit in units.tolist() if unit not in self._known_ends], dtype=np.intp)
        known = dict(self._known_ends)
        if len(missing):
            known.update(zip(missing.tolist(), zip(*super()._ends_of(missing), strict=True), strict=True))
        return [[known[unit][side] for unit in units.tolist()] for side in (0, 1)]
