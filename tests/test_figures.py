"""Figures show the numbers of the run and nothing else: drawn data against the tables, gaps, captions, legibility."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from sgdwalk import analysis, drawing, figures
from sgdwalk.drawing import COLOURS
from sgdwalk.errors import InputError
from sgdwalk.records import NAN, EpochNote, SegmentPoint, StepRecord
from sgdwalk.run import Run
from synthetic import gradient_descent, quadratic_walk, records_of_walk, settings, stochastic_descent, troubled_walk

OVER_RUNS = [
    figures.comparison,
    figures.heights,
    figures.progress,
    figures.alpha_star,
    figures.barriers,
    figures.training,
]
EVERY = [figures.three_panels, *OVER_RUNS]
NAMES = [function.__name__ for function in EVERY]
PHONE = 328 / 72


def lines_of(ax, colour):
    """Everything drawn as a line or as markers in a colour of the palette."""
    return [line for line in ax.get_lines() if line.get_color() == COLOURS[colour] and len(line.get_xdata())]


def curve(ax, colour="ink"):
    """The defined points of the only line of a colour."""
    (line,) = [line for line in lines_of(ax, colour) if line.get_linestyle() != "None"]
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def dots(ax, colour):
    """The points marked in a colour, by x."""
    marked = [line for line in lines_of(ax, colour) if line.get_linestyle() == "None"]
    points = {(float(x), float(y)) for line in marked for x, y in zip(*line.get_data(), strict=True)}
    return sorted(points)


def draw(picture) -> str:
    file = io.StringIO()
    picture.savefig(file, format="svg")
    return file.getvalue()


def texts(picture):
    return {text.get_text() for text in picture.findobj(matplotlib.text.Text) if text.get_visible()}


# --- the three panels -------------------------------------------------------------------------------------------------


def test_the_loss_along_every_segment_is_drawn_point_by_point():
    run = stochastic_descent(40)
    top, middle, bottom = figures.three_panels(run).axes
    x, y = curve(top)
    np.testing.assert_array_equal(x, run.segments.step + run.segments.alpha)
    np.testing.assert_array_equal(y, run.segments.loss)
    x, y = curve(top, "floor")
    np.testing.assert_array_equal(x, run.steps.index + run.steps.floor_alpha)
    np.testing.assert_array_equal(y, run.steps.floor)
    ends = [*run.steps.loss, run.steps.next_loss.iloc[-1]]
    assert dots(top, "blue") == list(zip(range(41), ends, strict=True))
    x, y = curve(middle, "blue")
    np.testing.assert_array_equal(x, run.steps.index[1:])
    np.testing.assert_array_equal(y, run.steps.cosine[1:])
    x, y = curve(bottom, "blue")
    np.testing.assert_array_equal(x, np.arange(41))
    np.testing.assert_array_equal(y, [*run.steps.distance, run.steps.next_distance.iloc[-1]])


def test_a_vertical_line_stands_at_every_iterate():
    for ax in figures.three_panels(stochastic_descent(10)).axes:
        (grid,) = [line for line in lines_of(ax, "rule") if len(line.get_xdata()) > 2]
        assert sorted(set(grid.get_xdata())) == list(range(11))


def test_only_the_steps_that_were_asked_for():
    picture = figures.three_panels(stochastic_descent(60), steps=range(20, 30))
    x, _ = curve(picture.axes[0])
    assert (x.min(), x.max()) == (20, 30)
    assert picture.title == "SGD, steps 20 to 29"
    for function in OVER_RUNS:
        part = function(stochastic_descent(60), steps=range(20, 30))
        drawn = [float(x) for ax in part.step_axes for line in ax.get_lines() for x in line.get_xdata()]
        inside = [x for x in drawn if math.isfinite(x) and x not in (0.0, 1.0)]  # 0 and 1: lines across the panel
        assert (min(inside), max(inside)) == (20, 29), function.__name__


@pytest.mark.parametrize("missing", [{5}, {5, 6, 7}, {0}, {9}], ids=str)
def test_no_line_crosses_an_unwatched_step(missing):
    run = quadratic_walk(num_steps=10, noise=0.3, watched=lambda step: step not in missing)
    picture = figures.three_panels(run)
    (line,) = lines_of(picture.axes[0], "ink")
    points = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if math.isfinite(y0) and math.isfinite(y1):
            middle = math.floor((x0 + x1) / 2)
            assert middle not in missing
            assert x1 - x0 < 0.11
    assert f"The loss was not measured along {len(missing)} of 10 steps: a gap." in picture.notes


def test_a_lost_loss_breaks_the_lines_and_is_said():
    picture = figures.three_panels(troubled_walk(), steps=range(10))
    x, _ = curve(picture.axes[0])
    assert 5.5 not in x
    assert len(x) == 109
    x, _ = curve(picture.axes[0], "floor")
    assert [math.floor(value) for value in x] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert "1 floor (the loss was not finite (nan) at α = 0.5)" in picture.notes
    assert "2 cosines (there is no gradient before the first; the gradient before it was zero)" in picture.notes


def test_significant_barriers_are_marked_where_the_loss_is_highest():
    run = troubled_walk()
    picture = figures.three_panels(run)
    assert [x for x, _ in dots(picture.axes[0], "alarm")] == [3.5, 18.5]
    assert "barrier" in texts(picture)
    assert "barrier" not in texts(figures.three_panels(run, steps=range(3)))


def test_floors_of_steps_that_stand_alone_are_marked():
    run = quadratic_walk(num_steps=40, watched=lambda step: step % 10 == 0)
    top = figures.three_panels(run).axes[0]
    assert [math.floor(x) for x, _ in dots(top, "floor")] == [0, 10, 20, 30]


def test_shared_limits_hold_both_walks():
    runs = [gradient_descent(40), stochastic_descent(40)]
    limits = figures.shared_limits(runs, [range(20), None])
    for run, steps in zip(runs, [range(20), None], strict=True):
        picture = figures.three_panels(run, steps=steps, limits=limits)
        top, _, bottom = picture.axes
        assert top.get_ylim() == limits["loss"]
        assert bottom.get_ylim() == limits["distance"]
        assert curve(top)[1].max() <= limits["loss"][1]
        assert curve(top)[1].min() >= limits["loss"][0]
        assert curve(bottom, "blue")[1].max() <= limits["distance"][1]


@pytest.mark.parametrize(
    ("watched", "num_steps", "expected"),
    [
        (lambda step: True, 40, [range(40)]),
        (lambda step: True, 60, [range(60)]),
        (lambda step: True, 100, [range(40), range(60, 100)]),
        (lambda step: True, 70, [range(40), range(40, 70)]),
        (lambda step: step % 100 < 40, 300, [range(40), range(100, 140), range(200, 240)]),
        (lambda step: step % 50 < 5, 300, [range(5), range(50, 55), range(100, 105), range(250, 255)]),
        (lambda step: step % 10 == 0, 1000, [range(391), range(600, 991)]),
        (lambda step: False, 10, []),
        (lambda step: step == 3, 10, [range(3, 4)]),
    ],
    ids=["40", "60", "100", "70", "first of epochs", "many epochs", "every tenth", "never", "once"],
)
def test_windows(watched, num_steps, expected):
    assert figures.windows(quadratic_walk(num_steps=num_steps, watched=watched)) == expected


# --- one value a step -------------------------------------------------------------------------------------------------


def test_values_of_several_runs_are_drawn_over_each_other():
    gd, sgd = gradient_descent(40), stochastic_descent(30)
    derived = {"blue": analysis.derived(gd), "red": analysis.derived(sgd)}
    for colour, run in {"blue": gd, "red": sgd}.items():
        for picture, columns in (
            (figures.comparison(gd, sgd), [run.steps.loss, run.steps.cosine, run.steps.distance]),
            (figures.heights(gd, sgd), [run.steps.height]),
            (figures.progress(gd, sgd), [derived[colour].update_ratio, derived[colour].directness]),
            (figures.training(gd, sgd), [run.steps.loss, run.steps.batch_loss]),
        ):
            for ax, column in zip(picture.step_axes, columns, strict=True):
                x, y = curve(ax, colour)
                np.testing.assert_array_equal(x, column.dropna().index)
                np.testing.assert_array_equal(y, column.dropna())


def test_heights_over_decades_are_drawn_logarithmic_and_zeros_are_said():
    run = quadratic_walk(num_steps=60, learning_rate=0.05)
    assert figures.heights(run).axes[0].get_yscale() == "log"
    flat = tuple(SegmentPoint(k / 10, 1.0) for k in range(11))
    records = records_of_walk(60, learning_rate=0.05)
    records[30] = replace(records[30], segment=flat)
    with_zero = figures.heights(Run(settings("run"), records))
    assert "1 value of zero cannot be drawn." in with_zero.notes
    assert figures.heights(Run(settings("run"), [StepRecord(0, segment=flat)])).axes[0].get_yscale() == "linear"


def test_the_band_of_an_estimated_height_is_drawn_whole():
    records = [
        replace(
            record,
            segment=tuple(replace(point, kind="estimated", halfwidth=9.0) for point in record.segment),
            measures={"looks": 1.0, "nodes": 3.0, "examples_evaluated": 90.0},
        )
        for record in records_of_walk(5, noise=0.3)
    ]
    run = Run(settings("run"), records)
    (ax,) = figures.heights(run).axes
    assert ax.get_ylim()[1] > run.steps["height_high"].max() > run.steps["height"].max()


def test_a_panel_without_a_value_says_so_and_has_no_scale():
    empty, cosine, _ = figures.comparison(quadratic_walk(num_steps=5, watched=lambda step: False)).axes
    assert [text.get_text() for text in empty.texts if text.get_text() == "no defined value"]
    assert list(empty.get_yticks()) == []
    assert list(cosine.get_yticks()) == [-1, 0, 1]


def test_alpha_star_has_its_edge_and_marks_what_lies_outside():
    run = quadratic_walk(num_steps=70, noise=0.4, seed=7)
    picture = figures.alpha_star(run)
    (ax,) = picture.axes
    (edge,) = lines_of(ax, "alarm")
    assert list(edge.get_ydata()) == [0.5, 0.5]
    assert ax.get_yscale() == "linear"
    values = run.steps.alpha_star
    outside = values[(values > 1.75) | (values < -0.25)]
    assert len(outside) > 0
    assert {x for x, y in dots(ax, "blue") if y in (1.75, -0.25)} == set(outside.index)
    assert "outside the panel: triangles at its border." in picture.notes
    over = int((values < 0.5).sum())
    assert f"SGD: over the edge on {over} of {values.count()} steps." in picture.notes


def test_alpha_star_of_a_cautious_walk_is_drawn_whole():
    """Far from the floor α* is tens of steps away."""
    run = quadratic_walk(num_steps=40, learning_rate=0.001)
    (ax,) = figures.alpha_star(run).axes
    assert ax.get_yscale() == "symlog"
    values = run.steps.alpha_star
    assert values.min() > 10
    assert ax.get_ylim()[1] > values.max()
    np.testing.assert_array_equal(curve(ax, "blue")[1], values)
    assert {"0.5", "1", "10"} <= {label.get_text() for label in ax.get_yticklabels()}


def test_barriers_are_filled_where_they_exceed_the_noise_and_hollow_where_not():
    run = quadratic_walk(
        num_steps=60, learning_rate=1e-4, steps_per_epoch=30, bump=lambda step: {7: 1.0, 40: 1.0, 9: 1e-3}.get(step, 0)
    )
    crossed = run.steps[run.steps.barrier]
    noise = crossed.barrier_height.min() / 1.5
    records = records_of_walk(
        60,
        learning_rate=1e-4,
        steps_per_epoch=30,
        loss_noise=noise,
        bump=lambda step: {7: 1.0, 40: 1.0, 9: 1e-3}.get(step, 0),
    )
    run = Run(settings("SGD"), records)
    picture = figures.barriers(run)
    rises, counts = picture.axes
    faces = {}
    for line in rises.get_lines():
        if line.get_linestyle() == "None":
            faces.setdefault((line.get_markerfacecolor(), line.get_alpha()), []).extend(map(int, line.get_xdata()))
    assert faces[COLOURS["blue"], None] == [7, 40]
    assert faces[COLOURS["paper"], None] == [9]
    assert len(faces[COLOURS["blue"], 0.55]) == 57
    assert [bar.get_height() for bar in counts.patches] == [2.0, 1.0]
    assert "SGD: 3 barriers on 60 steps, 2 significant." in picture.notes


def test_a_run_without_barriers_says_so_in_every_epoch():
    assert "none in any epoch" in texts(figures.barriers(gradient_descent(40)))


def test_training_shows_what_was_noted_and_a_learning_rate_that_moves():
    records = [replace(record, learning_rate=0.1 / (1 + record.step)) for record in records_of_walk(40)]
    notes = [EpochNote(1, 20, {"accuracy": 0.5}), EpochNote(2, 40, {"accuracy": NAN, "loss on tests": 1.5})]
    picture = figures.training(Run(settings("SGD"), records, notes))
    titles = texts(picture)
    assert {"Learning rate", "accuracy", "loss on tests"} <= titles
    assert len(picture.step_axes) == 3
    assert dots(picture.axes[3], "blue") == [(1.0, 0.5)]
    assert "Learning rate" not in texts(figures.training(gradient_descent(5)))


def test_measures_are_drawn_and_too_many_are_named():
    run = quadratic_walk(num_steps=5, measures=lambda step: {f"measure {k}": k + step for k in range(8)})
    picture = figures.measures(run)
    assert len(picture.axes) == 6
    assert "Not drawn: measure 6, measure 7." in picture.caption
    np.testing.assert_array_equal(curve(picture.axes[2], "blue")[1], [2, 3, 4, 5, 6])
    with pytest.raises(InputError, match="None of these runs has a column of a measure"):
        figures.measures(gradient_descent(3))


# --- long runs --------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    st.integers(1, 60).map(lambda half: 2 * half),
    st.sets(st.integers(0, 299)),
)
def test_thinning_keeps_extremes_gaps_and_order(values, most, undefined):
    x, y = np.arange(len(values), dtype=float), np.array(values)
    y[[index for index in undefined if index < len(y)]] = NAN
    thin_x, thin_y = drawing.thinned(x, y, most)
    assert np.isfinite(thin_y).sum() <= max(most, 2)
    np.testing.assert_array_equal(thin_y, y[thin_x.astype(int)])
    assert (np.diff(thin_x) > 0).all()
    assert np.isnan(thin_y).sum() == np.isnan(y).sum()
    if np.isfinite(y).any():
        assert np.nanmax(thin_y) == np.nanmax(y)
        assert np.nanmin(thin_y) == np.nanmin(y)


def test_a_long_run_is_drawn_whole_with_bounded_effort_and_says_how():
    run = quadratic_walk(num_steps=10_000, noise=0.4, watched=lambda step: step % 2 == 0)
    for function in EVERY:
        assert len(draw(function(run))) < 600_000, function.__name__
    picture = figures.heights(run)
    drawn = np.concatenate([line.get_ydata() for line in picture.axes[0].get_lines()])
    assert np.nanmax(drawn) == run.steps.height.max()
    assert "Bold: mean over 167 values. Faint: the lowest and highest of every short stretch." in picture.notes


def test_a_long_loss_is_drawn_through_its_peaks_and_keeps_the_gaps_that_can_be_seen():
    run = quadratic_walk(num_steps=8_000, noise=0.4, watched=lambda step: step % 2 == 0 and not 3_000 <= step < 4_000)
    picture = figures.three_panels(run)
    (line,) = lines_of(picture.axes[0], "ink")
    x, y = (np.asarray(values, float) for values in line.get_data())
    assert np.isfinite(y).sum() <= 4_000
    assert np.nanmax(y) == run.segments.loss.max()
    assert np.nanmin(y) == run.segments.loss.min()
    crossing = np.isfinite(y[1:]) & np.isfinite(y[:-1]) & (np.diff(x) > 20)
    assert not crossing.any(), "a line crosses the gap of 1,000 steps"
    assert np.isnan(y).sum() == 1, "a gap too narrow to be seen breaks the line"
    assert "lowest and the highest value of every short stretch" in picture.notes


def test_the_running_mean_is_that_of_the_defined_values_and_breaks_at_gaps():
    y = np.random.default_rng(0).normal(size=700)
    x = np.concatenate([np.arange(0.0, 400.0), np.arange(600.0, 900.0)])
    ax = drawing.panels("", [drawing.Panel("")], 5)[1][0]
    note = drawing.series(ax, x, y, "blue")
    assert note == "Bold: mean over 23 values."
    (bold,) = [line for line in ax.get_lines() if line.get_linewidth() == 1.8]
    mean = [pd.Series(part).rolling(23, center=True, min_periods=1).mean() for part in (y[:400], y[400:])]
    np.testing.assert_allclose(bold.get_ydata(), [*mean[0], NAN, *mean[1]])


# --- every figure of every run ----------------------------------------------------------------------------------------


def walk_without_a_number():
    return Run(settings("none"), [StepRecord(step, reasons={"segment": "lost"}) for step in range(3)])


STRANGE = {
    "trouble": troubled_walk,
    "empty": lambda: Run(settings("empty"), []),
    "unwatched": lambda: quadratic_walk(num_steps=5, watched=lambda step: False),
    "one step": lambda: quadratic_walk(num_steps=1),
    "no number": walk_without_a_number,
    "constant": lambda: quadratic_walk(num_steps=5, learning_rate=0.0),
    "tiny": lambda: quadratic_walk(num_steps=5, learning_rate=1e-300),
    "diverging": lambda: quadratic_walk(num_steps=200, learning_rate=0.2, noise=0.0),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("function", EVERY, ids=NAMES)
def test_every_figure_of_every_run_is_drawn_without_a_warning(function, kind):
    run = STRANGE[kind]()
    picture = function(run, width=PHONE)
    assert "<svg" in draw(picture)
    assert picture.title
    assert picture.caption.endswith(".")
    assert picture.alternative.endswith(".")
    assert "nan" not in picture.alternative.replace("(nan)", "")


@pytest.mark.parametrize("width", [PHONE, 7.6], ids=["phone", "desk"])
@pytest.mark.parametrize("function", EVERY, ids=NAMES)
def test_no_text_is_cut_off_or_drawn_over_another(function, width):
    runs = [gradient_descent(60), stochastic_descent(60)]
    for picture in [function(runs[1], width=width)] + ([function(*runs, width=width)] if function in OVER_RUNS else []):
        draw(picture)
        renderer = picture.canvas.get_renderer() if hasattr(picture.canvas, "get_renderer") else picture._get_renderer()
        ticks = [label for ax in picture.axes for axis in (ax.xaxis, ax.yaxis) for label in visible_labels(axis)]
        others = [
            text
            for ax in picture.axes
            for text in (*ax.texts, ax.xaxis.label, *(ax.get_legend().get_texts() if ax.get_legend() else ()))
        ]
        boxes = {
            f"{text.get_text()} {index}": text.get_window_extent(renderer)
            for index, text in enumerate([*ticks, *others])
            if text.get_text()
        }
        assert len(boxes) > 5
        for name, box in boxes.items():
            assert box.x0 >= -0.5, name
            assert box.x1 <= picture.bbox.width + 0.5, name
            assert box.y0 >= -0.5, name
            assert box.y1 <= picture.bbox.height + 0.5, name
        for (name, box), (other, second) in itertools.combinations(boxes.items(), 2):
            assert not (box.shrunk(0.98, 0.9).overlaps(second.shrunk(0.98, 0.9))), (name, other)


def visible_labels(axis):
    low, high = sorted(axis.get_view_interval())
    if not axis.get_tick_params().get("labelbottom", True):
        return []
    return [
        tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()
    ]


@pytest.mark.parametrize(
    "name", ["$\\frac{1}{$", "_hidden", "日本語 ✨", "\x1b[31m\x00", "x" * 1_000_000, "{}", "%s\n\r"], ids=str.__len__
)
def test_names_are_drawn_literally(name):
    runs = [quadratic_walk(name, 5, measures=lambda step: {name: 1.0}), gradient_descent(5)]
    picture = figures.comparison(*runs)
    drawn = texts(picture)
    assert drawing.drawable(name) in drawn
    assert "GD" in drawn
    assert len(draw(picture)) < 100_000
    assert len(draw(figures.measures(runs[0]))) < 100_000


def test_drawing_changes_no_global_state():
    before = dict(matplotlib.rcParams)
    for function in EVERY:
        draw(function(stochastic_descent(10)))
    assert dict(matplotlib.rcParams) == before


# --- colours ----------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.clip(xyz / [0.9505, 1.0, 1.089], 1e-4, None))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_two_runs_are_told_apart_with_any_colour_vision(kind):
    """ΔE of 25 is a plainly visible difference (just noticeable: 2.3)."""
    first, second = (lab(np.clip(BLINDNESS[kind] @ linear(COLOURS[name]), 0, 1)) for name in drawing.RUN_COLOURS[:2])
    assert np.linalg.norm(first - second) > 25


def test_sixteen_runs_differ_in_colour_or_marker():
    assert len({drawing.style_of(index) for index in range(16)}) == 16


def test_colours_stand_out_from_paper():
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for what must be seen in a picture."""
    for name in ("ink", "muted", "alarm"):
        assert contrast(COLOURS[name], COLOURS["paper"]) >= 4.5, name
    for name in (*drawing.RUN_COLOURS, "floor"):
        assert contrast(COLOURS[name], COLOURS["paper"]) >= 3, name


def contrast(one, other):
    bright, dark = sorted((float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
