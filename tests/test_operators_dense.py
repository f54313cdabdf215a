"""Products of the operators against matrices written out in float64, for every kind of layer and of loss."""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import sgdwalk
from nets import (
    TiedAutoencoder,
    Training,
    assert_identical,
    batches_of,
    classification,
    conv_net,
    everything,
    images,
    plain_loop,
    seed_everything,
    trained_pair,
)
from sgdwalk.errors import InputError
from sgdwalk.operators import GaussNewtonOperator, HessianOperator, ScaledOperator
from sgdwalk.standing import StandingLoss
from test_objective import FusedTanh

N, B = 13, 5
"""Examples, and those of an evaluation batch: the last batch has 3."""

TOLERANCES = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 1e-3, "atol": 3e-6}}
"""Float32 products are sums of some hundred terms of both signs."""

DIFFERENCES = {"rtol": 1e-6, "atol": 1e-8}
"""Central differences of float64 gradients: the square of h = 6e-6 (1 + ‖θ‖), and 2e-16 / h."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes() -> Tensor:
    return torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(1))


def vectors() -> tuple[Tensor, Tensor]:
    return drawn(N, 6), classes()


def regression() -> tuple[Tensor, Tensor]:
    return drawn(N, 6), drawn(N, 3, seed=2)


def words() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 7, (N, 4), generator=torch.Generator().manual_seed(3)), classes()


def pictures() -> tuple[Tensor, Tensor]:
    return drawn(N, 2, 6, 6), classes()


def between(*layers: nn.Module, width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), *layers, nn.Linear(width, 3))


class Attention(nn.Module):
    """The transformer layer of torch, whose fused paths have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x.view(len(x), 3, 2))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.view(len(x), 3, 2))[0][:, -1])


class Words(nn.Module):
    """Means of embeddings, by a layer that has them in one kernel (``bag``) or not."""

    def __init__(self, *, sparse: bool = False, bag: bool = False) -> None:
        super().__init__()
        self.embedding: Any = (nn.EmbeddingBag if bag else nn.Embedding)(7, 4, sparse=sparse)
        self.head, self.bag = nn.Linear(4, 3), bag

    def forward(self, x: Tensor) -> Tensor:
        read = self.embedding(x)
        return self.head(torch.tanh(read if self.bag else read.mean(1)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(lambda z: torch.tanh(self.inner(z)), x, use_reentrant=False))


class PlainWeightNorm(nn.Module):
    """g v / ‖v‖, each row's norm, in operations that differentiate themselves."""

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        return magnitude * direction / direction.square().sum(1, keepdim=True).sqrt()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.norm(dim=1, keepdim=True), weight


def weight_normed(*, plain: bool = False) -> nn.Module:
    layer = nn.Linear(6, 5)
    if plain:
        parametrize.register_parametrization(layer, "weight", PlainWeightNorm())
    else:
        parametrizations.weight_norm(layer)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3))


class Kernel(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


class Slope(torch.autograd.Function):
    """A derivative that can be recorded; nobody wrote its own."""

    @staticmethod
    def forward(ctx, grad, y, words):
        ctx.words = words
        return grad * (1 - y * y)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(ctx.words)


class UnwrittenTanh(torch.autograd.Function):
    words = "derivative for aten::unwritten_tanh_backward is not implemented"

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @classmethod
    def backward(cls, ctx, grad):
        return Slope.apply(grad, ctx.saved_tensors[0], UnwrittenTanh.words)


class BrokenTanh(UnwrittenTanh):
    @classmethod
    def backward(cls, ctx, grad):
        return Slope.apply(grad, ctx.saved_tensors[0], "the device went away")


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target)


def counted(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    kept = target != 0
    return functional.cross_entropy(output, target, reduction="none")[kept].sum(), kept.sum()


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]] = vectors
    loss_fn: Callable[..., Any] = cross_entropy
    options: dict[str, Any] = field(default_factory=dict)
    reference: Callable[[], nn.Module] | None = None
    """The same function with the same parameters, where autograd does not differentiate ``build``'s twice."""
    method: str = "double_backward"


def tanh_net() -> nn.Module:
    return between(nn.Tanh())


CASES = {
    "batchnorm_train": Case(lambda: between(nn.BatchNorm1d(5), nn.Tanh())),
    "batchnorm_eval": Case(lambda: between(nn.BatchNorm1d(5), nn.Tanh()), options={"batchnorm": "eval"}),
    "groupnorm_gelu": Case(lambda: between(nn.GroupNorm(2, 6), nn.GELU(), width=6)),
    "layernorm_relu": Case(lambda: between(nn.LayerNorm(5), nn.ReLU())),
    "dropout": Case(lambda: between(nn.Tanh(), nn.Dropout(0.5))),
    "conv": Case(conv_net, pictures),
    "attention": Case(Attention),
    "lstm": Case(Recurrent),
    "tied_and_unused": Case(TiedAutoencoder, lambda: (drawn(N, 5), classes())),
    "embedding": Case(Words, words),
    "sparse_embedding": Case(lambda: Words(sparse=True), words, reference=Words),
    "checkpoint": Case(Checkpointed),
    "sum_and_count": Case(tanh_net, loss_fn=counted),
    "per_example": Case(tanh_net, loss_fn=nn.CrossEntropyLoss(reduction="none")),
    "linear": Case(lambda: nn.Linear(6, 3), regression, nn.MSELoss()),
    "no_curvature": Case(lambda: nn.Linear(6, 3), regression, lambda output, target: (output * target).mean()),
    "kinks": Case(lambda: between(nn.ReLU()), regression, nn.L1Loss()),
    "order": Case(tanh_net, options={"partition_seed": None}),
    "whole": Case(tanh_net, options={"batch_size": None}),
    "embedding_bag": Case(lambda: Words(bag=True), words, reference=Words, method="finite_difference"),
    "weight_norm": Case(weight_normed, reference=lambda: weight_normed(plain=True), method="finite_difference"),
    "once_differentiable": Case(lambda: between(Kernel(FusedTanh)), reference=tanh_net, method="finite_difference"),
    "unwritten": Case(lambda: between(Kernel(UnwrittenTanh)), reference=tanh_net, method="finite_difference"),
}
ONCE = ["embedding_bag", "once_differentiable", "unwritten"]
"""Cases without J v by differentiating twice."""


def seeded(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(4)
    model = build().to(dtype)
    for name, buffer in model.named_buffers():  # running statistics unlike any batch's
        if "running" in name:
            buffer.fill_(0.3 if "mean" in name else 2.0)
    return model


def standing(case: Case, dtype: torch.dtype = torch.float64, **more: Any) -> StandingLoss:
    data = tuple(part.to(dtype) if part.is_floating_point() else part for part in case.data())
    return StandingLoss(seeded(case.build, dtype), case.loss_fn, data, **{"batch_size": B, **case.options, **more})


class Twin:
    """L and the outputs of each batch as functions of the flat parameters, in float64."""

    def __init__(self, case: Case, loss: StandingLoss):
        self.module = seeded(case.reference or case.build).eval()
        self.loss_fn, self.batches = case.loss_fn, [loss.data[index] for index in range(len(loss.data))]
        if case.options.get("batchnorm") != "eval":
            for layer in self.module.modules():
                layer.train(isinstance(layer, nn.modules.batchnorm._BatchNorm))
        self.shapes = [(name, p.shape, p.numel()) for name, p in self.module.named_parameters()]
        self.theta = torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])
        if loss.site.leaves[0].dtype == torch.float32:
            self.theta = self.theta.float().double()

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        parts = theta.split([size for *_, size in self.shapes])
        weights = {name: part.view(shape) for (name, shape, _), part in zip(self.shapes, parts, strict=True)}
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        return torch.func.functional_call(copy.deepcopy(self.module), weights, (inputs,))

    def sum_and_count(self, output: Tensor, target: Tensor) -> tuple[Tensor, float]:
        value = self.loss_fn(output, target.double() if target.is_floating_point() else target)
        if isinstance(value, tuple):
            return value[0], float(value[1])
        return value.mean() * len(target), float(len(target))

    def loss(self, theta: Tensor) -> Tensor:
        pairs = [self.sum_and_count(self.outputs(theta, x), y) for x, y in self.batches]
        return torch.stack([value for value, _ in pairs]).sum() / sum(count for _, count in pairs)

    def hessian(self) -> Tensor:
        with sdpa_kernel([SDPBackend.MATH]):
            return torch.autograd.functional.hessian(self.loss, self.theta)

    def gauss_newton(self) -> Tensor:
        total = torch.zeros(len(self.theta), len(self.theta), dtype=torch.float64)
        count = 0.0
        for x, y in self.batches:
            with sdpa_kernel([SDPBackend.MATH]):
                jacobian = torch.autograd.functional.jacobian(lambda t, x=x: self.outputs(t, x), self.theta)
            output = self.outputs(self.theta, x).detach()
            curvature = torch.autograd.functional.hessian(lambda z, y=y: self.sum_and_count(z, y)[0], output)
            rows, size = jacobian.reshape(-1, len(self.theta)), output.numel()
            total += rows.T @ curvature.reshape(size, size) @ rows
            count += self.sum_and_count(output, y)[1]
        return total / count


# ---------------------------------------------------------------------------------------------------------- matrices
@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_the_dense_one(name):
    case = CASES[name]
    loss = standing(case)
    matrix = HessianOperator(loss, guard=loss.evaluating)
    written = matrix.dense()
    expected = Twin(case, loss).hessian()
    tolerance = TOLERANCES[torch.float64] if case.method == "double_backward" else DIFFERENCES
    torch.testing.assert_close(written, expected, **tolerance)
    torch.testing.assert_close(written, written.T, **tolerance)
    assert (matrix.method, loss.hvp_method) == (case.method, case.method)
    assert matrix.num_products == matrix.size == len(expected) <= 2_000


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("kinks", "unwritten")])
def test_a_float32_product_is_near_the_dense_one(name):
    case = CASES[name]
    loss = standing(case, torch.float32)
    matrix = HessianOperator(loss, guard=loss.evaluating)
    vector = drawn(matrix.size, seed=5)
    product = matrix @ vector  # of another type, as a user may pass it
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), Twin(case, loss).hessian() @ vector, **TOLERANCES[torch.float32])
    assert matrix.method == case.method


@pytest.mark.parametrize("name", [name for name in CASES if name not in ONCE])
def test_the_gauss_newton_matrix_is_the_dense_one(name):
    """Also with weight_norm's kernel, whose first derivative along a direction is right."""
    case = CASES[name]
    loss = standing(case)
    written = GaussNewtonOperator(loss, guard=loss.evaluating).dense()
    torch.testing.assert_close(written, Twin(case, loss).gauss_newton(), **TOLERANCES[torch.float64])


@pytest.mark.parametrize("bag", [False, True], ids=["embedding", "bag"])
def test_sparse_gradients_are_written_out(bag):
    loss = standing(Case(lambda: Words(sparse=True, bag=bag), words))
    twin = Twin(CASES["embedding"], loss)
    with loss.evaluating():
        gradient = loss.gradient()
    expected = torch.autograd.functional.jacobian(twin.loss, twin.theta)
    torch.testing.assert_close(gradient, expected, **TOLERANCES[torch.float64])
    vector = drawn(len(gradient))
    product = HessianOperator(loss, guard=loss.evaluating) @ vector
    torch.testing.assert_close(product, twin.hessian() @ vector, **DIFFERENCES)


def test_both_matrices_are_the_same_where_outputs_are_linear():
    loss = standing(CASES["linear"])
    inputs = torch.cat([drawn(N, 6), torch.ones(N, 1, dtype=torch.float64)], 1)
    moments = 2 * inputs.T @ inputs / (3 * N)  # of one output's weights and bias: the mean is over three outputs too
    expected = torch.zeros(21, 21, dtype=torch.float64)
    for output in range(3):
        rows = torch.tensor([*range(6 * output, 6 * output + 6), 18 + output])
        expected[rows[:, None], rows] = moments
    for kind in (HessianOperator, GaussNewtonOperator):
        torch.testing.assert_close(kind(loss, guard=loss.evaluating).dense(), expected, **TOLERANCES[torch.float64])


def test_without_curvature_it_is_zero():
    loss = standing(CASES["no_curvature"])
    for kind in (HessianOperator, GaussNewtonOperator):
        assert kind(loss, guard=loss.evaluating).dense().abs().max() == 0


def test_unused_parameters_have_zeros():
    loss = standing(CASES["tied_and_unused"])
    assert next(iter(dict(TiedAutoencoder().named_parameters()))) == "unused"
    for kind in (HessianOperator, GaussNewtonOperator):
        written = kind(loss, guard=loss.evaluating).dense()
        assert written[:4].abs().max() == written[:, :4].abs().max() == 0
        assert written.abs().max() > 0.01


def test_frozen_parameters_are_no_coordinates():
    model = seeded(tanh_net)
    model[0].bias.requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    loss = StandingLoss(model, cross_entropy, vectors(), batch_size=B)
    written = HessianOperator(loss, guard=loss.evaluating).dense()
    chosen = [*range(30), *range(35, 53)]
    expected = Twin(CASES["dropout"], standing(CASES["dropout"])).hessian()[chosen][:, chosen]
    torch.testing.assert_close(written, expected, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
@pytest.mark.parametrize(
    ("names", "rows"),
    [(["0"], range(35)), (["3.weight"], range(35, 50)), (["3.bias", "0.weight"], [*range(30), *range(50, 53)])],
    ids=["layer", "parameter", "two"],
)
def test_restricted_to_named_parameters_it_is_a_block(names, rows, kind):
    loss = standing(CASES["dropout"])
    twin, chosen = Twin(CASES["dropout"], loss), list(rows)
    expected = (twin.hessian() if kind is HessianOperator else twin.gauss_newton())[chosen][:, chosen]
    part = kind(loss, loss.site.indices(names), guard=loss.evaluating)
    own = standing(CASES["dropout"], parameters=names)
    torch.testing.assert_close(part.dense(), expected, **TOLERANCES[torch.float64])
    torch.testing.assert_close(kind(own, guard=own.evaluating).dense(), expected, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
@pytest.mark.parametrize("name", ["batchnorm_train", "sum_and_count"])
@pytest.mark.parametrize("chosen", [[0], [2], [1, 2]], ids=str)
def test_over_some_batches_it_is_that_of_their_mean(chosen, name, kind):
    loss = standing(CASES[name])
    twin = Twin(CASES[name], loss)
    twin.batches = [twin.batches[index] for index in chosen]
    written = kind(loss, batches=chosen, guard=loss.evaluating).dense()
    expected = twin.hessian() if kind is HessianOperator else twin.gauss_newton()
    torch.testing.assert_close(written, expected, **TOLERANCES[torch.float64])


def test_columns_are_vectors():
    loss = standing(CASES["dropout"], torch.float32)
    matrix = HessianOperator(loss, guard=loss.evaluating)
    columns = drawn(matrix.size, 3).float()
    product = matrix @ columns
    for index in range(3):
        assert torch.equal(product[:, index], matrix @ columns[:, index])
    assert matrix.num_products == 6


def test_scaled_it_is_the_symmetric_preconditioned_matrix():
    loss = standing(CASES["dropout"])
    inner = HessianOperator(loss, guard=loss.evaluating)
    scale = drawn(inner.size).abs()
    shifted = inner.dense() + 0.3 * torch.eye(inner.size, dtype=torch.float64)
    scaled = ScaledOperator(inner, scale, 0.3)
    torch.testing.assert_close(scaled.dense(), torch.outer(scale, scale) * shifted, **TOLERANCES[torch.float64])
    scaled.release()
    assert not inner._graphs


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
def test_curvature_that_is_not_finite_is_a_product_that_is_not(kind):
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    data = torch.ones(4, 2), torch.zeros(4, 2)
    loss = StandingLoss(model, lambda output, target: output.abs().sqrt().mean(), data)
    matrix = kind(loss, guard=loss.evaluating)
    assert not (matrix @ torch.ones(4)).isfinite().all()


# ---------------------------------------------------------------------------- kernels that are differentiable once
@pytest.mark.parametrize("name", ONCE)
def test_a_gauss_newton_matrix_that_cannot_be_had_is_refused(name):
    loss = standing(CASES[name])
    matrix = GaussNewtonOperator(loss, guard=loss.evaluating)
    with pytest.raises(InputError, match=r"a kernel that can be differentiated once only\. The Hessian can"):
        matrix @ torch.ones(matrix.size)


def test_a_loss_that_is_differentiable_once_is_not_taken_for_one_without_curvature():
    def fused(output: Tensor, target: Tensor) -> Tensor:
        return FusedTanh.apply(output).mean()

    def smooth(output: Tensor, target: Tensor) -> Tensor:
        return torch.tanh(output).mean()

    loss, same = (StandingLoss(seeded(tanh_net), each, vectors(), batch_size=B) for each in (fused, smooth))
    matrix, vector = GaussNewtonOperator(loss, guard=loss.evaluating), drawn(53)
    with pytest.raises(InputError, match="model or loss_fn has a kernel"):
        matrix @ vector
    expected = HessianOperator(same, guard=same.evaluating) @ vector
    torch.testing.assert_close(HessianOperator(loss, guard=loss.evaluating) @ vector, expected, **DIFFERENCES)
    assert loss.hvp_method == "finite_difference"


def test_what_else_goes_wrong_in_a_backward_pass_is_raised():
    loss = StandingLoss(seeded(lambda: between(Kernel(BrokenTanh))), cross_entropy, vectors(), batch_size=B)
    for kind in (HessianOperator, GaussNewtonOperator):
        matrix = kind(loss, guard=loss.evaluating)
        with pytest.raises(RuntimeError, match="the device went away"):
            matrix @ torch.ones(matrix.size)
    assert loss.hvp_method == "double_backward"


def test_differences_restricted_to_a_layer_and_over_some_batches():
    case = CASES["once_differentiable"]
    loss = standing(case)
    twin = Twin(case, loss)
    twin.batches = twin.batches[1:]
    expected = twin.hessian()[35:, 35:]
    matrix = HessianOperator(loss, loss.site.indices(["2"]), batches=[1, 2], guard=loss.evaluating)
    torch.testing.assert_close(matrix.dense(), expected, **DIFFERENCES)
    assert (matrix @ torch.zeros(matrix.size)).abs().max() == 0
    matrix.release()
    torch.testing.assert_close(matrix.dense(), expected, **DIFFERENCES)


# -------------------------------------------------------------------------------------------------------------- memory
def living_tensors() -> int:
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
@pytest.mark.parametrize("name", ["batchnorm_train", "attention", "conv", "sparse_embedding", "checkpoint"])
def test_kept_graphs_give_the_same_bits_and_are_gone_after_release(name, kind):
    loss = standing(CASES[name], torch.float32)
    keeping, forgetful = (kind(loss, guard=loss.evaluating, memory_limit=limit) for limit in (None, 0))
    vector = drawn(keeping.size).float()
    products = [forgetful @ vector, forgetful @ vector]
    gc.collect()
    before = living_tensors()
    products += [keeping @ vector, keeping @ vector]
    for product in products[1:]:
        assert torch.equal(product, products[0])
    assert len(keeping._graphs) == 3
    assert not forgetful._graphs
    del product
    del products[2:]
    assert living_tensors() > before
    keeping.release()
    gc.collect()
    assert living_tensors() == before
    assert torch.equal(keeping @ vector, products[0])


def test_as_many_graphs_are_kept_as_memory_allows():
    loss = standing(CASES["dropout"], torch.float32)
    unlimited = HessianOperator(loss, guard=loss.evaluating)
    vector = drawn(unlimited.size).float()
    expected = unlimited @ vector
    limited = HessianOperator(loss, guard=loss.evaluating, memory_limit=unlimited._graph_bytes // 2)
    for _ in range(2):
        assert torch.equal(limited @ vector, expected)
        assert 0 < len(limited._graphs) < 3
        assert limited._graph_bytes <= unlimited._graph_bytes // 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=["cpu", "python", "cuda"],
)
@pytest.mark.parametrize("at", ["build", "apply"])
@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
def test_memory_that_does_not_suffice_beside_kept_graphs(kind, at, error, monkeypatch):
    loss = standing(CASES["batchnorm_train"])
    matrix = kind(loss, guard=loss.evaluating)
    vector = drawn(matrix.size)
    expected = matrix @ vector
    matrix.release()
    original, raised = getattr(matrix, at), []

    def greedy(*arguments):
        if len(matrix._graphs) == 2:
            raised.append(True)
            raise error
        return original(*arguments)

    monkeypatch.setattr(matrix, at, greedy)
    for _ in range(2):  # the second time nothing is kept
        assert torch.equal(matrix @ vector, expected)
        assert raised == [True]
        assert not matrix._graphs


@pytest.mark.parametrize("at", ["build", "apply"])
def test_memory_that_does_not_suffice_for_one_graph_is_raised(at, monkeypatch):
    loss = standing(CASES["batchnorm_train"])
    matrix = HessianOperator(loss, guard=loss.evaluating, memory_limit=0)

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(matrix, at, fail)
    with pytest.raises(MemoryError):
        matrix @ torch.ones(matrix.size)


# --------------------------------------------------------------------------------------------- what stays as it is
def fused_attention() -> tuple[bool, ...]:
    flags = torch.backends.cuda
    return (
        flags.flash_sdp_enabled(),
        flags.math_sdp_enabled(),
        flags.mem_efficient_sdp_enabled(),
        flags.cudnn_sdp_enabled(),
    )


@pytest.mark.parametrize("name", ["batchnorm_train", "attention", "once_differentiable", "embedding"])
def test_the_model_and_all_around_it_stay_bitwise(name):
    case = CASES[name]
    seed_everything(7)
    model = seeded(case.build, torch.float32)
    inputs, targets = case.data()
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    functional.cross_entropy(model(inputs), targets).backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    before = {**everything(model, [optimizer]), "attention": fused_attention()}
    for make in (sgdwalk.hessian, sgdwalk.gauss_newton):
        if name not in ONCE or make is sgdwalk.hessian:
            matrix = make(model, cross_entropy, (inputs, targets), batch_size=B)
            assert (matrix @ torch.ones(matrix.size)).isfinite().all()
    assert all(p.grad is gradients[key] for key, p in model.named_parameters())
    assert_identical({**everything(model, [optimizer]), "attention": fused_attention()}, before)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_a_walk_with_products_at_every_step_ends_at_the_same_bits(evaluate_on):
    """Dropout draws, BatchNorm's running statistics and the parameters are those of the unwatched training."""

    def measure(here):
        vector = torch.ones_like(here.parameters)
        return {
            "hessian": float(here.hvp(vector) @ vector),
            "gauss_newton": float((here.matrix("gauss_newton") @ vector) @ vector),
            "layer": float((here.matrix(parameters=["0"]) @ torch.ones(76)).sum()),
        }

    def build() -> Training:
        seed_everything(0)
        model, data = conv_net(), images(12)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return Training(model, optimizer, data, plain_loop(model, optimizer, batches_of(data, 6), 4))

    options = {"batch_size": 6, "evaluate_on": evaluate_on}
    run, _, _ = trained_pair(build, measures={"m": sgdwalk.at(sgdwalk.every(1), measure)}, **options)
    assert run.steps[["m_hessian", "m_gauss_newton", "m_layer"]].notna().all(axis=None)


# ------------------------------------------------------------------------------------------------------- along a walk
class ConvTwin:
    """∇L and ∇²L v of a convolutional net in float64, over the evaluation batches of a walk."""

    def __init__(self, model: nn.Module, batches: list[tuple[Tensor, Tensor]]):
        self.model = copy.deepcopy(model).double().eval()
        for layer in self.model.modules():
            layer.train(isinstance(layer, nn.BatchNorm2d))
        self.batches = batches

    def gradient(self) -> Tensor:
        count = sum(len(y) for _, y in self.batches)
        losses = [functional.cross_entropy(self.model(x.double()), y, reduction="sum") for x, y in self.batches]
        total = torch.stack(losses).sum() / count
        slopes = torch.autograd.grad(total, list(self.model.parameters()), create_graph=True)
        return torch.cat([slope.reshape(-1) for slope in slopes])

    def hvp(self, vector: Tensor) -> Tensor:
        parts = torch.autograd.grad(self.gradient() @ vector, list(self.model.parameters()))
        return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_products_in_a_walk_in_any_order_beside_gradient_and_loss(evaluate_on):
    """A convolutional net is evaluated in channels_last and differentiated twice in the usual order of memory."""
    torch.manual_seed(0)
    model, (inputs, targets) = conv_net(), images()
    batches = batches_of((inputs, targets), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    vector = drawn(sum(p.numel() for p in model.parameters()), seed=6)
    seen: dict[tuple[str, int], list[Any]] = {}

    def measure(order):
        def take(here):
            for name in order:
                value = here.hvp(vector) if name == "hvp" else getattr(here, name)()
                seen.setdefault((name, here.step), []).append(value)
            return 0.0

        return sgdwalk.at(sgdwalk.every(2), take)

    orders = list(itertools.permutations(["hvp", "gradient", "loss"]))
    measures = {"_".join(order): measure(order) for order in orders}
    kept = []
    with sgdwalk.watch(
        model, optimizer, cross_entropy, batches, evaluate_on=evaluate_on, measures=measures, on_error="raise"
    ):
        for step in range(4):
            kept.append(copy.deepcopy(model))
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[step : step + 9]), targets[step : step + 9]).backward()
            optimizer.step()
    assert all(p.is_contiguous() for p in model.parameters())
    for step in (0, 2):
        twin, products = ConvTwin(kept[step], batches), seen["hvp", step]
        assert len(products) == 6
        assert all(torch.equal(product, products[0]) for product in products)
        torch.testing.assert_close(products[0].double(), twin.hvp(vector), **TOLERANCES[torch.float32])
        for gradient in seen["gradient", step]:
            torch.testing.assert_close(gradient.double(), twin.gradient().detach(), rtol=1e-3, atol=1e-6)
        assert len(set(seen["loss", step])) == 1


def test_fifty_steps_leave_no_tensor_behind():
    model, (inputs, targets) = conv_net(), images(12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    living = []

    def measure(here):
        vector = torch.ones_like(here.parameters)
        return float((here.matrix("gauss_newton") @ here.hvp(vector)).sum())

    with sgdwalk.watch(
        model,
        optimizer,
        cross_entropy,
        (inputs, targets),
        batch_size=6,
        when=sgdwalk.every(25),
        measures={"m": sgdwalk.at(sgdwalk.every(1), measure)},
        on_error="raise",
    ):
        for step in range(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if step in (9, 29, 49):
                gc.collect()
                living.append(living_tensors())
    assert living[0] == living[1] == living[2]


# ------------------------------------------------------------------------------------------------------------ refusals
def test_refusals_say_what_is_wanted():
    loss = standing(CASES["dropout"])
    matrix = HessianOperator(loss, guard=loss.evaluating)
    for wrong in (torch.ones(52), torch.ones(1, 53), torch.ones(53, 1, 1), torch.tensor(1.0)):
        with pytest.raises(InputError, match=r"takes vectors of 53 coordinates; got shape \("):
            matrix @ wrong
    with pytest.raises(InputError, match=r"preconditioner has shape \(52,\); it takes \(53,\)"):
        ScaledOperator(matrix, torch.ones(52))
    assert matrix.num_products == 0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda here: here.hvp(torch.ones(3)), r"hvp\(\) got a vector of shape \(3,\); it takes one of \(66,\)"),
        (lambda here: here.matrix("fisher"), "'fisher' does not exist; there is 'hessian' and 'gauss_newton'"),
        (lambda here: here.matrix(parameters=["7"]), "no parameter or layer '7'"),
        (lambda here: here.matrix(parameters="0"), "a list of names of parameters or layers"),
    ],
    ids=["shape", "matrix", "name", "no_list"],
)
def test_a_measure_is_refused_what_makes_no_sense(ask, message):
    model, data = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), classification()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    raised = []

    def measure(here):
        with pytest.raises(InputError, match=message):
            ask(here)
        raised.append(True)
        return 0.0

    with sgdwalk.watch(model, optimizer, cross_entropy, data, measures={"m": measure}, on_error="raise"):
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    assert raised
