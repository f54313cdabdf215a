"""How far a training is and how long it still takes, on stderr: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

SECONDS_BETWEEN_LINES = 10.0
"""How often a training says a plain line where there is no terminal."""


class ProgressDisplay:
    """Shows trainings by name: ``update("digits-gd", 12, 60, 0.2)`` says that 12 of 60 updates are done, a fifth of the
    work. Time left is what the rest of the work takes at the rate since this process began with it.
    """

    def __init__(self, console: Console | None = None):
        self._console = Console(file=sys.stderr) if console is None else console
        self._started: dict[str, tuple[float, float]] = {}  # name -> (seconds, fraction) at its first update
        self._said: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def update(self, name: str, num_done: int, num_updates: int, fraction: float) -> None:
        """Say that ``num_done`` of ``num_updates`` updates are done, which is ``fraction`` of the work."""
        now = time.monotonic()
        started, fraction_before = self._started.setdefault(name, (now, fraction))
        here = fraction - fraction_before
        seconds_left = (now - started) / here * (1 - fraction) if here > 0 else None
        detail = f"update {num_done:,} of {num_updates:,}, {fraction:.0%}"
        if seconds_left is not None:
            detail += f", {duration(seconds_left)} left" if num_done < num_updates else f", {duration(now - started)}"
        if self._console.is_terminal:
            task = self._tasks.get(name)
            if task is None:
                task = self._tasks[name] = self._bars.add_task(name, total=1.0, detail="")
            self._bars.update(task, completed=fraction, detail=detail)
        elif num_done == num_updates or now - self._said.get(name, started) >= SECONDS_BETWEEN_LINES:
            self._said[name] = now
            self._console.out(f"{name}: {detail}", highlight=False)


def duration(seconds: float) -> str:
    """A time span for a person.

    >>> duration(8.4), duration(125), duration(7300)
    ('8 s', '2:05 min', '2:01 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
