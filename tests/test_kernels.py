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

    before = twin(make_vector(dtype, 5)).to(dtype)
    theta, gradient = twin(vector), torch.cat([g.double().reshape(-1) for g in gradients])
    dot = float(gradient @ previous.double())
    step, kept_before = kept.double() - before.double(), kept.clone()

    sums, there = kernel().update_sums(vector, gradients, previous, kept, start, before, advance=True)
    assert abs(sums.dot - dot) <= tolerance * float(gradient.norm()) * 70
    assert math.isclose(sums.square, float(gradient @ gradient), rel_tol=tolerance)
    assert abs(sums.slope - float(gradient @ step)) <= tolerance * float(gradient.norm() * step.norm())
    assert math.isclose(there.param, float(theta @ theta), rel_tol=tolerance)
    assert math.isclose(there.update, float((theta - kept.double()).square().sum()), rel_tol=tolerance)
    assert math.isclose(there.distance, float((theta - start.double()).square().sum()), rel_tol=tolerance)
    torch.testing.assert_close(previous, gradient.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(before, theta.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(kept, kept_before, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-22], ids=["ordinary", "outside float32"])
@pytest.mark.parametrize("with_before", [False, True])
def test_the_sums_of_an_update_are_those_of_its_parts(kernel, dtype, scale, with_before):
    """Bit for bit: an update after one that was passed by repeats what a walk that looks at every one found."""
    vector, gradients = make_vector(dtype), [scale * p.detach() for p in make_vector(dtype, seed=1).parameters]
    for parameter in vector.parameters:
        parameter.data.mul_(scale)
    gradients[3] = None
    kept, start, previous, before = (scale * twin(make_vector(dtype, seed)).to(dtype) for seed in (2, 3, 4, 5))
    here, alone, theta = kept.clone(), previous.clone(), vector.read()
    of_gradients, there = kernel().gradient_sums(vector, gradients, alone), kernel().position_sums(vector, kept, start)
    assert of_gradients.square > 0
    assert there.update > 0
    for advance in (False, True):
        again, oldest = previous.clone(), before.clone() if with_before else None
        sums, position = kernel().update_sums(vector, gradients, again, kept, start, oldest, advance=advance)
        assert (sums.dot, sums.square) == (of_gradients.dot, of_gradients.square)
        assert math.isnan(sums.slope) != with_before
        assert position == there
        assert torch.equal(again, alone)
        assert torch.equal(kept, theta if advance and not with_before else here)
        assert oldest is None or torch.equal(oldest, theta if advance else before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_before", [False, True])
def test_the_sums_do_not_depend_on_where_the_vectors_lie(dtype, with_before):
    """Bit for bit, also where one begins right behind another: a compiler's loop may take another way there."""
    pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(0)
    for size in (1, 8, 20, 33, 63, 100, 511, 512, 513, 545, 1024):
        values = torch.randn(6, size, dtype=dtype, generator=generator)
        found = set()
        for gap in (0, 1, 4, 8, 24, 100, 5000):
            room = torch.zeros(6 * (size + gap), dtype=dtype)
            theta, gradient, *kept = (room[i * (size + gap) :][:size].copy_(row) for i, row in enumerate(values))
            before = kept.pop() if with_before else None
            vector = ParameterVector([nn.Parameter(theta)])
            assert vector.parameters[0].data_ptr() == room.data_ptr()
            found.add(NumbaKernel().update_sums(vector, [gradient], *kept[:3], before, advance=True)[:2])
        assert len({str(each) for each in found}) == 1, size


def test_an_empty_vector_is_one():
    """An empty tensor may lie at address 0, as what is not kept did."""
    vector, empty = ParameterVector([nn.Parameter(torch.zeros(0))]), torch.zeros(0)
    for kernel in (NumbaKernel, NumpyKernel, TorchKernel):
        sums, there = kernel().update_sums(vector, [empty], empty, empty, empty, empty, advance=True)
        assert (sums, there[:3]) == ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mark_is_another_one_wherever_a_parameter_is(dtype):
    """One bit anywhere, values that change places within a block or with another one, signs in pairs."""
    pytest.importorskip("numba")
    kernel, vector = NumbaKernel(), make_vector(dtype)
    point, flat = vector.read(), [parameter.detach().view(-1) for parameter in vector.parameters[:6]]
    long = vector.parameters[7].detach()
    mark = kernel.position_sums(vector, point, point).mark
    assert not kernel.moved(vector, point, mark)

    bits, width = (torch.int32, 32) if dtype == torch.float32 else (torch.int64, 64)
    changes = [
        (values.view(bits), [index], lambda old, bit=bit: old ^ torch.tensor(bit, dtype=bits))
        for values in (*(each for each in flat if len(each)), long)
        for index in {0, len(values) // 2, len(values) - 1}
        for bit in (1, 1 << (width // 2), -(1 << (width - 1)))
    ]
    changes += [(long, places, lambda old: old.flip(0)) for places in ([0, 1], [3, 131], [5, 261], [256, 512])]
    changes += [(long, places, lambda old: -old) for places in ([0, 1], [3, 131], [5, 261], list(range(2048)))]
    assert len(changes) > 40
    for values, places, change in changes:
        old = values[places].clone()
        values[places] = change(old)
        assert kernel.moved(vector, point, mark) is True
        values[places] = old
        assert kernel.moved(vector, point, mark) is False


def test_a_mark_tells_large_tensors_that_change_places():
    """Blocks that are all alike differ by the same, which must not add up beyond the mark's 64 bits."""
    pytest.importorskip("numba")
    kernel, size = NumbaKernel(), 1 << 24
    vector = ParameterVector([nn.Parameter(torch.full((size,), value)) for value in (1.0, -1.0)])
    marks = []
    for _ in range(2):
        marks.append(kernel.position_sums(vector, vector.read(), vector.read()).mark)
        vector.parameters[0].data, vector.parameters[1].data = vector.parameters[1].data, vector.parameters[0].data
    assert marks[0] != marks[1]


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_is_not_moved_by_itself_and_reaches_the_sums(kernel):
    vector = ParameterVector([nn.Parameter(torch.tensor([1.0, math.nan, 2.0]))])
    kept = vector.read()
    assert not kernel().moved(vector, kept)
    sums = kernel().position_sums(vector, kept, torch.zeros(3))
    assert all(math.isnan(value) for value in (sums.param, sums.update, sums.distance))


@pytest.mark.parametrize("kernel", KERNELS)
def test_long_sums_keep_their_digits(kernel):
    """A running float32 sum of 4 million ones stops growing at 2^24; blocks do not."""
    vector = ParameterVector([nn.Parameter(torch.full((20_000_000,), 1.0))])
    sums = kernel().position_sums(vector, vector.read(), torch.zeros(vector.size))
    assert sums[:3] == pytest.approx((2e7, 0.0, 2e7), rel=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [0.05, 0.3, 0.7])
def test_sums_over_equal_values_keep_their_digits(kernel, value):
    """Their roundings all go the same way: a chunk summed in float32 at once is 1e-5 off."""
    vector = ParameterVector([nn.Parameter(torch.full((300_001,), value))])
    theta, kept, start = twin(vector), vector.read() * 0.9, vector.read() * 0.5
    expected = [float(v @ v) for v in (theta, (theta.float() - kept).double(), (theta.float() - start).double())]
    assert kernel().position_sums(vector, kept, start)[:3] == pytest.approx(expected, rel=1e-6)


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
    sums = kernel().position_sums(vector, kept, start)
    expected = [float(v @ v) for v in (theta, *differences)]
    assert sums[:3] == pytest.approx(expected, rel=1e-6)

    previous = torch.cat([values.reshape(-1) for values in small])
    dot, square, _ = kernel().gradient_sums(vector, small, previous)
    assert (dot, square) == pytest.approx((expected[0], expected[0]), rel=1e-6)
    gradient = torch.cat([values.double().reshape(-1) for values in large])
    dot, square, _ = kernel().gradient_sums(vector, large, previous)
    assert abs(dot - float(gradient @ theta)) <= 1e-6 * float(gradient.norm() * theta.norm())
    assert square == pytest.approx(float(gradient @ gradient), rel=1e-6)

    gradient = torch.cat([values.double().reshape(-1) for values in small])
    step = differences[0] if scale < 1e30 else kept.double() - start.double()  # or θ_{t-1} is no number of float32
    now, before = (theta.float(), kept) if scale < 1e30 else (kept, start)
    sums, _ = kernel().update_sums(vector, small, previous, now, start, before.clone(), advance=False)
    assert sums.slope == pytest.approx(float(gradient @ step), rel=1e-6)


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
    one, other = (kernel().position_sums(vector, point, start) for point in (here, elsewhere))
    assert other.update > 0
    assert one == other._replace(update=0.0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("small", [1, kernels.SMALL], ids=["by itself", "gathered"])
def test_gradients_in_another_memory_order_and_as_negative_views(kernel, small, monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", small)
    vector = make_vector(torch.float32)
    gradients = [torch.randn(p.shape) for p in vector.parameters]
    gradients[6] = gradients[6].contiguous(memory_format=torch.channels_last)
    gradients[7] = torch._neg_view(gradients[7])
    previous, expected = torch.zeros(vector.size), torch.cat([g.reshape(-1).resolve_neg() for g in gradients])
    alone = kernel().gradient_sums(vector, gradients, previous)
    torch.testing.assert_close(previous, expected, rtol=0, atol=0)

    point, start, again = vector.read() * 0.5, vector.read() * 2.0, torch.zeros(vector.size)
    there = kernel().position_sums(vector, point, start)
    sums, position = kernel().update_sums(vector, gradients, again, point, start, advance=True)
    assert ((sums.dot, sums.square), position) == ((alone.dot, alone.square), there)
    assert torch.equal(again, expected)
    assert torch.equal(point, vector.read())


def test_numpy_serves_where_numba_is_absent_and_torch_on_other_devices(monkeypatch):
    assert kernels.choose_kernel(torch.device("cpu")).name == "numba"
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    assert kernels.choose_kernel(torch.device("cpu")).name == "numpy"
    assert kernels.choose_kernel(torch.device("cuda")).name == "torch"


def test_the_compiled_loops_know_the_same_bounds():
    loops = pytest.importorskip("sgdwalk.fused_loops", reason="numba is not installed")
    assert (loops.SAFE_SUM, loops.FUSED_BLOCK) == (kernels.SAFE_SUM, kernels.BLOCK)


def test_the_loops_compile_where_nothing_can_be_kept():
    numba = pytest.importorskip("numba")
    from sgdwalk import fused_loops

    namespace = {}
    exec("def nowhere(x):\n    return x + 1", namespace)  # numba finds no file to keep its code beside
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(namespace["nowhere"], cache=True)
    assert fused_loops.jit(namespace["nowhere"])(1.0) == 2.0
