"""Tiny models, data and training loops that several tests share, and slow float64 twins of what a walk records.

Nothing here uses sgdwalk: a :class:`Trace` writes down θ_t, g_t and θ_{t+1} by hand inside an unwatched loop, a
:class:`Twin` evaluates the full loss in float64, and :func:`assert_follows` compares a watched run with both.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

Batch = tuple[Tensor, Tensor]

ALPHAS = [k / 10 for k in range(11)]


def seed_everything(seed: int = 0) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global stream is what a user's loop draws from
    torch.manual_seed(seed)


# --- data ------------------------------------------------------------------------------------------------------------


def classification(num_examples: int = 40, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    """Inputs (num_examples, 5) and targets (num_examples,) of three classes that a linear map nearly separates."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), (inputs @ teacher).argmax(1)


def images(num_examples: int = 24, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    """Inputs (num_examples, 2, 6, 6) and targets (num_examples,) of three classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 2, 6, 6, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(0, 3, (num_examples,), generator=generator)


def batches_of(data: Batch, batch_size: int) -> list[Batch]:
    """Consecutive batches; the last one is ragged where the size does not divide."""
    inputs, targets = data
    return list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))


# --- models ----------------------------------------------------------------------------------------------------------


def mlp(
    *, dtype: torch.dtype = torch.float32, dropout: float = 0.0, batchnorm: bool = False, seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(5, 8)]
    if batchnorm:
        layers.append(nn.BatchNorm1d(8))
    layers.append(nn.Tanh())
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(8, 3)).to(dtype)


def conv_net(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.25),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).to(dtype)


class TiedAutoencoder(nn.Module):
    """Encoder and decoder share one weight under two names; ``unused`` never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 5, bias=False)
        self.decoder = nn.Linear(5, 5)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(5, 3)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.decoder(torch.tanh(self.encoder(inputs))))


# --- a training, watched or not --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """One performed update, as vectors in float64 over the optimizers' parameters in their order."""

    start: Tensor
    gradient: Tensor
    end: Tensor
    learning_rate: float
    buffers: dict[str, Tensor]
    """The model's buffers as they are right after the update."""


def unique_parameters(optimizer: Optimizer | Sequence[Optimizer]) -> list[Tensor]:
    """Every parameter of the optimizer(s) once, in order."""
    found: dict[int, Tensor] = {}
    for one in optimizer if isinstance(optimizer, Sequence) else [optimizer]:
        for group in one.param_groups:
            found.update({id(parameter): parameter for parameter in group["params"]})
    return list(found.values())


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().reshape(-1).clone() for tensor in tensors])


def flat_gradient(parameters: Sequence[Tensor]) -> Tensor:
    """``.grad`` as one vector; a missing one counts as zeros."""
    return flat([torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters])


class Trace:
    """Writes down by hand what happens around each update of an unwatched loop."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]):
        self.model = model
        self.parameters = unique_parameters(optimizer)
        self.first = optimizer[0] if isinstance(optimizer, Sequence) else optimizer
        self.updates: list[Update] = []
        self.gradient: Tensor | None = None
        """Set inside the update where ``.grad`` after it is not what the optimizer received."""

    @contextmanager
    def update(self) -> Iterator[None]:
        start, learning_rate = flat(self.parameters), self.first.param_groups[0]["lr"]
        self.gradient = None
        yield
        gradient = flat_gradient(self.parameters) if self.gradient is None else self.gradient
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.updates.append(Update(start, gradient, flat(self.parameters), float(learning_rate), buffers))


class NoTrace(Trace):
    """Stands in for a trace where the loop is watched."""

    def __init__(self) -> None:
        self.gradient = None

    @contextmanager
    def update(self) -> Iterator[None]:
        yield


@dataclass
class Training:
    """A model, its optimizer(s), what L is, and the user's loop."""

    model: nn.Module
    optimizer: Any
    data: Any
    train: Callable[[Trace], None]
    loss_fn: Callable[..., Any] = functional.cross_entropy
    watch: dict[str, Any] = field(default_factory=dict)
    """Further arguments of watch()."""


def plain_loop(
    model: nn.Module, optimizer: Optimizer, batches: Sequence[Batch], num_updates: int
) -> Callable[[Trace], None]:
    """The loop that everyone writes, over the batches again and again."""

    def train(trace: Trace) -> None:
        model.train()
        for step in range(num_updates):
            inputs, targets = batches[step % len(batches)]
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            with trace.update():
                optimizer.step()

    return train


# --- losses that a loop may take of a batch ---------------------------------------------------------------------------


def plain_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(model(inputs), targets)


def loss_with_autocast(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(inputs)
    return functional.cross_entropy(output.float(), targets)


def loss_of_second_pass(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    model(inputs)
    return plain_loss(model, inputs, targets)


def loss_of_other_inputs(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return plain_loss(model, inputs * 1.0, targets)


# --- twins -----------------------------------------------------------------------------------------------------------


class Twin:
    """The full loss of a float64 copy of the model on given batches, everything but BatchNorm in eval mode."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        batches: Sequence[Batch],
        loss: Callable[[nn.Module, Batch], Tensor] = lambda model, batch: functional.cross_entropy(
            model(batch[0]), batch[1]
        ),
        batchnorm: str = "train",
    ):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.names = [names[id(parameter)] for parameter in unique_parameters(optimizer)]
        self.model = copy.deepcopy(model).double().eval()
        if batchnorm == "train":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
        self.parameters = [dict(self.model.named_parameters())[name] for name in self.names]
        self.batches = [(x.double() if x.is_floating_point() else x, y) for x, y in batches]
        self._loss = loss

    def write(self, theta: Tensor, buffers: dict[str, Tensor]) -> None:
        with torch.no_grad():
            offset = 0
            for parameter in self.parameters:
                parameter.copy_(theta[offset : offset + parameter.numel()].view_as(parameter))
                offset += parameter.numel()
            assert offset == theta.numel()
            own = dict(self.model.named_buffers())
            for name, buffer in buffers.items():
                own[name].copy_(buffer)

    def loss_tensor(self) -> Tensor:
        """Mean over all examples; each batch's mean weighs by its size."""
        sizes = [len(targets) for _, targets in self.batches]
        total = sum(self._loss(self.model, batch) * size for batch, size in zip(self.batches, sizes, strict=True))
        assert isinstance(total, Tensor)
        return total / sum(sizes)

    def loss(self, theta: Tensor, buffers: dict[str, Tensor]) -> float:
        self.write(theta, buffers)
        with torch.no_grad():
            return self.loss_tensor().item()

    def segment(self, update: Update) -> list[float]:
        return [self.loss((1 - alpha) * update.start + alpha * update.end, update.buffers) for alpha in ALPHAS]


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def assert_close(actual: Any, expected: Any, *, rtol: float, atol: float = 0.0, what: str = "") -> None:
    torch.testing.assert_close(
        torch.from_numpy(np.atleast_1d(np.array(actual, dtype=np.float64))),
        torch.from_numpy(np.atleast_1d(np.array(expected, dtype=np.float64))),
        rtol=rtol,
        atol=atol,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}
"""Float64 models on float64 data: rounding of a few thousand additions."""
FLOAT32 = {"rtol": 2e-6, "atol": 1e-7}
"""The project's own bound for losses evaluated in float32."""


def assert_follows(
    run: Any,
    updates: Sequence[Update],
    twin: Twin | None = None,
    *,
    rtol: float,
    atol: float,
    theta_0: Tensor | None = None,
) -> None:
    """The run's rows are those of the traced updates: norms, cosines, distances and, with a twin, every segment."""
    steps = run.steps
    assert list(steps.index) == list(range(len(updates)))
    theta_0 = updates[0].start if theta_0 is None else theta_0
    expected = {
        "learning_rate": [u.learning_rate for u in updates],
        "grad_norm": [u.gradient.norm().item() for u in updates],
        "param_norm": [u.start.norm().item() for u in updates],
        "update_norm": [(u.end - u.start).norm().item() for u in updates],
        "distance": [(u.start - theta_0).norm().item() for u in updates],
        "next_distance": [(u.end - theta_0).norm().item() for u in updates],
        "cosine": [math.nan] + [cosine(a.gradient, b.gradient) for a, b in itertools.pairwise(updates)],
    }
    for column, values in expected.items():
        # Sums over at most 512 coordinates may be float32, and a cosine near 0 is a small difference of them.
        assert_close(steps[column], values, rtol=rtol, atol=5 * atol, what=column)
    if twin is None:
        return
    segments = run.segments
    for step, update in enumerate(updates):
        points = segments[segments["step"] == step]
        assert_close(points["alpha"], ALPHAS, rtol=0, atol=1e-15, what=f"alpha at step {step}")
        losses = twin.segment(update)
        assert_close(points["loss"], losses, rtol=rtol, atol=atol, what=f"losses at step {step}")
        assert set(points["kind"]) == {"exact"}
        assert_close(steps["loss"][step], losses[0], rtol=rtol, atol=atol, what=f"loss at step {step}")
        assert_close(steps["next_loss"][step], losses[-1], rtol=rtol, atol=atol, what=f"next_loss at step {step}")


def trained_pair(build: Callable[[], Training], **watch: Any) -> tuple[Any, list[Update], Training]:
    """The run of a watched training, the updates of the same training unwatched, and a fresh training for a twin.

    Asserts that both end at bitwise the same parameters and buffers.
    """
    import sgdwalk

    unwatched = build()
    trace = Trace(unwatched.model, unwatched.optimizer)
    unwatched.train(trace)
    watched = build()
    options = {"on_error": "raise", **watched.watch, **watch}
    with sgdwalk.watch(watched.model, watched.optimizer, watched.loss_fn, watched.data, **options) as walk:
        watched.train(NoTrace())
    for (name, expected), actual in zip(
        unwatched.model.state_dict().items(), watched.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")
    return walk.run, trace.updates, build()


# --- everything that watching must leave alone -----------------------------------------------------------------------


def everything(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """All that a watched training may not differ in from an unwatched one, as copies."""
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "buffers": {name: b.detach().clone() for name, b in model.named_buffers()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers],
        "train_flags": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "versions": {name: p._version for name, p in model.named_parameters()},
        "buffer_versions": {name: b._version for name, b in model.named_buffers()},
        "strides": {name: p.stride() for name, p in model.named_parameters()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for name, module in model.named_modules()
        },
        "python_rng": random.getstate(),
        "numpy_rng": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch_rng": torch.get_rng_state(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "numerics": (
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mkldnn.enabled,
            torch.get_num_threads(),
        ),
    }


def assert_identical(actual: Any, expected: Any, path: str = "") -> None:
    """Bitwise, through dicts, lists, tuples, tensors and arrays; NaN equals NaN."""
    assert type(actual) is type(expected), f"{path}: {type(actual)} is not {type(expected)}"
    if isinstance(expected, dict):
        assert list(actual) == list(expected), f"{path}: {list(actual)} is not {list(expected)}"
        for key in expected:
            assert_identical(actual[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), f"{path}: {len(actual)} is not {len(expected)} long"
        for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_identical(a, b, f"{path}[{index}]")
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(
            actual.detach(), expected.detach(), rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{path}: {text}"
        )
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(actual, expected, err_msg=path)
    else:
        both_nan = actual != actual and expected != expected
        assert actual == expected or both_nan, f"{path}: {actual!r} is not {expected!r}"


def event_kinds(run: Any) -> list[str]:
    return list(run.events["kind"])
