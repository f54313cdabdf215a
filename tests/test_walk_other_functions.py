"""Ways in which the evaluated function silently becomes another one than the function that is trained."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.optim import SGD, Optimizer
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, TensorDataset

import sgdwalk

INPUTS = torch.randn(25, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.randint(0, 3, (25,), generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        return functional.cross_entropy(model(INPUTS), TARGETS).item()


def step(model: nn.Module, optimizer: Optimizer, loss_fn: Any = functional.cross_entropy) -> None:
    optimizer.zero_grad()
    loss_fn(model(INPUTS), TARGETS).backward()
    optimizer.step()


def assert_losses(walk: sgdwalk.Walk, at_iterates: list[float]) -> None:
    """The recorded loss at both ends of every segment is L where the walk stood."""
    steps = walk.run.steps
    for t, (start, end) in enumerate(itertools.pairwise(at_iterates)):
        assert math.isclose(steps.loss[t], start, rel_tol=1e-12)
        assert math.isclose(steps.next_loss[t], end, rel_tol=1e-12)


@pytest.mark.parametrize("how", ["forward", "loss_fn"])
def test_a_loss_on_the_models_own_parameters_is_refused(how):
    model = net()
    forward = (lambda _, batch: (model(batch[0]), batch[1])) if how == "forward" else None

    def with_l2(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target) + 0.01 * model[0].weight.square().sum()  # type: ignore[operator]

    loss_fn = with_l2 if how == "loss_fn" else functional.cross_entropy
    with pytest.raises(sgdwalk.InputError, match="model's own parameters"):
        sgdwalk.watch(model, SGD(model.parameters(), lr=0.1), loss_fn, (INPUTS, TARGETS), forward=forward)


def test_shuffling_the_list_of_batches_changes_nothing():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.5)
    batches = list(zip(INPUTS.split(10), TARGETS.split(10), strict=True))
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, batches) as walk:
        losses = [loss_of(model)]
        for seed in range(4):
            random.Random(seed).shuffle(batches)
            step(model, optimizer)
            losses.append(loss_of(model))
    assert_losses(walk, losses)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_a_cached_parametrization_does_not_freeze_the_segment(evaluate_on):
    class Scaled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 1.5

    model = net()
    parametrize.register_parametrization(model[0], "weight", Scaled())
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, (INPUTS, TARGETS), evaluate_on=evaluate_on, on_error="raise"
    ) as walk:
        losses = [loss_of(model)]
        for _ in range(3):
            with parametrize.cached():
                step(model, optimizer)
            losses.append(loss_of(model))
    assert_losses(walk, losses)
    assert walk.run.segments.loss.nunique() == 31


class Lookahead(Optimizer):
    """A real optimizer around another: every second step it goes back half of the way."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        super().__init__([{"params": group["params"]} for group in optimizer.param_groups], {"lr": 0.5})
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.count = 0

    def step(self, closure: Any = None) -> None:  # pyright: ignore
        self.optimizer.step()
        self.count += 1
        if self.count % 2 == 0:
            parameters = [p for group in self.param_groups for p in group["params"]]
            with torch.no_grad():
                for slow, fast in zip(self.slow, parameters, strict=True):
                    slow.lerp_(fast, 0.5)
                    fast.copy_(slow)


def test_an_optimizer_around_another_is_watched_itself():
    model = net()
    optimizer = Lookahead(SGD(model.parameters(), lr=0.5))
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (INPUTS, TARGETS)) as walk:
        losses = [loss_of(model)]
        for _ in range(4):
            step(model, optimizer)
            losses.append(loss_of(model))
    assert_losses(walk, losses)
    assert walk.run.events.empty


class Hookless(Optimizer):
    """Wraps another without being initialized itself, as some libraries' wrappers do."""

    def __init__(self, base: Optimizer):
        self.base, self.param_groups = base, base.param_groups

    def step(self, closure: Any = None) -> None:  # pyright: ignore
        self.base.step()


def test_an_optimizer_whose_step_calls_no_hooks_is_refused():
    model = net()
    with pytest.raises(sgdwalk.InputError, match="calls no hooks"):
        sgdwalk.watch(model, Hookless(SGD(model.parameters(), lr=0.5)), None, None, when=None)


@pytest.mark.parametrize(
    "loader",
    [
        lambda data: DataLoader(data, batch_size=4, sampler=[3, 1, 8, 20]),
        lambda data: DataLoader(data, batch_size=4, sampler=range(4)),
        lambda data: DataLoader(data, batch_sampler=BatchSampler(SubsetRandomSampler([3, 1, 8, 20]), 2, False)),
    ],
    ids=["list", "range", "batch_sampler"],
)
def test_only_the_examples_that_the_loader_draws_count(loader):
    model = net()
    data = TensorDataset(INPUTS, TARGETS)
    with sgdwalk.watch(model, SGD(model.parameters(), lr=0.5), functional.cross_entropy, loader(data)) as walk:
        assert walk.run.info["data"]["num_examples"] == 4


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("where", ["tensor_attribute", "array_attribute", "loss_function", "closure"])
def test_what_the_loop_changes_reaches_the_next_segment_whole(where, evaluate_on):
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.tensor, self.array = net(), torch.tensor(1.0), np.ones(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) / self.tensor * float(self.array[0])

    model, scale = Tempered(), [1.0]
    smoothed = nn.CrossEntropyLoss()
    loss_fn: Any = smoothed if where != "closure" else (lambda out, y: scale[0] * functional.cross_entropy(out, y))
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, loss_fn, (INPUTS, TARGETS), evaluate_on=evaluate_on, on_error="raise") as walk:
        expected = []
        for t in range(3):
            model.tensor.fill_(1.0 + t * (where == "tensor_attribute"))
            model.array[:] = 1.0 + t * (where == "array_attribute")
            smoothed.label_smoothing = 0.1 * t * (where == "loss_function")
            scale[0] = 1.0 + t * (where == "closure")
            with torch.no_grad():
                before = loss_fn(model(INPUTS), TARGETS).item()
            step(model, optimizer, loss_fn)
            with torch.no_grad():
                expected.append((before, loss_fn(model(INPUTS), TARGETS).item()))
    recorded = walk.run.steps[["loss", "next_loss"]].to_numpy()
    torch.testing.assert_close(torch.tensor(recorded), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_data_written_to_in_place_are_told_and_never_mixed_into_a_segment():
    model, inputs = net(), INPUTS.clone()
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, TARGETS), partition_seed=None) as walk:
        for _ in range(3):
            step(model, optimizer)
            inputs.mul_(0.5)
    assert walk.run.events.kind.tolist() == ["data_changed"] * 2
    assert (walk.run.steps.next_loss[:-1].to_numpy() != walk.run.steps.loss[1:].to_numpy()).all()


def test_containers_that_forward_changes_are_put_back_on_the_model():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.state, self.seen, self.mean = net(), {"calls": 0}, [], torch.zeros(3).double()

        def forward(self, x: Tensor) -> Tensor:
            self.state["calls"] += 1
            self.seen.append(len(x))
            output = self.body(x)
            self.mean += output.detach().mean(0)
            return output

    weights = []
    for watched in (False, True):
        model = Counting()
        objects = (model.state, model.seen, model.mean)
        optimizer = SGD(model.parameters(), lr=0.5)
        walk = None
        if watched:
            data = (INPUTS, TARGETS)
            walk = sgdwalk.watch(
                model, optimizer, functional.cross_entropy, data, evaluate_on="model", on_error="raise"
            )
        for _ in range(3):
            step(model, optimizer)
        if walk is not None:
            walk.close()
        assert model.state == {"calls": 3}
        assert model.seen == [25] * 3
        assert all(a is b for a, b in zip(objects, (model.state, model.seen, model.mean), strict=True))
        weights.append([model.mean, *model.parameters()])
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_layers_unfrozen_in_manual_use_are_followed():
    model = net()
    model[0].requires_grad_(False)
    with sgdwalk.watch(model, None, functional.cross_entropy, (INPUTS, TARGETS), on_error="raise") as walk:
        losses = [loss_of(model)]
        for t in range(4):
            if t == 2:
                model[0].requires_grad_(True)
            model.zero_grad()
            functional.cross_entropy(model(INPUTS), TARGETS).backward()
            walk.before_step(learning_rate=0.5)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.5 * parameter.grad
            walk.after_step()
            losses.append(loss_of(model))
    assert_losses(walk, losses)
    assert walk.run.events.kind.tolist() == ["parameters_added"]


class SelfTuned(Optimizer):
    """Finds its learning rate itself; its groups name none, and hold an infinity."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"growth_rate": math.inf})

    def step(self, closure: Any = None) -> None:  # pyright: ignore
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter -= 0.1 * parameter.grad


def test_a_group_without_a_learning_rate_is_watched_all_the_same(tmp_path):
    model = net()
    optimizer = SelfTuned(model.parameters())
    with sgdwalk.watch(model, optimizer, None, None, when=None, on_error="raise", run=tmp_path / "run") as walk:
        step(model, optimizer)
    assert walk.run.steps.learning_rate.isna().all()
    assert walk.run.steps.update_norm.gt(0).all()
    assert walk.run.info["optimizers"][0]["groups"][0]["growth_rate"] == "inf"


def test_a_noted_loss_is_one_number_as_it_was_when_noted():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, None, None, when=None, on_error="raise") as walk:
        with pytest.raises(sgdwalk.InputError, match=r"shape \(3,\)"):
            walk.note(batch_loss=torch.ones(3))
        noted = torch.tensor(2.5)
        walk.note(batch_loss=noted)
        noted.zero_()
        step(model, optimizer)
    assert walk.run.steps.batch_loss.tolist() == [2.5]


def test_a_schedule_that_raises_ends_segments_and_nothing_else():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.5)

    def when(step: int) -> bool:
        return [True, True][step]

    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (INPUTS, TARGETS), when=when) as walk:
        for _ in range(4):
            step(model, optimizer)
    assert walk.run.steps.loss.notna().tolist() == [True, True, False, False]
    assert walk.run.steps.distance.notna().all()
    assert walk.run.events.kind.tolist() == ["measurement_failed"]


def test_parameters_that_move_after_the_last_update_seen_are_told():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (INPUTS, TARGETS)) as walk:
        step(model, optimizer)
        step(model, SGD(model.parameters(), lr=0.5))
    assert walk.run.events.kind.tolist() == ["moved_parameters"]
