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


@pytest.mark.parametrize("seed", range(20))
def test_one_step_of_each_block_is_drawn_and_blocks_grow_from_a_dense_start(seed):
    even = steps(sgdwalk.one_in(6, seed=seed), 600)
    assert [step // 6 for step in even] == list(range(100))
    grown = steps(sgdwalk.one_in(5, seed=seed, dense=4), 222)
    # Eight blocks of one, two of 2, two of 3, one of 4, and from 22 on each of 5.
    blocks = [*range(8), 8, 10, 12, 15, 18, *range(22, 222, 5)]
    assert [sum(start <= step for start in blocks) for step in grown] == list(range(1, len(blocks) + 1))
    assert {step % 6 for seed in range(60) for step in steps(sgdwalk.one_in(6, seed=seed), 6)} == set(range(6))


def test_a_dense_start_is_told_and_checked():
    assert describe(sgdwalk.one_in(5, dense=4)) == "one_in(5, seed=0, dense=4)"
    for wrong in (-1, 1.5, True):
        with pytest.raises(sgdwalk.InputError, match="dense"):
            sgdwalk.one_in(5, dense=wrong)
