"""Spectral norms and Equation 3 along a training: float64 twins, numbers known on paper, what is undefined."""

import copy
import dataclasses
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import sgdwalk
from sgdwalk.paper import data, spectral
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.data import Split
from sgdwalk.paper.decomposition import Decomposition
from sgdwalk.paper.models import MLP
from sgdwalk.paper.spectral import SpectralNorms, authors_spectral_norm
from sgdwalk.paper.standing import standing
from sgdwalk.paper.train import train

PLAIN = Experiment(num_train=120, hidden=(3, 2), batch_size=30, epochs=3, watch=False)
MEASURED = replace(
    PLAIN, spectral_epochs=(1, 2, 3), spectral_examples=60, spectral_compare_epochs=(2,), decomposition_steps=(11,)
)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products gain nothing from two threads, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Here:
    """Where a measure is called: θ_t."""

    def __init__(self, step, parameters):
        self.step, self.parameters = step, parameters


@pytest.fixture
def place():
    """Two batches of six examples, a network with running statistics of its own, and a θ_t that it has left."""
    torch.manual_seed(0)
    experiment = Experiment(
        num_train=12, hidden=(3, 2), batch_size=6, epochs=2, spectral_epochs=(1,), spectral_examples=6
    )
    training = Split(torch.randn(12, 4), torch.randint(10, (12,)))
    model = MLP((4, 3, 2, 10))
    for _ in range(20):
        model(training.inputs)
    start = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]) + 0.1
    return experiment, model, training, Here(1, start)


def at_start(model, here):
    """A float64 network at θ_t, built anew."""
    own = copy.deepcopy(model).double()
    torch.nn.utils.vector_to_parameters(here.parameters.double(), own.parameters())
    return own


def example_losses(model, flat, batches, *, batch_statistics):
    """ℓ_i as a function of θ."""
    names, shapes = zip(*((name, each.shape) for name, each in model.named_parameters()), strict=True)
    model.train(batch_statistics)
    parts = flat.split([shape.numel() for shape in shapes])
    parameters = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
    frozen = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs = torch.cat([functional_call(model, (parameters, dict(frozen)), inputs.double()) for inputs, _ in batches])
    return cross_entropy(outputs, torch.cat([targets for _, targets in batches]), reduction="none")


def dense_hessian(model, here, batches, *, batch_statistics):
    def loss(flat):
        return example_losses(model, flat, batches, batch_statistics=batch_statistics).mean()

    return torch.autograd.functional.hessian(loss, here.parameters.double())


def largest(matrix):
    values = torch.linalg.eigvalsh(matrix)
    return float(values[values.abs().argmax()])


def test_a_copy_stands_at_the_parameters_before_the_update(place):
    _, model, _, here = place
    before = {name: each.clone() for name, each in model.state_dict().items()}
    own = standing(model, here)
    assert torch.equal(torch.nn.utils.parameters_to_vector(own.parameters()), here.parameters)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    for name, buffer in own.named_buffers():
        assert torch.equal(buffer, before[name])


def test_both_batchnorm_modes_equal_their_dense_float64_twins(place):
    experiment, model, training, here = place
    found = SpectralNorms(experiment, model, training)(here)
    batches = [(training.inputs[:6], training.targets[:6])]
    twin = at_start(model, here)
    # The residual is at most 5 % of λ; among 53 eigenvalues the error of λ stays below 1 %.
    assert found["value"] == pytest.approx(largest(dense_hessian(twin, here, batches, batch_statistics=True)), rel=0.01)
    assert found["eval"] == pytest.approx(largest(dense_hessian(twin, here, batches, batch_statistics=False)), rel=0.01)
    assert found["eval"] != pytest.approx(found["value"], rel=0.05)
    assert set(found) == {"value", "residual", "num_products", "eval", "eval_residual", "eval_num_products"}


def test_all_examples_and_the_authors_way_where_they_are_asked_for(place):
    experiment, model, training, here = place
    compared = replace(experiment, spectral_compare_epochs=(1,))
    found = SpectralNorms(compared, model, training)(here)
    clean = sgdwalk.spectral_norm(
        standing(model, here), cross_entropy, (training.inputs, training.targets), batch_size=6
    )
    assert found["whole"] == pytest.approx(clean.value, rel=0.01)
    assert found["whole"] != pytest.approx(found["value"], rel=0.01)
    assert np.isfinite(found["authors"])
    everything = replace(compared, spectral_examples=None)
    found = SpectralNorms(everything, model, training)(here)
    assert found["value"] == pytest.approx(clean.value, rel=0.01)
    assert "whole" not in found  # it would be the same number


def test_power_iteration_scaled_by_the_largest_entry_equals_its_dense_twin(place):
    _, model, training, here = place
    own = standing(model, here)
    batches = [(training.inputs[:6], training.targets[:6]), (training.inputs[6:], training.targets[6:])]
    matrix = dense_hessian(at_start(model, here), here, batches, batch_statistics=True)
    vector = torch.randn(len(matrix), generator=torch.Generator().manual_seed(5)).double()
    for _ in range(4):
        product = matrix @ vector
        scale = product[product.abs().argmax()]
        vector = product / scale
    found = authors_spectral_norm(own, iter([batches] * 4), 5)
    assert found == pytest.approx(float(scale), rel=1e-3)  # float32 against float64, four products on


class Diagonal:
    """A matrix known on paper in place of a Hessian."""

    def __init__(self, *values):
        self.values = torch.tensor(values)

    def __matmul__(self, vector):
        return self.values * vector

    def release(self):
        pass


def test_the_authors_way_keeps_the_sign_and_tells_where_there_is_nothing(monkeypatch):
    model = torch.nn.Linear(1, 2, bias=False)
    monkeypatch.setattr(sgdwalk, "hessian", lambda *arguments: Diagonal(-5.0, 1.0))
    assert authors_spectral_norm(model, iter([[]] * 15), 0) == pytest.approx(-5.0)
    for values in ((0.0, 0.0), (float("nan"), 1.0)):
        monkeypatch.setattr(sgdwalk, "hessian", lambda *arguments, values=values: Diagonal(*values))
        assert isinstance(authors_spectral_norm(model, iter([[]] * 15), 0), sgdwalk.Undefined)


def test_the_authors_images_come_in_another_order_at_each_iteration(place):
    experiment, model, training, _ = place
    iterations = list(SpectralNorms(experiment, model, training)._fresh(3, 12))
    assert len(iterations) == spectral.AUTHORS_ITERATIONS
    for batches in iterations:
        assert sorted(torch.cat([inputs for inputs, _ in batches])[:, 0]) == sorted(training.inputs[:, 0])
    assert not torch.equal(iterations[0][0][0], iterations[1][0][0])
    again = next(SpectralNorms(experiment, model, training)._fresh(3, 12))
    assert torch.equal(again[0][0], iterations[0][0][0])


def test_what_has_not_converged_is_undefined_and_no_place_to_start_from(place, monkeypatch):
    experiment, model, training, here = place
    measure = SpectralNorms(experiment, model, training)
    assert isinstance(measure(here)["value"], float)
    assert set(measure.state_dict()) == {"train", "eval"}
    real = sgdwalk.spectral_norm

    def short(*arguments, **options):
        found = real(*arguments, **options)
        lost = options["batchnorm"] == "eval"
        return dataclasses.replace(found, converged=False, reason="200 products") if lost else found

    monkeypatch.setattr(sgdwalk, "spectral_norm", short)
    found = measure(here)
    assert isinstance(found["value"], float)
    assert isinstance(found["eval"], sgdwalk.Undefined)
    assert found["eval"].reason.startswith("200 products; the best value is ")
    assert set(measure.state_dict()) == {"train"}


def test_equation_3_equals_its_float64_twins(place):
    experiment, model, training, here = place
    found = Decomposition(experiment, model, training)(here)
    batches = [(training.inputs[:6], training.targets[:6]), (training.inputs[6:], training.targets[6:])]
    twin = at_start(model, here)
    H = dense_hessian(twin, here, batches, batch_statistics=True)

    def losses(flat):
        return example_losses(twin, flat, batches, batch_statistics=True)

    gradients = torch.autograd.functional.jacobian(losses, here.parameters.double())
    C = gradients.T @ gradients / 12
    probabilities = torch.exp(-losses(here.parameters.double()))

    def weighted(flat):  # -(1/N) Σ p_i / p_i(θ_t), whose Hessian is -(1/N) Σ (1/p_i) ∂²p_i/∂θ² at θ_t
        return -(torch.exp(-losses(flat)) / probabilities).mean()

    R = torch.autograd.functional.hessian(weighted, here.parameters.double())
    torch.testing.assert_close(H, C + R)
    norms = {"hessian": H, "second_moment": C, "residual": R}
    for name, matrix in norms.items():
        assert float(found[name]) == pytest.approx(abs(largest(matrix)), rel=1e-9)
        assert float(found[f"{name}_frobenius"]) == pytest.approx(float(matrix.norm()), rel=1e-9)
    assert float(found["identity"]) < 1e-13
    assert found["identity_running"] < 1e-13
    h, c = (torch.linalg.eigh(matrix)[1][:, -10:] for matrix in (H, C))
    assert found["overlap"] == pytest.approx(float((h.T @ c).square().sum()) / 10, rel=1e-6)
    assert found["chance"] == pytest.approx(10 / len(H))
    assert float(found["angle"]) == pytest.approx(float(torch.arccos((h[:, -1] @ c[:, -1]).abs())), rel=1e-6)
    values, vectors = torch.linalg.eigh(H)
    chosen = values >= 1e-3 * values.max()
    along = torch.einsum("di,de,ei->i", vectors, C, vectors)[chosen]
    slope = np.polyfit(values[chosen].log().numpy(), along.log().numpy(), 1)[0]
    assert found["exponent"] == pytest.approx(slope, rel=1e-6)
    assert found["exponent_pairs"] == int(chosen.sum())
    assert found["loss"] == pytest.approx(float(-probabilities.log().mean()), rel=1e-9)
    assert 0 <= found["accuracy"] <= 1


def test_a_broken_identity_shows(place, monkeypatch):
    experiment, model, training, here = place
    measure = Decomposition(experiment, model, training)
    monkeypatch.setattr(
        "sgdwalk.paper.decomposition.MATRICES", (sgdwalk.hessian, sgdwalk.gradient_second_moment, sgdwalk.gauss_newton)
    )
    found = measure(here)
    assert float(found["identity"]) > 0.01
    assert found["identity_running"] > 0.01


def test_measuring_changes_no_update_and_goes_on_bitwise(tmp_path):
    split = data.load(PLAIN)
    assert train(PLAIN, split, tmp_path / "plain", strict=True)
    assert train(MEASURED, split, tmp_path / "measured", strict=True)
    plain, measured = (sgdwalk.open_run(tmp_path / name) for name in ("plain", "measured"))
    cheap = ["batch_loss", "cosine", "distance", "grad_norm", "param_norm"]
    pd.testing.assert_frame_equal(plain.steps[cheap], measured.steps[cheap], check_exact=True)
    pd.testing.assert_frame_equal(plain.epochs, measured.epochs, check_exact=True)
    assert measured.steps.index[measured.steps["spectral_norm"].notna()].tolist() == [3, 7, 11]
    assert measured.steps.index[measured.steps["spectral_norm_authors"].notna()].tolist() == [7]
    assert measured.steps.index[measured.steps["equation3_identity"].notna()].tolist() == [11]

    for number, last in enumerate((4, 9)):
        done = [0]

        def progress(num_done, num_updates, fraction, done=done):
            done[0] = num_done

        stopped = tmp_path / "stopped"
        assert not train(
            MEASURED,
            split,
            stopped,
            resume=number > 0,
            strict=True,
            stop=lambda done=done, last=last: done[0] >= last,
            progress=progress,
        )
    assert train(MEASURED, split, tmp_path / "stopped", resume=True, strict=True)
    pd.testing.assert_frame_equal(sgdwalk.open_run(tmp_path / "stopped").steps, measured.steps, check_exact=True)
