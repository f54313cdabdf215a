"""Walks whose floor, height, barrier, α*, sharpness, cosine and distance are known on paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import reference
import sgdwalk

FLOAT64 = 1e-12
"""Relative rounding allowed: a dozen float64 operations between the paper's formula and the walk's number."""


class Point(nn.Module):
    """A network whose output is its parameter vector, whatever the input: the loss is a function on paper."""

    def __init__(self, *values: float, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.theta.expand(len(inputs), -1)


def data_at(*targets: float) -> tuple[Tensor, Tensor]:
    """One example a target."""
    return torch.zeros(len(targets), 1, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64).unsqueeze(1)


def quadratic(*curvatures: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Per example Σ_i λ_i (θ_i - c_i)² / 2."""
    diagonal = torch.tensor(curvatures, dtype=torch.float64)
    return lambda output, target: ((output - target).square() * diagonal).sum(dim=1) / 2


def function_of_theta(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Per-example loss f(θ) of a one-parameter ``Point``."""
    return lambda output, target: f(output).squeeze(1)


def descend(model: Point, optimizer: torch.optim.Optimizer, loss_fn, data, num_steps: int, **options) -> sgdwalk.Run:
    """Watched full-batch training."""
    with sgdwalk.watch(model, optimizer, loss_fn, data, on_error="raise", **options) as walk:
        reference.train(model, optimizer, [data] * num_steps, lambda output, target: loss_fn(output, target).mean())
    return walk.run


def leap(
    f: Callable[[Tensor], Tensor], *positions: float, dtype: torch.dtype = torch.float64, **options
) -> sgdwalk.Run:
    """A watched walk over the given positions of θ: the gradients are those that lead there at learning rate 1."""
    model = Point(positions[0], dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    data = (torch.zeros(3, 1), torch.zeros(3, 1))
    with sgdwalk.watch(model, optimizer, function_of_theta(f), data, on_error="raise", **options) as walk:
        for start, end in itertools.pairwise(positions):
            model.theta.grad = torch.tensor([start - end], dtype=dtype)
            optimizer.step()
    return walk.run


def losses_of(run: sgdwalk.Run, step: int) -> list[float]:
    return list(run.segments[run.segments.step == step].loss)


# ----------------------------------------------------------------------------------------------------- quadratics
@pytest.mark.parametrize(
    ("step_size", "floor_alpha"),
    [(0.25, 1.0), (0.5, 1.0), (1.25, 0.8), (2.0, 0.5), (2.5, 0.4)],
    ids=["short", "half-way", "past-the-floor", "as-high-as-it-left", "over-the-edge"],
)
def test_gradient_descent_on_a_parabola(step_size: float, floor_alpha: float) -> None:
    """L = λ (θ - c)² / 2 and η with ηλ = ``step_size``: each update multiplies θ - c by r = 1 - ηλ."""
    curvature, minimum, start = 2.0, 1.5, 0.5
    model = Point(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=step_size / curvature)
    steps = descend(model, optimizer, quadratic(curvature), data_at(minimum, minimum), 4).steps

    r = 1 - step_size
    error = (start - minimum) * r ** np.arange(5)
    loss = curvature * error**2 / 2
    floor = loss[:-1] * (1 - floor_alpha * step_size) ** 2
    expected = {
        "loss": loss[:-1],
        "next_loss": loss[1:],
        "floor": floor,
        "height": (loss[:-1] + loss[1:] - 2 * floor) / 2,
        "alpha_star": np.full(4, 1 / step_size),
        "alpha_star_r2": np.ones(4),
        "distance": abs(error[0] - error[:-1]),
        "next_distance": abs(error[0] - error[1:]),
        "grad_norm": curvature * abs(error[:-1]),
        "param_norm": abs(error[:-1] + minimum),
        "update_norm": step_size * abs(error[:-1]),
        "learning_rate": np.full(4, step_size / curvature),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(steps[name], values, rtol=FLOAT64, atol=1e-14, err_msg=name)
    assert (steps.floor_alpha == floor_alpha).all()
    assert not steps.barrier.any()
    # The highest interior point is next to the higher end.
    end = 0 if abs(r) <= 1 else 1
    inside = max((1 - 0.1 * step_size) ** 2, (1 - 0.9 * step_size) ** 2)
    np.testing.assert_allclose(steps.barrier_height, loss[:-1] * inside - loss[end : end + 4], rtol=FLOAT64, atol=1e-14)
    assert math.isnan(steps.cosine[0])
    np.testing.assert_allclose(steps.cosine[1:], np.sign(r), rtol=FLOAT64)
    # Critical sharpness of gradient descent, over the edge when above 2 / η.
    np.testing.assert_allclose(1 / (steps.learning_rate * steps.alpha_star), curvature, rtol=FLOAT64)


def test_the_step_that_lands_on_the_minimum() -> None:
    """ηλ = 1: floor and next loss are 0; then the gradient is 0, the walk stands still, cosine and α* are undefined."""
    model = Point(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = descend(model, optimizer, quadratic(2.0), data_at(1.5), 3)
    steps = run.steps
    assert list(steps.loss) == [1.0, 0.0, 0.0]
    assert list(steps.next_loss) == [0.0, 0.0, 0.0]
    assert list(steps.floor) == [0.0, 0.0, 0.0]
    assert list(steps.height) == [0.5, 0.0, 0.0]
    assert list(steps.barrier) == [False, False, False]
    assert steps.alpha_star[0] == pytest.approx(1.0, rel=FLOAT64)
    assert steps.alpha_star[1:].isna().all()
    assert (steps.alpha_star_reason[1:].str.len() > 0).all()
    assert steps.cosine.isna().all()
    assert (steps.cosine_reason.str.len() > 0).all()
    assert list(steps.distance) == [0.0, 1.0, 1.0]
    assert list(steps.next_distance) == [1.0, 1.0, 1.0]
    assert list(steps.update_norm) == [1.0, 0.0, 0.0]
    assert list(steps.grad_norm) == [2.0, 0.0, 0.0]


def test_gradient_descent_in_two_directions() -> None:
    """Curvatures 1 and 10, η = 0.15: slow along the valley's floor, bouncing (r = -0.5) between its walls."""
    curvatures, eta, start = np.array([1.0, 10.0]), 0.15, np.array([4.0, 1.0])
    model = Point(*start)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    data = (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    run = descend(model, optimizer, quadratic(*curvatures), data, 6)
    steps = run.steps

    theta = [start * (1 - eta * curvatures) ** t for t in range(7)]
    gradient = [curvatures * x for x in theta]
    for t in range(6):
        losses = [float(curvatures @ ((1 - k / 10) * theta[t] + k / 10 * theta[t + 1]) ** 2) / 2 for k in range(11)]
        np.testing.assert_allclose(losses_of(run, t), losses, rtol=FLOAT64)
        assert steps.height[t] == pytest.approx((losses[0] + losses[10] - 2 * min(losses)) / 2, rel=1e-10)
        sharpness = gradient[t] @ (curvatures * gradient[t]) / (gradient[t] @ gradient[t])
        assert 1 / (eta * steps.alpha_star[t]) == pytest.approx(sharpness, rel=1e-10)
        assert steps.distance[t] == pytest.approx(np.linalg.norm(theta[t] - start), rel=FLOAT64, abs=1e-14)
        assert steps.next_distance[t] == pytest.approx(np.linalg.norm(theta[t + 1] - start), rel=FLOAT64)
        if t > 0:
            norms = np.linalg.norm(gradient[t - 1]) * np.linalg.norm(gradient[t])
            assert steps.cosine[t] == pytest.approx(gradient[t - 1] @ gradient[t] / norms, rel=1e-10)
    assert steps.cosine[1] < 0 < steps.cosine[5]


def test_mini_batches_walk_on_the_full_loss() -> None:
    """Examples at 0 and 2: L = ((θ - 1)² + 1) / 2, while each update sees (θ - c_i)² / 2 of one example.

    From θ the update is η (c_i - θ), so L is lowest at α* = (1 - θ) / (η (c_i - θ)); below 0 the step goes uphill.
    """
    eta, theta = 0.8, 0.5
    model = Point(theta)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    loss_fn = quadratic(1.0)
    data = data_at(0.0, 2.0)
    order = [2.0, 0.0, 0.0, 2.0]
    batches = [data_at(c) for c in order]
    with sgdwalk.watch(model, optimizer, loss_fn, data, on_error="raise") as walk:
        reference.train(model, optimizer, batches, lambda output, target: loss_fn(output, target).mean())
    steps = walk.run.steps
    visited = [theta]
    for c in order:
        visited.append(visited[-1] + eta * (c - visited[-1]))
    for t, c in enumerate(order):
        here, there = visited[t], visited[t + 1]
        assert steps.loss[t] == pytest.approx(((here - 1) ** 2 + 1) / 2, rel=FLOAT64)
        assert steps.next_loss[t] == pytest.approx(((there - 1) ** 2 + 1) / 2, rel=FLOAT64)
        assert steps.alpha_star[t] == pytest.approx((1 - here) / (eta * (c - here)), rel=1e-10)
        assert steps.grad_norm[t] == pytest.approx(abs(here - c), rel=FLOAT64)
    assert (steps.alpha_star < 0).any()
    assert (steps.alpha_star > 0).any()


# ----------------------------------------------------------------------------- the displacement as it really happened
def momentum_recursion(
    theta: float, gradients: Callable[[float], float], eta: float, beta: float, decay: float, nesterov: bool
):
    """PyTorch's SGD, written out: v ← β v + (g + γ θ), θ ← θ - η v (Nesterov: θ - η (g + γ θ + β v))."""
    velocity = None
    while True:
        gradient = gradients(theta)
        total = gradient + decay * theta
        velocity = total if velocity is None else beta * velocity + total
        step = total + beta * velocity if nesterov else velocity
        following = theta - eta * step
        yield theta, following, gradient
        theta = following


@pytest.mark.parametrize(
    ("beta", "decay", "nesterov"),
    [(0.9, 0.0, False), (0.9, 0.0, True), (0.0, 0.3, False), (0.9, 0.3, False)],
    ids=["momentum", "nesterov", "weight-decay", "momentum-and-decay"],
)
def test_segments_follow_the_real_displacement(beta: float, decay: float, nesterov: bool) -> None:
    """L = λ (θ - c)² / 2 with d = θ_{t+1} - θ_t: α* = (c - θ_t) / d, whatever the optimizer made of the gradient."""
    curvature, minimum, eta, start = 2.0, 1.0, 0.2, 3.1
    model = Point(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta, momentum=beta, weight_decay=decay, nesterov=nesterov)
    steps = descend(model, optimizer, quadratic(curvature), data_at(minimum), 8).steps
    recursion = momentum_recursion(start, lambda x: curvature * (x - minimum), eta, beta, decay, nesterov)
    previous = None
    for t in range(8):
        here, there, gradient = next(recursion)
        assert steps.loss[t] == pytest.approx(curvature * (here - minimum) ** 2 / 2, rel=1e-10)  # without γ θ² / 2
        assert steps.next_loss[t] == pytest.approx(curvature * (there - minimum) ** 2 / 2, rel=1e-10)
        assert steps.alpha_star[t] == pytest.approx((minimum - here) / (there - here), rel=1e-8)
        assert steps.update_norm[t] == pytest.approx(abs(there - here), rel=1e-10)
        assert steps.grad_norm[t] == pytest.approx(abs(gradient), rel=1e-10)  # without γ θ, without momentum
        assert steps.distance[t] == pytest.approx(abs(here - start), rel=1e-10, abs=1e-14)
        if previous is not None:
            assert steps.cosine[t] == pytest.approx(math.copysign(1.0, previous * gradient), rel=FLOAT64)
        previous = gradient


def test_weight_decay_alone_climbs_from_the_minimum() -> None:
    """At θ = c the gradient of L is 0 and only the L2 term moves θ: L rises from 0 to λ (ηγc)² / 2."""
    curvature, minimum, eta, decay = 2.0, 5.0, 0.1, 0.4
    model = Point(minimum)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta, weight_decay=decay)
    steps = descend(model, optimizer, quadratic(curvature), data_at(minimum), 1).steps
    assert steps.loss[0] == 0.0
    assert steps.next_loss[0] == pytest.approx(curvature * (eta * decay * minimum) ** 2 / 2, rel=FLOAT64)
    assert steps.floor_alpha[0] == 0.0
    assert steps.alpha_star[0] == pytest.approx(0.0, abs=1e-12)
    assert steps.grad_norm[0] == 0.0


def test_adam_takes_its_own_step() -> None:
    """Adam's first update has size η whatever the gradient: with θ_0 - c = 3 η the floor lies 3 steps ahead."""
    eta = 0.1
    model = Point(1.0 + 3 * eta)
    optimizer = torch.optim.Adam(model.parameters(), lr=eta, eps=0.0)
    steps = descend(model, optimizer, quadratic(7.0), data_at(1.0), 1).steps
    assert steps.update_norm[0] == pytest.approx(eta, rel=1e-10)
    assert steps.alpha_star[0] == pytest.approx(3.0, rel=1e-8)
    assert 2 * steps.alpha_star[0] == pytest.approx(6.0, rel=1e-8)  # critical step / taken step


def test_a_learning_rate_of_zero_is_an_update() -> None:
    model = Point(2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = descend(model, optimizer, quadratic(1.0), data_at(0.0), 2).steps
    assert list(steps.index) == [0, 1]
    assert list(steps.loss) == list(steps.next_loss) == [2.0, 2.0]
    assert list(steps.height) == [0.0, 0.0]
    assert list(steps.barrier) == [False, False]
    assert list(steps.update_norm) == list(steps.next_distance) == [0.0, 0.0]
    assert steps.alpha_star.isna().all()
    assert steps.cosine[1] == pytest.approx(1.0, rel=FLOAT64)


def test_the_origin_is_where_watching_began() -> None:
    """θ_0 is the parameter vector when ``watch`` was called, and step 0 the first update after it."""
    model = Point(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss_fn, data = quadratic(1.0), data_at(8.0)
    reference.train(model, optimizer, [data] * 2, lambda output, target: loss_fn(output, target).mean())  # 0 → 4 → 6
    steps = descend(model, optimizer, loss_fn, data, 2).steps  # 6 → 7 → 7.5
    assert list(steps.distance) == [0.0, 1.0]
    assert list(steps.next_distance) == [1.0, 1.5]
    assert math.isnan(steps.cosine[0])


def test_only_the_optimizers_parameters_move() -> None:
    """A frozen parameter shifts the loss and counts in no norm and no distance."""

    class Shifted(Point):
        def __init__(self) -> None:
            super().__init__(3.0)
            self.shift = nn.Parameter(torch.tensor([100.0], dtype=torch.float64), requires_grad=False)

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) + self.shift

    model = Shifted()
    optimizer = torch.optim.SGD([model.theta], lr=2.0)
    steps = descend(model, optimizer, quadratic(1.0), data_at(101.0), 1).steps  # θ + 100 aims at 101: 3 → -1
    assert steps.loss[0] == steps.next_loss[0] == 2.0
    assert steps.floor[0] == pytest.approx(0.0, abs=1e-20)
    assert steps.param_norm[0] == 3.0
    assert steps.update_norm[0] == 4.0


# ---------------------------------------------------------------------------------------------------------- bumps
def test_a_bump_between_two_iterates_is_a_barrier_of_its_height() -> None:
    """L = 4 - θ² from -1 to 1: both ends at 3, the top of 4 between them, no floor below the ends."""
    steps = leap(lambda x: 4 - x**2, -1.0, 1.0).steps
    assert steps.loss[0] == steps.next_loss[0] == 3.0
    assert steps.barrier[0]
    assert steps.barrier_height[0] == pytest.approx(1.0, rel=FLOAT64)
    assert steps.barrier_significant[0]
    assert steps.floor[0] == 3.0
    assert steps.height[0] == 0.0
    assert math.isnan(steps.alpha_star[0])
    assert "convex" in steps.alpha_star_reason[0]


def test_sgd_jumps_over_the_bump_of_a_double_well() -> None:
    """L = (θ² - 1)² from θ = -1.2 with η such that the gradient step lands on 1.2: the top of 1 lies at θ = 0."""
    f = function_of_theta(lambda x: (x**2 - 1) ** 2)
    gradient = 4 * -1.2 * (1.44 - 1)
    model = Point(-1.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=-2.4 / gradient)
    run = descend(model, optimizer, f, data_at(0.0, 0.0), 1)
    steps = run.steps
    assert model.theta.item() == pytest.approx(1.2, rel=FLOAT64)
    assert steps.loss[0] == pytest.approx(0.44**2, rel=FLOAT64)
    assert steps.barrier[0]
    assert steps.barrier_height[0] == pytest.approx(1 - 0.44**2, rel=FLOAT64)
    # On the grid the wells are nearest at α = 0.1 and 0.9, θ = ±0.96.
    assert steps.floor[0] == pytest.approx((0.96**2 - 1) ** 2, rel=1e-10)
    assert steps.floor_alpha[0] == pytest.approx(0.1) or steps.floor_alpha[0] == pytest.approx(0.9)
    assert steps.height[0] == pytest.approx(0.44**2 - (0.96**2 - 1) ** 2, rel=1e-10)


def test_a_bump_between_two_grid_points_is_not_seen_and_a_finer_grid_sees_it() -> None:
    """A bump narrower than a tenth of the segment, at α = 0.45, stands between the points of the authors' grid."""

    def bump(x: Tensor) -> Tensor:
        return 1 + torch.relu(1 - (x - 0.45).abs() / 0.04)

    coarse = leap(bump, 0.0, 1.0).steps
    fine = leap(bump, 0.0, 1.0, num_points=20).steps
    assert not coarse.barrier[0]
    assert coarse.barrier_height[0] == 0.0
    assert fine.barrier[0]
    assert fine.barrier_height[0] == pytest.approx(1.0, rel=1e-10)


@pytest.mark.parametrize(
    ("f", "start", "end", "barrier_height"),
    [
        (lambda x: torch.clamp(x, max=1.0), 0.0, 2.0, 0.0),
        (lambda x: torch.relu(x.abs() - 1), -0.5, 0.5, 0.0),
        (lambda x: x + 3, 0.0, 1.0, -0.1),
        (lambda x: torch.sin(math.pi * x) + 5 * x, 0.0, 1.0, None),
    ],
    ids=["plateau-as-high-as-the-end", "flat", "slope", "bulge-below-the-higher-end"],
)
def test_no_barrier_unless_strictly_above_both_ends(f, start: float, end: float, barrier_height: float | None) -> None:
    steps = leap(f, start, end).steps
    assert not steps.barrier[0]
    assert not steps.barrier_significant[0]
    if barrier_height is None:
        losses = [float(f(torch.tensor(k / 10, dtype=torch.float64))) for k in range(11)]
        assert max(losses[1:-1]) > losses[0]  # above one end only
        barrier_height = max(losses[1:-1]) - losses[-1]
    assert steps.barrier_height[0] == pytest.approx(barrier_height, rel=1e-10, abs=1e-14)


def test_a_bad_fit_has_no_alpha_star() -> None:
    """Two full waves are no parabola; R² says so and stays in the record."""
    run = leap(lambda x: 2 - torch.cos(4 * math.pi * x) + 0.1 * x**2, 0.0, 1.0)
    steps = run.steps
    _, _, r2 = reference.parabola(losses_of(run, 0))
    assert r2 < 0.9
    assert math.isnan(steps.alpha_star[0])
    assert steps.alpha_star_r2[0] == pytest.approx(r2, abs=1e-10)
    assert steps.alpha_star_reason[0]


def test_alpha_star_of_a_curve_that_is_nearly_a_parabola() -> None:
    """cosh is fitted with R² < 1; the twin's least squares gives the same α*."""
    run = leap(lambda x: torch.cosh(x), -1.0, 2.0)
    steps = run.steps
    _, alpha_star, r2 = reference.parabola(losses_of(run, 0))
    assert 0.99 < r2 < 1
    assert steps.alpha_star[0] == pytest.approx(alpha_star, rel=1e-10)
    assert steps.alpha_star_r2[0] == pytest.approx(r2, rel=1e-10)


def test_a_barrier_within_the_loss_noise_is_counted_but_not_significant() -> None:
    """(10,000 + 0.1) - 10,000 is 0.1 - 3.9e-4 in float32: this noise hides a bump of 1e-4, not one of 1e-2."""

    def noisy(height: float) -> Callable[[Tensor], Tensor]:
        return lambda x: ((torch.full_like(x, 10_000.0) + 0.1) - 10_000.0) + height * (1 - x**2)

    noise = 0.1 - 102 / 1024
    for height, significant in [(1e-4, False), (1e-2, True)]:
        steps = leap(noisy(height), -1.0, 1.0, dtype=torch.float32).steps
        assert steps.loss_noise[0] == pytest.approx(noise, rel=1e-3)
        assert steps.barrier[0]
        assert steps.barrier_height[0] == pytest.approx(height, rel=1e-2)
        assert bool(steps.barrier_significant[0]) is significant


# ------------------------------------------------------------------------------------------------------ undefined
def test_a_pole_between_the_iterates_leaves_the_segment_undefined() -> None:
    """L = 1/θ² from -1 to 1 is infinite at α = ½: ends are known, floor, height and barrier are not."""
    run = leap(lambda x: 1 / x**2, -1.0, 1.0, 2.0)
    steps, segments = run.steps, run.segments
    middle = segments[(segments.step == 0) & (segments.alpha == 0.5)].loss
    assert middle.isna().all()
    assert steps.loss[0] == steps.next_loss[0] == 1.0
    for name in ("floor", "floor_alpha", "height", "barrier", "barrier_height", "alpha_star"):
        assert steps[name].isna()[0], name
    assert steps.barrier_reason[0]
    assert pd.api.types.is_bool_dtype(steps.barrier)
    # The next segment is away from the pole and defined.
    assert steps.loss[1] == 1.0
    assert steps.next_loss[1] == 0.25
    assert steps.height[1] == pytest.approx((1 - 0.25) / 2, rel=FLOAT64)


def test_a_walk_that_ends_where_the_loss_is_no_number() -> None:
    """L = θ - log θ from 1 to -1: the end has no loss, the start has."""
    steps = leap(lambda x: x - torch.log(x), 1.0, -1.0).steps
    assert steps.loss[0] == 1.0
    assert math.isnan(steps.next_loss[0])
    assert steps.barrier.isna()[0]
    assert steps.update_norm[0] == 2.0


# ---------------------------------------------------------------------------------------------- what is unmeasured
def test_steps_that_are_not_watched_have_cheap_columns_only() -> None:
    model = Point(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = descend(model, optimizer, quadratic(1.0), data_at(1.0), 5, when=sgdwalk.every(2))
    steps = run.steps
    assert sorted(run.segments.step.unique()) == [0, 2, 4]
    assert list(steps.height.isna()) == [False, True, False, True, False]
    assert list(steps.barrier.isna()) == [False, True, False, True, False]
    assert steps.distance.notna().all()
    assert steps.cosine[1:].notna().all()


def test_watching_fewer_steps_changes_no_number() -> None:
    """The start of a segment is evaluated afresh or kept from the one before: either way it is the same number."""
    numbers: dict[str, Sequence[float]] = {}
    for name, when in [("all", sgdwalk.every(1)), ("some", sgdwalk.every(3))]:
        model = Point(4.0, 1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.15, momentum=0.5)
        data = (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
        segments = descend(model, optimizer, quadratic(1.0, 10.0), data, 7, when=when).segments
        numbers[name] = list(segments[segments.step % 3 == 0].loss)
    assert numbers["all"] == numbers["some"]


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e22, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gradients_whose_squares_leave_float32_keep_norm_and_cosine(scale: float, dtype: torch.dtype) -> None:
    """(3, 4) and then (4, 3) times ``scale``: norms of 5 and a cosine of 24/25, and no gradient that counts as zero."""
    model = Point(0.0, 0.0, dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with sgdwalk.watch(model, optimizer, None, None, when=None, on_error="raise") as walk:
        for gradient in ([3.0, 4.0], [4.0, 3.0]):
            model.theta.grad = scale * torch.tensor(gradient, dtype=dtype)
            optimizer.step()
    steps = walk.run.steps
    assert steps.cosine[1] == pytest.approx(24 / 25, rel=1e-6)
    np.testing.assert_allclose(steps.grad_norm, 5 * scale, rtol=1e-6)
