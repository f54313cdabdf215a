"""The run folder: append to it while training, read it back, go on with it.

``run.json`` says what the run is and never changes; ``steps.sqlite`` grows by one short transaction at a time. The
database is opened for each transaction and closed after it: no handle is left for a forked worker to inherit, nor for a
full disk to spoil.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
import unicodedata
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgdwalk.errors import InputError, RunFolderError
from sgdwalk.lock import LOCK_FILE, WriterLock
from sgdwalk.records import SCHEMA_VERSION, EpochNote, Event, StepRecord
from sgdwalk.rows import SCHEMA, Rows, decode, delete_after, insert, select

INFO_FILE = "run.json"
DATABASE_FILE = "steps.sqlite"
START_FILE = "start.safetensors"
"""θ_0, written by whoever trains."""
_NAMED = 5
"""Runs below a folder that holds none are named up to so many."""
_UNFINISHED = {
    START_FILE,
    f".{START_FILE}.partial",
    LOCK_FILE,
    DATABASE_FILE,
    f"{DATABASE_FILE}-journal",
    f".{INFO_FILE}.partial",
}
_LONGEST_PATH = 504  # bytes; SQLite opens no database with a longer path
_TRAINING_WAIT_SECONDS = 0.05
_PATIENT_WAIT_SECONDS = 30.0
_COMMIT_INTERVAL_SECONDS = 1.0

_DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
# The second: SQLite's message about a damaged schema quotes it, and Python cannot always decode the quotation.

Records = tuple[dict[str, Any], list[StepRecord], list[EpochNote], list[Event]]


class RunWriter:
    """The only writer of a run folder. Nothing that happens to the disk reaches the training that is watched:
    a record that cannot be stored waits in memory, in order, for the next commit."""

    def __init__(self, folder: Path, info: dict[str, Any], lock: WriterLock, last_step: int):
        self.folder = folder
        self.info = info
        """What ``run.json`` holds."""
        self.last_step = last_step
        """The last step recorded; -1 before the first."""
        self.last_error: str | None = None
        """Why the last commit failed, None where it succeeded or a reader was only in the way."""
        self._database = folder / DATABASE_FILE
        self._lock: WriterLock | None = lock
        self._pid = os.getpid()
        self._pending = Rows()
        self._last_attempt = time.monotonic()

    @classmethod
    def create(cls, folder: Path, info: dict[str, Any]) -> RunWriter:
        """Begin a run in a new or empty folder; one that a killed process left half made counts as empty.

        Raises:
            RunFolderError: the folder holds something, is held by another writer, or cannot be written.
            InputError: ``info`` holds something that JSON cannot.
        """
        folder = _checked_folder(folder)
        info = {"schema_version": SCHEMA_VERSION, **info}
        try:
            content = json.dumps(info, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"what describes the run must be plain JSON values: {error}.") from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_content(folder)
            lock = WriterLock.acquire(folder)
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {folder}: {error.strerror}.") from error
        try:
            _refuse_content(folder)  # again: another writer may have come and gone before we had the lock
            for name in _UNFINISHED - {LOCK_FILE}:
                (folder / name).unlink(missing_ok=True)
            with _transaction(folder / DATABASE_FILE, _PATIENT_WAIT_SECONDS, "rwc") as database:
                for statement in SCHEMA:
                    database.execute(statement)
                database.execute("INSERT INTO meta VALUES ('schema_version', ?)", (SCHEMA_VERSION,))
            write_atomically(folder / INFO_FILE, content.encode())  # last: from now on this is a run
        except (OSError, *_DATABASE_ERRORS) as error:
            lock.release()
            raise RunFolderError(_explain(f"cannot write the run folder {folder}", error)) from error
        except BaseException:
            lock.release()
            raise
        return cls(folder, json.loads(content), lock, last_step=-1)

    @classmethod
    def resume(cls, folder: Path) -> RunWriter:
        """Go on with a run that is there, after checking all that it holds.

        Raises:
            RunFolderError: no run there, a damaged one, one of another schema version, or held by another writer.
        """
        folder = _checked_folder(folder)
        _read_info(folder)  # no lock file is left in a folder that holds no run
        lock = WriterLock.acquire(folder)
        try:
            info, steps, _, _ = read_run_folder(folder)
        except BaseException:
            lock.release()
            raise
        return cls(folder, info, lock, last_step=steps[-1].step if steps else -1)

    @property
    def num_pending(self) -> int:
        """Steps, noted values and events that wait for a commit."""
        return len(self._pending.steps) + len(self._pending.notes) + len(self._pending.events)

    def append(self, record: StepRecord) -> None:
        """Keep a step, in memory until the next commit."""
        assert record.step > self.last_step, (record.step, self.last_step)
        self._pending.add_step(record)
        self.last_step = record.step

    def note_epoch(self, note: EpochNote) -> None:
        """Keep the values of an epoch; a name noted before for the same epoch is overwritten."""
        self._pending.add_note(note)

    def add_event(self, event: Event) -> None:
        """Keep an event, in memory until the next commit."""
        self._pending.add_event(event)

    def commit(self, *, patient: bool = False) -> bool:
        """Store everything pending in one transaction; True where nothing is pending any more.

        A reader in the way is waited for at most 50 ms (``patient``: half a minute, as before a checkpoint); then, as
        when the disk fails, all rows stay pending.
        """
        return self._commit(_PATIENT_WAIT_SECONDS if patient else _TRAINING_WAIT_SECONDS)

    def commit_if_due(self) -> bool:
        """Commit where something is pending and the last attempt is a second old; True where nothing is pending."""
        if self._pending and time.monotonic() - self._last_attempt < _COMMIT_INTERVAL_SECONDS:
            return False
        return self.commit()

    def rewind(self, step: int, num_events: int) -> None:
        """Forget what came after the walk stood before update ``step`` having seen ``num_events`` events.

        Raises:
            RunFolderError: the database cannot be written.
        """
        try:
            with _transaction(self._database, _PATIENT_WAIT_SECONDS) as database:
                delete_after(database, step, num_events)
        except _DATABASE_ERRORS as error:
            raise RunFolderError(_explain(f"cannot go back to step {step} in {self._database}", error)) from error
        self._pending = self._pending.before(step, num_events)
        self.last_step = min(self.last_step, step - 1)

    def read(self) -> Records:
        """What the folder holds and what is pending, as :func:`read_run_folder` returns it."""
        rows = _read_rows(self._database).updated_by(self._pending)
        return (self.info, *_decoded(self._database, rows))

    def close(self) -> bool:
        """Commit with patience and let go of the folder; True where everything is stored, else see ``last_error``."""
        if self._lock is None or os.getpid() != self._pid:
            return not self._pending
        stored = self._commit(_PATIENT_WAIT_SECONDS)
        self._lock.release()
        self._lock = None
        return stored

    def _commit(self, wait_seconds: float) -> bool:
        if not self._pending:
            return True
        if self._lock is None or os.getpid() != self._pid:  # closed, or a forked child
            return False
        try:
            with _transaction(self._database, wait_seconds) as database:
                insert(database, self._pending)
        except _DATABASE_ERRORS as error:
            busy = _primary_code(error) == sqlite3.SQLITE_BUSY and wait_seconds == _TRAINING_WAIT_SECONDS
            self.last_error = None if busy else _explain(f"cannot write {self._database}", error)
            return False
        finally:
            self._last_attempt = time.monotonic()
        self._pending = Rows()
        self.last_error = None
        return True


def holds_run(folder: Path) -> bool:
    """Whether the folder holds a run; one whose making was cut short does not."""
    return (folder / INFO_FILE).exists()


def read_run_folder(folder: Path) -> Records:
    """A run as it stands, also while it is written: ``(info, steps, epoch notes, events)``, each a consistent prefix.

    Raises:
        RunFolderError: no run there, one of another schema version, or a damaged one, naming the step.
    """
    folder = _checked_folder(folder)
    info = _read_info(folder)
    database = folder / DATABASE_FILE
    return (info, *_decoded(database, _read_rows(database)))


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file in place whole or not at all, also when the power fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _transaction(path: Path, wait_seconds: float, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    """The database within a transaction of its own: committed as a whole, or rolled back on any exception."""
    address = f"file:{urllib.parse.quote(os.fsencode(path))}?mode={mode}"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=wait_seconds, isolation_level=None)) as database:
        # EXTRA also syncs the folder after the journal is gone: what is committed survives a power cut, so that no
        # checkpoint is ever newer than the rows before it.
        database.execute("PRAGMA synchronous = EXTRA")
        database.execute("BEGIN IMMEDIATE")
        yield database
        database.execute("COMMIT")


def _read_rows(path: Path) -> Rows:
    # Opened for writing although it only reads: the first to come after a crash rolls back the unfinished transaction.
    address = f"file:{urllib.parse.quote(os.fsencode(path))}?mode=rw"
    try:
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=_PATIENT_WAIT_SECONDS, isolation_level=None)
        ) as database:
            database.execute("BEGIN")
            schema = tuple(sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
            versions = database.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
            rows = select(database)
            problems = database.execute("PRAGMA quick_check(1)").fetchall()
    except _DATABASE_ERRORS as error:
        raise RunFolderError(_explain(f"cannot read {path}", error)) from error
    if schema != SCHEMA or versions != [(SCHEMA_VERSION,)]:
        problems = [(f"its tables are not those of schema version {SCHEMA_VERSION}",)]
    if problems != [("ok",)]:
        raise RunFolderError(f"{path} is damaged ({problems[0][0]}). {_DAMAGED}")
    return rows


def _decoded(path: Path, rows: Rows) -> tuple[list[StepRecord], list[EpochNote], list[Event]]:
    try:
        return decode(rows)
    except RunFolderError as error:
        raise RunFolderError(f"{path} is damaged: {error}. {_DAMAGED}") from None


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO_FILE
    try:
        info = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        below = sorted(path.parent.name for path in folder.glob(f"*/{INFO_FILE}"))
        named = f"one of those below it: {', '.join(map(repr, below[:_NAMED]))}" + ", ..." * (len(below) > _NAMED)
        raise RunFolderError(
            f"no run in {folder}: it has no {INFO_FILE}; name "
            f"{named if below else 'the folder that watch(run=...) wrote'}."
        ) from None
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: it is not JSON ({error}). {_DAMAGED}") from error
    version = info.get("schema_version") if isinstance(info, dict) else None
    if version != SCHEMA_VERSION:
        raise RunFolderError(
            f"{folder} has schema version {version!r}, this sgdwalk reads {SCHEMA_VERSION}: "
            "open it with the version of sgdwalk that wrote it."
        )
    return info


def _checked_folder(folder: Path) -> Path:
    """The folder as an absolute path, which a later change of the working directory leaves alone."""
    if any(unicodedata.category(character) == "Cc" for character in str(folder)):
        raise RunFolderError(f"the run folder's name {str(folder)!r} holds a control character: choose another name.")
    folder = Path(folder).absolute()
    length = len(os.fsencode(os.path.realpath(folder / DATABASE_FILE)))
    if length > _LONGEST_PATH:
        raise RunFolderError(
            f"the run folder's path is too long: {length} bytes with its database, at most {_LONGEST_PATH} can be "
            f"opened; choose a shorter one than {folder}."
        )
    return folder


def _refuse_content(folder: Path) -> None:
    content = set(os.listdir(folder))
    if INFO_FILE in content:
        raise RunFolderError(f"{folder} already holds a run: pass resume=True to go on with it, or name a new folder.")
    if not content <= _UNFINISHED:
        raise RunFolderError(f"{folder} is not empty (it holds {min(content - _UNFINISHED)!r}): name a new folder.")


_DAMAGED = "Take the folder from a copy, or start the run again; other runs are not concerned."

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process kept the database busy; try again when it is done",
    sqlite3.SQLITE_FULL: "make space on this file system",
    sqlite3.SQLITE_READONLY: "give write permission, or copy the folder to where you may write",
    sqlite3.SQLITE_CANTOPEN: "is it there, and may you read and write it and its folder?",
    sqlite3.SQLITE_IOERR: "the disk failed or is full",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}


def _primary_code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _explain(what: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{what}: {error.strerror}."
    return f"{what}: {error}; {_ADVICE.get(_primary_code(error), _DAMAGED)}"
