"""Schedules: what fires when, what is refused, and how they describe themselves."""

from __future__ import annotations

import pytest

import sgdwalk
from sgdwalk.when import describe


def steps(when, stop: int = 60) -> list[int]:
    return [step for step in range(stop) if when(step)]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (sgdwalk.every(1), list(range(60))),
        (sgdwalk.every(25), [0, 25, 50]),
        (sgdwalk.first_steps(3), [0, 1, 2]),
        (sgdwalk.first_steps(2, epochs=(1, 3)), [0, 1, 20, 21]),
        (sgdwalk.first_steps(15), list(range(10))),
        (sgdwalk.in_epochs(2), list(range(10, 20))),
        (sgdwalk.in_epochs(2) & sgdwalk.every(4), [12, 16]),
        (sgdwalk.first_steps(1, epochs=(2,)) | sgdwalk.every(30), [0, 10, 30]),
    ],
    ids=str,
)
def test_fires_at_the_steps_it_says(when, expected):
    assert steps(when.bind(10)) == expected


def test_first_epoch_needs_no_length():
    assert steps(sgdwalk.first_steps(4).bind(None)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "when", [sgdwalk.in_epochs(1), sgdwalk.first_steps(2, epochs=(2,)), sgdwalk.every(2) & sgdwalk.in_epochs(1)]
)
def test_epochs_of_unknown_length_are_refused(when):
    with pytest.raises(sgdwalk.InputError, match="steps_per_epoch"):
        when.bind(None)
    with pytest.raises(sgdwalk.InputError, match="steps_per_epoch"):
        when(0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sgdwalk.every(0),
        lambda: sgdwalk.every(-3),
        lambda: sgdwalk.every(1.5),  # pyright: ignore[reportArgumentType]
        lambda: sgdwalk.every(True),
        lambda: sgdwalk.first_steps(0),
        lambda: sgdwalk.first_steps(5, epochs=()),
        lambda: sgdwalk.in_epochs(),
        lambda: sgdwalk.in_epochs(0),
    ],
)
def test_a_schedule_that_never_fires_is_refused_where_it_is_made(make):
    with pytest.raises(sgdwalk.InputError, match="never fires"):
        make()


def test_descriptions():
    assert (
        describe(sgdwalk.every(3) | sgdwalk.first_steps(40, epochs=(25, 1)))
        == "(every(3) | first_steps(40, epochs=(1, 25)))"
    )
    assert describe(sgdwalk.in_epochs(3)) == "in_epochs(3)"
    assert describe(sgdwalk.in_epochs(25, 1)) == "in_epochs(1, 25)"
    assert describe(steps) == "steps"
