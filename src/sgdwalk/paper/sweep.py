"""Many trainings on any executor, each in a process of its own: a process that dies takes nothing along."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sgdwalk
from sgdwalk.paper import record
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.cost import time_needed
from sgdwalk.paper.forking import ForkingExecutor
from sgdwalk.paper.task import Board, Outcome, Task

SECONDS_BETWEEN_LOOKS = 0.1
logger = logging.getLogger("sgdwalk")

Update = Callable[[str, int, int, float], None]


class Future(Protocol):
    """What an executor returns for a call; ``concurrent.futures.Future`` and submitit's jobs are such."""

    def done(self) -> bool:
        """Whether it ended, well or not."""
        ...

    def result(self) -> Any:
        """What the call returned; raises what went wrong."""
        ...

    def cancel(self) -> Any:
        """Do not begin it, if that can still be had."""
        ...


class Executor(Protocol):
    """What makes calls elsewhere; every ``concurrent.futures.Executor`` and submitit's executors are such."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future:
        """Let a function be called."""
        ...


class TrainingsFailed(sgdwalk.SgdwalkError):
    """Some trainings failed, and the others were brought to their end."""

    def __init__(self, failures: Mapping[str, str], num_trainings: int):
        """``failures``: what went wrong, by the training's name."""
        self.failures = dict(failures)
        told = "; ".join(f"{name} ({message})" for name, message in failures.items())
        super().__init__(
            f"{len(failures)} of {num_trainings} trainings failed: {told}. The others are kept: the same command does "
            "only what is missing."
        )


def training_name(experiment: Experiment) -> str:
    """What a training's folder is called: whoever needs the same settings finds it there.

    >>> training_name(Experiment(algorithm="gd")).rpartition("-")[0]
    'digits-gd'
    """
    return f"{experiment.dataset}-{experiment.algorithm}-{experiment.settings_hash}"


def is_trained(folder: Path, experiment: Experiment) -> bool:
    """Whether the training is in the folder, and came to its end."""
    run_folder = folder / training_name(experiment)
    if not run_folder.joinpath("run.json").exists():
        return False
    run = sgdwalk.open_run(run_folder)
    record.check_same_training(run_folder, run, experiment)
    return record.is_finished(run)


def train_all(
    experiments: Sequence[Experiment],
    folder: Path,
    *,
    data_dir: Path | None = None,
    jobs: int | None = 1,
    executions: Sequence[Execution] = (Execution(),),
    executor: Executor | None = None,
    retries: int = 0,
    stop: Callable[[], bool] = lambda: False,
    update: Update = lambda name, num_done, num_updates, fraction: None,
) -> bool:
    """Bring every training to its end; those that were begun go on where they stood.

    One that goes on from another waits for it. Where that other failed, its process finds so, and says it.

    Args:
        experiments: the trainings.
        folder: holds one run folder for each, named by ``training_name``, and beside it its process's messages. An
            executor's workers must find it, and the data, at the same place.
        data_dir: as for ``sgdwalk.paper.data.load``.
        jobs: trainings at a time; None gives an executor all at once.
        executions: threads, device and checkpoints; of several, one a device, each training gets the least busy one.
        executor: where they run: any ``concurrent.futures.Executor`` whose workers can start processes, or what has a
            ``submit`` like one. On this machine where not given.
        retries: so many times a training that failed, or was lost with its machine, is tried again.
        stop: asked ten times a second; once True, every training saves its state and ends.
        update: called with name, updates done, updates planned, fraction of the work done, for each training and,
            where they are several, for all together.

    Returns:
        True when all are finished, False when ``stop`` ended them.

    Raises:
        TrainingsFailed: some trainings failed; the others were brought to their end before.
    """
    if executor is None:
        with ForkingExecutor(max(1, jobs or len(experiments))) as forking:
            return train_all(
                experiments,
                folder,
                data_dir=data_dir,
                jobs=jobs,
                executions=executions,
                executor=forking,
                retries=retries,
                stop=stop,
                update=update,
            )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".board-", dir=folder, ignore_cleanup_errors=True) as board:
        asked = _Asked(experiments, folder.absolute(), data_dir, Board(Path(board).absolute()), executor, update)
        return asked.run(jobs, executions, retries, stop)


@dataclass(frozen=True)
class _Attempt:
    """A training that an executor has."""

    experiment: Experiment
    name: str
    execution: Execution
    future: Future


class _Asked:
    """The trainings that were asked for: which wait, which run, how far they are, which failed."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        folder: Path,
        data_dir: Path | None,
        board: Board,
        executor: Executor,
        update: Update,
    ):
        self._folder = folder
        self._data_dir = None if data_dir is None else data_dir.absolute()
        self._board = board
        self._executor = executor
        self._update = update
        self._num_updates = sum(each.num_updates for each in experiments)
        self._work = {training_name(each): time_needed(each) for each in experiments}
        self._waiting = deque(experiments)
        self._running: list[_Attempt] = []
        self._num_failed: Counter[str] = Counter()
        self._lost: set[str] = set()
        self._failures: dict[str, str] = {}
        self._said: dict[str, tuple[int, int, float]] = {}

    def run(self, jobs: int | None, executions: Sequence[Execution], retries: int, stop: Callable[[], bool]) -> bool:
        """The body of ``train_all``."""
        self._board.open()
        try:
            while self._running or (self._waiting and not stop()):
                stopping = stop()
                if stopping:
                    self._stop()
                while not stopping and (jobs is None or len(self._running) < jobs):
                    experiment = self._next()
                    if experiment is None:
                        break
                    busy = [attempt.execution for attempt in self._running]
                    self._submit(experiment, min(executions, key=busy.count), retries)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                ended = [attempt for attempt in self._running if attempt.future.done()]
                self._tell_progress()
                for attempt in ended:
                    self._running.remove(attempt)
                    outcome = _outcome(attempt.future)
                    if outcome.state != "finished" and not stop():
                        self._failed(attempt.experiment, outcome, retries)
        finally:  # whatever ends this, no training outlives it
            self._stop()
            while any(not attempt.future.done() for attempt in self._running):
                time.sleep(SECONDS_BETWEEN_LOOKS)
        if self._failures and not stop():
            raise TrainingsFailed(self._failures, len(self._work))
        return not stop()

    def _next(self) -> Experiment | None:
        """The first that waits and goes on from no training that is waiting or running itself; it waits no more."""
        pending = {*(each.name for each in self._running), *map(training_name, self._waiting)}
        for experiment in self._waiting:
            if experiment.after is None or training_name(experiment.after) not in pending:
                self._waiting.remove(experiment)
                return experiment
        return None

    def _submit(self, experiment: Experiment, execution: Execution, retries: int) -> None:
        name = training_name(experiment)
        task = Task(
            experiment,
            execution,
            self._folder / name,
            self._data_dir,
            self._board.folder,
            lost_before=name in self._lost,
        )
        self._board.forget(name)
        try:
            future = self._executor.submit(task)
        except Exception as error:  # such as a pool that broke
            self._failed(experiment, Outcome("failed", f"could not be submitted: {_last_line(error)}"), retries)
        else:
            self._running.append(_Attempt(experiment, name, execution, future))

    def _failed(self, experiment: Experiment, outcome: Outcome, retries: int) -> None:
        name = training_name(experiment)
        message = outcome.message or "was stopped by a signal from elsewhere; its state is saved"
        self._num_failed[name] += 1
        if outcome.state == "lost":
            self._lost.add(name)
        if self._num_failed[name] > retries:
            self._failures[name] = message
            logger.warning("%s failed: %s", name, message)
        else:
            logger.warning("%s failed and is tried again: %s", name, message)
            self._waiting.append(experiment)

    def _stop(self) -> None:
        """Take back what no worker has taken up, then ask those that run to end, by the board.

        In this order: a worker whose training ends would take up the next one.
        """
        if self._board.is_open():
            for attempt in self._running:
                if not attempt.future.done() and not self._board.is_begun(attempt.name):
                    attempt.future.cancel()
            self._board.close()

    def _tell_progress(self) -> None:
        moved = []
        for attempt in self._running:
            progress = self._board.read(attempt.name)
            if progress is not None and progress != self._said.get(attempt.name):
                self._said[attempt.name] = progress
                moved.append(attempt.name)
        for name in moved:
            self._update(name, *self._said[name])
        if moved and len(self._work) > 1:
            done = math.fsum(self._work[name] * fraction for name, (_, _, fraction) in self._said.items())
            num_done = sum(num_done for num_done, _, _ in self._said.values())
            total = math.fsum(self._work.values())
            self._update(f"all {len(self._work)} trainings", num_done, self._num_updates, done / total)


def _outcome(future: Future) -> Outcome:
    """How an attempt ended, whatever an executor says of it."""
    try:
        return future.result()
    except Exception as error:
        return Outcome("lost", f"its worker was lost: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}{': ' + lines[-1][:500] if lines else ''}"
