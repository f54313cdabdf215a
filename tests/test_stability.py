"""Thresholds of stability: the real optimizers on quadratics, just below and just above."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

import sgdwalk
from sgdwalk.stability import stability_of


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def size_after(optimizer: torch.optim.Optimizer, theta: nn.Parameter, curvature: float, steps: int) -> float:
    for _ in range(steps):
        theta.grad = curvature * theta.detach()
        optimizer.step()
    return abs(float(theta.detach()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "dampening": 0.3},
        {"momentum": 0.0, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.5},
        {"weight_decay": 0.7},
        {"momentum": 0.5, "weight_decay": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("lr", [0.1, 1.5])
def test_sgd_converges_just_below_and_diverges_just_above(settings, lr):
    for factor in (0.99, 1.01):
        theta = parameter(1.0)
        optimizer = SGD([theta], lr=lr, **settings)
        threshold = sgdwalk.stability_threshold(optimizer).threshold
        gamma = settings.get("weight_decay", 0.0)
        size = size_after(optimizer, theta, factor * (threshold + gamma) - gamma, 3000)
        assert size < 1e-3 if factor < 1 else size > 1e3


SLOW = 1.0 - 1e-9
"""A second moment that decays this slowly stands still."""


def stand_still(optimizer, theta):
    """Put the second moment back to 25, long after all bias corrections: P = 5."""
    state = optimizer.state[theta]
    state["step"].fill_(1e13)
    state["square_avg" if isinstance(optimizer, RMSprop) else "exp_avg_sq"].fill_(25.0)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Adam, {"betas": (0.9, SLOW)}),
        (Adam, {"betas": (0.5, SLOW), "weight_decay": 0.3}),
        (Adam, {"betas": (0.9, SLOW), "weight_decay": 3.0, "decoupled_weight_decay": True}),
        (AdamW, {"betas": (0.9, SLOW), "weight_decay": 3.0}),
        (AdamW, {"betas": (0.0, SLOW), "weight_decay": 0.0}),
        (RMSprop, {"momentum": 0.0, "alpha": SLOW}),
        (RMSprop, {"momentum": 0.8, "alpha": SLOW, "weight_decay": 0.3}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_preconditioned_optimizers_at_their_edge(kind, settings):
    for factor in (0.98, 1.02):
        theta = parameter(1e-3)
        optimizer = kind([theta], lr=0.05, **settings)
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
        stand_still(optimizer, theta)
        stability = stability_of([optimizer], [theta])
        assert stability.reason == ""
        assert math.isclose(float(stability.preconditioner), 5.0, rel_tol=1e-6)
        # (h + l2) / P = factor · threshold
        curvature = factor * stability.threshold * 5.0 - stability.l2
        for _ in range(400):
            theta.grad = curvature * theta.detach()
            optimizer.step()
            stand_still(optimizer, theta)
        size = abs(float(theta.detach())) / 1e-3
        assert size < 0.1 if factor < 1 else size > 10


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_preconditioner_is_the_denominator_of_the_update(amsgrad):
    """With a constant gradient Adam's update is η m̂ / (√v̂ + ε): P must reproduce the displacement."""
    theta = parameter(1.0, -2.0, 3.0)
    optimizer = Adam([theta], lr=0.1, eps=1e-3, amsgrad=amsgrad)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        before = theta.detach().clone()
        theta.grad = torch.randn(3, generator=draw, dtype=torch.float64)
        optimizer.step()
        moment = optimizer.state[theta]["exp_avg"]
        preconditioner = stability_of([optimizer], [theta]).preconditioner
        torch.testing.assert_close(before - theta.detach(), 0.1 * moment / preconditioner, rtol=1e-12, atol=0)


def test_the_preconditioner_follows_the_order_that_is_asked_for():
    first, second = parameter(1.0, 2.0), parameter(3.0)
    optimizer = AdamW([{"params": [second]}, {"params": [first]}])
    first.grad, second.grad = torch.tensor([1.0, 10.0]).double(), torch.tensor([100.0]).double()
    optimizer.step()
    there = stability_of([optimizer], [first, second]).preconditioner
    assert there[0] < there[1] < there[2]
    torch.testing.assert_close(stability_of([optimizer], [second]).preconditioner, there[2:])


def stepped(optimizer):
    for group in optimizer.param_groups:
        for each in group["params"]:
            each.grad = torch.ones_like(each)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("optimizers", "reason"),
    [
        (lambda: Adagrad([parameter(1.0)]), "no threshold is known for Adagrad"),
        (lambda: SGD([parameter(1.0)], lr=0.1, maximize=True), "maximizes"),
        (lambda: SGD([parameter(1.0)], lr=0.0), "the learning rate is 0"),
        (lambda: RMSprop([parameter(1.0)], centered=True), "centered RMSprop"),
        (lambda: SGD([parameter(1.0)], lr=0.1, momentum=0.9, dampening=1.0), "dampening of 1"),
        (lambda: SGD([parameter(1.0)], lr=0.1, momentum=1.0), "momentum of 1 no step is stable"),
        (lambda: SGD([{"params": [parameter(1.0)]}, {"params": [parameter(2.0)], "lr": 0.3}], lr=0.1), "differ in lr"),
        (lambda: [SGD([parameter(1.0)], lr=0.1), Adam([parameter(1.0)])], r"several optimizers \(Adam, SGD\)"),
        (lambda: [SGD([parameter(1.0)], lr=0.1), SGD([parameter(1.0)], lr=0.2)], "differ in lr"),
    ],
    ids=["Adagrad", "maximize", "zero", "centered", "dampening", "momentum", "groups", "kinds", "list"],
)
def test_where_no_threshold_is_known_the_reason_is(optimizers, reason):
    stability = sgdwalk.stability_threshold(optimizers())
    assert stability.threshold is None
    assert re.search(reason, stability.reason)


def test_two_equal_optimizers_have_one_threshold():
    pair = [SGD([parameter(1.0)], lr=0.1), SGD([parameter(1.0)], lr=0.1)]
    assert sgdwalk.stability_threshold(pair).threshold == 20.0


class Renamed(SGD):
    """With what a user may add; its updates are SGD's."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)


class Decayed(AdamW):
    pass


class Halved(SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for each in group["params"]:
                each.grad /= 2
        return super().step(closure)


def test_a_subclass_has_the_threshold_of_the_step_that_it_inherits():
    for _ in range(2):  # torch wraps a step at the first instance of its class
        assert sgdwalk.stability_threshold(Renamed([parameter(1.0)], lr=0.1)).threshold == 20.0
        unknown = sgdwalk.stability_threshold(Halved([parameter(1.0)], lr=0.1))
        assert (unknown.threshold, unknown.reason) == (None, "no threshold is known for Halved")
        SGD([parameter(1.0)], lr=0.1)
    own = sgdwalk.stability_threshold(stepped(Decayed([parameter(1.0)], weight_decay=0.1)))
    same = sgdwalk.stability_threshold(stepped(AdamW([parameter(1.0)], weight_decay=0.1)))
    assert own.threshold == same.threshold is not None
    assert own.l2 == same.l2 == 0.0


def test_a_preconditioner_with_zeros_is_none():
    theta = parameter(1.0, 2.0, 3.0)
    optimizer = Adam([theta], eps=0.0)
    theta.grad = torch.tensor([1.0, 0.0, 0.0], dtype=theta.dtype)
    optimizer.step()
    stability = sgdwalk.stability_threshold(optimizer)
    assert stability.preconditioner is None
    assert stability.reason == "2 of the 3 coordinates of Adam's preconditioner are zero"


def test_adam_before_its_first_update_has_no_preconditioner():
    stability = sgdwalk.stability_threshold(Adam([parameter(1.0)]))
    assert stability.preconditioner is None
    assert "before its first update" in stability.reason
    assert stability.threshold is not None


def test_tensor_learning_rates_are_numbers():
    assert sgdwalk.stability_threshold(SGD([parameter(1.0)], lr=torch.tensor(0.5))).threshold == 4.0
    assert stepped(SGD([parameter(1.0)], lr=torch.tensor(0.5))) is not None


def test_groups_that_differ_have_a_preconditioner_and_no_threshold():
    """The usual split of AdamW: decay for some, none for others."""
    first, second = parameter(1.0, 2.0), parameter(3.0)
    optimizer = AdamW([{"params": [first], "weight_decay": 0.1}, {"params": [second], "weight_decay": 0.0}])
    stepped(optimizer)
    stability = stability_of([optimizer], [first, second])
    assert stability.threshold is None
    assert stability.reason == "the parameter groups differ in weight_decay"
    assert stability.preconditioner.shape == (3,)
    assert stability_of([optimizer], [second]).threshold is not None
    assert "1 of the 1 parameters are not the optimizer's" in stability_of([optimizer], [parameter(1.0)]).reason
