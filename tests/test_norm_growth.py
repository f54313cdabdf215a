"""How norms grow under isotropic noise: simulated, and against the final norms in the paper's Figure 5."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import sgdwalk

VGG11 = {"num_parameters": 9_756_426, "learning_rate": 0.1, "start_norm": 87.0}
"""The paper's VGG-11 with BatchNorm, counted layer by layer below; ‖θ_0‖ as in Figure 5's caption for GD."""


def test_the_number_of_parameters_is_counted_by_hand():
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + b + 2 * b for a, b in itertools.pairwise(widths))
    classifier = 2 * (512 * 512 + 512) + 512 * 10 + 10
    assert convolutions + classifier == VGG11["num_parameters"]


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_the_mean_square_is_that_of_a_simulation(weight_decay):
    draw = torch.Generator().manual_seed(0)
    theta = torch.full((4000, 10), 0.5, dtype=torch.float64)
    eta, sigma = 0.2, 0.7
    for step in range(1, 41):
        theta = (1 - eta * weight_decay) * theta - eta * sigma * torch.randn(theta.shape, generator=draw).double()
        if step in (1, 7, 40):
            squares = theta.square().sum(1)
            expected = sgdwalk.norm_under_noise(
                math.sqrt(2.5),
                sigma=sigma,
                num_parameters=10,
                learning_rate=eta,
                num_updates=step,
                weight_decay=weight_decay,
            )
            error = float(squares.std()) / math.sqrt(len(squares))
            assert abs(float(squares.mean()) - expected**2) < 4 * error


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_inverse_undoes_it(weight_decay):
    settings = {"sigma": 0.3, "num_parameters": 1000, "learning_rate": 0.1, "weight_decay": weight_decay}
    norm = sgdwalk.norm_under_noise(2.0, num_updates=123, **settings)
    assert sgdwalk.updates_to_norm(norm, start_norm=2.0, **settings) == pytest.approx(123, rel=1e-9)


@pytest.mark.parametrize(
    ("norm", "number", "as_variance", "as_deviation"),
    [(369.0, 0.014, 94, 6_729), (443.0, 0.028, 69, 2_468)],
    ids=["factor 0.05", "factor 0.1"],
)
def test_the_papers_norms_tell_how_many_updates_each_reading_needs(norm, number, as_variance, as_deviation):
    """Figure 5 shows at least 1,500 updates: as a variance, 94 and 69 would have been enough."""
    variance = sgdwalk.updates_to_norm(norm, sigma=math.sqrt(number), **VGG11)
    deviation = sgdwalk.updates_to_norm(norm, sigma=number, **VGG11)
    assert variance == pytest.approx(as_variance, rel=0.01)
    assert deviation == pytest.approx(as_deviation, rel=0.01)
    # The authors' weight decay of 1e-4 changes little.
    decayed = sgdwalk.updates_to_norm(norm, sigma=number, weight_decay=1e-4, **VGG11)
    assert deviation < decayed < 1.1 * deviation


def test_a_norm_that_is_never_reached():
    assert sgdwalk.updates_to_norm(2.0, start_norm=1.0, sigma=0.0, num_parameters=3, learning_rate=0.1) == math.inf
    bounded = {"start_norm": 1.0, "sigma": 0.1, "num_parameters": 10, "learning_rate": 0.1, "weight_decay": 1.0}
    limit = 0.1 * 0.1 * math.sqrt(10 / (1 - 0.9**2))
    assert sgdwalk.updates_to_norm(0.99 * limit, **bounded) == math.inf
    assert sgdwalk.updates_to_norm(1.01 * limit, **bounded) < math.inf
    assert sgdwalk.updates_to_norm(1.0, **bounded) == 0.0


@pytest.mark.parametrize("changes", [{"sigma": -1.0}, {"learning_rate": math.nan}, {"weight_decay": 20.0}], ids=str)
def test_numbers_that_cannot_be_meant_are_refused(changes):
    settings = {"sigma": 0.1, "num_parameters": 3, "learning_rate": 0.1, "num_updates": 5, **changes}
    with pytest.raises(sgdwalk.InputError):
        sgdwalk.norm_under_noise(1.0, **settings)
