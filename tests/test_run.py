"""Run: the tables of the contract, derived again from the records."""

import math

import numpy as np
import pandas as pd
import pytest

from sgdwalk import Run, RunFolderError, open_run
from sgdwalk.records import NAN, EpochNote, SegmentPoint, StepRecord
from sgdwalk.run import STEP_TABLE_COLUMNS
from storing import event, expected, filled, note, output, python, record

GRID = [k / 10 for k in range(11)]


def segment(*losses):
    return tuple(SegmentPoint(alpha, loss) for alpha, loss in zip(GRID, losses, strict=True))


def bowl(minimum=0.5):
    return segment(*((alpha - minimum) ** 2 for alpha in GRID))


def run_of(*records, **others):
    return Run({"name": "a run"}, records, **others)


def test_steps_have_the_columns_of_the_contract_in_order():
    run = run_of(record(0), record(1))
    assert run.steps.columns.tolist() == [*STEP_TABLE_COLUMNS, "sharpness", "cosine_reason"]
    assert run.steps.index.name == "step"
    assert run.steps.index.tolist() == [0, 1]
    for name in STEP_TABLE_COLUMNS:
        wanted = "boolean" if name in ("barrier", "barrier_significant") else "float64"
        assert run.steps[name].dtype == wanted, name


def test_segments_have_both_ends_and_plain_columns():
    run = run_of(record(0), StepRecord(1), record(2))
    table = run.segments
    assert table.columns.tolist() == ["step", "alpha", "loss", "kind", "halfwidth"]
    assert table["step"].tolist() == [0] * 11 + [2] * 11
    assert table["alpha"].tolist() == GRID * 2
    assert table["loss"].tolist() == [point.loss for step in (0, 2) for point in record(step).segment]
    assert set(table["kind"]) == {"exact"}
    assert (table["halfwidth"] == 0).all()


def test_derived_columns_are_those_known_on_paper():
    steps = run_of(
        StepRecord(0, segment=bowl(0.5), loss_noise=1e-3),
        StepRecord(1, segment=segment(0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0)),
        StepRecord(2, segment=bowl(0.4)),
    ).steps
    assert steps["loss"].tolist() == pytest.approx([0.25, 0, 0.16])
    assert steps["next_loss"].tolist() == pytest.approx([0.25, 0, 0.36])
    assert steps["height"].tolist() == pytest.approx([0.25, 0, 0.26])
    assert steps["barrier"].tolist() == [False, True, False]
    assert steps["barrier_height"].tolist()[1] == 1
    assert steps["barrier_significant"].tolist() == [False, True, False]
    assert steps["alpha_star"].tolist() == pytest.approx([0.5, NAN, 0.4], nan_ok=True)


def test_an_unwatched_step_has_cheap_columns_and_no_reasons():
    steps = run_of(StepRecord(0, segment=bowl(), distance=0.0), StepRecord(1, distance=1.5)).steps
    assert steps.loc[1, "distance"] == 1.5
    assert math.isnan(steps.loc[1, "height"])
    assert steps.loc[1, "barrier"] is pd.NA
    assert [name for name in steps if name.endswith("_reason")] == []


def test_loss_noise_is_the_last_measured_at_watched_steps_only():
    steps = run_of(
        StepRecord(0, segment=bowl()),
        StepRecord(1, segment=bowl(), loss_noise=1e-8),
        StepRecord(2),
        StepRecord(3, segment=bowl()),
        StepRecord(4, segment=bowl(), loss_noise=2e-8),
    ).steps
    assert steps["loss_noise"].tolist() == pytest.approx([NAN, 1e-8, NAN, 1e-8, 2e-8], nan_ok=True)
    assert steps["barrier_significant"].tolist() == [pd.NA, False, pd.NA, False, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_undefined_with_a_reason(bad):
    steps = run_of(
        StepRecord(0, segment=bowl()),
        StepRecord(1, segment=segment(1, 1, 1, bad, 1, 1, 1, 1, bad, 1, 1)),
    ).steps
    why = "the loss is not finite at α = 0.3, 0.8"
    assert steps.loc[1, ["barrier_reason", "segment_reason", "alpha_star_reason"]].tolist() == [why] * 3
    assert steps.loc[0, ["barrier_reason", "segment_reason", "alpha_star_reason"]].isna().all()
    assert steps.loc[1, "barrier"] is pd.NA
    assert steps.loc[1, ["floor", "floor_alpha", "height", "barrier_height", "alpha_star"]].isna().all()
    assert steps.loc[1, ["loss", "next_loss"]].tolist() == [1, 1]
    assert int(steps["barrier"].isna().sum()) == 1


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        pytest.param([-((alpha - 0.5) ** 2) for alpha in GRID], "not convex", id="concave"),
        pytest.param([1.0] * 11, "all losses along the segment are equal", id="flat"),
        pytest.param([1, 0] * 5 + [1], "bad fit, R² = 0.04 < 0.9", id="zigzag"),
    ],
)
def test_an_alpha_star_that_is_missing_says_why(losses, reason):
    steps = run_of(StepRecord(0, segment=segment(*losses))).steps
    assert math.isnan(steps.loc[0, "alpha_star"])
    assert steps.loc[0, "alpha_star_reason"] == reason


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_infinities_become_undefined_with_a_reason_and_given_reasons_stay(bad):
    steps = run_of(
        StepRecord(0, grad_norm=bad, measures={"sharpness": bad, "trace": 1.0}),
        StepRecord(1, grad_norm=bad, reasons={"grad_norm": "the gradient overflowed"}),
    ).steps
    assert steps["grad_norm"].isna().all()
    assert steps["grad_norm_reason"].tolist() == [f"the value is {bad:+}", "the gradient overflowed"]
    assert math.isnan(steps.loc[0, "sharpness"])
    assert steps.loc[0, "sharpness_reason"] == f"the value is {bad:+}"
    assert steps.loc[0, "trace"] == 1.0


def test_measures_of_some_steps_leave_holes_in_the_others():
    steps = run_of(
        StepRecord(0), StepRecord(1, measures={"b": 2.0}), StepRecord(2, measures={"a": 1.0, "b": 3.0})
    ).steps
    assert steps.columns.tolist()[-2:] == ["b", "a"]
    assert steps["b"].tolist() == pytest.approx([NAN, 2, 3], nan_ok=True)
    assert steps["a"].tolist() == pytest.approx([NAN, NAN, 1], nan_ok=True)


def test_epochs_merge_the_notes_of_each_epoch_and_the_last_one_wins():
    notes = [EpochNote(2, 20, {"accuracy": 0.5}), EpochNote(1, 10, {"accuracy": 0.1}), EpochNote(2, 21, {"loss": 3})]
    table = run_of(epochs=[*notes, EpochNote(2, 22, {"accuracy": 0.7})]).epochs
    assert table.index.name == "epoch"
    assert table.index.tolist() == [1, 2]
    assert table.columns.tolist() == ["accuracy", "loss"]
    assert table["accuracy"].tolist() == [0.1, 0.7]
    assert table["loss"].tolist() == pytest.approx([NAN, 3], nan_ok=True)


def test_events_come_in_order():
    table = run_of(events=[event(0), event(1)]).events
    assert table.columns.tolist() == ["sequence", "step", "kind", "message"]
    assert table["sequence"].tolist() == [0, 1]
    assert table["step"].tolist() == [0, 5]


def test_a_run_without_anything_has_empty_tables_with_all_columns():
    run = run_of()
    assert run.steps.columns.tolist() == list(STEP_TABLE_COLUMNS)
    assert run.steps["barrier"].dtype == "boolean"
    assert [len(table) for table in (run.steps, run.segments, run.epochs, run.events)] == [0, 0, 0, 0]
    assert (run.name, run.path) == ("a run", None)


def test_what_a_caller_does_to_a_table_changes_no_other_view():
    run = run_of(record(0), epochs=[note(1)], events=[event(0)])
    before = {name: getattr(run, name).copy() for name in ("steps", "segments", "epochs", "events")}
    for name in before:
        table = getattr(run, name)
        table.iloc[0, 0] = 77
        table["new"] = 1
    run.info["name"] = "changed"
    for name, table in before.items():
        pd.testing.assert_frame_equal(getattr(run, name), table)
    assert run.name == "a run"


def test_everything_derived_can_be_derived_again_from_segments():
    steps = [record(step) for step in range(30)]
    run = run_of(*steps)
    losses = run.segments.pivot(index="step", columns="alpha", values="loss")
    assert losses.min(axis=1).tolist() == run.steps["floor"].tolist()
    height = ((losses[0.0] - losses.min(axis=1)) + (losses[1.0] - losses.min(axis=1))) / 2
    assert height.tolist() == run.steps["height"].tolist()


def test_a_folder_reads_back_as_what_was_in_memory(tmp_path):
    run = open_run(filled(tmp_path / "run", 25))
    memory = Run(
        run.info,
        [record(step) for step in range(25)],
        [note(1), note(2)],
        [event(sequence) for sequence in range(5)],
    )
    for name in ("steps", "segments", "epochs", "events"):
        pd.testing.assert_frame_equal(getattr(run, name), getattr(memory, name), check_exact=True)
    assert run.path == tmp_path / "run"
    assert np.isfinite(run.steps["height"]).all()


def test_reading_needs_no_torch(tmp_path):
    folder = filled(tmp_path / "run", 12)
    code = (
        "import sys, sgdwalk, sgdwalk.valley, sgdwalk.store, storing\n"
        f"steps, notes, events = sgdwalk.store.read_run_folder({str(folder)!r})[1:]\n"
        f"assert len(sgdwalk.open_run({str(folder)!r}).steps) == 12\n"
        "assert 'torch' not in sys.modules\n"
        "print(storing.exact(steps, notes, events))"
    )
    assert output(python("-c", code)).strip() == expected(12)


def test_opening_what_is_no_run_says_so(tmp_path):
    with pytest.raises(RunFolderError, match=r"no run in .*nothing.*: it has no run\.json"):
        open_run(tmp_path / "nothing")
