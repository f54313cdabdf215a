"""Trainings killed at chosen points, each in a process of its own, and gone on with by ``sgdwalk run --resume``.

``python killing_runs.py FOLDER`` trains once to the end and counts the points of each kind on the way: calls of the
loss function (in a mini-batch, within a segment, in a validation), SQLite's writing calls (in a commit), and calls that
write, sync or rename files (in a checkpoint or in making the run folder). Then one process after the other dies by
SIGKILL at its n-th point of a kind and another goes on; last, one training dies at three points in a row. What happened
is printed, one JSON object a line. The processes are forks of this one, which has imported everything.
"""

import builtins
import contextlib
import json
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

import sqlite_calls
from killing import DyingFile, die, fork
from sgdwalk import cli
from sgdwalk.paper import train

SETTINGS = shlex.split(
    "run --num-train 300 --batch-size 60 --hidden 12 8 --dropout 0.2 --momentum 0.9 --weight-decay 1e-3 "
    "--learning-rate 0.3 --epochs 4 --num-points 4 --watch-every 2 --checkpoint-every 3"
)
KILLS = {"loss": 7, "commit": 7, "file": 7}
"""How many points of each kind are tried, spread evenly over a training, beside the last ones. (How many commits there
are depends a little on the time that they take: the last one might not be reached again.)"""
FILE_FUNCTIONS = ("mkdir", "fsync", "rename", "replace")


class Points:
    """Counts what happens, by kind, and says when the chosen point has come."""

    def __init__(self, chosen=None):
        self.counts = Counter()
        self._chosen = chosen

    def here(self, kind):
        number = self.counts[kind]
        self.counts[kind] += 1
        return (kind, number) == self._chosen

    def dying(self, kind, function):
        """The function, with a point before it and one after it."""

        def call(*arguments, **options):
            if self.here(kind):
                die()
            result = function(*arguments, **options)
            if self.here(kind):
                die()
            return result

        return call


def train_with(points, folder):
    """Train, or go on, in this process; it dies where the points say."""
    train.cross_entropy = points.dying("loss", train.cross_entropy)
    for name in FILE_FUNCTIONS:
        setattr(os, name, points.dying("file", getattr(os, name)))
    plain_open = builtins.open

    def dying_open(file, mode="r", *arguments, **options):
        opened = plain_open(file, mode, *arguments, **options)
        return DyingFile(opened, lambda: points.here("file")) if "w" in mode else opened

    builtins.open = dying_open
    with sqlite_calls.dying(lambda: points.here("commit"), die), contextlib.redirect_stdout(sys.stderr):
        code = cli.main([*SETTINGS, "--out", str(folder.parent), "--name", folder.name, "--resume"])
    if code:
        sys.exit(code)


def counted(folder):
    """Train to the end in a fork; how many points of each kind there were."""
    points, tally = Points(), folder.with_suffix(".json")

    def count():
        train_with(points, folder)
        tally.write_text(json.dumps(points.counts))

    assert fork(count) == 0
    return json.loads(tally.read_text())


def killed_and_resumed(folder, *chosen):
    """Die at each chosen point, one after the other, then go on to the end."""
    ended = [fork(lambda each=each: train_with(Points(each), folder)) for each in chosen]
    left = sorted(path.name for path in folder.rglob("*"))
    resumed = fork(lambda: train_with(Points(), folder))
    return {"folder": folder.name, "chosen": chosen, "ended": ended, "left": left, "resumed": resumed}


def main(folder):
    """Kill and resume; yields what happened."""
    counts = counted(folder / "uninterrupted")
    chosen = [(kind, counts[kind] * k // tries) for kind, tries in KILLS.items() for k in range(tries)]
    for kind, number in [*chosen, ("loss", counts["loss"] - 1), ("file", counts["file"] - 1)]:
        yield killed_and_resumed(folder / f"{kind}-{number}", (kind, number))
    yield killed_and_resumed(folder / "three-times", ("loss", 251), ("loss", 177), ("loss", 142))


if __name__ == "__main__":
    warm_up = Path(sys.argv[1]) / "warm-up"
    with contextlib.redirect_stdout(sys.stderr):
        assert cli.main([*SETTINGS, "--steps", "2", "--out", str(warm_up)]) == 0
    for happened in main(Path(sys.argv[1])):
        print(json.dumps(happened), flush=True)
