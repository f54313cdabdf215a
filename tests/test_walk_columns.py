"""``columns``: cosine, distance and norms of some updates alone, bit for bit those of a walk that keeps all."""

from __future__ import annotations

import copy
import functools
import gc
import math
import weakref

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import nets
import sgdwalk
from sgdwalk import analysis, figures
from sgdwalk.columns import DERIVED_COLUMNS, UPDATE_COLUMNS
from sgdwalk.epoch_means import epoch_means
from sgdwalk.kernels import NumpyKernel, TorchKernel
from sgdwalk.objective import FullLoss
from sgdwalk.records import StepRecord
from sgdwalk.report_figures import RunLabel
from sgdwalk.report_tables import epochs_table, steps_table
from sgdwalk.sampling import mean_of_consecutive
from sgdwalk.summary import describe, describe_together
from sgdwalk.text import number

STEPS = 12
COLUMNS = [*UPDATE_COLUMNS, "gauge"]


def start(optimizers: str = "sgd") -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    if optimizers == "two":
        halves = list(model[0].parameters()), list(model[2].parameters())
        return model, [torch.optim.SGD(half, lr=0.3) for half in halves]
    kinds = {
        "plain": lambda: torch.optim.SGD(model.parameters(), lr=0.3),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=0.05),
        "lbfgs": lambda: torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=3),
    }
    return model, [kinds[optimizers]()]


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs, targets = torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)

        def closure() -> Tensor:
            model.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)  # noqa: B023
            loss.backward()
            return loss

        if isinstance(optimizers[0], torch.optim.LBFGS):
            optimizers[0].step(closure)
            continue
        closure()
        for optimizer in optimizers:
            optimizer.step()


def watched(optimizers: str = "sgd", steps: int = STEPS, **options) -> sgdwalk.Run:
    model, chosen = start(optimizers)
    options = {"when": None, "gauge": True, "on_error": "raise"} | options
    data = (None, None) if options["when"] is None else (functional.cross_entropy, examples())
    with sgdwalk.watch(model, chosen, *data, **options) as walk:
        train(model, chosen, range(steps))
    return walk.run


@functools.cache
def whole_walk(optimizers: str, gauge: bool) -> sgdwalk.Run:
    return watched(optimizers, gauge=gauge)


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(99)
    return torch.randn(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)


def assert_rows_of(run: sgdwalk.Run, whole: sgdwalk.Run, steps: set[int]) -> None:
    """These steps have what they have in the walk that keeps all; others have neither value nor reason."""
    assert len(run.steps) == len(whole.steps)
    kept, nothing = sorted(steps), pd.Series(None, index=whole.steps.index, dtype="object")
    assert run.events["kind"].tolist() in ([], whole.events["kind"].tolist(), ["never_watched"])
    for column in [name for name in COLUMNS if name in whole.steps]:
        values = run.steps.get(column)
        if values is None:  # a column of a measure that was never taken
            assert not kept
            continue
        assert values.loc[kept].equals(whole.steps[column].loc[kept]), column
        assert values.drop(kept).isna().all(), column
        found, true = (each.steps.get(f"{column}_reason", nothing) for each in (run, whole))
        assert found.drop(kept).isna().all(), column
        assert found.loc[kept].dropna().to_dict() == true.loc[kept].dropna().to_dict(), column


@pytest.mark.parametrize("optimizers", ["plain", "sgd", "adam", "lbfgs", "two"])
@pytest.mark.parametrize("gauge", [False, True])
@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(0, STEPS - 1)))
def test_what_is_kept_is_what_a_walk_that_keeps_all_has(optimizers, gauge, chosen):
    assert_rows_of(watched(optimizers, gauge=gauge, columns=chosen.__contains__), whole_walk(optimizers, gauge), chosen)


def test_they_are_there_wherever_something_is_measured():
    options = {"when": sgdwalk.every(5), "batch_size": 10}
    whole = watched(**options)
    run = watched(columns=None, **options)
    assert_rows_of(run, whole, {0, 5, 10})
    assert run.segments.equals(whole.segments)
    measured = watched(columns=sgdwalk.every(7), measures={"one": sgdwalk.at(sgdwalk.every(6), lambda here: here.step)})
    assert_rows_of(measured, watched(), {0, 6, 7})
    assert measured.steps["one"].dropna().tolist() == [0, 6]


@pytest.mark.parametrize("stop", range(1, 9))
def test_training_is_bit_identical_and_a_resumed_walk_repeats_it(stop):
    options = {"when": None, "gauge": True, "on_error": "raise", "columns": sgdwalk.every(4)}
    bare, optimizer = start()
    train(bare, optimizer, range(10))
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **options) as whole:
        train(model, optimizer, range(10))
    nets.assert_identical(model.state_dict(), bare.state_dict())

    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **options) as first:
        train(model, optimizer, range(stop))
        state = first.state_dict()
        weights, momenta = copy.deepcopy((model.state_dict(), optimizer[0].state_dict()))
        train(model, optimizer, range(stop, 10))  # asking for the state changes nothing
    assert first.run.steps.equals(whole.run.steps)
    assert first.run.events.empty
    model, optimizer = start()
    model.load_state_dict(weights)
    optimizer[0].load_state_dict(momenta)
    with sgdwalk.watch(model, optimizer, None, None, **options) as rest:
        rest.load_state_dict(state)
        train(model, optimizer, range(stop, 10))
    assert rest.run.steps.equals(whole.run.steps)
    assert rest.run.events.empty


@pytest.mark.parametrize("gauge", [False, True])
def test_an_update_that_is_not_looked_at_touches_no_vector(gauge, monkeypatch):
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, when=None, columns=sgdwalk.every(6), gauge=gauge) as walk:
        calls: list[str] = []
        kernel = walk._trajectory.kernel
        for name in ("moved", "gradient_sums", "position_sums", "update_sums"):
            method = getattr(kernel, name)
            monkeypatch.setattr(
                kernel, name, lambda *a, _m=method, _n=name, **k: (calls.append(_n), _m(*a, **k))[1], raising=True
            )
        touched = []
        for step in range(8):
            calls.clear()
            train(model, optimizer, range(step, step + 1))
            touched.append(set(calls))
    whole, caught_up = {"moved", "update_sums"}, {"position_sums", "update_sums"}
    # Steps 0 and 6 are looked at, what the latter needs of 5 is kept; the others pass by.
    assert touched[0] == whole
    assert touched[5] == (caught_up if gauge else {"gradient_sums"})
    assert touched[6] == (whole if gauge else caught_up)
    assert [touched[step] for step in (1, 2, 3, 4, 7)] == [set()] * 5


def moved_by_the_loop(columns: set[int], moves: dict[int, float]) -> sgdwalk.Run:
    """Steps of -0.5 from 1, the loop itself putting θ elsewhere before some of them."""
    parameter = nn.Parameter(torch.tensor([1.0]))
    model = nn.Module()
    model.register_parameter("theta", parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    with sgdwalk.watch(model, optimizer, None, None, when=None, gauge=True, columns=columns.__contains__) as walk:
        for step in range(max(columns) + 2):
            if step in moves:
                parameter.data.fill_(moves[step])
            parameter.grad = torch.ones(1)
            optimizer.step()
    return walk.run


def test_a_loop_that_moves_the_parameters_gets_no_wrong_number():
    """Seen between two updates that are looked at; elsewhere the row starts from where the parameters stand."""
    run = moved_by_the_loop({2, 5}, {1: 4.0, 5: 20.0})
    steps = run.steps
    # θ: 1, then 4 at step 1, 3.5 at 2; 20 at 5, where the walk knew 2 from the update before.
    assert steps.loc[2, ["distance", "next_distance", "update_norm", "gauge"]].tolist() == [2.5, 2.0, 0.5, -0.5]
    assert steps.loc[5, ["distance", "next_distance", "update_norm"]].tolist() == [19.0, 18.5, 0.5]
    assert math.isnan(steps.loc[5, "gauge"])
    assert "changed" in steps.loc[5, "gauge_reason"]
    assert run.events[["step", "kind"]].to_numpy().tolist() == [[5, "moved_parameters"]]


def test_a_move_between_updates_that_are_not_looked_at_both_is_not_seen_and_does_no_harm():
    run = moved_by_the_loop({2, 6}, {3: 9.0})
    found = run.steps.loc[6, ["distance", "next_distance", "update_norm", "gauge"]]
    assert found.tolist() == [6.5, 6.0, 0.5, -0.5]
    assert run.events.empty


def test_weights_that_are_swapped_in_while_the_state_is_asked_for_change_nothing():
    def walk_of(ask: bool) -> sgdwalk.Run:
        model, optimizer = start()
        with sgdwalk.watch(model, optimizer, None, None, when=None, gauge=True, columns=sgdwalk.every(4)) as walk:
            for step in range(STEPS):
                train(model, optimizer, range(step, step + 1))
                if ask:
                    own = copy.deepcopy(model.state_dict())
                    model.load_state_dict({name: 0 * tensor for name, tensor in own.items()})
                    walk.state_dict()
                    model.load_state_dict(own)
        return walk.run

    assert walk_of(True).steps.equals(walk_of(False).steps)
    assert walk_of(True).events.empty


@pytest.mark.parametrize("columns", [sgdwalk.every(1), sgdwalk.every(10)])
@pytest.mark.parametrize("change", ["half", "empty"])
def test_a_model_that_is_another_after_training_can_still_be_asked_and_closed(columns, change):
    model, optimizer = start()
    walk = sgdwalk.watch(model, optimizer, None, None, when=None, columns=columns)
    train(model, optimizer, range(3))
    if change == "half":
        model.half()
    else:
        model[0].weight.data = torch.empty(0)
    state = walk.state_dict()
    assert state["step"] == 3
    walk.close()
    assert walk.run.events.empty


@pytest.mark.parametrize("stop", [5, 6])
def test_a_model_that_was_not_loaded_is_noticed_after_a_resume(stop):
    """Wherever the update before was not looked at, too."""
    options = {"when": None, "columns": sgdwalk.every(4)}
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **options) as first:
        train(model, optimizer, range(stop))
        state = first.state_dict()
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **options) as rest:
        rest.load_state_dict(state)
        train(model, optimizer, range(stop, 10))
    assert rest.run.events[["step", "kind"]].to_numpy().tolist() == [[stop, "moved_parameters"]]


@pytest.mark.parametrize("kernel", [NumpyKernel, TorchKernel])
@pytest.mark.parametrize("gauge", [False, True])
def test_it_is_the_same_with_every_kernel(kernel, gauge, monkeypatch):
    monkeypatch.setattr("sgdwalk.trajectory.choose_kernel", lambda device: kernel())
    chosen = {0, 3, 4, 9}
    assert_rows_of(watched(gauge=gauge, columns=chosen.__contains__), watched(gauge=gauge), chosen)


def test_parameters_that_join_at_an_update_that_is_not_looked_at_start_there():
    model, optimizer = start()
    optimizer = [torch.optim.SGD(model[0].parameters(), lr=0.3)]
    with sgdwalk.watch(model, optimizer, None, None, when=None, columns={6}.__contains__) as walk:
        train(model, optimizer, range(3))
        before = [parameter.detach().double().clone() for parameter in model.parameters()]
        optimizer[0].add_param_group({"params": list(model[2].parameters())})
        train(model, optimizer, range(3, 7))
    here = [parameter.detach().double() for parameter in model.parameters()]
    fresh, _ = start()
    origin = [*(parameter.detach().double() for parameter in fresh[0].parameters()), *before[2:]]
    distance = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(here, origin, strict=True)))
    assert walk.run.steps.loc[6, "next_distance"] == pytest.approx(distance, rel=1e-6)
    assert walk.run.steps.loc[6, "cosine"] == pytest.approx(watched_cosine(), rel=1e-5)
    assert nets.event_kinds(walk.run) == ["parameters_added"]


def watched_cosine() -> float:
    """Of updates 5 and 6 of the training above, by hand."""
    model, _ = start()
    optimizer = [torch.optim.SGD(model[0].parameters(), lr=0.3)]
    train(model, optimizer, range(3))
    optimizer[0].add_param_group({"params": list(model[2].parameters())})
    gradients = []
    for step in range(3, 7):
        train(model, optimizer, range(step, step + 1))
        gradients.append(nets.flat_gradient(list(model.parameters())))
    return nets.cosine(gradients[-2], gradients[-1])


@pytest.mark.parametrize("method", ["exact", "certified"])
def test_the_start_of_a_segment_is_heard_after_updates_that_were_passed_by(method, monkeypatch):
    """Gradient descent over ``walk.batches()``: L(θ_t) comes from the loop where the walk did not follow it there."""
    counted: list[int] = []
    batch = FullLoss.batch
    monkeypatch.setattr(FullLoss, "batch", lambda self, index: counted.append(index) or batch(self, index))

    def descend(columns) -> tuple[sgdwalk.Run, int]:
        counted.clear()
        model, optimizer = start()
        data = functional.cross_entropy, examples()
        watching = {"batch_size": 5, "when": sgdwalk.every(3), "method": method, "on_error": "raise"}
        with sgdwalk.watch(model, optimizer, *data, columns=columns, **watching) as walk:
            for _ in range(7):
                optimizer[0].zero_grad()
                for inputs, targets in walk.batches():
                    (functional.cross_entropy(model(inputs), targets) / 4).backward()
                optimizer[0].step()
        return walk.run, len(counted)

    whole, of_whole = descend(sgdwalk.every(1))
    run, of_some = descend(None)
    assert run.segments.equals(whole.segments)
    assert of_some == of_whole


def test_a_step_that_a_gradient_scaler_skips_is_no_update():
    def walk_of(columns) -> sgdwalk.Run:
        model, (optimizer,) = start()
        with sgdwalk.watch(model, optimizer, None, None, when=None, gauge=True, columns=columns) as walk:
            for step in range(STEPS):
                if step in (4, 5, 7):
                    optimizer.found_inf = torch.tensor(1.0)
                    train_gradients(model, step)
                    walk._hooks._before(optimizer, (), {})  # a fused step that finds infinities calls both hooks
                    walk._hooks._after(optimizer, (), {})
                    del optimizer.found_inf
                train(model, [optimizer], range(step, step + 1))
        assert len(walk.run.events) == 3
        return walk.run

    assert_rows_of(walk_of(sgdwalk.every(5)), walk_of(sgdwalk.every(1)), {0, 5, 10})


@pytest.mark.parametrize("chosen", [{0}, {3}, {4}, {0, 4}])
def test_a_step_that_raises_and_is_made_again_is_the_same_update(chosen):
    """Parameters that join before the attempt are there at the second one."""

    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            if self.fails:
                self.fails = False
                raise OSError("no room")
            return super().step(closure)

    def walk_of(columns) -> sgdwalk.Run:
        model, _ = start()
        optimizer = Fails(model[0].parameters(), lr=0.3)
        optimizer.fails = False
        with sgdwalk.watch(model, optimizer, None, None, when=None, gauge=True, columns=columns) as walk:
            for step in range(6):
                if step == 3:
                    optimizer.add_param_group({"params": list(model[2].parameters())})
                    optimizer.fails = True
                    with pytest.raises(OSError, match="no room"):
                        train(model, [optimizer], range(step, step + 1))
                train(model, [optimizer], range(step, step + 1))
        return walk.run

    assert_rows_of(walk_of(chosen.__contains__), walk_of(sgdwalk.every(1)), chosen)


def test_by_hand_it_is_the_same():
    def walk_of(columns) -> sgdwalk.Run:
        model, optimizer = start()
        with sgdwalk.watch(model, None, None, None, when=None, gauge=True, columns=columns) as walk:
            for step in range(STEPS):
                walk.before_step(learning_rate=0.3)
                train(model, optimizer, range(step, step + 1))
                walk.after_step()
        return walk.run

    assert_rows_of(walk_of(sgdwalk.every(5)), walk_of(sgdwalk.every(1)), {0, 5, 10})


def train_gradients(model: nn.Module, step: int) -> None:
    model.zero_grad()
    inputs, targets = examples()
    functional.cross_entropy(model(inputs) * (step + 1), targets).backward()


def test_every_schedule_is_asked_once_for_every_update():
    """One that counts its calls, or draws from a generator of its own, fires where it would alone."""
    asked: list[int] = []

    def drawn(step: int) -> bool:
        asked.append(step)
        return len(asked) % 4 == 1

    run = watched(columns=drawn)
    assert asked == list(range(STEPS + 1))  # one ahead, for what the last update would keep for the next
    assert_rows_of(run, whole_walk("sgd", True), {0, 4, 8})


def test_a_schedule_that_keeps_raising_keeps_being_told():
    model, optimizer = start()
    told = []
    schedules = {
        "when": lambda step: 1 / (step - 1),
        "measures": {"one": sgdwalk.at(lambda step: 1 / 0, lambda here: 0)},
    }
    data = functional.cross_entropy, examples()
    with sgdwalk.watch(model, optimizer, *data, on_error="raise", **schedules) as walk:
        for step in range(3):
            try:
                train(model, optimizer, range(step, step + 1))
            except ZeroDivisionError:
                told.append(step)
    assert told == [0, 1, 2]
    assert walk.run.steps.empty


def test_a_walk_that_nobody_holds_any_more_is_gone():
    gc.collect()
    gc.disable()
    try:
        model, optimizer = start()
        walk = sgdwalk.watch(model, optimizer, None, None, when=None, columns=sgdwalk.every(3))
        train(model, optimizer, range(4))
        walk.close()
        held = weakref.ref(walk)
        del walk
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("columns", [sgdwalk.every(1), None])
def test_a_pass_over_the_batches_with_other_weights_leaves_no_trace(columns):
    """As for a validation by averaged weights, which are put back before the next update."""
    model, optimizer = start()
    data = functional.cross_entropy, examples()
    options = {"batch_size": 5, "when": sgdwalk.every(3), "columns": columns, "on_error": "raise"}
    runs = []
    for swaps in (True, False):
        model, optimizer = start()
        with sgdwalk.watch(model, optimizer, *data, **options) as walk:
            for step in range(8):
                if swaps:
                    own = copy.deepcopy(model.state_dict())
                    model.load_state_dict({name: 0.5 * tensor for name, tensor in own.items()})
                    for inputs, targets in walk.batches():
                        functional.cross_entropy(model(inputs), targets)
                    model.load_state_dict(own)
                train(model, optimizer, range(step, step + 1))
        runs.append(walk.run)
    assert runs[0].events.empty
    assert runs[0].segments.equals(runs[1].segments)
    assert runs[0].steps.equals(runs[1].steps)


@pytest.mark.parametrize("columns", [sgdwalk.every(1), None])
def test_a_pass_in_which_an_update_is_made_says_nothing_of_the_loss(columns):
    model, optimizer = start()
    data = functional.cross_entropy, examples()
    watching = {"batch_size": 5, "when": sgdwalk.every(2), "columns": columns, "on_error": "raise"}
    losses = {}
    with sgdwalk.watch(model, optimizer, *data, **watching) as walk:
        for _ in range(4):
            for index, (inputs, targets) in enumerate(walk.batches()):
                functional.cross_entropy(model(inputs), targets).backward()
                if index % 2:
                    with torch.no_grad():
                        losses[walk.step] = functional.cross_entropy(model(examples()[0]), examples()[1]).item()
                    optimizer[0].step()
                    optimizer[0].zero_grad()
    found = walk.run.steps["loss"].dropna()
    assert found.index.tolist() == [0, 2, 4, 6]
    assert found.tolist() == pytest.approx([losses[step] for step in found.index], rel=1e-6)


def test_where_all_is_kept_a_schedule_that_raises_does_so_after_the_update():
    def broken(step: int) -> bool:
        raise RuntimeError("no idea")

    model, optimizer = start()
    before = copy.deepcopy(model.state_dict())
    with (
        sgdwalk.watch(model, optimizer, functional.cross_entropy, examples(), when=broken, on_error="raise"),
        pytest.raises(RuntimeError, match="no idea"),
    ):
        train(model, optimizer, range(1))
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_a_predicate_that_fails_is_switched_off_and_the_walk_goes_on():
    def broken(step: int) -> bool:
        if step > 3:
            raise RuntimeError("no idea")
        return True

    run = watched(columns=broken, on_error="disable")
    assert run.steps["grad_norm"].notna().tolist() == [True] * 4 + [False] * (STEPS - 4)
    assert run.events["kind"].tolist() == ["measurement_failed"]
    assert "columns" in run.events["message"].iloc[0]
    assert "no idea" in run.events["message"].iloc[0]


def test_a_schedule_that_never_fires_is_told():
    run = watched(columns=lambda step: False)
    assert run.events["kind"].tolist() == ["never_watched"]
    assert "columns=" in run.events["message"].iloc[0]


def test_wrong_arguments_are_refused():
    model, optimizer = start()
    data = examples()
    with pytest.raises(sgdwalk.InputError, match="columns must be a predicate"):
        sgdwalk.watch(model, optimizer, None, None, when=None, columns=5)
    with pytest.raises(sgdwalk.InputError, match="columns was given too: leave out one"):
        sgdwalk.watch(model, optimizer, functional.cross_entropy, data, budget=1.5, columns=sgdwalk.every(2))
    with pytest.raises(sgdwalk.InputError, match="columns=None keep nothing"):
        sgdwalk.watch(model, optimizer, None, None, when=None, columns=None)
    with pytest.raises(sgdwalk.InputError, match=r"The schedule in_epochs.*steps_per_epoch"):
        sgdwalk.watch(model, optimizer, None, None, when=None, columns=sgdwalk.in_epochs(2))
    for name in ("columns", "segment", "looked_at", "directness"):
        with pytest.raises(sgdwalk.InputError, match="cannot be named"):
            sgdwalk.watch(model, optimizer, functional.cross_entropy, data, measures={name: lambda here: 0.0})


def test_tables_and_sentences_speak_of_what_was_looked_at():
    run = watched(columns=lambda step: step % 5 == 3, steps=250, steps_per_epoch=125)
    whole = watched(steps=250, steps_per_epoch=125)
    looked = run.steps.index[run.steps.index % 5 == 3]
    assert run.info["settings"]["columns"]
    assert analysis.left_out(run).empty
    (row,) = analysis.compare([run]).to_dict("records")
    assert (row["distance_after"], row["undefined_cosines"]) == (249, 0)
    assert row["distance"] == whole.steps["next_distance"].loc[248]
    assert row["mean_cosine"] == pytest.approx(whole.steps["cosine"].loc[looked].mean(), rel=1e-12)
    assert analysis.compare([whole])["distance_after"].tolist() == [250]
    assert any("After 249 updates it was at distance" in sentence for sentence in describe(run))
    assert any("It ends at distance" in sentence for sentence in describe(whole))
    gauged = analysis.gauge_epochs(run)
    assert gauged[["num_updates", "num_gauged", "undefined"]].to_numpy().tolist() == [[125, 25, 0], [125, 25, 0]]
    assert gauged.loc[1, "mean_gauge"] == pytest.approx(whole.steps["gauge"].loc[looked[:25]].mean(), rel=1e-12)
    assert [row[1] for row in epoch_means(run)[0].rows] == ["25 of 125", "25 of 125"]
    assert [row[1] for row in epoch_means(whole)[0].rows] == ["125", "125"]
    label = RunLabel("walk", "c1", "circle")
    table = steps_table(run, label)
    assert table.caption == "50 measured steps"
    assert any("mean cosine" in sentence and "over 50 of 250 updates" in sentence for sentence in describe(run))
    assert any("50 of its 250 updates" in sentence for sentence in describe(run))
    assert "Cosine, distance and norms of walk are those of 50 of 250 updates." in figures.progress(run).notes
    assert analysis.derived(run)["looked_at"].sum() == 50
    assert tuple(analysis.derived(run)) == DERIVED_COLUMNS
    assert epochs_table(run, label).rows[0][4:6] == [number(whole.steps["next_distance"].loc[123], zeros=True), "124"]
    assert "after updates" not in epochs_table(whole, label).header


def test_walks_are_compared_after_an_update_that_all_were_looked_at():
    """The one that is farthest is not left out for being looked at elsewhere."""
    far = watched(columns=sgdwalk.every(5), steps=20, gauge=False)
    near = watched("adam", steps=20, gauge=False)
    names = [sgdwalk.Run({**run.info, "name": name}, records_of(run)) for name, run in (("far", far), ("near", near))]
    (told,) = [sentence for sentence in describe_together(names) if "farther" in sentence or "farthest" in sentence]
    distances = {"far": far.steps["next_distance"].loc[15], "near": near.steps["next_distance"].loc[15]}
    assert told.startswith(f"After 16 updates {max(distances, key=distances.get)} is farther")
    assert number(max(distances.values())) in told


def records_of(run: sgdwalk.Run) -> list[StepRecord]:
    rows = run.steps[list(UPDATE_COLUMNS)].to_dict("index")
    return [StepRecord(step, **values) for step, values in rows.items()]


def test_a_random_tenth_tells_the_mean_gauge_of_an_epoch():
    """The interval from one update in ten holds the mean of all updates about as often as it says."""
    gauge = watched(steps=600).steps["gauge"]
    held = 0
    for seed in range(100):
        drawn = sgdwalk.one_in(10, seed=seed)
        found = mean_of_consecutive(gauge[[drawn(step) for step in gauge.index]].dropna().to_numpy())
        held += found.low <= gauge.mean() <= found.high
    assert held >= 88


def test_a_schedule_that_only_says_it_is_every_update_is_asked():
    liar = sgdwalk.When("every(1)", lambda step, _: step == 2)
    model, inputs, targets = nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, None, None, when=None, columns=liar, on_error="raise") as walk:
        for _ in range(4):
            optimizer.zero_grad()
            functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    assert walk.run.steps["distance"].notna().tolist() == [False, False, True, False]
