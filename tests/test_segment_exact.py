"""Exact segments equal a slow float64 twin, for every kind of model, data and partition that the contract names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reference
import sgdwalk
from reference import FLOAT32_ABSOLUTE, FLOAT32_RELATIVE, Batch


# ------------------------------------------------------------------------------------------------------- the nets
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def batchnorm_conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 4),
    )


class ResidualBlock(nn.Module):
    """Every ReLU and the addition of the shortcut overwrite their input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x
        return self.relu(out)


def residual_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(inplace=True),
        ResidualBlock(5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 4),
    )


def groupnorm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.GELU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, 4),
    )


class TokenModel(nn.Module):
    """Embedding, one self-attention layer, next-token scores that share the embedding's weight."""

    def __init__(self, vocabulary: int = 11, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.attention = nn.MultiheadAttention(width, num_heads=2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.norm(x + mixed) @ self.embedding.weight.T  # (examples, positions, vocabulary)


def vectors(count: int) -> Batch:
    return torch.randn(count, 6), torch.randint(4, (count,))


def images(count: int) -> Batch:
    return torch.randn(count, 3, 8, 8), torch.randint(4, (count,))


def sentences(count: int) -> Batch:
    tokens = torch.randint(11, (count, 7))
    targets = torch.randint(11, (count, 7))
    lengths = torch.randint(1, 8, (count, 1))
    return tokens, targets.masked_fill(torch.arange(7) >= lengths, -100)  # padded: each sentence counts its own tokens


def class_loss_sum(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    return F.cross_entropy(output, target, reduction="sum"), len(target)


def token_loss_sum(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    total = F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum")
    return total, int((target != -100).sum())


def token_loss_mean(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100)


@dataclass
class Case:
    build: Callable[[], nn.Module]
    draw: Callable[[int], Batch]
    loss_fn: Callable[[Tensor, Tensor], Any] = F.cross_entropy
    loss_sum: reference.LossSum = class_loss_sum
    train_loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


CASES = {
    "mlp": Case(mlp, vectors),
    "batchnorm": Case(batchnorm_conv_net, images),
    "residual-inplace": Case(residual_net, images),
    "groupnorm": Case(groupnorm_net, images),
    "attention-per-token": Case(TokenModel, sentences, token_loss_sum, token_loss_sum, token_loss_mean),
}

SIZES = {
    "divisible": (20, 5, [5, 5, 5, 5]),
    "ragged": (23, 5, [5, 5, 5, 5, 3]),
    "one-left-joins-the-batch-before": (21, 5, [5, 5, 5, 6]),
    "one-example": (1, 4, [1]),
    "batch-above-N": (6, 64, [6]),
}


# -------------------------------------------------------------------------------------------------------- helpers
def assert_close_to_twin(losses: list[float], twin: list[float]) -> None:
    assert len(losses) == len(twin)
    for k, (loss, exact) in enumerate(zip(losses, twin, strict=True)):
        allowed = FLOAT32_RELATIVE * exact + FLOAT32_ABSOLUTE
        assert abs(loss - exact) <= allowed, f"point {k}: {loss!r}, twin {exact!r}, allowed {allowed:.1e}"


def losses_of(run: sgdwalk.Run, step: int) -> list[float]:
    points = run.segments[run.segments.step == step]
    assert list(points.alpha) == [k / (len(points) - 1) for k in range(len(points))]
    assert set(points.kind) == {"exact"}
    assert (points.halfwidth == 0).all()
    return list(points.loss)


def assert_holds_every_example_once(batches: list[Batch], inputs: Tensor, targets: Tensor) -> None:
    def example(x: Tensor, y: Tensor) -> tuple[bytes, bytes]:
        return x.numpy().tobytes(), y.numpy().tobytes()

    seen = sorted(example(x, y) for xs, ys in batches for x, y in zip(xs, ys, strict=True))
    assert seen == sorted(example(x, y) for x, y in zip(inputs, targets, strict=True))


def partition_of(walk: sgdwalk.Walk) -> list[Batch]:
    return [(inputs.clone(), targets.clone()) for inputs, targets in walk.batches()]


def check_against_twin(case: Case, data: Any, options: dict[str, Any], partition: list[Batch] | None = None) -> None:
    """Three updates watched; every point of every segment against the twin on the same evaluation batches."""
    model = case.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with sgdwalk.watch(model, optimizer, case.loss_fn, data, on_error="raise", **options) as walk:
        if partition is None:
            partition = partition_of(walk)
        updates = reference.train(model, optimizer, [case.draw(8) for _ in range(3)], case.train_loss)

    assert len(walk.run.steps) == len(updates)
    for step, update in enumerate(updates):
        twin = reference.segment_losses(
            update.model,
            update.start,
            update.end,
            partition,
            case.loss_sum,
            num_points=options.get("num_points", 10),
            batchnorm=options.get("batchnorm", "train"),
        )
        assert_close_to_twin(losses_of(walk.run, step), twin)


# ---------------------------------------------------------------------------------------------------------- tests
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_segments_equal_the_twin(name: str, size: str) -> None:
    torch.manual_seed(1)
    case = CASES[name]
    count, batch_size, sizes = SIZES[size]
    inputs, targets = case.draw(count)
    model = case.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with sgdwalk.watch(
        model, optimizer, case.loss_fn, (inputs, targets), batch_size=batch_size, on_error="raise"
    ) as walk:
        partition = partition_of(walk)
        updates = reference.train(model, optimizer, [case.draw(8) for _ in range(3)], case.train_loss)

    assert [len(x) for x, _ in partition] == sizes
    assert_holds_every_example_once(partition, inputs, targets)
    assert list(walk.run.steps.index) == [0, 1, 2]
    for step, update in enumerate(updates):
        twin = reference.segment_losses(update.model, update.start, update.end, partition, case.loss_sum)
        assert_close_to_twin(losses_of(walk.run, step), twin)


DATA_FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "dataset": TensorDataset,
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True),
}


@pytest.mark.parametrize("form", DATA_FORMS)
@pytest.mark.parametrize("partition_seed", [None, 0, 3])
def test_every_form_of_data_gives_the_same_segments(form: str, partition_seed: int | None) -> None:
    """With BatchNorm the partition is part of L; it must depend on the seed alone, not on how the data came."""
    torch.manual_seed(2)
    inputs, targets = images(23)
    blocks = None
    if partition_seed is None:
        blocks = [(inputs[k : k + 5], targets[k : k + 5]) for k in range(0, 23, 5)]
    else:
        model = batchnorm_conv_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"batch_size": 5, "partition_seed": partition_seed}
        with sgdwalk.watch(model, optimizer, F.cross_entropy, (inputs, targets), **options) as walk:
            blocks = partition_of(walk)
        in_order = torch.cat([x for x, _ in blocks]).equal(inputs)
        assert not in_order, "the partition of a seed must not be the order of the data"
    check_against_twin(
        CASES["batchnorm"],
        DATA_FORMS[form](inputs, targets),
        {"batch_size": 5, "partition_seed": partition_seed},
        blocks,
    )


def test_partition_seeds_differ() -> None:
    torch.manual_seed(2)
    inputs, targets = images(23)
    orders = []
    for seed in (0, 1):
        model = batchnorm_conv_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"batch_size": 5, "partition_seed": seed}
        with sgdwalk.watch(model, optimizer, F.cross_entropy, (inputs, targets), **options) as walk:
            orders.append(torch.cat([x for x, _ in walk.batches()]))
    assert not orders[0].equal(orders[1])


def test_the_loaders_batch_size_is_the_default_and_an_argument_overrides_it() -> None:
    torch.manual_seed(3)
    inputs, targets = images(23)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=7, shuffle=True)
    for options, sizes in [({}, [7, 7, 7, 2]), ({"batch_size": 11}, [11, 12])]:
        model = batchnorm_conv_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with sgdwalk.watch(model, optimizer, F.cross_entropy, loader, **options) as walk:
            partition = partition_of(walk)
        assert [len(x) for x, _ in partition] == sizes
        assert_holds_every_example_once(partition, inputs, targets)


@pytest.mark.parametrize("name", CASES)
def test_batches_that_are_given_are_used_as_given(name: str) -> None:
    """Pre-batched data: order, sizes and a last batch of one stay (BatchNorm over images can take a batch of one)."""
    torch.manual_seed(4)
    case = CASES[name]
    inputs, targets = case.draw(14)
    batches = list(zip(inputs.split([6, 2, 5, 1]), targets.split([6, 2, 5, 1]), strict=True))
    check_against_twin(case, batches, {}, batches)


@pytest.mark.parametrize("name", ["batchnorm", "residual-inplace"])
def test_running_statistics_are_those_right_after_the_update(name: str) -> None:
    """``batchnorm="eval"``: all points of segment t read the buffers as the training forward of update t left them."""
    torch.manual_seed(5)
    case = CASES[name]
    check_against_twin(case, case.draw(13), {"batch_size": 5, "batchnorm": "eval"})


@pytest.mark.parametrize("num_points", [2, 3, 7, 25])
def test_any_number_of_intervals(num_points: int) -> None:
    torch.manual_seed(6)
    check_against_twin(CASES["mlp"], vectors(17), {"batch_size": 6, "num_points": num_points})


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "attention-per-token"])
def test_evaluation_on_the_model_itself_equals_the_twin(name: str) -> None:
    torch.manual_seed(7)
    case = CASES[name]
    check_against_twin(case, case.draw(13), {"batch_size": 5, "evaluate_on": "model"})


@pytest.mark.parametrize("name", ["mlp", "groupnorm"])
def test_a_float64_model_is_evaluated_in_float64(name: str) -> None:
    torch.manual_seed(8)
    case = CASES[name]
    model = case.build().double()
    inputs, targets = case.draw(13)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = [(x.double(), y) for x, y in (case.draw(8) for _ in range(2))]
    with sgdwalk.watch(model, optimizer, F.cross_entropy, (inputs.double(), targets), batch_size=5) as walk:
        partition = partition_of(walk)
        updates = reference.train(model, optimizer, training, F.cross_entropy)
    for step, update in enumerate(updates):
        twin = reference.segment_losses(update.model, update.start, update.end, partition, case.loss_sum)
        np.testing.assert_allclose(losses_of(walk.run, step), twin, rtol=1e-13)


def test_per_example_losses_serve_as_well_as_a_mean() -> None:
    torch.manual_seed(9)
    case = Case(mlp, vectors, loss_fn=lambda output, target: F.cross_entropy(output, target, reduction="none"))
    check_against_twin(case, vectors(17), {"batch_size": 5})


def test_forward_adapts_batches_of_another_kind() -> None:
    """A dictionary as a batch, as Hugging Face models take it, and a loss that the adapter reads out of it."""
    torch.manual_seed(10)
    tokens, targets = sentences(13)
    batches = [{"tokens": t, "labels": y} for t, y in zip(tokens.split(5), targets.split(5), strict=True)]
    model = TokenModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def forward(net: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return net(batch["tokens"]), batch["labels"]

    with sgdwalk.watch(model, optimizer, token_loss_sum, batches, forward=forward, on_error="raise") as walk:
        updates = reference.train(model, optimizer, [sentences(8), sentences(8)], token_loss_mean)
    pairs = list(zip(tokens.split(5), targets.split(5), strict=True))
    for step, update in enumerate(updates):
        twin = reference.segment_losses(update.model, update.start, update.end, pairs, token_loss_sum)
        assert_close_to_twin(losses_of(walk.run, step), twin)


# ----------------------------------------------------------------------------------------------------- loss noise
class Margin(nn.Module):
    """Two scores θ and 0, so that L(θ) = log(1 + exp(-θ)): at θ = 17 nothing of it is left in float32."""

    def __init__(self, theta: float):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([self.theta * inputs, torch.zeros_like(inputs)], dim=1)


def test_loss_noise_shows_the_digits_lost_near_interpolation() -> None:
    model = Margin(15.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    data = (torch.ones(4), torch.zeros(4, dtype=torch.int64))
    with sgdwalk.watch(model, optimizer, F.cross_entropy, data, batch_size=4, on_error="raise") as walk:
        model.theta.grad = torch.tensor(-2.0)
        optimizer.step()
    exact = [math.log1p(math.exp(-(15 + 2 * k / 10))) for k in range(11)]
    used = losses_of(walk.run, 0)
    noise = walk.run.steps.loss_noise[0]
    assert_close_to_twin(used, exact)
    assert noise == pytest.approx(reference.loss_noise(used, exact), rel=1e-6)
    assert noise > 0.1 * exact[0]


@pytest.mark.parametrize("name", CASES)
def test_loss_noise_is_the_largest_deviation_from_the_twin(name: str) -> None:
    """With at most ten evaluation batches the check sees all data, so it is the deviation itself."""
    torch.manual_seed(11)
    case = CASES[name]
    model = case.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, case.loss_fn, case.draw(23), batch_size=5, on_error="raise") as walk:
        partition = partition_of(walk)
        (update,) = reference.train(model, optimizer, [case.draw(8)], case.train_loss)
    twin = reference.segment_losses(update.model, update.start, update.end, partition, case.loss_sum)
    deviation = reference.loss_noise(losses_of(walk.run, 0), twin)
    assert deviation > 0
    assert walk.run.steps.loss_noise[0] == pytest.approx(deviation, rel=1e-6)


def test_loss_noise_is_measured_again_every_hundred_watched_segments() -> None:
    torch.manual_seed(12)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = torch.randn(8, 3), torch.randint(2, (8,))
    when = sgdwalk.every(2)
    with sgdwalk.watch(model, optimizer, F.cross_entropy, (inputs, targets), when=when, num_points=2) as walk:
        reference.train(model, optimizer, [(inputs, targets)] * 203, F.cross_entropy)
    watched = walk.run.steps.loss_noise[::2]
    assert watched.loc[:198].nunique() == 1  # measured at the first segment, at step 0, and carried on
    assert watched.loc[200] != watched.loc[198]  # measured at the 100th segment after it
    assert (watched > 0).all()


def test_loss_noise_looks_at_no_more_than_ten_batches() -> None:
    """20 evaluation batches, 11 points: the check costs 110 forward passes in float64, whatever N is."""
    torch.manual_seed(13)
    calls: list[torch.dtype] = []

    class Counted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            calls.append(input.dtype)
            return super().forward(input)

    model = Counted(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = torch.randn(40, 3), torch.randint(2, (40,))
    with sgdwalk.watch(model, optimizer, F.cross_entropy, (inputs, targets), batch_size=2) as walk:
        reference.train(model, optimizer, [(inputs, targets)], F.cross_entropy)
    assert len(walk.run.steps) == 1
    assert calls.count(torch.float64) == 10 * 11
