"""The training loop: gradients against slow twins, validation, stopping, going on, what is refused."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

import sgdwalk
from sgdwalk.paper import data, record
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.models import MLP
from sgdwalk.paper.train import Minibatches, WorkDone, random_state, seed_for, set_random_state, train, validate

SMALL = {"num_train": 120, "hidden": (7, 5), "batch_size": 30, "num_points": 2}


def parameters_before(folder, step):
    """θ_t as the checkpoint before update t has it, as one vector."""
    found, state = sgdwalk.Checkpoints(folder / "checkpoints").load_newest()
    assert found == step
    names = [name for name in state["model"] if name.rpartition(".")[2] in ("weight", "bias")]
    return torch.cat([state["model"][name].flatten() for name in names])


def trained(folder, experiment, **options):
    assert train(experiment, data.load(experiment), folder, **options)
    return sgdwalk.open_run(folder)


@pytest.mark.parametrize(("reading", "factor"), [("mean", 1), ("sum", 9)])
def test_gd_steps_down_the_mean_gradient_or_nine_times_it(tmp_path, reading, factor):
    experiment = Experiment(algorithm="gd", gd_gradient=reading, learning_rate=0.2, epochs=1, **SMALL)
    trained(tmp_path / "run", experiment)

    torch.manual_seed(seed_for(0, "initial weights"))
    model = MLP((64, 7, 5, 10)).double()
    training, _ = data.load(experiment)
    with sgdwalk.watch(model, None, cross_entropy, (training.inputs.double(), training.targets), batch_size=30) as walk:
        losses = [cross_entropy(model(inputs), targets) for inputs, targets in walk.batches()]
    mean_loss = sum(losses) / len(losses)
    gradients = torch.autograd.grad(mean_loss, list(model.parameters()))
    expected = [p.detach() - 0.2 * factor * gradient for p, gradient in zip(model.parameters(), gradients, strict=True)]
    torch.testing.assert_close(
        parameters_before(tmp_path / "run", 1).double(),
        torch.cat([p.flatten() for p in expected]),
        rtol=2e-5,
        atol=2e-6,  # float32 against float64
    )
    run = sgdwalk.open_run(tmp_path / "run")
    assert run.steps["batch_loss"].item() == pytest.approx(mean_loss.item(), rel=1e-6)
    assert run.steps["loss"].item() == pytest.approx(mean_loss.item(), rel=1e-6)


def test_the_loss_that_gd_accumulates_is_the_full_loss(tmp_path):
    steps = trained(tmp_path / "run", Experiment(algorithm="gd", epochs=5, **SMALL)).steps
    np.testing.assert_allclose(steps["batch_loss"], steps["loss"], rtol=1e-6)
    assert steps["epoch"].tolist() == [1, 2, 3, 4, 5]


def test_sgd_takes_the_gradient_of_its_mini_batch(tmp_path):
    experiment = Experiment(learning_rate=0.2, momentum=0.5, weight_decay=0.01, epochs=1, steps=1, **SMALL)
    trained(tmp_path / "run", experiment)
    torch.manual_seed(seed_for(0, "initial weights"))
    model = MLP((64, 7, 5, 10)).double()
    training, _ = data.load(experiment)
    rows = Minibatches(experiment).rows(0, 0)
    loss = cross_entropy(model(training.inputs[rows].double()), training.targets[rows])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = [p - 0.2 * (g + 0.01 * p) for p, g in zip(model.parameters(), gradients, strict=True)]
    torch.testing.assert_close(
        parameters_before(tmp_path / "run", 1).double(),
        torch.cat([p.detach().flatten() for p in expected]),
        rtol=2e-5,
        atol=2e-6,  # float32 against float64
    )
    assert sgdwalk.open_run(tmp_path / "run").steps["batch_loss"].item() == pytest.approx(loss.item(), rel=1e-6)


def test_an_epochs_mini_batches_hold_each_example_once_and_are_others_in_the_next():
    experiment = Experiment(**SMALL)
    first, second = (torch.cat([Minibatches(experiment).rows(epoch, k) for k in range(4)]) for epoch in (0, 1))
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(120))
    assert first.tolist() != second.tolist()
    assert first.tolist() != torch.cat([Minibatches(Experiment(seed=1, **SMALL)).rows(0, k) for k in range(4)]).tolist()


def test_mini_batches_are_a_function_of_seed_and_epoch_alone():
    experiment = Experiment(**SMALL)
    used = Minibatches(experiment)
    torch.manual_seed(5)
    _ = used.rows(0, 3), used.rows(2, 1)
    assert used.rows(1, 2).tolist() == Minibatches(experiment).rows(1, 2).tolist()


def test_validation_uses_running_statistics_and_leaves_no_trace():
    torch.manual_seed(0)
    model = MLP((4, 3, 10), dropout=0.5)
    inputs, targets = torch.randn(50, 4), torch.randint(0, 10, (50,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    loss, accuracy = validate(model, data.Split(inputs, targets))
    assert model.training
    assert torch.equal(torch.get_rng_state(), stream)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    outputs = model.eval()(inputs)
    assert loss == cross_entropy(outputs, targets).item()
    assert accuracy == (outputs.argmax(1) == targets).sum().item() / 50


def test_validation_is_noted_once_an_epoch_and_at_the_end(tmp_path):
    epochs = trained(tmp_path / "run", Experiment(epochs=3, steps=9, **SMALL)).epochs
    assert epochs.index.tolist() == [1, 2, 3]
    assert epochs["validation_accuracy"].between(0, 1).all()
    assert epochs["validation_loss"].gt(0).all()


def test_watching_changes_no_weight(tmp_path):
    watched, unwatched = (
        Experiment(epochs=3, dropout=0.3, momentum=0.9, learning_rate=0.3, watch=watch, **SMALL)
        for watch in (True, False)
    )
    steps = trained(tmp_path / "watched", watched).steps
    bare = trained(tmp_path / "bare", unwatched).steps
    assert torch.equal(parameters_before(tmp_path / "watched", 12), parameters_before(tmp_path / "bare", 12))
    cheap = ["batch_loss", "cosine", "distance", "next_distance", "grad_norm", "param_norm", "update_norm"]
    pd.testing.assert_frame_equal(steps[cheap], bare[cheap], check_exact=True)
    assert steps["height"].notna().all()
    assert bare["height"].isna().all()


@pytest.mark.parametrize("stops", [(0,), (5,), (0, 0, 7), (3, 4, 11)], ids=str)
def test_a_training_that_was_stopped_goes_on_bitwise(tmp_path, stops):
    experiment = Experiment(epochs=3, dropout=0.3, momentum=0.9, learning_rate=0.3, **SMALL)
    whole = trained(tmp_path / "whole", experiment)
    for number, last in enumerate(stops):
        performed = [0]

        def progress(num_done, num_updates, fraction, performed=performed):
            performed[0] = num_done

        finished = train(
            experiment,
            data.load(experiment),
            tmp_path / "stopped",
            resume=number > 0,
            stop=lambda performed=performed, last=last: performed[0] >= last,
            progress=progress,
        )
        assert not finished
        assert not record.is_finished(sgdwalk.open_run(tmp_path / "stopped"))
        torch.rand(3)  # whatever happens to the random streams in between
    resumed = trained(tmp_path / "stopped", experiment, resume=True)
    assert record.is_finished(resumed)
    for table in ("steps", "segments", "epochs"):
        pd.testing.assert_frame_equal(getattr(resumed, table), getattr(whole, table), check_exact=True)
    assert torch.equal(parameters_before(tmp_path / "stopped", 12), parameters_before(tmp_path / "whole", 12))


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path):
    experiment = Experiment(epochs=1, **SMALL)
    trained(tmp_path / "run", experiment)
    with pytest.raises(sgdwalk.RunFolderError, match="holds a run already"):
        trained(tmp_path / "run", experiment)


def test_resuming_with_other_settings_is_refused(tmp_path):
    trained(tmp_path / "run", Experiment(epochs=1, **SMALL))
    with pytest.raises(sgdwalk.ResumeError, match="learning_rate"):
        trained(tmp_path / "run", Experiment(epochs=1, learning_rate=0.2, **SMALL), resume=True)


def test_resuming_on_other_data_is_refused(tmp_path):
    experiment = Experiment(epochs=1, **SMALL)
    trained(tmp_path / "run", experiment)
    training, validation = data.load(experiment)
    training.inputs[3, 5] += 2**-10
    with pytest.raises(sgdwalk.ResumeError, match="data"):
        train(experiment, (training, validation), tmp_path / "run", resume=True)


def test_resuming_with_other_threads_is_told_and_recorded(tmp_path):
    experiment = Experiment(epochs=2, **SMALL)
    whole = trained(tmp_path / "run", experiment)
    before = torch.get_num_threads()
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            trained(tmp_path / "run", experiment, resume=True, execution=Execution(num_threads=2))
    finally:
        torch.set_num_threads(before)
    events = sgdwalk.open_run(tmp_path / "run").events
    assert events["message"].str.contains("num_threads").sum() == 1
    assert len(whole.events) == 0


def test_checkpoints_are_made_as_often_as_asked(tmp_path):
    experiment = Experiment(epochs=2, **SMALL)
    saved = []

    class Spy(sgdwalk.Checkpoints):
        def save(self, step, state):
            saved.append(step)
            return super().save(step, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sgdwalk, "Checkpoints", Spy)
        trained(tmp_path / "run", experiment, execution=Execution(checkpoint_every=3))
    assert saved == [0, 3, 6, 8]


def test_progress_comes_in_order_and_ends_at_one(tmp_path):
    told = []
    trained(tmp_path / "run", Experiment(epochs=2, watch_first=1, **SMALL), progress=lambda *each: told.append(each))
    assert [each[:2] for each in told] == [(t, 8) for t in range(1, 9)]
    fractions = [each[2] for each in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    # A watched update costs 3/4 + 2 passes over the data, another 3/4; a validation, after each epoch, 297 / 120.
    assert fractions[0] == pytest.approx(2.75 / (2 * 2.75 + 6 * 0.75 + 2 * 297 / 120))


def test_work_done_starts_where_a_resumed_training_does():
    experiment = Experiment(epochs=2, **SMALL)
    validation = 297 / 120  # after each epoch of four updates
    assert WorkDone(experiment, 4).after(4) == pytest.approx((5 * 2.75 + validation) / (8 * 2.75 + 2 * validation))


def test_random_streams_are_put_back():
    import random

    state = random_state()
    drawn = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn  # noqa: NPY002


def test_seeds_differ_by_seed_purpose_and_index():
    seeds = {seed_for(seed, purpose, index) for seed in (0, 1) for purpose in ("a", "b") for index in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_curvature_is_measured_where_it_is_asked_for(tmp_path):
    """The sum of nine mean gradients has the stability of a learning rate nine times as large."""
    for algorithm, gd_gradient, threshold in (("sgd", "mean", 20.0), ("gd", "mean", 20.0), ("gd", "sum", 20.0 / 9)):
        asked = Experiment(algorithm=algorithm, gd_gradient=gd_gradient, steps=5, epochs=5, curvature_every=2, **SMALL)
        steps = trained(tmp_path / f"{algorithm}-{gd_gradient}", asked).steps
        assert steps["spectral_norm"].notna().tolist() == [True, False, True, False, True]
        assert steps["spectral_norm_threshold"].dropna().tolist() == pytest.approx([threshold] * 3)
        assert ("batch_sharpness" in steps) == (algorithm == "sgd")
