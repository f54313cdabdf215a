"""What each idea of the certified segment brings: the procedure without it, on stored losses of real nets' units.

    python benchmarks/certified_ideas.py [--samplings 500] [--tolerance 0.05]

By count, so no machine matters: passes over the data a step (the end, the samples, and one more for each point that is
evaluated exactly), and the share of samplings whose intervals miss. The units are those of the tests
(tests/make_unit_losses.py).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import common
from sgdwalk import looks, multilevel, sample_sizes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import test_certified_coverage as stored_units

INSIDE = 9
"""Points between the ends."""


def no_certain_units() -> Any:
    return mock.patch.object(looks, "with_certainty", return_value=0)


def certain_units_whatever_their_signs() -> Any:
    return mock.patch.object(looks, "with_certainty", lambda signs, most: max(most, sample_sizes.outstanding(signs)))


@contextlib.contextmanager
def a_first_look_without_the_chord() -> Iterator[None]:
    def without(spreads: Any, leeway: Any, num_units: int) -> sample_sizes.Sizes:
        sizes = plan(spreads, np.ones_like(leeway), num_units)
        return sizes._replace(second=np.full_like(sizes.second, sizes.second.max()))

    plan = sample_sizes.plan
    with mock.patch.object(sample_sizes, "plan", without):
        yield


@contextlib.contextmanager
def nine_independent_points() -> Iterator[None]:
    independent = mock.patch.multiple(multilevel, num_shapes=lambda errors: float(INSIDE), CAUTION=1.0)
    with independent, mock.patch.object(sample_sizes, "SHAPES", float(INSIDE)):
        yield


def no_covariance() -> Any:
    def without(
        chord: Any, certain: Any, first: Any, second: Any, num_random: int, counts: Any = None
    ) -> multilevel.Estimate:
        found = estimate(chord, certain, first, second, num_random, counts)
        n1, n2 = len(first), len(second) if counts is None else counts
        of_first, of_second = num_random**2 * first.var(axis=0, ddof=1), found.spreads[1] ** 2
        part1, part2 = of_first * (1 / n1 - 1 / num_random), of_second * (1 / n2 - 1 / num_random)
        degrees = multilevel.welch(part1, n1, part2, n2)
        return found._replace(
            deviation=np.sqrt(part1 + part2),
            degrees=np.fmax(degrees, n2 - 1),
            spreads=np.sqrt([of_first, of_second]),
        )

    estimate = multilevel.estimate
    return mock.patch.object(looks, "estimate", without)


def as_many_units_at_every_point() -> Any:
    def second_look(*arguments: Any) -> tuple[int, Any]:
        first, seconds = wanted(*arguments)
        return first, np.full_like(seconds, seconds.max())

    wanted = sample_sizes.second_look
    return mock.patch.object(looks, "second_look", second_look)


def no_planning() -> Any:
    return mock.patch.object(
        sample_sizes, "plan", lambda spreads, leeway, num_units: sample_sizes.smallest(num_units, len(leeway) - 1)
    )


def no_units_for_heavy_tails() -> Any:
    return mock.patch.object(looks, "kurtosis", return_value=1.0)


def no_wider_intervals() -> Any:
    return mock.patch.object(looks, "WIDER", 1.0)


def all_points_alike() -> Any:
    return mock.patch.object(looks.Wanted, "allowed", lambda wanted, x: np.full(len(x), wanted.tolerated(x)))


def all_points_to_the_end() -> Any:
    return mock.patch.object(looks, "contenders", lambda losses, halfwidths: np.flatnonzero(halfwidths > 0))


@contextlib.contextmanager
def one_look() -> Iterator[None]:
    with mock.patch.object(multilevel, "LOOKS", 1), mock.patch.object(looks, "WORTHWHILE", -1.0):
        yield


CURVE = 'every loss as well as the height: certify="curve"'
VARIANTS: dict[str, Callable[[], Any]] = {
    "all ideas": contextlib.nullcontext,
    "without units taken for their signs": no_certain_units,
    "units taken for their signs, however alike these are": certain_units_whatever_their_signs,
    "nine independent points": nine_independent_points,
    "without the levels' covariance": no_covariance,
    "without planning by earlier steps": no_planning,
    "without units for heavy tails": no_units_for_heavy_tails,
    "without wider intervals above the floor": no_wider_intervals,
    "every point planned as if it were the floor": all_points_alike,
    "the first look with as many units at every point": a_first_look_without_the_chord,
    "the second look with as many units at every point": as_many_units_at_every_point,
    "the second and the exact look at every point": all_points_to_the_end,
    "with one look before the exact one": one_look,
    "one level: true - chord": contextlib.nullcontext,
    CURVE: contextlib.nullcontext,
}


def one_level(case: Any) -> Any:
    """The same units where every one drawn is evaluated at all points, with no level between."""
    both = case.first + case.second
    return stored_units.Stored(case.chord, np.zeros_like(both), both, case.signs, case.is_first)


def cases() -> Iterator[tuple[str, Any]]:
    yield from stored_units.stored().items()
    for name in ("kinks_1%", "kinks_1%_alone", "label_noise", "correlated", "anticorrelated"):
        yield name, stored_units.made(name)


def measure(case: Any, variant: str, options: Any) -> tuple[float, float, float]:
    """Passes a step, share of samplings that end exact, share that miss."""
    if variant.startswith("one level"):
        case = one_level(case)
    case.num_evaluated = 0
    with VARIANTS[variant]():
        wanted = {"samplings": options.samplings, "tolerance": options.tolerance, "curve": variant == CURVE}
        misses, ended = stored_units.sampled(case, **wanted)
    exact = ended[3] / options.samplings
    sampled = case.num_evaluated / options.samplings / len(case.signs)
    return 1 + sampled, exact, misses / options.samplings


def main() -> None:
    options = common.arguments((__doc__ or "").splitlines()[0], samplings=500, tolerance=0.05)
    raw: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, case in cases():
        raw[name] = {variant: measure(case, variant, options) for variant in VARIANTS}
        print(name, {variant: tuple(round(value, 3) for value in found) for variant, found in raw[name].items()})
    real = list(stored_units.stored())
    rows = [
        {
            "procedure": variant,
            "passes a step, mean over real steps": float(np.mean([raw[name][variant][0] for name in real])),
            "steps that end exact": float(np.mean([raw[name][variant][1] for name in real])),
            "misses, mean over real steps": float(np.mean([raw[name][variant][2] for name in real])),
            "misses, worst case": float(max(found[variant][2] for found in raw.values())),
        }
        for variant in VARIANTS
    ]
    common.report(options.out, "certified_ideas", vars(options), raw, rows)


if __name__ == "__main__":
    main()
