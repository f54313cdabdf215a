"""Tables over steps, epochs and runs against slow obvious twins, and what is undefined left out, counted and said."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdwalk import analysis, columns, report_tables, summary
from sgdwalk.errors import InputError
from sgdwalk.records import NAN, Event, SegmentPoint, StepRecord
from sgdwalk.run import UNDECIDED, Run
from sgdwalk.text import count, number, plain, sparkline
from synthetic import gradient_descent, quadratic_walk, records_of_walk, settings, stochastic_descent, troubled_walk


def run_of(records, **info) -> Run:
    return Run(settings("run", **info), records)


def moved(step, update_norm, next_distance, **changes):
    return StepRecord(step, update_norm=update_norm, next_distance=next_distance, param_norm=4.0, **changes)


# --- derived columns --------------------------------------------------------------------------------------------------


def test_path_length_directness_and_update_ratio_are_those_of_a_right_angle():
    derived = analysis.derived(run_of([moved(0, 3.0, 3.0), moved(1, 4.0, 5.0)]))
    assert derived.path_length.tolist() == [3.0, 7.0]
    assert derived.directness.tolist() == [1.0, 5.0 / 7.0]
    assert derived.update_ratio.tolist() == [0.75, 1.0]


def test_nothing_moved_has_no_directness_and_a_zero_vector_no_update_ratio():
    derived = analysis.derived(run_of([replace(moved(0, 0.0, 0.0), param_norm=0.0)]))
    assert math.isnan(derived.directness[0])
    assert math.isnan(derived.update_ratio[0])


@pytest.mark.parametrize(
    "records",
    [[moved(0, 1.0, 1.0), moved(1, NAN, 1.0), moved(2, 1.0, 1.0)], [moved(0, 1.0, 1.0), moved(2, 1.0, 1.0)]],
    ids=["undefined update", "missing step"],
)
def test_a_path_is_unknown_from_its_first_unknown_part_on(records):
    lengths = analysis.derived(run_of(records)).path_length
    assert lengths.iloc[0] == 1.0
    assert lengths.iloc[1:].isna().all()


def test_floor_at_an_end_is_not_interior_and_an_undefined_one_neither():
    losses = {0: (3, 2, 1), 1: (1, 2, 3), 2: (2, 1, 2), 3: (2, NAN, 2)}
    segments = {
        step: tuple(SegmentPoint(alpha, float(loss)) for alpha, loss in zip((0.0, 0.5, 1.0), values, strict=True))
        for step, values in losses.items()
    }
    run = run_of([StepRecord(step, segment=segment) for step, segment in segments.items()] + [StepRecord(4)])
    derived = analysis.derived(run)
    assert derived.interior_floor.tolist() == [False, False, True, pd.NA, pd.NA]
    assert derived.watched.tolist() == [True, True, True, True, False]


def test_directional_sharpness_of_gradient_descent_is_the_curvature_of_a_parabola():
    curvature, learning_rate, x = 7.0, 0.2, 1.0
    records = []
    for step in range(5):
        after = x - learning_rate * curvature * x
        line = [(1 - k / 10) * x + k / 10 * after for k in range(11)]
        points = tuple(SegmentPoint(k / 10, curvature * y * y / 2) for k, y in enumerate(line))
        records.append(StepRecord(step, learning_rate=learning_rate, segment=points))
        x = after
    sharpness = analysis.directional_sharpness(run_of(records))
    np.testing.assert_allclose(sharpness, curvature, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "group"),
    [("SGD", {"momentum": 0.9}), ("SGD", {"weight_decay": 1e-4}), ("AdamW", {})],
    ids=["momentum", "weight decay", "AdamW"],
)
def test_directional_sharpness_is_refused_where_the_step_is_not_the_gradient(name, group):
    run = run_of([StepRecord(0)], optimizers=[{"class": name, "groups": [group]}])
    with pytest.raises(InputError, match=f"plain full-batch gradient descent; this run used {name}"):
        analysis.directional_sharpness(run)


def test_measure_columns_are_the_users_own():
    assert columns.measure_columns(troubled_walk()) == ["batch_sharpness"]
    assert columns.measure_columns(gradient_descent(3)) == []


# --- epochs and runs --------------------------------------------------------------------------------------------------


def test_by_epoch_is_a_loop_over_the_steps():
    run = quadratic_walk(num_steps=50, noise=0.3, steps_per_epoch=20, bump=lambda step: 2.0 * (step % 7 == 0))
    table = analysis.by_epoch(run)
    assert table.index.tolist() == [1, 2, 3]
    for epoch, row in table.iterrows():
        steps = run.steps[run.steps.epoch == epoch]
        cosines = [value for value in steps.cosine if not math.isnan(value)]
        assert row.num_updates == len(steps)
        assert row.num_watched == len(steps)
        assert row.mean_height == pytest.approx(sum(steps.height) / len(steps), rel=1e-12)
        assert row.num_barriers == sum(steps.barrier_height > 0)
        assert row.num_significant_barriers == sum(steps.barrier_height > 4e-8)
        assert row.interior_floor_share == sum((steps.floor_alpha > 0) & (steps.floor_alpha < 1)) / len(steps)
        assert row.mean_cosine == pytest.approx(sum(cosines) / len(cosines), rel=1e-12)
        assert row.undefined_cosines == len(steps) - len(cosines)
        assert row.distance == steps.next_distance.iloc[-1]
    assert table.num_barriers.sum() > 3


def test_undefined_values_are_left_out_of_every_mean_and_counted():
    run = troubled_walk()
    row = analysis.compare([run]).loc["trouble"]
    steps, watched = run.steps, run.steps[run.steps.index.isin(run.segments.step)]
    assert row.num_watched == 29
    assert row.undefined_heights == 2
    assert row.undefined_barriers == 2
    assert row.undefined_cosines == 2
    assert row.undefined_alpha_stars == watched.alpha_star.isna().sum() == 4
    assert row.mean_height == pytest.approx(np.nanmean(watched.height), rel=1e-12)
    assert row.mean_cosine == pytest.approx(np.nanmean(steps.cosine), rel=1e-12)
    assert row.num_barriers == 2


def test_steps_without_an_epoch_stand_in_a_row_of_their_own():
    records = records_of_walk(6, steps_per_epoch=3)
    records[4] = replace(records[4], epoch=None)
    table = analysis.by_epoch(run_of(records))
    assert table.index.tolist() == [1, 2, pd.NA]
    assert table.num_updates.tolist() == [3, 2, 1]


def test_counts_of_nothing_are_unknown_not_zero():
    row = analysis.compare([quadratic_walk(num_steps=4, watched=lambda step: False)]).iloc[0]
    assert row.num_watched == 0
    assert pd.isna(row.num_barriers)
    assert pd.isna(row.mean_height)
    assert pd.isna(row.over_edge_share)
    assert row.num_updates == 4


def test_an_unknown_noise_leaves_significance_open_but_no_barrier_is_no_significant_one():
    high = quadratic_walk(num_steps=3, loss_noise=NAN, bump=lambda step: 9.0)
    assert pd.isna(analysis.totals(high)["num_significant_barriers"])
    assert analysis.totals(high)["num_barriers"] == 3
    assert analysis.totals(quadratic_walk(num_steps=3, loss_noise=NAN))["num_significant_barriers"] == 0


def test_an_empty_run_has_tables():
    run = run_of([])
    assert analysis.by_epoch(run).empty
    assert analysis.compare([run]).num_updates.tolist() == [0]
    assert analysis.left_out(run).empty
    assert len(summary.describe(run)) == 5


def test_left_out_names_every_undefined_value_with_its_reason():
    table = analysis.left_out(troubled_walk())
    rows = {(row.column, row.reason, row.number, row.first_step) for row in table.itertuples()}
    nan, inf = "the loss was not finite (nan) at α = 0.5", "the loss was not finite (inf) at α = 0"
    for column in ("floor", "floor_alpha", "height", "barrier", "barrier_height", "barrier_significant", "alpha_star"):
        assert (column, nan, 1, 5) in rows
        assert (column, inf, 1, 20) in rows
    assert ("loss", inf, 1, 20) in rows
    assert ("loss", nan, 1, 5) not in rows
    assert ("cosine", "there is no gradient before the first", 1, 0) in rows
    assert ("cosine", "the gradient before it was zero", 1, 7) in rows
    assert ("segment", "the measurement failed: out of memory", 1, 31) in rows
    assert ("batch_sharpness", "RuntimeError: no convergence", 1, 30) in rows
    assert {first for column, _, _, first in rows if column == "alpha_star"} == {3, 5, 18, 20}


def test_left_out_of_some_steps_only():
    columns = analysis.left_out(troubled_walk(), range(1, 10)).column.tolist()
    assert columns.count("cosine") == 1
    assert "segment" not in columns


def test_a_value_without_a_recorded_reason_is_still_counted():
    records = records_of_walk(3)
    records[1] = replace(records[1], distance=NAN)
    table = analysis.left_out(run_of(records))
    assert ("distance", "no reason was recorded") in set(zip(table.column, table.reason, strict=True))


# --- sparkline --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([NAN, NAN], "  "),
        ([1, math.inf, 2], "▁ █"),
        ([-3, -3], "▄▄"),
        (range(8), "▁▂▃▄▅▆▇█"),
    ],
    ids=["empty", "undefined", "infinite", "constant", "ramp"],
)
def test_sparkline(values, line):
    assert sparkline(values) == line


def test_a_long_sparkline_shows_means_of_equal_parts():
    assert sparkline([0, 2, 1, 1, 8, 0, NAN, NAN], width=4) == "▁▁█ "
    assert len(sparkline(np.random.default_rng(0).normal(size=1_000))) == 60


# --- export -----------------------------------------------------------------------------------------------------------


def test_csv_reads_back_bitwise(tmp_path):
    run = troubled_walk()
    paths = analysis.export_csv(run, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["steps.csv", "segments.csv", "epochs.csv", "events.csv"]
    steps = pd.read_csv(paths[0], index_col="step")
    for name in ("loss", "height", "cosine", "batch_sharpness", "update_norm"):
        np.testing.assert_array_equal(steps[name], run.steps[name])
    segments = pd.read_csv(paths[1])
    np.testing.assert_array_equal(segments.loss, run.segments.loss)
    assert pd.read_csv(paths[3]).kind.tolist() == ["skipped_update", "measurement_failed"]


@pytest.mark.parametrize("formula", ["=cmd()", "+1", "-1", "@x", "\t=1", "\r=1", "  =1"])
def test_no_cell_of_a_csv_is_a_formula(tmp_path, formula):
    record = StepRecord(0, measures={formula: -1.5}, reasons={"cosine": formula})
    run = Run(settings("run"), [record], [], [Event(0, 0, formula, formula)])
    analysis.export_csv(run, tmp_path)
    events = pd.read_csv(tmp_path / "events.csv")
    assert events.message.tolist() == ["'" + formula]
    assert events.kind.tolist() == ["'" + formula]
    steps = pd.read_csv(tmp_path / "steps.csv")
    assert steps.cosine_reason.tolist() == ["'" + formula]
    assert steps["'" + formula].tolist() == [-1.5], "a number keeps its sign"


def test_export_overwrites_nothing(tmp_path):
    (tmp_path / "events.csv").write_text("mine")
    with pytest.raises(InputError, match=r"events\.csv exists and is not overwritten"):
        analysis.export_csv(gradient_descent(2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]


# --- words ------------------------------------------------------------------------------------------------------------


def test_description_of_a_walk_that_bounces():
    words = summary.describe(gradient_descent(60))
    assert words[0].startswith("GD made 60 updates in 3 epochs; the full training loss was measured along 60 of them")
    assert words[1].startswith("It bounces between the walls of a valley: on 60 of 60 steps")
    assert words[2] == "It crosses no barrier in 60 steps."
    assert words[3].startswith("Consecutive gradients point in nearly opposite directions")


def test_description_of_a_walk_that_only_goes_down():
    words = summary.describe(quadratic_walk(num_steps=20, learning_rate=0.001))
    assert words[1].startswith("It mostly walks downhill: on none of 20 steps")
    assert words[3].startswith("Consecutive gradients point in nearly the same direction")


def test_description_tells_what_is_undefined():
    told = "Whether it crosses a barrier is undefined on 2 of 29 steps; on 2 of the other 27 it crosses one; "
    assert summary.describe(troubled_walk())[2].startswith(told)
    unwatched = summary.describe(quadratic_walk(num_steps=4, watched=lambda step: False))
    assert unwatched[0].endswith("measured along none of them.")
    assert "unknown" in unwatched[1]
    assert "unknown" in unwatched[2]


def estimated_walk(halfwidth, num_steps=10, **options):
    """A walk whose losses inside segments are estimated to within a share of the height; its step 0 is exact."""
    run = quadratic_walk(num_steps=num_steps, noise=0.3, **options)
    records = []
    for record, height in zip(records_of_walk(num_steps, noise=0.3, **options), run.steps["height"], strict=True):
        points = [record.segment[0], *record.segment[1:-1], record.segment[-1]]
        if record.step:
            inside = [replace(point, kind="estimated", halfwidth=halfwidth * height) for point in points[1:-1]]
            points = [points[0], *inside, points[-1]]
        looks = {"looks": 1.0 if record.step else 3.0, "nodes": 3.0, "examples_evaluated": 2000.0}
        records.append(replace(record, segment=tuple(points), measures=looks))
    return run_of(records)


def test_undecided_barriers_are_told_apart_from_undefined_ones():
    run = estimated_walk(5.0)
    assert analysis.totals(run)["undecided_barriers"] == analysis.totals(run)["undefined_barriers"] == 9
    words = summary.describe(run)
    assert words[0].startswith("run made 10 updates in 1 epoch; the full training loss was measured or ")
    assert "or estimated along 10 of them" in words[0]
    assert words[2] == (
        "Whether it crosses a barrier is undecided on 9 of 10 steps, as the intervals of the losses are too wide to "
        "tell; on the other 1 it crosses none."
    )
    barriers = next(row for row in report_tables.key_numbers([run]) if row.label == "Steps over a barrier")
    assert barriers.values == [("0", "of 1; 9 undecided")]
    crossing = summary.describe(estimated_walk(5.0, bump=lambda step: 9.0 * (step == 0)))[2]
    assert "; on 1 of the other 1 it crosses one; 1 of them rise" in crossing
    assert analysis.totals(troubled_walk())["undecided_barriers"] == 0
    reasons = analysis.left_out(run).set_index("column")["reason"]
    assert reasons["barrier"] == reasons["barrier_significant"] == UNDECIDED


@pytest.mark.parametrize(
    ("halfwidth", "told"),
    [
        (1e-5, "to within less than 0.1 % of it (the median of the 95 % intervals)."),
        (0.02, "to within 2 % of it (the median of the 95 % intervals)."),
        (2.0, "only roughly: half of the 95 % intervals reach at least "),
    ],
)
def test_how_well_estimated_heights_are_known_is_told_in_words_that_hold(halfwidth, told):
    words = summary.describe(estimated_walk(halfwidth))[5]
    assert words.startswith("Its height is estimated along 9 of 10 segments, ")
    assert told in words


def test_runs_are_compared_after_the_same_number_of_updates():
    short, long = gradient_descent(10), stochastic_descent(60)
    words = summary.describe_together([short, long])
    expected = max(short.steps.next_distance[9], long.steps.next_distance[9])
    assert any(sentence.startswith("After 10 updates ") and number(expected) in sentence for sentence in words)


def test_means_are_compared_over_the_updates_that_all_made():
    short, long = stochastic_descent(10), stochastic_descent(60, noise=1.0)
    words = summary.describe_together([short, long])
    mean, all_of_it = long.steps["height"][:10].mean(), long.steps["height"].mean()
    assert words[0].endswith(f" on average over the first 10 updates, against {number(mean)}.")
    assert number(all_of_it) not in words[0]
    assert "mean cosine over the first 10 updates" in words[1]


def test_cosines_that_cancel_are_not_called_perpendicular():
    records = records_of_walk(40, noise=0.3)
    to_and_fro = [replace(record, cosine=0.9 * (-1) ** record.step) for record in records]
    across = [replace(record, cosine=0.1 * (-1) ** record.step) for record in records]
    told = "point now the same way, now against each other (mean cosine 0)"
    assert told in summary.describe(run_of(to_and_fro))[3]
    assert "are close to perpendicular (mean cosine 0)" in summary.describe(run_of(across))[3]


def test_several_runs_are_ranked():
    runs = [quadratic_walk(name, 40, noise=noise) for name, noise in (("a", 0.1), ("b", 0.9), ("c", 0.3))]
    means = [number(run.steps.height.mean()) for run in runs]
    expected = f"b walks highest above the valley floor: {means[1]} on average; c {means[2]}, a {means[0]}."
    assert summary.describe_together(runs)[0] == expected


def test_a_run_with_nothing_defined_is_not_ranked():
    unwatched = quadratic_walk("unwatched", 5, watched=lambda step: False)
    words = summary.describe_together([stochastic_descent(5), unwatched])
    assert len(words) == 2
    assert not any("valley floor" in sentence for sentence in words)


def test_heights_above_different_data_are_not_compared():
    other = quadratic_walk(num_steps=5, info={"data": {"num_examples": 7}})
    words = summary.describe_together([gradient_descent(5), other])
    assert "different data" in words[0]
    assert not any("walks higher" in sentence for sentence in words)


def test_equal_runs_are_not_ranked():
    assert summary.describe_together([gradient_descent(5), gradient_descent(5)]) == []


# --- text -------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None), max_size=300), st.integers(1, 250))
def test_plain_text_is_visible_encodable_and_says_when_it_is_cut(text, limit):
    shown = plain(text, limit)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    shown.encode()
    assert ("characters)" in shown) >= (len(text) > limit)


def test_a_megabyte_is_cut_visibly():
    assert plain("x" * 1_000_000, 10) == "xxxxxxxxxx… (10 of 1,000,000 characters)"


@given(st.floats(-1e300, 1e300))
def test_numbers_are_right_to_the_digits_shown(value):
    read = float(number(value, 4).replace("−", "-").replace(",", ""))
    assert read == pytest.approx(value, rel=5.1e-4, abs=1e-300)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (None, "–"), (math.inf, "∞"), (-math.inf, "−∞"), (0.1, "0.1"), (2e-5, "2e−5"), (99999.0, "99,999")],
)
def test_number(value, text):
    assert number(value) == text


def test_count():
    assert count(1, "loss", "losses") == "1 loss"
    assert count(1_000, "loss", "losses") == "1,000 losses"
