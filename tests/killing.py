"""Kill a process at every point of what it does, one point at a time.

``python killing.py checkpoint|create|commit FOLDER`` lets forks of itself do that thing, of which the n-th dies by
SIGKILL at its n-th call of a function that writes, until a fork lives to the end; it prints what each death left.
"""

import builtins
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import sqlite_calls
import storing
from sgdwalk.store import RunWriter, holds_run, read_run_folder

FUNCTIONS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")


class DyingFile:
    """A file whose write dies half way."""

    def __init__(self, file, point):
        self._file = file
        self._point = point

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        if self._point():
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            die()
        return self._file.write(content)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(number):
    """From now on this process dies at its ``number``-th point: before or after a call, or half way through a write.

    Returns what tells SQLite's calls whether to die, which count as well.
    """
    points = itertools.count()

    def point():
        return next(points) == number

    def dying(function):
        def call(*arguments, **options):
            if point():
                die()
            result = function(*arguments, **options)
            if point():
                die()
            return result

        return call

    for name in FUNCTIONS:
        setattr(os, name, dying(getattr(os, name)))
    plain_open = builtins.open

    def dying_open(file, mode="r", *arguments, **options):
        opened = plain_open(file, mode, *arguments, **options)
        return DyingFile(opened, point) if "w" in mode else opened

    builtins.open = dying_open
    return point


def fork(action):
    """Run ``action`` in a child and return how it ended: 0, or -9 where it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def each_point(action):
    """How each fork ended that ran ``action(number)`` until its ``number``-th point."""
    for number in itertools.count():
        ended = fork(lambda number=number: action(number))
        yield number, ended
        if ended == 0:
            return


def state(step):
    """The training state before update ``step``."""
    import torch

    return {"weights": torch.arange(1000.0) + step, "step": step}


def checkpoint(folder):
    """Publish checkpoint 3 where 1 and 2 are."""
    import torch

    from sgdwalk import Checkpoints

    torch.set_num_threads(1)
    for step in (1, 2):
        Checkpoints(folder / "start").save(step, state(step))

    def publish(number):
        shutil.copytree(folder / "start", folder / f"{number}")
        die_at(number)
        Checkpoints(folder / f"{number}").save(3, state(3))

    for number, ended in each_point(publish):
        left = folder / f"{number}"
        step, loaded = Checkpoints(left).load_newest()
        intact = loaded["step"] == step and torch.equal(loaded["weights"], state(step)["weights"])
        # Going on as a resumed run does: the same checkpoint again, then the next.
        for later in (3, 4):
            Checkpoints(left).save(later, state(later))
        step_at_end, loaded = Checkpoints(left).load_newest()
        intact &= torch.equal(loaded["weights"], state(step_at_end)["weights"])
        yield {"ended": ended, "step": step, "intact": intact, "step_at_end": step_at_end, "names": os.listdir(left)}


def create(folder):
    """Make a run folder."""

    def make(number):
        with sqlite_calls.dying(die_at(number), die):
            RunWriter.create(folder / f"{number}", storing.INFO).close()

    for number, ended in each_point(make):
        left = folder / f"{number}"
        is_run = holds_run(left)
        writer = RunWriter.resume(left) if is_run else RunWriter.create(left, storing.INFO)
        storing.write_steps(writer, range(12))
        writer.close()
        same = storing.exact(*read_run_folder(left)[1:]) == storing.expected(12)
        yield {"ended": ended, "is_run": is_run, "same_at_end": same, "names": os.listdir(left)}


def commit(folder):
    """Commit 24 steps where 12 are: several pages of the database."""
    storing.filled(folder / "start", 12)
    wanted = {count: storing.expected(count) for count in (12, 36, 40)}

    def write(number):
        shutil.copytree(folder / "start", folder / f"{number}")
        writer = RunWriter.resume(folder / f"{number}")
        storing.write_steps(writer, range(12, 36))
        with sqlite_calls.dying(die_at(number), die):
            writer.commit()

    for number, ended in each_point(write):
        left = folder / f"{number}"
        journal = (left / "steps.sqlite-journal").exists()
        count = len(read_run_folder(left)[1])
        intact = storing.exact(*read_run_folder(left)[1:]) == wanted.get(count)
        writer = RunWriter.resume(left)
        storing.write_steps(writer, range(count, 40))
        writer.close()
        same = storing.exact(*read_run_folder(left)[1:]) == wanted[40]
        yield {"ended": ended, "journal": journal, "count": count, "intact": intact, "same_at_end": same}


if __name__ == "__main__":
    for death in {"checkpoint": checkpoint, "create": create, "commit": commit}[sys.argv[1]](Path(sys.argv[2])):
        print(json.dumps(death))
