"""Operators of the full loss: the Gauss-Newton matrix, kept graphs, kernels differentiable once, another library."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sgdwalk
from sgdwalk.errors import InputError
from sgdwalk.operators import GaussNewtonOperator, HessianOperator
from sgdwalk.standing import StandingLoss
from test_curvature import B, N, batches, dense_hessian, examples, net, top
from test_objective import FusedTanh


class Fused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return FusedTanh.apply(x)


def standing(kind: str = "batchnorm", dtype: torch.dtype = torch.float64, **options) -> StandingLoss:
    return StandingLoss(net(kind, dtype), nn.CrossEntropyLoss(), examples(dtype), batch_size=B, **options)


# ------------------------------------------------------------------------------------------------ against dense twins
@pytest.mark.parametrize("kind", ["batchnorm", "groupnorm", "relu", "attention", "tied"])
def test_gauss_newton_equals_the_sum_over_examples(kind):
    """(1/N) Σ Jᵀ (diag p - p pᵀ) J, the Jacobian of each example's outputs taken in its batch."""
    model = net(kind).eval()
    for layer in model.modules():
        layer.train(isinstance(layer, nn.BatchNorm1d))
    parameters = list(model.parameters())
    total = torch.zeros(sum(p.numel() for p in parameters), sum(p.numel() for p in parameters), dtype=torch.float64)
    for inputs, _ in batches():
        outputs = model(inputs)
        for output in outputs:
            rows = [torch.autograd.grad(z, parameters, retain_graph=True, materialize_grads=True) for z in output]
            jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
            p = output.detach().softmax(0)
            total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / N
    matrix = sgdwalk.gauss_newton(net(kind), nn.CrossEntropyLoss(), examples(), batch_size=B)
    torch.testing.assert_close(matrix.dense(), total, rtol=1e-9, atol=1e-11)
    assert sgdwalk.eigenpairs(matrix, which="smallest").values.item() > -1e-10


def test_some_batches_are_a_mean_of_their_own():
    loss = standing()
    parts = [HessianOperator(loss, batches=[index], guard=loss.evaluating) for index in range(4)]
    whole = HessianOperator(loss, guard=loss.evaluating).dense()
    weighted = sum(part.dense() * (size / N) for part, size in zip(parts, loss.data.sizes, strict=True))
    torch.testing.assert_close(weighted, whole, rtol=1e-9, atol=1e-12)


def test_sums_and_counts_are_divided_once():
    def counted(output, target):
        kept = target != 0
        return functional.cross_entropy(output, target, reduction="none")[kept].sum(), kept.sum()

    model, (inputs, targets) = net("relu"), examples()
    matrix = sgdwalk.hessian(model, counted, (inputs, targets), batch_size=B)
    kept = targets != 0
    expected = sgdwalk.hessian(model, nn.CrossEntropyLoss(), (inputs[kept], targets[kept]))
    torch.testing.assert_close(matrix.dense(), expected.dense(), rtol=1e-9, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- kept graphs
@pytest.mark.parametrize("matrix", [HessianOperator, GaussNewtonOperator])
def test_kept_graphs_change_no_bit_and_are_let_go(matrix):
    loss = standing(dtype=torch.float32)
    keeping, forgetful = (matrix(loss, guard=loss.evaluating, memory_limit=limit) for limit in (None, 0))
    vector = torch.randn(keeping.size, generator=torch.Generator().manual_seed(0))
    first = keeping @ vector
    assert len(keeping._graphs) == 4
    for operator in (keeping, forgetful, forgetful):
        assert torch.equal(operator @ vector, first)
    assert not forgetful._graphs
    held = weakref.ref(keeping._graphs[0][0])
    keeping.release()
    gc.collect()
    assert held() is None
    assert torch.equal(keeping @ vector, first)
    assert keeping.num_products == 3


def test_memory_that_does_not_suffice_lets_graphs_go(monkeypatch):
    loss = standing()
    matrix = HessianOperator(loss, guard=loss.evaluating)
    vector = torch.ones(matrix.size, dtype=torch.float64)
    expected = matrix @ vector
    matrix.release()
    build, failed = matrix.build, []

    def greedy(index, leaves):
        if len(matrix._graphs) == 2:
            failed.append(index)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return build(index, leaves)

    monkeypatch.setattr(matrix, "build", greedy)
    assert torch.equal(matrix @ vector, expected)
    assert failed == [2]
    assert not matrix._graphs


def test_a_walk_leaves_no_graph_behind():
    model = net("relu", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = examples(torch.float32)
    living = []

    def count(here):
        here.hvp(torch.ones(len(here.parameters)))
        return 0.0

    measures = {"norm": sgdwalk.SpectralNorm(0.05), "count": count}
    with sgdwalk.watch(
        model, optimizer, nn.CrossEntropyLoss(), (inputs, targets), batch_size=B, measures=measures, on_error="raise"
    ):
        for _ in range(12):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            gc.collect()
            living.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
    assert len(set(living[3:])) == 1, living


# ----------------------------------------------------------------------------------------- kernels differentiable once
def test_a_spectral_norm_without_second_derivatives_is_a_difference_that_says_so():
    smooth = net("batchnorm")
    fused = net("batchnorm")
    fused[2] = Fused()
    result = sgdwalk.spectral_norm(fused, nn.CrossEntropyLoss(), examples(), batch_size=B, tolerance=1e-6)
    assert (result.method, result.converged) == ("finite_difference", True)
    assert math.isclose(result.value, top(dense_hessian(smooth)), rel_tol=1e-7)
    sharpness = sgdwalk.batch_sharpness(fused, nn.CrossEntropyLoss(), examples(), batch_size=B, num_batches=None)
    expected = sgdwalk.batch_sharpness(smooth, nn.CrossEntropyLoss(), examples(), batch_size=B, num_batches=None)
    assert math.isclose(sharpness.value, expected.value, rel_tol=1e-6)


def test_a_walk_tells_that_it_takes_differences():
    model = nn.Sequential(nn.Linear(6, 8), Fused(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = examples(torch.float32)
    measures = {"norm": sgdwalk.SpectralNorm()}
    with sgdwalk.watch(model, optimizer, nn.CrossEntropyLoss(), (inputs, targets), measures=measures) as walk:
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert "finite_difference" in list(walk.run.events["kind"])
    assert walk.run.steps["norm"].notna().all()


# --------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sgdwalk.gauss_newton(net("relu"), pairwise, examples(), forward=twofold).dense(), "as one tensor"),
        (lambda: sgdwalk.preconditioned(plain(), torch.optim.SGD(plain().leaves, lr=0.1)), "no preconditioner"),
        (
            lambda: sgdwalk.hessian(wide(), nn.MSELoss(), (torch.ones(2, 150), torch.ones(2, 100))).dense(),
            "15,100 rows",
        ),
    ],
    ids=["output", "preconditioner", "dense"],
)
def test_what_cannot_be_done_says_why(call, message):
    with pytest.raises(InputError, match=message):
        call()


def twofold(model, batch):
    output = model(batch[0])
    return (output, output), batch[1]


def pairwise(output, target):
    return functional.cross_entropy(output[0], target)


def plain() -> HessianOperator:
    return sgdwalk.hessian(net("relu"), nn.CrossEntropyLoss(), examples())


def wide() -> nn.Module:
    return nn.Linear(150, 100)


# ------------------------------------------------------------------------------------------------------ another library
@pytest.mark.parametrize("kind", ["relu", "tied"])  # it differentiates forward, which GroupNorm's kernel cannot
def test_curvlinops_agrees(kind):
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed")
    model, data = net(kind), batches()
    for theirs, ours in (
        (curvlinops.HessianLinearOperator, sgdwalk.hessian),
        (curvlinops.GGNLinearOperator, sgdwalk.gauss_newton),
    ):
        reference = theirs(
            model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False
        ).to_scipy(dtype=np.float64)
        matrix = ours(model, nn.CrossEntropyLoss(), data)
        vector = torch.randn(matrix.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        # theirs weighs each batch's mean by its size, as a loss of reduction "mean" wants
        np.testing.assert_allclose((matrix @ vector).numpy(), reference @ vector.numpy(), rtol=1e-7, atol=1e-10)
