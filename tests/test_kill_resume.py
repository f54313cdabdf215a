"""A training killed at any point goes on bitwise: rows, weights and every derived number are those of one never killed.

Dropout, BatchNorm, momentum, weight decay, shuffling, a schedule with gaps and values noted for each epoch are all on.
"""

import contextlib
import json
import sqlite3

import pandas as pd
import pytest

import sqlite_calls
from killing_runs import KILLS, SETTINGS
from sgdwalk import cli, open_run
from sgdwalk.store import read_run_folder
from storing import output, python

pytestmark = pytest.mark.skipif(sqlite_calls.why_not() is not None, reason=str(sqlite_calls.why_not()))

NUM_UPDATES = 20


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """The folder of all trainings, and what happened to each that was killed."""
    folder = tmp_path_factory.mktemp("trainings")
    told = output(python("-W", "ignore", "tests/killing_runs.py", folder))
    return folder, [json.loads(line) for line in told.splitlines()]


def test_every_process_was_killed_and_the_next_one_came_to_the_end(trainings):
    _, happened = trainings
    assert len(happened) == sum(KILLS.values()) + 3
    assert {code for each in happened for code in each["ended"]} == {-9}
    assert [each["folder"] for each in happened if each["resumed"] != 0] == []


def test_they_died_in_making_the_run_in_commits_in_checkpoints_and_in_segments(trainings):
    _, happened = trainings
    left = [each["left"] for each in happened]
    assert any("run.json" not in names for names in left)
    assert any("steps.sqlite-journal" in names and "run.json" in names for names in left)
    assert any(name.endswith(".partial") and name.startswith(".step-") for names in left for name in names)
    assert any("step-18" in names and "step-20" not in names for names in left)
    assert sum(each["chosen"][0][0] == "loss" for each in happened) >= 7


def exact(folder):
    """All rows in text that is equal only for equal bits; that it went on is the one thing that may differ."""
    _, steps, notes, events = read_run_folder(folder)
    return repr((steps, notes, [event for event in events if event.kind != "resumed"]))


def final_checkpoint(folder):
    """Model, optimizer, random streams and the walk's memory before update 20, whichever run's they are."""
    (path,) = folder.glob(f"checkpoints/step-{NUM_UPDATES}")
    structure = json.loads((path / "state.json").read_text())

    def without_its_own(node):
        if isinstance(node, dict):
            return {key: without_its_own(value) for key, value in node.items()}
        if isinstance(node, list):
            return [without_its_own(value) for value in node if not is_its_own(value)]
        return node

    return (path / "tensors.safetensors").read_bytes(), without_its_own(structure)


def is_its_own(node):
    """What differs between two runs of one training: how often it was told of a resume, and which run it is."""
    return isinstance(node, list) and len(node) == 2 and node[0] in ("num_events", "id", "name", "created")


def test_rows_are_those_of_the_uninterrupted_run_without_gap_or_duplicate(trainings):
    folder, happened = trainings
    expected = exact(folder / "uninterrupted")
    for each in happened:
        assert exact(folder / each["folder"]) == expected, each["folder"]
        assert open_run(folder / each["folder"]).steps.index.tolist() == list(range(NUM_UPDATES))


def test_weights_optimizer_and_random_streams_are_those_of_the_uninterrupted_run(trainings):
    folder, happened = trainings
    expected = final_checkpoint(folder / "uninterrupted")
    assert len(expected[0]) > 1000
    for each in happened:
        assert final_checkpoint(folder / each["folder"]) == expected, each["folder"]


@pytest.mark.parametrize("table", ["steps", "segments", "epochs"])
def test_every_derived_number_is_that_of_the_uninterrupted_run(trainings, table):
    folder, happened = trainings
    expected = getattr(open_run(folder / "uninterrupted"), table)
    assert len(expected) >= 4
    for each in happened:
        found = getattr(open_run(folder / each["folder"]), table)
        pd.testing.assert_frame_equal(found, expected, check_exact=True, obj=each["folder"])


def test_a_watched_step_is_stored_whole_or_not_at_all(trainings):
    folder, _ = trainings
    points = open_run(folder / "uninterrupted").segments.groupby("step")["alpha"].apply(list)
    assert points.index.tolist() == list(range(0, NUM_UPDATES, 2))
    assert all(alphas == [0.0, 0.25, 0.5, 0.75, 1.0] for alphas in points)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys):
    command = [*SETTINGS, "--out", str(tmp_path), "--name", "damaged", "--resume"]
    assert cli.main(command) == 0
    damaged = tmp_path / "damaged"
    expected = exact(damaged), final_checkpoint(damaged)
    tensors = damaged / "checkpoints" / "step-20" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    # A finished run is left alone: take its last rows away, as if its last second had been lost.
    with contextlib.closing(sqlite3.connect(damaged / "steps.sqlite")) as database, database:
        for name in ("steps", "segments"):
            database.execute(f"DELETE FROM {name} WHERE step >= 19")
    assert cli.main(command) == 0
    complaints = capsys.readouterr().err
    assert "step-20 is damaged" in complaints
    assert "going on from step-18" in complaints
    assert (exact(damaged), final_checkpoint(damaged)) == expected
