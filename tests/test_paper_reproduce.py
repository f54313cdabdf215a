"""``reproduce``: shared trainings, pages, processes that fail, are killed or interrupted."""

import contextlib
import html
import json
import os
import shutil
import signal
import time
from concurrent.futures import Future
from dataclasses import replace

import pandas as pd
import pytest

import sgdwalk
from sgdwalk import cli
from sgdwalk.paper import data, estimate, registry, sweep, trainings, walk_claims, walk_figures
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.cost import work
from sgdwalk.paper.forking import FORKS, in_forks
from sgdwalk.paper.models import build
from sgdwalk.paper.run import judge, missing_trainings, open_runs, reproduce, reproduce_all, write_page
from sgdwalk.paper.sweep import is_trained, train_all, training_name
from sgdwalk.paper.task import Outcome
from sgdwalk.paper.train import train
from storing import python

TINY = Experiment(num_train=120, hidden=(7, 5), batch_size=30, num_points=2, epochs=2)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A folder with all trainings of the smoke scale, made in this process."""
    out = tmp_path_factory.mktemp("paper")
    for name in registry.TITLES:
        while missing := missing_trainings([registry.figure(name, "smoke")], out / "trainings"):
            for experiment in sorted(missing, key=lambda each: len(each.lineage)):
                folder = out / "trainings" / training_name(experiment)
                after = experiment.after and folder.with_name(training_name(experiment.after))
                assert train(experiment, data.load(experiment), folder, after=after)
    return out


@pytest.fixture
def no_training(monkeypatch):
    """Trainings that are there must be used as they are."""

    def refuse(*arguments, **options):
        raise AssertionError("a training was started")

    monkeypatch.setattr("sgdwalk.paper.run.train_all", refuse)


@pytest.mark.parametrize("name", registry.TITLES)
def test_a_figure_has_its_page_pictures_tables_and_claims(smoke, no_training, name):
    page = reproduce(name, "smoke", out=smoke)
    assert page.path == smoke / f"{name}-smoke" / "index.html"
    folder = page.path.parent
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (folder / f"{name}.svg").read_text()
    text = html.unescape(page.path.read_text("utf-8"))
    trained = bool(registry.figure(name, "smoke").trainings)
    for each in page.judged:
        assert (each.verdict == "not testable at this scale") == trained
        assert each.words in text
    assert registry.TITLES[name] in text
    assert "Content-Security" in text
    for words in ("Nothing here says anything about the paper", "scikit-learn", "report.html"):
        assert (words in text) == trained
    assert "http" not in text.replace("http-equiv", "")
    written = json.loads((folder / "result.json").read_text("utf-8"))
    assert [each["claim"] for each in written["claims"]] == [each.claim for each in page.judged]
    assert all((folder / f"{table['name']}.csv").exists() for table in written["tables"])
    assert all(each["torch"] and each["updates"] >= 40 for each in written["trainings"])
    assert (folder / "report.html").exists() == trained


def test_tables_hold_the_numbers_of_the_steps_shown(smoke, no_training):
    page = reproduce("fig19", "smoke", out=smoke)
    run = sgdwalk.open_run(smoke / "trainings" / training_name(registry.figure("fig19", "smoke").trainings["sgd"][0]))
    steps = pd.read_csv(page.path.parent / "fig19-steps.csv", index_col="step")
    assert steps.index.tolist() == list(range(15, 30))  # all 15 of epoch 2
    pd.testing.assert_series_equal(steps["floor"], run.steps.loc[15:29, "floor"], check_exact=True)
    segments = pd.read_csv(page.path.parent / "fig19-segments.csv")
    assert len(segments) == 15 * 11
    assert segments["loss"].tolist() == run.segments.query("15 <= step < 30")["loss"].tolist()


def test_several_figures_are_one_command(smoke, no_training, capsys):
    assert cli.main(["reproduce", "fig19", "fig18", "--scale", "smoke", "--out", str(smoke)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("fig18-smoke") < printed.index("fig19-smoke")  # in the paper's order
    assert printed.count("Page: ") == 2
    assert printed.startswith("Of ")
    assert (smoke / "all-smoke" / "index.html").exists()


def test_pages_are_written_by_as_many_processes_as_there_are_jobs(smoke, no_training, capsys, monkeypatch):
    monkeypatch.setattr("sgdwalk.paper.run.write_page", lambda *arguments: (os.getpid(), write_page(*arguments)))
    wanted = [registry.figure(id, "smoke") for id in ("fig18", "fig19", "fig28")]
    processes, pages = zip(*reproduce_all(wanted, out=smoke, jobs=2), strict=True)
    assert os.getpid() not in processes or not FORKS
    assert [page.path.parent.name for page in pages] == ["fig18-smoke", "fig19-smoke", "fig28-smoke"]
    assert all(page.judged for page in pages)


def test_calls_in_forks_come_back_in_order_and_what_they_raise_is_raised():
    assert in_forks(lambda number: -number, 5, jobs=3) == [0, -1, -2, -3, -4]

    def fail(number):
        if number == 2:
            raise sgdwalk.InputError("2 cannot be meant.")
        return number

    for jobs in (1, 2):
        with pytest.raises(sgdwalk.InputError, match="2 cannot be meant"):
            in_forks(fail, 4, jobs=jobs)


def test_a_dry_run_tells_what_is_missing_and_starts_nothing(smoke, no_training, tmp_path, capsys):
    assert cli.main(["reproduce", "all", "--scale", "smoke", "--out", str(smoke), "--dry-run"]) == 0
    *ids, total = capsys.readouterr().out.splitlines()
    assert ids[0] == "fig1: nothing is missing"
    assert total.startswith("0 trainings are missing, each counted once however many ids need it: 0 s of work on cpu")
    assert cli.main(["reproduce", "fig17", "--scale", "smoke", "--out", str(tmp_path), "--dry-run", "--jobs", "2"]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fig17: 2 trainings, ")
    assert total.startswith("2 trainings are missing")
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_is_the_work_at_the_rate_that_was_timed(monkeypatch):
    monkeypatch.setattr(estimate, "_examples_per_second", lambda experiment, device: (1000.0, 10))
    short, long = TINY, replace(TINY, epochs=20)
    found = estimate.estimate([short, long])
    assert [each.seconds for each in found] == [work(short) / 1000, work(long) / 1000]
    # SGD's 4 updates an epoch cost 3/4 of a pass over 120 examples each, their segments 2 passes; 297 validate
    assert work(short) == pytest.approx(120 * 8 * (3 / 4 + 2) + 2 * 297)
    assert found[1].bytes > found[0].bytes > 0


def test_the_rate_is_timed_on_the_network_itself(monkeypatch):
    monkeypatch.setattr(estimate, "TIMED_SECONDS", 0.05)
    rate, num_parameters = estimate._examples_per_second(
        Experiment(dataset="cifar10", network="resnet", blocks=1), "cpu"
    )
    assert rate > 0
    assert num_parameters > 10_000


def test_trainings_are_dealt_out_to_the_least_busy_device(tmp_path):
    started = []

    class Executor:
        def submit(self, task):
            started.append(task.execution.num_threads)  # stands for a device
            future = Future()
            if len(started) > 1:  # the first goes on and on
                future.set_result(Outcome("finished"))
            if len(started) == 3:
                first.set_result(Outcome("finished"))
            return first if len(started) == 1 else future

    first = Future()
    experiments = [replace(TINY, seed=seed) for seed in range(3)]
    executions = [Execution(num_threads=1), Execution(num_threads=2)]
    assert train_all(experiments, tmp_path, jobs=2, executions=executions, executor=Executor())
    assert started == [1, 2, 2]


def test_a_page_is_replaced_as_a_whole(smoke, no_training):
    folder = reproduce("fig18", "smoke", out=smoke).path.parent
    (folder / "left-over").touch()
    reproduce("fig18", "smoke", out=smoke)
    assert not (folder / "left-over").exists()
    assert not list(smoke.glob(".*"))


def test_claims_are_judged_where_the_scale_allows(smoke):
    wanted = registry.figure("fig17", "smoke")
    runs = open_runs(wanted, smoke / "trainings")
    verdicts = [each.verdict for each in judge(replace(wanted, scale="small"), runs)]
    assert verdicts[0] == walk_claims.valley("gd", "").judge(runs).verdict == "contradicted"
    assert {each.verdict for each in judge(wanted, runs)} == {"not testable at this scale"}


def test_figures_18_and_19_are_one_training():
    for scale in registry.SCALES:
        fig18, fig19 = registry.figure("fig18", scale), registry.figure("fig19", scale)
        assert set(fig18.experiments) == set(fig19.experiments)


def test_figure_17s_trainings_serve_figure_18():
    for scale in registry.SCALES:
        assert set(registry.figure("fig17", scale).experiments) <= set(registry.figure("fig18", scale).experiments)


def test_the_paper_scale_is_the_published_setting():
    figure = registry.figure("fig18", "paper")
    (watched, *others) = figure.trainings["sgd"]
    assert (watched.dataset, watched.num_examples, watched.hidden) == ("mnist", 45_000, (500, 350))
    assert (watched.batch_size, watched.learning_rate, watched.momentum) == (100, 0.1, 0.0)
    assert (watched.steps_per_epoch, watched.num_points) == (450, 10)
    assert {step // 450 + 1 for step in range(watched.num_updates) if watched.watched(step)} == {1, 2, 10, 25}
    assert sum(watched.watched(step) for step in range(900)) == 900
    assert [sum(other.watched(step) for step in range(450)) for other in others] == [90, 90]
    (gd, *_) = figure.trainings["gd"]
    assert (gd.algorithm, gd.gd_gradient, gd.num_updates) == ("gd", "mean", 40)
    assert all(gd.watched(step) for step in range(40))


@pytest.mark.parametrize(
    ("name", "network", "learning_rate", "parameters"),
    [
        ("fig2", "vgg11", 0.1, 9_756_426),
        ("fig10", "resnet", 0.1, 855_578),
        ("fig21", "vgg11", 0.1, 9_220_480 + 5_504 + (2048 * 1024 + 1024) + (1024 * 512 + 512) + (512 * 20 + 20)),
    ],
)
def test_the_paper_scale_has_the_published_networks(name, network, learning_rate, parameters):
    (watched, *_) = registry.figure(name, "paper").trainings["sgd"]
    assert (watched.network, watched.learning_rate, watched.batch_size) == (network, learning_rate, 100)
    assert (watched.weight_decay, watched.seed, watched.augment) == (1e-4, 1111, True)
    assert (watched.width_divisor, watched.image_divisor, watched.blocks) == (1, 1, 9)
    shape = (3, watched.image_size, watched.image_size)
    model = build(watched, shape, data.NUM_CLASSES[watched.dataset])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_figures_and_tables_of_one_network_share_their_trainings():
    for scale in registry.SCALES:
        vgg = [
            registry.figure(name, scale).trainings["sgd"][:3] for name in ("fig2", "fig8", "fig14", "fig15", "fig16")
        ]
        tables = [registry.figure(name, scale).trainings["vgg11"] for name in ("table1", "table2")]
        assert len({*vgg, *tables}) == 1


def test_every_epoch_that_a_figure_or_table_shows_is_watched():
    for scale in registry.SCALES:
        for name, (architecture, epoch) in walk_figures.SGD_FIGURES.items():
            watched = registry.figure(name, scale).trainings["sgd"][0]
            first = (trainings.our_epoch(epoch, scale) - 1) * watched.steps_per_epoch
            shown = range(first, min(first + 40, first + watched.steps_per_epoch))
            assert all(watched.watched(step) for step in shown), (name, architecture, scale)


@pytest.mark.parametrize(("name", "scale"), [("fig29", "small"), ("fig17", "huge")])
def test_what_cannot_be_reproduced_is_refused(name, scale):
    with pytest.raises(sgdwalk.InputError, match=r"cannot be reproduced|no scale"):
        registry.figure(name, scale)


def holder(folder):
    """The process that writes a run, once there is one."""
    for _ in range(600):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / "writer.lock").read_text())["pid"]
        time.sleep(0.1)
    raise AssertionError(f"nobody writes {folder}")


def test_trainings_that_fail_or_are_killed_are_named_and_the_others_are_finished(tmp_path):
    short, long, broken = TINY, replace(TINY, seed=1, epochs=500), replace(TINY, seed=2)
    (tmp_path / training_name(broken)).mkdir()
    (tmp_path / training_name(broken) / "something").touch()
    killed = []

    def kill(name, num_done, num_updates, fraction):
        if name == training_name(long) and num_done > 5 and not killed:
            killed.append(name)
            os.kill(holder(tmp_path / name), signal.SIGKILL)

    with pytest.raises(sgdwalk.SgdwalkError) as caught:
        train_all([long, broken, short], tmp_path, jobs=2, update=kill)
    for words in (
        "2 of 3 trainings failed: ",
        f"{training_name(long)} (ended by signal 9",
        f"{training_name(broken)} (exit code 1: error: {tmp_path / training_name(broken)} is not empty",
        "The others are kept: the same command does only what is missing",
    ):
        assert words in str(caught.value)
    assert is_trained(tmp_path, short)
    assert not is_trained(tmp_path, long)
    begun = len(sgdwalk.open_run(tmp_path / training_name(long)).steps)
    assert 0 < begun < long.num_updates


def test_no_training_outlives_what_started_it(tmp_path):
    long = replace(TINY, epochs=10_000, watch=False)

    def fail(name, num_done, num_updates, fraction):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_all([long], tmp_path, update=fail)
    assert 0 < len(sgdwalk.open_run(tmp_path / training_name(long)).steps) < long.num_updates
    assert (tmp_path / training_name(long) / "writer.lock").read_text() == ""  # it saved its state and let go


def test_ctrl_c_ends_the_children_keeps_what_is_finished_and_says_how_to_go_on(smoke, tmp_path):
    figure = registry.figure("fig18", "smoke")
    finished, *begun = (
        tmp_path / "trainings" / training_name(figure.trainings[role][0]) for role in ("gd", "gd-sum", "sgd")
    )
    shutil.copytree(smoke / "trainings" / finished.name, finished)
    command = ["-m", "sgdwalk", "reproduce", "fig18", "--scale", "smoke", "--out", tmp_path, "--jobs", "2"]
    process = python(*command, start_new_session=True)
    children = [holder(folder) for folder in begun]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stdout == ""
    assert "Go on with:\n  sgdwalk reproduce fig18 --scale smoke" in stderr
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    for folder in begun:
        run = sgdwalk.open_run(folder)
        assert len(run.steps) < run.info["config"]["num_updates"]
        assert list(folder.glob("checkpoints/step-*"))
    assert is_trained(tmp_path / "trainings", figure.trainings["gd"][0])
    assert list(tmp_path.glob("fig18*")) == []


def test_nothing_is_started_once_a_stop_is_wanted(tmp_path):
    assert not train_all([TINY, replace(TINY, seed=1)], tmp_path, stop=lambda: True)
    assert not list(tmp_path.glob("digits-*"))


def test_missing_data_is_told_before_a_process_is_started(tmp_path):
    with pytest.raises(sgdwalk.InputError, match=r"no file train-\*\.parquet"):
        reproduce("fig17", "small", out=tmp_path / "out", data_dir=tmp_path)
    assert not (tmp_path / "out" / "trainings").exists()


def test_a_folder_whose_run_is_of_another_experiment_is_not_taken_for_it(tmp_path):
    other = replace(TINY, epochs=1)
    assert train(other, data.load(other), tmp_path / training_name(TINY))
    with pytest.raises(sgdwalk.ResumeError, match="epochs: 1 in the run, 2 now"):
        is_trained(tmp_path, TINY)


def test_names_tell_data_algorithm_and_settings_apart():
    names = {training_name(each) for each in (TINY, replace(TINY, algorithm="gd"), replace(TINY, seed=1))}
    assert len(names) == 3
    assert all(name.startswith("digits-") for name in names)
    assert sweep.training_name(TINY).startswith("digits-sgd-")
