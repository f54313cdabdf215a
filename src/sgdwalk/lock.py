"""One writer a run folder: a kernel lock that dies with its process, and a line in it that says who holds it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from sgdwalk.errors import RunFolderError

LOCK_FILE = "writer.lock"

_held: set[tuple[int, Path]] = set()
# (process, lock file). A POSIX lock does not refuse its own process, and closing any other descriptor of the file
# would drop it: so a second writer here must be refused before the file is opened. A forked child has another pid.


class WriterLock:
    """The right to write a run folder, from :meth:`acquire` to :meth:`release`."""

    def __init__(self, path: Path, descriptor: int):
        self._path = path
        self._descriptor = descriptor
        self._pid = os.getpid()
        _held.add((self._pid, path))

    @classmethod
    def acquire(cls, folder: Path) -> WriterLock:
        """Take the folder's lock, at once or never.

        The lock of a process that died on this host is free again. What a process on another host left behind cannot
        be judged from here and is refused.

        Raises:
            RunFolderError: another writer holds the folder, or may hold it, or the lock file cannot be written.
        """
        path = Path(os.path.realpath(folder)) / LOCK_FILE
        if (os.getpid(), path) in _held:
            raise RunFolderError(
                f"{folder} is already being written by this process ({os.getpid()}): close that walk first, "
                "or give this one a folder of its own."
            )
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror}; a run folder must be writable.") from error
        try:
            _take(descriptor, folder, path)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    def release(self) -> None:
        """Free the folder; the lock file stays, empty, so that nobody can lock a file that is being removed."""
        with contextlib.suppress(OSError):  # on a failed disk the line stays; the kernel frees the lock all the same
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        _held.discard((self._pid, self._path))


def is_held(folder: Path) -> bool:
    """Whether a process on this host is writing the folder just now.

    >>> import tempfile
    >>> is_held(Path(tempfile.mkdtemp()))
    False
    """
    path = Path(os.path.realpath(folder)) / LOCK_FILE
    if (os.getpid(), path) in _held:
        return True
    try:
        with open(path, "rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def forget_writer(folder: str | Path, patience_seconds: float = 60.0) -> None:
    """Free a run folder of a writer that is known to have ended, whichever host it was on.

    ``watch`` takes over what a dead process of the same host left behind; the lock of another host it refuses, because
    it cannot tell. Whoever can, such as a scheduler that lost a machine, calls this before the run is gone on with.

    Args:
        folder: a run folder, or one that is not there yet.
        patience_seconds: wait so long for a process that is only just ending.

    Raises:
        RunFolderError: a process still writes the folder after that time.

    >>> import tempfile
    >>> forget_writer(tempfile.mkdtemp())
    """
    path = Path(os.path.realpath(folder)) / LOCK_FILE
    patient_until = time.monotonic() + patience_seconds
    while is_held(Path(folder)):
        if time.monotonic() >= patient_until:
            raise RunFolderError(
                f"{folder} is still being written, {patience_seconds:g} s after its writer was taken for dead: "
                "end that process, or wait for its end."
            )
        time.sleep(0.1)
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)


def _take(descriptor: int, folder: Path, path: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise RunFolderError(f"cannot lock {path}: {error.strerror}; use a file system with locks.") from error
        raise RunFolderError(
            f"{folder} is being written by {_describe(_read(descriptor))}: wait for its end, or use another folder."
        ) from None
    holder = _read(descriptor)
    if holder is not None and holder.get("host") != socket.gethostname():
        raise RunFolderError(
            f"{folder} was being written by {_describe(holder)}, which cannot be checked from {socket.gethostname()}: "
            f"if it has ended, delete {path} and try again."
        )
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, line.encode(), 0)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; a run folder must be writable.") from error


def _read(descriptor: int) -> dict[str, Any] | None:
    """Who holds or held the lock; None where it was released."""
    content = os.pread(descriptor, 4096, 0)
    if not content:
        return None
    try:
        holder = json.loads(content)
    except ValueError:
        holder = None
    return holder if isinstance(holder, dict) else {}


def _describe(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
