"""Records as rows of the run folder's database, and back: nothing is lost or rounded on the way.

SQLite stores NaN as NULL; infinities become NaN with a reason before they get here. Each row carries a crc32 of its
content (a step's also covers its segment), because SQLite has no checksums and reads a flipped bit as a number.
"""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from sgdwalk.errors import RunFolderError
from sgdwalk.records import NAN, STEP_COLUMNS, EpochNote, Event, SegmentPoint, StepRecord

_FLOAT_COLUMNS = STEP_COLUMNS[1:]  # all but the epoch
SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID",
    f"CREATE TABLE steps (step INTEGER PRIMARY KEY, epoch INTEGER, {', '.join(f'{c} REAL' for c in _FLOAT_COLUMNS)}, "
    "measures TEXT, reasons TEXT, crc32 INTEGER)",
    "CREATE TABLE segments (step INTEGER, alpha REAL, loss REAL, kind TEXT, halfwidth REAL, "
    "PRIMARY KEY (step, alpha)) WITHOUT ROWID",
    "CREATE TABLE epochs (epoch INTEGER, name TEXT, step INTEGER, value REAL, crc32 INTEGER, "
    "PRIMARY KEY (epoch, name))",
    "CREATE TABLE events (sequence INTEGER PRIMARY KEY, step INTEGER, kind TEXT, message TEXT, crc32 INTEGER)",
)
_STEP_FIELDS = ("step", *STEP_COLUMNS, "measures", "reasons", "crc32")

Row = tuple[Any, ...]


@dataclass
class Rows:
    """What is stored, or waits to be stored, of a run."""

    steps: list[Row] = field(default_factory=list)
    points: list[Row] = field(default_factory=list)
    notes: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.steps or self.notes or self.events)

    def add_step(self, record: StepRecord) -> None:
        record = normalized(record)
        step = int(record.step)  # NumPy's numbers would be stored as bytes
        numbers = [_or_null(getattr(record, name)) for name in _FLOAT_COLUMNS]
        points = [(step, float(p.alpha), _or_null(p.loss), p.kind, float(p.halfwidth)) for p in record.segment]
        measures = json.dumps({name: _or_null(value) for name, value in record.measures.items()})
        epoch = None if record.epoch is None else int(record.epoch)
        row = (step, epoch, *numbers, measures, json.dumps(dict(record.reasons)))
        self.steps.append((*row, _checksum(row, *points)))
        self.points.extend(points)

    def add_note(self, note: EpochNote) -> None:
        for name, value in note.values.items():
            row = (int(note.epoch), _text(name), int(note.step), _or_null(value))
            self.notes.append((*row, _checksum(row)))

    def add_event(self, event: Event) -> None:
        row = (int(event.sequence), int(event.step), _text(event.kind), _text(event.message))
        self.events.append((*row, _checksum(row)))

    def before(self, step: int, num_events: int) -> Rows:
        """The rows of the walk as it was before update ``step``, when it had seen ``num_events`` events."""
        return Rows(
            [row for row in self.steps if row[0] < step],
            [row for row in self.points if row[0] < step],
            [row for row in self.notes if row[2] <= step],
            [row for row in self.events if row[0] < num_events],
        )

    def updated_by(self, later: Rows) -> Rows:
        """These rows and the later ones, which win where both have the same key, as they would in the database."""
        return Rows(
            list({row[0]: row for row in self.steps + later.steps}.values()),
            list({row[:2]: row for row in self.points + later.points}.values()),
            list({row[:2]: row for row in self.notes + later.notes}.values()),
            list({row[0]: row for row in self.events + later.events}.values()),
        )


def insert(database: sqlite3.Connection, rows: Rows) -> None:
    """Store rows; a row stored before is stored again, so that a commit whose answer was lost can be repeated."""
    holes = ", ".join("?" * len(_STEP_FIELDS))
    database.executemany(f"INSERT OR REPLACE INTO steps ({', '.join(_STEP_FIELDS)}) VALUES ({holes})", rows.steps)
    database.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?)", rows.points)
    database.executemany(
        "INSERT INTO epochs VALUES (?, ?, ?, ?, ?) ON CONFLICT (epoch, name) "
        "DO UPDATE SET step = excluded.step, value = excluded.value, crc32 = excluded.crc32",
        rows.notes,
    )
    database.executemany("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)", rows.events)


def delete_after(database: sqlite3.Connection, step: int, num_events: int) -> None:
    """Keep what :meth:`Rows.before` keeps."""
    database.execute("DELETE FROM steps WHERE step >= ?", (step,))
    database.execute("DELETE FROM segments WHERE step >= ?", (step,))
    database.execute("DELETE FROM epochs WHERE step > ?", (step,))
    database.execute("DELETE FROM events WHERE sequence >= ?", (num_events,))


def select(database: sqlite3.Connection) -> Rows:
    """All rows of the database, in the order in which the walk made them."""
    return Rows(
        database.execute(f"SELECT {', '.join(_STEP_FIELDS)} FROM steps ORDER BY step").fetchall(),
        database.execute("SELECT step, alpha, loss, kind, halfwidth FROM segments ORDER BY step, alpha").fetchall(),
        database.execute("SELECT epoch, name, step, value, crc32 FROM epochs ORDER BY rowid").fetchall(),
        database.execute("SELECT sequence, step, kind, message, crc32 FROM events ORDER BY sequence").fetchall(),
    )


def decode(rows: Rows) -> tuple[list[StepRecord], list[EpochNote], list[Event]]:
    """The records of rows.

    Raises:
        RunFolderError: a row is not what was written, naming the step, epoch or event.
    """
    points: dict[int, list[Row]] = defaultdict(list)
    for point in rows.points:
        points[point[0]].append(point)
    steps = [_step(row, points.pop(row[0], [])) for row in rows.steps]
    if points:
        raise RunFolderError(f"step {next(iter(points))} has a segment but no row")
    notes: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for row in rows.notes:
        _verify(f"epoch {row[0]}", row[-1], row[:-1])
        notes[row[0], row[2]][row[1]] = _number(row[3])
    for row in rows.events:
        _verify(f"event {row[0]}", row[-1], row[:-1])
    return (
        steps,
        [EpochNote(epoch, step, values) for (epoch, step), values in notes.items()],
        [Event(*row[:-1]) for row in rows.events],
    )


def _step(row: Row, points: list[Row]) -> StepRecord:
    step, epoch, *numbers, measures, reasons, crc32 = row
    _verify(f"step {step}", crc32, row[:-1], *points)
    return StepRecord(
        step,
        epoch,
        *map(_number, numbers),
        segment=tuple([SegmentPoint(alpha, _number(loss), kind, hw) for _, alpha, loss, kind, hw in points]),
        measures={} if measures == "{}" else {name: _number(value) for name, value in json.loads(measures).items()},
        reasons={} if reasons == "{}" else json.loads(reasons),
    )


def normalized(record: StepRecord) -> StepRecord:
    """The same record with each infinity replaced by NaN, and a reason wherever a loss or a number was not finite.

    >>> record = normalized(StepRecord(0, grad_norm=float("inf")))
    >>> record.grad_norm, dict(record.reasons)
    (nan, {'grad_norm': 'the value is +inf'})
    """
    values = {name: getattr(record, name) for name in _FLOAT_COLUMNS} | dict(record.measures)
    infinite = {name: f"the value is {value:+}" for name, value in values.items() if math.isinf(value)}
    undefined = [f"{point.alpha:g}" for point in record.segment if not math.isfinite(point.loss)]
    if not infinite and not undefined:
        return record
    lost = {"segment": f"the loss is not finite at α = {', '.join(undefined)}"} if undefined else {}
    return replace(
        record,
        **{name: NAN if name in infinite else getattr(record, name) for name in _FLOAT_COLUMNS},
        segment=tuple(p if math.isfinite(p.loss) else replace(p, loss=NAN) for p in record.segment),
        measures={name: NAN if name in infinite else value for name, value in record.measures.items()},
        reasons={**lost, **infinite, **record.reasons},
    )


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _number(value: float | None) -> float:
    return NAN if value is None else value


def _text(value: str) -> str:
    """Text that UTF-8 can hold: a message may quote a file name that it cannot."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _checksum(*rows: Row) -> int:
    values = [value for row in rows for value in row]
    # SQLite stores -0.0 as 0 in a REAL column; adding 0.0 makes them one here too.
    numbers = [NAN if v is None else v + 0.0 for v in values if not isinstance(v, str)]
    text = "\0".join([value for value in values if isinstance(value, str)])
    return zlib.crc32(text.encode(), zlib.crc32(struct.pack(f"<{len(numbers)}d", *numbers)))


def _verify(what: str, stored: int, *rows: Row) -> None:
    try:
        intact = _checksum(*rows) == stored
    except (TypeError, ValueError, OverflowError, struct.error):  # damage can change a value's type
        intact = False
    if not intact:
        raise RunFolderError(f"the row of {what} is not what was written (its crc32 differs)")
