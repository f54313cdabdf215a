"""The cheap columns' sums: both kernels against float64, on layouts that break a naive flattening."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sgdwalk import kernels
from sgdwalk.kernels import NumbaKernel, TorchKernel
from sgdwalk.params import ParameterVector

KERNELS = [pytest.param(TorchKernel, id="torch"), pytest.param(NumbaKernel, id="numba")]


def make_vector(dtype: torch.dtype, seed: int = 0) -> ParameterVector:
    torch.manual_seed(seed)
    shapes = [(3, 5), (), (1,), (513,), (64, 33), (0,), (8, 4, 3, 3), (2048,)]
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    parameters[6].data = parameters[6].data.contiguous(memory_format=torch.channels_last)
    return ParameterVector(parameters)


def twin(vector: ParameterVector) -> torch.Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in vector.parameters])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [512, kernels.CHUNK])
def test_sums_equal_their_float64_twins(kernel, dtype, chunk, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    vector, gradients = make_vector(dtype), [p.detach() for p in make_vector(dtype, seed=1).parameters]
    kept, start, previous = (twin(make_vector(dtype, seed)).to(dtype) for seed in (2, 3, 4))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13

    param, update, distance = kernel().position_sums(vector, kept, start, advance=False)
    theta = twin(vector)
    assert math.isclose(param, float(theta @ theta), rel_tol=tolerance)
    assert math.isclose(update, float((theta - kept.double()).square().sum()), rel_tol=tolerance)
    assert math.isclose(distance, float((theta - start.double()).square().sum()), rel_tol=tolerance)

    gradient = torch.cat([g.double().reshape(-1) for g in gradients])
    expected = float(gradient @ previous.double())
    dot, square = kernel().gradient_sums(vector, gradients, previous)
    assert abs(dot - expected) <= tolerance * float(gradient.norm()) * 70
    assert math.isclose(square, float(gradient @ gradient), rel_tol=tolerance)
    torch.testing.assert_close(previous, gradient.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_missing_gradient_counts_as_zeros(kernel):
    vector = ParameterVector([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))])
    previous = torch.full((5,), 2.0)
    dot, square = kernel().gradient_sums(vector, [None, torch.tensor([1.0, 3.0])], previous)
    assert (dot, square) == pytest.approx((8.0, 10.0), rel=1e-6)
    assert previous.tolist() == [0.0, 0.0, 0.0, 1.0, 3.0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("index", [0, 512, 2000, -1])
def test_moved_sees_one_changed_bit_and_nothing_else(kernel, index):
    vector = make_vector(torch.float32)
    kept = vector.read()
    assert not kernel().moved(vector, kept)
    kept.view(torch.int32)[index] ^= 1
    assert kernel().moved(vector, kept)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_is_not_moved_by_itself_and_reaches_the_sums(kernel):
    vector = ParameterVector([nn.Parameter(torch.tensor([1.0, math.nan, 2.0]))])
    kept = vector.read()
    assert not kernel().moved(vector, kept)
    assert all(math.isnan(value) for value in kernel().position_sums(vector, kept, torch.zeros(3), advance=False))


@pytest.mark.parametrize("kernel", KERNELS)
def test_long_sums_keep_their_digits(kernel):
    """A running float32 sum of 4 million ones stops growing at 2^24; blocks do not."""
    vector = ParameterVector([nn.Parameter(torch.full((20_000_000,), 1.0))])
    sums = kernel().position_sums(vector, vector.read(), torch.zeros(vector.size), advance=False)
    assert sums == pytest.approx((2e7, 0.0, 2e7), rel=1e-6)


def test_plain_torch_serves_where_numba_is_absent(monkeypatch):
    assert kernels.choose_kernel(torch.device("cpu")).name == "numba"
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    assert kernels.choose_kernel(torch.device("cpu")).name == "torch"
