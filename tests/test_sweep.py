"""``sgdwalk sweep``: grids that cannot be meant, executors of any kind, processes that die, one table, one figure."""

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import sgdwalk
from sgdwalk import cli
from sgdwalk.paper import data, forking, sweep, sweep_results, task, worker
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.forking import ForkingExecutor
from sgdwalk.paper.grid import Grid, missing_of, read_grid, run_grid
from sgdwalk.paper.sweep import TrainingsFailed, is_trained, train_all, training_name
from sgdwalk.paper.task import Board, Outcome, Task
from sgdwalk.paper.train import train
from storing import python

SETTINGS = {"num_train": 120, "hidden": [7, 5], "batch_size": 30, "num_points": 2, "epochs": 2}
TINY = Experiment(**{**SETTINGS, "hidden": (7, 5)})
TOML = """
seeds = [0, 1]

[settings]
num_train = 120
hidden = [7, 5]
num_points = 2
epochs = 2
curvature_every = 4

[grid]
learning_rate = [0.1, 1]
batch_size = [20, 60]
"""


class Here:
    """An executor that calls at once, in this process and this thread, and trains there."""

    def __init__(self, outcomes=()):
        self.tasks = []
        self._outcomes = list(outcomes)

    def submit(self, asked):
        self.tasks.append(asked)
        future = Future()
        told = self._outcomes.pop(0) if self._outcomes else None
        if isinstance(told, BaseException):
            future.set_exception(told)
        elif told is not None:
            future.set_result(told)
        else:
            resume = asked.folder.joinpath("run.json").exists()
            train(asked.experiment, data.load(asked.experiment), asked.folder, resume=resume)
            future.set_result(Outcome("finished"))
        return future


def holder(folder):
    """The process that writes a run, once there is one."""
    for _ in range(1200):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / "writer.lock").read_text())["pid"]
        time.sleep(0.05)
    raise AssertionError(f"nobody writes {folder}")


def uninterrupted(experiment, folder):
    assert train(experiment, data.load(experiment), folder)
    return folder


def assert_same_run(left, right):
    left, right = sgdwalk.open_run(left), sgdwalk.open_run(right)
    for table in ("steps", "segments", "epochs"):
        pd.testing.assert_frame_equal(getattr(left, table), getattr(right, table), check_exact=True)


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    """Writes a sweep's file."""

    def write(text, name="rates.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_grid_is_every_combination_with_every_seed(config):
    grid = read_grid(config(TOML))
    chosen = [(each.learning_rate, each.batch_size, each.seed) for each in grid.experiments]
    assert chosen == [(rate, size, seed) for rate in (0.1, 1.0) for size in (20, 60) for seed in (0, 1)]
    assert {each.hidden for each in grid.experiments} == {(7, 5)}
    by_hand = Experiment(
        num_train=120, hidden=(7, 5), num_points=2, epochs=2, curvature_every=4, learning_rate=1.0, batch_size=60
    )
    assert training_name(grid.experiments[6]) == training_name(by_hand)  # 1 in the file is 1.0


def test_without_a_grid_only_seeds_vary(config):
    grid = read_grid(config("seeds = [3, 5]\n[settings]\nepochs = 1"))
    assert [each.seed for each in grid.experiments] == [3, 5]


def test_networks_of_several_widths_are_a_grid(config):
    grid = read_grid(config("[grid]\nhidden = [[7, 5], [9]]\nwatch = [true, false]"))
    assert [(each.hidden, each.watch) for each in grid.experiments] == [
        ((7, 5), True),
        ((7, 5), False),
        ((9,), True),
        ((9,), False),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[grid]\nlearning_rat = [1]", r"grid\.learning_rat is no setting: did you mean learning_rate\? There are"),
        ("[setting]\nepochs = 1", r"setting has no place here: did you mean settings\?"),
        ("[settings]\nseed = 1", r"settings\.seed: seeds stand in a list of their own"),
        ("[grid]\nlearning_rate = 0.1", r"grid\.learning_rate = 0\.1: a list of at least one value is wanted"),
        ("[grid]\nlearning_rate = []", r"grid\.learning_rate = \[\]: a list of at least one"),
        ("[grid]\nlearning_rate = [0.1, 0.1]", r"grid\.learning_rate lists 0\.1 twice"),
        ("[grid]\nlearning_rate = ['high']", r"grid\.learning_rate = 'high': a number is wanted"),
        ("[grid]\nlearning_rate = [true]", r"grid\.learning_rate = True: a number is wanted"),
        ("[settings]\nepochs = 2.5", r"settings\.epochs = 2\.5: an integer is wanted"),
        ("[settings]\nwatch = 1", r"settings\.watch = 1: true or false is wanted"),
        ("[settings]\nhidden = 7", r"settings\.hidden = 7: a list, of which each is an integer, is wanted"),
        ("[settings]\nalgorithm = 'adam'", r"settings\.algorithm = 'adam': one of 'gd', 'sgd' is wanted"),
        ("[settings]\nepochs = 1\n[grid]\nepochs = [1]", r"epochs stands in settings and in grid"),
        ("[grid]\nbatch_size = [50, 5000]", r"with batch_size=5000: batch_size must be .* at most 1,500; got 5000"),
        ("seeds = [0, -1]", r"seeds holds -1: integers of at least 0"),
        ("seeds = 3", r"seeds = 3: a list of at least one"),
        ("settings = 3", r"settings = 3: a table is wanted"),
        ("seeds = [", "is not TOML"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_key(config, text, told):
    path = config(text)
    with pytest.raises(sgdwalk.InputError, match=told) as caught:
        read_grid(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(sgdwalk.InputError, match=r"none\.toml cannot be read: No such file"):
        read_grid(tmp_path / "none.toml")


# --- any executor ----------------------------------------------------------------------------------------------------


def test_a_training_that_fails_is_told_and_tried_once_more(tmp_path, caplog):
    executor = Here([Outcome("failed", "the disk was full")])
    swept = run_grid(Grid(SETTINGS), tmp_path, executor=executor)
    assert [each.lost_before for each in executor.tasks] == [False, False]
    assert caplog.messages == [f"{training_name(TINY)} failed and is tried again: the disk was full"]
    assert swept.failures == {}
    assert list(swept.table["state"]) == ["finished"]


def test_a_worker_that_is_lost_is_replaced_and_what_it_held_is_taken_back(tmp_path, caplog):
    executor = Here([RuntimeError("node 3\nis gone")])
    assert not run_grid(Grid(SETTINGS), tmp_path, executor=executor).failures
    assert [each.lost_before for each in executor.tasks] == [False, True]
    assert "its worker was lost: RuntimeError: is gone" in caplog.text


def test_a_training_that_fails_twice_is_marked_and_the_others_are_finished(tmp_path):
    grid = Grid(SETTINGS, {"learning_rate": [0.1, 0.2]})
    executor = Here([Outcome("failed", "once"), None, Outcome("failed", "twice")])
    swept = run_grid(grid, tmp_path, executor=executor, jobs=None)
    first, second = swept.table.to_dict("records")
    assert (first["state"], first["failure"]) == ("failed", "twice")
    assert pd.isna(first["mean_height"])
    assert second["state"] == "finished"
    assert swept.failures == {first["run"]: "twice"}
    assert not run_grid(grid, tmp_path, executor=(again := Here())).failures
    assert [training_name(each.experiment) for each in again.tasks] == [first["run"]]  # only what is missing


def test_a_pool_that_breaks_fails_each_training_with_a_message(tmp_path):
    class Broken:
        def submit(self, asked):
            raise RuntimeError("cannot schedule new futures after shutdown")

    with pytest.raises(TrainingsFailed, match=r"1 of 1 trainings failed.*could not be submitted: RuntimeError: cannot"):
        train_all([TINY], tmp_path, executor=Broken(), retries=1)


def test_a_signal_from_elsewhere_is_a_failure_and_not_an_end(tmp_path):
    with pytest.raises(TrainingsFailed, match="was stopped by a signal from elsewhere; its state is saved"):
        train_all([TINY], tmp_path, executor=Here([Outcome("stopped")]))


def test_jobs_bounds_what_an_executor_has_at_a_time(tmp_path):
    most = []

    class Slow(Here):
        def submit(self, asked):
            future = Future()
            self.tasks.append(future)
            most.append(sum(not each.done() for each in self.tasks))
            threading.Timer(0.2, future.set_result, [Outcome("finished")]).start()
            return future

    experiments = [replace(TINY, seed=seed) for seed in range(5)]
    assert train_all(experiments, tmp_path, jobs=2, executor=Slow())
    assert max(most) == 2
    most.clear()
    assert train_all(experiments, tmp_path, jobs=None, executor=Slow())
    assert max(most) == 5


def test_a_stop_takes_back_what_no_worker_has_begun_and_waits_for_what_runs(tmp_path, monkeypatch):
    close = Board.close

    def close_slowly(board):
        close(board)
        time.sleep(0.3)  # the worker has time to end, and to take up the next

    monkeypatch.setattr(Board, "close", close_slowly)
    begun, told = threading.Event(), threading.Event()
    events = []

    def work(asked):
        board = Board(asked.board)
        board.write(asked.folder.name)
        begun.set()
        while board.is_open():
            time.sleep(0.01)
        events.append("ended")
        return Outcome("stopped")

    class Pool(ThreadPoolExecutor):
        def submit(self, asked):
            return super().submit(work, asked)

    def stop():
        return begun.is_set() and (told.set() or True)

    with Pool(1) as executor:
        assert not train_all([TINY, replace(TINY, seed=1)], tmp_path, jobs=None, executor=executor, stop=stop)
        assert events == ["ended"]
    assert list(tmp_path.glob(".board-*")) == []


def test_progress_of_each_and_of_all_is_told(tmp_path):
    told = []

    class Telling(Here):
        def submit(self, asked):
            Board(asked.board).write(asked.folder.name, 4, 8, 0.5)
            future = Future()
            future.set_result(Outcome("finished"))
            return future

    experiments = [TINY, replace(TINY, seed=1)]
    train_all(experiments, tmp_path, jobs=1, executor=Telling(), update=lambda *each: told.append(each))
    assert told == [
        (training_name(TINY), 4, 8, 0.5),
        ("all 2 trainings", 4, 16, 0.25),
        (training_name(experiments[1]), 4, 8, 0.5),
        ("all 2 trainings", 8, 16, 0.5),
    ]


def test_a_run_folder_that_cannot_be_read_is_marked_and_the_others_are_finished(tmp_path):
    grid = Grid(SETTINGS, {"learning_rate": [0.1, 0.2]})
    bad = tmp_path / training_name(grid.experiments[0])
    bad.mkdir()
    bad.joinpath("run.json").write_text('{"schema_version": 999}')
    swept = run_grid(grid, tmp_path, executor=Here())
    assert list(swept.table["state"]) == ["failed", "finished"]
    assert "schema" in swept.failures[bad.name]
    assert bad.joinpath("run.json").read_text() == '{"schema_version": 999}'


def test_a_lock_of_another_machine_is_taken_back_only_where_that_is_known_to_be_lost(tmp_path):
    folder = tmp_path / training_name(TINY)
    uninterrupted(replace(TINY, steps=4), folder)
    line = json.dumps({"pid": 1, "host": "elsewhere", "started": "today"})
    folder.joinpath("writer.lock").write_text(line)
    with pytest.raises(sgdwalk.RunFolderError, match="cannot be checked from"):
        train(replace(TINY, steps=4), data.load(TINY), folder, resume=True)
    sgdwalk.forget_writer(folder)
    assert train(replace(TINY, steps=4), data.load(TINY), folder, resume=True)


def test_a_writer_that_lives_is_not_forgotten(tmp_path):
    from sgdwalk.lock import WriterLock

    lock = WriterLock.acquire(tmp_path)
    with pytest.raises(sgdwalk.RunFolderError, match="still being written, 0 s after"):
        sgdwalk.forget_writer(tmp_path, patience_seconds=0)
    lock.release()
    sgdwalk.forget_writer(tmp_path, patience_seconds=0)


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_killed_training_goes_on_bitwise_and_hurts_no_other(tmp_path, caplog):
    """Also that it has the threads it was given, and that nothing but the runs and their messages is left."""
    long, short = replace(TINY, epochs=60, watch_every=3), replace(TINY, seed=1)
    killed, told = [], []

    def kill(name, num_done, num_updates, fraction):
        told.append((name, num_done))
        if name == training_name(long) and num_done > 5 and not killed:
            killed.append(num_done)
            os.kill(holder(tmp_path / name), signal.SIGKILL)

    executions = [Execution(checkpoint_every=3)]
    assert train_all([long, short], tmp_path, jobs=2, executions=executions, retries=1, update=kill)
    assert killed
    assert f"{training_name(long)} failed and is tried again: ended by signal 9, SIGKILL" in caplog.text
    assert_same_run(tmp_path / training_name(long), uninterrupted(long, tmp_path / "whole"))
    assert is_trained(tmp_path, short)
    assert sgdwalk.open_run(tmp_path / training_name(long)).info["provenance"]["num_threads"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "whole",
        *(f"{training_name(each)}{ending}" for each in (long, short) for ending in ("", ".log")),
    }


def wanted(folder, **attributes):
    """A task of a training, and its board."""
    board = Board(folder / "board")
    board.folder.mkdir(exist_ok=True)
    board.open()
    experiment = replace(TINY, **attributes)
    return Task(experiment, Execution(), folder / training_name(experiment), None, board.folder)


def trains(asked):
    """The process of a training that has begun."""
    training = holder(asked.folder)
    while not (Board(asked.board).read(asked.folder.name) or (0,))[0]:
        time.sleep(0.02)
    return training


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def assert_saved(asked):
    """A training ended before its time, with its state saved."""
    sgdwalk.forget_writer(asked.folder)
    num_done = len(sgdwalk.open_run(asked.folder).steps)
    assert 0 < num_done < asked.experiment.num_updates
    assert max(int(path.name[5:]) for path in asked.folder.glob("checkpoints/step-*")) == num_done


forked = pytest.mark.skipif(not forking.FORKS, reason="only Linux forks trainings")


@forked
def test_trainings_one_after_the_other_are_forks_of_one_server(tmp_path, monkeypatch):
    """The last one has other examples than the first two; one that fails takes nothing along."""
    started = []
    start = forking._Server.__init__

    def counted(self, *asked):
        started.append(asked)
        start(self, *asked)

    monkeypatch.setattr(forking._Server, "__init__", counted)
    good = [wanted(tmp_path, seed=seed, num_train=120 if seed < 2 else 90) for seed in range(3)]
    failing = replace(wanted(tmp_path, seed=9), folder=tmp_path / "run")
    failing.folder.mkdir()
    failing.folder.joinpath("run.json").write_text("{}")
    with ForkingExecutor(1) as executor:
        outcomes = [executor.submit(each).result() for each in (good[0], failing, *good[1:])]
    assert [each.state for each in outcomes] == ["finished", "failed", "finished", "finished"]
    assert len(started) == 1
    for each in good:
        assert_same_run(each.folder, uninterrupted(each.experiment, tmp_path / f"whole-{each.experiment.seed}"))
        assert each.folder.with_name(f"{each.folder.name}.log").read_text() == ""


@forked
@pytest.mark.parametrize(
    ("number", "state", "message"),
    [
        (signal.SIGKILL, "lost", "ended by signal 9, SIGKILL, as where memory runs out"),
        (signal.SIGTERM, "stopped", ""),
    ],
)
def test_a_training_whose_server_is_killed_or_whose_group_is_ended_saves_its_state(tmp_path, number, state, message):
    """SIGKILL reaches the server alone; SIGTERM all processes, as SLURM sends it."""
    endless = wanted(tmp_path, epochs=3_000, watch=False)
    with ForkingExecutor(1) as executor:
        future = executor.submit(endless)
        server = parent_of(trains(endless))
        if number == signal.SIGKILL:
            os.kill(server, number)
        else:
            os.killpg(server, number)
        outcome = future.result()
        assert executor.submit(wanted(tmp_path, seed=1)).result() == Outcome("finished")
    assert (outcome.state, outcome.message.partition(";")[0]) == (state, message)
    assert_saved(endless)


@forked
def test_an_interrupted_call_leaves_no_answer_for_the_next(tmp_path, monkeypatch):
    """Also that what a server's start prints is no answer, but in the training's messages."""
    tmp_path.joinpath("sitecustomize.py").write_text("print(7)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    endless, next_one = wanted(tmp_path, epochs=3_000, watch=False), wanted(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ForkingExecutor(1) as executor:
            alarm = threading.Thread(target=lambda: (trains(endless), signal.pthread_kill(main, signal.SIGALRM)))
            main = threading.get_ident()
            alarm.start()
            with pytest.raises(KeyboardInterrupt):
                endless.run(executor._train)
            alarm.join()
            assert next_one.run(executor._train) == Outcome("finished")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert_saved(endless)
    assert is_trained(tmp_path, next_one.experiment)
    assert endless.folder.with_name(f"{endless.folder.name}.log").read_text().startswith("7")


def test_a_training_ends_with_its_worker_and_a_second_one_of_the_same_run_is_refused(tmp_path):
    asked = wanted(tmp_path, epochs=3_000, watch=False)
    folder = asked.folder
    code = (
        "from pathlib import Path\n"
        "from sgdwalk.paper.config import Execution, Experiment\n"
        "from sgdwalk.paper.task import Task\n"
        f"experiment = Experiment.from_dict({asked.experiment.to_dict()!r})\n"
        f"Task(experiment, Execution(), Path({str(folder)!r}), None, Path({str(asked.board)!r}))()"
    )
    process = python("-c", code)
    holder(folder)
    refused = asked()
    assert refused.state == "failed"
    assert "is being written by process" in refused.message
    process.kill()
    process.communicate()
    assert_saved(asked)  # waits for the training, which notices that its worker is gone


def test_a_task_that_is_not_wanted_any_more_begins_nothing(tmp_path):
    asked = Task(TINY, Execution(), tmp_path / "run", None, tmp_path / "no-board")
    assert asked() == Outcome("stopped")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (3, "exit code 3"),
        (-11, "ended by signal 11, SIGSEGV"),
        (-9, "ended by signal 9, SIGKILL, as where memory runs out"),
    ],
)
def test_how_a_process_ended_is_told(code, told):
    assert task._how(code) == told


def test_ctrl_c_ends_a_sweep_and_the_same_command_goes_on(config, tmp_path, monkeypatch):
    path = config(
        "seeds = [0, 1]\n[settings]\nnum_train = 120\nhidden = [7, 5]\nbatch_size = 30\nnum_points = 2\n"
        "epochs = 200\nwatch_every = 20"
    )
    grid = read_grid(path)
    folders = [tmp_path / "runs" / "rates" / training_name(each) for each in grid.experiments]
    process = python("-m", "sgdwalk", "sweep", path, "--jobs", "2", cwd=tmp_path, start_new_session=True)
    children = []
    for folder in folders:
        children.append(holder(folder))
        os.kill(children[-1], signal.SIGSTOP)  # or it is done before the other one has begun
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    for child in children:
        os.kill(child, signal.SIGCONT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert f"Go on with:\n  sgdwalk sweep {path} --jobs 2" in stderr
    assert "Traceback" not in stderr
    assert "0 of 2" in stdout
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    table = pd.read_csv(tmp_path / "runs" / "rates" / "rates.csv")
    assert table["state"].str.fullmatch(r"\d+ of 800 updates").all()
    assert table["failure"].isna().all()
    swept = run_grid(grid, tmp_path / "runs" / "rates", name="rates", executor=Here())
    assert list(swept.table["state"]) == ["finished", "finished"]
    assert_same_run(folders[0], uninterrupted(grid.experiments[0], tmp_path / "whole"))


# --- table, figure, command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of eight runs, made in this process."""
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "rates.toml"
    path.write_text(TOML)
    return folder, path, run_grid(read_grid(path), folder / "out", name="rates", executor=Here())


def test_the_table_has_the_numbers_of_the_runs(swept):
    folder, path, result = swept
    table = pd.read_csv(folder / "out" / "rates.csv")
    assert list(table.columns[:4]) == ["learning_rate", "batch_size", "seed", "state"]
    assert len(table) == 8
    for row, experiment in zip(table.to_dict("records"), read_grid(path).experiments, strict=True):
        run = sgdwalk.open_run(folder / "out" / training_name(experiment))
        steps = run.steps
        last_epoch = steps[steps["epoch"] == 2]
        assert (row["learning_rate"], row["batch_size"], row["seed"]) == (
            experiment.learning_rate,
            experiment.batch_size,
            experiment.seed,
        )
        expected = {
            "mean_height": steps["height"].mean(),
            "last_epoch_height": last_epoch["height"].mean(),
            "mean_cosine": steps["cosine"].mean(),
            "last_epoch_cosine": last_epoch["cosine"].mean(),
            "distance": steps["next_distance"].iloc[-1],
            "loss": steps["next_loss"].iloc[-1],
            "validation_accuracy": run.epochs["validation_accuracy"].iloc[-1],
            "spectral_norm": steps["spectral_norm"].dropna().iloc[-1],
            "num_updates": len(steps),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-14)
        assert row["run"] == training_name(experiment)
    assert {path.name for path in result.files} == {"rates.csv", "rates.png", "rates.svg", "rates.pdf"}
    assert all(path.stat().st_size > 1000 for path in result.files)


def known_table(heights):
    """Two rates, two sizes, as many seeds as given."""
    rows = [
        {
            "learning_rate": rate,
            "batch_size": size,
            "seed": seed,
            "state": "finished",
            "mean_height": rate * size + noise,
            "undefined_heights": 0,
        }
        for rate in (0.1, 1.0)
        for size in (20, 60)
        for seed, noise in enumerate(heights)
    ]
    return pd.DataFrame(rows)


def test_the_figure_has_a_line_a_size_means_intervals_and_seeds():
    noise = [-0.3, 0.1, 0.5]
    figure = sweep_results.draw(known_table(noise), ["learning_rate", "batch_size"])
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "Mean height above the floor, nats"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.1", "1"]
    first, second = ax.containers
    for container, size in ((first, 20), (second, 60)):
        means = container.lines[0].get_ydata()
        np.testing.assert_allclose(means, [0.1 * size + 0.1, size + 0.1], rtol=1e-12)
        (bars,) = container.lines[2]
        low, high = np.array([segment[:, 1] for segment in bars.get_segments()]).T
        halfwidth = stats.t.ppf(0.975, 2) * np.std(noise, ddof=1) / np.sqrt(3)
        np.testing.assert_allclose(high - low, 2 * halfwidth, rtol=1e-12)
    seeds = ax.lines[0].get_ydata()
    np.testing.assert_allclose(seeds, [each for rate in (0.1, 1) for each in np.add(20 * rate, noise)], rtol=1e-12)
    assert "batch size 60" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "12 of 12 trainings are finished" in figure.caption
    assert "learning rate 0.1, batch size 20: mean height 2.1." in figure.alternative


def test_the_figure_says_what_it_cannot_show():
    table = known_table([0.1])
    table.loc[0, "mean_height"] = np.nan
    table.loc[1, "state"] = "failed"
    figure = sweep_results.draw(table, ["learning_rate", "batch_size"])
    assert "3 of 4 trainings are finished" in figure.caption
    assert "One seed only" in figure.caption
    assert "Undefined, as where a loss is not finite, and left out: mean height: 1." in figure.caption
    table["state"] = "not begun"
    assert "No training is finished yet." in [
        text.get_text() for text in sweep_results.draw(table, ["learning_rate"]).texts
    ]


@pytest.mark.parametrize("varied", [[], ["network"], ["learning_rate"]])
def test_names_and_single_values_are_drawn_too(varied, tmp_path):
    table = known_table([0.1, 0.2]).assign(network="mlp")
    figure = sweep_results.draw(table, varied)
    assert sgdwalk.save_figure(figure, tmp_path / "figure.png").exists()


def test_more_lines_than_can_be_told_apart_are_named():
    table = pd.concat([known_table([0.1]).assign(epochs=epochs) for epochs in range(6)])
    figure = sweep_results.draw(table, ["learning_rate", "batch_size", "epochs"])
    assert len(figure.axes[0].containers) == sweep_results.MOST_LINES == 9
    assert "3 more lines are in the table and not drawn" in figure.caption


def test_a_finished_sweep_is_told_again_and_nothing_is_trained(swept, capsys, monkeypatch):
    folder, path, _ = swept
    monkeypatch.setattr("sgdwalk.paper.grid.train_all", None)
    before = (folder / "out" / "rates.csv").read_bytes()
    assert cli.main(["sweep", str(path), "--out", str(folder / "out")]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "2 of 2" in printed.out
    assert printed.out.splitlines()[-2:] == [str(folder / "out" / f"rates.{each}") for each in ("csv", "png")]
    assert (folder / "out" / "rates.csv").read_bytes() == before


def test_a_dry_run_counts_runs_time_and_disk_and_writes_nothing(swept, tmp_path, capsys):
    folder, path, _ = swept
    assert cli.main(["sweep", str(path), "--out", str(folder / "out"), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("8 runs, of which 8 are there.\n0 trainings are missing")
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "new"), "--dry-run", "--jobs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 runs, of which 0 are there."
    assert len(lines) == 10
    assert lines[-1].startswith("8 trainings are missing: ")
    assert " with 2 at a time " in lines[-1]
    assert " GB of disk in " in lines[-1]
    assert not (tmp_path / "new").exists()


def test_failures_are_told_and_end_the_command_with_1(swept, config, tmp_path, capsys):
    path = config(TOML.replace("[0, 1]", "[0]").replace("[20, 60]", "[20]").replace("[0.1, 1]", "[0.1]"))
    (experiment,) = read_grid(path).experiments
    bad = tmp_path / "out" / training_name(experiment)
    bad.mkdir(parents=True)
    bad.joinpath("run.json").write_text("{}")
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert f"error: {bad.name} failed: " in printed.err
    assert "1 run failed" in printed.err.replace("1 run of 1 failed", "1 run failed")
    assert f"sgdwalk sweep {path} --out {tmp_path / 'out'}" in printed.err
    assert missing_of(read_grid(path), tmp_path / "out")[1].keys() == {bad.name}


def test_the_docs_of_the_command_name_the_file(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.parse(["sweep", "--help"])
    assert "[grid]" in capsys.readouterr().out


def test_a_training_looks_at_the_board_only_now_and_then(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(worker.Wishes, "_wait_for", lambda self: None)
    board = Board(tmp_path)
    board.open()
    wishes = worker.Wishes(board, "mine")
    assert not wishes.stop()
    board.close()
    assert not wishes.stop()
    now[0] += worker.SECONDS_BETWEEN_LOOKS
    assert wishes.stop()
    wishes.report(1, 9, 0.1)
    wishes.report(2, 9, 0.2)
    assert board.read("mine") == (1, 9, 0.1)
    wishes.report(9, 9, 1.0)
    assert board.read("mine") == (9, 9, 1.0)


def test_the_path_of_everything_asked_of_another_machine_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executor = Here([Outcome("finished")])
    train_all([TINY], Path("runs"), data_dir=Path("data"), executor=executor)
    (asked,) = executor.tasks
    assert asked.folder == tmp_path / "runs" / training_name(TINY)
    assert asked.data_dir == tmp_path / "data"
    assert asked.board.is_absolute()
    assert sweep.SECONDS_BETWEEN_LOOKS < 1
