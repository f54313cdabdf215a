"""Every known trap of watching a training, one test each, named after the trap."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.optim import SGD, Adam, Optimizer

import nets
import sgdwalk
from nets import FLOAT32, FLOAT64, NoTrace, Trace, Training, Twin

F64 = torch.float64


def training(model: nn.Module, optimizer: Any, train: Any, dtype: torch.dtype = F64, **watch: Any) -> Training:
    return Training(model, optimizer, nets.batches_of(nets.classification(40, dtype=dtype), 16), train, watch=watch)


def backward(model: nn.Module, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    inputs, targets = nets.classification(40, dtype=dtype)
    batch = slice(8 * (seed % 5), 8 * (seed % 5) + 8)
    loss = functional.cross_entropy(model(inputs[batch]), targets[batch])
    loss.backward()
    return loss


def assert_pair_follows(
    build: Any, tolerance: dict[str, float] = FLOAT64, **watch: Any
) -> tuple[Any, list[nets.Update]]:
    run, updates, fresh = nets.trained_pair(build, **watch)
    nets.assert_follows(run, updates, Twin(fresh.model, fresh.optimizer, fresh.data), **tolerance)
    return run, updates


# --- when the gradient exists, and what the optimizer received --------------------------------------------------------


def test_closure_gradients_exist_only_after_the_step_began():
    """Lightning's automatic optimization: .grad is None (or the last step's) when the pre-hook fires."""

    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = Adam(model.parameters(), lr=0.05)

        def train(trace: Trace) -> None:
            for step in range(4):
                optimizer.zero_grad(set_to_none=step % 2 == 0)
                with trace.update():
                    optimizer.step(lambda step=step: backward(model, seed=step))

        return training(model, optimizer, train)

    run, _ = assert_pair_follows(build)
    assert run.steps["grad_norm"].min() > 0


def test_noise_added_by_a_hook_registered_after_watch():
    """The optimizer receives the noisy gradient, so g_t is the noisy one."""

    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.1)

        def add_noise(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for parameter in model.parameters():
                parameter.grad.add_(torch.randn_like(parameter))

        def train(trace: Trace) -> None:
            torch.manual_seed(5)
            handle = optimizer.register_step_pre_hook(add_noise)
            for step in range(4):
                optimizer.zero_grad()
                backward(model, seed=step)
                with trace.update():
                    optimizer.step()
            handle.remove()

        return training(model, optimizer, train)

    run, _ = assert_pair_follows(build)
    # 75 coordinates of unit noise.
    assert run.steps["grad_norm"].min() > 4


def test_a_learning_rate_set_by_a_hook_registered_before_watch():
    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.1)
        rates = iter([0.1, 0.2, 0.3])
        optimizer.register_step_pre_hook(lambda o, a, k: o.param_groups[0].update(lr=next(rates)))

        def train(trace: Trace) -> None:
            for step in range(3):
                optimizer.zero_grad()
                backward(model, seed=step)
                optimizer.step()

        return training(model, optimizer, train)

    run, _, _ = nets.trained_pair(build)
    assert list(run.steps["learning_rate"]) == [0.1, 0.2, 0.3]


def test_a_fused_scaler_has_unscaled_the_gradient_only_in_the_post_hook():
    def build() -> Training:
        model = nets.mlp()
        optimizer = SGD(model.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)

        def train(trace: Trace) -> None:
            inputs, targets = nets.classification(40)
            for _ in range(3):
                optimizer.zero_grad()
                scaler.scale(functional.cross_entropy(model(inputs), targets)).backward()
                with trace.update():
                    scaler.step(optimizer)
                scaler.update()

        return training(model, optimizer, train, torch.float32)

    run, _ = assert_pair_follows(build, FLOAT32)
    assert run.steps["grad_norm"].max() < 10
    assert not nets.event_kinds(run)


def test_a_fused_skip_fires_both_hooks_but_is_no_update():
    def build() -> Training:
        model = nets.mlp()
        optimizer = Adam(model.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)

        def train(trace: Trace) -> None:
            inputs, targets = nets.classification(40)
            for step in range(4):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs), targets)
                if step == 1:
                    loss = loss * float("nan")
                scaler.scale(loss).backward()
                if step == 1:
                    scaler.step(optimizer)
                else:
                    with trace.update():
                        scaler.step(optimizer)
                scaler.update()

        return training(model, optimizer, train, torch.float32)

    run, updates = assert_pair_follows(build, FLOAT32)
    assert len(updates) == 3
    assert list(run.events["kind"]) == ["skipped_update"]
    assert list(run.events["step"]) == [1]


def test_a_hook_registered_before_watch_that_clears_the_gradients():
    """g_t is what the optimizer received, also where the user's own post-hook has set it to None since."""

    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.1)
        cleared: list[Tensor] = []

        def clear(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            cleared.append(nets.flat_gradient(list(model.parameters())))
            optimizer.zero_grad()

        optimizer.register_step_post_hook(clear)

        def train(trace: Trace) -> None:
            for step in range(3):
                backward(model, seed=step)
                with trace.update():
                    optimizer.step()
                    trace.gradient = cleared[-1]

        return training(model, optimizer, train)

    assert_pair_follows(build)


# --- which calls of step() are updates --------------------------------------------------------------------------------


class TwiceInOne(SGD):
    """Its step calls the hooked step of its base class, twice: an update is the outermost call."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return super().step()


@pytest.mark.parametrize("closure", [False, True])
def test_a_subclass_whose_step_calls_super_step_fires_hooks_twice(closure):
    SGD(nets.mlp().parameters(), lr=0.1)  # from the first plain instance on, SGD.step itself fires hooks

    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = TwiceInOne(model.parameters(), lr=0.1, momentum=0.5)

        def train(trace: Trace) -> None:
            for step in range(3):
                optimizer.zero_grad()
                if not closure:
                    backward(model, seed=step)
                with trace.update():
                    if closure:
                        optimizer.step(lambda step=step: backward(model, seed=step))
                    else:
                        optimizer.step()

        return training(model, optimizer, train)

    calls = []
    probe = build()
    probe.optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    probe.train(NoTrace())
    assert len(calls) == 9, "the trap is set: three hook pairs an update"
    run, _ = assert_pair_follows(build)
    assert len(run.steps) == 3


class FailsHalfway(SGD):
    """Moves the first parameter, then raises, when told to."""

    fail = False

    def step(self, closure: Any = None) -> Any:
        if self.fail:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(0.25)
            raise MemoryError("a kernel failed")
        return super().step(closure)


def test_an_exception_inside_step_that_the_loop_catches():
    """The interrupted call is no update; where it moved parameters, an event says so, and the next row is right."""

    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = FailsHalfway(model.parameters(), lr=0.1)

        def train(trace: Trace) -> None:
            for step in range(5):
                optimizer.zero_grad()
                backward(model, seed=step)
                if step == 2:
                    optimizer.fail = True
                    with pytest.raises(MemoryError):
                        optimizer.step()
                    optimizer.fail = False
                    continue
                with trace.update():
                    optimizer.step()

        return training(model, optimizer, train)

    run, updates = assert_pair_follows(build)
    assert len(updates) == 4
    assert "moved_parameters" in nets.event_kinds(run)


def test_an_exception_in_a_closure_that_the_loop_catches():
    """Nothing moved: no row, no event of moved parameters, and the next step is the outermost one again."""

    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.1)

        def fail() -> Tensor:
            raise OSError("a file of the data set is damaged")

        def train(trace: Trace) -> None:
            for step in range(5):
                optimizer.zero_grad()
                if step == 2:
                    with pytest.raises(OSError, match="damaged"):
                        optimizer.step(fail)
                    continue
                with trace.update():
                    optimizer.step(lambda step=step: backward(model, seed=step))

        return training(model, optimizer, train)

    run, updates = assert_pair_follows(build)
    assert len(updates) == 4
    assert "moved_parameters" not in nets.event_kinds(run)


def test_an_exception_in_the_first_of_two_optimizers():
    model = nets.mlp(dtype=F64)
    optimizers = [FailsHalfway(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)]
    with sgdwalk.watch(model, optimizers, functional.cross_entropy, nets.classification(40, dtype=F64)) as walk:
        for step in range(4):
            model.zero_grad()
            backward(model, seed=step)
            optimizers[0].fail = step == 1
            if step == 1:
                with pytest.raises(MemoryError):
                    optimizers[0].step()
                continue
            for optimizer in optimizers:
                optimizer.step()
    assert len(walk.run.steps) == 3
    assert walk.run.steps["loss"].notna().all()


def test_a_deepcopy_of_the_optimizer_drops_its_hooks():
    """A copy is another optimizer: its steps are no updates of this walk, and it can be made while the walk is on."""
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(40, dtype=F64)) as walk:
        backward(model)
        optimizer.step()
        other = copy.deepcopy(optimizer)
        for parameter in other.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        other.step()
        assert len(walk.run.steps) == 1
        optimizer.step()
        assert len(walk.run.steps) == 2
    assert not nets.event_kinds(walk.run)


def test_a_deepcopy_of_model_and_optimizer_while_watched_needs_no_walk():
    """Checkpointing by deepcopy must neither fail nor copy the walk."""
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(40, dtype=F64)) as walk:
        other_model, other_optimizer = copy.deepcopy((model, optimizer))
        assert not other_optimizer._optimizer_step_pre_hooks
        backward(other_model)
        other_optimizer.step()
        assert len(walk.run.steps) == 0


# --- wrappers ---------------------------------------------------------------------------------------------------------


class AcceleratedOptimizer(Optimizer):
    """Shaped like Hugging Face Accelerate's: an Optimizer by class, with neither hooks nor a base-class __init__."""

    def __init__(self, optimizer: Optimizer, scaler: Any = None):
        self.optimizer = optimizer
        self.scaler = scaler
        self.sync_gradients = True

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @property
    def defaults(self) -> Any:
        return self.optimizer.defaults

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        if self.sync_gradients:
            self.optimizer.zero_grad()

    def step(self, closure: Any = None) -> None:
        if not self.sync_gradients:
            return
        if self.scaler is not None:
            self.scaler.step(self.optimizer, closure)
            self.scaler.update()
        else:
            self.optimizer.step(closure)


class LightningOptimizer:
    """Shaped like Lightning's: imitates the wrapped class, and closes over the backward pass."""

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Lightning" + type(optimizer).__name__, (type(self), type(optimizer)), {})

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure if closure is not None else lambda: None)

    def __getattr__(self, item: str) -> Any:
        return getattr(self._optimizer, item)


class FabricOptimizer:
    """Shaped like Fabric's: shares the wrapped optimizer's __dict__ entries."""

    def __init__(self, optimizer: Optimizer):
        self.__dict__ = {k: v for k, v in optimizer.__dict__.items() if k not in ("state_dict", "step", "__del__")}
        self.__class__ = type("Fabric" + type(optimizer).__name__, (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(**({"closure": closure} if closure is not None else {}))


@pytest.mark.parametrize("wrap", [AcceleratedOptimizer, LightningOptimizer, FabricOptimizer])
@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
def test_wrappers_are_unwrapped(wrap, closure):
    def build() -> Training:
        model = nets.mlp(dtype=F64)
        wrapped = wrap(SGD(model.parameters(), lr=0.1, momentum=0.9))

        def train(trace: Trace) -> None:
            for step in range(3):
                wrapped.zero_grad()
                if not closure:
                    backward(model, seed=step)
                with trace.update():
                    if closure:
                        wrapped.step(lambda step=step: backward(model, seed=step))
                    else:
                        wrapped.step()

        return training(model, wrapped, train)

    run, updates, fresh = nets.trained_pair(build)
    nets.assert_follows(run, updates, _twin(fresh), **FLOAT64)
    assert run.info["optimizers"][0]["class"].endswith("SGD")
    assert "Lightning" not in run.info["optimizers"][0]["class"]


def _twin(fresh: Training) -> Twin:
    inner = getattr(fresh.optimizer, "optimizer", fresh.optimizer)
    return Twin(fresh.model, inner, fresh.data)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("wrapper", ["DataParallel", "DistributedDataParallel"])
def test_data_parallel_models_are_unwrapped(wrapper, evaluate_on, tmp_path):
    """L is evaluated on the bare module: a collective in a measurement would wait for idle processes."""
    if wrapper == "DistributedDataParallel":
        if not torch.distributed.is_gloo_available():
            pytest.skip("needs gloo")
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    def build() -> Training:
        model = getattr(nn.parallel, wrapper)(nets.mlp(dtype=F64, batchnorm=True))
        optimizer = SGD(model.parameters(), lr=0.1)
        loop = nets.plain_loop(model, optimizer, nets.batches_of(nets.classification(40, dtype=F64), 8), 4)
        return training(model, optimizer, loop, evaluate_on=evaluate_on)

    try:
        run, updates, _ = nets.trained_pair(build)
    finally:
        if wrapper == "DistributedDataParallel":
            torch.distributed.destroy_process_group()
    bare = nets.mlp(dtype=F64, batchnorm=True)
    for update in updates:
        update.buffers.clear()
    twin = Twin(bare, SGD(bare.parameters()), nets.batches_of(nets.classification(40, dtype=F64), 16))
    nets.assert_follows(run, updates, twin, **FLOAT64)


def test_accelerate_accumulation_and_scaler():
    """A wrapped step that does nothing while gradients accumulate is no update; a fused scaler works inside."""

    def build() -> Training:
        model = nets.mlp()
        inner = SGD(model.parameters(), lr=0.1, fused=True)
        wrapped = AcceleratedOptimizer(inner, torch.amp.GradScaler("cpu", init_scale=256.0))

        def train(trace: Trace) -> None:
            inputs, targets = nets.classification(40)
            for step in range(6):
                wrapped.sync_gradients = step % 2 == 1
                assert wrapped.scaler is not None
                wrapped.scaler.scale(functional.cross_entropy(model(inputs), targets)).backward()
                if wrapped.sync_gradients:
                    with trace.update():
                        wrapped.step()
                else:
                    wrapped.step()
                wrapped.zero_grad()

        return training(model, wrapped, train, torch.float32)

    run, updates, fresh = nets.trained_pair(build)
    assert len(run.steps) == 3
    nets.assert_follows(run, updates, _twin(fresh), **FLOAT32)


# --- compiled graphs --------------------------------------------------------------------------------------------------


class CountingBackend:
    """Compiles by running the graph as it is; keeps how often, and whether a size had become symbolic."""

    def __init__(self) -> None:
        self.compilations: list[bool] = []

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        self.compilations.append(any(isinstance(value, torch.SymInt) for value in example_inputs))
        return graph.forward


@pytest.mark.parametrize("evaluate_on", [None, "copy", "model"])
def test_an_odd_sized_evaluation_does_not_make_the_training_graph_symbolic(evaluate_on):
    torch._dynamo.reset()
    backend = CountingBackend()
    model = nets.mlp()
    compiled = torch.compile(model, backend=backend)
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification(45)  # evaluated in batches of 16, 16 and 13; trained on batches of 8
    walk = None
    if evaluate_on:
        walk = sgdwalk.watch(
            compiled,
            optimizer,
            functional.cross_entropy,
            nets.batches_of(data, 16),
            evaluate_on=evaluate_on,
            on_error="raise",
        )
    for step in range(4):
        optimizer.zero_grad()
        inputs, targets = data[0][8 * step : 8 * step + 8], data[1][8 * step : 8 * step + 8]
        functional.cross_entropy(compiled(inputs), targets).backward()
        optimizer.step()
    if walk is not None:
        walk.close()
        assert walk.run.steps["loss"].notna().all()
    assert backend.compilations == [False], "the training graph is compiled once, with fixed sizes"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own imports
def test_a_compiled_optimizer_step():
    """torch.compile(optimizer.step) must neither trace the walk into the graph nor switch it off."""

    def build() -> Training:
        torch._dynamo.reset()
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

        def train(trace: Trace) -> None:
            compiled_step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
            for step in range(4):
                optimizer.zero_grad()
                backward(model, seed=step)
                with trace.update():
                    compiled_step()

        return training(model, optimizer, train)

    run, _ = assert_pair_follows(build)
    assert len(run.steps) == 4


def test_a_compiled_submodule_does_not_recompile_either():
    torch._dynamo.reset()
    backend = CountingBackend()
    model = nets.mlp()
    model[0] = torch.compile(model[0], backend=backend)  # type: ignore[index]
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification(45)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, nets.batches_of(data, 16), on_error="raise", evaluate_on="model"
    ):
        for step in range(3):
            optimizer.zero_grad()
            inputs, targets = data[0][8 * step : 8 * step + 8], data[1][8 * step : 8 * step + 8]
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    assert backend.compilations == [False]


# --- weights that move between updates --------------------------------------------------------------------------------


def clip_weights(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-0.2, 0.2)


def clip_data(model: nn.Module) -> None:
    """Through .data, which bumps no version counter."""
    for parameter in model.parameters():
        parameter.data.clamp_(-0.2, 0.2)


def replace_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clamp(-0.2, 0.2)


def load_state(model: nn.Module) -> None:
    model.load_state_dict({name: value.clamp(-0.2, 0.2) for name, value in model.state_dict().items()})


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("move", [clip_weights, clip_data, replace_data, load_state])
def test_weights_moved_between_updates(move, evaluate_on):
    """WGAN clipping: an event, and the next segment starts at the loss of where the weights are now."""

    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.5)

        def train(trace: Trace) -> None:
            for step in range(4):
                optimizer.zero_grad()
                backward(model, seed=step)
                with trace.update():
                    optimizer.step()
                if step == 1:
                    move(model)

        return training(model, optimizer, train, evaluate_on=evaluate_on)

    run, updates = assert_pair_follows(build)
    assert not torch.equal(updates[1].end, updates[2].start)
    moved = run.events[run.events["kind"] == "moved_parameters"]
    assert list(moved["step"]) == [2]
    assert run.steps["loss"][2] != run.steps["next_loss"][1]


def test_weights_moved_before_the_first_update():
    """θ_0 is where the parameters were when watch was called."""
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1)
    theta_0 = nets.flat(list(model.parameters()))
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(40, dtype=F64)) as walk:
        clip_weights(model)
        moved = (nets.flat(list(model.parameters())) - theta_0).norm().item()
        backward(model)
        optimizer.step()
    nets.assert_close(walk.run.steps["distance"][0], moved, **FLOAT64)
    assert "moved_parameters" in nets.event_kinds(walk.run)


@pytest.mark.parametrize("restored", [True, False], ids=["restored", "left in place"])
def test_ema_swap(restored):
    """Weights swapped for their average and put back are the same bits: no event, and no start evaluated again."""
    evaluated = Counter()

    def build() -> Training:
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.5)

        def train(trace: Trace) -> None:
            ema = torch.optim.swa_utils.AveragedModel(
                model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
            )
            for step in range(4):
                optimizer.zero_grad()
                backward(model, seed=step)
                with trace.update():
                    optimizer.step()
                ema.update_parameters(model)
                kept = copy.deepcopy(model.state_dict())
                if step == 1:
                    model.load_state_dict(ema.module.state_dict())
                    backward(model)
                    optimizer.zero_grad()
                    if restored:
                        model.load_state_dict(kept)
                evaluated.lap()

        return Training(
            model, optimizer, nets.batches_of(nets.classification(40, dtype=F64), 16), train, loss_fn=evaluated.counting
        )

    run, _ = assert_pair_follows(build)
    assert nets.event_kinds(run).count("moved_parameters") == (0 if restored else 1)
    # Laps 0 to 3 are the unwatched training's; 3 batches an evaluation.
    assert evaluated.laps[-4:][1:] == [30, 30 if restored else 33, 30]


class Counter:
    """A loss function that counts the calls that come from measurements, in laps."""

    def __init__(self) -> None:
        self.calls = 0
        self.laps: list[int] = []

    def counting(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += sgdwalk.is_measuring()
        return functional.cross_entropy(output, target)

    def lap(self) -> None:
        self.laps.append(self.calls)
        self.calls = 0


def grow_embedding(model: nn.Module) -> None:
    """Two new words, as resize_token_embeddings does it through .data."""
    weight = model[0].weight  # type: ignore[index]
    weight.data = torch.cat([weight.data, torch.zeros(2, 4, dtype=weight.dtype)])


def to_float64(model: nn.Module) -> None:
    model.double()


@pytest.mark.parametrize("kernel", ["numba", "numpy"])
@pytest.mark.parametrize("change", [grow_embedding, to_float64], ids=["shape", "dtype"])
def test_parameters_that_change_shape_or_dtype_end_the_walk_in_words(change, kernel, monkeypatch):
    """Kept vectors have the old layout: no number is made from them, and the training goes on as it would."""
    if kernel == "numpy":
        monkeypatch.setitem(sys.modules, "numba", None)
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, 5, (20, 2), generator=generator), torch.randint(0, 3, (20,), generator=generator)
    states = []
    for watch in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
        optimizer = SGD(model.parameters(), lr=0.1)
        if watch:
            walk = sgdwalk.watch(model, optimizer, functional.cross_entropy, (tokens, targets))
        for step in range(4):
            if step == 2:
                optimizer.zero_grad()
                change(model)
            optimizer.zero_grad()
            functional.cross_entropy(model(tokens), targets).backward()
            optimizer.step()
        states.append(nets.everything(model, [optimizer]))
    walk.close()
    nets.assert_identical(states[1], states[0])
    assert list(walk.run.steps.index) == [0, 1]
    assert nets.event_kinds(walk.run) == ["measurement_failed"]
    assert "shape" in walk.run.events["message"][0] or "dtype" in walk.run.events["message"][0]


def test_a_replaced_head_whose_old_parameters_the_optimizer_keeps():
    """Usual in fine-tuning by hand: the new head is walked on, and the old one moves no more."""
    for evaluate_on in ("copy", "model"):
        torch.manual_seed(0)
        model = nets.mlp(dtype=F64)
        optimizer = SGD(model.parameters(), lr=0.1)
        data = nets.classification(40, dtype=F64)
        with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, evaluate_on=evaluate_on) as walk:
            for step in range(4):
                if step == 2:
                    model[2] = nn.Linear(8, 3).double()  # type: ignore[index]
                    optimizer.add_param_group({"params": list(model[2].parameters())})  # type: ignore[index]
                optimizer.zero_grad()
                backward(model, seed=step)
                optimizer.step()
        assert nets.event_kinds(walk.run) == ["parameters_added"], evaluate_on
        assert walk.run.steps["loss"].notna().all()
        assert len(walk.run.steps) == 4


# --- buffers that L reads ---------------------------------------------------------------------------------------------


def spectrally_normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8)), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize(
    ("make_model", "batchnorm", "evaluations"),
    [
        (functools.partial(nets.mlp, dtype=F64), "train", 10),
        (functools.partial(nets.mlp, dtype=F64, batchnorm=True), "train", 10),
        (functools.partial(nets.mlp, dtype=F64, batchnorm=True), "eval", 11),
        (spectrally_normed, "train", 11),
    ],
    ids=["no buffers", "BatchNorm in train mode", "BatchNorm in eval mode", "spectral_norm"],
)
def test_buffers_that_move_with_theta_unmoved_cost_an_eleventh_evaluation(
    make_model, batchnorm, evaluations, evaluate_on
):
    """All points of a segment use the buffers as they are right after update t."""
    counter = Counter()

    def build() -> Training:
        model = make_model()
        optimizer = SGD(model.parameters(), lr=0.5)

        def train(trace: Trace) -> None:
            model.train()
            for step in range(4):
                optimizer.zero_grad()
                backward(model, seed=step)
                with trace.update():
                    optimizer.step()
                counter.lap()

        data = nets.batches_of(nets.classification(40, dtype=F64), 16)
        return Training(model, optimizer, data, train, loss_fn=counter.counting)

    run, updates, fresh = nets.trained_pair(build, batchnorm=batchnorm, evaluate_on=evaluate_on)
    twin = Twin(fresh.model, fresh.optimizer, fresh.data, batchnorm=batchnorm)
    nets.assert_follows(run, updates, twin, **FLOAT64)
    assert counter.laps[-3:] == [3 * evaluations] * 3
    if evaluations == 11:
        steps = run.steps
        assert (steps["loss"][1:].to_numpy() != steps["next_loss"][:-1].to_numpy()).all()


class Warm(nn.Module):
    """A temperature that the loop anneals, as an attribute, and a scale that it anneals as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.mlp(dtype=F64)
        self.temperature = 1.0
        self.settings = {"scale": 1.0}
        self.register_buffer("gain", torch.ones((), dtype=F64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs) * self.gain * self.settings["scale"] / self.temperature


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("what", ["temperature", "settings", "gain"])
def test_model_attributes_changed_during_training_reach_the_evaluation(what, evaluate_on):
    """All eleven points of a segment are of one function: the one that the model is right after the update."""
    torch.manual_seed(0)
    model = Warm()
    optimizer = SGD(model.parameters(), lr=0.5)
    batches = nets.batches_of(nets.classification(40, dtype=F64), 16)
    trace = Trace(model, optimizer)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, batches, evaluate_on=evaluate_on, on_error="raise"
    ) as walk:
        for step in range(4):
            optimizer.zero_grad()
            backward(model, seed=step)
            if step == 2:
                if what == "temperature":
                    model.temperature = 3.0
                elif what == "settings":
                    model.settings["scale"] = 1 / 3.0
                else:
                    model.gain.div_(3.0)
            with trace.update():
                optimizer.step()
    for step, update in enumerate(trace.updates):
        fresh = Warm()
        if step >= 2 and what != "gain":
            fresh.temperature = 3.0
        twin = Twin(fresh, SGD(fresh.parameters()), batches)
        points = walk.run.segments[walk.run.segments["step"] == step]
        nets.assert_close(points["loss"], twin.segment(update), **FLOAT64, what=f"step {step}")


# --- what cannot be watched -------------------------------------------------------------------------------------------


def test_lazy_modules_not_yet_initialized():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    with pytest.raises(sgdwalk.InputError, match=r"lazy.*forward"):
        sgdwalk.watch(model, SGD(model.parameters(), lr=0.1), functional.cross_entropy, nets.classification())
    # A lazy module that the optimizer was not given hinders the forward pass just the same.
    model = nn.Sequential(nn.Linear(5, 4), nn.LazyLinear(3))
    with pytest.raises(sgdwalk.InputError, match=r"lazy.*forward"):
        sgdwalk.watch(model, SGD(model[0].parameters(), lr=0.1), functional.cross_entropy, nets.classification())


def test_lazy_modules_once_initialized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    data = nets.classification()
    model(data[0])
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, on_error="raise") as walk:
        backward(model, torch.float32)
        optimizer.step()
    assert walk.run.steps["loss"].notna().all()


def test_optimizer_in_backward_by_hooks():
    """The recipe of PyTorch's tutorial: one optimizer a parameter, stepped while the gradients accumulate."""
    model = nets.mlp()
    optimizers = {parameter: SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    # At watch() or at the first step.
    with (
        pytest.raises(sgdwalk.InputError, match=r"(?i)backward"),
        sgdwalk.watch(model, list(optimizers.values()), functional.cross_entropy, nets.classification()),
    ):
        backward(model, torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.distributed.optim's own imports
def test_optimizer_in_backward_by_torch():
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = nets.mlp()
    _apply_optimizer_in_backward(SGD, model.parameters(), {"lr": 0.1})
    optimizers = [optimizer for p in model.parameters() for optimizer in p._in_backward_optimizers]  # type: ignore[attr-defined]
    with pytest.raises(sgdwalk.InputError, match="backward"):
        sgdwalk.watch(model, optimizers, functional.cross_entropy, nets.classification())


def test_a_gradient_hook_of_another_kind_is_no_optimizer_in_backward():
    """Clipping each gradient as it arrives is the user's right."""

    def build() -> Training:
        model = nets.mlp(dtype=F64)

        def clip(parameter: Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad.clamp_(-0.01, 0.01)

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(clip)
        optimizer = SGD(model.parameters(), lr=0.1)

        def train(trace: Trace) -> None:
            for step in range(3):
                optimizer.zero_grad()
                backward(model, seed=step)
                with trace.update():
                    optimizer.step()

        return training(model, optimizer, train)

    run, _ = assert_pair_follows(build)
    assert run.steps["grad_norm"].max() <= 0.01 * 75**0.5


# --- second derivatives -----------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """One attention layer; ``math`` spells the softmax out, which any number of derivatives passes."""

    def __init__(self, *, math: bool = False):
        super().__init__()
        self.math = math
        self.project = nn.Linear(5, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:  # inputs (batch, 5) seen as 2 tokens with the batch's own noise
        tokens = torch.stack([inputs, inputs.flip(1)], dim=1)  # (batch, tokens, 5)
        query, key, value = self.project(tokens).unsqueeze(1).chunk(3, dim=-1)  # (batch, 1 head, tokens, 4)
        if self.math:
            weights = torch.softmax(query @ key.transpose(-1, -2) / 2.0, dim=-1)
            mixed = weights @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.head(mixed.squeeze(1).mean(1))


def hessian_vector_product(twin: Twin, theta: Tensor, vector: Tensor) -> Tensor:
    twin.write(theta, {})
    gradient = torch.autograd.grad(twin.loss_tensor(), twin.parameters, create_graph=True)
    pieces = torch.split(vector, [p.numel() for p in twin.parameters])
    product = sum((g.reshape(-1) * piece).sum() for g, piece in zip(gradient, pieces, strict=True))
    assert isinstance(product, Tensor)
    return nets.flat(torch.autograd.grad(product, twin.parameters))


def hvp_of(model: nn.Module, data: Any, dtype: torch.dtype, **watch: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
    """One watched update; the run, θ at which the measure was taken, v, and here.hvp(v)."""
    optimizer = SGD(model.parameters(), lr=0.1)
    theta = nets.flat(list(model.parameters()))
    vector = torch.randn(theta.numel(), generator=torch.Generator().manual_seed(9), dtype=F64)
    products: list[Tensor] = []

    def measure(here: Any) -> float:
        product = here.hvp(vector.to(dtype))
        products.append(product.double().clone())
        return product.norm().item()

    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, data, measures={"curvature": measure}, on_error="raise", **watch
    ) as walk:
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    assert len(products) == 1
    return walk.run, theta, vector, products[0]


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_double_backward_through_scaled_dot_product_attention_uses_the_math_backend(evaluate_on):
    data = nets.classification(24)
    torch.manual_seed(0)
    model = Attention()
    loss = functional.cross_entropy(model(data[0]), data[1])
    gradient = torch.autograd.grad(loss, model.project.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="not implemented"):  # the trap is set
        gradient.square().sum().backward()
    model.zero_grad()
    exact = Attention(math=True)
    exact.load_state_dict(model.state_dict())
    twin = Twin(exact, SGD(exact.parameters()), [data])
    run, theta, vector, product = hvp_of(model, data, torch.float32, evaluate_on=evaluate_on)
    expected = hessian_vector_product(twin, theta, vector)
    # Float32 through two derivatives; a finite difference in float32 would be off by 1e-3 or more.
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5)
    assert "finite_difference" not in nets.event_kinds(run)


class OnceDifferentiable(torch.autograd.Function):
    """A kernel of the user's own whose backward has no derivative.

    torch.autograd.grad does not notice: it prunes the node that would raise, and leaves a term of the product out.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        output = torch.tanh(inputs)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradient * (1 - output * output)


class OwnKernel(nn.Module):
    def __init__(self, *, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return self.last(torch.tanh(hidden) if self.exact else OnceDifferentiable.apply(hidden))


class Prototypes(nn.Module):
    """Distances to learned points; the backward of torch.cdist has no derivative and says so."""

    def __init__(self, *, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.first, self.last = nn.Linear(5, 4), nn.Linear(6, 3)
        self.centers = nn.Parameter(torch.randn(6, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        if self.exact:
            return self.last((hidden.unsqueeze(1) - self.centers).square().sum(2).sqrt())
        return self.last(torch.cdist(hidden, self.centers))


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("make", [Prototypes, OwnKernel], ids=["cdist", "once_differentiable"])
def test_double_backward_that_fails_becomes_a_finite_difference_and_says_so(make, evaluate_on, dtype):
    data = nets.classification(24, dtype=dtype)
    torch.manual_seed(0)
    model = make().to(dtype)
    exact = make(exact=True).to(dtype)
    exact.load_state_dict(model.state_dict())
    twin = Twin(exact, SGD(exact.parameters()), [data])
    run, theta, vector, product = hvp_of(model, data, dtype, evaluate_on=evaluate_on)
    expected = hessian_vector_product(twin, theta, vector)
    # A central difference in float64 is good to about eps^(2/3); one in float32 would be off by 1e-3 or more.
    assert ((product - expected).norm() / expected.norm()).item() < 1e-5
    assert nets.event_kinds(run).count("finite_difference") == 1


# --- hooks and state of the user's model ------------------------------------------------------------------------------


class Collector:
    """Counts forward calls through a bound hook, as activation collectors do."""

    def __init__(self, model: nn.Module, *, bound: bool):
        self.own: int = 0
        self.measured: int = 0
        self.activations: list[Tensor] = []

        def free(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.collect(module, inputs, output)

        self.handle = model.register_forward_hook(self.collect if bound else free)

    def collect(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if sgdwalk.is_measuring():
            self.measured += 1
            return
        self.own += 1
        self.activations.append(output)  # not a leaf: a copy of this hook's owner could not be made


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("bound", [False, True], ids=["closure", "bound method"])
def test_hooks_on_the_copy_are_the_users_own_objects(bound, evaluate_on):
    model = nets.mlp()
    collector = Collector(model[0], bound=bound)
    data = nets.classification(40)
    backward(model, torch.float32)
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, nets.batches_of(data, 16), evaluate_on=evaluate_on, on_error="raise"
    ):
        for step in range(3):
            backward(model, torch.float32, seed=step)
            before = collector.measured
            optimizer.step()
            if step:
                assert collector.measured - before == 30, "ten evaluations of three batches"
    assert collector.own == len(collector.activations) == 4
    assert len(model[0]._forward_hooks) == 1
    measured = collector.measured
    backward(model, torch.float32)
    assert (collector.own, collector.measured) == (5, measured)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_hooks_added_and_removed_during_training(evaluate_on):
    """The evaluation sees the hooks that the model has now: one that changes outputs changes L."""
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.5)
    batches = nets.batches_of(nets.classification(40, dtype=F64), 16)
    trace = Trace(model, optimizer)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, batches, evaluate_on=evaluate_on, on_error="raise"
    ) as walk:
        for step in range(3):
            handle = model.register_forward_hook(lambda m, i, output: 2 * output) if step == 1 else None
            optimizer.zero_grad()
            backward(model, seed=step)
            with trace.update():
                optimizer.step()
            if handle is not None:
                handle.remove()
    for step, update in enumerate(trace.updates):
        fresh = nets.mlp(dtype=F64)
        factor = 2.0 if step == 1 else 1.0
        twin = Twin(
            fresh,
            SGD(fresh.parameters()),
            batches,
            lambda m, b, factor=factor: functional.cross_entropy(factor * m(b[0]), b[1]),
        )
        points = walk.run.segments[walk.run.segments["step"] == step]
        nets.assert_close(points["loss"], twin.segment(update), **FLOAT64, what=f"step {step}")


class Remembers(nn.Module):
    """Stores its last activation, which is not a leaf of the graph and cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.mlp()
        self.last: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        self.last = self.body(inputs)
        return self.last


def test_stored_activations_make_deepcopy_fail():
    model = Remembers()
    backward(model, torch.float32)
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification(40)
    with pytest.raises(sgdwalk.InputError, match='evaluate_on="model"'):
        sgdwalk.watch(model, optimizer, functional.cross_entropy, data)
    assert not optimizer._optimizer_step_pre_hooks
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, evaluate_on="model", on_error="raise") as walk:
        optimizer.step()
        optimizer.zero_grad()
        backward(model, torch.float32)
        optimizer.step()
    assert walk.run.steps["loss"].notna().all()


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm], ids=["spectral_norm", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_old_style_norms_make_deepcopy_fail(norm):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(5, 8)), nn.Tanh(), nn.Linear(8, 3))
    backward(model, torch.float32)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(sgdwalk.InputError, match='evaluate_on="model"'):
        sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(40))
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, nets.classification(40), evaluate_on="model", on_error="raise"
    ) as walk:
        optimizer.step()
    assert walk.run.steps["next_loss"].notna().all()


def test_pruned_layers_write_their_weight_at_every_forward():
    """A pre-hook sets the masked weight as an attribute: the evaluation's own must not stay behind."""
    states = []
    for evaluate_on in (None, "model"):
        model = nets.mlp()
        prune.l1_unstructured(model[0], "weight", amount=0.5)
        optimizer = SGD(model.parameters(), lr=0.1)
        data = nets.classification(40)
        if evaluate_on:
            walk = sgdwalk.watch(
                model, optimizer, functional.cross_entropy, data, evaluate_on="model", on_error="raise"
            )
        for step in range(3):
            optimizer.zero_grad()
            backward(model, torch.float32, seed=step)
            optimizer.step()
        states.append(nets.everything(model, [optimizer]) | {"weight": model[0].weight.detach().clone()})
    walk.close()
    nets.assert_identical(states[1], states[0])
    assert walk.run.steps["loss"].notna().all()


class CachesMask(nn.Module):
    """Builds a tensor at the first call of a size and keeps it, as rotary embeddings and causal masks do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.mlp()
        self.cache: dict[int, Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) not in self.cache:
            self.cache[len(inputs)] = torch.linspace(0.5, 1.5, len(inputs)).unsqueeze(1)
        return self.body(inputs) * self.cache[len(inputs)]


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_tensors_cached_during_an_evaluation_can_be_trained_through(evaluate_on):
    """Inference tensors would leak through such a cache and break the training's own backward."""
    model = CachesMask()
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification(40)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, nets.batches_of(data, 16), evaluate_on=evaluate_on, on_error="raise"
    ):
        for inputs, targets in nets.batches_of(data, 16):
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def test_the_evaluation_uses_the_memory_format_of_its_own_copy_only():
    model = nets.conv_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.images(24)
    strides = [parameter.stride() for parameter in model.parameters()]
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.batches_of(data, 8), on_error="raise"):
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    assert [parameter.stride() for parameter in model.parameters()] == strides


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_tensor_hooks_on_parameters_belong_to_the_training(evaluate_on):
    """A gradient mask or a logger registered with Parameter.register_hook is not called by, and not part of, ∇L."""
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1)
    data = nets.classification(40, dtype=F64)
    twin = Twin(model, optimizer, [data])
    theta = nets.flat(list(model.parameters()))
    calls: list[bool] = []

    def halve(gradient: Tensor) -> Tensor:
        calls.append(sgdwalk.is_measuring())
        return gradient / 2

    model[0].weight.register_hook(halve)  # type: ignore[index]
    vector = torch.randn(75, dtype=F64, generator=torch.Generator().manual_seed(0))
    taken: list[Tensor] = []

    def measure(here: Any) -> float:
        taken.extend([here.gradient(), here.hvp(vector)])
        return 0.0

    with sgdwalk.watch(
        model,
        optimizer,
        functional.cross_entropy,
        data,
        measures={"m": sgdwalk.at(lambda step: step == 0, measure)},
        evaluate_on=evaluate_on,
        on_error="raise",
    ):
        for _ in range(2):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    assert calls == [False, False]
    twin.write(theta, {})
    expected = nets.flat(torch.autograd.grad(twin.loss_tensor(), twin.parameters))
    torch.testing.assert_close(taken[0], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(taken[1], hessian_vector_product(twin, theta, vector), rtol=1e-10, atol=1e-12)


# --- loaders ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_data_loader_given_as_data_is_never_iterated():
    """With persistent workers a second iterator would end the epoch that the user is in."""
    data = nets.classification(40)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data), batch_size=8, num_workers=1, persistent_workers=True
    )
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    iterator = iter(loader)
    seen = [next(iterator)]
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, loader, on_error="raise"):
        for inputs, targets in itertools.chain(seen[:1], iterator):
            seen.append((inputs, targets))
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in seen[1:]]), data[0], rtol=0, atol=0)


class Logged(torch.utils.data.Dataset):
    def __init__(self, data: nets.Batch):
        self.data = data
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads.append(index)
        return self.data[0][index], self.data[1][index]


def test_a_dataset_is_read_once_in_order_and_its_first_twenty_examples_twice():
    data = Logged(nets.classification(40))
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, on_error="raise"):
        for step in range(3):
            backward(model, torch.float32, seed=step)
            optimizer.step()
    assert sorted(data.reads) == sorted([*range(20), *range(40)])
    assert [index for index in data.reads if index >= 20] == list(range(20, 40))


def test_the_collate_function_of_a_loader_makes_the_evaluation_batches():
    data = nets.classification(40, dtype=F64)

    def collate(examples: list[tuple[Tensor, Tensor]]) -> nets.Batch:
        inputs, targets = torch.utils.data.default_collate(examples)
        return 2 * inputs, targets

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data), batch_size=8, shuffle=True, collate_fn=collate
    )
    model = nets.mlp(dtype=F64)
    twin = Twin(model, SGD(model.parameters()), [(2 * data[0], data[1])])
    optimizer = SGD(model.parameters(), lr=0.1)
    theta = nets.flat(list(model.parameters()))
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, loader, on_error="raise") as walk:
        backward(model)
        optimizer.step()
    nets.assert_close(walk.run.steps["loss"][0], twin.loss(theta, {}), **FLOAT64)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_closed_walk_keeps_neither_model_nor_optimizer_alive():
    model = nets.mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(40)) as walk:
        backward(model, torch.float32)
        optimizer.step()
    gone = [weakref.ref(model), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert len(walk.run.steps) == 1
