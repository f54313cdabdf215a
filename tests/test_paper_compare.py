"""Segments measured in other ways: what each is, that it changes nothing, and what is read from it."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sgdwalk
import synthetic
from sgdwalk.paper import protocols
from sgdwalk.paper.augmentation import Augmentation
from sgdwalk.paper.compare import Compare
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.data import Split, load
from sgdwalk.paper.models import build
from sgdwalk.paper.seeds import seed_for
from sgdwalk.paper.train import train
from sgdwalk.records import SegmentPoint, StepRecord
from sgdwalk.run import Run

PLAIN = Experiment(num_train=90, hidden=(7, 5), batch_size=30, num_points=4, epochs=2)
COMPARED = replace(PLAIN, compare=("authors", "eval", "subset", "fine"), compare_first=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training without and with comparisons."""
    folder = tmp_path_factory.mktemp("compared")
    for name, experiment in (("plain", PLAIN), ("compared", COMPARED)):
        assert train(experiment, load(experiment), folder / name)
    return {name: sgdwalk.open_run(folder / name) for name in ("plain", "compared")}


def test_comparing_changes_neither_training_nor_segments(runs):
    plain, compared = runs["plain"], runs["compared"]
    pd.testing.assert_frame_equal(plain.segments, compared.segments)
    for column in ("batch_loss", "distance", "cosine", "grad_norm", "param_norm"):
        pd.testing.assert_series_equal(plain.steps[column], compared.steps[column])
    pd.testing.assert_frame_equal(plain.epochs, compared.epochs)


def test_what_is_compared_is_what_was_asked(runs):
    run = runs["compared"]
    assert protocols.losses(run, "clean").shape == (6, 5)
    for name in ("authors", "eval", "quarter", "sixteenth"):
        table = protocols.losses(run, name)
        assert table.index.tolist() == [0, 1, 3, 4]  # the first two of each epoch of three
        assert table.shape[1] == 5
    assert protocols.losses(run, "fine").index.tolist() == [0, 3]  # of these, the first of every five
    assert protocols.losses(run, "fine").shape[1] == 101
    assert protocols.repeated(run).shape == (4, 5)


def test_the_fine_grid_holds_the_coarse_one(runs):
    run = runs["compared"]
    fine = protocols.losses(run, "fine")
    clean = protocols.losses(run, "clean", fine.index)
    np.testing.assert_allclose(fine.to_numpy()[:, ::25], clean.to_numpy(), rtol=2e-6)


class Stand:
    """Where a measure is called: θ_t, a model at θ_{t+1}, and the evaluation batches."""

    def __init__(self, step, start, model, batches):
        self.step, self.parameters, self._model, self.data = step, start, model, batches

    def walked(self):
        return list(self._model.parameters())

    def full_loss(self):
        return self


@pytest.fixture
def stand():
    torch.manual_seed(0)
    experiment = Experiment(
        dataset="cifar10",
        network="resnet",
        blocks=1,
        width_divisor=8,
        augment=True,
        num_train=24,
        batch_size=8,
        num_points=2,
        compare=("authors", "eval", "subset", "fine"),
        compare_first=1,
    )
    training = Split(
        torch.randn(24, 3, 32, 32), torch.randint(10, (24,)), Augmentation(padding=4, black=(-2.0, -2.0, -2.0))
    )
    model = build(experiment, (3, 32, 32), 10)
    start = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]) + 0.05
    model(training.inputs)  # running statistics of their own
    batches = list(zip(training.inputs.split(8), training.targets.split(8), strict=True))
    return experiment, model, training, start, batches


def twin(model, start, alpha, batches, *, batch_statistics):
    """The mean loss at (1 - α) θ_t + α θ_{t+1}, in float64, with a model rebuilt from scratch."""
    other = copy.deepcopy(model).double()
    end = torch.cat([parameter.detach().reshape(-1) for parameter in other.parameters()])
    nn.utils.vector_to_parameters((1 - alpha) * start.double() + alpha * end, other.parameters())
    other.train(batch_statistics)
    with torch.no_grad():
        sums = [cross_entropy(other(x.double()), y, reduction="sum") for x, y in batches]
    return float(sum(sums)) / sum(len(y) for _, y in batches)


def test_every_protocol_equals_its_float64_twin(stand):
    experiment, model, training, start, batches = stand
    found = Compare(experiment, model, training)(Stand(0, start, model, batches))
    for k in (0, 1, 2):
        clean = twin(model, start, k / 2, batches, batch_statistics=True)
        assert found[f"fine_{50 * k}"] == pytest.approx(clean, rel=1e-5)
        running = twin(model, start, k / 2, batches, batch_statistics=False)
        assert found[f"eval_{k}"] == pytest.approx(running, rel=1e-5)
        assert running != pytest.approx(clean, rel=1e-3)
        assert found[f"quarter_{k}"] == pytest.approx(
            twin(model, start, k / 2, batches[:1], batch_statistics=True), rel=1e-5
        )
        generator = torch.Generator().manual_seed(seed_for(0, f"authors' evaluation {k}", 0))
        order = torch.randperm(24, generator=generator)
        fresh = [training.batch(rows, generator) for rows in order.split(8)]
        assert found[f"authors_{k}"] == pytest.approx(twin(model, start, k / 2, fresh, batch_statistics=True), rel=1e-5)


def test_each_evaluation_of_the_authors_is_another_draw(stand):
    experiment, model, training, start, batches = stand
    found = Compare(experiment, model, training)(Stand(0, start, model, batches))
    repeats = [found["authors_0"], *(found[f"authors_repeat_{k}"] for k in range(4))]
    assert len(set(repeats)) == 5
    again = Compare(experiment, model, training)(Stand(0, start, model, batches))
    assert again == found


def test_comparing_leaves_the_model_as_it_is(stand):
    experiment, model, training, start, batches = stand
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Compare(experiment, model, training)(Stand(0, start, model, batches))
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_crops_and_flips_are_pieces_of_the_padded_image():
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8) + 1
    augmentation = Augmentation(padding=2, black=(-1.0, -2.0, -3.0))
    padded = torch.tensor([-1.0, -2.0, -3.0])[:, None, None].expand(3, 12, 12).clone()
    seen = set()
    for seed in range(60):
        out = augmentation(images, torch.Generator().manual_seed(seed))
        for image, result in zip(images, out, strict=True):
            whole = padded.clone()
            whole[:, 2:10, 2:10] = image
            places = [
                (top, left, flip)
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
                if torch.equal(
                    result,
                    (
                        whole[:, top : top + 8, left : left + 8].flip(2)
                        if flip
                        else whole[:, top : top + 8, left : left + 8]
                    ),
                )
            ]
            assert len(places) == 1
            seen.add(places[0])
    assert len(seen) > 40  # of 50 places, all are drawn sooner or later
    assert {flip for *_, flip in seen} == {False, True}


def compared_run(clean, authors, repeats, epoch=1):
    """A run of given losses along its segments by both protocols."""
    records = []
    for t, (points, noisy, again) in enumerate(zip(clean, authors, repeats, strict=True)):
        measures = {f"compare_authors_{k}": value for k, value in enumerate(noisy)}
        measures |= {f"compare_authors_repeat_{k}": value for k, value in enumerate(again)}
        alphas = np.linspace(0, 1, len(points))
        segment = tuple(SegmentPoint(float(a), float(value)) for a, value in zip(alphas, points, strict=True))
        records.append(StepRecord(t, epoch=epoch, learning_rate=0.1, segment=segment, measures=measures))
    return Run(synthetic.settings("compared"), records)


def test_noise_of_the_evaluation_is_told_from_what_is_there():
    rng = np.random.default_rng(0)
    alphas = np.linspace(0, 1, 11)
    clean = np.tile(1 + 0.01 * (alphas - 0.5) ** 2, (40, 1))  # height 0.0025, no barrier anywhere
    deviation = 0.01
    authors = clean + deviation * rng.standard_normal(clean.shape)
    repeats = clean[:, :1] + deviation * rng.standard_normal((40, 4))
    (row,) = protocols.authors_noise(compared_run(clean, authors, repeats), [1]).itertuples()
    assert row.deviation == pytest.approx(deviation, rel=0.15)  # five evaluations of 40 updates: 160 degrees of freedom
    assert row.clean_barriers == 0
    assert row.clean_height == pytest.approx(0.0025)
    assert row.expected_barriers_low <= row.authors_barriers <= row.expected_barriers_high
    assert row.expected_barriers > 20
    assert row.authors_height == pytest.approx(row.expected_height, rel=0.2)
    assert row.expected_height > 3 * row.clean_height
    assert row.full_deviation == pytest.approx(row.deviation * (1797 / 45_000) ** 0.5)
    assert row.full_barriers < row.expected_barriers


def test_without_noise_nothing_is_expected_beyond_what_is_there():
    alphas = np.linspace(0, 1, 11)
    clean = np.array([1 + 0.01 * (alphas - 0.5) ** 2, 1 + 0.1 * np.sin(np.pi * alphas)])
    (row,) = protocols.authors_noise(compared_run(clean, clean, clean[:, :1].repeat(4, axis=1)), [1]).itertuples()
    assert row.deviation == 0
    assert (row.clean_barriers, row.authors_barriers, row.expected_barriers) == (1, 1, 1)
    assert row.expected_height == pytest.approx(row.clean_height)


def test_a_finer_grid_finds_a_narrow_barrier_and_the_true_floor():
    alphas = np.linspace(0, 1, 101)
    losses = (
        1
        - 0.1 * alphas
        - 0.5 * np.exp(-(((alphas - 0.55) / 0.01) ** 2))
        + 0.3 * np.exp(-(((alphas - 0.25) / 0.01) ** 2))
    )
    records = [StepRecord(0, epoch=1, measures={f"compare_fine_{k}": value for k, value in enumerate(losses)})]
    (row,) = protocols.finer_grid(Run(synthetic.settings("fine"), records), [1]).itertuples()
    assert (row.coarse_barriers, row.fine_barriers) == (0, 1)
    floor = 1 - 0.055 - 0.5
    height = (1 + 0.9 - 2 * floor) / 2
    assert row.fine_height == pytest.approx(height, rel=1e-6)
    assert row.floor_gap == pytest.approx((0.9 - floor) / height, rel=1e-6)


def test_parabolas_of_a_quadratic_are_exact():
    run = synthetic.gradient_descent(30)
    (row,) = protocols.parabolas([run], [None]).itertuples()
    assert row.r2 == pytest.approx(1, abs=1e-9)
    steps = run.steps
    assert row.alpha_star == pytest.approx(steps["alpha_star"].median())
    assert row.line_search_rate == pytest.approx(0.1 * steps["alpha_star"].median())
    assert row.beyond_minimum == pytest.approx((steps["alpha_star"] < 1).mean())


def test_running_statistics_and_subsets_stand_beside_the_clean_numbers(runs):
    table = protocols.batchnorm_and_examples(runs["compared"], [1, 2])
    assert table["updates"].tolist() == [2, 2]
    clean = protocols.losses(runs["compared"], "clean", [0, 1])
    assert table["clean_height"][0] == pytest.approx(sgdwalk.valley.height(clean.to_numpy()).mean())
    assert table["eval_height"].notna().all()
