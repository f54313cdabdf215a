"""What is due at which update of a walk: a schedule for cosine, distance and norms, one for segments and one a measure.

Each is asked once for every update, so that one that counts its calls serves, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping

from sgdwalk.when import StepPredicate, When, describe, every

COLUMNS, SEGMENT = "columns", "segment"


class Schedules:
    """The schedules of one walk by name, None for what is never due.

    Args:
        columns: updates at which cosine, distance and norms are kept though nothing else is due.
        named: ``segment`` and the measures; may change while the walk goes on.
        switched_off: names that are due no more; grows while the walk goes on.
        failed: told of a schedule that raised, and what; expected to switch it off.
    """

    def __init__(
        self,
        columns: StepPredicate | None,
        named: MutableMapping[str, StepPredicate | None],
        switched_off: set[str],
        failed: Callable[[str, Exception], None],
    ):
        self.named = named
        self.fired: set[str] = set()
        """What was due at some update that was made."""
        self.always_looks = isinstance(columns, When) and describe(columns) == describe(every(1))
        """Whether every update is looked at, whatever else is due."""
        self._columns = columns
        self._switched_off = switched_off
        self._failed = failed
        self._asked: dict[int, tuple[set[str], dict[str, Exception]]] = {}
        """What is due at a step, and which schedules raised when they were asked."""

    def at(self, step: int) -> set[str]:
        """``columns``, ``segment`` and names of measures: what is to be kept of the update that is made now."""
        due, errors = self._ask(step)
        while errors:
            self._failed(*errors.popitem())
        return due - self._switched_off

    def anything_at(self, step: int) -> bool:
        """Whether anything is due at an update to come; a schedule that raises is told when it comes."""
        return bool(self._ask(step)[0] - self._switched_off)

    def _ask(self, step: int) -> tuple[set[str], dict[str, Exception]]:
        if step not in self._asked:
            due, errors = set(), {}
            for name, schedule in self._live():
                try:
                    if schedule(step):
                        due.add(name)
                except Exception as error:
                    errors[name] = error
            self._asked = {other: answer for other, answer in self._asked.items() if other == step - 1}
            self._asked[step] = due, errors
        return self._asked[step]

    def change(self, named: Mapping[str, StepPredicate | None]) -> None:
        """Take other schedules for some names, from the next update on."""
        self.named.update(named)
        self.forget()

    def forget(self) -> None:
        """What was asked so far counts no more: the walk goes on from another update."""
        self._asked = {}

    def never_fired(self) -> list[str]:
        """What was asked for and was due at no update, in words."""
        watched = SEGMENT if self.named[SEGMENT] is not None else "sampled"
        asked = {"when": (watched, self.named.get(watched)), COLUMNS: (COLUMNS, self._columns)}
        return [
            f"{argument}={describe(schedule)}"
            for argument, (name, schedule) in asked.items()
            if schedule is not None and name not in self.fired | self._switched_off
        ]

    def _live(self) -> Iterator[tuple[str, StepPredicate]]:
        for name, schedule in {COLUMNS: self._columns, **self.named}.items():
            if schedule is not None and name not in self._switched_off:
                yield name, schedule
