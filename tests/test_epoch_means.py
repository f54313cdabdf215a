"""What is known of epochs and of no single step, sampled segments and the gauge: in words, in tables, in the figure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sgdwalk import analysis, columns, figures, summary, terminal
from sgdwalk.drawing import COLOURS
from sgdwalk.epoch_means import epoch_means
from sgdwalk.errors import InputError
from sgdwalk.records import NAN
from sgdwalk.report import render
from sgdwalk.report_tables import epochs_table, key_numbers, means_tables
from sgdwalk.run import Run
from synthetic import gradient_descent, quadratic_walk, sampled_walk
from test_report import Page


def without_heights(run, steps, reason="a loss along the segment is not finite"):
    """The run with no height at some of its sampled steps."""
    records = [
        replace(
            record,
            measures={**record.measures, "sampled_height": NAN},
            reasons={**record.reasons, "sampled_height": reason},
        )
        if record.step in steps
        else record
        for record in run._steps
    ]
    return Run(run.info, records, run._notes, run._events)


def test_the_means_are_those_of_sampled_epochs_with_their_intervals():
    run = sampled_walk()
    expected = analysis.sampled_epochs(run)
    assert expected["num_units"].tolist() == [16, 16, 16]
    samples, gauge = epoch_means(run)
    assert samples.header == ["epoch", "sampled", "mean height", "mean floor", "bounces", "mean α*"]
    low, high = (f"{expected[f'height_{end}'][2]:.1f}" for end in ("low", "high"))
    assert samples.rows[1] == ["2", "4 of 20", f"6.50 ({low} to {high})", "5.00 (5.0 to 5.0)", "100 %", "0.700"]
    assert samples.rows[0][4] == "75 %"
    assert "16 evaluation batches of each sampled update" in samples.notes[0]
    assert "Bounces and α* have no interval" in samples.notes[1]
    assert len(samples.notes) == 2
    assert gauge.header == ["epoch", "updates", "mean slope", "positive", "undefined"]
    assert gauge.rows[0] == ["1", "20", "0.100 (0.10 to 0.10)", "100 %", "1"]


def test_where_an_interval_is_not_known_the_reason_is_told():
    (samples,) = epoch_means(sampled_walk(one_in=10, gauge=False))
    assert [row[2] for row in samples.rows] == ["1.50 (–)", "3.50 (–)", "5.50 (–)"]
    assert "Where height and floor have none, fewer than three sampled updates have them." in samples.notes
    (gauge,) = epoch_means(quadratic_walk(num_steps=5, measures=lambda step: {"gauge": 0.1}))
    assert gauge.rows[0][2] == "0.100 (–)"
    assert "An interval needs nine updates with a gauge." in gauge.notes


def test_sampled_updates_without_a_height_are_counted_with_the_reason():
    (samples,) = epoch_means(without_heights(sampled_walk(gauge=False), {5, 10}))
    assert samples.notes[-1] == "2 sampled updates without a height left out (a loss along the segment is not finite)."
    words = summary.describe(without_heights(sampled_walk(num_steps=10), {0, 5}))
    assert words[1].endswith("unknown: a loss along every one of 2 sampled steps is not finite.")


def test_runs_of_before_the_units_were_kept_and_loops_without_epochs():
    run = sampled_walk(gauge=False, steps_per_epoch=None, num_units=NAN)
    (samples,) = epoch_means(run)
    assert samples.rows[0][:2] == ["–", "12 of 60"]
    assert "From a few evaluation batches" in samples.notes[0]
    assert samples.notes[-1] == "Row –: the loop did not say the epoch."
    assert "evaluation batches" not in summary.describe(run)[1]


def test_words_of_a_sampled_walk():
    words = summary.describe(sampled_walk())
    assert words[0].endswith("60 updates in 3 epochs; the full training loss was sampled along 12 of them.")
    found = analysis.sampled_totals(sampled_walk())
    assert words[1] == (
        f"Its mean height above the valley floor is 6.5 ({found['height_low']:.3g} to {found['height_high']:.3g} with "
        "95 % confidence), from 16 evaluation batches of 12 sampled steps; on 92 % of the updates, as far as these "
        "stand for all, the sampled loss is lowest between the two iterates."
    )
    assert words[2] == "Whether it crosses barriers is unknown: samples do not tell."
    assert words[5].endswith(
        "0.1 (0.1 to 0.1 with 95 % confidence): on average they go past the floor of their segment."
    )


@pytest.mark.parametrize(
    ("slope", "told"),
    [
        (lambda step: -0.1, ": on average the loss still falls there."),
        (lambda step: (-1.0) ** (step // 3), "; whether they go past the floor of their segment it does not tell."),
        (lambda step: NAN, "The mean slope at the end of its updates is unknown."),
    ],
    ids=["before", "either", "unknown"],
)
def test_what_the_gauge_tells(slope, told):
    run = quadratic_walk(num_steps=40, watched=lambda step: False, measures=lambda step: {"gauge": slope(step)})
    assert summary.describe(run)[5].endswith(told)
    assert summary.describe(run)[1].endswith("is unknown: no segment was measured.")


def test_show_prints_the_means_and_no_empty_table(capsys):
    terminal.show(sampled_walk(num_steps=400))
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert "Sampled segments, by epoch:" in lines
    assert "Gauge, by epoch:" in lines
    assert "6.50 (" in text
    assert "L(θ_t)" not in text
    assert lines[-1] == "No segment was measured whole: --all lists every step."
    assert max(len(line) for line in lines if line.split()[:1] == ["2"]) <= 100
    terminal.show(sampled_walk(), rows=None)
    assert "L(θ_t)" in capsys.readouterr().out


def test_the_report_shows_the_means():
    run = sampled_walk()
    page = Page(render([run]))
    words = page.text()
    found = analysis.sampled_totals(run)
    height, bounces = key_numbers([run])[:2]
    interval = f"{found['height_low']:.3g} to {found['height_high']:.3g} with 95 % confidence"
    assert height.values == [("6.5", f"{interval}; 12 sampled steps")]
    assert bounces.values == [("92 %", "from 12 sampled steps")]
    assert "What epochs come to" in words
    assert "Segments were sampled" in words
    assert "No segment was measured" not in words
    for table in epoch_means(run):
        for cell in (cell for row in table.rows for cell in row):
            assert cell in words
        for note in table.notes:
            assert note in words
    assert "sampled height" not in words, "single ones stay in run.steps"
    assert "sampled_height" not in columns.plain_measures(run)
    assert "gauge" in columns.plain_measures(run)


def test_a_measured_walk_shows_its_own_heights_first():
    run = gradient_descent(20, measures=lambda step: {"gauge": 0.1})
    assert key_numbers([run])[0].values[0][0] == f"{run.steps['height'].mean():.3g}"
    assert [table.caption for table in means_tables(run, None)] == ["Gauge, 1 epoch"]
    assert epoch_means(gradient_descent(20)) == []


def test_the_table_of_epochs_has_no_column_of_dashes():
    header = epochs_table(sampled_walk(), None).header
    assert header[:3] == ["epoch", "updates", "watched"]
    assert not {"mean height", "barriers", "beyond noise", "floor inside", "over the edge"} & {*header}
    assert "mean height" in epochs_table(gradient_descent(20), None).header


def test_the_figure_has_a_bar_at_every_known_interval():
    run = sampled_walk()
    picture = figures.epoch_means(run)
    table = analysis.sampled_epochs(run)
    heights, gauges = picture.axes
    (bars,) = heights.collections
    found = np.array(bars.get_segments())  # (epochs, ends, x and y)
    np.testing.assert_allclose(found[:, :, 0], [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_allclose(found[:, 0, 1], table["height_low"])
    np.testing.assert_allclose(found[:, 1, 1], table["height_high"])
    (points,) = [line for line in heights.get_lines() if line.get_marker() == "o"]
    assert points.get_color() == COLOURS["blue"]
    np.testing.assert_allclose(points.get_ydata(), table["mean_height"])
    assert picture.step_axes == ()
    assert "goes from 2.5 to 10.5" in picture.alternative
    assert len(gauges.collections) == 1


@pytest.mark.parametrize(
    "run",
    [
        sampled_walk(steps_per_epoch=None),
        sampled_walk(one_in=20),
        without_heights(sampled_walk(num_steps=10), {0, 5}),
        sampled_walk(num_steps=1),
    ],
    ids=["no epochs", "no intervals", "no heights", "one step"],
)
def test_a_sampled_walk_with_little_in_it_has_a_report_and_a_figure(run):
    picture = figures.epoch_means(run, gradient_descent(5))
    assert "nan" not in picture.alternative
    assert math.isfinite(picture.axes[0].get_ylim()[1])
    assert "</html>" in render([run, sampled_walk()])


def test_a_figure_of_no_samples_is_refused():
    with pytest.raises(InputError, match="sampled segments or a gauge"):
        figures.epoch_means(gradient_descent(5))
