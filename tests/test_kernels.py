"""The cheap columns' sums: every kernel against float64, on layouts that break a naive flattening."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sgdwalk import kernels
from sgdwalk.kernels import NumbaKernel, NumpyKernel, TorchKernel
from sgdwalk.params import ParameterVector

KERNELS = [pytest.param(kernel, id=kernel.name) for kernel in (NumbaKernel, NumpyKernel, TorchKernel)]


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
@pytest.mark.parametrize("small", [1, 600, kernels.SMALL])
@pytest.mark.parametrize("chunk", [512, 1 << 16])
def test_sums_equal_their_float64_twins(kernel, dtype, chunk, small, monkeypatch):
    monkeypatch.setattr(kernel, "chunk", chunk, raising=False)
    monkeypatch.setattr(kernels, "SMALL", small)
    vector, gradients = make_vector(dtype), [p.detach() for p in make_vector(dtype, seed=1).parameters]
    kept, start, previous = (twin(make_vector(dtype, seed)).to(dtype) for seed in (2, 3, 4))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13

    displacement = torch.full_like(kept, math.nan)
    param, update, distance = kernel().position_sums(vector, kept, start, advance=False, displacement=displacement)
    theta = twin(vector)
    torch.testing.assert_close(displacement, theta.to(dtype) - kept, rtol=0, atol=0)
    assert math.isclose(param, float(theta @ theta), rel_tol=tolerance)
    assert math.isclose(update, float((theta - kept.double()).square().sum()), rel_tol=tolerance)
    assert math.isclose(distance, float((theta - start.double()).square().sum()), rel_tol=tolerance)

    gradient = torch.cat([g.double().reshape(-1) for g in gradients])
    expected = float(gradient @ previous.double())
    dot, square, slope = kernel().gradient_sums(vector, gradients, previous, displacement)
    assert abs(dot - expected) <= tolerance * float(gradient.norm()) * 70
    expected = float(gradient @ displacement.double())
    assert abs(slope - expected) <= tolerance * float(gradient.norm() * displacement.double().norm())
    assert math.isclose(square, float(gradient @ gradient), rel_tol=tolerance)
    torch.testing.assert_close(previous, gradient.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("small", [1, kernels.SMALL], ids=["by itself", "gathered"])
def test_missing_gradient_counts_as_zeros(kernel, small, monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", small)
    vector = ParameterVector([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))])
    previous = torch.full((5,), 2.0)
    dot, square, _ = kernel().gradient_sums(vector, [None, torch.tensor([1.0, 3.0])], previous)
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


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [0.05, 0.3, 0.7])
def test_sums_over_equal_values_keep_their_digits(kernel, value):
    """Their roundings all go the same way: a chunk summed in float32 at once is 1e-5 off."""
    vector = ParameterVector([nn.Parameter(torch.full((300_001,), value))])
    theta, kept, start = twin(vector), vector.read() * 0.9, vector.read() * 0.5
    expected = [float(v @ v) for v in (theta, (theta.float() - kept).double(), (theta.float() - start).double())]
    for advance in (False, True):
        sums = kernel().position_sums(vector, kept, start, advance=advance)
        assert sums == pytest.approx(expected, rel=1e-6)
    assert torch.equal(kept, vector.read())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e30, 3e37])
def test_products_outside_float32_are_summed_in_float64(kernel, scale):
    """Squares of 1e-22 and of 1e30 are no float32 numbers; neither are sums and some differences of the largest."""
    torch.manual_seed(0)
    shapes = [(700,), (3,), (40, 60)]
    small, large = ([torch.randn(shape) * factor for shape in shapes] for factor in (scale, 1.0))
    vector = ParameterVector([nn.Parameter(values) for values in small])
    theta, kept, start = twin(vector), vector.read() * 0.5, vector.read() * -2.0
    differences = (theta - kept.double(), theta - start.double())
    assert (scale == 3e37) == (float(differences[1].abs().max()) > torch.finfo(torch.float32).max)
    sums = kernel().position_sums(vector, kept, start, advance=False)
    expected = [float(v @ v) for v in (theta, *differences)]
    assert sums == pytest.approx(expected, rel=1e-6)

    previous = torch.cat([values.reshape(-1) for values in small])
    dot, square, _ = kernel().gradient_sums(vector, small, previous)
    assert (dot, square) == pytest.approx((expected[0], expected[0]), rel=1e-6)
    gradient = torch.cat([values.double().reshape(-1) for values in large])
    dot, square, _ = kernel().gradient_sums(vector, large, previous)
    assert abs(dot - float(gradient @ theta)) <= 1e-6 * float(gradient.norm() * theta.norm())
    assert square == pytest.approx(float(gradient @ gradient), rel=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("index", [0, 600, 1023], ids=["first block", "second block", "last"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_reaches_the_sums_and_no_further(kernel, index, bad):
    vector = ParameterVector([nn.Parameter(torch.ones(1024))])
    gradient, previous = torch.ones(1024), torch.ones(1024)
    gradient[index] = bad
    dot, square, _ = kernel().gradient_sums(vector, [gradient], previous)
    assert all(math.isnan(value) if math.isnan(bad) else value == math.inf for value in (dot, square))
    dot, square, _ = kernel().gradient_sums(vector, [torch.zeros(1024)], previous)
    assert math.isnan(dot)  # 0 · inf
    assert square == 0.0


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_sum_is_the_same_whatever_the_others_are(kernel):
    """After a resume θ equals the kept copy, before it did not: the distance must not differ in its last digit."""
    vector = make_vector(torch.float32)
    here, elsewhere, start = vector.read(), twin(make_vector(torch.float32, 2)).float(), torch.zeros(vector.size)
    one = kernel().position_sums(vector, here, start, advance=False)
    other = kernel().position_sums(vector, elsewhere, start, advance=True)
    assert (one[0], one[1], one[2]) == (other[0], 0.0, other[2])
    assert torch.equal(elsewhere, here)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("small", [1, kernels.SMALL], ids=["by itself", "gathered"])
def test_gradients_in_another_memory_order_and_as_negative_views(kernel, small, monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", small)
    vector = make_vector(torch.float32)
    gradients = [torch.randn(p.shape) for p in vector.parameters]
    gradients[6] = gradients[6].contiguous(memory_format=torch.channels_last)
    gradients[7] = torch._neg_view(gradients[7])
    previous, expected = torch.zeros(vector.size), torch.cat([g.reshape(-1).resolve_neg() for g in gradients])
    kernel().gradient_sums(vector, gradients, previous)
    torch.testing.assert_close(previous, expected, rtol=0, atol=0)


def test_numpy_serves_where_numba_is_absent_and_torch_on_other_devices(monkeypatch):
    assert kernels.choose_kernel(torch.device("cpu")).name == "numba"
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    assert kernels.choose_kernel(torch.device("cpu")).name == "numpy"
    assert kernels.choose_kernel(torch.device("cuda")).name == "torch"


def test_the_compiled_loops_know_the_same_bound():
    loops = pytest.importorskip("sgdwalk.fused_loops", reason="numba is not installed")
    assert loops.SAFE_SUM == kernels.SAFE_SUM


def test_the_loops_compile_where_nothing_can_be_kept():
    numba = pytest.importorskip("numba")
    from sgdwalk import fused_loops

    namespace = {}
    exec("def nowhere(x):\n    return x + 1", namespace)  # numba finds no file to keep its code beside
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(namespace["nowhere"], cache=True)
    assert fused_loops.jit(namespace["nowhere"])(1.0) == 2.0
