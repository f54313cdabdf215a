"""Isotropic noise in a training, and trainings that go on from where another ended."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

import sgdwalk
from sgdwalk.paper import data
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.figure import Figure
from sgdwalk.paper.models import MLP
from sgdwalk.paper.run import missing_trainings
from sgdwalk.paper.seeds import seed_for
from sgdwalk.paper.sweep import train_all, training_name
from sgdwalk.paper.train import train

GD = Experiment(num_train=120, hidden=(7, 5), batch_size=10, algorithm="gd", epochs=6, num_points=2, watch=False)
NOISY = replace(GD, noise_factor=0.1)


def trained(folder, experiment, **options):
    assert train(experiment, data.load(experiment), folder, **options)
    return sgdwalk.open_run(folder)


def initial_model():
    torch.manual_seed(seed_for(0, "initial weights"))
    return MLP((64, 7, 5, 10))


def weights(folder):
    _, state = sgdwalk.Checkpoints(folder / "checkpoints").load_newest()
    return state["model"]


def vector(model):
    return torch.cat([value.double().flatten() for name, value in model.items() if name.endswith(("weight", "bias"))])


def test_the_noise_is_a_share_of_the_largest_variance_between_nine_mini_batches(tmp_path):
    run = trained(tmp_path / "run", NOISY)
    noise = run.info["config"]["isotropic_noise"]
    model = initial_model().double()
    training, _ = data.load(NOISY)
    inputs, targets = training.inputs.double(), training.targets
    permutation = torch.from_numpy(np.random.default_rng(0).permutation(120))
    gradients = []
    for rows in permutation[:117].reshape(9, 13):
        loss = cross_entropy(model(inputs[rows]), targets[rows])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    variances = 13 * torch.stack(gradients).var(dim=0, correction=0)
    authors, less_biased = noise["authors"], noise["less_biased"]
    assert (authors["batch_size"], authors["num_batches"], authors["divisor"]) == (13, 9, "K")
    assert (less_biased["batch_size"], less_biased["num_batches"], less_biased["divisor"]) == (4, 30, "K-1")
    assert less_biased["bias"] < authors["bias"]
    assert authors["value"] == pytest.approx(variances.max().item(), rel=1e-4)  # float32 against float64
    assert noise["sigma"] == pytest.approx((0.1 * authors["value"]) ** 0.5, rel=1e-12)
    other = trained(tmp_path / "other", replace(NOISY, noise_reading="std")).info["config"]["isotropic_noise"]
    assert other["sigma"] == pytest.approx(0.1 * authors["value"], rel=1e-12)


def test_each_update_has_its_noise_on_top_of_the_gradient(tmp_path):
    one = replace(NOISY, epochs=1)
    run = trained(tmp_path / "noisy", one)
    trained(tmp_path / "bare", replace(one, noise_factor=0.0))
    added = (vector(weights(tmp_path / "bare")) - vector(weights(tmp_path / "noisy"))) / 0.1
    sigma = run.info["config"]["isotropic_noise"]["sigma"]
    assert added.std().item() == pytest.approx(sigma, rel=0.1)  # of 599 numbers: 1 / sqrt(2 · 599) = 0.03
    assert abs(added.mean().item()) < 4 * sigma / 599**0.5


def test_a_noisy_training_that_was_stopped_goes_on_bitwise(tmp_path):
    whole = trained(tmp_path / "whole", NOISY)
    done = [0]
    assert not train(
        NOISY,
        data.load(NOISY),
        tmp_path / "stopped",
        stop=lambda: done[0] >= 3,
        progress=lambda n, *_: done.__setitem__(0, n),
    )
    resumed = trained(tmp_path / "stopped", NOISY, resume=True)
    pd.testing.assert_frame_equal(resumed.steps, whole.steps, check_exact=True)
    assert torch.equal(vector(weights(tmp_path / "stopped")), vector(weights(tmp_path / "whole")))


def test_validation_may_be_left_to_every_third_epoch_and_the_end(tmp_path):
    assert trained(tmp_path / "run", replace(GD, epochs=7, validate_every=3)).epochs.index.tolist() == [3, 6, 7]


def test_a_training_goes_on_from_the_weights_of_another_as_a_new_walk(tmp_path):
    trained(tmp_path / "first", NOISY)
    after = replace(GD, after=NOISY)
    steps = trained(tmp_path / "second", after, after=tmp_path / "first").steps
    model = MLP((64, 7, 5, 10))
    model.load_state_dict(weights(tmp_path / "first"))
    assert steps["param_norm"].iloc[0] == pytest.approx(vector(model.state_dict()).norm().item(), rel=1e-6)
    assert steps["distance"].iloc[0] == 0.0
    training, _ = data.load(GD)
    with sgdwalk.watch(model, None, cross_entropy, (training.inputs, training.targets), batch_size=10) as walk:
        losses = [cross_entropy(model(inputs), targets).item() for inputs, targets in walk.batches()]
    assert steps["batch_loss"].iloc[0] == pytest.approx(np.mean(losses), rel=1e-6)


def test_it_has_noise_of_its_own_as_strong_as_that_before(tmp_path):
    still = replace(NOISY, learning_rate=0.0, epochs=3)
    first = trained(tmp_path / "first", still)
    second = trained(tmp_path / "second", replace(still, after=still), after=tmp_path / "first")
    assert first.info["config"]["isotropic_noise"] == second.info["config"]["isotropic_noise"]
    assert first.steps["grad_norm"].tolist() != second.steps["grad_norm"].tolist()


@pytest.mark.parametrize("there", [False, True], ids=["missing", "unfinished"])
def test_what_is_not_finished_cannot_be_gone_on_from(tmp_path, there):
    if there:
        assert not train(NOISY, data.load(NOISY), tmp_path / "first", stop=lambda: True)
    after = replace(GD, after=NOISY)
    with pytest.raises(
        sgdwalk.InputError, match="is not finished: 0 of its 6 updates" if there else "run that one first"
    ):
        train(after, data.load(after), tmp_path / "second", after=tmp_path / "first")


def test_another_training_is_not_taken_for_the_one_before(tmp_path):
    trained(tmp_path / "first", GD)
    after = replace(GD, after=NOISY)
    with pytest.raises(sgdwalk.ResumeError, match=r"noise_factor: 0\.0 in the run, 0\.1 now"):
        train(after, data.load(after), tmp_path / "second", after=tmp_path / "first")


def test_what_goes_on_from_another_waits_for_it(tmp_path):
    first = replace(NOISY, epochs=300)
    after = [replace(GD, seed=0, after=first), replace(GD, algorithm="sgd", epochs=1, after=first)]
    started = {}
    assert train_all(
        [*after, first], tmp_path, jobs=3, update=lambda name, *_: started.setdefault(name, time.monotonic())
    )
    assert next(iter(started)) == training_name(first)
    runs = [sgdwalk.open_run(tmp_path / training_name(each)) for each in (first, *after)]
    ended = runs[0].steps["param_norm"].iloc[-1]
    assert all(abs(run.steps["param_norm"].iloc[0] - ended) < 1 for run in runs[1:])


def test_where_that_one_fails_both_are_told(tmp_path):
    after = replace(GD, after=NOISY)
    (tmp_path / training_name(NOISY)).mkdir()
    (tmp_path / training_name(NOISY) / "something").touch()
    with pytest.raises(sgdwalk.SgdwalkError) as caught:
        train_all([after, NOISY], tmp_path, jobs=2)
    assert "2 of 2 trainings failed" in str(caught.value)
    assert "holds no training to go on from" in str(caught.value)


def test_what_is_gone_on_from_is_needed_too_and_counts_with_what_follows(tmp_path):
    after = replace(GD, epochs=400, after=NOISY)
    other = replace(GD, epochs=300, seed=1)
    figure = Figure("fig5", "smoke", "", "", (), {"after": (after,), "other": (other,)}, ())
    assert figure.experiments == [NOISY, after, other]
    assert missing_trainings([figure], tmp_path) == [NOISY, after, other]
