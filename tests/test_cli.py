"""The command line: what it prints where, its exit codes, and that it survives bad input, signals and hostile names."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings

import pandas as pd
import pytest

import sgdwalk
from sgdwalk import cli
from sgdwalk.paper import estimate, registry
from sgdwalk.records import Event, SegmentPoint, StepRecord
from sgdwalk.store import RunWriter
from sgdwalk.terminal import cell
from sgdwalk.text import sparkline
from storing import output, python
from synthetic import records_of_walk, settings

TINY = shlex.split("--num-train 120 --hidden 7 5 --batch-size 30 --num-points 2 --epochs 2")
HOSTILE = "a\x1b[31mred\x1b[0m\x07\r\n\u2028<script>alert(1)</script>{{7*7}}"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def run_tiny(out, *more):
    return cli.main(["run", *TINY, "--out", str(out), *more])


def stored(folder, name="walk", num_steps=60, events=(), config=None, **changes):
    """A run folder made of numbers alone."""
    writer = RunWriter.create(folder, settings(name, config=config or {}))
    for record in records_of_walk(num_steps, noise=0.4, **changes):
        writer.append(record)
    for event in events:
        writer.add_event(event)
    assert writer.close()
    return folder


# --- run -------------------------------------------------------------------------------------------------------------


def test_run_puts_results_on_stdout_and_progress_on_stderr(out, capsys):
    assert run_tiny(out) == 0
    printed = capsys.readouterr()
    assert "digits-sgd made 8 updates in 2 epochs" in printed.out
    assert f"sgdwalk show {out}/digits-sgd" in printed.out
    assert "update 8 of 8, 100%" in printed.err
    assert "update" not in printed.out.replace("updates", "")
    run = sgdwalk.open_run(out / "digits-sgd")
    assert len(run.steps) == 8
    assert run.steps["height"].notna().all()
    assert run.name == "digits-sgd"


def test_run_takes_every_setting(out):
    more = shlex.split(
        "--algorithm gd --gd-gradient sum --learning-rate 0.3 --momentum 0.5 --weight-decay 0.001 --dropout 0.1 "
        "--steps 1 --seed 5 --watch-first 1 --name own"
    )
    assert run_tiny(out, *more) == 0
    experiment = sgdwalk.open_run(out / "own").info["config"]["experiment"]
    chosen = {
        "algorithm": "gd",
        "gd_gradient": "sum",
        "learning_rate": 0.3,
        "momentum": 0.5,
        "weight_decay": 0.001,
        "dropout": 0.1,
        "steps": 1,
        "seed": 5,
        "watch_first": 1,
        "hidden": [7, 5],
        "num_train": 120,
    }
    assert {name: experiment[name] for name in chosen} == chosen


def test_an_existing_run_is_refused_without_resume_and_left_as_it_is(out, capsys):
    assert run_tiny(out) == 0
    before = (out / "digits-sgd" / "steps.sqlite").read_bytes()
    capsys.readouterr()
    assert run_tiny(out) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    expected = (
        f"error: {out}/digits-sgd already holds a run: go on with it by adding --resume, or choose another --name.\n"
    )
    assert printed.err == expected
    assert (out / "digits-sgd" / "steps.sqlite").read_bytes() == before


def test_resume_of_a_finished_run_says_so(out, capsys):
    assert run_tiny(out, "--resume") == 0  # where there is none, it starts one
    capsys.readouterr()
    assert run_tiny(out, "--resume") == 0
    assert capsys.readouterr().out == f"{out}/digits-sgd is finished: all its 8 updates are there. Nothing to do.\n"


def test_resume_with_other_settings_is_refused_and_names_them(out, capsys):
    assert run_tiny(out) == 0
    capsys.readouterr()
    assert run_tiny(out, "--resume", "--learning-rate", "0.2", "--seed", "3") == 1
    message = capsys.readouterr().err
    assert "learning_rate: 0.1 in the run, 0.2 now; seed: 0 in the run, 3 now" in message
    assert message.count("\n") == 1


def test_resume_on_other_data_is_refused(out, capsys, monkeypatch):
    assert cli.main(["run", *TINY, "--out", str(out), "--name", "whole"]) == 0
    begun = out / "begun"
    (out / "whole").rename(begun)
    take_back_last_step(begun)
    from sgdwalk.paper import data

    load = data.load

    def changed(*arguments):
        training, validation = load(*arguments)
        training.targets[0] = 9 - training.targets[0]
        return training, validation

    monkeypatch.setattr(data, "load", changed)
    capsys.readouterr()
    assert cli.main(["run", *TINY, "--out", str(out), "--name", "begun", "--resume"]) == 1
    assert "data" in capsys.readouterr().err


def test_resume_with_other_threads_warns_and_records_it(out, capsys):
    import torch

    assert run_tiny(out) == 0
    take_back_last_step(out / "digits-sgd")
    capsys.readouterr()
    threads = torch.get_num_threads()
    try:
        assert run_tiny(out, "--resume", "--num-threads", "2") == 0
    finally:
        torch.set_num_threads(threads)
    assert "num_threads" in capsys.readouterr().err
    assert sgdwalk.open_run(out / "digits-sgd").events["message"].str.contains("num_threads").any()


def test_resume_with_another_torch_warns_and_records_it(out, capsys):
    assert run_tiny(out) == 0
    folder = out / "digits-sgd"
    take_back_last_step(folder)
    info = json.loads((folder / "run.json").read_text())
    info["provenance"]["torch"] = "2.0.1"
    (folder / "run.json").write_text(json.dumps(info))
    capsys.readouterr()
    assert run_tiny(out, "--resume") == 0
    assert "2.0.1" in capsys.readouterr().err
    assert sgdwalk.open_run(folder).events["message"].str.contains("2.0.1", regex=False).any()


def take_back_last_step(folder):
    """As if the end of a training had been lost: its last row, and its only checkpoint."""
    last = sgdwalk.open_run(folder).steps.index[-1]
    with contextlib.closing(sqlite3.connect(folder / "steps.sqlite")) as database, database:
        for table in ("steps", "segments"):
            database.execute(f"DELETE FROM {table} WHERE step = {last}")
    shutil.rmtree(folder / "checkpoints")


@pytest.mark.parametrize("name", ["../elsewhere", "/absolute", "..", ".", "", "a/b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(out, capsys, name):
    assert run_tiny(out, "--name", name) == 1
    assert "is no name for a folder" in capsys.readouterr().err
    assert not out.exists()


def test_a_name_with_control_characters_is_refused_and_printed_inert(out, capsys):
    assert run_tiny(out, "--name", "bell\x07\x1b[2J") == 1
    message = capsys.readouterr().err
    assert "control character" in message
    assert "\x1b" not in message
    assert "\x07" not in message


def test_mnist_without_its_files_says_what_to_put_where(out, tmp_path, capsys):
    assert cli.main(["run", "--dataset", "mnist", "--data-dir", str(tmp_path), "--out", str(out)]) == 1
    assert "no file train-*.parquet in" in capsys.readouterr().err
    assert not out.exists()


def test_a_loss_that_becomes_nan_is_recorded_and_training_goes_on(out, capsys):
    assert run_tiny(out, "--learning-rate", "1e30") == 0
    steps = sgdwalk.open_run(out / "digits-sgd").steps
    assert len(steps) == 8
    assert steps["loss"].isna().any()
    assert cli.main(["show", str(out / "digits-sgd")]) == 0
    assert "–" in capsys.readouterr().out


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of"),
        (["walk"], "walk"),
        (["run", "--epochs", "0"], "epochs must be an integer of at least 1; got 0."),
        (["run", "--num-points", "1"], "num_points must be an integer of at least 2; got 1."),
        (["run", "--batch-size", "many"], "batch-size"),
        (["run", "--watch-epochs", "3", "--steps", "20"], "none of the 20 updates is watched"),
        (["run", "--no-such-option"], "no-such-option"),
        (["reproduce", "fig29"], "fig29"),
        (["show"], "run"),
    ],
    ids=str,
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in " ".join(printed.err.replace("│", " ").split())


@pytest.mark.parametrize("command", ["run", "reproduce", "report", "show", "list"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: sgdwalk {command}" in text
    assert len(text.splitlines()) > 8
    assert "{None}|{None}" not in text


def test_help_of_run_teaches_every_setting(capsys):
    from dataclasses import fields

    from sgdwalk.paper.config import Execution, Experiment

    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    assert "--after" not in text  # a whole training, which no argument could describe
    for field in (*fields(Experiment), *fields(Execution)):
        assert field.name == "after" or f"--{field.name.replace('_', '-')}" in text
    for words in ("--resume", "the paper's is 0.1", "Full-batch" if "Full-batch" in text else "full-batch"):
        assert words in text


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sgdwalk {sgdwalk.__version__}\n"


# --- show, list, report ----------------------------------------------------------------------------------------------


def test_show_tells_the_walk_and_draws_its_height(tmp_path, capsys):
    folder = stored(tmp_path / "run", num_steps=60)
    assert cli.main(["show", str(folder), "--rows", "6"]) == 0
    text = capsys.readouterr().out
    run = sgdwalk.open_run(folder)
    assert "walk" in text.splitlines()[0]
    assert "60 updates" in text
    assert f"height {sparkline(run.steps['height'])}" in text
    listed = [line.split()[0] for line in text.splitlines() if line.strip() and line.split()[0].isdigit()]
    assert listed == ["0", "1", "2", "57", "58", "59", "54"]  # … and the 54 that are left out
    assert "54 steps more" in text
    assert cell(run.steps["distance"].iloc[58]) in text
    assert "\x1b" not in text


def test_show_says_the_name_once_where_the_folder_has_it(tmp_path, capsys):
    cli.main(["show", str(stored(tmp_path / "walk", num_steps=3))])
    assert capsys.readouterr().out.startswith(f"{tmp_path}/walk, 3 updates\n")
    cli.main(["show", str(stored(tmp_path / "folder", num_steps=3))])
    assert capsys.readouterr().out.startswith(f"walk ({tmp_path}/folder), 3 updates\n")


def test_show_all_lists_every_step(tmp_path, capsys):
    folder = stored(tmp_path / "run", num_steps=30, watched=lambda step: step % 10 == 0)
    assert cli.main(["show", str(folder)]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:5].strip().isdigit()]
    assert listed == ["0", "10", "20"]
    assert cli.main(["show", str(folder), "--all"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:5].strip().isdigit()]
    assert listed == [str(step) for step in range(30)]


def test_show_of_a_run_without_a_step_or_a_segment(tmp_path, capsys):
    stored(tmp_path / "empty", num_steps=0)
    stored(tmp_path / "unwatched", num_steps=5, watched=lambda step: False)
    for name in ("empty", "unwatched"):
        assert cli.main(["show", str(tmp_path / name), "--all"]) == 0
    assert "5 updates" in capsys.readouterr().out


def test_hostile_names_are_inert_in_the_terminal(tmp_path, capsys):
    segment = tuple(SegmentPoint(alpha, 1.0) for alpha in (0.0, 0.5, 1.0))
    writer = RunWriter.create(tmp_path / "run", settings(HOSTILE))
    writer.append(StepRecord(0, segment=segment, measures={HOSTILE: 1.0}, reasons={"cosine": HOSTILE}))
    writer.add_event(Event(0, 0, HOSTILE, HOSTILE))
    writer.close()
    assert cli.main(["show", str(tmp_path / "run")]) == 0
    assert cli.main(["list", str(tmp_path)]) == 0
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not set(text) & {"\x1b", "\x07", "\r", "\u2028"}
    assert "a\\x1b[31mred" in printed.out


def test_a_run_that_is_not_there_is_one_clear_line(tmp_path, capsys):
    for command in ("show", "report"):
        assert cli.main([command, str(tmp_path / "nothing")]) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"error: no run in {tmp_path}/nothing")
        assert message.count("\n") == 1


def test_a_folder_of_runs_is_no_run_and_names_those_in_it(tmp_path, capsys):
    for name in "bca":
        RunWriter.create(tmp_path / name, {"name": name}).close()
    assert cli.main(["show", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("it has no run.json; name one of those below it: 'a', 'b', 'c'.\n")


def test_a_damaged_run_is_named_and_the_others_are_listed(tmp_path, capsys):
    folder = stored(tmp_path / "damaged")
    content = bytearray((folder / "steps.sqlite").read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    (folder / "steps.sqlite").write_bytes(content)
    stored(tmp_path / "whole")
    assert cli.main(["show", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert cli.main(["list", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{folder}: cannot be read: " in text
    assert f"{tmp_path}/whole: walk, 60 updates" in text


def test_list_tells_what_can_be_reproduced_and_the_state_of_runs(out, capsys):
    assert run_tiny(out, "--name", "finished") == 0
    assert run_tiny(out / "deeper", "--name", "begun") == 0
    take_back_last_step(out / "deeper" / "begun")
    capsys.readouterr()
    assert cli.main(["list", str(out)]) == 0
    text = capsys.readouterr().out
    for figure in ("fig17", "fig18", "fig19"):
        assert figure in text
    assert f"{out}/finished: finished, 8 of 8 updates, finished" in text
    assert f"{out}/deeper/begun: begun, 7 of 8 updates, not finished" in text


def test_a_run_that_is_being_written_is_told_from_one_that_was_killed(tmp_path, capsys):
    writer = RunWriter.create(tmp_path / "run", settings("walk", config={}))
    assert cli.main(["list", str(tmp_path)]) == 0
    assert "run: walk, 0 updates, being written\n" in capsys.readouterr().out
    assert output(python("-m", "sgdwalk", "list", tmp_path)).endswith("run: walk, 0 updates, being written\n")
    writer.append(StepRecord(0))  # looking did not take the lock away
    assert writer.close()
    assert cli.main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("run: walk, 1 update\n")


def test_list_of_a_folder_without_runs(tmp_path, capsys):
    assert cli.main(["list", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert f"No run in {tmp_path} or any folder in it. If yours are elsewhere: sgdwalk list FOLDER." in told
    assert "To make one: sgdwalk run, or sgdwalk.watch(..., run=FOLDER)" in told
    assert cli.main(["list", str(tmp_path / "nothing")]) == 0
    assert f"No runs: {tmp_path}/nothing is no folder." in capsys.readouterr().out


def test_report_prints_the_path_and_what_it_shows_in_five_lines(tmp_path, capsys):
    first, second = stored(tmp_path / "gd", name="GD"), stored(tmp_path / "sgd", name="SGD", seed=3)
    assert cli.main(["report", str(first), str(second), "--out", str(tmp_path / "report.html")]) == 0
    path, *lines = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "report.html")
    assert len(lines) == 5
    assert lines[0].startswith("GD: ")
    assert lines[1].startswith("SGD: ")
    assert "</html>" in (tmp_path / "report.html").read_text("utf-8")


def test_report_of_one_run_goes_into_its_folder(tmp_path, capsys):
    folder = stored(tmp_path / "run")
    assert cli.main(["report", str(folder)]) == 0
    path, *lines = capsys.readouterr().out.splitlines()
    assert path == str(folder / "report.html")
    assert len(lines) == 5


def test_report_of_nothing_is_refused(capsys):
    assert cli.main(["report"]) == 1
    assert "name at least one run folder" in capsys.readouterr().err


# --- reproduce --------------------------------------------------------------------------------------------------------


@pytest.fixture
def an_hour_each(monkeypatch):
    """Trainings are not timed: an hour and a gigabyte each."""
    monkeypatch.setattr(
        estimate, "estimate", lambda experiments, *_: [estimate.Estimate(each, 3600.0, 1e9) for each in experiments]
    )
    monkeypatch.setattr(estimate, "start_seconds", lambda experiments: 0.0)


def test_a_dry_run_tells_a_line_for_each_id_and_the_total(out, capsys, an_hour_each):
    choosing = next(id for id in registry.IDS if registry.figure(id, "small").choice)
    ids = ["fig17", "fig18", "fig19", choosing]
    asked = ["reproduce", *ids, "--scale", "small", "--dry-run", "--out", str(out)]
    assert cli.main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = {id: registry.figure(id, "small") for id in registry.IDS if id in ids}
    assert [line.partition(":")[0] for line in lines[:-1]] == list(wanted)
    for line, each in zip(lines, wanted.values(), strict=False):
        assert line.startswith(f"{each.id}: {len(each.experiments)} trainings, {len(each.experiments)}:00 h")
    num_chosen = sum(len(each.choice.like) for each in wanted.values() if each.choice)
    of_choosing = next(line for line in lines if line.startswith(f"{choosing}: "))
    assert of_choosing.endswith(f"; {num_chosen} more, chosen by what these come to, {num_chosen}:00 h")
    together = {experiment for each in wanted.values() for experiment in each.experiments}
    assert len(together) < sum(len(each.experiments) for each in wanted.values()), "or no training is shared"
    told = f"{len(together) + num_chosen} trainings are missing, each counted once however many ids need it: "
    assert lines[-1].startswith(told)
    assert not out.exists()

    assert cli.main([*asked, "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(together) + num_chosen + 1
    assert sum(line.startswith("like one that is chosen by what others come to: ") for line in lines) == num_chosen
    assert all(line.endswith(": 1:00 h, 1,000 MB") for line in lines[:-1])


# --- processes -------------------------------------------------------------------------------------------------------


def test_reading_commands_import_no_torch(tmp_path):
    folder = stored(tmp_path / "run")
    code = (
        "import sys\n"
        "from sgdwalk.cli import main\n"
        f"assert main(['show', {str(folder)!r}]) == 0\n"
        f"assert main(['list', {str(tmp_path)!r}]) == 0\n"
        f"assert main(['report', {str(folder)!r}]) == 0\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "print('torch' in sys.modules)"
    )
    assert output(python("-c", code)).splitlines()[-1] == "False"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"])
def test_a_signal_stops_cleanly_keeps_all_and_the_printed_command_goes_on(tmp_path, number, code):
    settings = [*TINY, "--epochs", "60", "--watch-every", "4", "--dropout", "0.2", "--out", "runs with space"]
    process = python("-m", "sgdwalk", "run", *settings, cwd=tmp_path)
    folder = tmp_path / "runs with space" / "digits-sgd"
    while process.poll() is None:
        with contextlib.suppress(sgdwalk.RunFolderError):
            if len(sgdwalk.open_run(folder).steps) > 0:
                break
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "everything measured is kept in runs with space/digits-sgd" in stderr
    command = stderr.splitlines()[-1].strip()
    assert command == shlex.join(["sgdwalk", "run", *settings, "--resume"])

    run = sgdwalk.open_run(folder)
    assert 0 < len(run.steps) < 240
    assert run.steps.index.tolist() == list(range(len(run.steps)))
    newest = max(int(path.name[5:]) for path in (run.path / "checkpoints").glob("step-*"))
    assert newest == len(run.steps)  # nothing has to be done twice

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert cli.main(shlex.split(command)[1:]) == 0
        assert cli.main(["run", *settings, "--name", "whole"]) == 0
    resumed, whole = (sgdwalk.open_run(tmp_path / "runs with space" / name) for name in ("digits-sgd", "whole"))
    for table in ("steps", "segments", "epochs"):
        pd.testing.assert_frame_equal(getattr(resumed, table), getattr(whole, table), check_exact=True)


def test_ctrl_c_before_anything_was_begun(tmp_path):
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from sgdwalk import cli\n"
        "cli.parse = lambda args: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(cli.main(['list']))"
    )
    process = python("-c", code)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "stopped before anything was begun.\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    folder = stored(tmp_path / "run", num_steps=400)
    process = python("-m", "sgdwalk", "show", folder, "--all")
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == ""
    assert process.wait(timeout=60) == 1


def test_a_terminal_without_greek_letters_still_gets_the_rest(tmp_path):
    folder = stored(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "sgdwalk", "show", folder],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "walk" in done.stdout


def test_warnings_of_our_own_are_one_line_on_stderr(tmp_path, capsys, monkeypatch):
    def warn(self, command):
        warnings.warn_explicit("something is odd", RuntimeWarning, "train.py", 1, module="sgdwalk.paper.train")
        return 0

    monkeypatch.setattr(cli.List, "__call__", warn)
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().err == "warning: something is odd\n"
