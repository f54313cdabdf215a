"""Kill a process at every point of what it does, one point at a time.

``python killing.py FOLDER`` publishes checkpoints in a fork of itself that dies by SIGKILL at its n-th call of a system
function, for n = 0, 1, … until a fork lives to the end, and prints what each death left behind.
"""

import builtins
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

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
    """From now on this process dies at its ``number``-th point: before or after a call, or half way through a write."""
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


def state(step):
    """The training state before update ``step``."""
    import torch

    return {"weights": torch.arange(1000.0) + step, "step": step}


def main(folder):
    import torch

    from sgdwalk import Checkpoints

    torch.set_num_threads(1)
    folder = Path(folder)
    for step in (1, 2):
        Checkpoints(folder / "start").save(step, state(step))
    for number in itertools.count():
        left = folder / f"killed-{number}"
        shutil.copytree(folder / "start", left)

        def publish(number=number, left=left):
            die_at(number)
            Checkpoints(left).save(3, state(3))

        ended = fork(publish)
        step, loaded = Checkpoints(left).load_newest()
        intact = loaded["step"] == step and torch.equal(loaded["weights"], state(step)["weights"])
        # Going on as a resumed run does: the same checkpoint again, then the next.
        for later in (3, 4):
            Checkpoints(left).save(later, state(later))
        step_at_end, loaded = Checkpoints(left).load_newest()
        intact &= torch.equal(loaded["weights"], state(step_at_end)["weights"])
        names = sorted(os.listdir(left))
        print(json.dumps({"ended": ended, "step": step, "intact": intact, "step_at_end": step_at_end, "names": names}))
        if ended == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1])
