"""Isotropic noise: its law, that it is a function of (seed, t) alone, and that every way to step gets it once."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

import nets
import sgdwalk
from sgdwalk.isotropic import IsotropicNoise, stream_seed

F64 = torch.float64
CHANCE = 1e-4
"""Two-sided chance that a right sampler falls outside a bound; seeds are fixed: a test passes always or never."""


def zeros(*shapes: tuple[int, ...], dtype: torch.dtype = F64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def flat_gradient(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters)
    return torch.cat([gradient.flatten() for gradient in gradients])


def draws(num_steps: int, *shapes: tuple[int, ...], dtype: torch.dtype = F64, seed: int = 0) -> np.ndarray:
    """ε_t / σ of consecutive updates, read from ``.grad`` where the gradient itself is zero.  # (num_steps, d)"""
    parameters = zeros(*shapes, dtype=dtype)
    optimizer = SGD(parameters, lr=0.0)
    rows = []
    with sgdwalk.isotropic_noise(optimizer, 4.0, factor=1.0, seed=seed) as noise:
        assert noise.sigma == 2.0
        for _ in range(num_steps):
            optimizer.zero_grad()
            optimizer.step()
            rows.append(flat_gradient(parameters).double().numpy() / 2.0)
    return np.stack(rows)


# --- its law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "sigma"), [("variance", math.sqrt(0.05 * 0.28)), ("std", 0.05 * 0.28)], ids=["variance", "std"]
)
def test_both_readings_of_the_papers_number(reading, sigma):
    """0.014 = 0.05 × 0.28 (paper, section 4) as the variance of the noise, and as its standard deviation."""
    (parameter,) = zeros((100_000,))
    optimizer = SGD([parameter], lr=0.0)
    with sgdwalk.isotropic_noise(optimizer, 0.28, factor=0.05, noise=reading) as noise:
        optimizer.step()
    assert noise.sigma == pytest.approx(sigma, rel=1e-15)
    low, high = scipy.stats.chi2.interval(1 - CHANCE, 100_000)
    assert low < float(flat_gradient([parameter]).square().sum()) / sigma**2 < high


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("shapes", [[(500,)], [(20, 20), (7,), (3, 3, 3), (), (65,)]], ids=["one", "several-shapes"])
class TestLaw:
    """On 400 updates of 500 coordinates; tensors below 16 coordinates are drawn by another routine of torch."""

    def test_mean_zero_and_variance(self, shapes, dtype):
        sample = draws(400, *shapes, dtype=dtype)
        assert sample.shape == (400, 500)
        assert abs(sample.mean()) < scipy.stats.norm.isf(CHANCE / 2) / math.sqrt(sample.size)
        for square, count in [((sample**2).sum(), sample.size), *(((row**2).sum(), 500) for row in sample[:3])]:
            low, high = scipy.stats.chi2.interval(1 - CHANCE, count)
            assert low < square < high

    def test_every_coordinate_has_the_same_variance(self, shapes, dtype):
        squares = (draws(400, *shapes, dtype=dtype) ** 2).sum(axis=0)
        low, high = scipy.stats.chi2.interval(1 - CHANCE / 500, 400)
        assert low < squares.min() <= squares.max() < high

    def test_gaussian(self, shapes, dtype):
        sample = draws(400, *shapes, dtype=dtype)
        assert scipy.stats.kstest(sample.ravel(), "norm").pvalue > 1e-3
        assert scipy.stats.kstest(sample[:, 10], "norm").pvalue > 1e-3

    def test_independent_over_coordinates(self, shapes, dtype):
        """Every one of the 124,750 pairs, by their correlation over the updates."""
        correlations = np.corrcoef(draws(400, *shapes, dtype=dtype), rowvar=False)
        off_diagonal = correlations[np.triu_indices(500, 1)]
        bound = scipy.stats.norm.isf(CHANCE / 2 / off_diagonal.size) / math.sqrt(400)
        assert np.abs(off_diagonal).max() < bound
        # Their mean square is 1 / 399 where all are independent, with a relative deviation of sqrt(2 / pairs).
        assert (off_diagonal**2).mean() * 399 == pytest.approx(1, abs=5 * math.sqrt(2 / off_diagonal.size))

    def test_independent_over_updates(self, shapes, dtype):
        correlations = np.corrcoef(draws(400, *shapes, dtype=dtype))
        off_diagonal = correlations[np.triu_indices(400, 1)]
        bound = scipy.stats.norm.isf(CHANCE / 2 / off_diagonal.size) / math.sqrt(500)
        assert np.abs(off_diagonal).max() < bound
        assert (off_diagonal**2).mean() * 499 == pytest.approx(1, abs=5 * math.sqrt(2 / off_diagonal.size))


def test_the_norm_grows_as_the_closed_form_says():
    """The real optimizer on a flat loss with weight decay, against :func:`sgdwalk.norm_under_noise`; 40 seeds."""
    squares = []
    for seed in range(40):
        parameter = nn.Parameter(torch.full((500,), 0.1, dtype=F64))
        optimizer = SGD([parameter], lr=0.5, weight_decay=0.02)
        with sgdwalk.isotropic_noise(optimizer, 0.04, factor=1.0, seed=seed):
            for _ in range(60):
                optimizer.zero_grad()
                optimizer.step()
        squares.append(float(parameter.detach().square().sum()))
    expected = sgdwalk.norm_under_noise(
        math.sqrt(500) * 0.1, sigma=0.2, num_parameters=500, learning_rate=0.5, num_updates=60, weight_decay=0.02
    )
    error = np.std(squares, ddof=1) / math.sqrt(len(squares))
    assert np.mean(squares) == pytest.approx(expected**2, abs=4 * error)
    assert error < 0.02 * expected**2, "the comparison is sharp"


# --- a function of (seed, t) ------------------------------------------------------------------------------------------


def test_no_two_updates_share_a_stream():
    """A hash into the 32 bits that a CPU generator reads would repeat some: 4.7 are expected among 200,000."""
    assert len({stream_seed(0, step) for step in range(200_000)}) == 200_000
    assert torch.equal(
        torch.randn(20, generator=torch.Generator().manual_seed(1)),
        torch.randn(20, generator=torch.Generator().manual_seed(1 + 2**32)),
    ), "the trap is set"


def test_streams_of_neighbouring_seeds_and_steps_have_nothing_in_common():
    taken = [{stream_seed(seed, step) for step in range(2_000)} for seed in (0, 1, 2)]
    assert all(len(first & second) < 5 for first, second in itertools.combinations(taken, 2))
    assert stream_seed(0, 1) != stream_seed(1, 0)
    sample = np.stack([draws(1, (2_000,), seed=seed)[0] for seed in range(20)])
    correlations = np.corrcoef(sample)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < scipy.stats.norm.isf(CHANCE / 2 / correlations.size) / math.sqrt(2_000)


def test_the_same_seed_gives_the_same_noise_bitwise():
    assert np.array_equal(draws(5, (30,), (4,), seed=3), draws(5, (30,), (4,), seed=3))
    assert not np.array_equal(draws(5, (30,), (4,), seed=3), draws(5, (30,), (4,), seed=4))


def dropout_loop(
    num_steps: int, *, start: dict[str, Any] | None = None, noisy: bool = True, **options: Any
) -> dict[str, Any]:
    """A model with dropout under noise: the state after ``num_steps`` updates, from the beginning or from a state."""
    nets.seed_everything(5)
    model = nets.mlp(dtype=F64, dropout=0.3, batchnorm=True)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = nets.classification(40, dtype=F64)
    with sgdwalk.isotropic_noise(optimizer, 0.28, **options) as noise:
        if start is not None:
            model.load_state_dict(start["model"])
            optimizer.load_state_dict(start["optimizer"])
            noise.load_state_dict(json.loads(json.dumps(start["noise"])))
            torch.set_rng_state(start["rng"])
        if not noisy:
            noise.close()
        for _ in range(num_steps):
            optimizer.zero_grad()
            functional.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "noise": noise.state_dict(),
            "rng": torch.get_rng_state(),
        }


def test_resumed_from_its_state_alone_training_is_bitwise_the_uninterrupted_one():
    whole = dropout_loop(7, factor=0.1, seed=11)
    resumed = dropout_loop(4, start=dropout_loop(3, factor=0.1, seed=11), factor=0.7, seed=12)
    nets.assert_identical(resumed, whole)
    assert whole["noise"] == {"seed": 11, "step": 7, "sigma": math.sqrt(0.1 * 0.28)}


def test_no_other_random_stream_moves():
    parameters = zeros((50, 3), (4,))
    optimizer = SGD(parameters, lr=0.1)
    model = nn.ParameterList(parameters)
    nets.seed_everything(7)
    with sgdwalk.isotropic_noise(optimizer, 1.0):
        before = nets.everything(model, [])
        for _ in range(3):
            optimizer.step()
        after = nets.everything(model, [])
    for stream in ("python_rng", "numpy_rng", "torch_rng", "grad_mode"):
        nets.assert_identical(after[stream], before[stream], stream)
    assert parameters[0].abs().min() > 0, "noise was drawn"


def test_noise_of_zero_is_plain_descent_bitwise():
    quiet, plain = dropout_loop(3, factor=0.0), dropout_loop(3, noisy=False)
    assert quiet["noise"]["step"] == 3
    assert (quiet["noise"]["sigma"], plain["noise"]["step"]) == (0.0, 0)
    nets.assert_identical({**quiet, "noise": None}, {**plain, "noise": None})


def test_noise_of_zero_leaves_a_missing_gradient_missing():
    idle = nn.Parameter(torch.ones(3, dtype=F64))
    optimizer = SGD([idle], lr=0.1, weight_decay=0.5)
    with sgdwalk.isotropic_noise(optimizer, 0.0):
        optimizer.step()
    assert idle.grad is None
    assert torch.equal(idle, torch.ones(3, dtype=F64))


# --- watched ----------------------------------------------------------------------------------------------------------


def watched(order: str) -> tuple[Any, nn.Module, SGD, IsotropicNoise]:
    """Three updates with noise; ``order``: what is attached first."""
    nets.seed_everything(0)
    model = nets.mlp(dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = nets.classification(40, dtype=F64)

    def watch() -> sgdwalk.Walk:
        return sgdwalk.watch(model, optimizer, nn.CrossEntropyLoss(), data, num_points=2, on_error="raise")

    walk = watch() if order == "walk, noise" else None
    noise = sgdwalk.isotropic_noise(optimizer, 0.28, seed=2)
    if order == "noise, walk":
        walk = watch()
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    if walk is not None:
        walk.close()
    noise.close()
    return None if walk is None else walk.run, model, optimizer, noise


@pytest.mark.parametrize("order", ["walk, noise", "noise, walk"])
def test_watching_changes_nothing_and_sees_the_noise(order):
    _, plain_model, plain_optimizer, _ = watched("noise")
    run, model, optimizer, noise = watched(order)
    nets.assert_identical(
        nets.everything(model, [optimizer])["parameters"], nets.everything(plain_model, [plain_optimizer])["parameters"]
    )
    nets.assert_identical(optimizer.state_dict(), plain_optimizer.state_dict())
    assert noise.step == 3

    # The same by hand: g_t + ε_t, with the noise as an optimizer without a gradient shows it.
    nets.seed_everything(0)
    twin = nets.mlp(dtype=F64)
    only_noise = zeros(*[tuple(parameter.shape) for parameter in twin.parameters()])
    source = SGD(only_noise, lr=0.0)
    descent = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    data = nets.classification(40, dtype=F64)
    received = []
    with sgdwalk.isotropic_noise(source, 0.28, seed=2):
        for _ in range(3):
            source.zero_grad()
            source.step()
            descent.zero_grad()
            functional.cross_entropy(twin(data[0]), data[1]).backward()
            for parameter, epsilon in zip(twin.parameters(), only_noise, strict=True):
                assert parameter.grad is not None
                parameter.grad = parameter.grad + epsilon.grad
            received.append(flat_gradient(list(twin.parameters())))
            descent.step()
    nets.assert_close(run.steps["grad_norm"], [float(g.norm()) for g in received], **nets.FLOAT64)
    cosines = [nets.cosine(received[t - 1], received[t]) for t in (1, 2)]
    nets.assert_close(run.steps["cosine"][1:], cosines, **nets.FLOAT64)


# --- whose gradients --------------------------------------------------------------------------------------------------


def noise_of(parameters: list[nn.Parameter], **options: Any) -> list[Tensor]:
    """ε_0 of parameters of these shapes, one by one."""
    fresh = zeros(*[tuple(parameter.shape) for parameter in parameters], dtype=parameters[0].dtype)
    optimizer = SGD(fresh, lr=0.0)
    with sgdwalk.isotropic_noise(optimizer, 1.0, factor=1.0, **options):
        optimizer.step()
    return [parameter.grad for parameter in fresh if parameter.grad is not None]


def test_a_missing_gradient_counts_as_zeros_and_frozen_parameters_stay():
    parameters = zeros((4,), (20,), (3,))
    parameters[0].grad = torch.ones(4, dtype=F64)
    parameters[1].requires_grad_(False)
    optimizer = SGD(parameters, lr=0.5)
    with sgdwalk.isotropic_noise(optimizer, 1.0, factor=1.0):
        optimizer.step()
    first, _, third = noise_of(parameters)
    assert parameters[0].grad is not None
    assert torch.equal(parameters[0].grad, 1 + first)
    assert parameters[1].grad is None
    assert not parameters[1].any()
    assert torch.equal(parameters[2].detach(), -0.5 * third), "a missing gradient became the noise, and was stepped on"


def test_groups_are_one_vector_and_a_shared_parameter_has_its_noise_once():
    one, two, three = zeros((5,), (6,), (7,))
    optimizer = SGD([{"params": [one]}, {"params": [two], "lr": 0.0}], lr=0.1)
    with sgdwalk.isotropic_noise(optimizer, 1.0, factor=1.0):
        optimizer.add_param_group({"params": [three]})
        optimizer.step()
        assert torch.equal(flat_gradient([one, two, three]), torch.cat(noise_of([one, two, three])))
        tied = SGD([one], lr=0.1)
        tied.param_groups.append({**tied.param_groups[0], "params": [one]})
    with sgdwalk.isotropic_noise(tied, 1.0, factor=1.0):
        one.grad = None
        tied.step()
        assert torch.equal(flat_gradient([one]), noise_of([one])[0])


def test_a_gradient_is_changed_in_place_whatever_its_memory_format():
    parameter = nn.Parameter(torch.zeros(2, 3, 4, 5, dtype=F64).to(memory_format=torch.channels_last))
    given = torch.ones_like(parameter)
    assert not given.is_contiguous()
    parameter.grad = given
    optimizer = SGD([parameter], lr=0.1)
    with sgdwalk.isotropic_noise(optimizer, 1.0, factor=1.0):
        optimizer.step()
    assert parameter.grad is given
    assert torch.equal(given, 1 + noise_of([parameter])[0])


def test_a_sparse_gradient_raises_before_any_is_changed():
    dense = nn.Parameter(torch.zeros(3))
    embedding = nn.Embedding(5, 2, sparse=True)
    dense.grad = torch.ones(3)
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer = SGD([dense, embedding.weight], lr=0.1)
    with (
        sgdwalk.isotropic_noise(optimizer, 1.0) as noise,
        pytest.raises(sgdwalk.InputError, match=r"shape \(5, 2\) has a sparse gradient.*sparse=False"),
    ):
        optimizer.step()
    assert torch.equal(dense.grad, torch.ones(3))
    assert noise.step == 0


# --- every way to step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
@pytest.mark.parametrize("watching", [False, True], ids=["alone", "watched"])
def test_a_closures_gradient_has_its_noise_once(keyword, watching):
    (parameter,) = zeros((6,))
    optimizer = SGD([parameter], lr=0.5)
    model = nn.ParameterList([parameter])
    seen = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (3 * parameter).sum()
        loss.backward()
        seen.append(parameter.grad)
        return loss

    walk = sgdwalk.watch(model, optimizer, None, None, when=None, on_error="raise") if watching else None
    with sgdwalk.isotropic_noise(optimizer, 1.0, factor=1.0) as noise:
        returned = optimizer.step(closure=closure) if keyword else optimizer.step(closure)  # pyright: ignore
        assert returned is not None
        assert (returned.item(), len(seen), noise.step) == (0.0, 1, 1)
        (epsilon,) = noise_of([parameter])
        assert torch.equal(flat_gradient([parameter]), 3 + epsilon)
        assert torch.equal(parameter.detach(), -0.5 * (3 + epsilon))
    if walk is not None:
        walk.close()
        assert walk.run.steps["grad_norm"].tolist() == pytest.approx([float((3 + epsilon).norm())], rel=1e-12)


def test_a_closure_that_fails_takes_no_step_of_the_noise():
    (parameter,) = zeros((6,))
    optimizer = SGD([parameter], lr=0.5)

    def closure() -> Tensor:
        raise MemoryError

    with sgdwalk.isotropic_noise(optimizer, 1.0) as noise:
        with pytest.raises(MemoryError):
            optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        assert noise.step == 0


class TwiceEvaluated(SGD):
    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step(closure)


def test_a_second_evaluation_in_one_step_raises():
    (parameter,) = zeros((6,))
    optimizer = TwiceEvaluated([parameter], lr=0.5)
    with (
        sgdwalk.isotropic_noise(optimizer, 1.0),
        pytest.raises(sgdwalk.InputError, match="TwiceEvaluated calls its closure a second time"),
    ):
        optimizer.step(lambda: parameter.sum().backward())


def test_lbfgs_is_refused():
    optimizer = torch.optim.LBFGS(zeros((3,)))
    with pytest.raises(sgdwalk.InputError, match="L-BFGS evaluates its gradient many times"):
        sgdwalk.isotropic_noise(optimizer, 1.0)


class CallsTwice(SGD):
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return super().step()


@pytest.mark.parametrize("closure", [None, lambda: None], ids=["plain", "closure"])
def test_a_subclass_whose_step_calls_super_step_has_its_noise_once(closure):
    SGD(zeros((1,)), lr=0.1)  # from the first plain instance on, SGD.step itself fires hooks
    (parameter,) = zeros((6,))
    optimizer = CallsTwice([parameter], lr=0.5)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    with sgdwalk.isotropic_noise(optimizer, 1.0, factor=1.0) as noise:
        optimizer.step(closure)
    assert len(calls) == 3, "the trap is set: three hook pairs an update"
    assert noise.step == 1
    assert torch.equal(flat_gradient([parameter]), noise_of([parameter])[0])


@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscaled-by-hand"])
@pytest.mark.parametrize("fused", [False, True], ids=["for-loop", "fused"])
@pytest.mark.parametrize("make", [SGD, Adam], ids=["sgd", "adam"])
def test_a_gradient_scaler_gets_the_same_noise_and_a_skipped_step_none(make, fused, unscaled):
    """Scales are powers of two: dividing by them is exact, so the scaled training is bitwise the plain one."""

    def train(*, scaled: bool) -> tuple[Tensor, int]:
        nets.seed_everything(1)
        model = nets.mlp()
        optimizer = make(model.parameters(), lr=0.1, fused=fused)
        data = nets.classification(40)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        with sgdwalk.isotropic_noise(optimizer, 0.28) as noise:
            for bad in [False, True, False, False] if scaled else [False] * 3:
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(data[0]), data[1])
                scaler.scale(loss * float("inf") if bad else loss).backward()
                if unscaled:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
        return nets.flat([parameter.detach() for parameter in model.parameters()]), noise.step

    (plain, plain_steps), (scaled, scaled_steps) = train(scaled=False), train(scaled=True)
    assert (plain_steps, scaled_steps) == (3, 3)
    assert torch.equal(scaled, plain)


class TakesTheScaler(SGD):
    _step_supports_amp_scaling = True

    def step(self, closure: Any = None, *, grad_scaler: Any = None) -> Any:
        raise AssertionError


@pytest.mark.filterwarnings("ignore:GradScaler is going to stop passing itself:FutureWarning")
def test_an_optimizer_that_takes_the_scaler_itself_is_refused():
    (parameter,) = zeros((6,), dtype=torch.float32)
    optimizer = TakesTheScaler([parameter], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(parameter.sum()).backward()
    with (
        sgdwalk.isotropic_noise(optimizer, 1.0),
        pytest.raises(sgdwalk.InputError, match="TakesTheScaler takes the gradient scaler itself"),
    ):
        scaler.step(optimizer)


class Wrapper:
    """Shaped like Accelerate's and Lightning's: no hooks of its own, the stepping optimizer inside."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


def test_a_wrapped_optimizer_is_seen_through():
    (parameter,) = zeros((6,))
    wrapper: Any = Wrapper(SGD([parameter], lr=0.5))
    with sgdwalk.isotropic_noise(wrapper, 1.0, factor=1.0):
        wrapper.step()
    assert torch.equal(flat_gradient([parameter]), noise_of([parameter])[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own imports
def test_a_compiled_step_has_its_noise_once():
    torch._dynamo.reset()
    (parameter,) = zeros((6,))
    optimizer = SGD([parameter], lr=0.5)
    with sgdwalk.isotropic_noise(optimizer, 1.0, factor=1.0) as noise:
        compiled = torch.compile(lambda: optimizer.step(), backend="aot_eager")
        for _ in range(2):
            optimizer.zero_grad()
            parameter.grad = torch.zeros_like(parameter)
            compiled()
    assert noise.step == 2
    np.testing.assert_array_equal(flat_gradient([parameter]).numpy(), 2.0 * draws(2, (6,))[1] / 2.0)


# --- its end, and what is refused -------------------------------------------------------------------------------------


def test_closed_it_leaves_gradients_alone():
    (parameter,) = zeros((3,))
    optimizer = SGD([parameter], lr=0.5)
    with sgdwalk.isotropic_noise(optimizer, 1.0) as noise:
        optimizer.step()
    noise.close()
    assert not optimizer._optimizer_step_pre_hooks
    optimizer.zero_grad()
    optimizer.step()
    assert (parameter.grad, noise.step) == (None, 1)
    sgdwalk.isotropic_noise(optimizer, 1.0).close()


def test_a_second_noise_on_the_same_optimizer_is_refused():
    optimizer = SGD(zeros((3,)), lr=0.5)
    with (
        sgdwalk.isotropic_noise(optimizer, 1.0),
        pytest.raises(sgdwalk.InputError, match="isotropic noise already: close the other"),
    ):
        sgdwalk.isotropic_noise(optimizer, 1.0)


@pytest.mark.parametrize(
    ("variance", "options", "message"),
    [
        (1.0, {"noise": "deviation"}, "noise='deviation' does not exist; there is 'variance' and 'std'"),
        (-1.0, {}, "max_gradient_variance must be finite and not negative, got -1.0"),
        (math.nan, {}, "max_gradient_variance must be finite and not negative, got nan"),
        ("large", {}, "max_gradient_variance must be a number, got 'large'"),
        (1.0, {"factor": math.inf}, "factor must be finite and not negative, got inf"),
        (1.0, {"factor": None}, "factor must be a number, got None"),
        (1.0, {"seed": 0.5}, "seed must be an integer, got 0.5"),
        (1.0, {"seed": True}, "seed must be an integer, got True"),
    ],
    ids=["noise", "negative", "nan", "text", "infinite", "none", "float-seed", "bool-seed"],
)
def test_bad_numbers_are_refused(variance, options, message):
    optimizer = SGD(zeros((3,)), lr=0.5)
    with pytest.raises(sgdwalk.InputError, match=message):
        sgdwalk.isotropic_noise(optimizer, variance, **options)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ([SGD(zeros((3,)), lr=0.5)], "takes one optimizer, got 1: call it for each, with a seed for each"),
        ("sgd", "optimizer is a str, not a torch.optim.Optimizer"),
        (SGD(zeros((3,), dtype=torch.bfloat16), lr=0.5), "bfloat16"),
    ],
    ids=["list", "no-optimizer", "bfloat16"],
)
def test_what_cannot_have_noise_is_refused(optimizer, message):
    with pytest.raises(sgdwalk.InputError, match=message):
        sgdwalk.isotropic_noise(optimizer, 1.0)
