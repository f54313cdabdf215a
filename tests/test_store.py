"""The run folder without faults: what is written is read, bit by bit, and a run goes on where it stood."""

import json
import math
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from sgdwalk import InputError, RunFolderError, open_run
from sgdwalk.records import NAN, SCHEMA_VERSION, EpochNote, Event, SegmentPoint, StepRecord
from sgdwalk.store import RunWriter, holds_run, read_run_folder
from storing import INFO, event, exact, expected, filled, note, output, python, record, write_steps


@pytest.fixture
def writer(tmp_path):
    writer = RunWriter.create(tmp_path / "run", INFO)
    yield writer
    writer.close()


def stored(folder):
    return exact(*read_run_folder(folder)[1:])


def test_what_is_committed_is_read_back_bit_by_bit(tmp_path):
    folder = filled(tmp_path / "run", 25)
    assert stored(folder) == expected(25)


def test_the_folder_holds_plain_json_and_a_plain_database(tmp_path):
    folder = filled(tmp_path / "run", 3)
    info = json.loads((folder / "run.json").read_text())
    assert info == {"schema_version": SCHEMA_VERSION, **INFO}
    database = sqlite3.connect(folder / "steps.sqlite")
    assert database.execute("SELECT count(*) FROM segments").fetchone() == (33,)
    assert database.execute("SELECT cosine FROM steps WHERE step = 0").fetchone() == (None,)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    database.close()


def test_records_wait_in_memory_until_they_are_committed(writer):
    write_steps(writer, range(10))
    assert writer.num_pending == 10 + 2 + 1
    assert stored(writer.folder) == expected(0)
    assert exact(*writer.read()[1:]) == expected(10)
    assert writer.commit()
    assert writer.num_pending == 0
    assert stored(writer.folder) == expected(10)
    write_steps(writer, range(10, 13))
    assert exact(*writer.read()[1:]) == expected(13)


def test_a_commit_is_due_a_second_after_the_last(writer, monkeypatch):
    now = writer._last_attempt
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert writer.commit_if_due()
    writer.append(record(0))
    now += 0.9
    assert not writer.commit_if_due()
    now += 0.1
    assert writer.commit_if_due()
    assert len(read_run_folder(writer.folder)[1]) == 1


@pytest.mark.parametrize(
    "value",
    [5e-324, 1.7976931348623157e308, 0.1, 1 / 3, -2.5e-17, 2.0, 1e15, 2**53 + 2.0, -0.0],
)
def test_every_float_survives(writer, value):
    point = SegmentPoint(0.5, value, "estimated", abs(value))
    writer.append(StepRecord(0, batch_loss=value, segment=(point,), measures={"m": value}))
    writer.note_epoch(EpochNote(1, 1, {"v": value}))
    assert writer.commit()
    _, [step], [epoch], _ = read_run_folder(writer.folder)
    assert step.batch_loss == value
    assert step.segment == (point,)
    assert step.measures == {"m": value}
    assert epoch.values == {"v": value}
    assert isinstance(step.batch_loss, float)


def test_undefined_values_are_null_with_their_reason(writer):
    points = (SegmentPoint(0.0, 1.0), SegmentPoint(0.5, math.inf), SegmentPoint(1.0, NAN))
    writer.append(
        StepRecord(
            0,
            grad_norm=math.inf,
            distance=NAN,
            segment=points,
            measures={"sharpness": -math.inf},
            reasons={"distance": "θ is not finite"},
        )
    )
    writer.note_epoch(EpochNote(1, 1, {"loss": NAN, "bound": math.inf}))
    assert writer.commit()
    _, [step], [epoch], _ = read_run_folder(writer.folder)
    assert math.isnan(step.grad_norm)
    assert math.isnan(step.measures["sharpness"])
    assert [math.isnan(point.loss) for point in step.segment] == [False, True, True]
    assert step.reasons == {
        "segment": "the loss is not finite at α = 0.5, 1",
        "grad_norm": "the value is +inf",
        "sharpness": "the value is -inf",
        "distance": "θ is not finite",
    }
    assert math.isnan(epoch.values["loss"])
    assert epoch.values["bound"] == math.inf
    database = sqlite3.connect(writer.folder / "steps.sqlite")
    assert database.execute("SELECT grad_norm, distance FROM steps").fetchall() == [(None, None)]
    assert database.execute("SELECT loss FROM segments ORDER BY alpha").fetchall() == [(1.0,), (None,), (None,)]
    database.close()


def test_numpy_numbers_are_stored_as_numbers(writer):
    half = np.float32(0.5)
    writer.append(StepRecord(np.int64(0), np.int64(1), half, segment=(SegmentPoint(half, half),), measures={"m": half}))
    writer.note_epoch(EpochNote(np.int64(1), np.int64(1), {"v": half}))
    assert writer.commit()
    _, [step], [epoch], _ = read_run_folder(writer.folder)
    assert (step.step, step.epoch, step.learning_rate, step.measures, epoch.values) == (
        0,
        1,
        0.5,
        {"m": 0.5},
        {"v": 0.5},
    )
    assert step.segment == (SegmentPoint(0.5, 0.5),)


STRANGE = ["'; DROP TABLE steps; --", '"quoted"', "a b", "=cmd()", "日本語 θ", "nul\0inside", "\u2028", "<b>", "?1", ""]


@pytest.mark.parametrize("text", STRANGE)
def test_strange_text_is_kept_and_never_run(writer, text):
    writer.append(StepRecord(0, measures={text: 1.5}, reasons={text: text}))
    writer.note_epoch(EpochNote(1, 1, {text: 2.5}))
    writer.add_event(Event(0, 0, text, text))
    assert writer.commit()
    _, [step], [epoch], [happened] = read_run_folder(writer.folder)
    assert step.measures == {text: 1.5}
    assert step.reasons == {text: text}
    assert epoch.values == {text: 2.5}
    assert happened == Event(0, 0, text, text)
    assert text in open_run(writer.folder).steps.columns


def test_text_that_utf8_cannot_hold_is_escaped(writer):
    writer.append(StepRecord(0, reasons={"cosine": "file \udcff"}))
    writer.add_event(Event(0, 0, "measurement_failed", "no such file: \udcff"))
    assert writer.commit()
    assert read_run_folder(writer.folder)[3][0].message == "no such file: \\udcff"


def test_a_value_noted_again_for_its_epoch_is_overwritten(writer):
    writer.note_epoch(EpochNote(1, 10, {"accuracy": 0.1, "loss": 2.0}))
    writer.commit()
    writer.note_epoch(EpochNote(1, 11, {"accuracy": 0.3}))
    wanted = [EpochNote(1, 11, {"accuracy": 0.3}), EpochNote(1, 10, {"loss": 2.0})]
    assert writer.read()[2] == wanted
    writer.commit()
    assert read_run_folder(writer.folder)[2] == wanted


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "pending"])
@pytest.mark.parametrize("step", [0, 1, 13, 20, 25])
def test_rewind_leaves_the_walk_as_it_was_before_the_step(writer, step, committed):
    write_steps(writer, range(25))
    if committed:
        writer.commit()
    writer.rewind(step, num_events=math.ceil(step / 5))
    assert exact(*writer.read()[1:]) == expected(step)
    assert writer.last_step == step - 1
    write_steps(writer, range(step, 25))
    assert writer.commit()
    assert stored(writer.folder) == expected(25)


def test_resume_goes_on_where_the_run_stood(tmp_path):
    folder = filled(tmp_path / "run", 13)
    writer = RunWriter.resume(folder)
    assert writer.last_step == 12
    assert writer.info == {"schema_version": SCHEMA_VERSION, **INFO}
    write_steps(writer, range(13, 25))
    assert writer.close()
    assert stored(folder) == expected(25)


def test_close_commits_lets_go_and_may_be_repeated(tmp_path):
    writer = RunWriter.create(tmp_path / "run", INFO)
    writer.append(record(0))
    assert writer.close()
    assert writer.close()
    assert len(read_run_folder(writer.folder)[1]) == 1
    again = RunWriter.resume(writer.folder)
    assert again.close()


def test_a_repeated_commit_of_the_same_rows_changes_nothing(writer):
    write_steps(writer, range(12))
    rows = writer._pending
    writer.commit()
    writer._pending = rows  # as after a commit that succeeded and whose answer was an error
    assert exact(*writer.read()[1:]) == expected(12)
    assert writer.commit()
    assert stored(writer.folder) == expected(12)


@pytest.mark.parametrize("content", ["run", "file"])
def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path, content):
    folder = tmp_path / "run"
    if content == "run":
        filled(folder, 2)
        wanted = "already holds a run: pass resume=True"
    else:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        wanted = r"is not empty \(it holds 'notes.txt'\): name a new folder"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunFolderError, match=wanted):
        RunWriter.create(folder, INFO)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunFolderError, match=r"cannot make the run folder .*File exists"):
        RunWriter.create(tmp_path / "run", INFO)


def test_an_empty_folder_will_do(tmp_path):
    assert RunWriter.create(tmp_path, INFO).close()
    assert holds_run(tmp_path)


@pytest.mark.parametrize("value", [math.inf, {1, 2}], ids=["infinity", "set"])
def test_a_description_that_json_cannot_hold_is_refused_before_anything_is_made(tmp_path, value):
    with pytest.raises(InputError, match="must be plain JSON values"):
        RunWriter.create(tmp_path / "run", {"config": {"x": value}})
    assert not (tmp_path / "run").exists()


def test_resuming_what_is_no_run_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(RunFolderError, match="no run in"):
        RunWriter.resume(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None])
@pytest.mark.parametrize("opened", [read_run_folder, RunWriter.resume, open_run])
def test_another_schema_version_is_refused_not_guessed(tmp_path, version, opened):
    folder = filled(tmp_path / "run", 2)
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": version}))
    before = (folder / "steps.sqlite").read_bytes()
    with pytest.raises(RunFolderError, match=f"schema version {version!r}, this sgdwalk reads {SCHEMA_VERSION}: open"):
        opened(folder)
    assert (folder / "steps.sqlite").read_bytes() == before


def test_a_database_of_another_schema_version_is_refused(tmp_path):
    folder = filled(tmp_path / "run", 2)
    database = sqlite3.connect(folder / "steps.sqlite")
    database.execute("UPDATE meta SET value = 2")
    database.commit()
    database.close()
    with pytest.raises(RunFolderError, match=f"its tables are not those of schema version {SCHEMA_VERSION}"):
        read_run_folder(folder)


@pytest.mark.parametrize("name", ["nul\0", "bell\a", "new\nline", "escape\x1b[31m", "c1\x85"])
@pytest.mark.parametrize("opened", [open_run, lambda folder: RunWriter.create(folder, INFO)], ids=["open", "create"])
def test_control_characters_in_the_folders_name_are_refused(tmp_path, name, opened):
    with pytest.raises(RunFolderError, match="holds a control character: choose another name"):
        opened(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["with space", "日本語 θ_t", "-rf", "a?b#c%20d&e=f", "CON", "x" * 200, "'; DROP TABLE steps; --", "back\\slash"],
)
def test_any_other_path_will_do(tmp_path, name):
    folder = filled(tmp_path / name / "run", 12)
    assert stored(folder) == expected(12)
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_a_name_that_is_no_text_will_do(tmp_path):
    folder = filled(Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")), 3)
    assert stored(folder) == expected(3)


def test_the_longest_path_works_and_a_longer_one_is_refused(tmp_path):
    parent = tmp_path
    while len(str(parent)) < 350:
        parent = parent / ("long" * 10)
    fitting = parent / ("x" * (504 - len("/steps.sqlite") - len(str(parent)) - 1))
    assert stored(filled(fitting, 3)) == expected(3)
    with pytest.raises(RunFolderError, match="path is too long: 505 bytes with its database, at most 504"):
        RunWriter.create(Path(f"{fitting}x"), INFO)
    with pytest.raises(RunFolderError, match="File name too long"):
        RunWriter.create(tmp_path / ("x" * 300), INFO)


def test_a_symbolic_link_to_a_folder_serves_as_the_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    folder = filled(tmp_path / "run", 5)
    assert folder.is_symlink()
    assert stored(tmp_path / "elsewhere") == expected(5)


NAMES = {"parent": "../../x", "absolute": "/etc/passwd", "nul": "\0", "device": "CON", "long": "x" * 1_000_000}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_the_runs_name_is_text_and_never_a_path(tmp_path, name):
    writer = RunWriter.create(tmp_path / "inside" / "run", {**INFO, "name": name})
    assert writer.close()
    assert open_run(writer.folder).name == name
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["inside", "run"]


def test_changing_the_working_directory_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = RunWriter.create(Path("run"), INFO)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    write_steps(writer, range(3))
    assert writer.close()
    assert stored(tmp_path / "run") == expected(3)


ENVIRONMENTS = [
    {"TZ": "Pacific/Chatham", "LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "1"},
    {"TZ": "America/St_Johns", "LC_ALL": "C", "PYTHONHASHSEED": "12345", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=["german", "ascii"])
def test_the_same_rows_under_any_clock_locale_and_hash_seed(tmp_path, environment):
    folder = tmp_path / "mit Leerzeichen θ" / ("sehr lang " * 10).strip()
    code = "import sys, storing; storing.filled(storing.Path(sys.argv[1]), 25)"
    output(python("-c", code, folder, env=environment))
    assert stored(folder) == expected(25)
    code = "import sys, storing, sgdwalk.store as s; print(ascii(storing.exact(*s.read_run_folder(sys.argv[1])[1:])))"
    assert output(python("-c", code, folder, env=environment)).strip() == ascii(expected(25))
    assert (folder / "steps.sqlite").read_bytes() == (filled(tmp_path / "here", 25) / "steps.sqlite").read_bytes()


def test_a_clock_that_jumps_back_changes_no_order(writer, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 0.0)
    write_steps(writer, range(5))
    writer.commit()
    monkeypatch.setattr("time.time", lambda: -1e9)
    write_steps(writer, range(5, 12))
    writer.commit()
    assert stored(writer.folder) == expected(12)


def test_notes_and_events_alone_are_committed(writer):
    writer.note_epoch(note(1))
    writer.add_event(event(0))
    assert writer.commit()
    assert read_run_folder(writer.folder)[2:] == ([note(1)], [event(0)])
