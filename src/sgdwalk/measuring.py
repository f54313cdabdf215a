"""What is measured at chosen steps: the losses along the segment, their noise, and the user's measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sgdwalk.certified import Certification, CertifiedSegments
from sgdwalk.data import EvaluationData
from sgdwalk.measures import Here, Measured, columns
from sgdwalk.objective import Forward, FullLoss, LossFunction, LossSums
from sgdwalk.overheard import Overheard
from sgdwalk.probes import first_evaluation
from sgdwalk.records import NAN, SegmentPoint
from sgdwalk.replica import InPlace, Replica
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
        self._data_versions = data.versions()
        self._told: set[str] = set()

    def _take_full_loss(self) -> None:
        self.full_loss = self._build()
        self._certified = None
        if self._certification is not None:
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

    def certify(self, certification: Certification) -> None:
        """From the next one on segments are certified."""
        self._certification = certification
        self._certified = CertifiedSegments(self.full_loss, self.num_points, *certification)

    def only_parameters_moved(self) -> bool:
        """Whether all else that L reads is what it was when L was last evaluated; inside ``full_loss.evaluating()``."""
        return self.full_loss.fingerprint() == self._kept_fingerprint

    def batches(self) -> Iterator[Any]:
        """The evaluation batches for a loop that accumulates over them; what it computes of L(θ_t) is kept.

        Only where nothing is known of L(θ_t) yet, and the model stands at the kept point before and after.
        """
        pass_over = Overheard(self.full_loss, self._model)
        if self._kept is not None or self._moved():
            yield from self.full_loss.data
            return
        yield from pass_over.batches()
        if pass_over.sums is not None and not self._moved():
            self._kept, self._kept_fingerprint = pass_over.sums, self.full_loss.fingerprint()

    def _moved(self) -> bool:
        return self._trajectory.kernel.moved(self._trajectory.vector, self._trajectory.point)

    def forget(self) -> None:
        """The parameters moved since the last evaluation: its loss is no start of a segment."""
        self._kept = None
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
        """Measure between the trajectory's kept point θ_t and the model's parameters θ_{t+1}."""
        result = Measurement()
        self._look_at_data(result)
        with self.full_loss.evaluating():
            fingerprint = self.full_loss.fingerprint()
            known = self._kept if fingerprint == self._kept_fingerprint else None
            self._kept = None
            if not segment:
                self.forget()
            if segment:
                try:
                    known, self._kept = self._segment(result, step, known)
                    self._kept_fingerprint = fingerprint
                except Exception as error:
                    self.forget()
                    result.failures.append(("segment", error))
                    result.reasons["segment"] = f"measurement failed: {type(error).__name__}: {error}"
            place = here(self._trajectory.point, self.full_loss, known)
            try:
                for name, measure in measures.items():
                    take(name, measure, place, result)
            finally:
                place.leave()
        self._remark(result)
        return result

    def _segment(self, result: Measurement, step: int, known: LossSums | None) -> tuple[LossSums, LossSums]:
        site = self.full_loss.site
        start, end = site.vector.views(self._trajectory.point), site.here
        due = self.num_watched % NOISE_EVERY == 0
        if self._certified is None:
            losses = exact_segment(self.full_loss, start, end, self.num_points, known)
            first, last = losses[0], losses[-1]
            result.segment = as_points(losses)
        else:
            why = "the noise of the loss was measured" if due else ""
            found = self._certified.measure(start, end, known, step=step, loss_noise=self._loss_noise, exactly=why)
            losses, first, last = found.losses, found.start, found.end
            result.segment = found.points
            result.measures.update(found.effort)
            result.remarks += found.remarks
            if found.why_exact:
                result.reasons["looks"] = found.why_exact
        undefined = [point.alpha for point in result.segment if not math.isfinite(point.loss)]
        if undefined:
            listed = ", ".join(f"{alpha:g}" for alpha in undefined)
            result.reasons["segment"] = f"the loss is not finite at α = {listed}"
        if due and losses is not None:
            try:
                result.loss_noise = self._loss_noise = loss_noise(self.full_loss, start, end, losses)
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
            "certified": None if self._certified is None else self._certified.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_watched = state["num_watched"]
        kept = state["kept"]
        self._kept = None if kept is None else LossSums(tuple(kept["sums"]), tuple(kept["counts"]))
        self._kept_fingerprint = bytes.fromhex(state["kept_fingerprint"])
        self._loss_noise = state["loss_noise"]
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
