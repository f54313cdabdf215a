"""What is due at which update of a walk: a schedule for cosine, distance and norms, one for segments and one a measure.

Where every update is looked at each is asked after the update. Else it must be known before whether θ_t, and one before
that whether g_{t-1} will be needed: so each is asked one update ahead, once, and its answer kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

from sgdwalk.when import StepPredicate, When, describe, every

COLUMNS, SEGMENT = "columns", "segment"
Answer = tuple[set[str], dict[str, Exception]]
"""What is due at a step, and which schedules raised when they were asked."""


class Schedules:
    """The schedules of one walk by name, None for what is never due.

    Args:
        columns: updates at which cosine, distance and norms are kept though nothing else is due.
        named: ``segment`` and the measures; may change while the walk goes on.
        switched_off: names that are due no more; grows while the walk goes on.
    """

    def __init__(
        self,
        columns: StepPredicate | None,
        named: MutableMapping[str, StepPredicate | None],
        switched_off: set[str],
    ):
        self.named = named
        self.fired: set[str] = set()
        """What was due at some update that was made."""
        own = columns if isinstance(columns, When) and columns.of_step_alone else None
        self.always_looks = own is not None and describe(own) == describe(every(1))
        """Whether every update is looked at, whatever else is due."""
        self._columns = columns
        self._switched_off = switched_off
        self._answers: dict[int, Answer] = {}
        self._live: list[tuple[str, StepPredicate]] = []
        self._num_off = -1

    def at(self, step: int, failed: Callable[[str, Exception], None]) -> set[str]:
        """``columns``, ``segment`` and names of measures: what is to be kept of the update that is made now.

        ``failed`` is told of a schedule that raised, and what; it is expected to switch it off.
        """
        if self._are_columns_alone:
            return {COLUMNS}
        due, errors = self._ask(step) if self.always_looks and step not in self._answers else self._answer(step)
        for name in list(errors):
            failed(name, errors[name])
            del errors[name]
        return due - self._switched_off

    def anything_at(self, step: int) -> bool:
        """Whether anything is due at an update to come; a schedule that raises is told when it comes."""
        return bool(self._answer(step)[0] - self._switched_off)

    def columns_alone_at(self, step: int) -> bool:
        """Whether columns and nothing else are due at the update to come, and those at every one. False where a
        schedule may be another function than of the step: that is asked after the update."""
        if self._are_columns_alone:
            return True
        others = [schedule for name, schedule in self._asked() if name != COLUMNS]
        if not self.always_looks or not all(isinstance(each, When) and each.of_step_alone for each in others):
            return False
        return self._answer(step)[0] <= {COLUMNS}

    @property
    def _are_columns_alone(self) -> bool:
        """Whether columns are due at every update and nothing else ever is, as in most walks without data."""
        asked = self._asked()
        return self.always_looks and len(asked) == 1 and asked[0][0] == COLUMNS

    def segment_at(self, step: int) -> bool:
        """Whether a segment is due at the update to come, as far as can be told now."""
        if not self.always_looks:
            return SEGMENT in self._answer(step)[0] - self._switched_off
        schedule = self.named[SEGMENT]
        try:
            return schedule is not None and bool(schedule(step))
        except Exception:  # it will be told when the step is taken
            return False

    def _answer(self, step: int) -> Answer:
        if step not in self._answers:
            before = {other: answer for other, answer in self._answers.items() if other == step - 1}
            self._answers = before | {step: self._ask(step)}
        return self._answers[step]

    def _ask(self, step: int) -> Answer:
        due, errors = set(), {}
        for name, schedule in self._asked():
            try:
                if schedule(step):
                    due.add(name)
            except Exception as error:
                errors[name] = error
        return due, errors

    def change(self, named: Mapping[str, StepPredicate | None]) -> None:
        """Take other schedules for some names, from the next update on."""
        self.named.update(named)
        self.forget()

    def forget(self) -> None:
        """What was asked so far counts no more: the walk goes on from another update."""
        self._answers, self._num_off = {}, -1

    def never_fired(self) -> list[str]:
        """What was asked for and was due at no update, in words."""
        watched = SEGMENT if self.named[SEGMENT] is not None else "sampled"
        asked = {"when": (watched, self.named.get(watched)), COLUMNS: (COLUMNS, self._columns)}
        return [
            f"{argument}={describe(schedule)}"
            for argument, (name, schedule) in asked.items()
            if schedule is not None and name not in self.fired | self._switched_off
        ]

    def _asked(self) -> list[tuple[str, StepPredicate]]:
        """The schedules that are not switched off; listed anew only where one was, or another was taken."""
        if len(self._switched_off) != self._num_off:
            named = {COLUMNS: self._columns, **self.named}
            self._live = [
                (name, schedule)
                for name, schedule in named.items()
                if schedule is not None and name not in self._switched_off
            ]
            self._num_off = len(self._switched_off)
        return self._live
