"""Measures with a threshold or an interval, and spectral densities: drawn data against the tables, gaps, words."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sgdwalk import columns, figures, summary
from sgdwalk.curvature_figures import outliers
from sgdwalk.errors import InputError
from sgdwalk.records import NAN, StepRecord
from sgdwalk.report import render
from sgdwalk.run import Run
from synthetic import gradient_descent, settings
from test_figures import curve, dots, draw, lines_of, texts
from test_report import HOSTILE, Page, data_of


def curved(step: int) -> dict[str, float]:
    """A spectral norm and a batch sharpness with 2/η that doubles at step 20, and a noise scale; every fifth step."""
    if step % 5:
        return {}
    threshold = 20.0 if step < 20 else 40.0
    norm, sharpness = 10.0 + step, 18.0
    return {
        "norm": norm,
        "norm_residual": 1e-3,
        "norm_num_products": 4.0,
        "norm_threshold": threshold,
        "norm_edge_ratio": norm / threshold,
        "sharpness": sharpness,
        "sharpness_standard_error": 1.0,
        "sharpness_batch_size": 10.0,
        "sharpness_threshold": threshold,
        "sharpness_edge_ratio": sharpness / threshold,
        "noise": 50.0 + step,
        "noise_low": 40.0,
        "noise_high": 90.0 if step != 10 else NAN,
        "noise_trace": 3.0,
        "noise_gradient_square": 0.06,
        "other": 1.0 * step,
    }


def walk(name: str = "SGD", measures=curved, num_steps: int = 40) -> Run:
    reasons = {"noise_high": "the gradient cannot be told from zero"}
    records = [
        StepRecord(step, measures=measured, reasons=reasons if step == 10 and "noise_high" in measured else {})
        for step, measured in ((step, measures(step)) for step in range(num_steps))
    ]
    return Run(settings(name), records)


TAKEN = np.arange(0, 40, 5)


def test_columns_are_sorted_by_their_endings():
    run = walk()
    assert columns.thresholded_measures(run) == ["norm", "sharpness"]
    assert columns.banded_measures(run) == ["noise"]
    assert columns.plain_measures(run) == ["other"]
    assert columns.thresholded_measures(gradient_descent(3)) == []


def test_the_words_tell_how_near_the_threshold_is():
    assert summary.describe(walk())[5:] == [
        "Its norm was 45 at step 35, 1.12 times its threshold there; it was above it at 2 of 8 measured steps.",
        "Its sharpness was 18 at step 35, 0.45 times its threshold there; it was above it at 0 of 8 measured steps.",
    ]
    assert len(summary.describe(gradient_descent(3))) == 5


def test_the_words_tell_why_there_is_nothing_to_compare():
    records = [
        StepRecord(
            0,
            measures={"a": 3.0, "a_threshold": NAN, "b": NAN, "b_threshold": 2.0, "c": 1.0, "c_threshold": NAN},
            reasons={"a_threshold": "no threshold is known for Adagrad", "b": "not converged after 9 products"},
        ),
    ]
    assert summary.describe(Run(settings("x"), records))[5:] == [
        "Its a was 3 at step 0; there is no threshold to compare it with: no threshold is known for Adagrad.",
        "Its b is unknown: not converged after 9 products.",
        "Its c was 1 at step 0; there is no threshold to compare it with.",
    ]


def test_curvature_stands_beside_one_threshold():
    picture = figures.curvature(walk())
    (ax,) = picture.axes
    x, y = curve(ax, "blue")
    np.testing.assert_array_equal(x, TAKEN)
    np.testing.assert_array_equal(y, 10.0 + TAKEN)
    assert dots(ax, "red") == [(float(step), 18.0) for step in TAKEN]
    (threshold,) = lines_of(ax, "ink")
    np.testing.assert_array_equal(threshold.get_ydata(), np.where(TAKEN < 20, 20.0, 40.0))
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((18 - 1.96, 18 + 1.96))
    assert {"norm", "sharpness", "threshold"} <= texts(picture)
    assert "SGD, norm was 1.12 of its threshold at the end, and above it at 2 of 8 measured steps." in picture.notes
    assert (
        "SGD, sharpness was 0.45 of its threshold at the end, and above it at 0 of 8 measured steps." in picture.notes
    )
    assert "bounds nothing" in picture.caption


def test_two_thresholds_are_two_lines_and_undefined_values_are_gaps_that_are_told():
    def measures(step):
        measured = curved(step)
        if measured:
            measured["norm_threshold"] *= 2
            if step == 15:
                measured["norm"] = NAN
        return measured

    records = [StepRecord(step, measures=measures(step)) for step in range(40)]
    reason = "not converged after 200 products"
    records[15] = StepRecord(15, measures=measures(15), reasons={"norm": reason})
    picture = figures.curvature(Run(settings("SGD"), records))
    (ax,) = picture.axes
    assert len(lines_of(ax, "ink")) == 2
    (line,) = [line for line in lines_of(ax, "blue") if line.get_linestyle() != "None"]
    assert np.isnan(line.get_ydata()[3])
    assert f"1 value of norm ({reason})" in picture.notes


def test_each_run_has_a_panel_of_its_own():
    picture = figures.curvature(gradient_descent(10), walk("first"), walk("second", num_steps=7))
    assert [len(ax.get_lines()) > 0 for ax in picture.axes] == [True, True]
    assert {"first", "second"} <= texts(picture)
    np.testing.assert_array_equal(curve(picture.axes[1], "blue")[0], [0, 5])


def test_one_measured_step_is_a_dot():
    picture = figures.curvature(walk(measures=lambda step: curved(step) if step == 5 else {}))
    assert dots(picture.axes[0], "blue") == [(5.0, 15.0)]
    assert "at 0 of 1 measured step." in picture.notes


def test_intervals_are_bands_and_open_ones_are_marked():
    picture = figures.intervals(walk())
    (ax,) = picture.axes
    np.testing.assert_array_equal(curve(ax, "blue")[1], 50.0 + TAKEN)
    open_ended = [line for line in lines_of(ax, "blue") if line.get_marker() == "^"]
    assert [tuple(*zip(*line.get_data(), strict=True)) for line in open_ended] == [(10.0, 60.0)]
    assert "the gradient cannot be told from zero" in picture.notes


@pytest.mark.parametrize("figure", [figures.curvature, figures.intervals])
def test_runs_without_such_measures_are_told_what_to_do(figure):
    with pytest.raises(InputError, match="pass measures="):
        figure(gradient_descent(3))


@pytest.mark.parametrize(
    "figure", [figures.curvature, figures.intervals, figures.measures, figures.heights, figures.barriers]
)
def test_what_is_no_run_is_told(figure):
    with pytest.raises(InputError, match=r"Runs are wanted.* one argument each; got \['x'\], a list"):
        figure(walk(), ["x"])


def test_large_ranges_are_logarithmic():
    def measures(step):
        return {"norm": 10.0 ** (step / 5), "norm_threshold": 20.0} if step % 5 == 0 else {}

    picture = figures.curvature(walk(measures=measures))
    assert picture.axes[0].get_yscale() == "log"
    assert "Logarithmic." in picture.notes


# --- spectral density -------------------------------------------------------------------------------------------------


def density(nodes, weights, size):
    def curve(grid, *, width):
        return sum(
            w * np.exp(-0.5 * ((grid - x) / width) ** 2) / (width * np.sqrt(2 * np.pi))
            for x, w in zip(nodes, weights, strict=True)
        )

    return SimpleNamespace(nodes=np.array([nodes]), weights=np.array([weights]), size=size, density=curve)


def test_a_density_with_its_outliers_and_a_threshold():
    one = density([-0.1, 0.0, 5.0], [0.5, 0.49, 0.01], 100)
    picture = figures.spectral_density(one, threshold=8.0, smoothing=0.1)
    (ax,) = picture.axes
    x, y = curve(ax, "blue")
    np.testing.assert_allclose(y, one.density(x, width=0.1))
    assert [line.get_xdata()[0] for line in lines_of(ax, "ink")] == [8.0]
    assert dots(ax, "blue")[0][0] == 5.0
    assert picture.alternative == "The eigenvalues reach from −0.1 to 5; 1 of them stands apart."
    np.testing.assert_array_equal(outliers(one), [5.0])


def test_several_densities_have_a_legend():
    one, other = density([0.0, 1.0], [0.9, 0.1], 10), density([0.0, 2.0], [0.9, 0.1], 10)
    assert {"start", "end"} <= texts(figures.spectral_density({"start": one, "end": other}))
    with pytest.raises(InputError, match="1 to 4 densities, got 0"):
        figures.spectral_density({})


# --- report -----------------------------------------------------------------------------------------------------------


def test_the_report_has_a_section_only_where_there_is_something_to_show():
    words = Page(render([walk()])).text()
    assert "Curvature and noise" in words
    assert "above it at 2 of 8 measured steps" in words
    assert "Curvature and noise" not in Page(render([gradient_descent(10)])).text()


def test_pointing_tells_the_numbers_of_these_panels():
    html = render([walk()])
    data = data_of(html)
    labels = {label: key for key, label in data["labels"].items()}
    columns = data["runs"][0]["columns"]
    assert columns[labels["norm"]][5] == 15
    assert columns[labels["norm threshold"]][5] == 20
    assert columns[labels["noise high"]][5] == 90
    assert columns[labels["other"]][5] == 5
    assert "norm residual" not in labels


def test_hostile_names_are_inert():
    def measures(step):
        return {
            HOSTILE: 1.0,
            f"{HOSTILE}_threshold": 2.0,
            f"{HOSTILE}x": 1.0,
            f"{HOSTILE}x_low": 0.5,
            f"{HOSTILE}x_high": 2.0,
        }

    run = walk(HOSTILE, measures=measures, num_steps=5)
    assert all(len(sentence) < 400 for sentence in summary.describe(run))
    html = render([run])
    assert "<script>alert" not in html
    for figure in (figures.curvature, figures.intervals):
        assert len(draw(figure(run))) < 200_000
