"""Sweeps on Ray and SLURM: a machine that is lost, a job that is taken away and requeued, options that are refused."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import sgdwalk
from sgdwalk import cli
from sgdwalk.paper import data, executors
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.grid import Grid, run_grid
from sgdwalk.paper.sweep import training_name
from sgdwalk.paper.task import Board, Task
from sgdwalk.paper.train import train

LONG = Experiment(num_train=120, hidden=(7, 5), batch_size=30, num_points=2, epochs=300, watch_every=50)
TESTS = Path(__file__).parent


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="the extra slurm is not installed")


def environment(**more):
    source = os.pathsep.join([str(Path(sgdwalk.__file__).parent.parent), str(TESTS)])
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **more}


def assert_as_if_uninterrupted(folder, experiment, whole):
    assert train(experiment, data.load(experiment), whole)
    left, right = sgdwalk.open_run(folder), sgdwalk.open_run(whole)
    for table in ("steps", "segments", "epochs"):
        pd.testing.assert_frame_equal(getattr(left, table), getattr(right, table), check_exact=True)


# --- Ray -------------------------------------------------------------------------------------------------------------


def test_a_training_whose_node_is_lost_goes_on_elsewhere_from_its_checkpoint(tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    import losing_a_node

    done = subprocess.run(
        [sys.executable, TESTS / "losing_a_node.py", tmp_path / "runs"],
        # Ray's workers are nice: beside other tests on the same cores they would hardly run.
        env=environment(RAY_worker_niceness="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    happened = json.loads(done.stdout.splitlines()[-1])
    assert happened["finished"]
    assert happened["nodes"] == [2, 1]
    (warning,) = happened["warnings"]
    assert "failed and is tried again: its worker was lost: " in warning
    lost = warning.split()[0]
    _, after = happened["told"][lost]
    assert after[0] > losing_a_node.EVERY  # it did not start anew
    assert after[-1] == 800
    for number, experiment in enumerate(losing_a_node.EXPERIMENTS):
        folder = tmp_path / "runs" / training_name(experiment)
        assert_as_if_uninterrupted(folder, experiment, tmp_path / f"whole-{number}")


def test_a_kind_of_machine_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = r"ray is not installed here: pip install -c constraints.txt '\.\[ray\]'"
    with (
        pytest.raises(sgdwalk.InputError, match=message),
        executors.open_executor("ray", {}, Execution(), Path("unused")),
    ):
        pass


# --- SLURM -----------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_on_submitit_and_is_told_like_any_other(submitit, tmp_path, capfd):
    path = tmp_path / "rates.toml"
    path.write_text(
        "[settings]\nnum_train = 120\nhidden = [7, 5]\nbatch_size = 30\nnum_points = 2\nepochs = 2\n"
        "[submitit]\ncluster = 'local'\ntimeout_min = 60"
    )
    assert cli.main(["sweep", str(path), "--executor", "submitit", "--out", str(tmp_path / "out")]) == 0
    printed = capfd.readouterr()
    assert "1 of 1" in printed.out
    assert "update 8 of 8" in printed.err
    assert list((tmp_path / "out" / "submitit").glob("*_result.pkl"))
    assert list(pd.read_csv(tmp_path / "out" / "rates.csv")["state"]) == ["finished"]


def test_submitits_own_executor_is_one_and_a_killed_job_is_tried_again(submitit, tmp_path, caplog, monkeypatch):
    # for so many seconds it hopes for the result of a job that ended without
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 1)

    class Killed:
        """Kills the first job before it does anything, as a scheduler may."""

        def __init__(self):
            self.executor = submitit.LocalExecutor(tmp_path / "logs")
            self.executor.update_parameters(timeout_min=60)
            self.jobs = []

        def submit(self, asked):
            job = self.executor.submit(asked)
            if not self.jobs:
                os.kill(int(job.job_id), signal.SIGKILL)  # cancel()'s SIGINT is ignored under a shell's `&`
            self.jobs.append(job)
            return job

    grid = Grid({"num_train": 120, "hidden": [7, 5], "batch_size": 30, "num_points": 2, "epochs": 1})
    executor = Killed()
    swept = run_grid(grid, tmp_path / "out", executor=executor)
    assert len(executor.jobs) == 2
    assert "failed and is tried again: its worker was lost: UncompletedJobError" in caplog.text
    assert list(swept.table["state"]) == ["finished"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cluster": "local"}, r"\[submitit\] does not say timeout_min"),
        ({"cluster": "local", "timeout_min": 5, "partion": "gpu"}, "submitit refuses .*NameError: .*partion"),
        ({"cluster": "nowhere", "timeout_min": 5}, "doesn't know any executor named nowhere"),
    ],
)
def test_options_that_submitit_does_not_know_are_told(submitit, tmp_path, options, told):
    with (
        pytest.raises(sgdwalk.InputError, match=told),
        executors.open_executor("submitit", options, Execution(), tmp_path),
    ):
        pass


def test_a_job_that_slurm_takes_away_saves_its_state_and_is_requeued_once(submitit, tmp_path):
    """SLURM's notice reaches the job and the training in it; ``scontrol`` is a stand-in that notes its arguments."""
    from submitit.core import utils

    board = Board(tmp_path / "board")
    board.folder.mkdir()
    board.open()
    folder = tmp_path / "run"
    jobs, bin = tmp_path / "jobs", tmp_path / "bin"
    jobs.mkdir()
    bin.mkdir()
    bin.joinpath("scontrol").write_text(f'#!/bin/sh\nprintf "%s\\n" "$#" "$@" >> {tmp_path}/called\n')
    bin.joinpath("scontrol").chmod(0o755)
    delayed = utils.DelayedSubmission(Task(LONG, Execution(checkpoint_every=1_000), folder, None, board.folder))
    delayed.set_timeout(60, 3)
    delayed.dump(jobs / "4711_submitted.pkl")
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "4711", "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "submitit.core._submit", jobs],
        env=environment(**slurm),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (num_done := (board.read("run") or (0,))[0]):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    training = json.loads((folder / "writer.lock").read_text())["pid"]
    for each in (training, process.pid):
        os.kill(each, signal.SIGUSR2)
    _, said = process.communicate(timeout=60)
    assert (tmp_path / "called").read_text().splitlines() == ["2", "requeue", "4711"], said
    newest = max(int(path.name[5:]) for path in folder.glob("checkpoints/step-*"))
    assert newest >= num_done
    assert newest % 1_000  # saved for the notice, not because one was due
    assert (folder / "writer.lock").read_text() == ""
    again = utils.DelayedSubmission.load(jobs / "4711_submitted.pkl")  # what the requeued job calls
    assert again.function == delayed.function
    assert train(LONG, data.load(LONG), folder, resume=True)
    assert_as_if_uninterrupted(folder, LONG, tmp_path / "whole")


def test_a_jobs_number_is_checked_before_it_is_requeued(submitit, monkeypatch):
    asked = Task(LONG, Execution(), Path("/run"), None, Path("/board"))
    assert asked.checkpoint().function == asked
    monkeypatch.setenv("SLURM_JOB_ID", "1; rm -r .")
    with pytest.raises(sgdwalk.InputError, match="is no number of a job"):
        asked.checkpoint()


def test_sigterm_ends_a_job_with_its_state_saved(tmp_path):
    """As SLURM cancels one: the training hears it itself."""
    board = Board(tmp_path / "board")
    board.folder.mkdir()
    board.open()
    asked = Task(LONG, Execution(checkpoint_every=1_000), tmp_path / "run", None, board.folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "sgdwalk.paper.worker", json.dumps(asked._request())],
        env=environment(),
        stdin=subprocess.PIPE,
    )
    while not (board.read("run") or (0,))[0]:
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    with contextlib.suppress(BrokenPipeError), process.stdin:
        assert process.wait(timeout=60) == 143
    newest = max(int(path.name[5:]) for path in (tmp_path / "run").glob("checkpoints/step-*"))
    assert newest == len(sgdwalk.open_run(tmp_path / "run").steps) > 0
