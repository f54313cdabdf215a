"""Ctrl-C and SIGTERM as a wish that a loop grants between two updates."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class StopOnSignal:
    """While active, the first SIGINT or SIGTERM is only remembered; a second one ends the process at once.

    A loop asks ``stop()`` where it can end cleanly. ``exit_code`` is the shell's for what came: 130 or 143.

    >>> import os
    >>> with StopOnSignal() as stop:
    ...     os.kill(os.getpid(), signal.SIGINT)
    ...     stop(), stop.exit_code
    (True, 130)
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal that came; 0 when none did."""
        return 0 if self._received is None else 128 + self._received

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
