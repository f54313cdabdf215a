"""Trainings on this machine: each a fork of a process that has imported and read what a training needs.

``python -m sgdwalk.paper.forking FD`` is such a process, for one thread of a :class:`ForkingExecutor`. Each line on its
stdin is a training to be carried out: request, log. Two lines answer it through the descriptor FD: the training's
process, and at its end the exit code, negative for a signal. A start costs some seconds of processor time, most of it
for imports and for decoding images; a fork costs a tenth of that. Only Linux forks: libraries elsewhere do not bear it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sgdwalk
from sgdwalk.paper.task import Outcome, Task, in_own_process, with_threads

T = TypeVar("T")
FORKS = sys.platform == "linux"
NOTICES = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are for the trainings; a server ends with the process that asks it."""


# --- who asks --------------------------------------------------------------------------------------------------------


class ForkingExecutor:
    """Calls tasks in threads of this process, ``jobs`` at a time; use it as a context."""

    def __init__(self, jobs: int):
        self._threads = ThreadPoolExecutor(jobs)
        self._own = threading.local()
        self._servers: list[_Server] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Outcome]:
        """Let a task be carried out."""
        assert isinstance(function, Task), function
        return self._threads.submit(function.run, self._train if FORKS else in_own_process)

    def __enter__(self) -> ForkingExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        for server in self._servers:
            server.end()

    def _train(self, request: dict[str, Any], num_threads: int, log: Path) -> int:
        server: _Server | None = getattr(self._own, "server", None)
        if server is None or not server.serves(num_threads):
            server = self._own.server = _Server(num_threads, log)
            self._servers.append(server)
        return server.train(request, log)


class _Server:
    """The process that is asked, by one thread."""

    def __init__(self, num_threads: int, log: Path):
        """``log``: for its messages until it is asked."""
        self._num_threads = num_threads
        answers, theirs = os.pipe()
        with open(log, "ab") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sgdwalk.paper.forking", str(theirs)],
                stdin=subprocess.PIPE,  # it and its training end with this process, by which they know
                stdout=messages,
                stderr=messages,
                text=True,
                pass_fds=(theirs,),
                process_group=0,  # Ctrl-C reaches a training through the board only
                env=with_threads(num_threads),
            )
        os.close(theirs)
        self._answers = os.fdopen(answers)

    def serves(self, num_threads: int) -> bool:
        """Whether it can be asked for a training of so many threads; it is ended where it cannot."""
        if self._num_threads == num_threads and self._process.poll() is None:
            return True
        self.end()
        return False

    def train(self, request: dict[str, Any], log: Path) -> int:
        """Wait for a training's end and return its exit code, or the server's own where that died."""
        assert self._process.stdin is not None
        training = None
        try:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps({"request": request, "log": str(log)}), file=self._process.stdin, flush=True)
            training = self._answers.readline()
            code = self._answers.readline()
        except BaseException:
            if training:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(training), signal.SIGTERM)
            self.end()  # what it still has to say belongs to this training
            raise
        if code:
            return int(code)
        self.end()
        return self._process.returncode or -signal.SIGKILL

    def end(self) -> None:
        """Ask it to end, after its training, and wait."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._answers.close()


# --- forks of this process -------------------------------------------------------------------------------------------


def in_forks(call: Callable[[int], T], count: int, jobs: int) -> list[T]:
    """What a function returns for each of the first integers, ``jobs`` at a time in forks of this process.

    >>> in_forks(lambda number: number**2, 4, jobs=2)
    [0, 1, 4, 9]
    """
    if not FORKS or min(jobs, count) < 2:
        return [call(number) for number in range(count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork: none of them computes
        with ProcessPoolExecutor(
            min(jobs, count), multiprocessing.get_context("fork"), initializer=_Call.hold, initargs=(call,)
        ) as pool:
            return list(pool.map(_Call.make, range(count)))


class _Call:
    """What a fork calls; it came with the fork, and need not be sent."""

    held: Callable[[int], Any]

    @classmethod
    def hold(cls, call: Callable[[int], Any]) -> None:
        cls.held = call

    @classmethod
    def make(cls, number: int) -> Any:
        return cls.held(number)


# --- who is asked ----------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Carry out what each line of stdin asks for, until it ends."""
    for notice in NOTICES:
        signal.signal(notice, signal.SIG_IGN)
    from sgdwalk.paper import worker  # torch, which takes a while

    preload()
    gc.collect()  # once for all trainings, which let their collector begin with what is left
    answers = os.fdopen(descriptor, "w")
    alive, here = os.pipe()  # nothing is written: it ends with this process, by which a training knows
    for line in sys.stdin:
        asked = json.loads(line)
        _write_to(asked["log"])
        with contextlib.suppress(Exception):  # the training meets it again, and says it
            worker.examples(asked["request"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork: none of them computes
            training = os.fork()
        if training == 0:
            os.close(here)
            os._exit(_exit_code(functools.partial(worker.main, asked["request"], 0, alive)))
        try:
            print(training, file=answers, flush=True)
            _, status = os.waitpid(training, 0)
            print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
        except BrokenPipeError:  # nobody waits for it any more
            return


def preload() -> None:
    """Import all that a training needs, without starting a thread that computes: it would not survive a fork."""
    import safetensors.torch  # noqa: F401
    import torch
    import torch._dynamo

    for name in dir(sgdwalk):
        getattr(sgdwalk, name)
    torch.set_num_threads(1)
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    with sgdwalk.watch(layer, optimizer, None, None, when=None):  # loads the compiled loops, where they are installed
        layer(torch.ones(1, 1)).sum().backward()
        optimizer.step()


def _exit_code(train: Callable[[], int]) -> int:
    """Of a training in this process, whatever happens."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = train()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _write_to(log: str) -> None:
    """Let what this process and its forks say go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "ab") as messages:
        for stream in (1, 2):
            os.dup2(messages.fileno(), stream)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
