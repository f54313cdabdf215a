"""What others may rely on: each promise of watch() and of a walk, beside the loops and traps of their own files."""

from __future__ import annotations

import gc
import io
import itertools
import json
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

import nets
import sgdwalk
from nets import FLOAT32, FLOAT64, Trace, Twin

F64 = torch.float64

STEP_COLUMNS = [
    "epoch",
    "learning_rate",
    "batch_loss",
    "loss",
    "next_loss",
    "floor",
    "floor_alpha",
    "height",
    "barrier",
    "barrier_height",
    "alpha_star",
    "cosine",
    "distance",
    "next_distance",
    "grad_norm",
    "param_norm",
    "update_norm",
    "loss_noise",
    "barrier_significant",
    "alpha_star_r2",
]


def data64(num_examples: int = 40) -> nets.Batch:
    return nets.classification(num_examples, dtype=F64)


def steps_of(model: nn.Module, optimizer: Any, num_updates: int, first: int = 0) -> Iterator[int]:
    """Performs the updates one by one; each is done when its number is yielded."""
    inputs, targets = data64()
    for step in range(first, first + num_updates):
        batch = slice(8 * (step % 5), 8 * (step % 5) + 8)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
        yield step


def train(model: nn.Module, optimizer: Any, num_updates: int, first: int = 0) -> None:
    for _ in steps_of(model, optimizer, num_updates, first):
        pass


def watched(num_updates: int = 4, **watch: Any) -> tuple[Any, nn.Module]:
    """The walk of a few SGD updates with momentum, closed; and its model."""
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.5)
    data = watch.pop("data", data64())
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, **{"on_error": "raise", **watch}) as walk:
        train(model, optimizer, num_updates)
    return walk, model


def frames_equal(actual: Any, expected: Any) -> None:
    for name in ("steps", "segments", "epochs", "events"):
        pd.testing.assert_frame_equal(getattr(actual, name), getattr(expected, name), check_exact=True)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_tables_have_the_columns_and_types_of_the_contract():
    run = watched()[0].run
    assert [c for c in run.steps.columns if not c.endswith("_reason")] == STEP_COLUMNS
    assert run.steps.index.name == "step"
    for column in STEP_COLUMNS:
        if column in ("barrier", "barrier_significant"):
            assert run.steps[column].dtype == "boolean", column
        elif column != "epoch":
            assert run.steps[column].dtype == "float64", column
    assert list(run.segments.columns) == ["step", "alpha", "loss", "kind", "halfwidth"]
    assert len(run.segments) == 44
    assert list(run.segments["alpha"][:11]) == nets.ALPHAS
    assert set(run.segments["kind"]) == {"exact"}
    assert (run.segments["halfwidth"] == 0).all()


def test_the_first_cosine_is_undefined_and_its_reason_is_told():
    steps = watched()[0].run.steps
    assert math.isnan(steps["cosine"][0])
    assert isinstance(steps["cosine_reason"][0], str)
    assert len(steps["cosine_reason"][0]) > 5
    assert steps["cosine"][1:].notna().all()
    assert steps["cosine_reason"][1:].isna().all()


def test_derived_columns_are_those_of_the_definitions():
    run = watched()[0].run
    for step in run.steps.index:
        losses = list(run.segments[run.segments["step"] == step]["loss"])
        row = run.steps.loc[step]
        assert (row["loss"], row["next_loss"]) == (losses[0], losses[-1])
        assert row["floor"] == min(losses)
        assert row["floor_alpha"] == nets.ALPHAS[losses.index(min(losses))]
        nets.assert_close(row["height"], (losses[0] + losses[-1] - 2 * min(losses)) / 2, rtol=1e-12, atol=1e-15)
        barrier_height = max(losses[1:-1]) - max(losses[0], losses[-1])
        nets.assert_close(row["barrier_height"], barrier_height, rtol=1e-12, atol=1e-15)
        assert row["barrier"] == (barrier_height > 0)


def test_loss_noise_is_measured_at_the_first_watched_segment():
    """In float64 L_used is L_float64; in float32 the noise is rounding, below 1e-6 here."""
    assert watched()[0].run.steps["loss_noise"][0] == 0.0
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.5)
    inputs, targets = nets.classification(40)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets), when=sgdwalk.every(2)) as walk:
        for _ in range(4):
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    noise = walk.run.steps["loss_noise"]
    assert 0 < noise[0] < 1e-6
    assert noise[2] == noise[0], "carried forward over watched steps"


def test_views_stay_readable_after_close_and_are_copies():
    walk, _ = watched()
    shown = walk.run.steps
    shown.loc[0, "loss"] = -1.0
    assert walk.run.steps["loss"][0] > 0
    walk.close()
    assert len(walk.run.steps) == 4
    assert walk.run.info["settings"]["num_points"] == 10


def test_the_view_grows_while_training():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data64()) as walk:
        assert len(walk.run.steps) == 0
        for step in steps_of(model, optimizer, 3):
            assert list(walk.run.steps.index) == list(range(step + 1))
            assert walk.run.steps["loss"].notna().all()


def test_info_tells_the_settings_the_data_and_what_made_the_numbers():
    walk, model = watched(num_points=5, batch_size=16, partition_seed=3, config={"note": "mine"}, name="a name")
    info = walk.run.info
    assert walk.run.name == info["name"] == "a name"
    assert info["config"] == {"note": "mine"}
    settings = info["settings"]
    expected = {"num_points": 5, "batch_size": 16, "partition_seed": 3, "batchnorm": "train", "method": "exact"}
    expected |= {"precision": "float32", "evaluate_on": "copy", "when": "every(1)", "steps_per_epoch": None}
    assert {key: settings[key] for key in expected} == expected
    assert info["data"]["num_examples"] == 40
    assert info["data"]["num_batches"] == 3
    assert len(info["data"]["fingerprint"]) >= 16
    assert info["model"]["num_parameters"] == sum(p.numel() for p in model.parameters())
    (group,) = info["optimizers"][0]["groups"]
    assert (group["learning_rate"], group["momentum"]) == (0.5, 0.5)
    for key in ("python", "torch", "numpy", "platform", "device", "num_threads", "argv"):
        assert info["provenance"][key], key
    json.dumps(info, allow_nan=False)


# --- note -------------------------------------------------------------------------------------------------------------


def test_note_gives_batch_losses_epochs_and_values_of_an_epoch():
    """batch_loss belongs to the update that comes next, epoch counts from 1 from the next update on."""
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data64()) as walk:
        for epoch in (1, 2):
            walk.note(epoch=epoch)
            for step in range(2):
                inputs, targets = data64()
                loss = functional.cross_entropy(model(inputs), targets)
                loss.backward()
                if not (epoch == 2 and step == 1):
                    walk.note(batch_loss=loss if step else loss.item())
                optimizer.step()
            walk.note(validation_accuracy=0.5 * epoch, other=torch.tensor(2.0 * epoch))
        walk.note(validation_accuracy=0.75)  # noted again: overwritten
    steps, epochs = walk.run.steps, walk.run.epochs
    assert list(steps["epoch"]) == [1, 1, 2, 2]
    assert steps["batch_loss"][:3].notna().all()
    assert math.isnan(steps["batch_loss"][3]), "a loss noted for one update is not taken for the next"
    nets.assert_close(steps["batch_loss"][:3], steps["loss"][:3], **FLOAT64)
    assert list(epochs.index) == [1, 2]
    assert epochs.index.name == "epoch"
    assert list(epochs["validation_accuracy"]) == [0.5, 0.75]
    assert list(epochs["other"]) == [2.0, 4.0]


def test_epochs_are_undefined_where_nobody_says():
    steps = watched()[0].run.steps
    assert steps["epoch"].isna().all()
    assert steps["batch_loss"].isna().all()


def test_steps_per_epoch_gives_the_epoch():
    steps = watched(num_updates=5, steps_per_epoch=2)[0].run.steps
    assert list(steps["epoch"]) == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (sgdwalk.every(3), [0, 3, 6]),
        (sgdwalk.first_steps(2, epochs=(1, 3)), [0, 1, 6, 7]),
        (sgdwalk.in_epochs(2), [3, 4, 5]),
        (sgdwalk.every(4) | sgdwalk.first_steps(2), [0, 1, 4]),
        (sgdwalk.every(2) & sgdwalk.in_epochs(2, 3), [4, 6]),
        (lambda step: step == 5, [5]),
    ],
    ids=["every", "first_steps", "in_epochs", "or", "and", "lambda"],
)
def test_segments_where_when_says(when, expected):
    run = watched(num_updates=8, steps_per_epoch=3, when=when)[0].run
    assert sorted(set(run.segments["step"])) == expected
    assert len(run.steps) == 8


def test_without_when_there_are_cheap_columns_only():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    trace = Trace(model, optimizer)
    with sgdwalk.watch(model, optimizer, None, None, when=None) as walk:
        inputs, targets = data64()
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            with trace.update():
                optimizer.step()
    nets.assert_follows(walk.run, trace.updates, **FLOAT64)
    assert len(walk.run.segments) == 0
    for column in ("loss", "next_loss", "floor", "height", "alpha_star"):
        assert walk.run.steps[column].isna().all(), column
    assert walk.run.steps["barrier"].isna().all()


# --- data -------------------------------------------------------------------------------------------------------------


def full_loss_of(
    data: Any, model: nn.Module | None = None, loss_fn: Any = functional.cross_entropy, **watch: Any
) -> float:
    """L(θ_0) as a walk records it."""
    model = nets.mlp(dtype=F64) if model is None else model
    optimizer = SGD(model.parameters(), lr=0.0)
    walk = sgdwalk.watch(model, optimizer, loss_fn, data, **{"on_error": "raise", **watch})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    walk.close()
    return walk.run.steps["loss"][0]


def mean_loss(inputs: Tensor, targets: Tensor, model: nn.Module | None = None) -> float:
    with torch.no_grad():
        return functional.cross_entropy((model or nets.mlp(dtype=F64))(inputs), targets).item()


@pytest.mark.parametrize("batch_size", [None, 1, 7, 13, 39, 40, 1000])
def test_tensors_datasets_loaders_and_batches_define_the_same_mean(batch_size):
    inputs, targets = data64()
    expected = mean_loss(inputs, targets)
    dataset = TensorDataset(inputs, targets)
    kinds = [
        (inputs, targets),
        [inputs, targets],
        dataset,
        Plain(dataset),
        DataLoader(dataset, batch_size=9, shuffle=True),
    ]
    for data in kinds:
        nets.assert_close(full_loss_of(data, batch_size=batch_size), expected, **FLOAT64, what=str(type(data)))
    batches = nets.batches_of((inputs, targets), batch_size or 6)
    nets.assert_close(full_loss_of(batches), expected, **FLOAT64)
    nets.assert_close(full_loss_of([list(batch) for batch in batches]), expected, **FLOAT64)


class Plain(torch.utils.data.Dataset):
    """A map-style data set that is nothing but its two methods."""

    def __init__(self, inner: TensorDataset):
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inner[index]


def batchnorm_loss(blocks: list[nets.Batch]) -> float:
    model = nets.mlp(dtype=F64, batchnorm=True)
    return Twin(model, SGD(model.parameters()), blocks).loss(nets.flat(list(model.parameters())), {})


def test_batchnorm_makes_the_partition_matter_and_the_partition_is_as_told():
    """The loader's own batch size by default, batch_size overrides it; None keeps the data's order."""
    data = data64(41)
    loader = DataLoader(TensorDataset(*data), batch_size=8, shuffle=True)

    def model() -> nn.Module:
        return nets.mlp(dtype=F64, batchnorm=True)

    # A last batch of one example joins the batch before.
    in_order = batchnorm_loss(
        [(data[0][low:high], data[1][low:high]) for low, high in itertools.pairwise([0, 8, 16, 24, 32, 41])]
    )
    nets.assert_close(full_loss_of(loader, model(), partition_seed=None), in_order, **FLOAT64)
    nets.assert_close(full_loss_of(data, model(), batch_size=8, partition_seed=None), in_order, **FLOAT64)
    nets.assert_close(
        full_loss_of(loader, model(), batch_size=20, partition_seed=None),
        batchnorm_loss([(data[0][:20], data[1][:20]), (data[0][20:], data[1][20:])]),
        **FLOAT64,
    )
    batches = nets.batches_of(data, 12)
    nets.assert_close(full_loss_of(batches, model()), batchnorm_loss(batches), **FLOAT64)
    by_seed = [full_loss_of(data, model(), batch_size=8, partition_seed=seed) for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1]
    assert len({by_seed[0], by_seed[2], in_order}) == 3
    assert full_loss_of(data, model(), batch_size=8) == by_seed[0], "partition_seed=0 is the default"


def test_batchnorm_in_eval_mode_uses_running_statistics():
    data = data64()
    model = nets.mlp(dtype=F64, batchnorm=True)
    model(data[0] * 3 + 1)
    twin = Twin(model, SGD(model.parameters()), [data], batchnorm="eval")
    expected = twin.loss(nets.flat(list(model.parameters())), {})
    # No batch_size is needed: examples do not mix.
    nets.assert_close(full_loss_of(data, model, batchnorm="eval"), expected, **FLOAT64)


def test_subset_is_a_recorded_random_probe_set():
    data = data64()
    probe = sgdwalk.subset(TensorDataset(*data), 12, seed=5)
    assert len(probe) == 12
    inputs = torch.stack([probe[i][0] for i in range(12)])
    targets = torch.stack([probe[i][1] for i in range(12)])
    rows = {tuple(row.tolist()) for row in inputs}
    assert len(rows) == 12
    assert rows <= {tuple(row.tolist()) for row in data[0]}
    again = sgdwalk.subset(TensorDataset(*data), 12, seed=5)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(probe, again, strict=True))
    other = sgdwalk.subset(TensorDataset(*data), 12, seed=6)
    assert {tuple(x.tolist()) for x, _ in other} != rows
    nets.assert_close(full_loss_of(probe), mean_loss(inputs, targets), **FLOAT64)
    nets.assert_close(full_loss_of(sgdwalk.subset(data, 12, seed=5)), mean_loss(inputs, targets), **FLOAT64)
    description = watched(data=probe)[0].run.info["data"]["description"]
    for number in ("12", "40", "5"):
        assert number in description
    state = torch.get_rng_state()
    sgdwalk.subset(data, 12)
    assert torch.equal(torch.get_rng_state(), state)


def per_example(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="none")


def sum_and_count(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    return functional.cross_entropy(output, target, reduction="sum"), len(target)


WEIGHT = torch.tensor([1.0, 5.0, 0.5], dtype=F64)


def weighted(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return functional.cross_entropy(output, target, weight=WEIGHT, reduction="sum"), WEIGHT[target].sum()


def test_a_loss_function_may_return_means_losses_or_sum_and_count():
    inputs, targets = data64()
    expected = mean_loss(inputs, targets)
    for loss_fn in (functional.cross_entropy, nn.CrossEntropyLoss(), per_example, sum_and_count):
        nets.assert_close(full_loss_of((inputs, targets), loss_fn=loss_fn, batch_size=7), expected, **FLOAT64)
    with torch.no_grad():
        expected = functional.cross_entropy(nets.mlp(dtype=F64)(inputs), targets, weight=WEIGHT).item()
    nets.assert_close(full_loss_of((inputs, targets), loss_fn=weighted, batch_size=7), expected, **FLOAT64)


def test_forward_adapts_other_batches():
    """Dictionaries, several inputs, and models that return more than one thing."""
    inputs, targets = data64()
    batches = [{"first": x[:, :3], "rest": x[:, 3:], "labels": y} for x, y in nets.batches_of((inputs, targets), 16)]

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model(torch.cat([batch["first"], batch["rest"]], dim=1)), batch["labels"]

    nets.assert_close(full_loss_of(batches, forward=forward), mean_loss(inputs, targets), **FLOAT64)


def test_never_with_the_regularizer_of_the_optimizer():
    inputs, targets = data64()
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=10.0)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets)) as walk:
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    nets.assert_close(walk.run.steps["loss"][0], mean_loss(inputs, targets), **FLOAT64)


def test_dropout_is_off_in_the_full_loss():
    inputs, targets = data64()
    model = nets.mlp(dtype=F64, dropout=0.9)
    expected = mean_loss(inputs, targets, nets.mlp(dtype=F64, dropout=0.9).eval())
    nets.assert_close(full_loss_of((inputs, targets), model), expected, **FLOAT64)
    assert model.training


# --- measures ---------------------------------------------------------------------------------------------------------


def test_is_measuring_is_true_inside_evaluations_only():
    seen: set[bool] = set()

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        seen.add(sgdwalk.is_measuring())
        return functional.cross_entropy(output, target)

    def measure(here: Any) -> float:
        seen.add(sgdwalk.is_measuring())
        return 0.0

    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    assert not sgdwalk.is_measuring()
    with sgdwalk.watch(model, optimizer, loss_fn, data64(), measures={"m": measure}):
        for _ in steps_of(model, optimizer, 2):
            assert not sgdwalk.is_measuring()
    assert seen == {True}


def test_measures_become_columns_and_at_says_when():
    calls: list[int] = []

    def with_segments(here: Any) -> float:
        return here.step * 10.0

    def sometimes(here: Any) -> dict[str, float]:
        calls.append(here.step)
        return {"value": float(here.step), "residual": 0.25}

    run = watched(
        num_updates=5,
        measures={"tens": with_segments, "spectrum": sgdwalk.at(sgdwalk.every(2), sometimes)},
        when=sgdwalk.every(4),
    )[0].run
    assert run.steps["tens"].dropna().to_dict() == {0: 0.0, 4: 40.0}
    assert calls == [0, 2, 4]
    assert run.steps["spectrum_residual"].dropna().to_dict() == {0: 0.25, 2: 0.25, 4: 0.25}
    values = run.steps["spectrum"] if "spectrum" in run.steps else run.steps["spectrum_value"]
    assert values.dropna().to_dict() == {0: 0.0, 2: 2.0, 4: 4.0}
    assert set(run.info["settings"]["measures"]) == {"tens", "spectrum"}


def test_a_measure_at_steps_of_its_own_stands_at_theta_t():
    """Where no segment is measured, L(θ_t) is evaluated for the measure alone; losses kept from other steps are not."""

    def point(here: Any) -> dict[str, float]:
        return {"value": here.loss(), "slope": here.gradient().norm().item(), "norm": here.parameters.norm().item()}

    every_step = watched(num_updates=8, measures={"point": point})[0].run.steps
    sparse = watched(
        num_updates=8, measures={"point": sgdwalk.at(lambda step: step in (1, 3, 4, 7), point)}, when=sgdwalk.every(3)
    )[0].run.steps
    chosen = [1, 3, 4, 7]
    nets.assert_close(every_step["point"], every_step["loss"], **FLOAT64)
    nets.assert_close(every_step["point_norm"], every_step["param_norm"], **FLOAT64)
    for column in ("point", "point_slope", "point_norm"):
        assert list(sparse[column].dropna().index) == chosen
        nets.assert_close(sparse[column][chosen], every_step[column][chosen], **FLOAT64, what=column)


def test_a_measure_without_a_defined_value_has_a_reason():
    run = watched(num_updates=2, measures={"undefined": lambda here: math.nan, "infinite": lambda here: math.inf})[
        0
    ].run
    for name in ("undefined", "infinite"):
        assert run.steps[name].isna().all()
        assert run.steps[f"{name}_reason"].notna().all()


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("batchnorm", [False, True], ids=["", "batchnorm"])
def test_here_has_loss_gradient_and_hessian_vector_product_at_theta_t(batchnorm, evaluate_on):
    model = nets.mlp(dtype=F64, batchnorm=batchnorm)
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    batches = nets.batches_of(data64(), 16)
    trace = Trace(model, optimizer)
    size = sum(p.numel() for p in model.parameters())
    vector = torch.randn(size, dtype=F64, generator=torch.Generator().manual_seed(1))
    taken: list[dict[str, Tensor]] = []

    def measure(here: Any) -> float:
        gradient = here.gradient()
        taken.append(
            {
                "theta": nets.flat(list(here.parameters)),
                "loss": torch.tensor(here.loss(), dtype=F64),
                "gradient": gradient.clone(),
                "hvp": here.hvp(vector).clone(),
                "hvp of gradient": here.hvp(gradient).clone(),
                "loss again": torch.tensor(here.loss(), dtype=F64),
            }
        )
        return 0.0

    with sgdwalk.watch(
        model,
        optimizer,
        functional.cross_entropy,
        batches,
        measures={"m": measure},
        evaluate_on=evaluate_on,
        on_error="raise",
    ):
        for step in range(3):
            inputs, targets = batches[step % 2]
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            with trace.update():
                optimizer.step()
    assert len(taken) == 3
    fresh = nets.mlp(dtype=F64, batchnorm=batchnorm)
    twin = Twin(fresh, SGD(fresh.parameters()), batches)
    for step, (update, values) in enumerate(zip(trace.updates, taken, strict=True)):
        torch.testing.assert_close(values["theta"], update.start, rtol=0, atol=0)
        twin.write(update.start, {})
        loss = twin.loss_tensor()
        gradient = torch.autograd.grad(loss, twin.parameters, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        product = nets.flat(torch.autograd.grad(flat @ vector, twin.parameters, retain_graph=True))
        of_gradient = nets.flat(torch.autograd.grad(flat @ flat.detach(), twin.parameters))
        expected = {"loss": loss.detach(), "gradient": flat.detach(), "hvp": product, "hvp of gradient": of_gradient}
        for name, value in {**expected, "loss again": loss.detach()}.items():
            torch.testing.assert_close(
                values[name].reshape(value.shape),
                value,
                rtol=1e-9,
                atol=1e-12,
                msg=lambda m, n=name, s=step: f"{n} at {s}: {m}",
            )


def test_here_parameters_are_read_only():
    """A measure that writes into them must not move the walk."""

    def vandal(here: Any) -> float:
        for parameter in here.parameters:
            parameter.data.zero_()
        return 0.0

    def loss_after(here: Any) -> float:
        return here.loss()

    walk, model = watched(measures={"a_vandal": vandal, "b_loss": loss_after}, on_error="disable")
    clean, clean_model = watched()
    nets.assert_identical(model.state_dict(), clean_model.state_dict())
    nets.assert_close(walk.run.steps["loss"], clean.run.steps["loss"], **FLOAT64)


class Counting:
    """A measure with memory: a warm start, of which the next value depends."""

    def __init__(self) -> None:
        self.vector = torch.zeros(3, dtype=F64)
        self.calls = 0

    def __call__(self, here: Any) -> dict[str, float]:
        self.calls += 1
        self.vector = 0.5 * self.vector + here.loss()
        return {"value": float(self.vector[0]), "calls": float(self.calls)}

    def state_dict(self) -> dict[str, Any]:
        return {"vector": self.vector.clone(), "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vector, self.calls = state["vector"].clone(), state["calls"]


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("batchnorm", ["train", "eval"])
def test_a_walk_goes_on_bitwise_from_its_state_dict(batchnorm, evaluate_on):
    """Saved with torch.save and read with weights_only=True, as a user's own checkpoint is."""

    def start(**watch: Any) -> tuple[nn.Module, Any, Any]:
        model = nets.mlp(dtype=torch.float32, batchnorm=True)
        optimizer = Adam(model.parameters(), lr=0.05)
        walk = sgdwalk.watch(
            model,
            optimizer,
            functional.cross_entropy,
            nets.batches_of(nets.classification(40), 16),
            measures={"memory": sgdwalk.at(sgdwalk.every(2), Counting()), "always": Counting()},
            steps_per_epoch=4,
            when=sgdwalk.every(2),
            batchnorm=batchnorm,
            evaluate_on=evaluate_on,
            on_error="raise",
        )
        return model, optimizer, walk

    def go(model: nn.Module, optimizer: Any, steps: range) -> None:
        inputs, targets = nets.classification(40)
        for step in steps:
            batch = slice(8 * (step % 5), 8 * (step % 5) + 8)
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()

    model, optimizer, walk = start()
    go(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "walk": walk.state_dict()}, file)
    go(model, optimizer, range(5, 11))
    walk.close()

    file.seek(0)
    state = torch.load(file, weights_only=True)
    other_model, other_optimizer, other_walk = start()
    other_model.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    other_walk.load_state_dict(state["walk"])
    go(other_model, other_optimizer, range(5, 11))
    other_walk.close()

    nets.assert_identical(other_model.state_dict(), model.state_dict())
    whole, rest = walk.run, other_walk.run
    assert list(rest.steps.index)[-6:] == list(range(5, 11))
    whole_steps, rest_steps = (run.steps.loc[5:] for run in (whole, rest))
    assert whole_steps["memory_calls"].dropna().tolist() == [4.0, 5.0, 6.0]
    common = [column for column in whole_steps.columns if not column.startswith(("loss_noise", "barrier_significant"))]
    pd.testing.assert_frame_equal(rest_steps[common], whole_steps[common], check_exact=True)
    segments = [run.segments[run.segments["step"] >= 5].reset_index(drop=True) for run in (whole, rest)]
    pd.testing.assert_frame_equal(segments[1], segments[0], check_exact=True)
    assert "moved_parameters" not in nets.event_kinds(rest), "the user's own load_state_dict is no surprise"


def test_a_state_dict_is_a_copy():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data64()) as walk:
        train(model, optimizer, 2)
        state = walk.state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        train(model, optimizer, 2, first=2)
        again = io.BytesIO()
        torch.save(state, again)
    assert file.getvalue() == again.getvalue()


# --- batches and manual use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorm", [False, True], ids=["", "batchnorm"])
@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_full_batch_gradient_descent_over_walk_batches(batchnorm, evaluate_on):
    data = data64(41)
    model = nets.mlp(dtype=F64, batchnorm=batchnorm)
    optimizer = SGD(model.parameters(), lr=0.5)
    trace = Trace(model, optimizer)
    fresh = nets.mlp(dtype=F64, batchnorm=batchnorm)
    kept: list[nets.Batch] = []
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, data, batch_size=16, evaluate_on=evaluate_on, on_error="raise"
    ) as walk:
        for _ in range(4):
            optimizer.zero_grad()
            kept.clear()
            for inputs, targets in walk.batches():
                loss = functional.cross_entropy(model(inputs), targets)
                (loss * len(targets) / 41).backward()
                kept.append((inputs, targets))
            with trace.update():
                optimizer.step()
    assert [len(targets) for _, targets in kept] == [16, 16, 9]
    order = torch.cat([targets for _, targets in kept])
    assert torch.equal(order.bincount(), data[1].bincount())
    twin = Twin(fresh, SGD(fresh.parameters()), kept)
    nets.assert_follows(walk.run, trace.updates, twin, **FLOAT64)
    # g_t is ∇L itself.
    for update in trace.updates:
        twin.write(update.start, {})
        gradient = nets.flat(torch.autograd.grad(twin.loss_tensor(), twin.parameters))
        torch.testing.assert_close(update.gradient, gradient, rtol=1e-9, atol=1e-12)


def test_a_loop_that_ends_early_over_walk_batches():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    trace = Trace(model, optimizer)
    batches = nets.batches_of(data64(), 16)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, batches, on_error="raise") as walk:
        for _ in range(3):
            optimizer.zero_grad()
            for inputs, targets in walk.batches():
                functional.cross_entropy(model(inputs), targets).backward()
                break
            with trace.update():
                optimizer.step()
    fresh = nets.mlp(dtype=F64)
    nets.assert_follows(walk.run, trace.updates, Twin(fresh, SGD(fresh.parameters()), batches), **FLOAT64)


def test_batches_that_a_loop_changes_in_place_do_not_change_the_full_loss():
    data = data64()
    expected = mean_loss(*data)
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.0)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, batch_size=16, on_error="raise") as walk:
        for inputs, targets in walk.batches():
            functional.cross_entropy(model(inputs.mul_(2)), targets).backward()
        optimizer.step()
    nets.assert_close(walk.run.steps["loss"][0], expected, **FLOAT64)


def test_manual_use_where_no_hook_can_serve():
    """optimizer=None: θ is all parameters that require a gradient, moved by hand."""
    model = nets.mlp(dtype=F64)
    fresh = nets.mlp(dtype=F64)
    parameters = list(model.parameters())
    stand_in = SGD(parameters, lr=0.25)
    trace = Trace(model, stand_in)
    batches = nets.batches_of(data64(), 16)
    with sgdwalk.watch(model, None, functional.cross_entropy, batches, on_error="raise") as walk:
        for step in range(3):
            model.zero_grad()
            inputs, targets = batches[step]
            functional.cross_entropy(model(inputs), targets).backward()
            walk.before_step()
            with trace.update(), torch.no_grad():
                for parameter in parameters:
                    parameter -= 0.25 * parameter.grad
            walk.after_step()
    steps = walk.run.steps
    assert steps["learning_rate"].isna().all()
    for column, values in {
        "grad_norm": [u.gradient.norm().item() for u in trace.updates],
        "update_norm": [(u.end - u.start).norm().item() for u in trace.updates],
        "next_distance": [(u.end - trace.updates[0].start).norm().item() for u in trace.updates],
    }.items():
        nets.assert_close(steps[column], values, **FLOAT64, what=column)
    twin = Twin(fresh, SGD(fresh.parameters()), batches)
    for step, update in enumerate(trace.updates):
        points = walk.run.segments[walk.run.segments["step"] == step]
        nets.assert_close(points["loss"], twin.segment(update), **FLOAT64, what=f"step {step}")


def test_after_step_without_before_step_raises():
    model = nets.mlp(dtype=F64)
    with (
        sgdwalk.watch(model, None, functional.cross_entropy, data64()) as walk,
        pytest.raises(sgdwalk.SgdwalkError, match="before_step"),
    ):
        walk.after_step()


# --- beginning and end ------------------------------------------------------------------------------------------------


def test_a_second_walk_on_the_same_optimizer_raises():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    other = SGD(model.parameters(), lr=0.1)
    walk = sgdwalk.watch(model, optimizer, functional.cross_entropy, data64())
    for optimizers in (optimizer, [other, optimizer]):
        with pytest.raises(sgdwalk.InputError, match=r"watched already.*close"):
            sgdwalk.watch(model, optimizers, functional.cross_entropy, data64())
    train(model, optimizer, 1)
    assert len(walk.run.steps) == 1
    assert not other._optimizer_step_pre_hooks, "the refused walk left nothing behind"
    walk.close()
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data64()) as again:
        train(model, optimizer, 2)
    assert (len(walk.run.steps), len(again.run.steps)) == (1, 2)


def test_active_on_return_and_over_after_close():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    walk = sgdwalk.watch(model, optimizer, functional.cross_entropy, data64())
    train(model, optimizer, 2)
    walk.close()
    walk.close()
    train(model, optimizer, 2)
    assert len(walk.run.steps) == 2


def test_an_exception_in_the_loop_closes_the_walk_and_passes_through():
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    walk = sgdwalk.watch(model, optimizer, functional.cross_entropy, data64())

    def loop() -> None:
        with walk:
            train(model, optimizer, 1)
            raise KeyError("the loop's own")

    with pytest.raises(KeyError, match="the loop's own"):
        loop()
    assert not optimizer._optimizer_step_pre_hooks
    assert len(walk.run.steps) == 1


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_a_hundred_cycles_leave_no_hook_thread_descriptor_or_memory(evaluate_on, tmp_path):
    """Fault 18; the folders of the runs themselves are what is left."""
    model = nets.mlp(dtype=F64, dropout=0.1)
    optimizer = SGD(model.parameters(), lr=0.01)
    handle = optimizer.register_step_pre_hook(lambda *_: None)

    def cycle(index: int) -> None:
        run = tmp_path / str(index) if index % 10 == 0 else None
        with sgdwalk.watch(
            model,
            optimizer,
            functional.cross_entropy,
            data64(),
            measures={"m": lambda here: here.loss()},
            run=run,
            evaluate_on=evaluate_on,
        ):
            train(model, optimizer, 2)

    def left_behind() -> dict[str, int]:
        gc.collect()
        return {
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
            "tensors": sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()),
            "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
            "pre hooks": len(optimizer._optimizer_step_pre_hooks),
            "post hooks": len(optimizer._optimizer_step_post_hooks),
        }

    gc.collect()
    gc.freeze()  # what earlier tests left, and let go of at some time, is not counted
    try:
        for index in range(1, 5):
            cycle(index)
        before = left_behind()
        for index in range(100):
            cycle(index)
        assert left_behind() == before
    finally:
        gc.unfreeze()
    assert before["tensors"] > 0
    assert before["pre hooks"] == 1
    assert before["post hooks"] == 0
    assert "step" not in vars(optimizer)
    handle.remove()


def test_watched_then_closed_equals_never_attached():
    def final(*, watch: bool) -> dict[str, Any]:
        model = nets.mlp(dtype=F64, dropout=0.3, batchnorm=True)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(0)
        if watch:
            with sgdwalk.watch(model, optimizer, functional.cross_entropy, data64(), batch_size=16):
                train(model, optimizer, 3)
        else:
            train(model, optimizer, 3)
        train(model, optimizer, 3, first=3)
        return nets.everything(model, [optimizer])

    nets.assert_identical(final(watch=True), final(watch=False))


def test_a_method_that_does_not_exist_raises_and_names_those_that_do():
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.5)
    with pytest.raises(sgdwalk.InputError, match="method='guessed' does not exist; there is 'exact'"):
        sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(), method="guessed")  # pyright: ignore[reportArgumentType]
    assert not optimizer._optimizer_step_pre_hooks


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_walk_run_shows(tmp_path):
    folder = tmp_path / "runs" / "mine"
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(
        model,
        optimizer,
        functional.cross_entropy,
        data64(),
        run=folder,
        measures={"memory": Counting()},
        steps_per_epoch=2,
        when=sgdwalk.every(2),
    ) as walk:
        for step in steps_of(model, optimizer, 5):
            walk.note(batch_loss=1.0, accuracy=0.1 * step)
            if step == 2:
                clip = next(iter(model.parameters()))
                clip.data.clamp_(-0.1, 0.1)
            if step == 3:
                pd.testing.assert_frame_equal(
                    sgdwalk.open_run(folder).steps, walk.run.steps.loc[: len(sgdwalk.open_run(folder).steps) - 1]
                )
        shown = walk.run
    stored = sgdwalk.open_run(folder)
    assert len(stored.steps) == 5
    assert nets.event_kinds(stored) == ["moved_parameters"]
    frames_equal(stored, shown)
    frames_equal(stored, walk.run)
    assert stored.info == walk.run.info
    assert (folder / "start.safetensors").exists()
    from safetensors.torch import load_file

    fresh = nets.mlp(dtype=F64)
    start = load_file(folder / "start.safetensors")
    assert sum(tensor.numel() for tensor in start.values()) == sum(p.numel() for p in fresh.parameters())
    expected = nets.flat(list(fresh.parameters()))
    nets.assert_close(
        sorted(torch.cat([t.reshape(-1) for t in start.values()]).tolist()), sorted(expected.tolist()), rtol=0
    )
    assert str(stored.path) == str(folder)


def test_a_string_serves_as_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watched(run="runs/a b")
    assert len(sgdwalk.open_run("runs/a b").steps) == 4
    assert len(sgdwalk.open_run(tmp_path / "runs" / "a b").steps) == 4


def test_a_run_goes_on_where_resume_says_so(tmp_path):
    """The rows after the state that is loaded are those of the second process; there is neither gap nor duplicate."""
    states: dict[int, dict[str, Any]] = {}

    def go(steps: range, **watch: Any) -> Any:
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
        walk = sgdwalk.watch(
            model, optimizer, functional.cross_entropy, data64(), measures={"memory": Counting()}, **watch
        )
        if watch.get("resume"):
            state = states[steps.start]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            walk.load_state_dict(state["walk"])
        for _ in steps_of(model, optimizer, len(steps), steps.start):
            step = walk.run.steps.index[-1] + 1
            kinds = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "walk": walk.state_dict()}
            file = io.BytesIO()
            torch.save(kinds, file)
            file.seek(0)
            states[step] = torch.load(file, weights_only=True)
        walk.close()
        return walk.run

    whole = go(range(8), run=tmp_path / "whole")
    go(range(5), run=tmp_path / "parts")
    with pytest.raises(sgdwalk.RunFolderError, match="resume"):
        go(range(5), run=tmp_path / "parts")
    go(range(3, 6), run=tmp_path / "parts", resume=True)
    go(range(6, 8), run=tmp_path / "parts", resume=True)
    parts = sgdwalk.open_run(tmp_path / "parts")
    for name in ("steps", "segments", "epochs"):
        pd.testing.assert_frame_equal(getattr(parts, name), getattr(whole, name), check_exact=True)
    assert list(parts.events["kind"]) == ["resumed", "resumed"]
    assert list(parts.events["step"]) == [3, 6]


# --- precision --------------------------------------------------------------------------------------------------------


def test_a_float32_loss_is_evaluated_without_tf32_and_in_float64_where_the_model_is():
    """A float64 model's L has float64's digits; a float32 model's L those of float32."""
    inputs, targets = data64()
    expected = mean_loss(inputs, targets)
    assert abs(full_loss_of((inputs, targets)) - expected) < 1e-14
    # Float32 data are converted for a float64 model.
    as_float32 = full_loss_of((inputs.float(), targets))
    assert as_float32 == pytest.approx(mean_loss(inputs.float().double(), targets), rel=1e-13)
    single = full_loss_of((inputs.float(), targets), nets.mlp())
    nets.assert_close(single, mean_loss(inputs, targets, nets.mlp().double()), **FLOAT32)
