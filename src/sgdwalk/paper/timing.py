"""How long watched updates took, kept beside the run: its records are bitwise reproducible, and times are not."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TIMING_FILE = "timing.json"


class Timing(NamedTuple):
    """Time of the updates of a training at which the segment, and nothing else, was measured."""

    updates: int = 0
    seconds: float = 0.0
    """Between the optimizer's call and its return: the update itself, cosine, distance and norms, and the segment."""


class Stopwatch:
    """Adds up the time of chosen updates; goes on from what the run's folder holds."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._timing = read_timing(folder) or Timing()

    @contextlib.contextmanager
    def running(self, counts: bool) -> Iterator[None]:
        """Around an update; its time is added where it counts."""
        start = time.perf_counter()
        yield
        if counts:
            updates, seconds = self._timing
            self._timing = Timing(updates + 1, seconds + time.perf_counter() - start)

    def save(self) -> None:
        """Write it into the run's folder."""
        partial = self._folder / f".{TIMING_FILE}.partial"
        partial.write_text(json.dumps(self._timing._asdict()) + "\n", encoding="utf-8")
        os.replace(partial, self._folder / TIMING_FILE)


def read_timing(folder: Path) -> Timing | None:
    """What a training's folder holds of it; None where nothing was kept."""
    try:
        return Timing(**json.loads((folder / TIMING_FILE).read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # torn by a power cut: times are no results
        return None
