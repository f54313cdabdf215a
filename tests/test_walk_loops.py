"""Any loop can be watched: the walk records what a trace by hand and a float64 twin say, and weights stay bitwise."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, RMSprop

import nets
import sgdwalk
from nets import FLOAT32, FLOAT64, Trace, Training, Twin
from sgdwalk.kernels import choose_kernel

NUM_UPDATES = 6


def classifier(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], dtype: torch.dtype) -> Training:
    """A BatchNorm MLP over a ragged list of batches and the plain loop with mini-batches of 8."""
    data = nets.classification(40, dtype=dtype)
    model = nets.mlp(dtype=dtype, batchnorm=True)
    optimizer = make_optimizer(model)
    loop = nets.plain_loop(model, optimizer, nets.batches_of(data, 8), NUM_UPDATES)
    return Training(model, optimizer, nets.batches_of(data, 16), loop)


OPTIMIZERS = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.5),
    "sgd-momentum": lambda m: SGD(m.parameters(), lr=0.2, momentum=0.9, dampening=0.1),
    "sgd-weight-decay": lambda m: SGD(m.parameters(), lr=0.5, weight_decay=0.1),
    "sgd-nesterov": lambda m: SGD(m.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd-maximize": lambda m: SGD(m.parameters(), lr=0.1, maximize=True),
    "sgd-for-loop": lambda m: SGD(m.parameters(), lr=0.5, momentum=0.5, foreach=False),
    "sgd-foreach": lambda m: SGD(m.parameters(), lr=0.5, momentum=0.5, foreach=True),
    "sgd-fused": lambda m: SGD(m.parameters(), lr=0.5, momentum=0.5, fused=True),
    "adam-for-loop": lambda m: Adam(m.parameters(), lr=0.05, foreach=False),
    "adam-foreach": lambda m: Adam(m.parameters(), lr=0.05, foreach=True),
    "adam-fused": lambda m: Adam(m.parameters(), lr=0.05, fused=True),
    "adam-amsgrad": lambda m: Adam(m.parameters(), lr=0.05, amsgrad=True),
    "adam-tensor-lr": lambda m: Adam(m.parameters(), lr=torch.tensor(0.05), foreach=False),
    "adamw-for-loop": lambda m: AdamW(m.parameters(), lr=0.05, weight_decay=0.1, foreach=False),
    "adamw-foreach": lambda m: AdamW(m.parameters(), lr=0.05, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda m: AdamW(m.parameters(), lr=0.05, weight_decay=0.1, fused=True),
    "rmsprop": lambda m: RMSprop(m.parameters(), lr=0.01),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)], ids=["float64", "float32"]
)
def test_first_order_optimizers(make_optimizer, dtype, tolerance):
    run, updates, fresh = nets.trained_pair(lambda: classifier(make_optimizer, dtype))
    assert len(updates) == NUM_UPDATES
    assert min((u.end - u.start).norm().item() for u in updates) > 1e-3
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **tolerance)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("num_points", [2, 5])
def test_other_grids_and_the_model_itself(evaluate_on, num_points):
    run, updates, fresh = nets.trained_pair(
        lambda: classifier(OPTIMIZERS["sgd-momentum"], torch.float64), evaluate_on=evaluate_on, num_points=num_points
    )
    twin = Twin(fresh.model, fresh.optimizer, fresh.data)
    for step, update in enumerate(updates):
        points = run.segments[run.segments["step"] == step]
        grid = [k / num_points for k in range(num_points + 1)]
        nets.assert_close(points["alpha"], grid, rtol=0, atol=1e-15)
        losses = [twin.loss((1 - a) * update.start + a * update.end, update.buffers) for a in grid]
        nets.assert_close(points["loss"], losses, **FLOAT64)


def closure_training(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Training:
    data = nets.classification(40, dtype=torch.float64)
    model = nets.mlp(dtype=torch.float64)
    optimizer = make_optimizer(model)
    batches = nets.batches_of(data, 20)

    def train(trace: Trace) -> None:
        for step in range(NUM_UPDATES):
            inputs, targets = batches[step % 2]
            gradients: list[torch.Tensor] = []

            def closure(inputs=inputs, targets=targets, gradients=gradients) -> torch.Tensor:
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs), targets)
                loss.backward()
                gradients.append(nets.flat_gradient(list(model.parameters())))
                return loss

            with trace.update():
                returned = optimizer.step(closure)
                trace.gradient = gradients[0]
            assert isinstance(returned, torch.Tensor)
            assert returned.requires_grad

    return Training(model, optimizer, nets.batches_of(data, 16), train)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=4),
        lambda m: torch.optim.LBFGS(m.parameters(), max_iter=5, line_search_fn="strong_wolfe"),
        lambda m: SGD(m.parameters(), lr=0.5, momentum=0.9),
        lambda m: Adam(m.parameters(), lr=0.05),
    ],
    ids=["lbfgs", "lbfgs-strong-wolfe", "sgd", "adam"],
)
def test_closures(make_optimizer):
    """L-BFGS calls its closure several times; g_t is the gradient of the first call, which is the one at θ_t."""
    run, updates, fresh = nets.trained_pair(lambda: closure_training(make_optimizer))
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)


def test_lbfgs_closure_given_by_keyword():
    def build() -> Training:
        training = closure_training(lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=4))
        model, optimizer = training.model, training.optimizer
        inputs, targets = nets.classification(40, dtype=torch.float64)

        def train(trace: Trace) -> None:
            gradients: list[torch.Tensor] = []

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs), targets)
                loss.backward()
                gradients.append(nets.flat_gradient(list(model.parameters())))
                return loss

            for _ in range(3):
                gradients.clear()
                with trace.update():
                    optimizer.step(closure=closure)
                    trace.gradient = gradients[0]

        training.train = train
        return training

    run, updates, fresh = nets.trained_pair(build)
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)


def test_several_parameter_groups():
    def groups(model: nn.Module) -> SGD:
        first, _, _, last = model
        # Not in the order of model.parameters(), and the BatchNorm layer is in no group: it does not move.
        return SGD(
            [{"params": last.parameters(), "lr": 0.3}, {"params": first.parameters(), "weight_decay": 0.1}],
            lr=0.1,
            momentum=0.5,
        )

    run, updates, fresh = nets.trained_pair(lambda: classifier(groups, torch.float64))
    assert updates[0].start.numel() == 8 * 3 + 3 + 5 * 8 + 8
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)
    assert list(run.steps["learning_rate"]) == [0.3] * NUM_UPDATES
    (optimizer,) = run.info["optimizers"]
    assert optimizer["class"].endswith("SGD")
    assert [group["learning_rate"] for group in optimizer["groups"]] == [0.3, 0.1]
    assert [group["weight_decay"] for group in optimizer["groups"]] == [0, 0.1]


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_a_group_added_during_training_moves_too(evaluate_on):
    """add_param_group is how layers are unfrozen; the segment has to move them from then on."""

    def build() -> Training:
        data = nets.classification(40, dtype=torch.float64)
        model = nets.mlp(dtype=torch.float64)
        optimizer = SGD(model[2].parameters(), lr=0.3)
        loop = nets.plain_loop(model, optimizer, nets.batches_of(data, 8), 3)

        def train(trace: Trace) -> None:
            loop(trace)
            optimizer.add_param_group({"params": list(model[0].parameters())})
            trace.parameters = nets.unique_parameters(optimizer)
            loop(trace)

        return Training(model, optimizer, nets.batches_of(data, 16), train)

    run, updates, fresh = nets.trained_pair(build, evaluate_on=evaluate_on)
    fresh.optimizer.add_param_group({"params": list(fresh.model[0].parameters())})
    twin = Twin(fresh.model, fresh.optimizer, fresh.data)
    steps = run.steps
    assert len(steps) == 6
    for step in (3, 4, 5):
        points = run.segments[run.segments["step"] == step]
        nets.assert_close(points["loss"], twin.segment(updates[step]), **FLOAT64)
        nets.assert_close(
            steps["update_norm"][step], (updates[step].end - updates[step].start).norm().item(), **FLOAT64
        )


def test_frozen_parameters_outside_and_inside_the_optimizer():
    def frozen(*, in_optimizer: bool) -> Callable[[nn.Module], SGD]:
        def make(model: nn.Module) -> SGD:
            for parameter in model[0].parameters():
                parameter.requires_grad_(False)
            return SGD([p for p in model.parameters() if in_optimizer or p.requires_grad], lr=0.5)

        return make

    outside, updates, fresh = nets.trained_pair(lambda: classifier(frozen(in_optimizer=False), torch.float64))
    nets.assert_follows(outside, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)
    inside, _, _ = nets.trained_pair(lambda: classifier(frozen(in_optimizer=True), torch.float64))
    for column in ("loss", "next_loss", "floor", "grad_norm", "update_norm", "distance", "next_distance", "cosine"):
        nets.assert_close(inside.steps[column], outside.steps[column], **FLOAT64, what=column)


def test_tied_and_unused_parameters():
    def build() -> Training:
        data = nets.classification(40, dtype=torch.float64)
        torch.manual_seed(0)
        model = nets.TiedAutoencoder().double()
        optimizer = SGD(model.parameters(), lr=0.3, momentum=0.5)
        loop = nets.plain_loop(model, optimizer, nets.batches_of(data, 8), NUM_UPDATES)
        return Training(model, optimizer, nets.batches_of(data, 16), loop)

    run, updates, fresh = nets.trained_pair(build)
    assert updates[0].start.numel() == 25 + 5 + 15 + 3 + 4  # the shared weight once
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)


def test_gradient_accumulation_counts_one_update():
    def build() -> Training:
        training = classifier(OPTIMIZERS["sgd-momentum"], torch.float64)
        model, optimizer = training.model, training.optimizer
        batches = nets.batches_of(nets.classification(40, dtype=torch.float64), 8)

        def train(trace: Trace) -> None:
            for step in range(12):
                inputs, targets = batches[step % len(batches)]
                (functional.cross_entropy(model(inputs), targets) / 3).backward()
                if step % 3 == 2:
                    with trace.update():
                        optimizer.step()
                    optimizer.zero_grad()

        training.train = train
        return training

    run, updates, fresh = nets.trained_pair(build)
    assert len(run.steps) == 4
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)


def test_gradients_are_those_after_clipping():
    def build() -> Training:
        training = classifier(OPTIMIZERS["adam-for-loop"], torch.float64)
        model, optimizer = training.model, training.optimizer
        batches = nets.batches_of(nets.classification(40, dtype=torch.float64), 8)

        def train(trace: Trace) -> None:
            for inputs, targets in batches:
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs), targets).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                with trace.update():
                    optimizer.step()

        training.train = train
        return training

    run, updates, fresh = nets.trained_pair(build)
    nets.assert_close(run.steps["grad_norm"], [0.01] * 5, rtol=1e-3)
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)


# --- several optimizers ----------------------------------------------------------------------------------------------


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 5))
        self.discriminator = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.discriminator(self.generator(noise)).squeeze(1)


def real_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(output, target.to(output.dtype))


def gan(schedule: str) -> Training:
    """``schedule`` spells the order of discriminator (d) and generator (g) steps; a space ends an update of the trace.

    The generator's backward adds to the discriminator's gradients after the discriminator has stepped, as in any GAN.
    """
    torch.manual_seed(0)
    model = Gan().double()
    optimizers = [
        SGD(model.discriminator.parameters(), lr=0.3),
        SGD(model.generator.parameters(), lr=0.2, momentum=0.5),
    ]
    real, _ = nets.classification(32, dtype=torch.float64)
    noise = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    evaluation = nets.batches_of((noise, torch.arange(32) % 2), 12)

    def discriminator_step() -> torch.Tensor:
        optimizers[0].zero_grad()
        fake = model.generator(noise).detach()
        loss = real_loss(model.discriminator(real).squeeze(1), torch.ones(32)) + real_loss(
            model.discriminator(fake).squeeze(1), torch.zeros(32)
        )
        loss.backward()
        gradient = nets.flat_gradient(list(model.discriminator.parameters()))
        optimizers[0].step()
        return gradient

    def generator_step() -> torch.Tensor:
        optimizers[1].zero_grad()
        real_loss(model(noise), torch.ones(32)).backward()
        gradient = nets.flat_gradient(list(model.generator.parameters()))
        optimizers[1].step()
        return gradient

    def train(trace: Trace) -> None:
        for update in schedule.split():
            with trace.update():
                received = [
                    torch.zeros(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
                    for net in (model.discriminator, model.generator)
                ]
                for letter in update:
                    if letter == "d":
                        received[0] = discriminator_step()
                    else:
                        received[1] = generator_step()
                trace.gradient = torch.cat(received)

    return Training(model, optimizers, evaluation, train, loss_fn=real_loss)


def gan_twin(fresh: Training) -> Twin:
    return Twin(fresh.model, fresh.optimizer, fresh.data, lambda model, batch: real_loss(model(batch[0]), batch[1]))


@pytest.mark.parametrize("schedule", ["dg dg dg dg", "gd gd gd"], ids=["in order of the list", "the other way round"])
def test_several_optimizers_make_one_update_a_round(schedule):
    run, updates, fresh = nets.trained_pair(lambda: gan(schedule))
    nets.assert_follows(run, updates, gan_twin(fresh), **FLOAT64)
    assert len(run.info["optimizers"]) == 2


def test_a_round_ends_when_an_optimizer_is_about_to_step_again():
    """Two discriminator steps per generator step: the first is a round of its own, and an event tells so."""
    run, updates, fresh = nets.trained_pair(lambda: gan("dg d dg d dg"))
    steps = run.steps
    assert len(steps) == 5
    for column, values in {
        "update_norm": [(u.end - u.start).norm().item() for u in updates],
        "distance": [(u.start - updates[0].start).norm().item() for u in updates],
    }.items():
        nets.assert_close(steps[column], values, **FLOAT64, what=column)
    twin = gan_twin(fresh)
    for step, update in enumerate(updates):
        points = run.segments[run.segments["step"] == step]
        nets.assert_close(points["loss"], twin.segment(update), **FLOAT64, what=f"step {step}")
    rounds = run.events[run.events["kind"] == "incomplete_round"]
    assert list(rounds["step"]) == [1], "told once, after the one whole round"
    assert "again" in rounds["message"][0]


# --- schedulers ------------------------------------------------------------------------------------------------------


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=NUM_UPDATES + 1),
    "warm-up": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / 4),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, NUM_UPDATES),
}


@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("made", ["before watch", "after watch"])
def test_learning_rate_schedulers(make_scheduler, made):
    def build() -> Training:
        training = classifier(lambda m: SGD(m.parameters(), lr=0.3, momentum=0.9), torch.float64)
        model, optimizer = training.model, training.optimizer
        early = make_scheduler(optimizer) if made == "before watch" else None
        inputs, targets = nets.classification(40, dtype=torch.float64)

        def train(trace: Trace) -> None:
            scheduler = early or make_scheduler(optimizer)
            for _ in range(NUM_UPDATES):
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs), targets).backward()
                with trace.update():
                    optimizer.step()
                scheduler.step()

        training.train = train
        return training

    run, updates, fresh = nets.trained_pair(build)
    assert len({u.learning_rate for u in updates}) > 1
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT64)


# --- mixed precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["forward", "the whole loop"])
def test_autocast_reaches_the_loop_and_not_the_full_loss(around):
    """L is float32 with autocast off, also where optimizer.step() itself runs under autocast."""

    def build() -> Training:
        training = classifier(OPTIMIZERS["sgd"], torch.float32)
        model, optimizer = training.model, training.optimizer
        batches = nets.batches_of(nets.classification(40), 8)
        loop = nets.plain_loop(model, optimizer, batches, NUM_UPDATES)

        def train(trace: Trace) -> None:
            if around == "the whole loop":
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loop(trace)
                return
            for step in range(NUM_UPDATES):
                inputs, targets = batches[step % 5]
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    output = model(inputs)
                    loss = functional.cross_entropy(output, targets)
                assert output.dtype == torch.bfloat16
                loss.backward()
                with trace.update():
                    optimizer.step()

        training.train = train
        return training

    run, updates, fresh = nets.trained_pair(build)
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT32)


@pytest.mark.parametrize("clipped", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("make_optimizer", [SGD, Adam], ids=["sgd", "adam"])
def test_grad_scaler_with_skipped_steps(make_optimizer, fused, clipped):
    """Gradients are those after unscaling; a skipped step has no t, and the cosine bridges it."""

    def build() -> Training:
        training = classifier(lambda m: make_optimizer(m.parameters(), lr=0.1, fused=fused), torch.float32)
        model, optimizer = training.model, training.optimizer
        batches = nets.batches_of(nets.classification(40), 8)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

        def train(trace: Trace) -> None:
            for step in range(9):
                inputs, targets = batches[step % 5]
                optimizer.zero_grad()
                factor = float("inf") if step in (0, 3, 4) else 1.0
                scaler.scale(functional.cross_entropy(model(inputs), targets) * factor).backward()
                if clipped:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                if factor == 1.0:
                    with trace.update():
                        scaler.step(optimizer)
                else:
                    scaler.step(optimizer)
                scaler.update()

        training.train = train
        return training

    run, updates, fresh = nets.trained_pair(build)
    assert len(run.steps) == 6
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **FLOAT32)
    skipped = run.events[run.events["kind"] == "skipped_update"]
    # An unfused skip fires no hook and leaves no trace.
    assert list(skipped["step"]) == ([0, 2, 2] if fused else [])


# --- compiled models -------------------------------------------------------------------------------------------------


def compiled_training(backend: str) -> Training:
    torch._dynamo.reset()
    training = classifier(OPTIMIZERS["sgd-momentum"], torch.float32)
    compiled = torch.compile(training.model, backend=backend)
    loop = nets.plain_loop(compiled, training.optimizer, nets.batches_of(nets.classification(40), 8), NUM_UPDATES)
    return Training(compiled, training.optimizer, training.data, loop)


has_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler"
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own imports
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=has_compiler)])
def test_compiled_model(backend):
    run, updates, fresh = nets.trained_pair(lambda: compiled_training(backend))
    twin = Twin(fresh.model._orig_mod, fresh.optimizer, fresh.data)
    # The twin's buffers have the bare module's names.
    for update in updates:
        renamed = {name.removeprefix("_orig_mod."): buffer for name, buffer in update.buffers.items()}
        update.buffers.clear()
        update.buffers.update(renamed)
    nets.assert_follows(run, updates, twin, **FLOAT32)


def test_compiled_model_evaluated_on_itself():
    run, updates, fresh = nets.trained_pair(lambda: compiled_training("aot_eager"), evaluate_on="model")
    twin = Twin(fresh.model._orig_mod, fresh.optimizer, fresh.data)
    points = run.segments[run.segments["step"] == 5]
    losses = [twin.loss((1 - alpha) * updates[5].start + alpha * updates[5].end, {}) for alpha in nets.ALPHAS]
    nets.assert_close(points["loss"], losses, **FLOAT32)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_model_compiled_in_place(evaluate_on):
    def build() -> Training:
        torch._dynamo.reset()
        training = classifier(OPTIMIZERS["sgd-momentum"], torch.float32)
        training.model.compile(backend="aot_eager")
        return training

    run, updates, fresh = nets.trained_pair(build, evaluate_on=evaluate_on)
    plain = nets.mlp(batchnorm=True)
    nets.assert_follows(run, updates, Twin(plain, SGD(plain.parameters()), fresh.data), **FLOAT32)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0, "the training did run compiled"


class Spread(nn.Module):
    """Parameters of awkward sizes: none, one, a block, a block and one, several blocks, not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for index, size in enumerate([0, 1, 511, 512, 513, 5000]):
            self.register_parameter(f"p{index}", nn.Parameter(torch.randn(size, generator=generator)))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.transposed = nn.Parameter(torch.randn(40, 30, generator=generator).t())
        self.folded = nn.Parameter(torch.randn(3, 4, 5, 6, generator=generator).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("kernel", ["numba", "numpy"])
def test_cheap_columns_of_parameters_of_any_size_and_layout(kernel, monkeypatch):
    """With the fused loops and without; against sums in float64."""
    if kernel == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setitem(sys.modules, "numba", None)

    def build() -> Training:
        model = Spread()
        optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
        generator = torch.Generator().manual_seed(1)

        def train(trace: Trace) -> None:
            for step in range(4):
                for index, parameter in enumerate(model.parameters()):
                    gradient = torch.randn(parameter.shape, generator=generator)
                    if step % 2:  # in the parameter's own layout, as autograd leaves it
                        gradient = torch.empty_like(parameter).copy_(gradient)
                    parameter.grad = None if index == step else gradient
                with trace.update():
                    optimizer.step()

        return Training(model, optimizer, None, train, loss_fn=None, watch={"when": None})

    run, updates, _ = nets.trained_pair(build)
    assert choose_kernel(torch.device("cpu")).name == kernel
    nets.assert_follows(run, updates, **FLOAT32)


def test_watching_only_some_steps_keeps_the_cheap_columns_of_all():
    run, updates, fresh = nets.trained_pair(
        lambda: classifier(OPTIMIZERS["sgd-momentum"], torch.float64), when=sgdwalk.every(2)
    )
    steps = run.steps
    nets.assert_close(steps["grad_norm"], [u.gradient.norm().item() for u in updates], **FLOAT64)
    nets.assert_close(
        steps["cosine"][1:],
        [nets.cosine(a.gradient, b.gradient) for a, b in itertools.pairwise(updates)],
        **FLOAT64,
    )
    assert list(steps["loss"].notna()) == [True, False] * 3
    assert sorted(set(run.segments["step"])) == [0, 2, 4]
    twin = Twin(fresh.model, fresh.optimizer, fresh.data)
    for step in (0, 2, 4):
        points = run.segments[run.segments["step"] == step]
        nets.assert_close(points["loss"], twin.segment(updates[step]), **FLOAT64, what=f"step {step}")
