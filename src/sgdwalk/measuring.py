"""What is measured at chosen steps: the losses along the segment, their noise, and the user's measures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sgdwalk.awaiting import AwaitedEnd
from sgdwalk.certified import Certification, CertifiedSegments, Query, Segments
from sgdwalk.data import EvaluationData
from sgdwalk.errors import InputError
from sgdwalk.measures import Here, Measured, columns
from sgdwalk.objective import Forward, FullLoss, LossFunction, LossSums
from sgdwalk.overheard import Heard, Overheard
from sgdwalk.probes import first_evaluation
from sgdwalk.records import NAN, SegmentPoint, StepRecord
from sgdwalk.replica import InPlace, Replica
from sgdwalk.sampled_ends import segments_of
from sgdwalk.segment import as_points, exact_segment, loss_noise
from sgdwalk.trajectory import Trajectory

NOISE_EVERY = 100
"""Watched segments between two measurements of the loss noise."""


@dataclass
class Measurement:
    """What came out at one step, and what failed."""

    segment: tuple[SegmentPoint, ...] = ()
    loss_noise: float = NAN
    measures: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    """(``segment`` or a measure's name, what it raised)"""
    remarks: list[tuple[str, str]] = field(default_factory=list)
    """(kind of event, message)"""
    awaits_end: bool = False
    """Whether the segment comes later, from ``finish()``."""

    def completed(self, row: StepRecord) -> StepRecord:
        """A row whose segment was awaited, with what came out along it."""
        return dataclasses.replace(
            row,
            loss_noise=self.loss_noise,
            segment=self.segment,
            measures={**self.measures, **row.measures},
            reasons={**row.reasons, **self.reasons},
        )


class Measuring:
    """Evaluates along one walk and remembers the loss at the last segment's end, the next one's start."""

    def __init__(
        self,
        model: nn.Module,
        trajectory: Trajectory,
        data: EvaluationData,
        loss_fn: LossFunction,
        *,
        forward: Forward | None,
        batchnorm: str,
        evaluate_on: str,
        num_points: int,
        certified: Certification | None = None,
    ):
        self.num_points = num_points
        self.num_watched = 0
        self._model = model
        self._trajectory = trajectory
        self._build: Callable[[], FullLoss] = lambda: FullLoss(
            (InPlace if evaluate_on == "model" else Replica)(model, trajectory.vector, batchnorm),
            data,
            loss_fn,
            forward,
        )
        self._certification = certified
        self._loss_noise = NAN
        self._take_full_loss()
        self._kept: LossSums | None = None
        self._kept_fingerprint = b""
        self._awaited: AwaitedEnd | None = None
        self._heard_since_update = False
        """Whether a pass of the loop said since the last update what L is: the pass before the next one will too."""
        self._num_updates = 0
        """Counts on with every update, so that a pass of the loop can tell that one was made within it."""
        self._data_versions = data.versions()
        self._told: set[str] = set()

    def _take_full_loss(self) -> None:
        self.full_loss = self._build()
        self._certified: Segments | None = None
        self.certify(self._certification)

    def begin(self, num_batches: int | None = None) -> list[str]:
        """Evaluate L(θ_0), checking loss_fn and determinism on the way; returns what could not be checked.

        With ``num_batches`` only so many are checked, and L(θ_0) stays unknown.
        """
        self.full_loss.use_channels_last()
        with self.full_loss.evaluating():
            site = self.full_loss.site
            site.write(site.here)
            self._kept_fingerprint = self.full_loss.fingerprint()
            kept, unchecked = first_evaluation(self.full_loss, num_batches)
        self._kept = kept if num_batches is None else None
        return unchecked

    def certify(self, certification: Certification | None) -> None:
        """From the next one on segments are certified; exact with None."""
        self._certification = certification
        self._certified = None
        if certification is not None:
            self._certified = segments_of(self.full_loss, self.num_points, certification)

    def only_parameters_moved(self) -> bool:
        """Whether all else that L reads is what it was when L was last evaluated; inside ``full_loss.evaluating()``."""
        return self.full_loss.fingerprint() == self._kept_fingerprint

    def batches(self, *, between_updates: bool) -> Iterator[Any]:
        """The evaluation batches for a loop that goes over them; what it computes of L at the kept point is kept.

        Only where something of it is wanted, and the model stands at the kept point before and after.
        """
        hearing = self._hearing if between_updates and self.full_loss.site.can_be_held else None
        if (self._kept is not None and hearing is None) or not self._take_stand(between_updates):
            yield from self.full_loss.data
            return
        num_updates = self._num_updates
        most_bytes = 0 if hearing is None else hearing.most_bytes
        pass_over = Overheard(self.full_loss, self._model, most_bytes)
        yield from pass_over.batches()
        try:
            if pass_over.heard is not None and self._num_updates == num_updates and not self._left():
                self._hear(pass_over.heard)
        except Exception:  # what was heard is dropped; the evaluation that takes its place will tell
            self._heard_since_update = False
            if self._awaited is None:
                self.forget()

    def _hear(self, heard: Heard) -> None:
        """L at the kept point, as a pass of the loop computed it."""
        fingerprint = self.full_loss.fingerprint()
        if self._awaited is not None:
            self._awaited.hear(heard, fingerprint)
            self._heard_since_update = self._awaited.heard is not None
        elif self._kept is not None:
            self._heard_since_update = bool(heard.outputs) and fingerprint == self._kept_fingerprint
        else:
            self._kept, self._kept_fingerprint = heard.sums, fingerprint
            self._heard_since_update = bool(heard.outputs)
            if self._hearing is not None:
                self._hearing.start_at(heard)

    @property
    def _hearing(self) -> CertifiedSegments | None:
        """What has use for the outputs of the loop's passes: certified segments whose ends are over all data."""
        return self._certified if isinstance(self._certified, CertifiedSegments) else None

    def _take_stand(self, between_updates: bool) -> bool:
        """Whether the model stands at the kept point; where nobody followed it to here, the kept point is here now."""
        trajectory = self._trajectory
        try:
            trajectory.vector.check_layout()
        except InputError:  # the next update will tell
            return False
        if trajectory.is_current:
            return not trajectory.moved()
        if between_updates:
            trajectory.vector.read_into(trajectory.point)
        return between_updates

    def _left(self) -> bool:
        """Whether the model stands elsewhere than at the kept point, whoever put that there."""
        trajectory = self._trajectory
        trajectory.vector.check_layout()
        return trajectory.kernel.moved(trajectory.vector, trajectory.point)

    def forget_elsewhere(self) -> None:
        """Before an update from where nobody followed the model to: L was heard there, or is forgotten.

        So it is after a state was loaded: the loop may have gone over the batches before its model had its weights.
        """
        if self._kept is not None and self._left():
            self.forget()

    def forget(self) -> None:
        """The parameters moved since the last evaluation: its loss is no start of a segment, and none waits."""
        self._kept = None
        self._heard_since_update = False
        self._num_updates += 1
        if self._awaited is not None:
            self._awaited.release()
            self._awaited = None
        if self._certified is not None:
            self._certified.forget()

    def rebuild(self) -> None:
        """The walked parameters are others now."""
        self._take_full_loss()
        self.full_loss.use_channels_last()
        self.forget()

    def measure(
        self,
        here: Callable[..., Here],
        *,
        step: int,
        segment: bool,
        measures: Mapping[str, Callable[[Here], Measured]],
    ) -> Measurement:
        """Measure between the trajectory's kept point θ_t and the model's parameters θ_{t+1}.

        Where the segment's end will be heard in the loop's next pass it is left for ``finish()``.
        """
        self._num_updates += 1
        result = Measurement()
        site = self.full_loss.site
        self._look_at_data(result)
        with self.full_loss.evaluating():
            fingerprint = self.full_loss.fingerprint()
            known = self._kept if fingerprint == self._kept_fingerprint else None
            self._kept = None
            if not segment:
                self.forget()
            result.awaits_end = segment and known is not None and self._expects_end()
            if segment and not result.awaits_end:
                ends = site.vector.views(self._trajectory.point), site.here
                known = self._take_segment(result, step, known, ends, fingerprint)
            place = here(self._trajectory.point, self.full_loss, known)
            try:
                for name, measure in measures.items():
                    take(name, measure, place, result)
            finally:
                place.leave()
        if result.awaits_end:
            assert known is not None
            self._awaited = AwaitedEnd(self.full_loss, step, self._trajectory.point.clone(), known, fingerprint)
        self._heard_since_update = False
        self._remark(result)
        return result

    def _expects_end(self) -> bool:
        """Whether the loop's next pass can be expected to say all that is wanted of this segment's end."""
        starts_known = self._hearing is not None and self._hearing.kept is not None
        return self._heard_since_update and starts_known and self.num_watched % NOISE_EVERY != 0

    @property
    def awaits_end(self) -> bool:
        """Whether a segment waits for the loop's next pass."""
        return self._awaited is not None

    def finish(self) -> Measurement:
        """Measure the segment that waits, between its kept start and the trajectory's kept point."""
        assert self._awaited is not None, "no segment waits"
        awaited, self._awaited = self._awaited, None
        result = Measurement()
        try:
            lost = awaited.why_lost()
            self._look_at_data(result)
            if lost:
                self.forget()
                result.reasons["segment"] = lost
                return result
            with self.full_loss.evaluating():
                views = self.full_loss.site.vector.views
                ends = views(awaited.start), views(self._trajectory.point)
                self._take_segment(
                    result, awaited.step, awaited.start_sums, ends, awaited.fingerprint, heard=awaited.heard
                )
        except Exception as error:  # the loss function can no longer be looked at, say
            self._fail(result, error)
        finally:
            awaited.release()
        self._remark(result)
        return result

    def _take_segment(
        self,
        result: Measurement,
        step: int,
        known: LossSums | None,
        ends: tuple[Sequence[Tensor], Sequence[Tensor]],
        fingerprint: bytes,
        heard: Heard | None = None,
    ) -> LossSums | None:
        """L along the segment, kept at its end for the next one; returns it at the start where it is known now."""
        try:
            known, self._kept = self._segment(result, step, known, ends, heard)
            self._kept_fingerprint = fingerprint
        except Exception as error:
            self._fail(result, error)
        return known

    def _fail(self, result: Measurement, error: Exception) -> None:
        self.forget()
        result.failures.append(("segment", error))
        result.reasons["segment"] = f"measurement failed: {type(error).__name__}: {error}"

    def _segment(
        self,
        result: Measurement,
        step: int,
        known: LossSums | None,
        ends: tuple[Sequence[Tensor], Sequence[Tensor]],
        heard: Heard | None,
    ) -> tuple[LossSums | None, LossSums | None]:
        start, end = ends
        due = self.num_watched % NOISE_EVERY == 0
        if self._certified is None:
            losses = exact_segment(self.full_loss, start, end, self.num_points, known)
            first, last = losses[0], losses[-1]
            result.segment = as_points(losses)
        else:
            why = "the noise of the loss was measured" if due else ""
            found = self._certified.measure(Query(start, end, step, self._loss_noise, known, heard, why))
            losses, first, last = found.losses, found.start, found.end
            result.segment = found.points
            result.measures.update(found.columns)
            result.remarks += found.remarks
            if found.looks_reason:
                result.reasons["looks"] = found.looks_reason
        undefined = [point.alpha for point in result.segment if not math.isfinite(point.loss)]
        if undefined:
            listed = ", ".join(f"{alpha:g}" for alpha in undefined)
            result.reasons["segment"] = f"the loss is not finite at α = {listed}"
        if due and losses is not None:
            try:
                result.loss_noise = loss_noise(self.full_loss, start, end, losses)
                if math.isfinite(result.loss_noise):
                    self._loss_noise = result.loss_noise
                if math.isnan(result.loss_noise):
                    result.reasons["loss_noise"] = "a loss is not finite"
            except Exception as error:
                result.reasons["loss_noise"] = f"no evaluation in float64: {type(error).__name__}: {error}"
        self.num_watched += 1
        return first, last

    def _look_at_data(self, result: Measurement) -> None:
        versions = self.full_loss.data.versions()
        if versions != self._data_versions:
            self._data_versions = versions
            self.forget()
            message = "The data were written to in place: L is of other data from here on. Pass a copy to watch()."
            result.remarks.append(("data_changed", message))

    def _remark(self, result: Measurement) -> None:
        remarks = {
            "batch_halved": f"{len(self.full_loss.halved)} evaluation batches did not fit into memory and were "
            "evaluated in parts; pass a smaller batch_size."
            if self.full_loss.halved
            else "",
            "finite_difference": "The model has a kernel without a second derivative: Hessian-vector products are "
            "central differences of float64 gradients."
            if self.full_loss.hvp_method == "finite_difference"
            else "",
        }
        for kind, message in remarks.items():
            if message and kind not in self._told:
                self._told.add(kind)
                result.remarks.append((kind, message))

    def state_dict(self) -> dict[str, Any]:
        kept = self._kept
        return {
            "num_watched": self.num_watched,
            "kept": None if kept is None else {"sums": list(kept.sums), "counts": list(kept.counts)},
            "kept_fingerprint": self._kept_fingerprint.hex(),
            "loss_noise": self._loss_noise,
            "told": sorted(self._told),
            "certified": None if self._certified is None else self._certified.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_watched = state["num_watched"]
        kept = state["kept"]
        self._kept = None if kept is None else LossSums(tuple(kept["sums"]), tuple(kept["counts"]))
        self._kept_fingerprint = bytes.fromhex(state["kept_fingerprint"])
        self._loss_noise = state["loss_noise"]
        self._told = set(state["told"])
        if self._certified is not None:
            self._certified.load_state_dict(state["certified"])


def take(name: str, measure: Callable[[Here], Measured], here: Here, result: Measurement) -> None:
    """Take one measure; what it raises becomes a failure of its own."""
    try:
        values, reasons = columns(name, measure(here))
    except Exception as error:
        result.failures.append((name, error))
        result.measures[name] = NAN
        result.reasons[name] = f"measurement failed: {type(error).__name__}: {error}"
        return
    result.measures.update(values)
    result.reasons.update(reasons)
