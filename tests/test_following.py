"""Updates that are -η g_t, followed by a sketch of θ: the numbers of a walk that keeps it, or what did not fit."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import nets
import sgdwalk
from sgdwalk import following
from sgdwalk.columns import UPDATE_COLUMNS
from sgdwalk.following import LOST, NOT_FINITE, STRAYED, Follower
from sgdwalk.kernels import BLOCK, NumbaKernel
from sgdwalk.params import ParameterVector

pytest.importorskip("numba")

SHAPES = [(3, 5), (), (1,), (513,), (64, 33), (0,), (2048,)]


def make_vector(dtype: torch.dtype, seed: int, scale: float = 1.0) -> ParameterVector:
    generator = torch.Generator().manual_seed(seed)
    return ParameterVector([nn.Parameter(scale * torch.randn(s, dtype=dtype, generator=generator)) for s in SHAPES])


def taken(dtype: torch.dtype, rate: float, scale: float = 1.0):
    """A vector before and after an update, and the gradients; one is missing."""
    vector = make_vector(dtype, 0, scale)
    gradients: list[torch.Tensor | None] = [p.detach() for p in make_vector(dtype, 1, scale).parameters]
    gradients[4] = None
    sketch, point = NumbaKernel().sketch(vector), vector.read()
    with torch.no_grad():
        for parameter, gradient in zip(vector.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.add_(gradient, alpha=-rate)
    return vector, gradients, sketch, point


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e12, 1e30])
def test_sums_without_the_point_before_are_those_with_it(dtype, scale):
    """Bit for bit; also where products leave float32's range."""
    vector, gradients, sketch, point = taken(dtype, 0.1, scale)
    start, previous = (make_vector(dtype, seed, scale).read() for seed in (2, 3))
    again = previous.clone()
    sums, position = NumbaKernel().update_sums(vector, gradients, previous, point, start, advance=False)
    found, there, residual = NumbaKernel().followed_sums(vector, gradients, again, start, sketch, 0.1)
    assert residual <= 1e-12 * there.param
    assert found[:2] == sums[:2]
    assert (there.param, there.distance) == (position.param, position.distance)
    assert math.isnan(there.update)
    assert torch.equal(again, previous)
    assert np.array_equal(sketch, NumbaKernel().sketch(vector)) or sketch == pytest.approx(NumbaKernel().sketch(vector))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sketch_is_a_weighted_sum_of_every_block(dtype):
    from sgdwalk.fused_loops import WEIGHTS

    vector = make_vector(dtype, 0)
    expected = [
        float(part.double() @ torch.from_numpy(WEIGHTS[: len(part)]).double())
        for parameter in vector.parameters
        for part in parameter.detach().reshape(-1).split(BLOCK)
        if len(part)
    ]
    assert NumbaKernel().sketch(vector) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert np.abs(WEIGHTS).min() >= 1
    assert np.abs(WEIGHTS).max() <= 2
    assert 0.4 < (WEIGHTS > 0).mean() < 0.6


def changes_of(values: torch.Tensor, size: float):
    """Ways to be elsewhere, each by ``size`` or more: one coordinate, some that change places, signs, a factor."""
    yield from (
        lambda old, place=place: old.index_add(0, torch.tensor([place]), old.new_tensor([size]))
        for place in {0, len(values) // 2, len(values) - 1}
    )
    if len(values) > 600:
        yield lambda old: old * (1 + size)
        for pair in ([0, 1], [3, 261], [5, 600]):
            flipped = torch.tensor(pair)
            yield lambda old, flipped=flipped: old.index_copy(0, flipped, old[flipped.flip(0)])
            yield lambda old, flipped=flipped: old.index_copy(0, flipped, -old[flipped])


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-3), (torch.float64, 1e-12)])
def test_whatever_is_not_the_update_disagrees(dtype, size):
    """Before it or after it; and nothing disagrees by itself."""
    kernel, previous = NumbaKernel(), make_vector(dtype, 3).read()
    tried = 0
    for index, shape in enumerate(SHAPES):
        if not math.prod(shape):
            continue
        for change in changes_of(torch.empty(math.prod(shape)), size):
            vector, gradients, sketch, point = taken(dtype, 0.1)
            values = vector.parameters[index].detach().view(-1)
            values.copy_(change(values.clone()))
            elsewhere = kernel.sketch(vector)
            assert kernel.followed_sums(vector, gradients, previous, point, sketch.copy(), 0.1)[2] == math.inf
            assert kernel.strayed(vector, sketch), "θ has moved by the update and more"
            assert not kernel.strayed(vector, elsewhere)
            tried += 1
    assert tried > 20
    vector, gradients, sketch, point = taken(dtype, 0.1)
    for rate, fits in [(0.1, True), (0.1 + 100 * size, False), (math.nan, False)]:
        assert math.isfinite(kernel.followed_sums(vector, gradients, previous, point, sketch.copy(), rate)[2]) is fits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "alike", "heavy tails"])
def test_rounding_never_disagrees(dtype, kind):
    """300 blocks, 40 updates of sizes from 1 to 1e-7 of θ, in float32's own arithmetic."""
    generator, kernel = torch.Generator().manual_seed(0), NumbaKernel()
    values = torch.randn(300 * BLOCK + 100, dtype=dtype, generator=generator)
    values = {"normal": values, "alike": torch.ones_like(values), "heavy tails": (3 * values).exp()}[kind]
    vector = ParameterVector([nn.Parameter(values)])
    sketch, start, previous = kernel.sketch(vector), vector.read(), vector.zeros()
    for step in range(40):
        gradient = torch.randn(values.shape, dtype=dtype, generator=generator) * values.abs().max() * 0.1 ** (step % 8)
        vector.parameters[0].data.add_(gradient, alpha=-0.3)
        assert math.isfinite(kernel.followed_sums(vector, [gradient], previous, start, sketch, 0.3)[2])
        assert not kernel.strayed(vector, sketch)


# --- walks -----------------------------------------------------------------------------------------------------------


def start(rate: float = 0.3, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 2000), nn.Tanh(), nn.Linear(2000, 3))
    return model, torch.optim.SGD(model.parameters(), lr=rate, **options)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randn(16, 6, generator=generator), torch.arange(16) % 3
    optimizer.zero_grad()
    functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


class Twin:
    """The columns from float64 copies of what stood in the model."""

    def __init__(self, model: nn.Module):
        self.model, self.rows = model, []
        self.theta_0 = self.flat()
        self.before, self.gradient = None, None

    def flat(self) -> torch.Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.model.parameters()])

    def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        here = self.flat()
        update(self.model, optimizer, step)
        there, gradient = self.flat(), nets.flat_gradient(list(self.model.parameters())).double()
        row = {
            "distance": (here - self.theta_0).norm(),
            "next_distance": (there - self.theta_0).norm(),
            "grad_norm": gradient.norm(),
            "param_norm": here.norm(),
            "update_norm": (there - here).norm(),
        }
        if self.gradient is not None:
            row["cosine"] = torch.cosine_similarity(self.gradient, gradient, dim=0)
            row["gauge"] = (here - self.before) @ gradient
        self.rows.append({name: float(value) for name, value in row.items()})
        self.before, self.gradient = here, gradient

    def assert_rows(
        self, steps, names=("gauge", *UPDATE_COLUMNS), *, missing: dict[int, set[str]] | None = None
    ) -> None:
        for step, row in enumerate(self.rows):
            for name in names:
                found = steps[name].loc[step]
                if name in (missing or {}).get(step, ()) or name not in row:
                    assert math.isnan(found), (step, name)
                    assert steps[f"{name}_reason"].loc[step], (step, name)
                else:
                    assert found == pytest.approx(row[name], rel=2e-5, abs=1e-7), (step, name)


def followed(walk: sgdwalk.Walk) -> bool:
    return walk._trajectory._follower is not None


WATCHING = {"when": None, "gauge": True, "on_error": "raise"}


def test_a_walk_that_follows_has_the_columns_of_float64_and_leaves_the_training_as_it_is():
    bare, bare_optimizer = start()
    for step in range(30):
        update(bare, bare_optimizer, step)
    model, optimizer = start()
    twin, follows = Twin(model), []
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for step in range(30):
            twin.update(optimizer, step)
            follows.append(followed(walk))
    assert follows == [False] + [True] * 29
    twin.assert_rows(walk.run.steps)
    assert walk.run.events.empty
    nets.assert_identical(model.state_dict(), bare.state_dict())


@pytest.mark.parametrize("scheduled", [False, True])
def test_it_has_bit_for_bit_what_a_walk_that_keeps_the_point_has(scheduled, monkeypatch):
    """Segments in between included, where there are some."""

    def walked() -> tuple[sgdwalk.Run, list[bool]]:
        model, optimizer = start()
        data = (torch.randn(40, 6, generator=torch.Generator().manual_seed(7)), torch.arange(40) % 3)
        options = WATCHING | (
            {"when": sgdwalk.every(5), "measures": {"loss_there": lambda here: here.loss()}} if scheduled else {}
        )
        follows = []
        with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, **options) as walk:
            for step in range(23):
                update(model, optimizer, step)
                follows.append(followed(walk))
        return walk.run, follows

    run, follows = walked()
    assert follows == [bool(step % 5 if scheduled else step) for step in range(23)]
    monkeypatch.setattr(Follower, "begin", classmethod(lambda *_: None))
    kept, never = walked()
    assert not any(never)
    assert run.steps.equals(kept.steps)
    assert run.segments.equals(kept.segments)
    assert run.events.empty


@pytest.mark.parametrize("stop", [1, 2, 9])
def test_a_resumed_walk_follows_on(stop):
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as whole:
        for step in range(stop):
            update(model, optimizer, step)
        state, weights = whole.state_dict(), {key: value.clone() for key, value in model.state_dict().items()}
        for step in range(stop, 14):
            update(model, optimizer, step)
    model, optimizer = start()
    model.load_state_dict(weights)
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as rest:
        rest.load_state_dict(state)
        for step in range(stop, 14):
            update(model, optimizer, step)
            assert followed(rest)
    assert rest.run.steps.equals(whole.run.steps)
    assert rest.run.events.empty


def move(model: nn.Module) -> None:
    model[2].weight.data[1, 7] += 0.01


@pytest.mark.parametrize("gauge", [False, True])
def test_what_was_moved_between_updates_is_told_after_the_first_and_before_others(gauge):
    """Of the first nobody knows whether the update was another one: what it began with is missing, no more."""
    model, optimizer = start()
    twin = Twin(model)
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING | {"gauge": gauge}) as walk:
        for step in range(20):
            if step in (6, 12):
                move(model)
            twin.update(optimizer, step)
            assert followed(walk) == (0 < step < 6)
    missing = {6: {"param_norm", "distance", "update_norm", "gauge"}, 7: {"gauge"}, 12: {"gauge"}}
    names = ("gauge", *UPDATE_COLUMNS) if gauge else UPDATE_COLUMNS
    twin.assert_rows(walk.run.steps, names, missing=missing)
    assert walk.run.steps["update_norm_reason"].dropna().to_dict() == {6: STRAYED}
    assert walk.run.events[["step", "kind"]].to_numpy().tolist() == [[6, "moved_parameters"], [12, "moved_parameters"]]
    assert "or this one was not -η g_t" in walk.run.events["message"].iloc[0]


def test_an_optimizer_that_does_something_else_within_its_step_is_told(monkeypatch):
    """The class is SGD's, the update is not: seen at the first one."""
    model, optimizer = start()
    twin, sgd = Twin(model), importlib.import_module("torch.optim.sgd")
    plain = sgd._single_tensor_sgd
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for step in range(12):
            if step == 5:
                monkeypatch.setattr(sgd, "_single_tensor_sgd", lambda *args, **own: plain(*args, **own | {"lr": 0.2}))
            twin.update(optimizer, step)
    # What an update did that was followed no further is not known, so neither is the next one's gauge.
    twin.assert_rows(
        walk.run.steps, missing={5: {"param_norm", "distance", "update_norm", "gauge"}, 6: {"gauge"}, 7: {"gauge"}}
    )
    assert walk.run.events[["step", "kind"]].to_numpy().tolist() == [[5, "moved_parameters"]]


def test_momentum_that_comes_is_no_surprise_and_a_hook_that_brings_it_is_one():
    for hooked in (False, True):
        model, optimizer = start()
        twin = Twin(model)

        def begin(*_, optimizer=optimizer) -> None:
            optimizer.param_groups[0]["weight_decay"] = 0.5

        with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
            for step in range(12):
                if step == 5:
                    optimizer.register_step_pre_hook(begin) if hooked else begin()
                twin.update(optimizer, step)
        lost = {5: {"param_norm", "distance", "update_norm", "gauge"}, 6: {"gauge"}} if hooked else {}
        twin.assert_rows(walk.run.steps, missing=lost)
        assert len(walk.run.events) == hooked


def test_updates_that_rounding_takes_are_read_as_they_happened():
    """A learning rate that falls bit by bit leaves nothing open, one that falls at once one length."""
    for falls, missing in [([0.3 * 0.5**step for step in range(30)], {}), ([0.3] * 6 + [1e-8] * 4, {6})]:
        model, optimizer = start()
        twin, follows = Twin(model), []
        with sgdwalk.watch(model, optimizer, None, None, **WATCHING | {"gauge": False}) as walk:
            for step, rate in enumerate(falls):
                optimizer.param_groups[0]["lr"] = rate
                twin.update(optimizer, step)
                follows.append(followed(walk))
        assert follows[5]
        assert not follows[-1]
        twin.assert_rows(
            walk.run.steps, ("update_norm", "param_norm"), missing={step: {"update_norm"} for step in missing}
        )
        told = walk.run.steps.get("update_norm_reason")
        assert ({} if told is None else told.dropna().to_dict()) == dict.fromkeys(missing, LOST)
        assert walk.run.events.empty
        assert twin.rows[-1]["update_norm"] < 1e-6 * twin.rows[-1]["param_norm"]


def test_no_gradient_is_no_update():
    model, optimizer = start()
    twin = Twin(model)
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for step in range(3):
            twin.update(optimizer, step)
        optimizer.zero_grad()
        optimizer.step()
        assert followed(walk)
        update(model, optimizer, 4)
        assert followed(walk)
    assert walk.run.steps.loc[3, ["update_norm", "grad_norm", "gauge"]].tolist() == [0.0, 0.0, 0.0]
    assert walk.run.steps.loc[4, "gauge"] == 0.0
    assert walk.run.events.empty


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_no_move(bad):
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for step in range(3):
            update(model, optimizer, step)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, bad)
        optimizer.step()
    last = walk.run.steps.loc[3]
    assert math.isfinite(last["distance"])
    assert math.isnan(last["update_norm"])
    assert last["update_norm_reason"] == "not finite"
    assert last["gauge_reason"] == NOT_FINITE
    assert walk.run.events.empty


def test_a_move_before_a_segment_is_told_before_it():
    """Where θ_t is asked for it is read, and compared with the sketch."""
    model, optimizer = start()
    twin = Twin(model)
    data = (torch.randn(40, 6, generator=torch.Generator().manual_seed(7)), torch.arange(40) % 3)
    options = WATCHING | {"when": sgdwalk.every(5)}
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, **options) as walk:
        for step in range(12):
            if step == 5:
                move(model)
                there = functional.cross_entropy(model(data[0]), data[1]).item()
            twin.update(optimizer, step)
    twin.assert_rows(walk.run.steps, missing={5: {"gauge"}})
    assert walk.run.steps.loc[5, "loss"] == pytest.approx(there, rel=1e-6)
    assert walk.run.events[["step", "kind"]].to_numpy().tolist() == [[5, "moved_parameters"]]


def test_a_move_after_the_last_update_is_told_at_the_end():
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for step in range(4):
            update(model, optimizer, step)
        assert followed(walk)
        move(model)
    assert nets.event_kinds(walk.run) == ["moved_parameters"]
    assert "after the last update" in walk.run.events["message"].item()


def test_parameters_that_join_while_it_is_followed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3000), nn.Tanh(), nn.Linear(3000, 3))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.3)
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for step in range(4):
            update(model, optimizer, step)
        assert followed(walk)
        optimizer.add_param_group({"params": list(model[2].parameters())})
        update(model, optimizer, 4)
        assert not followed(walk)
        twin = Twin(model)
        for step in range(5, 9):
            twin.update(optimizer, step)
            assert followed(walk)
    steps = walk.run.steps.loc[5:].reset_index(drop=True)
    for step, row in enumerate(twin.rows):
        assert steps.loc[step, "param_norm"] == pytest.approx(row["param_norm"], rel=1e-6)
        assert steps.loc[step, "update_norm"] == pytest.approx(row["update_norm"], rel=2e-5)
    assert nets.event_kinds(walk.run) == ["parameters_added"]


def test_a_schedule_that_is_any_function_is_asked_after_the_update_and_the_point_is_kept():
    model, optimizer = start()
    data = (torch.randn(40, 6, generator=torch.Generator().manual_seed(7)), torch.arange(40) % 3)
    heard: list[str] = []

    def when(step: int) -> bool:
        heard.append("asked")
        return step == 3

    optimizer.register_step_post_hook(lambda *_: heard.append("stepped"))
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, **WATCHING | {"when": when}) as walk:
        for step in range(5):
            heard.clear()
            update(model, optimizer, step)
            assert heard in (["stepped", "asked"], ["asked", "stepped"])
            assert not followed(walk)
    assert walk.run.steps["loss"].notna().tolist() == [step == 3 for step in range(5)]


def test_a_schedule_that_is_told_to_be_one_of_ours_is_no_function_of_the_step():
    """``sgdwalk.When`` is anyone's: it is asked once, after the update, and what it raises ends segments alone."""
    data = (torch.randn(40, 6, generator=torch.Generator().manual_seed(7)), torch.arange(40) % 3)
    flips = iter([False, True, False, False, True, True, False, True, False])
    for when in (
        sgdwalk.When("flips", lambda *_: next(flips)),
        sgdwalk.When("bad", lambda step, _: 1 // (6 - step) < 0),
    ):
        model, optimizer = start()
        starts = []
        with sgdwalk.watch(
            model, optimizer, functional.cross_entropy, data, when=when, gauge=True, batch_size=40
        ) as walk:
            for step in range(9):
                starts.append(functional.cross_entropy(model(data[0]), data[1]).item())
                update(model, optimizer, step)
                assert not followed(walk) or step > 6
        found = walk.run.steps["loss"]
        assert found.dropna().to_dict() == pytest.approx(
            {step: starts[step] for step in found.dropna().index}, rel=1e-6
        )
        assert len(walk.run.steps) == 9
        assert walk.run.steps["distance"].notna().all()


@pytest.mark.parametrize("kind", ["schedulers in between", "diverging", "too small for float32", "no rate for a while"])
def test_nothing_is_told_to_have_moved_that_has_not(kind):
    torch.manual_seed(0)
    wide = kind == "diverging"
    model = nn.Linear(20_000, 1) if wide else start()[0]
    halves = [model.parameters()] if wide else [model[0].parameters(), model[2].parameters()]
    optimizers = [torch.optim.SGD(half, lr=0.02 if wide else 0.3) for half in halves]
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 4) for optimizer in optimizers]
    follows = []
    with sgdwalk.watch(model, optimizers, None, None, **WATCHING) as walk:
        for step in range(14):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(16, 20_000 if wide else 6, generator=generator)
            model.zero_grad()
            output = model(inputs)
            (output.square().mean() if wide else functional.cross_entropy(output, torch.arange(16) % 3)).backward()
            if kind == "too small for float32" and step % 2:
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, 1e-42)
            if kind == "no rate for a while":
                for optimizer in optimizers:
                    optimizer.param_groups[0]["lr"] = 0.3 * (step not in (5, 6))
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                if kind == "schedulers in between":
                    scheduler.step()
            follows.append(followed(walk))
    assert any(follows)
    assert walk.run.events.empty
    if kind == "no rate for a while":
        assert walk.run.steps.loc[[5, 6], "update_norm"].tolist() == [0.0, 0.0]
        assert walk.run.steps["gauge"].notna().loc[1:].all()


def test_a_move_before_the_state_is_asked_for_is_told_where_that_is_loaded():
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for step in range(6):
            update(model, optimizer, step)
        assert followed(walk)
        move(model)
        state, weights = walk.state_dict(), {key: value.clone() for key, value in model.state_dict().items()}
    model, optimizer = start()
    model.load_state_dict(weights)
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as rest:
        rest.load_state_dict(state)
        update(model, optimizer, 6)
    assert nets.event_kinds(rest.run) == ["moved_parameters"]
    assert math.isnan(rest.run.steps.loc[6, "gauge"])


def test_a_small_net_keeps_the_point():
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for step in range(3):
            update(model, optimizer, step)
            assert not followed(walk)


def test_what_lies_in_another_order_is_kept():
    torch.manual_seed(0)
    model = nn.Conv2d(30, 100, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 30, 6, 6)).square().mean().backward()
            optimizer.step()
            assert walk._trajectory.can_follow
            assert not followed(walk)


@pytest.mark.parametrize("kernel", ["NumpyKernel", "TorchKernel"])
def test_other_kernels_keep_the_point_and_find_the_same(kernel, monkeypatch):
    import sgdwalk.kernels

    def walked() -> sgdwalk.Run:
        model, optimizer = start()
        with sgdwalk.watch(model, optimizer, None, None, **WATCHING) as walk:
            for step in range(8):
                update(model, optimizer, step)
        return walk.run

    run = walked()
    monkeypatch.setattr("sgdwalk.trajectory.choose_kernel", lambda device: getattr(sgdwalk.kernels, kernel)())
    for name in ("gauge", *UPDATE_COLUMNS):
        assert walked().steps[name].to_numpy() == pytest.approx(
            run.steps[name].to_numpy(), rel=1e-5, abs=1e-8, nan_ok=True
        )


def test_the_bounds_are_those_of_rounding():
    """The update as it happened is as long as η g_t, squared to a hundred-thousandth, wherever they let it pass."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(200_000, generator=generator)
    tried = 0
    for size in 10.0 ** np.arange(-7.0, 0.0, 0.25):
        gradient = size * torch.randn(200_000, generator=generator)
        change = (theta - gradient).double() - theta.double()
        square, param = float(gradient.double() @ gradient.double()), float(theta.double() @ theta.double())
        if following.outlasts_rounding(1.0, square, param, torch.float32):
            assert following.is_plain(1.0, square, float(change @ change))
            tried += 1
        else:
            assert size < 1e-4
    assert tried > 10
