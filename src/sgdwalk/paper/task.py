"""One training as a call that any executor can make: it runs in a process of its own, wherever the call is made."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sgdwalk
from sgdwalk.paper.config import Execution, Experiment

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a training that was asked to stop, and kept its state."""
FORKS = sys.platform == "linux"
"""Whether a server may be forked, and so serve more than one training."""
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
        said_before = path.stat().st_size if path.exists() else 0
        with _server(self.execution.num_threads, path) as server:
            code = server.train(self._request(path))
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

    def _request(self, log: Path) -> dict[str, Any]:
        return {
            "experiment": self.experiment.to_dict(),
            "execution": self.execution.to_dict(),
            "folder": str(self.folder),
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "board": str(self.board),
            "log": str(log),
        }


class _Server:
    """A process that trains what it is asked for in forks of its own: see ``worker``."""

    def __init__(self, num_threads: int, log: Path):
        """``log``: for what it says of itself."""
        with open(log, "ab") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sgdwalk.paper.worker"],
                stdin=subprocess.PIPE,  # it and its training end with this process, by which they know
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                process_group=0,  # Ctrl-C reaches a training through the board only
                env={**os.environ, **dict.fromkeys(THREAD_LIMITS, str(num_threads))},
            )

    def train(self, request: dict[str, Any]) -> int:
        """Wait for a training's end; its exit code, or the server's own where that died."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        training = self._answer()
        try:
            code = self._answer()
        except BaseException:
            if training is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(training, signal.SIGTERM)
                self._answer()
            raise
        if code is None:
            self.end()
            return self._process.returncode or -signal.SIGKILL
        return code

    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        return self._process.poll() is None

    def end(self) -> None:
        """Ask it to end, and wait."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _answer(self) -> int | None:
        """The next line; None when there is no more."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return int(line) if line else None


_idle: defaultdict[int, list[_Server]] = defaultdict(list)
"""Servers that wait, by their number of threads."""
_lock = threading.Lock()


@contextlib.contextmanager
def _server(num_threads: int, log: Path) -> Iterator[_Server]:
    """One that waits, or a new one; it is kept for others afterwards."""
    with _lock:
        waiting = _idle[num_threads]
        while waiting and not waiting[-1].is_idle():
            waiting.pop().end()
        server = waiting.pop() if waiting else None
    server = server or _Server(num_threads, log)
    try:
        yield server
    finally:
        if FORKS and server.is_idle():
            with _lock:
                _idle[num_threads].append(server)
        else:
            server.end()


@atexit.register
def end_servers() -> None:
    """Let go of the processes that wait for further trainings."""
    with _lock:
        ended = [server for waiting in _idle.values() for server in waiting]
        _idle.clear()
    for server in ended:
        server.end()


def _how(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        name = f", {signal.Signals(-code).name}"
    except ValueError:
        name = ""
    return f"ended by signal {-code}{name}" + (", as where memory runs out" if code == -signal.SIGKILL else "")
