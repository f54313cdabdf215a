"""The full loss along a segment within a tolerance, for little more than one evaluation of its end.

The end is evaluated over all data, or its outputs were overheard in a pass of the user's own loop; the outputs at the
start are kept from the segment before. Between them the outputs are interpolated, and what that misses is found on
samples (see :mod:`sgdwalk.looks`).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgdwalk.looks import Outcome, Wanted, certify, exact_look
from sgdwalk.multilevel import NUM_NODES, Array
from sgdwalk.objective import FullLoss, LossSums, is_out_of_memory
from sgdwalk.overheard import Heard
from sgdwalk.params import lerp_into
from sgdwalk.passage import KEPT_BYTES, Floats, Passage
from sgdwalk.records import EXACT_LOOK, SegmentPoint
from sgdwalk.sample_sizes import plan
from sgdwalk.segment import as_points, grid, losses_at
from sgdwalk.units import LossAsOutput, source_of, units_of
from sgdwalk.valley import barrier

COUNTS_CHANGE = "what loss_fn divides by changes along the step"
NOT_FINITE = "a loss of the sample, or of interpolated outputs, is not finite"
REMEMBERED = 8
"""Steps whose spread between units the next first look is planned by."""


class Certification(NamedTuple):
    """How certified segments are wanted.

    Attributes:
        tolerance: relative half-width of the height's interval.
        barriers: ``exact`` evaluates the points that leave a barrier undecided; ``estimated`` leaves it so.
        seed: of the sampling.
        largest_pass: examples up to which the ends are evaluated over all data; None: always.
        certify: of what the tolerance is: ``height``, or ``curve``, of every loss.
    """

    tolerance: float
    barriers: str
    seed: int
    largest_pass: int | None = None
    certify: str = "height"

    def settings(self) -> dict[str, Any]:
        """As a run keeps them."""
        return {
            "tolerance": self.tolerance,
            "barriers": self.barriers,
            "sampling_seed": self.seed,
            "largest_pass": self.largest_pass,
            "certify": self.certify,
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


class Query(NamedTuple):
    """A segment that is to be measured, and what is known of it.

    Attributes:
        start, end: the walked parameters at both ends.
        step: of which the draw is a function, with the seed.
        loss_noise: nats per example, NaN where it is not known.
        known_start: L at the start where it is known.
        heard: outputs at the end where they are known.
        exactly: why losses that can be compared with float64 are wanted at every point; empty where they are not.
    """

    start: Sequence[Tensor]
    end: Sequence[Tensor]
    step: int
    loss_noise: float
    known_start: LossSums | None = None
    heard: Heard | None = None
    exactly: str = ""


class Segments(ABC):
    """Segments of one walk, each within a tolerance; where samples do not fit into memory, without them."""

    def __init__(self, full_loss: FullLoss):
        self._full_loss = full_loss
        self._gave_up = ""
        """Why no sample is taken any more."""
        self._spent = 0
        """Examples evaluated to no avail, until a segment has them in its account."""
        self.told: set[str] = set()
        """Kinds of what is told once a walk, and was."""
        self._remarks: list[tuple[str, str]] = []
        """What is to be told with the segment that is being measured."""

    def measure(self, query: Query) -> Certified:
        """L along the segment. To be called inside ``full_loss.evaluating()``."""
        certified = None
        if not self._gave_up:
            try:
                certified = self._from_samples(query)
            except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._give_up("the outputs do not fit into memory")
        if certified is None:
            certified = self._without_samples(query)
        certified.examples_evaluated += self._spent
        self._spent = 0
        certified.remarks[:0] = self._remarks
        self._remarks = []
        return certified

    @abstractmethod
    def _from_samples(self, query: Query) -> Certified: ...

    @abstractmethod
    def _without_samples(self, query: Query) -> Certified: ...

    def _give_up(self, why: str) -> None:
        self._gave_up = why

    def _source(self, query: Query) -> FullLoss | LossAsOutput:
        """Where the outputs come from that are interpolated, looked at where the segment ends.

        A model may start with weights of zero, and do what it does only after an update.
        """
        lerp_into(self._full_loss.site.targets, query.start, query.end, 1.0)
        source, why = source_of(self._full_loss)
        if why and "loss_interpolated" not in self.told:
            self.told.add("loss_interpolated")
            message = f"Along segments the loss itself is interpolated, since {why}."
            self._remarks.append(("loss_interpolated", message))
        return source

    @abstractmethod
    def forget(self) -> None:
        """The next segment starts elsewhere: no output is known there."""

    def state_dict(self) -> dict[str, Any]:
        return {"gave_up": self._gave_up, "told": sorted(self.told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gave_up = state["gave_up"]
        self.told.update(state["told"])


class CertifiedSegments(Segments):
    """Segments whose ends are evaluated over all data; remembers the outputs at the last end and the spreads seen.

    Args:
        full_loss: L.
        num_points: intervals of the grid.
        wanted: with what precision.
    """

    def __init__(self, full_loss: FullLoss, num_points: int, wanted: Certification):
        super().__init__(full_loss)
        self._num_points, self._wanted = num_points, wanted
        self.kept: list[Floats] | None = None
        self._spreads: deque[Array] = deque(maxlen=REMEMBERED)
        self.passage: Passage | None = None

    def forget(self) -> None:
        self.kept = None

    def start_at(self, heard: Heard) -> None:
        """The next segment starts where this was heard."""
        self.kept = [[output] for output in heard.outputs] or None

    @property
    def most_bytes(self) -> int:
        """The size up to which outputs at one point can serve as those of an end; 0 where none can."""
        of_use = not self._gave_up and (self.passage is None or self.passage.keeps_outputs)
        return KEPT_BYTES // 2 if of_use else 0

    def _give_up(self, why: str) -> None:
        super()._give_up(why)
        self._spent += 0 if self.passage is None else self.passage.examples
        self.kept = self.passage = None

    def _without_samples(self, query: Query) -> Certified:
        self.kept = None
        return self._exact(query, query.known_start, None, self._gave_up)

    def _from_samples(self, query: Query) -> Certified:
        if query.known_start is None:
            self.kept = None
        if self.passage is None or query.exactly:  # a look now and then: what mixes examples may come into play later
            source = self._source(query)
            self.passage = Passage(source, units_of(source), self._num_points)
            if self.kept and [tensor.shape for tensor in self.kept[0]] != self.passage.shapes:
                self.kept = None  # outputs of another kind
        self.passage.begin(query.start, query.end)
        try:
            return self._along(self.passage, query)
        finally:
            self.passage.end()

    def _along(self, here: Passage, query: Query) -> Certified:
        first, chord, signs, last = here.ends(self.kept, query.known_start, query.heard)
        self.kept = here.kept
        losses = chord / (math.fsum(last.counts) or math.nan)  # loss_fn may count nothing at all
        losses[0], losses[-1] = first.mean, last.mean
        outcome: Outcome | None = None
        if not np.isfinite(losses[[0, -1]]).all():
            why = "a loss is not finite"
        elif not np.isfinite(losses).all():
            why = "the interpolated outputs have no finite loss"
        elif first.counts != last.counts or not here.counts_hold:
            why = COUNTS_CHANGE
        else:
            # The largest of a few measured errors may be small by luck, most of all where a step did not move.
            noise = float(np.fmax(query.loss_noise, here.rounding * abs(losses).max()))
            wanted = Wanted(self._wanted.tolerance, noise, self._wanted.certify == "curve")
            outcome = certify(
                here,
                losses,
                signs,
                plan(self._spreads, wanted.leeway(losses), len(here.units)),
                wanted,
                significant=2 * query.loss_noise if math.isfinite(query.loss_noise) else 0.0,
                random=generator(self._wanted.seed, query.step),
            )
            why = query.exactly or ("" if here.counts_hold else COUNTS_CHANGE) or _why_not(outcome)
            if outcome is not None and outcome.finite:
                self._spreads.append(outcome.spreads)
        if why or outcome is None:
            return self._exact(query, first, last, why)
        return self._estimated(query, first, last, outcome)

    def _estimated(self, query: Query, first: LossSums, last: LossSums, outcome: Outcome) -> Certified:
        """From samples; where these do not do, exact at every point that may be the floor, the likeliest first."""
        assert self.passage is not None
        why = ""
        if not outcome.accepted:
            why = _too_wide(outcome, self._wanted)
            outcome = exact_look(outcome, lambda k: self._losses_at(query, [k])[0].mean)
            if not outcome.finite:
                return self._exact(query, first, last, "a loss is not finite")
        losses, halfwidths = outcome.losses.copy(), outcome.halfwidths.copy()
        if self.passage.units.whole:  # where a look saw all batches L is known, and not as a sum of levels alone
            for k in 1 + np.flatnonzero(halfwidths[1:-1] == 0):
                losses[k] = self.passage.loss_at(int(k)).mean
        if self._wanted.barriers == "exact" and barrier(losses, halfwidths).item() is None:
            highest = max(losses[0], losses[-1])
            doubtful = np.flatnonzero((halfwidths > 0) & (losses + halfwidths > highest))
            losses[doubtful] = [sums.mean for sums in self._losses_at(query, doubtful.tolist())]
            halfwidths[doubtful] = 0.0
        points = tuple(
            SegmentPoint(alpha, float(loss), "estimated" if width else "exact", float(width))
            for alpha, loss, width in zip(grid(self._num_points), losses, halfwidths, strict=True)
        )
        return Certified(points, first, last, outcome.looks, NUM_NODES, self.passage.examples, why)

    def _losses_at(self, query: Query, points: Sequence[int]) -> list[LossSums]:
        """L at points of the grid. Where batches are the units those of the sample are not evaluated again, unless all
        points share the first layer's products, which saves more."""
        passage, alphas = self.passage, grid(self._num_points)
        if passage is not None and passage.units.whole and not (passage.shares_layer and len(points) > 2):
            return [passage.loss_at(k) for k in points]
        losses = losses_at(self._full_loss, query.start, query.end, [alphas[k] for k in points])
        self._spent += len(points) * self._full_loss.data.num_examples
        return losses

    def _exact(self, query: Query, first: LossSums | None, last: LossSums | None, why: str) -> Certified:
        known = {0: first, self._num_points: last}
        wanted = [k for k in range(self._num_points + 1) if known.get(k) is None]
        found = known | dict(zip(wanted, self._losses_at(query, wanted), strict=True))
        losses = [sums for k in range(self._num_points + 1) if (sums := found[k]) is not None]
        examples = 0 if self.passage is None else self.passage.examples
        return Certified(as_points(losses), losses[0], losses[-1], EXACT_LOOK, len(losses), examples, why, losses)

    def state_dict(self) -> dict[str, Any]:
        kept = None if self.kept is None else [[tensor.clone() for tensor in batch] for batch in self.kept]
        return super().state_dict() | {
            "spreads": [spread.tolist() for spread in self._spreads],
            "outputs": kept,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._spreads = deque(map(np.array, state["spreads"]), maxlen=REMEMBERED)
        device = self._full_loss.site.vector.device
        kept = state["outputs"]
        self.kept = None if kept is None else [[tensor.to(device, copy=True) for tensor in batch] for batch in kept]


def _why_not(outcome: Outcome | None) -> str:
    """Why samples tell nothing; empty where they do."""
    if outcome is None:
        return "the data have too few units to sample from for this tolerance"
    return "" if outcome.finite else NOT_FINITE


def _too_wide(outcome: Outcome, wanted: Certification) -> str:
    looks = "1 look" if outcome.looks == 1 else f"{outcome.looks} looks"
    what = "the interval" if wanted.certify == "height" else "a loss's interval"
    return f"after {looks} {what} was wider than the tolerance {wanted.tolerance:g}"


def generator(seed: int, step: int) -> np.random.Generator:
    """Draws the units of one step: a pure function of the seed and the step."""
    digest = hashlib.blake2b(repr(("certified segment", seed, step)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
