"""When to measure: predicates ``step -> bool``.

Any callable that takes the step (an ``int`` counted from 0) serves. The ones here combine with ``|`` and ``&``,
describe themselves in the run's record, and say before training starts when they can never fire.

>>> import sgdwalk
>>> when = sgdwalk.every(10) | sgdwalk.first_steps(3)
>>> [step for step in range(25) if when(step)]
[0, 1, 2, 10, 20]
"""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Callable

from sgdwalk.errors import InputError

StepPredicate = Callable[[int], bool]


class When:
    """A predicate over steps that can be described and combined; epochs become steps once their length is bound."""

    of_step_alone = False
    """Whether it is known to be a function of the step, which may be asked at any time; those of this module are."""

    def __init__(self, description: str, fires: Callable[[int, int | None], bool], *, needs_epochs: bool = False):
        self.description = description
        self.needs_epochs = needs_epochs
        self._fires = fires
        self._steps_per_epoch: int | None = None

    def bind(self, steps_per_epoch: int | None) -> When:
        """The same predicate knowing how many updates an epoch has; raises where it must know and cannot."""
        if self.needs_epochs and steps_per_epoch is None:
            raise InputError(
                f"The schedule {self.description} counts epochs, but the length of an epoch is not known: "
                "pass steps_per_epoch=len(loader) to watch()."
            )
        bound = When(self.description, self._fires, needs_epochs=self.needs_epochs)
        bound._steps_per_epoch, bound.of_step_alone = steps_per_epoch, self.of_step_alone
        return bound

    def __call__(self, step: int) -> bool:
        if self.needs_epochs and self._steps_per_epoch is None:
            self.bind(None)
        return self._fires(step, self._steps_per_epoch)

    def __or__(self, other: When) -> When:
        return self._combined(other, "|", lambda a, b: a or b)

    def __and__(self, other: When) -> When:
        return self._combined(other, "&", lambda a, b: a and b)

    def _combined(self, other: When, symbol: str, combine: Callable[[bool, bool], bool]) -> When:
        if not isinstance(other, When):
            return NotImplemented
        combined = When(
            f"({self.description} {symbol} {other.description})",
            lambda step, length: combine(self._fires(step, length), other._fires(step, length)),
            needs_epochs=self.needs_epochs or other.needs_epochs,
        )
        combined.of_step_alone = self.of_step_alone and other.of_step_alone
        return combined

    def __repr__(self) -> str:
        return self.description


def describe(when: StepPredicate) -> str:
    """The predicate in words, for the run's record: its own, or the function's name."""
    return repr(when) if isinstance(when, When) else getattr(when, "__qualname__", type(when).__qualname__)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, or the schedule never fires; got {value!r}.")
    return value


class _OfStep(When):
    """One of this module's own."""

    of_step_alone = True


def every(k: int) -> When:
    """Fire at steps 0, k, 2k, …

    >>> import sgdwalk
    >>> [step for step in range(10) if sgdwalk.every(4)(step)]
    [0, 4, 8]
    """
    _positive("every(k): k", k)
    return _OfStep(f"every({k})", lambda step, _: step % k == 0)


def first_steps(count: int, *, epochs: tuple[int, ...] = (1,)) -> When:
    """Fire at the first ``count`` steps of each of the given epochs (counted from 1).

    The paper looks at the first 40 updates of epochs 1, 2, 25 and 100 (section 3.1, Figures 2, 14 to 16). Epochs other
    than the first need ``steps_per_epoch`` to be given to ``watch``.

    >>> import sgdwalk
    >>> when = sgdwalk.first_steps(2, epochs=(1, 3)).bind(10)
    >>> [step for step in range(40) if when(step)]
    [0, 1, 20, 21]
    """
    _positive("first_steps(count): count", count)
    chosen = _chosen_epochs("first_steps", epochs)
    if chosen == {1}:
        # The first epoch starts at step 0 whatever its length; a known length still ends it.
        return _OfStep(
            f"first_steps({count})", lambda step, length: step < (count if length is None else min(count, length))
        )

    def fires(step: int, length: int | None) -> bool:
        assert length is not None
        return step // length + 1 in chosen and step % length < count

    return _OfStep(f"first_steps({count}, epochs={tuple(sorted(chosen))})", fires, needs_epochs=True)


def in_epochs(*epochs: int) -> When:
    """Fire at every step of the given epochs (counted from 1), as the paper's Tables 1 and 2 do.

    >>> import sgdwalk
    >>> when = sgdwalk.in_epochs(2).bind(3)
    >>> [step for step in range(10) if when(step)]
    [3, 4, 5]
    """
    chosen = _chosen_epochs("in_epochs", epochs)

    def fires(step: int, length: int | None) -> bool:
        assert length is not None
        return step // length + 1 in chosen

    return _OfStep(f"in_epochs({', '.join(map(str, sorted(chosen)))})", fires, needs_epochs=True)


def one_in(k: int, *, seed: int = 0, dense: int = 0) -> When:
    """Fire at one step of each k consecutive ones, drawn at random: a fair sample of the steps, spread evenly.

    Args:
        k: length of a block of steps.
        seed: of the draws.
        dense: take the start of training more densely, where a walk changes fastest: a block that begins at step t is
            t // dense steps long, at least one and at most k. The first 2 · dense steps are all taken then.

    >>> import sgdwalk
    >>> steps = [step for step in range(40) if sgdwalk.one_in(10)(step)]
    >>> [step // 10 for step in steps]
    [0, 1, 2, 3]
    >>> [step for step in range(9) if sgdwalk.one_in(10, dense=4)(step)][:8]
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    _positive("one_in(k): k", k)
    if isinstance(dense, bool) or not isinstance(dense, int) or dense < 0:
        raise InputError(f"one_in(k, dense=...) must be an integer of at least 0; got {dense!r}.")
    starts = [0]
    while dense and max(1, starts[-1] // dense) < k:
        starts.append(starts[-1] + max(1, starts[-1] // dense))

    @functools.lru_cache(maxsize=8)
    def drawn(start: int, length: int) -> int:
        return start + random.Random(f"sgdwalk, one in {k}, seed {seed}, from {start}").randrange(length)

    def fires(step: int, _: int | None) -> bool:
        if step < starts[-1]:
            index = bisect.bisect_right(starts, step) - 1
            start, length = starts[index], starts[index + 1] - starts[index]
        else:
            start, length = step - (step - starts[-1]) % k, k
        return step == drawn(start, length)

    return _OfStep(f"one_in({k}, seed={seed}{f', dense={dense}' if dense else ''})", fires)


def _chosen_epochs(name: str, epochs: tuple[int, ...]) -> frozenset[int]:
    if not epochs:
        raise InputError(f"{name}() without an epoch never fires: name at least one epoch, counted from 1.")
    return frozenset(_positive(f"{name}: an epoch", epoch) for epoch in epochs)
