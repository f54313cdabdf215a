"""Trainings in processes of their own, for ``Task``: ``python -m sgdwalk.paper.worker``, a request a line on stdin.

A request is a JSON object: experiment, execution, folder, data_dir, board, and log, a file for the training's messages.
Each is carried out by a fork of this process, which has imported all that a training needs and read the examples, so
that only the first one waits for that. Two lines answer it on stdout: the training's process, and at its end the exit
code, negative for a signal. Progress goes to the board. The code is 0 when the training came to its end, 130 or 143
when it was asked to stop or lost its parent, and 1 on an error. Where processes with threads of the system cannot be
forked (all but Linux), this process trains itself, once.

``python -m sgdwalk.paper.worker REQUEST`` carries one request out, with messages on stderr.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

import sgdwalk
from sgdwalk.kernels import choose_kernel
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.data import load_examples, wanted_of
from sgdwalk.paper.interrupt import StopOnSignal
from sgdwalk.paper.sweep import training_name
from sgdwalk.paper.task import FORKS, STOPPED, Board
from sgdwalk.paper.train import train

SECONDS_BETWEEN_LOOKS = 0.2
"""How often a training looks at the board, and writes on it."""
_examples = functools.lru_cache(1)(load_examples)


def serve() -> int:
    """Carry out what each line of stdin asks for, until it ends."""
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    choose_kernel(torch.device("cpu"))  # imports the compiled loops, where they are installed
    answers = os.fdopen(os.dup(1), "w")
    alive, here = os.pipe()  # nothing is written: it ends with this process, by which a training knows
    for line in sys.stdin:
        asked = json.loads(line)
        if not FORKS:
            print(os.getpid(), file=answers, flush=True)
            code = _carry_out(asked, 0)
            print(code, file=answers, flush=True)
            return code
        try:
            _examples(*_data_of(asked))
        except sgdwalk.SgdwalkError:
            pass  # the training finds the same, and says it where it is looked for
        if (child := os.fork()) == 0:
            os.close(here)
            os._exit(_carry_out(asked, 0, alive))
        print(child, file=answers, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    return 0


def _carry_out(asked: dict[str, Any], *parents: int) -> int:
    """``main`` with its messages in the request's file, and no exception."""
    with open(asked["log"], "ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        code = main(asked, *parents)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _data_of(asked: dict[str, Any]) -> tuple[Any, Path | None]:
    data_dir = asked["data_dir"]
    return wanted_of(Experiment.from_dict(asked["experiment"])), None if data_dir is None else Path(data_dir)


def main(asked: dict[str, Any], *parents: int) -> int:
    """Carry a request out and return the exit code.

    ``parents``: descriptors to which nothing is written; one ends when a process does that the training shall not
    outlive.
    """
    experiment = Experiment.from_dict(asked["experiment"])
    folder = Path(asked["folder"])
    wishes = Wishes(Board(Path(asked["board"])), folder.name, *parents)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # SLURM's notice, which submitit answers in the parent
    with StopOnSignal() as stop:
        try:
            finished = train(
                experiment,
                _examples(*_data_of(asked)),
                folder,
                after=None if experiment.after is None else folder.with_name(training_name(experiment.after)),
                execution=Execution(**asked["execution"]),
                resume=folder.joinpath("run.json").exists(),
                strict=True,
                stop=lambda: stop() or wishes.stop(),
                progress=wishes.report,
            )
        except sgdwalk.SgdwalkError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0 if finished else stop.exit_code or max(STOPPED)


class Wishes:
    """What the parent and the board say: looked up now and then, since a training may make thousands of updates a
    second."""

    def __init__(self, board: Board, name: str, *parents: int):
        self._board = board
        self._name = name
        self._looked = self._wrote = -SECONDS_BETWEEN_LOOKS
        self._closed = False
        self._parent_gone = threading.Event()
        threading.Thread(target=self._wait_for, args=parents, daemon=True).start()

    def stop(self) -> bool:
        """Whether to save the state and end."""
        now = time.monotonic()
        if now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._closed = not self._board.is_open()
        return self._closed or self._parent_gone.is_set()

    def report(self, num_done: int, num_updates: int, fraction: float) -> None:
        """Say how far the training is."""
        now = time.monotonic()
        if now - self._wrote >= SECONDS_BETWEEN_LOOKS or num_done == num_updates:
            self._wrote = now
            self._board.write(self._name, num_done, num_updates, fraction)

    def _wait_for(self, *parents: int) -> None:
        select.select(parents, (), ())
        self._parent_gone.set()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), 0) if len(sys.argv) > 1 else serve())
