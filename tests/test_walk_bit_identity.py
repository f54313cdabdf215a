"""Watching never changes the walk: 30 steps watched and unwatched agree bitwise in everything a training has."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import nets
import sgdwalk

NUM_UPDATES = 30

# Python 3.12 and later warn when a process with threads forks data workers; that is the loader's affair.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")


class Noisy(Dataset):
    """Augmentation that draws from every random stream a worker has."""

    def __init__(self, inputs: Tensor, targets: Tensor):
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(self.inputs[index]) * 0.1
        shift = random.random() + float(np.random.rand())  # noqa: NPY002
        return self.inputs[index] + noise + 0.1 * shift, self.targets[index]


@dataclass
class Case:
    """How a training is built from a fresh seed, and what L is."""

    model: Callable[[], nn.Module]
    example_data: Callable[[], nets.Batch]
    loader: Callable[[nets.Batch], Iterable[Any]]
    data: Callable[[nets.Batch, Any], Any]
    watch: dict[str, Any] = field(default_factory=dict)
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda m: torch.optim.SGD(
        m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3
    )


def spectrally_normed() -> nn.Module:
    torch.manual_seed(0)
    parametrize = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(parametrize(nn.Linear(5, 8)), nn.ReLU(), nn.Dropout(0.2), parametrize(nn.Linear(8, 3)))


def old_spectrally_normed() -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still found in published code
        norm = nn.utils.spectral_norm
        return nn.Sequential(norm(nn.Linear(5, 8)), nn.ReLU(), nn.BatchNorm1d(8), norm(nn.Linear(8, 3)))


def weight_normed() -> nn.Module:
    torch.manual_seed(0)
    parametrize = nn.utils.parametrizations.weight_norm
    return nn.Sequential(parametrize(nn.Linear(5, 8)), nn.ReLU(), nn.Dropout(0.2), parametrize(nn.Linear(8, 3)))


class Recurrent(nn.Module):
    """An LSTM over the five inputs, with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 4, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.lstm(inputs.unsqueeze(-1))[0][:, -1])


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent()


def transformer() -> nn.Module:
    """Its layers take another, fused path in eval mode without gradients."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 8), layer, nn.Flatten(), nn.Linear(40, 3))


class CountsCalls(nn.Module):
    """Changes a buffer in place, replaces another and counts in an attribute at every forward, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.mlp(dropout=0.2)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.body(inputs)
        self.calls += 1
        self.seen += len(inputs)
        self.last = output.detach().mean(0)
        return output * (1 + 0.0 * self.calls)


def compiled() -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(nets.mlp(dropout=0.2, batchnorm=True), backend="aot_eager")  # type: ignore[return-value]


def channels_last() -> nn.Module:
    return nets.conv_net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def tensor_loader(data: nets.Batch) -> DataLoader:
    return DataLoader(TensorDataset(*data), batch_size=8, shuffle=True)


def worker_loader(data: nets.Batch) -> DataLoader:
    return DataLoader(Noisy(*data), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)


def clean_worker_loader(data: nets.Batch) -> DataLoader:
    return DataLoader(TensorDataset(*data), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)


def pre_batched(data: nets.Batch, loader: Any) -> list[nets.Batch]:
    return nets.batches_of(data, 10)


def tensors(data: nets.Batch, loader: Any) -> nets.Batch:
    return data


def own_loader(data: nets.Batch, loader: Any) -> Any:
    return loader


vectors, pictures = functools.partial(nets.classification, 24), functools.partial(nets.images, 24)

CASES = {
    "dropout": Case(functools.partial(nets.mlp, dropout=0.5), vectors, tensor_loader, tensors),
    "batchnorm": Case(functools.partial(nets.mlp, batchnorm=True), vectors, tensor_loader, tensors, {"batch_size": 10}),
    "batchnorm in eval mode": Case(
        functools.partial(nets.mlp, batchnorm=True), vectors, tensor_loader, tensors, {"batchnorm": "eval"}
    ),
    "conv net": Case(nets.conv_net, pictures, tensor_loader, pre_batched),
    "conv net in channels_last": Case(channels_last, pictures, tensor_loader, pre_batched),
    "spectral_norm": Case(spectrally_normed, vectors, tensor_loader, tensors),
    "weight_norm": Case(weight_normed, vectors, tensor_loader, tensors),
    "lstm": Case(recurrent, vectors, tensor_loader, tensors),
    "transformer": Case(transformer, vectors, tensor_loader, tensors),
    "counting calls": Case(CountsCalls, vectors, tensor_loader, tensors),
    "augmenting workers": Case(functools.partial(nets.mlp, dropout=0.5), vectors, worker_loader, tensors),
    "own loader": Case(functools.partial(nets.mlp, batchnorm=True), vectors, tensor_loader, own_loader),
    "own loader with workers": Case(functools.partial(nets.mlp, dropout=0.5), vectors, clean_worker_loader, own_loader),
    "compiled": Case(compiled, vectors, tensor_loader, pre_batched),
    "adam, fused": Case(
        functools.partial(nets.mlp, dropout=0.5),
        vectors,
        tensor_loader,
        tensors,
        optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.01, fused=True),
    ),
    "lbfgs": Case(
        functools.partial(nets.mlp, dropout=0.2),
        vectors,
        tensor_loader,
        tensors,
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3),
    ),
    "autocast": Case(functools.partial(nets.mlp, dropout=0.5), vectors, tensor_loader, tensors),
}


def train(case: Case, name: str, watch: dict[str, Any] | None) -> tuple[list[dict[str, Any]], Any]:
    """What the training is like after 1, 2, 10 and 30 updates; the run where it was watched.

    The loop itself draws from Python's, NumPy's and torch's global streams, so that one draw too many shows in θ.
    """
    nets.seed_everything(3)
    data = case.example_data()
    model = case.model()
    optimizer = case.optimizer(model)
    loader = case.loader(data)
    nets.seed_everything(4)
    states: list[dict[str, Any]] = []
    iterator = iter(loader)
    batch = next(iterator)  # the epoch is under way when watch() is called
    walk = None
    if watch is not None:
        walk = sgdwalk.watch(
            model,
            optimizer,
            functional.cross_entropy,
            case.data(data, loader),
            on_error="disable",
            **{**case.watch, **watch},
        )
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "autocast"):
        for step in range(NUM_UPDATES):
            inputs, targets = batch
            inputs = inputs + 0.01 * random.random() + 0.01 * float(np.random.randn())  # noqa: NPY002

            def closure(inputs=inputs, targets=targets) -> Tensor:
                optimizer.zero_grad(set_to_none=False)
                loss = functional.cross_entropy(model(inputs), targets)
                loss.backward()
                return loss

            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            if step + 1 in (1, 2, 10, NUM_UPDATES):
                states.append(nets.everything(model, [optimizer]) | {"calls": getattr(model, "calls", None)})
            try:
                batch = next(iterator)
            except StopIteration:
                iterator = iter(loader)
                batch = next(iterator)
    if walk is None:
        return states, None
    walk.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    nets.assert_identical(nets.everything(model, [optimizer])["hooks"], states[0]["hooks"])
    return states, walk.run


@functools.cache
def unwatched(name: str) -> list[dict[str, Any]]:
    return train(CASES[name], name, None)[0]


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("name", CASES)
def test_watched_equals_unwatched(name, evaluate_on):
    states, run = train(CASES[name], name, {"evaluate_on": evaluate_on})
    for step, (actual, expected) in enumerate(zip(states, unwatched(name), strict=True)):
        nets.assert_identical(actual, expected, f"state {step}")
    assert len(run.steps) == NUM_UPDATES
    assert run.steps["loss"].notna().all()
    assert run.steps["update_norm"].min() > 0


def test_old_spectral_norm_on_the_model_itself():
    case = Case(old_spectrally_normed, vectors, tensor_loader, pre_batched)
    expected, _ = train(case, "", None)
    states, run = train(case, "", {"evaluate_on": "model"})
    for actual, wanted in zip(states, expected, strict=True):
        nets.assert_identical(actual, wanted)
    assert run.steps["loss"].notna().all()


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_more_than_the_segment_is_measured(evaluate_on):
    """Gradients, Hessian-vector products and random draws of a measure leave no trace either."""

    def measure(here: Any) -> float:
        here.gradient()
        here.hvp(here.gradient())
        return here.loss() + float(torch.rand(1) + random.random() + np.random.rand())  # noqa: NPY002

    states, run = train(CASES["conv net"], "", {"evaluate_on": evaluate_on, "measures": {"noisy": measure}})
    for actual, expected in zip(states, unwatched("conv net"), strict=True):
        nets.assert_identical(actual, expected)
    assert run.steps["noisy"].notna().all()


class FailsWhileMeasuring:
    """A loss function that raises from the nth call on, once training has begun."""

    def __init__(self) -> None:
        self.armed = False
        self.calls = 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if self.armed:
            self.calls += 1
            if self.calls > 4:
                raise FloatingPointError("the user's loss function failed")
        return functional.cross_entropy(output, target)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("name", ["conv net", "dropout", "spectral_norm", "own loader"])
@pytest.mark.parametrize("where", ["loss_fn", "measure", "forward"])
def test_after_an_exception_inside_a_measurement(name, evaluate_on, where, caplog):
    case = CASES[name]
    nets.seed_everything(3)
    data = case.example_data()
    model = case.model()
    optimizer = case.optimizer(model)
    loader = case.loader(data)
    nets.seed_everything(4)
    iterator = iter(loader)
    batch = next(iterator)
    loss_fn = FailsWhileMeasuring()
    fail = {"armed": False}

    def forward(module: nn.Module, batch: nets.Batch) -> tuple[Tensor, Tensor]:
        output = module(batch[0])
        if fail["armed"]:
            torch.rand(3)
            raise FloatingPointError("the user's forward failed")
        return output, batch[1]

    def measure(here: Any) -> float:
        if here.step == 3:
            here.gradient()
            torch.rand(3)
            raise FloatingPointError("the user's measure failed")
        return 1.0

    watch: dict[str, Any] = {"evaluate_on": evaluate_on, **case.watch}
    if where == "measure":
        watch["measures"] = {"broken": measure}
    if where == "forward":
        watch["forward"] = forward
    chosen_loss = loss_fn if where == "loss_fn" else functional.cross_entropy
    walk = sgdwalk.watch(model, optimizer, chosen_loss, case.data(data, loader), **watch)
    model.train()
    states = []
    for step in range(NUM_UPDATES):
        if step == 3:
            loss_fn.armed = fail["armed"] = True
        inputs, targets = batch
        inputs = inputs + 0.01 * random.random() + 0.01 * float(np.random.randn())  # noqa: NPY002
        optimizer.zero_grad(set_to_none=False)
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if step + 1 in (1, 2, 10, NUM_UPDATES):
            states.append(nets.everything(model, [optimizer]) | {"calls": getattr(model, "calls", None)})
        try:
            batch = next(iterator)
        except StopIteration:
            iterator = iter(loader)
            batch = next(iterator)
    walk.close()
    for actual, expected in zip(states, unwatched(name), strict=True):
        nets.assert_identical(actual, expected)
    failures = walk.run.events[walk.run.events["kind"] == "measurement_failed"]
    assert len(failures) == 1, "recorded once"
    assert "failed" in failures["message"].iloc[0]
    assert "FloatingPointError" in failures["message"].iloc[0]
    assert failures["step"].iloc[0] in (3, 4)
    assert len([record for record in caplog.records if "the user's" in record.getMessage()]) == 1, "shown once"
    assert len(walk.run.steps) == NUM_UPDATES, "the cheap columns go on"


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_on_error_raise_raises_and_leaves_the_parameters_where_the_update_put_them(evaluate_on):
    data = nets.classification(24)
    states = []
    for watched in (False, True):
        model = nets.mlp(batchnorm=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_fn = FailsWhileMeasuring()
        functional.cross_entropy(model(data[0]), data[1]).backward()
        if watched:
            batches = nets.batches_of(data, 8)
            walk = sgdwalk.watch(model, optimizer, loss_fn, batches, evaluate_on=evaluate_on, on_error="raise")
            loss_fn.armed = True
            with pytest.raises(FloatingPointError, match="the user's loss function failed"):
                optimizer.step()
            walk.close()
        else:
            optimizer.step()
        states.append(nets.everything(model, [optimizer]))
    nets.assert_identical(states[1], states[0])
