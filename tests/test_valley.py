"""Floor, height, barrier and α* against cases known on paper and the inequalities that must always hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sgdwalk import InputError, valley

GRID = np.arange(11) / 10
ROUNDING = 1e-9  # a parabola's minimum through eleven float64 losses of order one


def some_segments():
    points = st.floats(-1e6, 1e6, allow_subnormal=False)
    return st.integers(1, 6).flatmap(lambda count: arrays(np.float64, (count, 11), elements=points))


@pytest.mark.parametrize(
    ("losses", "floor", "floor_alpha", "height", "barrier_height"),
    [
        pytest.param([4.0, 1.0, 2.0], 1.0, 0.5, 2.0, -3.0, id="valley"),
        pytest.param([3.0, 2.0, 1.0], 1.0, 1.0, 1.0, -1.0, id="descent"),
        pytest.param([1.0, 2.0, 3.0], 1.0, 0.0, 1.0, -1.0, id="ascent"),
        pytest.param([1.0, 5.0, 2.0], 1.0, 0.0, 0.5, 3.0, id="barrier"),
        pytest.param([1.0, 1.0, 1.0], 1.0, 0.0, 0.0, 0.0, id="flat"),
    ],
)
def test_cases_known_on_paper(losses, floor, floor_alpha, height, barrier_height):
    assert valley.floor(losses) == floor
    assert valley.floor_alpha([0, 0.5, 1], losses) == floor_alpha
    assert valley.height(losses) == height
    assert valley.barrier_height(losses) == barrier_height
    columns = valley.summarize([0, 0.5, 1], [losses], [np.nan])
    assert columns["barrier"].tolist() == [barrier_height > 0]
    assert columns["barrier_significant"].tolist() == [None]
    assert (columns["loss"], columns["next_loss"]) == (losses[0], losses[-1])


def test_an_interior_point_as_high_as_an_end_is_no_barrier():
    assert valley.summarize([0, 0.5, 1], [[1.0, 2.0, 2.0]], [0.0])["barrier"].tolist() == [False]


def test_a_barrier_below_twice_the_loss_noise_is_not_significant():
    losses = [[0.0, 1.0, 0.0]] * 3
    columns = valley.summarize([0, 0.5, 1], losses, [0.5, 0.4999, np.nan])
    assert columns["barrier"].tolist() == [True, True, True]
    assert columns["barrier_significant"].tolist() == [False, True, None]


def test_a_bump_on_a_quadratic_makes_the_barrier_known_on_paper():
    # (α - ½)² has ends ¼; a bump of 1 at α = 0.4 puts 1.01 there: 0.76 above the ends.
    losses = (GRID - 0.5) ** 2
    losses[4] += 1
    assert valley.barrier_height(losses) == pytest.approx(0.76, abs=1e-15)
    assert valley.floor(losses) == 0


@given(some_segments())
def test_height_is_at_least_half_the_difference_of_the_ends(losses):
    half_difference = np.abs(losses[:, 0] - losses[:, -1]) / 2
    assert (valley.height(losses) >= half_difference).all()
    assert (half_difference >= 0).all()


@given(some_segments())
def test_floor_is_a_loss_of_the_segment_and_below_all(losses):
    floor = valley.floor(losses)
    assert (floor[:, None] <= losses).all()
    where = np.rint(valley.floor_alpha(GRID, losses) * 10).astype(int)
    assert (losses[np.arange(len(losses)), where] == floor).all()


@given(some_segments())
def test_barrier_exactly_where_its_height_is_positive(losses):
    columns = valley.summarize(GRID, losses, np.zeros(len(losses)))
    assert columns["barrier"].tolist() == (columns["barrier_height"] > 0).tolist()
    above = (losses[:, 1:-1] > np.maximum(losses[:, :1], losses[:, -1:])).any(axis=1)
    assert columns["barrier"].tolist() == above.tolist()


@given(some_segments())
def test_many_segments_at_once_are_bitwise_one_by_one(losses):
    noise = np.linspace(0, 1, len(losses))
    together = valley.summarize(GRID, losses, noise)
    for index, segment in enumerate(losses):
        alone = valley.summarize(GRID, segment[None], noise[index : index + 1])
        for name, column in alone.items():
            np.testing.assert_array_equal(column, together[name][index : index + 1], err_msg=name)
        fit = valley.fit_parabola(GRID, segment)
        np.testing.assert_array_equal(fit.alpha_star, together["alpha_star"][index])
        np.testing.assert_array_equal(valley.height(segment), together["height"][index])


@given(st.floats(-2, 3), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_alpha_star_of_an_exact_parabola(minimum, curvature, offset):
    fit = valley.fit_parabola(GRID, curvature * (GRID - minimum) ** 2 + offset)
    # Offsets up to 10 over ranges down to 1e-3 · 0.25 cost five digits of the losses.
    assert fit.alpha_star == pytest.approx(minimum, abs=1e-9 + 1e-11 * abs(offset) / curvature)
    assert fit.r2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-290, 1e-20, 1.0, 1e20, 1e290])
def test_alpha_star_at_any_scale_of_the_loss(scale):
    fit = valley.fit_parabola(GRID, scale * (GRID - 0.3) ** 2)
    assert fit.alpha_star == pytest.approx(0.3, abs=ROUNDING)


@pytest.mark.parametrize(
    ("losses", "r2"),
    [
        pytest.param(-((GRID - 0.4) ** 2), 1.0, id="concave"),
        pytest.param(2.5 - 0.1 * GRID, 1.0, id="straight line"),
        pytest.param(np.full(11, 2.5), np.nan, id="flat"),
        pytest.param(np.array([1.0, 0.0] * 5 + [1.0]), None, id="zigzag"),
    ],
)
def test_no_alpha_star_without_a_trusted_minimum(losses, r2):
    fit = valley.fit_parabola(GRID, losses)
    assert np.isnan(fit.alpha_star)
    if r2 is None:
        assert fit.r2 < valley.MIN_R2
    else:
        np.testing.assert_allclose(fit.r2, r2, atol=ROUNDING)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 4, 10])
def test_a_loss_that_is_not_finite_leaves_the_segment_undefined(bad, where):
    good = (GRID - 0.3) ** 2
    damaged = good.copy()
    damaged[where] = bad
    columns = valley.summarize(GRID, [good, damaged], [0.0, 0.0])
    for name in ("floor", "floor_alpha", "height", "barrier_height", "alpha_star", "alpha_star_r2"):
        assert np.isfinite(columns[name]).tolist() == [True, False], name
    for name in ("barrier", "barrier_significant"):
        assert columns[name].tolist() == [False, None], name
    np.testing.assert_array_equal(columns["loss"], [good[0], np.nan if where == 0 else good[0]])
    np.testing.assert_array_equal(columns["next_loss"], [good[10], np.nan if where == 10 else good[10]])


def test_no_segments_make_empty_columns():
    assert {column.shape for column in valley.summarize(GRID, np.empty((0, 11)), []).values()} == {(0,)}


@pytest.mark.parametrize("losses", [1.0, [1.0, 2.0], [[1.0, 2.0]] * 5], ids=["number", "one", "many"])
def test_fewer_than_three_points_are_refused(losses):
    with pytest.raises(InputError, match="at least three losses"):
        valley.floor(losses)
