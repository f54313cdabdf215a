"""Several trainings, each in a process of its own: a process that dies takes nothing along."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import sgdwalk
from sgdwalk.paper import record
from sgdwalk.paper.config import Execution, Experiment

Update = Callable[[str, int, int, float], None]


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
    jobs: int = 1,
    executions: Sequence[Execution] = (Execution(),),
    stop: Callable[[], bool] = lambda: False,
    update: Update = lambda name, num_done, num_updates, fraction: None,
) -> bool:
    """Bring every training to its end, ``jobs`` at a time; those that were begun go on where they stood.

    One that goes on from another waits for it. Where that other failed, its process finds so, and says it.

    Args:
        experiments: the trainings.
        folder: holds one run folder for each, named by ``training_name``, and beside it its process's messages.
        data_dir: as for ``sgdwalk.paper.data.load``.
        jobs: processes at a time.
        executions: threads, device and checkpoints; of several, one a device, each training gets the least busy one.
        stop: asked twice a second; once True, every training saves its state and ends.
        update: called with name, updates done, updates planned, fraction of the work done.

    Returns:
        True when all are finished, False when ``stop`` ended them.

    Raises:
        sgdwalk.SgdwalkError: some trainings failed; the others were brought to their end before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = deque(experiments)
    running: dict[int, _Training] = {}  # by the descriptor of its output
    failures: list[str] = []
    told_to_stop = False
    try:
        with selectors.DefaultSelector() as selector:
            while running or (waiting and not stop()):
                if stop() and not told_to_stop:
                    told_to_stop = True
                    for training in running.values():
                        training.process.send_signal(signal.SIGTERM)
                while waiting and len(running) < jobs and not stop():
                    experiment = _ready(waiting, {training.name for training in running.values()})
                    if experiment is None:
                        break
                    waiting.remove(experiment)
                    busy = [training.execution for training in running.values()]
                    execution = min(executions, key=busy.count)
                    training = _Training(experiment, folder, data_dir, execution)
                    running[training.output] = training
                    selector.register(training.output, selectors.EVENT_READ)
                for key, _ in selector.select(timeout=0.5):
                    training = running[key.fd]
                    if training.read(update):
                        continue
                    selector.unregister(key.fd)
                    del running[key.fd]
                    failure = training.finish()
                    if failure and not stop():
                        failures.append(failure)
    finally:  # whatever ends this, no training outlives it
        for training in running.values():
            training.process.send_signal(signal.SIGTERM)
            training.finish()
    if failures:
        raise sgdwalk.SgdwalkError(
            f"{len(failures)} of {len(experiments)} trainings failed: {'; '.join(failures)}. The others are kept: the "
            "same command does only what is missing."
        )
    return not stop()


def _ready(waiting: Sequence[Experiment], running: Collection[str]) -> Experiment | None:
    """The first that goes on from no training that is waiting or running itself."""
    pending = {*running, *(training_name(each) for each in waiting)}
    return next((each for each in waiting if each.after is None or training_name(each.after) not in pending), None)


class _Training:
    """A training and its process, which is in a group of its own: Ctrl-C reaches it through its parent only."""

    def __init__(self, experiment: Experiment, folder: Path, data_dir: Path | None, execution: Execution):
        self.name = training_name(experiment)
        self.execution = execution
        self._log = folder / f"{self.name}.log"
        self._rest = b""
        request = {
            "experiment": experiment.to_dict(),
            "execution": execution.to_dict(),
            "folder": str(folder / self.name),
            "data_dir": None if data_dir is None else str(data_dir),
        }
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sgdwalk.paper.worker", json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
            )
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()

    def read(self, update: Update) -> bool:
        """Pass on what the process says of its progress; False at the end of its output."""
        content = os.read(self.output, 1 << 16)
        *lines, self._rest = (self._rest + content).split(b"\n")
        if lines:
            update(self.name, *json.loads(lines[-1]))
        return bool(content)

    def finish(self) -> str | None:
        """Wait for the process; what went wrong, in words, or None."""
        with self.process:
            code = self.process.wait()
        if code == 0:
            return None
        how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        said = self._log.read_text(errors="replace").strip().splitlines()
        return f"{self.name} ({how}{': ' + said[-1][:500] if said else ''}; see {self._log})"
