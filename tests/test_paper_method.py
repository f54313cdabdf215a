"""``reproduce --method certified``: the same verdicts, and exact segments beside certified ones."""

import html
import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sgdwalk
from sgdwalk import cli
from sgdwalk.paper import agreement, certifying, data, registry
from sgdwalk.paper.agreement import Pair
from sgdwalk.paper.certifying import CERTIFIABLE, certified_training, figures
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.cost import only_segment, passes
from sgdwalk.paper.overview import read_results, write_overview
from sgdwalk.paper.run import judge, missing_trainings, open_runs, reproduce
from sgdwalk.paper.sweep import training_name
from sgdwalk.paper.timing import read_timing
from sgdwalk.paper.train import train
from sgdwalk.run import Run

ASKED_FOR = ("fig1", "fig2", "fig17", "fig18", "table2")
MANY_BATCHES = Experiment(num_train=1_200, hidden=(20, 10), batch_size=12, epochs=2, watch_first=15)
"""With a hundred evaluation batches: enough to draw samples from."""
BOUNCING = replace(
    MANY_BATCHES, algorithm="gd", num_train=1_500, batch_size=10, epochs=16, learning_rate=1.5, watch_first=None
)
"""Whose floors lie between the iterates, so that heights are estimated."""


def train_missing(wanted, out):
    for experiment in missing_trainings(wanted, out / "trainings"):
        assert train(experiment, data.load(experiment), out / "trainings" / training_name(experiment), strict=True)
    return out


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A folder with the trainings of the smoke scale, with exact and with certified segments."""
    wanted = [*figures(ASKED_FOR, "smoke", "exact"), *figures(ASKED_FOR, "smoke", "certified")]
    return train_missing(wanted, tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    """Two trainings along which segments are estimated, watched in both ways."""
    out = tmp_path_factory.mktemp("estimated")
    pairs = []
    for role, exact in {"sgd": MANY_BATCHES, "gd": BOUNCING}.items():
        runs = []
        for experiment in (exact, certified_training(exact)):
            folder = out / training_name(experiment)
            assert train(experiment, data.load(experiment), folder, strict=True)
            runs.append(sgdwalk.open_run(folder))
        pairs.append(Pair(role, *runs))
    return pairs


@pytest.fixture
def no_training(monkeypatch):
    """Trainings that are there must be used as they are."""

    def refuse(*arguments, **options):
        raise AssertionError("a training was started")

    monkeypatch.setattr("sgdwalk.paper.run.train_all", refuse)


def doctored(run, change):
    """The run with each of its step records changed."""
    return Run(run.info, [change(record) for record in run._steps], run._notes, run._events, run.path)


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASKED_FOR)
def test_verdicts_are_those_of_exact_segments_and_the_page_shows_both(smoke, no_training, name):
    sides = {side: figures([name], "smoke", side)[0] for side in ("exact", "certified")}
    judged = {
        # The claims of the small scale, whose verdicts are not all "not testable".
        side: [each.verdict for each in judge(replace(figure, scale="small"), open_runs(figure, smoke / "trainings"))]
        for side, figure in sides.items()
    }
    assert judged["certified"] == judged["exact"]
    assert set(judged["exact"]) - {"not testable at this scale"}

    page = reproduce(name, "smoke", out=smoke, method="certified")
    assert page.path == smoke / f"{name}-smoke-certified" / "index.html"
    beside, folder = page.beside, page.path.parent
    assert (beside.missing, beside.faults) == ([], [])
    assert len(beside.verdicts) == len(page.judged)
    assert (beside.verdicts["agreement"] == "same").all()
    assert beside.num_walks == len(beside.cost) > 0
    text = html.unescape(page.path.read_text("utf-8"))
    for sentence in beside.sentences:
        assert sentence in text
    assert "walked bit for bit alike" in text
    assert "Error." not in text
    for each in ("verdicts", "heights", "barriers", "cost"):
        assert len(pd.read_csv(folder / f"beside-exact-{each}.csv")) == len(getattr(beside, each))
        assert agreement.TEXTS[each][0] in text
    written = json.loads((folder / "result.json").read_text("utf-8"))
    assert written["method"] == "certified"
    assert [each["certified"] for each in written["beside_exact"]["verdicts"]] == [
        each["verdict"] for each in written["claims"]
    ]
    assert len(written["beside_exact"]["heights"]) == len(beside.heights)


def test_the_exact_page_is_what_it_was(smoke, no_training):
    page = reproduce("fig17", "smoke", out=smoke)
    assert page.path == smoke / "fig17-smoke" / "index.html"
    assert page.beside is None
    assert "ertified" not in page.path.read_text("utf-8")
    assert "beside_exact" not in json.loads((page.path.parent / "result.json").read_text("utf-8"))


def test_without_the_exact_trainings_the_certified_side_is_shown_and_what_makes_them_told(
    smoke, no_training, tmp_path, capsys
):
    for experiment in figures(["fig17"], "smoke", "certified")[0].experiments:
        shutil.copytree(
            smoke / "trainings" / training_name(experiment), tmp_path / "trainings" / training_name(experiment)
        )
    asked = ["reproduce", "fig17", "--scale", "smoke", "--out", str(tmp_path)]
    assert cli.main([*asked, "--method", "certified"]) == 0
    printed = capsys.readouterr().out
    told = (
        "2 trainings with exact segments are not there, so that only the certified side can be judged. To see both: "
        f"sgdwalk reproduce fig17 --scale smoke --out {tmp_path}, then this command again."
    )
    assert told in printed
    assert "bit for bit" not in printed
    runs = [
        run
        for each in open_runs(figures(["fig17"], "smoke", "certified")[0], smoke / "trainings").values()
        for run in each
    ]
    segments = sum(run.segments["step"].nunique() for run in runs)
    exactly = f"{segments} of {segments} certified segments have an exact floor"  # too few batches for samples
    assert exactly in printed
    folder = tmp_path / "fig17-smoke-certified"
    assert told in html.unescape((folder / "index.html").read_text("utf-8"))
    assert list(folder.glob("beside-exact-*")) == []
    written = json.loads((folder / "result.json").read_text("utf-8"))["beside_exact"]
    assert len(written["missing"]) == 2
    assert written["verdicts"] == written["heights"] == written["cost"] == []

    (exact, _) = figures(["fig17"], "smoke", "exact")[0].experiments
    shutil.copytree(smoke / "trainings" / training_name(exact), tmp_path / "trainings" / training_name(exact))
    beside = reproduce("fig17", "smoke", out=tmp_path, method="certified").beside
    assert len(beside.missing) == beside.num_walks == len(beside.heights) == 1  # that training is compared,
    assert beside.verdicts.empty  # and nothing judged on half of the trainings


def test_a_training_that_was_changed_by_watching_is_an_error(smoke, no_training, monkeypatch, capsys):
    opened = sgdwalk.open_run
    changed = training_name(figures(["fig17"], "smoke", "certified")[0].trainings["gd-sum"][0])

    def one_digit_off(path):
        run = opened(path)
        if run.name != changed:
            return run
        return doctored(
            run,
            lambda record: (
                replace(record, grad_norm=math.nextafter(record.grad_norm, 9e9)) if record.step in (7, 9) else record
            ),
        )

    monkeypatch.setattr(sgdwalk, "open_run", one_digit_off)
    asked = ["reproduce", "fig17", "--scale", "smoke", "--out", str(smoke), "--method", "certified"]
    assert cli.main(asked) == 0
    fault = (
        "gd-sum, seed 1111: not the same walk with exact and with certified segments. grad_norm differ, "
        "from update 7 on. Watching must not change a training, and here it did."
    )
    printed = capsys.readouterr()
    assert f"error: {fault}" in printed.err
    assert "bit for bit" not in printed.out
    text = html.unescape((smoke / "fig17-smoke-certified" / "index.html").read_text("utf-8"))
    assert f'<p class="fault"><strong>Error.</strong> {fault}' in text
    assert text.count('class="fault"') == 1


def test_ids_without_segments_are_refused_by_name_and_those_that_can_are_named(capsys, tmp_path):
    asked = ["reproduce", "fig28", "fig1", "eq3", "--scale", "smoke", "--out", str(tmp_path), "--method", "certified"]
    assert cli.main(asked) == 1
    told = capsys.readouterr().err
    assert "fig28, eq3 cannot have certified segments" in told
    assert "fig1, fig2, fig8, fig9" in told
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(sgdwalk.InputError, match="fig28 cannot have certified segments"):
        reproduce("fig28", "smoke", out=tmp_path, method="certified")


def test_of_all_those_that_can_are_certified_and_the_overview_says_which_are_exact(smoke, no_training, capsys):
    wanted = figures(registry.IDS, "smoke", "certified", others="exact")
    assert [each.id for each in wanted] == list(registry.IDS)
    assert [each.id for each in wanted if each.method == "certified"] == list(CERTIFIABLE)
    assert set(ASKED_FOR) <= set(CERTIFIABLE)
    asked = ["reproduce", "all", "--scale", "smoke", "--out", str(smoke), "--method", "certified", "--dry-run"]
    assert cli.main(asked) == 0
    left = {each for figure in wanted for each in figure.experiments}
    left -= {each for figure in figures(ASKED_FOR, "smoke", "certified") for each in figure.experiments}
    assert int(capsys.readouterr().out.splitlines()[-1].split()[0]) >= len(left) > 0

    for name, method in {"fig17": "certified", "fig18": "certified", "fig28": "exact"}.items():
        reproduce(name, "smoke", out=smoke, method=method)
    path = write_overview(smoke, "smoke", "certified")
    assert path == smoke / "all-smoke-certified" / "index.html"
    page = path.read_text("utf-8")
    assert "fig17-smoke-certified/index.html" in page
    assert "fig28-smoke/index.html" in page
    assert "follows their very numbers: fig28." in page
    assert {each["id"]: each["method"] for each in read_results(smoke, "smoke", "certified")}["fig28"] == "exact"
    assert "ertified" not in write_overview(smoke, "smoke").read_text("utf-8")


# --- which trainings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", registry.SCALES)
def test_certified_trainings_are_shared_as_the_exact_ones_are(scale):
    certified, exact = {}, {}
    for figure in figures(CERTIFIABLE, scale, "certified"):
        assert figure.exact.trainings == registry.figure(figure.id, scale).trainings
        for role, each in figure.trainings.items():
            for twin, experiment in zip(each, figure.exact.trainings[role], strict=True):
                certified.setdefault(experiment, set()).add(twin)
                exact.setdefault(twin, set()).add(experiment)
    assert all(len(each) == 1 for each in certified.values())
    for each in exact.values():  # what differs only in what is compared has one certified twin
        assert len({replace(one, compare=(), compare_epochs=(), compare_first=1) for one in each}) == 1
    for experiment, (twin,) in certified.items():
        assert (twin == experiment) == (not experiment.watch)
        if experiment.watch:
            how = (twin.method, twin.tolerance, twin.barriers, twin.certify)
            sgd = experiment.algorithm == "sgd"
            assert how == ("certified", *((0.05, "exact", "height") if sgd else (0.02, "estimated", "curve")))
            assert [twin.watched(step) for step in range(60)] == [experiment.watched(step) for step in range(60)]


def test_tables_that_need_exact_losses_are_left_out_and_said(smoke, no_training):
    (wanted,) = figures(["table2"], "smoke", "certified")
    assert {table.name for table in wanted.exact.tables} - {table.name for table in wanted.tables} == {"noise"}
    text = html.unescape(reproduce("table2", "smoke", out=smoke, method="certified").path.read_text("utf-8"))
    (title,) = certifying.left_out(wanted)
    assert f"Left out, since it needs exact losses: {title}." in text
    assert f"<h2>{title}</h2>" not in text


def test_certified_segments_are_estimated_to_cost_less_where_batches_are_many():
    exact = Experiment(dataset="mnist")
    assert passes(exact, 0) - 3 * 100 / 45_000 == pytest.approx(10)
    assert passes(replace(exact, method="certified"), 0) - 3 * 100 / 45_000 == pytest.approx(1.2)
    few = replace(exact, num_train=500)
    assert passes(replace(few, method="certified"), 0) == passes(few, 0)


# --- the comparison ---------------------------------------------------------------------------------------------------


def segments(run):
    """Losses and half-widths of every watched step, from the raw points, by increasing α."""
    found = {}
    for step, points in run.segments.groupby("step"):
        ordered = points.sort_values("alpha")
        found[step] = (ordered["loss"].tolist(), ordered["halfwidth"].tolist())
    return found


def height(losses):
    return (losses[0] + losses[-1] - 2 * min(losses)) / 2


def crosses(losses):
    return max(losses[1:-1]) > max(losses[0], losses[-1])


def windows(pair):
    """The steps of each row of the tables, counted by hand."""
    if pair.role == "gd":
        return {None: list(range(16))}
    return {1: list(range(15)), 2: list(range(100, 115))}


def test_the_walks_are_the_same_and_some_segments_are_estimated(estimated):
    for pair in estimated:
        assert agreement.differences(pair) == []
        assert (pair.certified.segments["kind"] == "estimated").any()
        assert (pair.exact.segments["kind"] == "exact").all()


def test_heights_are_those_counted_from_the_raw_losses(estimated):
    table = agreement.heights(estimated)
    assert len(table) == 3
    rows = iter(table.to_dict("records"))
    for pair in estimated:
        exact, certified = segments(pair.exact), segments(pair.certified)
        for epoch, steps in windows(pair).items():
            row = next(rows)
            assert (row["training"], row["seed"], row["updates"]) == (pair.role, 0, len(steps))
            assert row["epoch"] == epoch or (epoch is None and math.isnan(row["epoch"]))
            theirs = [height(exact[step][0]) for step in steps]
            ours = [height(certified[step][0]) for step in steps]
            mean, other = sum(theirs) / len(steps), sum(ours) / len(steps)
            assert row["exact_height"] == pytest.approx(mean, rel=1e-12)
            assert row["certified_height"] == pytest.approx(other, rel=1e-12)
            assert row["difference_percent"] == pytest.approx(100 * (other / mean - 1), rel=1e-6)
            sizes = sorted(100 * abs(one - two) / two for one, two in zip(ours, theirs, strict=True))
            middle = len(sizes) // 2
            median = sizes[middle] if len(sizes) % 2 else (sizes[middle - 1] + sizes[middle]) / 2
            assert row["update_percent"] == pytest.approx(median, rel=1e-9)
            assert row["update_percent"] < 5
            inside = floors = 0
            noise = max(run.steps["loss_noise"].max() for run in pair[1:])
            for step, true in zip(steps, theirs, strict=True):
                losses, halfwidths = certified[step]
                floor_low = min(loss - width for loss, width in zip(losses, halfwidths, strict=True))
                floor_high = min(loss + width for loss, width in zip(losses, halfwidths, strict=True))
                ends = (losses[0] + losses[-1]) / 2
                inside += ends - floor_high - 4 * noise <= true <= ends - floor_low + 4 * noise
                floors += floor_low - 2 * noise <= min(exact[step][0]) <= floor_high + 2 * noise
            assert row["heights_inside"] == pytest.approx(inside / len(steps))
            assert row["floors_inside"] == pytest.approx(floors / len(steps))
            assert row["heights_inside"] >= 0.8  # 95 % are to be, of few
            assert row["exact_floor"] == pytest.approx(sum(min(exact[step][0]) for step in steps) / len(steps))
    assert (table["difference_percent"] != 0).sum() >= 2  # estimates they are


def test_barriers_are_those_counted_from_the_raw_losses(estimated):
    rows = iter(agreement.barriers(estimated).to_dict("records"))
    for pair in estimated:
        exact, certified = segments(pair.exact), segments(pair.certified)
        for steps in windows(pair).values():
            row = next(rows)
            assert row["exact"] == sum(crosses(exact[step][0]) for step in steps)
            known = [step for step in steps if pd.notna(pair.certified.steps["barrier"][step])]
            assert row["undecided"] == len(steps) - len(known)
            assert row["certified"] == sum(crosses(certified[step][0]) for step in known)
            assert row["otherwise"] == sum(
                crosses(exact[step][0]) != bool(pair.certified.steps["barrier"][step]) for step in known
            )
            if pair.role == "sgd":  # barriers="exact"
                assert row["undecided"] == row["otherwise"] == 0


def test_cost_is_what_was_counted_and_timed(estimated):
    rows = agreement.cost(estimated).to_dict("records")
    for pair, row in zip(estimated, rows, strict=True):
        evaluated = [record.measures["examples_evaluated"] for record in pair.certified._steps if record.segment]
        assert row["certified_examples"] == sum(evaluated)
        # SGD: epoch 2 begins after updates that were not watched, and its first segment's start is evaluated
        points, examples = (16 * 10, 1_500) if pair.role == "gd" else (30 * 10 + 1, 1_200)
        assert row["exact_examples"] == points * examples
        assert row["exact_passes"] == pytest.approx(points / row["updates"])
        assert row["certified_passes"] == pytest.approx(sum(evaluated) / examples / row["updates"])
        assert row["share"] == pytest.approx(sum(evaluated) / examples / points)
        assert row["share"] < 1
        steps = pair.certified.steps
        exactly = (steps["height_low"] == steps["height_high"]).sum()
        assert 1 <= row["evaluated_exactly"] <= exactly
        for side, run in (("exact", pair.exact), ("certified", pair.certified)):
            timing = read_timing(run.path)
            assert timing.updates == row["updates"]
            assert row[f"{side}_seconds"] == timing.seconds / timing.updates > 0


@pytest.mark.parametrize("every", [1, 3], ids="every {}".format)
@pytest.mark.parametrize("algorithm", ["sgd", "gd"])
def test_passes_of_exact_segments_are_the_forward_passes_that_are_made(algorithm, every):
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 3), torch.randint(3, (40,))
    counted, made = [0], []

    class Counting(nn.Module):
        def forward(self, inputs):
            counted[0] += len(inputs) * sgdwalk.is_measuring()
            return inputs

    model = nn.Sequential(Counting(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"experiment": {"algorithm": algorithm}}
    with sgdwalk.watch(
        model,
        optimizer,
        cross_entropy,
        (inputs, targets),
        batch_size=10,
        when=sgdwalk.every(every),
        num_points=4,
        config=config,
    ) as walk:
        for _ in range(8):
            optimizer.zero_grad()
            if algorithm == "gd":
                for batch, target in walk.batches():
                    (cross_entropy(model(batch), target) / 4).backward()
            else:
                cross_entropy(model(inputs[:10]), targets[:10]).backward()
            counted[0] = 0
            optimizer.step()
            made.append(counted[0] / 40)
    counted_passes = agreement.exact_passes(walk.run)
    assert list(counted_passes.index) == list(range(0, 8, every))
    # the first of all measures the loss noise too, by evaluations in float64
    assert [made[step] for step in counted_passes.index[1:]] == counted_passes.tolist()[1:]
    assert counted_passes[0] == 4
    assert sum(made) - made[0] == counted_passes[1:].sum()


def test_a_verdict_that_differs_and_heights_that_lie_outside_are_told(smoke):
    (wanted,) = figures(["fig17"], "small", "certified")
    (tried,) = figures(["fig17"], "smoke", "certified")
    runs = open_runs(tried, smoke / "trainings")
    exact_runs = open_runs(tried.exact, smoke / "trainings")

    def with_a_pit(record):
        points = list(record.segment)
        points[5] = replace(points[5], loss=points[5].loss - 1.0)
        return replace(record, segment=tuple(points))

    pitted = {**runs, "gd": [doctored(runs["gd"][0], with_a_pit)]}
    claims = {
        "exact": [asdict(each) for each in judge(replace(tried.exact, scale="small"), exact_runs)],
        "certified": [asdict(each) for each in judge(replace(tried, scale="small"), pitted)],
    }
    pairs = [Pair(role, exact_runs[role][0], pitted[role][0]) for role in ("gd", "gd-sum")]
    found = agreement.agree(pairs, [pair.certified for pair in pairs], claims["exact"], claims["certified"], [], "")
    rows = found.verdicts.set_index(["claim", "reading"])
    assert len(rows) == len(wanted.claims) == 10
    assert rows.loc[("valley", "mean gradient")].to_dict() == {
        "exact": "contradicted",
        "certified": "supported",
        "agreement": "differs",
    }
    assert rows.loc[("valley", "sum of nine mean gradients"), "agreement"] == "same"
    assert int((rows["agreement"] == "differs").sum()) == sum(
        one["verdict"] != two["verdict"] for one, two in zip(claims["exact"], claims["certified"], strict=True)
    )
    (sentence,) = [each for each in found.sentences if "verdicts" in each]
    assert sentence.startswith(
        f"{int((rows['agreement'] == 'same').sum())} of 10 verdicts are those of exact segments; "
    )
    assert "valley (mean gradient): contradicted by exact segments, supported by certified ones" in sentence
    assert found.heights["heights_inside"].tolist() == [0.0, 1.0]
    assert found.heights["floors_inside"].tolist() == [0.0, 1.0]
    assert found.heights["difference_percent"][0] > 100
    assert found.faults == []
    assert any("50 % of 80 exact heights lie within" in each for each in found.sentences)


def test_barriers_decided_otherwise_or_left_open_are_counted(estimated):
    pair = estimated[0]

    def changed(record):
        if record.step not in (0, 1, 2):
            return record
        points = [replace(point, kind="exact", halfwidth=0.0) for point in record.segment]
        highest = max(point.loss for point in points)
        points[4] = replace(points[4], loss=highest + 1.0, halfwidth=9.0 if record.step == 2 else 0.0)
        return replace(record, segment=tuple(points))

    before = agreement.barriers([pair]).iloc[0]
    after = agreement.barriers([pair._replace(certified=doctored(pair.certified, changed))]).iloc[0]
    crossing = [crosses(segments(pair.exact)[step][0]) for step in range(3)]
    assert after["otherwise"] == 2 - sum(crossing[:2])
    assert after["undecided"] == 1
    assert after["certified"] == before["certified"] + 2 - sum(crossing)


def test_losses_that_are_not_finite_are_left_out_and_counted(estimated):
    pair = estimated[1]

    def diverged(record):
        points = [replace(point, loss=math.nan) for point in record.segment]
        return replace(record, segment=tuple(points)) if record.step >= 3 else record

    (row,) = agreement.heights([pair._replace(certified=doctored(pair.certified, diverged))]).to_dict("records")
    assert row["updates"] == 3
    every = doctored(
        pair.certified, lambda record: replace(record, segment=tuple(replace(p, loss=math.nan) for p in record.segment))
    )
    (row,) = agreement.heights([pair._replace(certified=every)]).to_dict("records")
    assert row["updates"] == 0
    assert np.isnan([row["exact_height"], row["difference_percent"], row["heights_inside"]]).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda run: Run(run.info, run._steps[:-1], run._notes),
            "16 updates with exact segments and 15 with certified",
        ),
        (lambda run: Run(run.info, run._steps, run._notes[:-1]), "what was noted for epochs differ."),
        (
            lambda run: doctored(run, lambda record: replace(record, cosine=math.nan) if record.step == 4 else record),
            "cosine differ, from update 4 on. Watching must not",
        ),
        (
            lambda run: Run(
                {**run.info, "provenance": {**run.info["provenance"], "torch": "9.9"}},
                [replace(record, distance=record.distance + 1.0) for record in run._steps],
                run._notes,
            ),
            f"distance differ, from update 0 on. They were made with torch {torch.__version__} and 9.9.",
        ),
    ],
    ids=["length", "validation", "undefined", "another torch"],
)
def test_walks_that_are_not_the_same_are_told_with_where_and_why(estimated, change, told):
    pair = estimated[1]
    (fault,) = agreement.differences(pair._replace(certified=change(pair.certified)))
    assert fault.startswith("gd, seed 0: ")
    assert told in fault


# --- times ------------------------------------------------------------------------------------------------------------


def test_times_are_kept_over_a_stop_and_torn_ones_are_none(tmp_path):
    experiment = Experiment(num_train=120, hidden=(7, 5), batch_size=30, num_points=2, epochs=3, watch_every=2)
    split = data.load(experiment)
    asked = []

    def after_five():
        asked.append(None)
        return len(asked) > 5

    folder = tmp_path / "run"
    assert not train(experiment, split, folder, stop=after_five)
    first = read_timing(folder)
    assert first.updates == 3  # of updates 0 to 4 those that are watched
    assert train(experiment, split, folder, resume=True)
    last = read_timing(folder)
    assert last.updates == 6
    assert last.seconds > first.seconds > 0
    (folder / "timing.json").write_text('{"updates": 6, "sec')
    assert read_timing(folder) is None
    (folder / "timing.json").unlink()
    assert read_timing(folder) is None


def test_seconds_that_were_not_kept_are_said_to_be_unknown(estimated):
    pairs = [pair._replace(exact=Run(pair.exact.info, pair.exact._steps, pair.exact._notes)) for pair in estimated]
    found = agreement.agree(pairs, [pair.certified for pair in pairs], [], [], [], "")
    assert found.cost["exact_seconds"].isna().all()
    assert found.cost["certified_seconds"].notna().all()
    assert any("In seconds it cannot be told" in each for each in found.sentences)
    assert found.as_dict()["cost"][0]["exact_seconds"] is None
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["walks"] == 2


def test_updates_at_which_more_than_the_segment_is_measured_are_not_timed():
    experiment = Experiment(epochs=2, watch_every=2, curvature_every=4, compare=("eval",), compare_first=3)
    alone = [step for step in range(30) if only_segment(experiment, step)]
    assert alone == [step for step in range(0, 30, 2) if step % 4 and step not in (0, 2, 15, 16, 17)]
