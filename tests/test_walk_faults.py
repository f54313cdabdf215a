"""Faults that a walk survives: numbers that are not finite, skipped and empty updates, failures inside measurements."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam

import nets
import sgdwalk
from nets import FLOAT64, Trace, Training, Twin

F64 = torch.float64


# --- 13: numbers that are not finite ----------------------------------------------------------------------------------


class Root(nn.Module):
    """One parameter x and the loss f(x), whatever the data say."""

    def __init__(self, start: float):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([start], dtype=F64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.x.expand(len(inputs))


def walk_by_hand(function: Any, positions: list[float], **watch: Any) -> Any:
    """The run of a parameter set to the given positions, one update each."""
    model = Root(positions[0])
    with sgdwalk.watch(
        model,
        None,
        lambda output, target: function(output).mean(),
        (torch.zeros(2, 1, dtype=F64), torch.zeros(2)),
        **{"on_error": "raise", **watch},
    ) as walk:
        for position in positions[1:]:
            model.x.grad = torch.ones_like(model.x)
            walk.before_step()
            with torch.no_grad():
                model.x.fill_(position)
            walk.after_step()
    return walk.run


def poisoned(value: float) -> Any:
    """x² with another value between 0.45 and 0.55: finite at both ends of [0, 1]."""

    def function(x: Tensor) -> Tensor:
        return torch.where((x > 0.45) & (x < 0.55), torch.full_like(x, value), x * x)

    return function


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_13_a_loss_that_is_not_finite_inside_the_segment(value, evaluate_on, tmp_path):
    """Undefined with a reason, left out of the count of barriers, and the row beside it is whole."""
    run = walk_by_hand(poisoned(value), [0.0, 1.0, 2.0], evaluate_on=evaluate_on, run=tmp_path / "run")
    stored = sgdwalk.open_run(tmp_path / "run")
    for view in (run, stored):
        steps, first = view.steps, view.segments[view.segments["step"] == 0]
        assert first["loss"].isna().tolist() == [alpha == 0.5 for alpha in nets.ALPHAS]
        assert (steps["loss"][0], steps["next_loss"][0]) == (0.0, 1.0)
        for column in ("floor", "floor_alpha", "height", "barrier_height", "alpha_star"):
            assert math.isnan(steps[column][0]), column
        assert steps["barrier"].isna().tolist() == [True, False]
        assert "finite" in steps["barrier_reason"][0]
        assert steps["barrier"].sum() == 0
        assert steps["height"][1] == pytest.approx(1.5)
        json.dumps(view.info, allow_nan=False)


def test_13_a_gradient_that_is_not_finite():
    """With lr = 0 nothing moves, so only the columns that are made of the gradient are undefined."""
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.0)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, nets.classification(40, dtype=F64), on_error="raise"
    ) as walk:
        for step in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.inf if step == 1 else 1.0)
            optimizer.param_groups[0]["lr"] = 0.1 if step != 1 else 0.0
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            if step == 1:  # 0 * inf is NaN
                with torch.no_grad():
                    for parameter, kept in zip(model.parameters(), before, strict=True):
                        parameter.copy_(kept)
    steps = walk.run.steps
    assert steps["grad_norm"].isna().tolist() == [False, True, False, False]
    assert steps["cosine"].isna().tolist() == [True, True, True, False]
    assert steps["cosine_reason"][:3].notna().all()
    assert "finite" in steps["cosine_reason"][1]
    assert "finite" in steps["cosine_reason"][2]
    assert steps["cosine"][3] == pytest.approx(1.0)
    assert isinstance(steps["grad_norm_reason"][1], str)


def test_13_parameters_that_are_not_finite():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, nets.classification(40, dtype=F64), on_error="raise"
    ) as walk:
        for step in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1e300 if step == 1 else 1.0)
            optimizer.param_groups[0]["lr"] = 1e30 if step == 1 else 0.1
            optimizer.step()
    steps = walk.run.steps
    assert len(steps) == 4
    for column in ("next_distance", "update_norm"):
        assert math.isnan(steps[column][1]), column
        assert isinstance(steps[f"{column}_reason"][1], str), column
    for column in ("distance", "param_norm"):
        assert steps[column].isna().tolist() == [False, False, True, True], column
    assert steps["barrier"].isna().tolist() == [False, True, True, True]
    assert not np.isinf(steps.select_dtypes("float64").to_numpy()).any()
    assert steps["grad_norm"].notna().tolist() == [True, True, True, True] or "finite" in steps["grad_norm_reason"][1]


def test_13_a_run_full_of_nan_can_be_stored_and_read(tmp_path):
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, nets.classification(40, dtype=F64), run=tmp_path / "run"
    ) as walk:
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan)
            walk.note(epoch=1, batch_loss=math.nan, accuracy=math.inf)
            optimizer.step()
    stored = sgdwalk.open_run(tmp_path / "run")
    assert len(stored.steps) == 3
    assert stored.steps["batch_loss"].isna().all()
    assert stored.steps["next_loss"].isna().all()
    assert list(stored.epochs.index) == [1]


# --- 14: skipped updates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_class", [SGD, Adam])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_14_every_update_skipped_and_then_one_not(optimizer_class, fused):
    """No row, no t, no zero-length barrier; the first performed update is t = 0."""
    model = nets.mlp()
    optimizer = optimizer_class(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    inputs, targets = nets.classification()
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets), on_error="raise") as walk:
        for step in range(4):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            scaler.scale(loss * (math.inf if step < 3 else 1.0)).backward()
            walk.note(batch_loss=float(step))
            scaler.step(optimizer)
            scaler.update()
    run = walk.run
    assert list(run.steps.index) == [0]
    assert run.steps["batch_loss"][0] == 3.0, "a loss noted for a skipped update is not the next one's"
    assert run.steps["update_norm"][0] > 0
    assert list(run.events["kind"]) == (["skipped_update"] * 3 if fused else [])
    assert (run.events["step"] == 0).all()
    assert sorted(set(run.segments["step"])) == [0]


# --- 15: updates without movement, gradient or parameters -------------------------------------------------------------


def test_15_a_learning_rate_of_zero_is_an_update():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.0)
    data = nets.classification(40, dtype=F64)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, on_error="raise") as walk:
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
    steps = walk.run.steps
    assert len(steps) == 3
    assert (steps[["learning_rate", "update_norm", "distance", "next_distance", "height"]] == 0).all().all()
    assert steps["barrier"].eq(False).all()
    assert (steps["barrier_height"] == 0).all()
    assert (steps["floor"] == steps["loss"]).all()
    assert (steps["loss"] == steps["next_loss"]).all()
    assert steps["floor_alpha"].between(0, 1).all()
    assert steps["alpha_star"].isna().all()
    assert steps["alpha_star_reason"].notna().all()
    nets.assert_close(steps["cosine"][1:], [1.0, 1.0], **FLOAT64)


def test_15_a_zero_gradient_has_no_direction():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    data = nets.classification(40, dtype=F64)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, on_error="raise") as walk:
        for step in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.0 if step == 1 else 1.0)
            optimizer.step()
    steps = walk.run.steps
    assert steps["grad_norm"].tolist() == pytest.approx([math.sqrt(75), 0.0, math.sqrt(75), math.sqrt(75)])
    assert steps["cosine"].isna().tolist() == [True, True, True, False]
    assert "zero" in steps["cosine_reason"][1]
    assert "zero" in steps["cosine_reason"][2]
    assert (steps["update_norm"] > 0).all(), "weight decay moves"


def test_15_no_gradient_at_all_counts_as_zeros():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification(40, dtype=F64)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, on_error="raise") as walk:
        for step in range(3):
            optimizer.zero_grad()
            if step != 1:
                functional.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
    steps = walk.run.steps
    assert len(steps) == 3
    assert steps["grad_norm"][1] == 0
    assert steps["update_norm"][1] == 0
    assert steps["cosine"].isna().all()


def test_15_sparse_gradients():
    def build() -> Training:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3)).double()
        optimizer = SGD(model.parameters(), lr=0.5)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 7, (24, 3), generator=generator)
        targets = torch.randint(0, 3, (24,), generator=generator)

        def train(trace: Trace) -> None:
            for step in range(4):
                optimizer.zero_grad()
                batch = slice(6 * step, 6 * step + 6)
                functional.cross_entropy(model(tokens[batch]), targets[batch]).backward()
                assert model[0].weight.grad.is_sparse  # type: ignore[union-attr]
                with trace.update():
                    optimizer.step()

        return Training(model, optimizer, nets.batches_of((tokens, targets), 10), train)

    run, updates, fresh = nets.trained_pair(build)
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)


def test_15_an_empty_parameter_group():
    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = SGD([{"params": [], "lr": 0.7}, {"params": model.parameters()}], lr=0.1)
        data = nets.classification(40, dtype=F64)
        return Training(
            model, optimizer, nets.batches_of(data, 16), nets.plain_loop(model, optimizer, nets.batches_of(data, 8), 4)
        )

    run, updates, fresh = nets.trained_pair(build)
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)
    assert run.steps["learning_rate"][0] == 0.7


def test_15_a_parameter_without_elements():
    model = nets.mlp(dtype=F64)
    model.register_parameter("nothing", nn.Parameter(torch.zeros(0, 3, dtype=F64)))
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification(40, dtype=F64)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, on_error="raise") as walk:
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    assert walk.run.steps["loss"].notna().all()


# --- 16: exceptions inside what the user gave -------------------------------------------------------------------------


class Fails:
    """A loss function that raises at its nth call after ``arm``."""

    def __init__(self, at_call: int):
        self.at_call = at_call
        self.calls: int | None = None

    def arm(self) -> None:
        self.calls = 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if self.calls is not None:
            self.calls += 1
            if self.calls == self.at_call:
                raise ZeroDivisionError("this loss cannot be had")
        return functional.cross_entropy(output, target)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("at_call", [1, 2, 14, 30])
def test_16_parameters_are_restored_exactly_wherever_the_sweep_fails(at_call, evaluate_on, caplog):
    """30 calls a segment: three batches at ten points."""
    states = []
    for watched in (False, True):
        model = nets.mlp(dropout=0.3, batchnorm=True)
        optimizer = Adam(model.parameters(), lr=0.05)
        data = nets.classification()
        loss_fn = Fails(at_call)
        torch.manual_seed(1)
        walk = None
        if watched:
            walk = sgdwalk.watch(model, optimizer, loss_fn, nets.batches_of(data, 16), evaluate_on=evaluate_on)
        for step in range(5):
            optimizer.zero_grad()
            functional.cross_entropy(model(data[0]), data[1]).backward()
            if step == 2:
                loss_fn.arm()
            optimizer.step()
        states.append(nets.everything(model, [optimizer]))
        if walk is not None:
            walk.close()
            states[-1]["hooks"] = nets.everything(model, [optimizer])["hooks"]
            run = walk.run
    nets.assert_identical(states[1], states[0])
    assert len(run.steps) == 5
    assert list(run.events["kind"]) == ["measurement_failed"], "and not that the schedule never fired"
    assert "ZeroDivisionError" in run.events["message"][0]
    assert "this loss cannot be had" in run.events["message"][0]
    assert run.steps["loss"].notna().tolist()[:2] == [True, True]
    failed = run.segments[run.segments["step"] == 2]
    assert len(failed) in (0, 11), "a segment is there whole or not at all"
    assert len([r for r in caplog.records if "this loss cannot be had" in r.getMessage()]) == 1


def test_16_a_first_segment_that_fails_did_fire(caplog):
    """The schedule is not blamed for a measurement that failed."""
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification()
    loss_fn = Fails(2)
    with sgdwalk.watch(model, optimizer, loss_fn, data) as walk:
        loss_fn.arm()
        for _ in range(2):
            functional.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
    assert list(walk.run.events["kind"]) == ["measurement_failed"]
    assert len(caplog.records) == 1


def test_16_a_loader_that_returns_nothing():
    """An epoch without batches performs no update, and notes about it are kept."""
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification()) as walk:
        for epoch in (1, 2):
            walk.note(epoch=epoch)
            for inputs, targets in []:
                functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            walk.note(accuracy=0.5)
    assert len(walk.run.steps) == 0
    assert list(walk.run.epochs.index) == [1, 2]


def test_16_ragged_training_batches():
    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.1)
        data = nets.classification(41, dtype=F64)
        return Training(
            model, optimizer, nets.batches_of(data, 16), nets.plain_loop(model, optimizer, nets.batches_of(data, 8), 6)
        )

    run, updates, fresh = nets.trained_pair(build)
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_16_an_interrupt_during_a_measurement_passes_and_leaves_the_parameters(error):
    """Ctrl-C is no failure of a measurement: it is the user's, and θ is where the update put it."""
    states = []
    for watched in (False, True):
        model = nets.mlp(batchnorm=True)
        optimizer = SGD(model.parameters(), lr=0.1)
        data = nets.classification()
        functional.cross_entropy(model(data[0]), data[1]).backward()
        if watched:
            armed = []

            def loss_fn(output: Tensor, target: Tensor, armed: list[int] = armed) -> Tensor:
                if armed:
                    raise error
                return functional.cross_entropy(output, target)

            walk = sgdwalk.watch(model, optimizer, loss_fn, nets.batches_of(data, 16), evaluate_on="model")
            armed.append(1)
            with pytest.raises(error):
                optimizer.step()
            walk.close()
        else:
            optimizer.step()
        states.append(nets.everything(model, [optimizer]))
    nets.assert_identical(states[1], states[0])


def test_16_a_failing_measure_does_not_stop_the_others(caplog):
    def broken(here: Any) -> float:
        raise LookupError("no such thing")

    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification()
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, data, measures={"broken": broken, "fine": lambda here: 1.0}
    ) as walk:
        for _ in range(3):
            functional.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
    assert list(walk.run.events["kind"]) == ["measurement_failed"]
    assert "broken" in walk.run.events["message"][0]
    assert len([r for r in caplog.records if "no such thing" in r.getMessage()]) == 1
    assert len(walk.run.steps) == 3


# --- 17: memory -------------------------------------------------------------------------------------------------------

MEMORY_PROGRAM = """
    import json, resource, sys
    sys.modules["numba"] = None  # its compiler is another matter, and needs memory
    import torch
    from torch import nn
    from torch.nn import functional
    import sgdwalk

    torch.set_num_threads(1)
    watched, batchnorm, evaluate_on = sys.argv[1] == "watched", sys.argv[2] == "batchnorm", sys.argv[3]
    torch.manual_seed(0)
    layers = [nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 2)]
    if batchnorm:
        layers.insert(1, nn.BatchNorm1d(1000))
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs = torch.randn(10_000, 4)
    targets = (inputs[:, 0] > 0).long()

    def update():
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[:64]), targets[:64]).backward()
        optimizer.step()

    walk = None
    if watched:
        # One batch of 10,000 examples: each layer's activations take 40 MB.
        walk = sgdwalk.watch(
            model,
            optimizer,
            functional.cross_entropy,
            (inputs, targets),
            batch_size=10_000,
            evaluate_on=evaluate_on,
            num_points=2,
        )
    update()  # with all the memory there is, so that everything is loaded
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + 30 * 2**20, hard))
    try:
        torch.empty(10_000_000)
    except RuntimeError as error:
        assert "memory" in str(error)
    else:
        raise SystemExit("the limit is not felt")
    update()
    update()
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    result = {
        "parameters": [p.detach().double().sum().item().hex() for p in model.parameters()],
        "squares": [p.detach().double().square().sum().item().hex() for p in model.parameters()],
        "buffers": [b.double().sum().item().hex() for b in model.buffers()],
        "rng": int(torch.get_rng_state().long().mul(torch.arange(1, 5057)).sum()),
        "training": model.training,
    }
    if walk is not None:
        walk.close()
        result["loss"] = [None if x != x else x for x in walk.run.steps["next_loss"]]
        result["events"] = list(walk.run.events["kind"])
        result["messages"] = list(walk.run.events["message"])
        with torch.no_grad():
            result["last loss"] = functional.cross_entropy(model.eval()(inputs), targets).item()
    print(json.dumps(result))
"""


@functools.cache
def in_little_memory(*arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    program = textwrap.dedent(MEMORY_PROGRAM)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "shown": done.stderr}


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the address space from /proc")


@needs_proc
@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_17_a_batch_that_does_not_fit_is_halved(evaluate_on):
    """Without BatchNorm the halves add up to the same loss; the training is what it is without watching."""
    plain = in_little_memory("unwatched", "plain", "")
    watched = in_little_memory("watched", "plain", evaluate_on)
    for key in ("parameters", "squares", "buffers", "rng", "training"):
        assert watched[key] == plain[key], key
    assert watched["events"] == ["batch_halved"]
    assert watched["loss"][2] == pytest.approx(watched["last loss"], rel=1e-5)
    assert len(set(watched["loss"])) == 3


@needs_proc
@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_17_where_halving_would_change_the_statistics_measuring_ends_with_a_message(evaluate_on):
    plain = in_little_memory("unwatched", "batchnorm", "")
    watched = in_little_memory("watched", "batchnorm", evaluate_on)
    for key in ("parameters", "squares", "buffers", "rng", "training"):
        assert watched[key] == plain[key], key
    assert watched["events"] == ["measurement_failed"]
    assert "memory" in watched["messages"][0]
    assert "memory" in watched["shown"]
    assert isinstance(watched["loss"][0], float)
    assert watched["loss"][1:] == [None, None]


# --- 18: nothing is left (a hundred cycles are in test_walk_contract.py) ----------------------------------------------


def test_18_nothing_is_left_after_a_walk_that_failed(caplog):
    """A walk that was refused or whose measurement failed leaves what any other leaves: nothing."""
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification()
    before = nets.everything(model, [optimizer])
    for _ in range(3):
        with pytest.raises(sgdwalk.InputError):
            sgdwalk.watch(model, optimizer, functional.cross_entropy, data, num_points=1)
    loss_fn = Fails(3)
    with sgdwalk.watch(model, optimizer, loss_fn, data):
        loss_fn.arm()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert [record for record in caplog.records if "cannot be had" in record.getMessage()]
    optimizer.zero_grad()
    after = nets.everything(model, [optimizer])
    for key in ("hooks", "train_flags", "requires_grad", "parameters", "buffers", "strides", "python_rng", "torch_rng"):
        nets.assert_identical(after[key], before[key], key)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
