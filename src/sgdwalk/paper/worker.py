"""One training in a process of its own, for ``reproduce``: ``python -m sgdwalk.paper.worker REQUEST``.

REQUEST is a JSON object: experiment, execution, folder, data_dir. Progress goes to stdout, one JSON list a line. Ends
with 0 when the training came to its end, with 130 or 143 when a signal ended it, and with 1 on an error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import sgdwalk
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.data import load
from sgdwalk.paper.interrupt import StopOnSignal
from sgdwalk.paper.sweep import training_name
from sgdwalk.paper.train import train


def main(request: str) -> int:
    """Carry a request out and return the exit code."""
    asked = json.loads(request)
    experiment = Experiment.from_dict(asked["experiment"])
    folder = Path(asked["folder"])
    parent_gone = False

    def report(num_done: int, num_updates: int, fraction: float) -> None:
        nonlocal parent_gone
        try:
            os.write(sys.stdout.fileno(), json.dumps([num_done, num_updates, fraction]).encode() + b"\n")
        except BrokenPipeError:
            parent_gone = True

    with StopOnSignal() as stop:
        try:
            finished = train(
                experiment,
                load(experiment, None if asked["data_dir"] is None else Path(asked["data_dir"])),
                folder,
                after=None if experiment.after is None else folder.with_name(training_name(experiment.after)),
                execution=Execution(**asked["execution"]),
                resume=folder.joinpath("run.json").exists(),
                strict=True,
                stop=lambda: stop() or parent_gone,
                progress=report,
            )
        except sgdwalk.SgdwalkError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0 if finished else stop.exit_code or 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
