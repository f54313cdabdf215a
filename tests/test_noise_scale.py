"""The noise scale where the truth is known: models whose gradients are drawn by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nets
import sgdwalk
from sgdwalk.distributions import student_t_975
from sgdwalk.noise_scale import fieller, noise_scale_of
from test_max_variance import draw
from test_noise import Mean, half_squared_errors


def grams(repeats: int, num_batches: int, batch_size: int, sigmas: Tensor, mean: Tensor) -> list[Tensor]:
    """Gram matrices of means of ``batch_size`` normal gradients with covariance diag(sigmas²)."""
    rows = draw(repeats * num_batches, sigmas / math.sqrt(batch_size), mean, seed=repeats).split(num_batches)
    return [part @ part.T for part in rows]


SIGMAS = torch.linspace(0.5, 2.0, 12, dtype=torch.float64)
TRACE = float(SIGMAS.square().sum())


def mean_gradient(squared: float) -> Tensor:
    return torch.full((12,), math.sqrt(squared / 12), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------- noise scale
def test_the_numbers_are_those_of_the_definition():
    """A mean's gradients are θ - x_i: the whole chain from data to numbers, by loops over pairs."""
    x = draw(24, SIGMAS, mean_gradient(6.0), seed=1)
    scale = sgdwalk.gradient_noise_scale(Mean(12), half_squared_errors, (x, x), batch_size=4, seed=2)
    order = np.random.default_rng(2).permutation(24)
    rows = [-x[part].mean(0) for part in np.split(order, 6)]
    pairs = [float(rows[a] @ rows[b]) for a in range(6) for b in range(6) if a != b]
    squared = math.fsum(pairs) / len(pairs)
    trace = 4 * (math.fsum(float(row @ row) for row in rows) / 6 - squared)
    assert scale.squared_gradient == pytest.approx(squared, rel=1e-12)
    assert scale.trace == pytest.approx(trace, rel=1e-12)
    assert scale.value == pytest.approx(trace / squared, rel=1e-12)
    assert scale.low < scale.value < scale.high < math.inf
    exact = sgdwalk.gradient_noise_scale(Mean(12), half_squared_errors, (x, x), batch_size=4, seed=2, gradient="data")
    assert exact.squared_gradient == pytest.approx(float(x.mean(0).square().sum()), rel=1e-12)
    assert exact.squared_gradient - scale.squared_gradient == pytest.approx(trace / 24, rel=1e-12)
    assert exact.low < exact.value < exact.high


def test_the_jackknife_leaves_out_one_batch_after_the_other():
    (gram,) = grams(1, 7, 4, SIGMAS, mean_gradient(6.0))
    kept = [[j for j in range(7) if j != left] for left in range(7)]
    parts = [noise_scale_of(gram[rows][:, rows], 4) for rows in kept]
    leaves = np.array([[part.trace, part.squared_gradient] for part in parts])
    covariance = (leaves - leaves.mean(0)).T @ (leaves - leaves.mean(0)) * 6 / 7
    whole = noise_scale_of(gram, 4)
    expected = fieller(
        whole.trace, whole.squared_gradient, (covariance[0, 0], covariance[0, 1], covariance[1, 1]), student_t_975(6)
    )
    assert (whole.low, whole.high) == pytest.approx(expected, rel=1e-10)


def test_trace_and_squared_gradient_are_unbiased():
    """Over 4,000 draws, within four standard errors; the square of the mean gradient would be 35 of them too large."""
    scales = [noise_scale_of(gram, 4) for gram in grams(4_000, 10, 4, SIGMAS, mean_gradient(1.0))]
    for name, truth in (("trace", TRACE), ("squared_gradient", 1.0)):
        values = np.array([getattr(scale, name) for scale in scales])
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - truth) < 4 * error, name
        if name == "squared_gradient":
            assert 20 * error < TRACE / 40


@pytest.mark.parametrize(
    ("squared", "unbounded"),
    [(20.0, (0.0, 0.0)), (2.0, (0.0, 0.2)), (0.3, (0.5, 1.0)), (1e-6, (0.9, 1.0))],
    ids=["clear", "usual", "hardly_seen", "nearly_zero"],
)
def test_the_interval_covers_the_truth(squared, unbounded):
    scales = [noise_scale_of(gram, 4) for gram in grams(800, 20, 4, SIGMAS, mean_gradient(squared))]
    truth = TRACE / squared
    assert np.mean([scale.low <= truth <= scale.high for scale in scales]) >= 0.92
    open_ended = [math.isinf(scale.high) for scale in scales]
    assert unbounded[0] <= np.mean(open_ended) <= unbounded[1]
    for scale, is_open in zip(scales, open_ended, strict=True):
        assert (scale.reason != "") is is_open
        assert math.isnan(scale.value) is (scale.squared_gradient <= 0)
        assert scale.low >= 0
        if not is_open:
            assert scale.low < scale.value < scale.high


@pytest.mark.parametrize("directions", [1, 12])
def test_the_interval_for_given_data_covers_what_all_partitions_have_in_mean(directions):
    x = draw(80, SIGMAS[:directions], mean_gradient(12.0)[:directions], seed=3)
    truth = float(x.var(0).sum() / x.mean(0).square().sum())
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        rows = x[torch.randperm(80, generator=generator)].view(20, 4, directions).mean(1)
        scale = noise_scale_of(rows @ rows.T, 4, "data")
        hits += scale.low <= truth <= scale.high
        assert scale.reason == ""
    assert hits >= 0.93 * 400


def test_a_gradient_of_zero_has_no_noise_scale():
    rows = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    scale = noise_scale_of(rows @ rows.T, 1)
    assert math.isnan(scale.value)
    assert (scale.low >= 0, scale.high) == (True, math.inf)
    assert "not above zero" in scale.reason
    nothing = noise_scale_of(torch.zeros(4, 4, dtype=torch.float64), 1)
    assert (math.isnan(nothing.value), nothing.low, nothing.high) == (True, 0.0, math.inf)


def test_without_noise_the_scale_is_zero():
    rows = torch.ones(5, 3, dtype=torch.float64)
    for gradient in ("population", "data"):
        scale = noise_scale_of(rows @ rows.T, 8, gradient)
        assert (scale.value, scale.low, scale.high, scale.reason) == (0.0, 0.0, 0.0, "")


def test_two_batches_give_a_value_and_no_interval():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    scale = noise_scale_of(rows @ rows.T, 3)
    assert (scale.value, scale.low, scale.high) == (pytest.approx(1.5), 0.0, math.inf)
    assert "3 mini-batches" in scale.reason


def test_bad_input_is_refused():
    data = nets.classification(23)
    model, loss_fn = nets.mlp(), nn.CrossEntropyLoss()
    with pytest.raises(sgdwalk.InputError, match="leave 3 of 23 examples out"):
        sgdwalk.gradient_noise_scale(model, loss_fn, data, batch_size=5, gradient="data")
    with pytest.raises(sgdwalk.InputError, match="gradient='exact' does not exist"):
        sgdwalk.gradient_noise_scale(model, loss_fn, data, batch_size=5, gradient="exact")
    assert sgdwalk.gradient_noise_scale(model, loss_fn, data, batch_size=5).num_left_out == 3


# ------------------------------------------------------------------------------------------------------ along a walk
def test_along_a_walk_it_is_that_of_each_iterate():
    """Fixed evaluation batches at θ_t against loops over them; the ragged last one is another B and left out."""
    x = draw(26, SIGMAS, mean_gradient(6.0), seed=1)
    model = Mean(12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    measures = {"noise": sgdwalk.GradientNoiseScale(None), "few": sgdwalk.GradientNoiseScale(4, seed=3)}
    with sgdwalk.watch(
        model, optimizer, half_squared_errors, (x, x), batch_size=4, measures=measures, on_error="raise"
    ) as walk:
        for _ in range(3):
            kept.append(next(model.parameters()).detach().clone().double())
            optimizer.zero_grad()
            half_squared_errors(model(x), x).mean().backward()
            optimizer.step()
    order = np.random.default_rng(0).permutation(26)
    parts = [order[k : k + 4] for k in range(0, 24, 4)]
    steps = walk.run.steps
    for step, theta in enumerate(kept):
        rows = torch.stack([(theta - x[part]).mean(0) for part in parts])
        expected = noise_scale_of(rows @ rows.T, 4)
        for column, name in (
            ("", "value"),
            ("_low", "low"),
            ("_trace", "trace"),
            ("_gradient_square", "squared_gradient"),
        ):
            assert steps[f"noise{column}"][step] == pytest.approx(getattr(expected, name), rel=1e-9)
    assert steps["noise_batch_size"].tolist() == [4.0] * 3
    assert steps["few"].nunique() == 3


def test_a_walk_without_enough_mini_batches_has_no_noise_scale():
    x = draw(9, SIGMAS, mean_gradient(6.0), seed=1)
    model = Mean(12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    measures = {"noise": sgdwalk.GradientNoiseScale(), "data": sgdwalk.GradientNoiseScale(gradient="data")}
    with sgdwalk.watch(
        model, optimizer, half_squared_errors, (x, x), batch_size=6, measures=measures, on_error="raise"
    ) as walk:
        half_squared_errors(model(x), x).mean().backward()
        optimizer.step()
    assert walk.run.steps["noise"].isna().all()
    assert walk.run.steps["noise_reason"][0] == "1 mini-batch of 6 examples; at least 2 are needed"
    assert walk.run.steps["data_reason"][0] == "1 mini-batch of 6 examples; at least 2 are needed"


def test_the_gradient_of_the_data_needs_mini_batches_of_one_size():
    x = draw(10, SIGMAS, mean_gradient(6.0), seed=1)
    model = Mean(12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    measures = {"data": sgdwalk.GradientNoiseScale(gradient="data")}
    with sgdwalk.watch(model, optimizer, half_squared_errors, (x, x), batch_size=4, measures=measures) as walk:
        half_squared_errors(model(x), x).mean().backward()
        optimizer.step()
    assert walk.run.steps["data_reason"][0] == (
        "2 of 3 evaluation batches have 4 examples; gradient='data' needs all of one size"
    )


@pytest.mark.parametrize("arguments", [{"num_batches": 2}, {"num_batches": True}, {"gradient": "mean"}], ids=str)
def test_measures_that_cannot_be_meant_are_refused(arguments):
    with pytest.raises(sgdwalk.InputError):
        sgdwalk.GradientNoiseScale(**arguments)
