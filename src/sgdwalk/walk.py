"""A watched training: listens to updates, measures, and keeps one record of each."""

from __future__ import annotations

import atexit
import functools
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sgdwalk.budget import Plan
from sgdwalk.calibration import Budgeted, Timed
from sgdwalk.data import EvaluationData
from sgdwalk.errors import InputError, ResumeError, RunFolderError
from sgdwalk.hooks import UpdateHooks
from sgdwalk.isolation import isolated
from sgdwalk.journal import Journal
from sgdwalk.measures import Here, Measured, state_of
from sgdwalk.measuring import Measurement, Measuring, take
from sgdwalk.provenance import differences
from sgdwalk.records import NAN, EpochNote, StepRecord
from sgdwalk.run import Run
from sgdwalk.schedules import COLUMNS, SEGMENT, Schedules
from sgdwalk.trajectory import Trajectory
from sgdwalk.when import StepPredicate

logger = logging.getLogger("sgdwalk")


_PARTS = {"run", "step", "epoch", "fired", "journal", "trajectory", "measuring", "measures"}
"""Keys of a walk's state."""


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """What fails in the method is recorded once and never reaches the training, unless ``on_error="raise"``."""

    @functools.wraps(method)
    def guarded(self: Walk, *args: Any, **kwargs: Any) -> None:
        if "walk" in self._disabled:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._disable("walk", error)

    return guarded


def learning_rate(optimizers: Sequence[Optimizer]) -> float:
    """Of the first parameter group; NaN where there is none."""
    rate = optimizers[0].param_groups[0].get("lr") if optimizers else None
    return NAN if rate is None else float(rate)


def plain_rate(optimizers: Sequence[Optimizer]) -> float | None:
    """η where these optimizers take θ - η g and nothing else: SGD at one learning rate; None for others.

    >>> weights = [nn.Parameter(torch.zeros(2))]
    >>> plain_rate([torch.optim.SGD(weights, lr=0.5)]), plain_rate([torch.optim.SGD(weights, lr=0.5, momentum=0.9)])
    (0.5, None)
    """
    rates: set[float] = set()
    for optimizer in optimizers:
        if type(optimizer) is not torch.optim.SGD:
            return None
        for group in optimizer.param_groups:
            if group["momentum"] or group["weight_decay"] or group["maximize"]:
                return None
            rates.add(float(group["lr"]))
    return rates.pop() if len(rates) == 1 else None


def _close_if_alive(reference: weakref.ref[Walk]) -> None:
    """At the interpreter's end; a walk that nobody holds any more is not kept alive for it."""
    walk = reference()
    if walk is not None:
        walk.close()


class Walk:
    """A watched training; made by :func:`watch`. Listens to updates and keeps one record of each."""

    def __init__(
        self,
        optimizers: list[Optimizer],
        parameters: Callable[[], list[nn.Parameter]],
        trajectory: Trajectory,
        measuring: Measuring | None,
        evaluations: EvaluationData | None,
        schedules: dict[str, StepPredicate | None],
        columns: StepPredicate | None,
        measures: dict[str, Callable[[Here], Measured]],
        steps_per_epoch: int | None,
        on_error: str,
        journal: Journal,
        remarks: list[tuple[str, str]],
        budgeted: Budgeted | None = None,
    ):
        self._optimizers = optimizers
        self._parameters = parameters
        self._trajectory = trajectory
        self._measuring = measuring
        self._evaluations = evaluations
        self._measures = measures
        self._steps_per_epoch = steps_per_epoch
        self._on_error = on_error
        self._journal = journal
        self._step = 0
        self._epoch: int | None = None
        self._learning_rate = NAN
        self._batch_loss: Any = None
        self._unfinished: StepRecord | None = None
        self._resumed_point: str | None = None
        self._must_load = journal.holds_steps
        self._remarks = remarks
        self._disabled: set[str] = set()
        self._schedules = Schedules(columns, schedules, self._disabled)
        self._looks = self._keeps_gradient = True
        """Whether cosine, distance and norms of the update under way are computed, and whether its gradient is kept."""
        self._closed = self._departed = False
        self._budgeted = budgeted
        self._timed = None if budgeted is None else Timed(self, budgeted)
        self.plan: Plan | None = None
        """What ``budget`` chose; None before, and without one."""
        self._hooks = UpdateHooks(optimizers, self._timed or self) if optimizers else None
        if not self._must_load:
            self._tell_remarks()
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    # --- what the loop calls -----------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Updates performed so far; the step that the next update will have."""
        return self._step

    @property
    def run(self) -> Run:
        """The walk's records so far, as :func:`sgdwalk.open_run` shows a stored run.

        A segment whose end is awaited (see :meth:`batches`) is evaluated for it.
        """
        self._finish_row()
        return self._journal.run

    def note(self, *, batch_loss: Any = None, epoch: int | None = None, **values: Any) -> None:
        """Keep what hooks cannot see.

        Args:
            batch_loss: loss of the mini-batch of the update that comes next; call before ``optimizer.step()``.
            epoch: counted from 1; holds from the next update until another is noted.
            **values: numbers of that epoch, such as ``validation_accuracy``; columns of ``run.epochs``.

        Raises:
            InputError: for values of an epoch that is not known, or that are not numbers.
        """
        if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1):
            raise InputError(f"epoch counts from 1; note() got {epoch!r}.")
        if isinstance(batch_loss, torch.Tensor) and batch_loss.numel() != 1:
            raise InputError(f"batch_loss must be one number; note() got a tensor of shape {tuple(batch_loss.shape)}.")
        # After an epoch's last update its values are noted: the epoch is that of the update just performed.
        known = epoch if epoch is not None else self._epoch_of(max(self._step - 1, 0))
        if values and known is None:
            raise InputError(
                f"note() got {', '.join(values)} for an epoch that is not known: pass epoch= too, or "
                "steps_per_epoch= to watch()."
            )
        try:
            numbers = {
                key: float(value.detach() if isinstance(value, torch.Tensor) else value)
                for key, value in values.items()
            }
        except (TypeError, ValueError) as error:
            raise InputError(f"note() keeps numbers; got {values!r}.") from error
        if batch_loss is not None:
            self._batch_loss = (
                batch_loss.detach().clone() if isinstance(batch_loss, torch.Tensor) else float(batch_loss)
            )
        if epoch is not None:
            self._epoch = epoch
        if known is None or not numbers:
            return
        self._journal.note(EpochNote(known, self._step, numbers))

    def batches(self) -> Iterator[Any]:
        """The evaluation batches, in order, for a full-batch gradient descent loop to accumulate over.

        What such a loop computes need not be evaluated again, where each batch goes once, as it is, through the model:
        L(θ_t) where the update before was not watched, and with ``method="certified"`` the outputs at both ends of
        segments. The row of an update then comes with the next one; its end is evaluated, as always, where the loop
        does not come to it: by ``close()``, ``state_dict()`` and :attr:`run`.

        Raises:
            InputError: for a walk without data.
        """
        self._check_open()
        if self._evaluations is None:
            raise InputError("This walk was given no data and loss_fn, so it has no evaluation batches.")
        due = self._measuring is not None and self._schedules.segment_at(self._step)
        if self._measuring is None or not (due or self._measuring.awaits_end):
            return iter(self._evaluations)
        return self._measuring.batches(between_updates=not self._departed)

    def before_step(self, *, learning_rate: float = NAN) -> None:
        """Manual use: the parameters are θ_t, the update comes next."""
        self._check_open()
        (self._timed or self).before_update()
        if not self._optimizers:
            self._learning_rate = float(learning_rate)

    def after_step(self) -> None:
        """Manual use: the parameters are θ_{t+1}, ``.grad`` is g_t as the update received it."""
        self._check_open()
        if not self._departed:
            raise InputError(
                "after_step() was called without before_step(): θ_t was not seen. Call it before the update."
            )
        self._take_gradients(self._parameters(), keep=False)
        (self._timed or self).after_update()

    def state_dict(self) -> dict[str, Any]:
        """The walk before its next update: tensors and plain values, to be kept with the model's and optimizer's own.

        What was recorded so far is committed first; a walk in memory carries its records along.
        """
        self._check_open()
        self._finish_row()
        self._journal.commit(self._step, patient=True)
        return {
            "run": self._journal.identity(),
            "step": self._step,
            "epoch": self._epoch,
            "fired": sorted(self._schedules.fired),
            "journal": self._journal.state_dict(),
            "trajectory": self._trajectory.state_dict(),
            "measuring": None if self._measuring is None else self._measuring.state_dict(),
            "measures": {name: state_of(measure) for name, measure in self._measures.items()},
            **({} if self._budgeted is None else {"budget": self._budgeted.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict()`` was taken; the model must stand there too when the next update starts.

        Rows after that point are taken back. A walk in memory that has not begun takes the state of any walk with the
        same settings and data, and is then the same run; one with a run folder takes its own run's alone.

        Raises:
            ResumeError: where it is no walk's state, or that of another run; nothing is taken back then.
        """
        self._check_open()
        self._check_state(state)
        self._finish_row()
        self._trajectory.load_state_dict(state["trajectory"])
        self._resumed_point = state["trajectory"]["point_digest"]
        if self._budgeted is not None and "budget" in state:
            self._follow(self._budgeted.load_state_dict(state["budget"]))
        if self._measuring is not None and state["measuring"] is not None:
            self._measuring.load_state_dict(state["measuring"])
        for name, memory in state["measures"].items():
            if memory is not None and name in self._measures:
                self._measures[name].load_state_dict(memory)  # pyright: ignore[reportFunctionMemberAccess]
        self._step, self._epoch, self._schedules.fired = state["step"], state["epoch"], set(state["fired"])
        self._schedules.forget()
        self._journal.load_state_dict(self._step, state["journal"], state["run"]["id"])
        self._must_load = False
        self._tell_remarks()

    def _check_state(self, state: Any) -> None:
        """Refuse a state that this walk cannot go on from, as long as nothing has been touched."""
        if not isinstance(state, Mapping) or not _PARTS.issubset(state):
            held = f"with the keys {', '.join(map(repr, state))}" if isinstance(state, Mapping) else "and no dict"
            raise ResumeError(
                f"load_state_dict() got a {type(state).__name__} {held}, which is no walk's state: pass what "
                "walk.state_dict() returned."
            )
        stored, now = state["run"], self._journal.identity()
        different = differences(stored["what"], now["what"])
        if different:
            raise ResumeError(
                f"The walk's state is of another run: {'; '.join(different)}. Load a state that was saved with what "
                "this walk was begun with, or begin the walk with what the state was saved with."
            )
        if stored["id"] != now["id"] and not self._journal.can_become_another:
            raise ResumeError(
                f"The walk's state was saved by the run {stored['name']!r} begun at {stored['created']}, and this is "
                f"the run {now['name']!r} begun at {now['created']}: load a state that this run saved, or pass the "
                "other one's folder as run= and resume=True. To begin a run of its own here, load no state of a walk."
            )
        saved = state["trajectory"]["start"].numel()
        if saved != self._trajectory.vector.size:
            raise ResumeError(
                f"The walk's state is of {saved:,} parameters, the optimizer has {self._trajectory.vector.size:,}: "
                "give it the parameters that it had when the state was saved."
            )

    def close(self) -> None:
        """End the walk: hooks are removed, everything recorded is stored, the records stay readable."""
        if self._closed:
            return
        if self._hooks is not None:
            self._hooks.remove()
        self._closed = True
        atexit.unregister(self._at_exit)
        try:
            self._finish_row()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Tell what was not as it should be, and keep nothing but the records."""
        if self._step and "walk" not in self._disabled:
            for schedule in self._schedules.never_fired():
                self._event("never_watched", f"{schedule} did not fire in {self._step} steps.", show=True)
        if self._budgeted is not None and self._step and not self._must_load and "walk" not in self._disabled:
            self._tell_cost(self._budgeted)
        if self._optimizers and not self._step and not self._must_load and "walk" not in self._disabled:
            self._event(
                "no_update", "No update was seen: did another optimizer, or a copy of this one, step?", show=True
            )
        if self._step and "walk" not in self._disabled and self._moved_since():
            message = "The parameters moved after the last update that was seen: did another optimizer step?"
            self._event("moved_parameters", message)
        # The records stay readable; the model, the optimizer and the vectors of their size are let go.
        self._hooks = self._measuring = self._evaluations = self._budgeted = self._timed = None
        self._optimizers, self._parameters, self._measures = [], list, {}
        del self._trajectory
        lost = self._journal.close()
        if lost is not None:
            logger.error(lost)
            if self._on_error == "raise":
                raise RunFolderError(lost)

    def _moved_since(self) -> bool:
        try:
            return self._trajectory.moved()
        except InputError:  # parameters of other shapes: nothing can be compared
            return False

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what the hooks tell -----------------------------------------------------------------------------------------

    def before_update(self) -> None:
        """θ_t stands in the model; its learning rate is the one that this update uses."""
        if self._must_load:
            raise ResumeError(
                f"The run {self._journal.info['name']!r} was resumed, but walk.load_state_dict() was not called before "
                "the first update: load the state that was saved with the model's."
            )
        self._departed = True
        if self._unfinished is not None:
            self._finish_row()
        self._depart()

    @_guarded
    def _depart(self) -> None:
        self._journal.commit_if_due()
        if self._optimizers:
            self._learning_rate = learning_rate(self._optimizers)
        if not self._schedules.always_looks:
            due = bool(self._schedules.at(self._step, self._disable))
            follows = self._schedules.anything_at(self._step + 1)
            self._keeps_gradient = due or follows
            self._looks = due or (follows and self._trajectory.gauge)
        resumed, self._resumed_point = self._resumed_point, None
        if self._measuring is not None and (resumed is not None or not self._trajectory.is_current):
            self._measuring.forget_elsewhere()
        elsewhere = resumed is not None and self._trajectory.resume(resumed)
        sums_alone = self._trajectory.can_follow and self._schedules.columns_alone_at(self._step)
        rate = plain_rate(self._optimizers) if sums_alone else None
        moved, added = self._trajectory.depart(self._parameters(), look=self._looks, rate=rate)
        if added:
            self._event("parameters_added", f"{added} parameters were added; their θ_0 is where they stand now.")
            if self._measuring is not None:
                self._measuring.rebuild()
        if moved or elsewhere:
            if self._measuring is not None:
                self._measuring.forget()
            between = "between two updates" if self._step else "before the first update; θ_0 is where watch() saw them"
            self._event("moved_parameters", f"The parameters were changed {between}.")

    def gradients_final(self, optimizer: Optimizer, *, keep: bool) -> None:
        """``.grad`` is now what the optimizer received."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._take_gradients(parameters, keep=keep)

    @_guarded
    def _take_gradients(self, parameters: list[nn.Parameter], *, keep: bool) -> None:
        if self._keeps_gradient:
            self._trajectory.gradients_final(parameters, keep=keep)

    @_guarded
    def after_update(self) -> None:
        """θ_{t+1} stands in the model, θ_t is kept: measure what is due and record the update."""
        self._departed = False
        self._journal.commit_if_due()
        wanted = self._schedules.at(self._step, self._disable)
        self._schedules.fired |= wanted
        due = wanted - {COLUMNS}
        values, reasons = self._update_columns(wanted=bool(wanted), advance=not due)
        interrupted: BaseException | None = None
        try:
            result = self._measure(due)
        except BaseException as error:  # also Ctrl-C: the update was performed, so it keeps its row
            interrupted = error
            result = Measurement(reasons={"segment": f"interrupted by {type(error).__name__}: {error}"})
            if self._measuring is not None:
                self._measuring.forget()
        row = self._row(values, reasons, result)
        if result.awaits_end:
            self._unfinished = row
        else:
            self._journal.append(row)
        if due:
            self._trajectory.arrive()
        self._step += 1
        if (result.segment or result.measures) and not result.awaits_end:
            self._journal.commit(self._step)
        if interrupted is not None:
            raise interrupted

    @_guarded
    def choose(self) -> None:
        """Enough updates were timed: decide by the budget what is watched from the next one on."""
        assert self._budgeted is not None
        try:
            plan, message = self._budgeted.choose(lambda: self._journal.commit(self._step))
            self._follow(plan)
        except Exception as error:
            self._disable("budget", error)
        else:
            self._event("budget_chosen", message, show=True)

    @_guarded
    def _finish_row(self) -> None:
        """Keep the row of the last update where its segment waited for its end."""
        row, self._unfinished = self._unfinished, None
        if row is None or self._measuring is None:
            return
        result = Measurement()
        try:
            result = self._measuring.finish()
            self._tell(result)
        except BaseException as error:
            if not result.segment:
                result.reasons["segment"] = f"interrupted by {type(error).__name__}: {error}"
            raise
        finally:
            self._journal.append(result.completed(row))
            self._journal.commit(self._step)

    @_guarded
    def update_skipped(self) -> None:
        self._event("skipped_update", "The gradient scaler found infinite gradients and skipped the update.")

    def round_incomplete(self) -> None:
        self._journal.tell_once(
            self._step,
            "incomplete_round",
            "An optimizer stepped again before all of them had: such a round counts as one update (told once).",
        )

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("This walk is closed: only its records can be read.")

    # --- inside ------------------------------------------------------------------------------------------------------

    def _update_columns(self, *, wanted: bool, advance: bool) -> tuple[dict[str, float], dict[str, str]]:
        """Cosine, distance, norms and gauge of this update, and reasons for the undefined ones; nothing where none of
        it is due: such an update is looked at for what the next one needs alone."""
        if not self._looks:
            self._trajectory.pass_by(keep_gradient=self._keeps_gradient)
            return {}, {}
        before = self._trajectory.has_strayed
        columns = self._trajectory.measure(advance=advance, rate=plain_rate(self._optimizers))
        if self._trajectory.has_strayed and not before:
            self._event(
                "moved_parameters",
                "The parameters were changed between two updates, or this one was not -η g_t: what it began with is "
                "not known. From the next on, the parameters are read before every update.",
            )
        return columns if wanted else ({}, {})

    def _measure(self, due: set[str]) -> Measurement:
        if not due:
            if self._measuring is not None:
                self._measuring.forget()
            return Measurement()
        measures = {name: self._measures[name] for name in sorted(due - {SEGMENT})}
        if self._measuring is None:
            result = Measurement()
            if measures:
                with isolated(self._trajectory.vector.device):
                    place = self._here(self._trajectory.point, None, None)
                    for name, measure in measures.items():
                        take(name, measure, place, result)
        else:
            try:
                result = self._measuring.measure(self._here, step=self._step, segment=SEGMENT in due, measures=measures)
            except Exception as error:  # the model could not be copied again, say
                self._measuring.forget()
                reasons = dict.fromkeys(due, f"measurement failed: {type(error).__name__}: {error}")
                result = Measurement(reasons=reasons, failures=[(name, error) for name in sorted(due)])
        self._tell(result)
        return result

    def _tell(self, result: Measurement) -> None:
        for name, error in result.failures:
            self._disable(name, error)
        for kind, message in result.remarks:
            self._event(kind, message, show=True)

    def _follow(self, plan: Plan | None) -> None:
        """Hold to what a budget chose; to nothing where it has not chosen yet."""
        if self._budgeted is not None:
            schedules, measures = self._budgeted.follow(plan)
            self._schedules.change({SEGMENT: None, "sampled": None} | schedules)
            self._measures.update(measures)
        self.plan = plan

    def _tell_cost(self, budgeted: Budgeted) -> None:
        if self.plan is None and "budget" not in self._disabled:
            message = f"The training ended after {self._step} updates, before enough of them were timed to choose."
            self._event("budget_unused", message, show=True)
        elif message := budgeted.met():
            self._event("budget_met", message)

    def _here(self, point: torch.Tensor, full_loss: Any, known: Any) -> Here:
        return Here(
            self._step, self._epoch_of(self._step), self._learning_rate, point, full_loss, known, self._optimizers
        )

    def _row(self, values: dict[str, float], reasons: dict[str, str], result: Measurement) -> StepRecord:
        batch_loss, self._batch_loss = self._batch_loss, None
        noted = NAN if batch_loss is None else float(batch_loss)
        if batch_loss is not None and not math.isfinite(noted):
            reasons["batch_loss"] = f"noted as {noted}"
        return StepRecord(
            step=self._step,
            epoch=self._epoch_of(self._step),
            learning_rate=self._learning_rate,
            batch_loss=noted if math.isfinite(noted) else NAN,
            loss_noise=result.loss_noise,
            segment=result.segment,
            measures={name: values.pop(name) for name in ("gauge",) if name in values} | result.measures,
            reasons={**reasons, **result.reasons},
            **values,
        )

    def _epoch_of(self, step: int) -> int | None:
        if self._epoch is not None:
            return self._epoch
        return None if self._steps_per_epoch is None else step // self._steps_per_epoch + 1

    def _disable(self, name: str, error: Exception) -> None:
        if self._on_error == "raise":
            raise error
        if name not in self._disabled:
            self._disabled.add(name)
            self._event("measurement_failed", f"{name} is switched off: {type(error).__name__}: {error}", show=True)

    def _event(self, kind: str, message: str, *, show: bool = False) -> None:
        self._journal.event(self._step, kind, message, show=show)

    def _tell_remarks(self) -> None:
        for kind, message in self._remarks:
            self._event(kind, message, show=True)
        self._remarks = []
