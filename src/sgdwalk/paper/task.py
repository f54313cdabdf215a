"""One training as a call that any executor can make: it runs in a process of its own, wherever the call is made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sgdwalk
from sgdwalk.paper.config import Execution, Experiment

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a training that was asked to stop, and kept its state."""
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Board:
    """A folder by which trainings anywhere and the one who asked for them hear of each other.

    It is in the folder of the trainings, which all of them share. While its file ``open`` is there they go on; each
    writes how far it is into a file of its own name.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def open(self) -> None:
        """Let trainings go on."""
        self.folder.joinpath("open").touch()

    def close(self) -> None:
        """Ask all trainings to save their state and end."""
        self.folder.joinpath("open").unlink(missing_ok=True)

    def is_open(self) -> bool:
        """Whether trainings are still wanted."""
        return self.folder.joinpath("open").exists()

    def write(self, name: str, *progress: float) -> None:
        """Say how far a training is; nothing once the board is gone."""
        partial = self.folder / f"{name}.partial"
        try:
            partial.write_text(json.dumps(progress))
            os.replace(partial, self.folder / name)
        except FileNotFoundError:
            return

    def read(self, name: str) -> tuple[int, int, float] | None:
        """Updates done, updates planned, fraction of the work done; None before a training says so."""
        try:
            progress = json.loads(self.folder.joinpath(name).read_text())
        except FileNotFoundError:
            return None
        return tuple(progress) if progress else None

    def forget(self, name: str) -> None:
        """Take off what an attempt at a training said."""
        self.folder.joinpath(name).unlink(missing_ok=True)

    def is_begun(self, name: str) -> bool:
        """Whether a training was taken up by a worker."""
        return self.folder.joinpath(name).exists()


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a training ended."""

    state: Literal["finished", "stopped", "failed", "lost"]
    """``lost``: it ended without a word; whether its process still runs for a moment cannot be told."""
    message: str = ""
    """What went wrong, in words."""


@dataclass(frozen=True)
class Task:
    """Calling it trains in a new process, waits for its end and says how it ended.

    A training that crashes, or is killed, never takes the executor's worker along. If the worker itself is killed, its
    training notices, saves its state and ends. Paths are absolute and mean the same on every machine that may call it.
    """

    experiment: Experiment
    execution: Execution
    folder: Path
    """The run folder; its name is the training's, and its process's messages go to a file beside it."""
    data_dir: Path | None
    board: Path
    """Folder of the :class:`Board`."""
    lost_before: bool = False
    """An attempt before this one was lost or killed: what it holds of the run folder is taken back."""

    def __call__(self) -> Outcome:
        return self.run(in_own_process)

    def run(self, train: Callable[[dict[str, Any], int, Path], int]) -> Outcome:
        """Train in the way given: it takes a request, a number of threads and a file, and returns the exit code."""
        name, board = self.folder.name, Board(self.board)
        if not board.is_open():
            return Outcome("stopped")
        board.write(name)
        if self.lost_before:
            try:
                sgdwalk.forget_writer(self.folder)
            except sgdwalk.SgdwalkError as error:
                return Outcome("failed", str(error))
        path = self.folder.with_name(f"{name}.log")
        path.touch()
        said_before = path.stat().st_size
        code = train(self._request(), self.execution.num_threads, path)
        if code == 0:
            return Outcome("finished")
        if code in STOPPED:
            return Outcome("stopped")
        with open(path, "rb") as log:
            log.seek(said_before)
            said = log.read().decode(errors="replace").strip().splitlines()
        return Outcome(
            "failed" if code > 0 else "lost",
            f"{_how(code)}{': ' + said[-1][:500] if said else ''}; see {path}",
        )

    def checkpoint(self) -> Any:
        """What submitit requeues when SLURM takes the machine away: the same again, which goes on where this stood."""
        from submitit.helpers import DelayedSubmission

        job = os.environ.get("SLURM_JOB_ID", "0")
        if not (job.isascii() and job.isdigit()):
            raise sgdwalk.InputError(f"SLURM_JOB_ID={job!r} is no number of a job: nothing is requeued by it.")
        return DelayedSubmission(self)

    def _request(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment.to_dict(),
            "execution": self.execution.to_dict(),
            "folder": str(self.folder),
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "board": str(self.board),
        }


def in_own_process(request: dict[str, Any], num_threads: int, log: Path) -> int:
    """Train in a new process with its messages in a file, wait for its end and return its exit code."""
    with open(log, "ab") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "sgdwalk.paper.worker", json.dumps(request)],
            stdin=subprocess.PIPE,  # nothing is written: it ends with this process, by which the training knows
            stdout=messages,
            stderr=messages,
            process_group=0,  # Ctrl-C reaches it through the board only
            env=with_threads(num_threads),
        )
    with process:
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


def with_threads(num_threads: int) -> dict[str, str]:
    """This process's environment, with a limit on the threads of everything that computes."""
    return {**os.environ, **dict.fromkeys(THREAD_LIMITS, str(num_threads))}


def _how(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        name = f", {signal.Signals(-code).name}"
    except ValueError:
        name = ""
    return f"ended by signal {-code}{name}" + (", as where memory runs out" if code == -signal.SIGKILL else "")
