"""A loop over ``walk.batches()`` computes L(θ_t) itself: it is taken where it is the same number, and only there."""

from __future__ import annotations

import copy
import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

import nets
import sgdwalk
from sgdwalk import measuring, overheard
from sgdwalk.objective import FullLoss

N, B = 41, 16
NUM_BATCHES = 3


def net(*, batchnorm: bool = True, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.BatchNorm1d(8) if batchnorm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(8, 3))


@pytest.fixture
def evaluated(monkeypatch):
    """How many batches were evaluated."""
    counted = []
    batch = FullLoss.batch
    monkeypatch.setattr(FullLoss, "batch", lambda self, index: counted.append(index) or batch(self, index))
    return counted


def descend(model, *, loss=nets.plain_loss, steps=4, when=None, before_step=lambda: None, **options):
    """Gradient descent, every second update watched: the start of those is not known from the step before."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(
        model,
        optimizer,
        functional.cross_entropy,
        nets.classification(N),
        batch_size=B,
        when=when or (lambda step: step % 2 == 1),
        on_error="raise",
        **options,
    ) as walk:
        for _ in range(steps):
            optimizer.zero_grad()
            for inputs, targets in walk.batches():
                (loss(model, inputs, targets) * (len(targets) / N)).backward()
            before_step()
            optimizer.step()
    return walk.run


@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_the_start_is_overheard_and_is_the_same_number(batchnorm, evaluate_on, evaluated, monkeypatch):
    overheard = descend(net(batchnorm=batchnorm), evaluate_on=evaluate_on)
    with_hearing = len(evaluated)
    evaluated.clear()
    monkeypatch.setattr("sgdwalk.overheard.Overheard._take", lambda self, index: setattr(self, "_listens", False) or [])
    plainly = descend(net(batchnorm=batchnorm), evaluate_on=evaluate_on)
    # Two watched steps: each saves one evaluation of three batches and pays the check of the first batch.
    assert len(evaluated) - with_hearing == 2 * (NUM_BATCHES - 1)
    assert overheard.steps["loss"].notna().tolist() == [False, True, False, True]
    torch.testing.assert_close(
        torch.tensor(overheard.segments["loss"].to_numpy()),
        torch.tensor(plainly.segments["loss"].to_numpy()),
        rtol=2e-6,
        atol=1e-7,
    )


def test_training_is_bitwise_the_same_and_no_hook_stays():
    trained = []
    for listening in (True, False):
        model = net()
        descend(model, when=None if listening else sgdwalk.every(1000))
        assert not model._forward_hooks
        trained.append(copy.deepcopy(model.state_dict()))
    nets.assert_identical(*trained)


def written_to(model, inputs, targets):
    return nets.plain_loss(model, inputs.mul_(2), targets)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (net(dropout=0.3), nets.plain_loss),
        (net(), nets.loss_with_autocast),
        (net(), nets.loss_of_second_pass),
        (net(), nets.loss_of_other_inputs),
        (net(), written_to),
        (net().train(False), nets.plain_loss),
    ],
    ids=["dropout", "autocast", "twice", "other_inputs", "written_to", "eval_mode"],
)
def test_what_might_be_another_number_is_evaluated(model, loss, evaluated):
    run = descend(model, loss=loss)
    kept = [event for event in run.events["kind"] if event != "data_changed"]
    assert kept == []
    starts = evaluated.count(0)
    # L(θ_0) and its check, then eleven points of two segments; the first batch once more where it was compared.
    assert evaluated.count(NUM_BATCHES - 1) >= 2 * 11
    assert starts >= evaluated.count(NUM_BATCHES - 1)


def test_a_pass_at_another_point_is_not_taken_for_the_start(evaluated):
    """Weights moved for the pass and put back bit for bit, as extrapolating methods do."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    data = nets.classification(N)
    seen = []
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, data, batch_size=B, when=lambda step: step == 1, on_error="raise"
    ) as walk:
        for _ in range(2):
            optimizer.zero_grad()
            seen.append(copy.deepcopy(model))
            saved = copy.deepcopy(model.state_dict())
            with torch.no_grad():
                model[0].weight.mul_(3)
            for inputs, targets in walk.batches():
                (nets.plain_loss(model, inputs, targets) * (len(targets) / N)).backward()
            model.load_state_dict(saved)
            optimizer.step()
        batches = [(x.clone(), y.clone()) for x, y in walk.batches()]
    twin = nets.Twin(seen[1], torch.optim.SGD(seen[1].parameters()), batches)
    assert abs(walk.run.steps["loss"][1] - twin.loss_tensor().item()) < 1e-6


def test_breaking_off_keeps_nothing():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(
        model,
        optimizer,
        functional.cross_entropy,
        nets.classification(N),
        batch_size=B,
        when=lambda step: step == 1,
        on_error="raise",
    ) as walk:
        for _ in range(2):
            optimizer.zero_grad()
            for inputs, targets in walk.batches():
                nets.plain_loss(model, inputs, targets).backward()
                break
            optimizer.step()
        assert not model._forward_hooks
    assert walk.run.steps["loss"].notna().tolist() == [False, True]


class StochasticDepth(nn.Module):
    """A residual branch that a whole batch goes without, one batch in ten."""

    def __init__(self, draw):
        super().__init__()
        self.first, self.branch, self.draw = nn.Linear(5, 3), nn.Linear(5, 3), draw

    def forward(self, inputs):
        kept = not self.training or self.draw() > 0.1
        return self.first(inputs) + kept * self.branch(inputs)


@pytest.mark.parametrize("options", [{}, {"method": "certified", "when": sgdwalk.every(1)}], ids=["exact", "certified"])
@pytest.mark.parametrize(
    "draw",
    [lambda: float(torch.rand(())), random.random, lambda: float(np.random.rand())],  # noqa: NPY002
    ids=["torch", "Python", "NumPy"],
)
def test_a_model_that_is_random_in_some_batches_is_evaluated(draw, options):
    torch.manual_seed(0)
    start = copy.deepcopy(StochasticDepth(draw).state_dict())
    runs = []
    for heard in (True, False):
        model = StochasticDepth(draw)
        model.load_state_dict(start)
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        if heard:
            runs.append(descend(model, **options))
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measuring.Measuring, "batches", lambda self, between_updates: iter(self.full_loss.data))
            runs.append(descend(model, **options))
    pd.testing.assert_frame_equal(runs[0].segments, runs[1].segments, check_exact=True)


@pytest.mark.parametrize("name", ["_own", "_taken", "_agrees"])
@pytest.mark.parametrize("method", ["exact", "certified"])
def test_a_failure_while_listening_reaches_no_training(name, method, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    expected = descend(net(), method=method)
    monkeypatch.setattr(overheard.Overheard, name, fail)
    found = descend(net(), method=method)
    np.testing.assert_allclose(found.segments["loss"], expected.segments["loss"], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("columns", [None, sgdwalk.every(1)])
@pytest.mark.parametrize("first", ["model", "walk"])
def test_what_is_heard_before_the_model_has_its_weights_is_not_the_start_of_a_resumed_walk(columns, first):
    inputs, targets = nets.classification(40)
    batches = [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])]

    def start():
        torch.manual_seed(0)
        model = nn.Linear(inputs.shape[1], int(targets.max()) + 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        watching = {"when": sgdwalk.every(2), "columns": columns, "on_error": "raise"}
        return model, optimizer, sgdwalk.watch(model, optimizer, functional.cross_entropy, batches, **watching)

    def update(model, optimizer):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[:20]), targets[:20]).backward()
        optimizer.step()

    model, optimizer, whole = start()
    with whole:
        for _ in range(4):
            update(model, optimizer)
        state, weights = whole.state_dict(), {key: value.clone() for key, value in model.state_dict().items()}
        update(model, optimizer)
    model, optimizer, rest = start()
    with rest:
        loads = [lambda: model.load_state_dict(weights), lambda: rest.load_state_dict(state)]
        for load in loads if first == "model" else reversed(loads):
            load()
            for batch, target in rest.batches():
                functional.cross_entropy(model(batch), target)
        update(model, optimizer)
    losses = [run.segments.query("step == 4")["loss"].to_numpy() for run in (rest.run, whole.run)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert rest.run.events.empty
