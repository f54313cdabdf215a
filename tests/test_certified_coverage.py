"""The coverage of the certified intervals through the whole adaptive procedure, on units of real nets and on made ones.

``unit_losses.npz`` holds, for steps of real nets, what the two levels of interpolation leave out for every unit;
``make_unit_losses.py`` wrote it. Each case is sampled 2,000 times with the procedure that :func:`sgdwalk.watch` uses.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from sgdwalk import looks, multilevel, sample_sizes
from sgdwalk.certified import REMEMBERED
from sgdwalk.records import EXACT_LOOK
from sgdwalk.valley import barrier

SAMPLINGS = 2_000
MOST_MISSES = int(binom.ppf(0.9999, SAMPLINGS, multilevel.MISSES))
ALPHAS = np.arange(11) / 10
NOISE = 2e-8


@dataclass
class Stored:
    """A step whose units are all known; stands in for the evaluation of a net."""

    chord: np.ndarray
    first: np.ndarray
    second: np.ndarray
    signs: np.ndarray
    is_first: bool = False
    """Whether no step like this one came before it, by which to plan."""
    num_evaluated: int = 0
    widest: float = 0.0

    @property
    def losses(self):
        return self.chord + self.first.sum(axis=0) + self.second.sum(axis=0)

    @functools.cached_property
    def nodes(self):
        """Points at which the middle is the truth."""
        return set(np.flatnonzero(~self.second.any(axis=0)))

    def middle_minus_chord(self, units):
        self.num_evaluated += len(units)
        return self.first[units]

    def true_minus_middle(self, units, inside):
        self.num_evaluated += len({*inside} - self.nodes) * len(units)
        found = np.zeros((len(units), len(self.chord)))
        found[:, inside] = self.second[np.ix_(units, inside)]
        return found


@functools.cache
def stored(file="unit_losses.npz"):
    archive = np.load(Path(__file__).parent / file)
    cases: dict[str, dict] = {}
    for key in archive.files:
        name, part = key.split("/")
        cases.setdefault(name, {})[part] = archive[key]
    return {name: Stored(**parts) for name, parts in cases.items()}


def made(name):
    """Units drawn from a rule: what they leave out, in heights, is known in every moment."""
    rng = np.random.default_rng(0)
    num_units, height, scale1, scale2, correlation = 400, 0.01, 0.1, 0.02, 0.0
    match name:
        case "tiny_height":
            height = 1e-6
        case "correlated":
            correlation = 0.9
        case "anticorrelated":
            correlation = -0.9
        case "equal_levels_anticorrelated":
            scale1, scale2, correlation = 0.05, 0.05, -0.9
        case "exploding_step":
            height, scale1, scale2 = 1e3, 5.0, 3.0
        case "cubic":
            scale2 = 0.0
        case "no_residual":
            scale1 = scale2 = 0.0
    parabola = height * 4 * (ALPHAS - 0.5) ** 2
    one, other = rng.standard_normal((2, num_units))
    other = correlation * one + np.sqrt(1 - correlation**2) * other
    shape1, shape2 = ALPHAS * (1 - ALPHAS), ALPHAS * (1 - ALPHAS) * (ALPHAS - 0.5)
    signs = np.abs(one) * rng.uniform(0.5, 1.5, num_units)
    first = height * scale1 * np.outer(one - 0.5, 4 * shape1) / num_units
    second = height * scale2 * np.outer(other, 20 * shape2) / num_units
    if name.startswith("kinks"):
        if name.endswith("alone"):
            first, second = 1e-3 * first, 1e-3 * second
        # A kink is many times what all others do, and shows in how far the outputs move.
        share = 0.01 if "1%" in name else 0.002
        kinked = rng.choice(num_units, max(1, round(share * num_units)), replace=False)
        place = rng.uniform(0.1, 0.9, len(kinked))
        kink = np.maximum(0.0, ALPHAS - place[:, None]) - ALPHAS * (1 - place[:, None])
        size = height * 5 / num_units
        middle = kink[:, 5:6] * 4 * shape1
        first[kinked] += size * middle
        second[kinked] += size * (kink - middle)
        signs[kinked] += rng.uniform(3, 6, len(kinked))
    if name.startswith("diluted"):
        # One example of a whole batch makes the error: the batch's sign is hardly larger than those of others.
        signs, kinked = rng.uniform(0.9, 1.1, num_units), rng.integers(num_units)
        signs[kinked] = 1.5
        kink = np.maximum(0.0, ALPHAS - 0.4) - ALPHAS * 0.6
        middle = kink[5] * 4 * shape1
        first[kinked] += 0.4 * height * middle
        second[kinked] += 0.4 * height * (kink - middle)
    if name == "label_noise":
        wrong = rng.random(num_units) < 0.2
        first[wrong] *= 8
        signs[wrong] *= rng.uniform(0.5, 3, wrong.sum())
    return Stored(parabola, first, second, signs, is_first=name.endswith("alone"))


MADE = (
    *(
        "plain",
        "kinks_0.2%",
        "kinks_1%",
        "kinks_0.2%_alone",
        "kinks_1%_alone",
        "diluted_kink",
        "diluted_kink_alone",
        "label_noise",
        "exploding_step",
        "tiny_height",
        "cubic",
        "no_residual",
    ),
    *("correlated", "anticorrelated", "equal_levels_anticorrelated"),
)


def certified(case, sizes, seed, tolerance, curve=False):
    return looks.certify(
        case,
        case.chord,
        case.signs,
        sizes,
        looks.Wanted(tolerance, NOISE, curve),
        random=np.random.default_rng(seed),
    )


def planned(case, tolerance, curve=False):
    """The sizes of the first look after steps like this one."""
    spreads, num_units = [], len(case.signs)
    leeway = looks.Wanted(tolerance, NOISE, curve).leeway(case.chord)
    for step in range(0 if case.is_first else REMEMBERED):
        sizes = sample_sizes.plan(spreads, leeway, num_units)
        outcome = certified(case, sizes, SAMPLINGS + step, tolerance, curve)
        if outcome is not None:
            spreads.append(outcome.spreads)
    return sample_sizes.plan(spreads, leeway, num_units)


def sampled(case, *, samplings=SAMPLINGS, tolerance=0.05, curve=False):
    """How many samplings missed a loss of the grid, and at how many looks each ended (3: exact).

    Afterwards ``case.num_evaluated`` has the losses of units that all took, and ``case.widest`` the widest interval of
    all in units of the half-width that is tolerated.
    """
    truth, sizes = case.losses, planned(case, tolerance, curve)
    case.num_evaluated, case.widest = 0, 0.0
    rounding, misses, ended = 1e-12 * np.abs(truth), 0, Counter()
    for seed in range(samplings):
        outcome = certified(case, sizes, seed, tolerance, curve)
        if outcome is None:
            ended[EXACT_LOOK] += 1
            case.num_evaluated += 9 * len(case.signs)
            continue
        if not outcome.accepted:
            seen = outcome
            outcome = looks.exact_look(seen, truth.__getitem__)
            case.num_evaluated += int((seen.halfwidths > outcome.halfwidths).sum()) * len(case.signs)
        ended[outcome.looks] += 1
        misses += bool((np.abs(outcome.losses - truth) > outcome.halfwidths + rounding).any())
        height = (outcome.losses[0] + outcome.losses[-1]) / 2 - outcome.losses.min()
        case.widest = max(case.widest, outcome.halfwidths.max() / max(tolerance * height, 4 * NOISE))
    return misses, ended


def names_of_stored():
    archive = np.load(Path(__file__).parent / "unit_losses.npz")
    return sorted({key.split("/")[0] for key in archive.files})


def case_named(name):
    return made(name) if name in MADE else stored()[name]


@pytest.mark.parametrize("name", [*names_of_stored(), *MADE])
def test_the_interval_of_a_segment_holds_as_often_as_it_says(name):
    misses, ended = sampled(case_named(name))
    assert misses <= MOST_MISSES == 138
    assert ended.total() == SAMPLINGS


@pytest.mark.parametrize("name", [*names_of_stored(), "kinks_1%", "label_noise", "correlated", "anticorrelated"])
def test_every_loss_of_a_curve_is_known_as_well_as_the_height(name):
    samplings, case = 500, case_named(name)
    misses, ended = sampled(case, samplings=samplings, curve=True)
    assert misses <= binom.ppf(0.9999, samplings, multilevel.MISSES) == 45
    assert case.widest <= 1 + 1e-12
    if name in ("mlp_late", "vgg11_late", "transformer_late", "groupnorm_late"):
        assert ended[EXACT_LOOK] <= 0.1 * samplings, "or there is nothing in it that exact segments do not have"


def test_without_a_curve_losses_above_the_floor_are_known_less_well():
    case = case_named("mlp_edge")
    found = certified(case, planned(case, 0.05), 0, 0.05)
    assert found.accepted
    height = (found.losses[0] + found.losses[-1]) / 2 - found.losses.min()
    assert found.halfwidths.max() > 0.1 * height


@pytest.mark.parametrize("name", names_of_stored())
def test_the_middle_of_a_stored_step_runs_where_that_of_a_walk_does(name):
    case = case_named(name)
    if name == "resnet56_whole_early":  # an hour's work, stored with its middle at 5
        assert 5 in case.nodes
    else:
        assert multilevel.middle_node(case.chord) in case.nodes


@pytest.mark.parametrize("name", [name for name in names_of_stored() if not name.endswith("edge")])
def test_ordinary_steps_need_no_exact_losses(name):
    _, ended = sampled(case_named(name), samplings=500)
    assert ended[3] <= 0.1 * ended.total()


def test_few_batches_that_differ_as_much_as_the_height_do_where_the_middle_runs_near_the_floor():
    case = case_named("resnet56_early")  # 100 batches of 50 images
    sampled(case, samplings=500)
    assert 1 + case.num_evaluated / 500 / len(case.signs) < 3  # passes over the data, of ten


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("transformer_edge", 0.02),
        ("small_early", 0.01),
        ("small_early", 0.005),
        ("small_late", 0.005),
        ("small_edge", 0.005),
    ],
)
def test_a_tighter_tolerance_holds_too(name, tolerance):
    misses, ended = sampled(case_named(name), tolerance=tolerance)
    assert misses <= MOST_MISSES
    assert ended[1] + ended[2] > SAMPLINGS / 2


@pytest.mark.parametrize("idea", ["the kurtosis", "the wider intervals"])
def test_heavy_tails_are_held_by_more_units_and_by_wider_intervals_where_the_loss_is_high(idea, monkeypatch):
    if idea == "the kurtosis":
        monkeypatch.setattr(looks, "kurtosis", lambda values: 1.0)
    else:
        monkeypatch.setattr(looks, "WIDER", 1.0)
    misses, _ = sampled(case_named("small_early"), samplings=500, tolerance=0.01)
    assert misses > 50, "and without it they are not"


def test_more_units_that_stand_out_do_not_make_the_sample_too_large():
    case = made("kinks_1%_alone")
    spreads = np.repeat([[100.0], [0.3]], 11, axis=1)
    sizes = sample_sizes.plan([spreads] * 4, np.ones(11), len(case.signs))
    assert sizes.certain + sizes.first == len(case.signs)
    assert sample_sizes.outstanding(case.signs) > sizes.certain
    assert certified(case, sizes, seed=0, tolerance=0.05) is not None


def test_a_wider_interval_puts_neither_floor_nor_barrier_in_doubt():
    rng = np.random.default_rng(0)
    for _ in range(500):
        losses = 1 + 0.1 * rng.standard_normal(11)
        halfwidths = 0.1 * np.abs(rng.standard_normal(11)) * (rng.random(11) < 0.8)
        halfwidths[[0, -1]] = 0.0
        significant = 0.05 * rng.random()
        wide = looks.widened(losses, halfwidths, significant)
        assert (halfwidths <= wide).all()
        assert (wide <= looks.WIDER * halfwidths).all()
        low, high = looks.floor_interval(losses, halfwidths)
        assert looks.floor_interval(losses, wide) == (pytest.approx(low, abs=1e-15), high)
        for least in (0.0, significant):
            before, after = barrier(losses, halfwidths, least).item(), barrier(losses, wide, least).item()
            assert before is None or after is before


def test_a_barrier_hardly_higher_than_rounding_stays_decided():
    rng = np.random.default_rng(0)
    for _ in range(500):
        rise = 10 ** rng.uniform(-12, -2)
        losses, halfwidths = np.array([1.0, 0.5, 1.0 + rise, 1.0]), np.array([0.0, 0.01, 0.9 * rise, 0.0])
        assert barrier(losses, halfwidths).item() is True
        assert barrier(losses, looks.widened(losses, halfwidths)).item() is True


@pytest.mark.parametrize("name", ["plain", "mlp_late", "transformer_edge", "small_late", "small_edge"])
def test_a_look_is_planned_for_what_rounding_leaves_of_the_tolerance(name):
    case = case_named(name)
    floor = case.losses.min()
    noise = 0.05 * ((case.losses[0] + case.losses[-1]) / 2 - floor) / 4  # half of the tolerated half-width is rounding
    spreads, exact, wanted = [], 0, looks.Wanted(0.05, noise)
    for step in range(60):
        sizes = sample_sizes.plan(spreads[-REMEMBERED:], wanted.leeway(case.chord), len(case.signs))
        random = np.random.default_rng(step)
        found = looks.certify(case, case.chord, case.signs, sizes, wanted, random=random)
        spreads.append(found.spreads)
        exact += not found.accepted
    assert exact <= 6


def test_the_second_look_holds_by_itself():
    misses, ended = sampled(case_named("vgg11_late"))
    assert misses <= MOST_MISSES
    assert ended[2] > SAMPLINGS / 4


def test_the_second_look_evaluates_only_where_the_floor_may_be(monkeypatch):
    monkeypatch.setattr(looks, "WIDER", 1.0)
    case = case_named("resnet56_late")
    asked = []

    def true_minus_middle(units, inside):
        asked.append((len(units), list(inside)))
        return Stored.true_minus_middle(case, units, inside)

    levels = replace(case)
    levels.true_minus_middle = true_minus_middle
    sizes = sample_sizes.smallest(100, 10)._replace(first=98)
    once, twice = (certified(levels, sizes, seed=0, tolerance=tolerance) for tolerance in (10.0, 0.05))
    assert (once.looks, twice.looks) == (1, 2)
    assert [number for number, _ in asked[:2]] == [7, 7], "6 at random and one whose sign is an outlier"
    assert asked[0][1] == asked[1][1] == list(range(1, 10))
    inside = looks.contenders(once.losses, once.halfwidths).tolist()
    assert 1 < len(inside) < 9
    bands = [points for _, points in asked[2:]]
    assert all({*later} < {*earlier} <= {*inside} for earlier, later in pairwise([inside, *bands]) if later != inside)
    assert len(bands) > 1, "some points have more units than others"
    elsewhere = np.setdiff1d(np.arange(11), inside)
    np.testing.assert_array_equal(twice.losses[elsewhere], once.losses[elsewhere])
    np.testing.assert_array_equal(twice.halfwidths[elsewhere], once.halfwidths[elsewhere])
    assert (twice.halfwidths[inside] <= once.halfwidths[inside]).all()
    assert (twice.halfwidths[bands[-1]] < 0.6 * once.halfwidths[bands[-1]]).all()


def test_the_first_look_has_more_units_where_the_chord_has_its_floor():
    case = case_named("resnet56_late")
    sizes = planned(case, 0.05)
    assert sizes.second.argmax() in np.flatnonzero(np.abs(np.arange(11) - case.chord.argmin()) <= 2)
    assert sizes.second.max() > 1.5 * sizes.second.min()
    assert (sizes.second[[1, 9]] == sample_sizes.FEWEST).all()
    asked = []

    def true_minus_middle(units, inside):
        asked.extend((unit, point) for unit in units for point in inside)
        return Stored.true_minus_middle(case, units, inside)

    levels = replace(case)
    levels.true_minus_middle = true_minus_middle
    found = certified(levels, sizes, seed=0, tolerance=10.0)
    assert found.looks == 1
    assert len(asked) == len({*asked}), "no loss is evaluated twice"
    certain = sample_sizes.with_certainty(case.signs, sizes.certain)
    counts = np.bincount([point for _, point in asked], minlength=11)
    np.testing.assert_array_equal(counts[1:-1], certain + sizes.second[1:-1])


def test_units_are_taken_with_certainty_where_their_signs_tell_them_apart():
    alike, apart, one = case_named("vgg11_early"), made("kinks_1%"), made("diluted_kink")
    assert sample_sizes.with_certainty(alike.signs, 2) == 0
    assert sample_sizes.with_certainty(apart.signs, 2) >= 2
    assert sample_sizes.with_certainty(one.signs, 2) == 1
    one.signs = np.ones_like(one.signs)
    misses, _ = sampled(one, samplings=500)
    assert misses > 250, "or the case shows nothing"


def test_the_exact_look_leaves_no_doubt_about_the_height_and_evaluates_few_points():
    case = case_named("resnet56_early")
    floor, asked = case.losses.min(), []

    def loss_at(point):
        asked.append(point)
        return case.losses[point]

    for seed in range(100):
        seen = certified(case, sample_sizes.smallest(100, 10), seed, tolerance=0.05)
        found = looks.exact_look(seen, loss_at)
        assert looks.floor_interval(found.losses, found.halfwidths)[0] == found.losses.min()
        assert (
            found.losses.min() == pytest.approx(floor, rel=1e-14)
            or (abs(found.losses - case.losses) > found.halfwidths).any()
        )
    assert len(asked) < 100 * 6.5


def test_a_standard_error_three_times_too_small_is_found_out(monkeypatch):
    estimate = multilevel.estimate

    def too_sure(*arguments):
        found = estimate(*arguments)
        return found._replace(deviation=found.deviation / 3)

    monkeypatch.setattr(looks, "estimate", too_sure)
    misses, _ = sampled(case_named("transformer_edge"))
    assert misses > MOST_MISSES


def test_without_units_taken_for_their_signs_rare_kinks_are_missed():
    case = made("kinks_1%_alone")
    case.signs = np.ones_like(case.signs)
    misses, _ = sampled(case, samplings=500)
    assert misses > 250


def test_the_variance_is_that_of_the_estimate_and_the_estimate_has_no_bias():
    rng = np.random.default_rng(0)
    num_units, n1, n2 = 60, 20, 8
    mixing = np.array([[1.0, -0.8], [0.0, 0.6]])
    values = rng.standard_normal((num_units, 2)) @ mixing + 0.3
    first, second = values[:, :1], values[:, 1:]
    truth = values.sum()
    found, variances = [], []
    for _ in range(20_000):
        drawn = rng.permutation(num_units)
        one = multilevel.estimate(np.zeros(1), np.zeros(1), first[drawn[:n1]], second[drawn[:n2]], num_units)
        found.append(one.losses[0])
        variances.append(one.deviation[0] ** 2)
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.mean(variances) == pytest.approx(np.var(found), rel=0.03)
    without_covariance = num_units**2 * (
        first.var(ddof=1) * (1 / n1 - 1 / num_units) + second.var(ddof=1) * (1 / n2 - 1 / num_units)
    )
    assert without_covariance > 1.1 * np.var(found)


def test_the_second_look_is_as_large_at_each_point_as_what_the_first_saw_asks_for():
    spreads = np.array([[8.0] * 5, [0.0, 0.5, 2.0, 4.0, 100.0]])
    first, seconds = sample_sizes.second_look(spreads, 28, 6, 448)
    assert seconds[0] == 6
    assert seconds[1] < seconds[2] < seconds[3]
    assert seconds[4] == 448, "no more than there are"
    assert first >= seconds.max()
    first, seconds = sample_sizes.second_look(spreads[:, :4], 28, 6, 448)
    variances = spreads[0, :4] ** 2 * (1 / first - 1 / 448) + spreads[1, :4] ** 2 * (1 / seconds - 1 / 448)
    width = multilevel.quantile(seconds - 1, sample_sizes.SHAPES) * np.sqrt(variances)
    assert (width < 1).all()
    assert (width[2:] > 0.5 * sample_sizes.AIMS[1]).all(), "and not much smaller than wanted"


def test_sizes_are_the_cheapest_of_those_that_do():
    rng = np.random.default_rng(0)
    for _ in range(20):
        spreads = rng.uniform(0.0, 6.0, (2, 4))
        first, seconds = sample_sizes.sizes_for(spreads, 300, 0.7, 12, 6)

        def width(one, others, spreads=spreads):
            parts = spreads[0] ** 2 * (1 / one - 1 / 300), spreads[1] ** 2 / others
            with np.errstate(invalid="ignore"):
                degrees = sum(parts) ** 2 / (parts[0] ** 2 / (one - 1) + parts[1] ** 2 / (others - 1))
            square = np.maximum(sum(parts) - spreads[1] ** 2 / 300, 0.0)
            return multilevel.quantile(np.fmax(degrees, others - 1), sample_sizes.SHAPES) * np.sqrt(square)

        assert (width(first, seconds) < 1.1 * 0.7).all()
        cost = max(first, seconds.max()) + seconds.sum()
        for one in range(12, 301, 4):
            others = np.full(4, 6)
            while one >= others.max() and (short := width(one, others) > 0.7).any() and (others[short] < 300).all():
                others = others + short
            assert not (width(one, others) <= 0.7).all() or max(one, others.max()) + others.sum() > 0.93 * cost


def test_a_unit_of_the_second_level_counts_only_where_it_was_evaluated():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 20, 3))
    counts = np.array([5, 12, 20])
    ragged = np.where(np.arange(20)[:, None] < counts, second, 0.0)
    found = multilevel.estimate(np.ones(3), np.zeros(3), first, ragged, 50, counts)
    for point, count in enumerate(counts):
        alone = multilevel.estimate(np.ones(3), np.zeros(3), first, second[:count], 50)
        for name in ("losses", "deviation", "degrees"):
            assert getattr(found, name)[point] == pytest.approx(getattr(alone, name)[point], rel=1e-12)
        np.testing.assert_allclose(found.spreads[:, point], alone.spreads[:, point], rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_errors_count_as_many_times_as_they_have_shapes(rank):
    rng = np.random.default_rng(rank)
    errors = np.zeros((4000, 9))
    errors[:, :] = rng.standard_normal((4000, rank))[:, np.arange(9) % rank]  # three, five or nine columns of each
    correlation = np.corrcoef(errors, rowvar=False)
    eigenvalues = np.clip(np.linalg.eigvalsh(correlation), 0, None)
    twin = np.sqrt(eigenvalues).sum() ** 2 / eigenvalues.sum()
    assert multilevel.num_shapes(errors - errors.mean(axis=0)) == pytest.approx(twin, rel=1e-6)
    assert twin == pytest.approx(rank, rel=0.03)


def test_a_level_that_is_known_of_all_units_has_no_shape_of_error():
    rng = np.random.default_rng(0)
    first = 100 * np.outer(rng.standard_normal(60), np.ones(9))  # one shape, and far larger
    second = rng.standard_normal((40, 9))  # nine
    nothing = np.zeros(9)
    some = multilevel.estimate(nothing, nothing, first[:50], second, 60)
    every = multilevel.estimate(nothing, nothing, first, second, 60)
    assert some.shapes < 2
    assert every.shapes > 7


def test_the_same_seed_gives_the_same_numbers_and_another_one_others():
    case = made("plain")

    def once(seed):
        sizes = sample_sizes.plan([np.repeat([[2.0], [0.4]], 11, axis=1)] * 4, np.ones(11), len(case.signs))
        random = np.random.default_rng(seed)
        return looks.certify(case, case.chord, case.signs, sizes, looks.Wanted(0.05, 0.0), random=random)

    assert (once(0).losses == once(0).losses).all()
    assert (once(0).losses != once(1).losses).any()


def test_a_sample_of_all_units_is_exact():
    case = made("plain")
    everyone = np.random.default_rng(0).permutation(400)
    found = multilevel.estimate(case.chord, np.zeros(11), case.first[everyone], case.second[everyone], 400)
    np.testing.assert_allclose(found.losses, case.losses, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.deviation, 0, atol=1e-18)


@pytest.mark.parametrize("num_units", [1, 2, 5, 15])
def test_too_few_units_are_not_sampled(num_units):
    case = Stored(np.ones(11), np.zeros((num_units, 11)), np.zeros((num_units, 11)), np.ones(num_units))
    sizes = sample_sizes.plan([], np.ones(11), num_units)
    random = np.random.default_rng(0)
    outcome = looks.certify(case, case.chord, case.signs, sizes, looks.Wanted(0.05, 0.0), random=random)
    assert outcome is None


def test_two_intervals_have_no_second_level():
    rng = np.random.default_rng(0)
    first = np.zeros((400, 3))
    first[:, 1] = 1e-5 * (1 + rng.standard_normal(400))
    case = Stored(np.array([1.0, 0.5, 1.0]), first, np.zeros((400, 3)), np.ones(400))
    sizes = sample_sizes.plan([np.repeat([[0.5], [0.0]], 3, axis=1)], np.ones(3), 400)
    misses = 0
    for _ in range(200):
        outcome = looks.certify(case, case.chord, case.signs, sizes, looks.Wanted(0.05, 0.0), random=rng)
        assert outcome.accepted
        misses += abs(outcome.losses[1] - case.losses[1]) > outcome.halfwidths[1]
    assert misses <= binom.ppf(0.9999, 200, multilevel.MISSES)
