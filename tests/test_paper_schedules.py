"""Learning rate schedules: their rates, the rule that holds a height, going on bitwise, grids and budgets; and rates of
convergence on a quadratic."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import sgdwalk
import synthetic
from sgdwalk.paper import data, quadratic, schedule_tables
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.schedule_trainings import EPOCHS, EQUAL, SCHEDULES, best, grid, tuned
from sgdwalk.paper.schedules import HoldHeight, scheduler_for
from sgdwalk.paper.train import train
from sgdwalk.paper.trainings import AUTHORS_SEED, SCALES
from sgdwalk.records import EpochNote, StepRecord
from sgdwalk.run import Run

TINY = Experiment(num_train=120, hidden=(7, 5), batch_size=30, epochs=6, watch=False)  # 24 updates
MOVING = {
    "cyclical": replace(TINY, schedule="cyclical", learning_rate=0.1, peak_rate=0.4, cycles=2),
    "trapezoid": replace(TINY, schedule="trapezoid", learning_rate=0.1, peak_rate=0.4, cycles=2),
    "stepwise": replace(TINY, schedule="stepwise", learning_rate=0.4, decay=0.5),
    "hold": replace(
        TINY,
        schedule="hold",
        learning_rate=0.1,
        peak_rate=0.4,
        target_height=0.01,
        watch=True,
        watch_every=3,
        num_points=2,
    ),
}


def optimizer(rate=0.1):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def rates_of(experiment):
    """The learning rate of every update."""
    chosen = optimizer(experiment.learning_rate)
    scheduler = scheduler_for(experiment, chosen)
    found = []
    for _ in range(experiment.num_updates):
        found.append(chosen.param_groups[0]["lr"])
        chosen.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("name", "corners"),
    [
        ("cyclical", {0: 0.1, 6: 0.4, 12: 0.1, 18: 0.4, 24: 0.1}),
        ("trapezoid", {0: 0.1, 6: 0.4, 12: 0.4, 24: 0.1}),
    ],
)
def test_rates_go_in_lines_from_corner_to_corner(name, corners):
    expected = np.interp(range(24), list(corners), list(corners.values()))
    np.testing.assert_allclose(rates_of(MOVING[name]), expected, rtol=1e-12)


def test_a_stepwise_rate_drops_after_each_third():
    np.testing.assert_allclose(rates_of(MOVING["stepwise"]), [0.4] * 8 + [0.2] * 8 + [0.1] * 8, rtol=1e-12)


def test_a_constant_rate_has_no_scheduler():
    assert scheduler_for(TINY, optimizer()) is None


def held(heights, *, target=0.16, peak=1.0, num_updates=100):
    chosen = optimizer()
    schedule = HoldHeight(chosen, target, peak, num_updates)
    found = [chosen.param_groups[0]["lr"]]
    for height in heights:
        chosen.step()
        schedule.step(height=height)
        found.append(chosen.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.16], 0.1),
        ([0.01], 0.2),  # 16 ** ¼
        ([0.16 * 1.5**4], 0.1 / 1.5),
        ([1e-9], 0.2),  # by two at most
        ([1e9], 0.05),
        ([0.0], 0.2),
        ([math.nan], 0.1),
        ([math.inf], 0.1),
        ([0.01] * 5, 1.0),  # the peak
        ([0.01] * 50, 1.0),  # up to where the annealing starts
    ],
)
def test_a_height_is_answered_by_its_fourth_root(heights, expected):
    assert held(heights)[-1] == pytest.approx(expected, rel=1e-12)


def test_a_height_that_grows_with_the_square_of_the_rate_comes_to_the_target():
    chosen = optimizer()
    schedule = HoldHeight(chosen, target=0.3, peak=10.0, num_updates=100)
    for _ in range(40):
        height = 2 * chosen.param_groups[0]["lr"] ** 2
        chosen.step()
        schedule.step(height=height)
    assert height == pytest.approx(0.3, rel=1e-6)


def test_heights_are_not_looked_at_while_the_rate_is_annealed():
    rates = held([0.01] + [math.nan] * 49 + [1e-9] * 50)
    np.testing.assert_allclose(rates, [0.1] + [0.2] * 50 + [0.2 - 0.1 * k / 50 for k in range(1, 51)], rtol=1e-12)


def test_annealing_never_raises_the_rate():
    rates = held([1e9] + [math.nan] * 99)
    np.testing.assert_allclose(rates[1:], 0.05, rtol=1e-12)


@pytest.mark.parametrize("name", MOVING)
def test_a_training_with_a_schedule_goes_on_bitwise(tmp_path, name):
    experiment = MOVING[name]
    examples = data.load(experiment)
    assert train(experiment, examples, tmp_path / "whole", strict=True)
    asked = iter(range(100))
    stopped = train(experiment, examples, tmp_path / "parts", strict=True, stop=lambda: next(asked) == 11)
    assert not stopped
    execution = Execution(checkpoint_every=5)
    assert train(experiment, examples, tmp_path / "parts", strict=True, resume=True, execution=execution)
    whole, parts = (sgdwalk.open_run(tmp_path / each).steps for each in ("whole", "parts"))
    pd.testing.assert_frame_equal(whole, parts, check_exact=True)
    assert whole["learning_rate"].nunique() > 2


def test_a_training_follows_the_heights_that_it_measures(tmp_path):
    experiment = MOVING["hold"]
    assert train(experiment, data.load(experiment), tmp_path / "run", strict=True)
    steps = sgdwalk.open_run(tmp_path / "run").steps
    assert steps["height"].notna().sum() == 8
    factor = 1.0
    for step in range(24):
        left = min(1.0, (24 - step) / 12)
        last = min(factor, 1.0)
        assert steps["learning_rate"][step] == pytest.approx(0.1 * (last + (factor - last) * left), rel=1e-9)
        height = steps["height"][step]
        if step < 12 and step % 3 == 0:
            factor = min(factor * min(max((0.01 / height) ** 0.25, 0.5), 2.0), 4.0)
    assert factor != 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"schedule": "cyclical"}, "schedule=cyclical needs peak_rate"),
        ({"peak_rate": 1.0}, "schedule=constant takes no peak_rate"),
        ({"schedule": "trapezoid", "peak_rate": 0.01}, "peak_rate must be finite and at least"),
        ({"schedule": "trapezoid", "peak_rate": math.inf}, "peak_rate must be finite"),
        ({"schedule": "trapezoid", "peak_rate": 1.0, "learning_rate": 0.0}, "must be above 0"),
        ({"schedule": "hold", "peak_rate": 1.0}, "schedule=hold needs target_height"),
        ({"schedule": "hold", "peak_rate": 1.0, "target_height": 0.0}, "target_height must be above 0"),
        ({"schedule": "hold", "peak_rate": 1.0, "target_height": 0.1, "watch": False}, "needs watch=True"),
        ({"target_height": 0.1}, "takes no target_height"),
        ({"cycles": 0}, "cycles must be"),
        ({"decay": 1.0}, "decay must be"),
    ],
)
def test_schedules_that_cannot_be_meant_are_refused(settings, words):
    with pytest.raises(sgdwalk.InputError, match=words):
        Experiment(**settings)


def test_schedules_leave_the_hashes_of_other_trainings_alone():
    assert Experiment(dataset="mnist", seed=1111, weight_decay=1e-4, num_train=6_000).settings_hash == "ba3e1224f4"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("architecture", ["vgg11", "resnet56"])
def test_every_schedule_has_a_grid_of_one_size_and_one_budget_of_updates(architecture, scale):
    points = grid(architecture, scale)
    assert list(points) == list(SCHEDULES)
    assert {len(roles) for roles in points.values()} == {{"smoke": 1, "small": 4, "paper": 6}[scale]}
    every = [experiment for roles in points.values() for experiment in roles.values()]
    assert {(each.epochs, each.seed) for each in every} == {(EPOCHS[scale], AUTHORS_SEED)}
    assert len({each.settings_hash for each in every}) == len(every)


def test_what_is_compared_has_other_seeds_than_what_was_chosen():
    points = grid("vgg11", "small")
    found = tuned({schedule: next(iter(roles.values())) for schedule, roles in points.items()}, "small")
    assert list(found) == [*SCHEDULES, EQUAL]
    for experiments in found.values():
        assert [each.seed for each in experiments] == [AUTHORS_SEED + number for number in range(1, 6)]


@pytest.mark.parametrize("scale", SCALES)
def test_held_for_equal_passes_costs_what_the_others_cost(scale):
    points = grid("resnet56", scale)
    found = tuned({schedule: next(iter(roles.values())) for schedule, roles in points.items()}, scale)

    def cost(experiment):
        """Passes over the examples, counted one by one: both ends and the middle of a segment are three."""
        trained = experiment.num_updates * experiment.batch_size / experiment.num_examples
        return 3 * trained + 3 * sum(experiment.watched(step) for step in range(experiment.num_updates))

    costs = {role: cost(experiments[0]) for role, experiments in found.items()}
    assert costs[EQUAL] == costs["cyclical"] == costs["trapezoid"] == costs["stepwise"] == 3 * EPOCHS[scale]
    assert costs["hold"] == 1.5 * costs["cyclical"]
    annealing = found["hold"][0].num_updates // 2
    assert all(not found["hold"][0].watched(step) for step in range(annealing, found["hold"][0].num_updates))


def test_the_best_of_a_grid_is_chosen_and_the_first_of_equals():
    runs = {
        name: [
            Run(synthetic.settings(name), [], [EpochNote(1, 9, {"validation_accuracy": 0.9}), EpochNote(2, 19, last)])
        ]
        for name, last in (
            ("a", {"validation_accuracy": 0.4}),
            ("b", {"validation_accuracy": 0.6}),
            ("c", {"validation_accuracy": 0.6}),
        )
    }
    assert best(runs, dict.fromkeys("abc", TINY)) == "b"


def test_an_epoch_with_a_loss_that_is_not_finite_has_no_training_loss():
    records = [
        StepRecord(step, epoch=step // 2 + 1, batch_loss=loss) for step, loss in enumerate((1.0, 3.0, 2.0, math.nan))
    ]
    losses = schedule_tables.training_loss(Run(synthetic.settings("walk"), records))
    assert losses[1] == 2.0
    assert math.isnan(losses[2])


def test_what_a_held_height_cost_is_counted_with_its_measurements(tmp_path):
    experiment = MOVING["hold"]
    assert train(experiment, data.load(experiment), tmp_path / "run", strict=True)
    run = sgdwalk.open_run(tmp_path / "run")
    assert schedule_tables.passes(run) == pytest.approx(3 * 6 + 3 * 8)


def test_descent_on_a_quadratic_is_that_of_its_eigenvalues():
    path = quadratic.descend((1.0, 3.0), 0.5, 4)
    np.testing.assert_allclose(path[:, 0], [0.5**k for k in range(5)], rtol=1e-12)
    np.testing.assert_allclose(path[:, 1], [(-0.5) ** k for k in range(5)], rtol=1e-12)


def test_rates_are_measured_on_the_descent_and_not_taken_from_the_formula(monkeypatch):
    monkeypatch.setattr(
        quadratic, "descend", lambda eigenvalues, rate, updates: np.outer(0.25 ** np.arange(updates + 1), [1.0, 1.0])
    )
    table = quadratic.rates((1.0, 2.0), (0.1,))
    np.testing.assert_allclose(table["measured"], 0.25)
    np.testing.assert_allclose(table["formula"], [0.9, 0.8])
    assert not table["oscillates"].any()


def test_rounding_errors_are_not_taken_for_a_rate():
    table = quadratic.rates((1.0, 9.99), (0.1,)).set_index("eigenvalue")  # 0.001 an update
    assert table["measured"][9.99] == pytest.approx(0.001, rel=1e-6)
    assert table["updates"][9.99] < quadratic.NUM_UPDATES
