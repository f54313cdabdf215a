"""A walk's records as they come: kept in memory, or in a run folder and the memory before it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from sgdwalk.provenance import identity
from sgdwalk.records import EpochNote, Event, SegmentPoint, StepRecord
from sgdwalk.run import Run
from sgdwalk.store import RunWriter

logger = logging.getLogger("sgdwalk")


class Journal:
    """Steps, noted values and events of one walk.

    Args:
        info: what describes the run.
        writer: of the run folder; None keeps everything in memory.
    """

    def __init__(self, info: dict[str, Any], writer: RunWriter | None):
        self.info = writer.info if writer is not None else info
        self._writer = writer
        self._steps: list[StepRecord] = []
        self._notes: list[EpochNote] = []
        self._events: list[Event] = []
        self._num_events = 0
        self._told: set[str] = set()

    @property
    def holds_steps(self) -> bool:
        return bool(self._steps) if self._writer is None else self._writer.last_step >= 0

    @property
    def run(self) -> Run:
        """Everything so far, stored or not."""
        if self._writer is not None:
            return Run(*self._writer.read(), path=self._writer.folder)
        return Run(self.info, self._steps, self._notes, self._events)

    @property
    def can_become_another(self) -> bool:
        """Whether the journal may be that of another run from here on: a run folder says whose it is."""
        return self._writer is None and not self._steps

    def identity(self) -> dict[str, Any]:
        """Which run this is, and what makes it that one; plain values."""
        return {**{key: self.info.get(key) for key in ("id", "name", "created")}, "what": identity(self.info)}

    def append(self, record: StepRecord) -> None:
        self._steps.append(record) if self._writer is None else self._writer.append(record)

    def note(self, note: EpochNote) -> None:
        self._notes.append(note) if self._writer is None else self._writer.note_epoch(note)

    def event(self, step: int, kind: str, message: str, *, show: bool = False) -> None:
        """Keep an event; ``show`` also tells the person at the terminal."""
        event = Event(self._num_events, step, kind, message)
        self._num_events += 1
        self._events.append(event) if self._writer is None else self._writer.add_event(event)
        if show:
            logger.warning("step %d: %s", step, message)

    def tell_once(self, step: int, kind: str, message: str) -> None:
        """Keep and show an event of a kind that would otherwise come at every update."""
        if kind not in self._told:
            self._told.add(kind)
            self.event(step, kind, message, show=True)

    def commit_if_due(self) -> None:
        if self._writer is not None:
            self._writer.commit_if_due()

    def commit(self, step: int, *, patient: bool = False) -> None:
        """Store what is pending; where the disk fails it waits in memory, and that is told once."""
        if self._writer is None or self._writer.commit(patient=patient):
            return
        if self._writer.last_error is not None:
            message = f"{self._writer.last_error} Training goes on; the records wait in memory."
            self.tell_once(step, "store_failed", message)

    def state_dict(self) -> dict[str, Any]:
        parts = {"steps": self._steps, "notes": self._notes, "events": self._events}
        plain = {name: [dataclasses.asdict(record) for record in records] for name, records in parts.items()}
        return {"num_events": self._num_events, "records": plain if self._writer is None else None}

    def load_state_dict(self, step: int, state: Mapping[str, Any], run: str) -> None:
        """Go back to where the walk stood before update ``step``, as the run whose state it is."""
        self._num_events = state["num_events"]
        if self._writer is not None:
            self._writer.rewind(step, self._num_events)
            stored = self._writer.last_step + 1
            if stored < step:
                message = f"The rows of steps {stored} to {step - 1} were not stored before the run ended."
                self.event(step, "missing_steps", message, show=True)
            self.event(step, "resumed", f"Resumed before step {step}.")
            return
        self.info = {**self.info, "id": run}
        if state["records"] is not None:
            plain = state["records"]
            self._steps = [
                StepRecord(**{**record, "segment": tuple(SegmentPoint(**point) for point in record["segment"])})
                for record in plain["steps"]
            ]
            self._notes = [EpochNote(**note) for note in plain["notes"]]
            self._events = [Event(**event) for event in plain["events"]]
        elif step:
            message = f"The rows of steps 0 to {step - 1} are in the run folder that the walk had until here."
            self.event(step, "missing_steps", message, show=True)

    def close(self) -> str | None:
        """Store everything and let go of the folder; returns what could not be stored, in words."""
        if self._writer is None or self._writer.close():
            return None
        return f"{self._writer.num_pending} records could not be stored: {self._writer.last_error}"
