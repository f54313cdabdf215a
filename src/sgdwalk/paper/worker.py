"""One training in a process of its own, for a ``Task``: ``python -m sgdwalk.paper.worker REQUEST``.

REQUEST is a JSON object: experiment, execution, folder, data_dir, board. Progress goes to the board. Ends with 0 when
the training came to its end, with 130 or 143 when it was asked to stop or lost its parent, and with 1 on an error.
"""

from __future__ import annotations

import gc
import json
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import sgdwalk
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.data import Split, load_examples, wanted_of
from sgdwalk.paper.interrupt import StopOnSignal
from sgdwalk.paper.sweep import training_name
from sgdwalk.paper.task import STOPPED, Board
from sgdwalk.paper.train import train

SECONDS_BETWEEN_LOOKS = 0.2
"""How often a training looks at the board, and writes on it."""
_held: dict[Any, tuple[Split, Split]] = {}
"""The examples that were read last."""


def examples(asked: dict[str, Any]) -> tuple[Split, Split]:
    """What a request trains on; kept for the next one that asks for the same, in this process or in a fork of it."""
    experiment, data_dir = Experiment.from_dict(asked["experiment"]), asked["data_dir"]
    wanted = wanted_of(experiment), data_dir
    if wanted not in _held:
        _held.clear()
        _held[wanted] = load_examples(wanted[0], None if data_dir is None else Path(data_dir))
    return _held[wanted]


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
            data = examples(asked)
            gc.freeze()  # modules are no garbage, and looking through them again and again takes time
            finished = train(
                experiment,
                data,
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
    sys.exit(main(json.loads(sys.argv[1]), 0))
