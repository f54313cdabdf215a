"""The spectral norm along walks whose eigenvectors turn far, or stay, between two measurements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgdwalk
from sgdwalk import spectral_walk
from test_curvature import EVERY, dense_hessian, examples, net, top, walk


class Turning(nn.Module):
    """A quadratic in θ, its top eigenvalues given for each time, its eigenvectors drawn anew at each, or staying."""

    def __init__(self, *top: list[float], turns: bool, size: int = 400):
        super().__init__()
        self.theta, self.time = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(1))
        self.top, self.turns = torch.tensor(top), turns

    def forward(self, inputs: Tensor) -> Tensor:
        """½ Σ_i λ_i (u_i·θ)² + ½ · 0.01 ‖θ‖² for every input."""
        time = int(self.time.item())
        draw = torch.Generator().manual_seed(time if self.turns else 0)
        directions = torch.linalg.qr(torch.randn(len(self.theta), len(self.top), generator=draw)).Q.T
        along = (directions @ self.theta).square() * self.top[:, time]
        return (0.5 * (along.sum() + 0.01 * self.theta.square().sum())).expand(len(inputs))


def norms(model: Turning, **settings):
    """The columns of a spectral norm measured at every time."""
    measure = sgdwalk.at(EVERY, sgdwalk.SpectralNorm(0.01, **settings))
    data = (torch.zeros(4, 1), torch.zeros(4))
    with sgdwalk.watch(
        model, None, lambda output, target: output, data, when=None, measures={"norm": measure}, on_error="raise"
    ) as walked:
        for _ in range(model.top.shape[1]):
            walked.before_step(learning_rate=1.0)
            with torch.no_grad():
                model.time += 1
            walked.after_step()
    return walked.run.steps


@pytest.mark.parametrize("look_every", [4, 100])
@pytest.mark.parametrize("turns", [False, True], ids=["stays", "turns"])
def test_the_top_one_is_found_however_far_it_turns(turns, look_every):
    values = [[3.0] * 16, [2.0] * 16, [1.5] * 16]
    steps = norms(Turning(*values, turns=turns), look_every=look_every)
    np.testing.assert_allclose(steps["norm"], 3.01, rtol=1e-3)
    if not turns and look_every == 100:
        assert steps["norm_num_products"][1:].eq(1).all()


@pytest.mark.parametrize("look_every", [4, 100])
def test_two_that_swap_places_at_each_step_are_both_kept_in_sight(look_every):
    """The top vector turns by a right angle each time, within the plane of the two."""
    one, other = [3.0, 2.8] * 10, [2.8, 3.0] * 10
    tail = [[value] * 20 for value in np.linspace(1.5, 0.3, 12).tolist()]
    steps = norms(Turning(one, other, *tail, turns=False, size=2000), look_every=look_every)
    np.testing.assert_allclose(steps["norm"], 3.01, rtol=2e-3)


def test_what_rises_behind_eigenvectors_that_turn_is_no_surprise():
    """Searches with a random part find a newcomer by themselves, however the values move."""
    falling, rising = np.linspace(3.0, 2.2, 16), np.linspace(1.8, 2.8, 16)
    steps = norms(Turning(falling.tolist(), rising.tolist(), turns=True), look_every=100)
    np.testing.assert_allclose(steps["norm"], np.maximum(falling, rising) + 0.01, rtol=1e-3)


def test_a_value_that_fell_or_changed_its_sign_asks_for_a_look(monkeypatch):
    watched = []
    search = spectral_walk.extreme_eigenpairs

    def counted(*arguments, **options):
        watched.append(options["watched"])
        return search(*arguments, **options)

    monkeypatch.setattr(spectral_walk, "extreme_eigenpairs", counted)
    values = [3.0, 3.0, 3.0, 3.0, 1.9, 1.9, 3.0, 3.0, -3.0, -3.0]
    steps = norms(Turning(values, turns=True), look_every=100)
    np.testing.assert_allclose(steps["norm"], np.array(values) + 0.01, rtol=1e-3)
    looks = "".join("L" if one else "." for one in watched)
    assert looks == "L" + "..." + ".L" + "..." + ".L" + "."  # the first, that of 1.9 and that of -3 where it was 3


def test_without_looks_the_last_one_is_followed_however_far_it_turns():
    values = [[3.0] * 8, [2.9] * 8]
    steps = norms(Turning(*values, turns=False), look_every=None)
    assert steps["norm_num_products"][1:].eq(1).all()


@pytest.mark.parametrize("rate", [0.02, 1.0], ids=["small_updates", "large_updates"])
def test_along_a_training_it_is_the_dense_one(rate):
    model = net("batchnorm", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    steps, kept = walk(model, optimizer, examples(torch.float32), 8, norm=sgdwalk.at(EVERY, sgdwalk.SpectralNorm(1e-3)))
    for step, before in enumerate(kept):
        assert math.isclose(steps["norm"][step], top(dense_hessian(before)), rel_tol=1e-4)
