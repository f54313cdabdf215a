"""Layers in place: bitwise the same numbers, and nobody sees another activation than before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sgdwalk.in_place import compute_in_place


class Keeping(nn.Linear):
    """A layer that keeps its output for later."""

    def forward(self, x):
        self.kept = super().forward(x)
        return self.kept


class Collecting(nn.Module):
    """Goes over its layers by itself and uses what is before the ReLU too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU())

    def forward(self, x):
        total = torch.zeros(())
        for layer in self.layers:
            x = layer(x)
            total = total + x.sum()
        return total


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def nets():
    torch.manual_seed(0)
    return {
        "conv, norm": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        "nested": nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU()),
        "input itself": nn.Sequential(nn.ReLU(), nn.Identity(), nn.ReLU(), nn.Dropout(), nn.ReLU()),
        "twice": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU(), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)),
        "residual": Residual(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()),
    }


@pytest.mark.parametrize("name", nets())
@pytest.mark.parametrize("grad", [False, True])
def test_the_same_bits_and_an_untouched_input(name, grad):
    model = nets()[name].eval()
    twin = copy.deepcopy(model)
    compute_in_place(twin)
    inputs = torch.randn(2, 3, 8, 8)
    before = inputs.clone()
    with torch.set_grad_enabled(grad):
        assert torch.equal(twin(inputs), model(inputs))
    assert torch.equal(inputs, before)


class Addresses(TorchFunctionMode):
    """Where the outputs of linear layers lie."""

    def __init__(self) -> None:
        super().__init__()
        self.of_linear: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is functional.linear:
            self.of_linear.append(result.data_ptr())
        return result


@torch.no_grad()
def test_memory_is_spared():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.ReLU())
    compute_in_place(model)
    with Addresses() as addresses:
        assert model(torch.randn(4, 5)).data_ptr() == addresses.of_linear[0]
        handles = [layer.register_forward_hook(lambda layer, given, output: None) for layer in (model[0], model[1])]
        assert model(torch.randn(4, 5)).data_ptr() != addresses.of_linear[1]
        for handle in handles:
            handle.remove()
        model[0].__dict__["forward"] = lambda x: functional.linear(x, torch.eye(5))
        assert model(torch.randn(4, 5)).data_ptr() != addresses.of_linear[2]


NORMS = {
    "1d": ((7, 5), nn.BatchNorm1d(5)),
    "1d, length": ((3, 5, 9), nn.BatchNorm1d(5)),
    "2d": ((3, 5, 7, 9), nn.BatchNorm2d(5)),
    "2d, one image": ((1, 5, 7, 9), nn.BatchNorm2d(5, eps=0.1)),
    "3d": ((2, 5, 3, 4, 5), nn.BatchNorm3d(5)),
    "wide": ((4, 67, 6, 6), nn.BatchNorm2d(67)),
    "no weights": ((3, 5, 7, 9), nn.BatchNorm2d(5, affine=False)),
    "running": ((3, 5, 7, 9), nn.BatchNorm2d(5, track_running_stats=True)),
}


@pytest.mark.parametrize("last", [False, True], ids=["usual order", "channels_last"])
@pytest.mark.parametrize("mode", ["batch statistics", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NORMS)
@torch.no_grad()
def test_a_normalization_gives_the_same_bits(name, dtype, mode, last):
    torch.manual_seed(1)
    shape, norm = NORMS[name]
    convolution = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    first = convolution(shape[1], shape[1], *(() if len(shape) == 2 else (1,)))
    model = nn.Sequential(first, copy.deepcopy(norm), nn.ReLU()).to(dtype)
    for parameter in model[1].parameters():
        parameter.copy_(torch.randn_like(parameter))
    if mode == "eval":
        model.eval()
    elif name != "running":
        model[1].track_running_stats = False
    inputs = torch.randn(shape, dtype=dtype) * 3 + 1
    if last and len(shape) == 4:
        model, inputs = model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    compute_in_place(twin)
    for _ in range(2):
        assert torch.equal(twin(inputs), model(inputs))
    assert twin(inputs).stride() == model(inputs).stride()
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), twin.buffers(), strict=True))


@torch.no_grad()
def test_what_a_normalization_refuses_is_refused():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, track_running_stats=False))
    compute_in_place(model)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 5))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        model(torch.randn(2, 2, 2, 5))


@torch.no_grad()
def test_under_vmap_the_layers_run_as_they_are():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.ReLU())
    twin = copy.deepcopy(model)
    compute_in_place(twin)
    inputs = torch.randn(3, 4, 5)
    found = torch.func.vmap(lambda x: torch.func.functional_call(twin, {}, x))(inputs)
    torch.testing.assert_close(found, torch.stack([model(x) for x in inputs]))


def test_gradients_are_those_of_the_model():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 1))
    twin = copy.deepcopy(model)
    compute_in_place(twin)
    inputs = torch.randn(4, 5)
    for net in (model, twin):
        net(inputs).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@torch.no_grad()
def test_who_looks_at_activations_sees_the_same():
    collecting = Collecting()
    keeping = nn.Sequential(Keeping(5, 5), nn.ReLU())
    hooked = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    seen: list[torch.Tensor] = []
    hooked[1].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    inputs = torch.randn(4, 5)
    before = collecting(inputs)
    for net in (collecting, keeping, hooked):
        compute_in_place(net)
    assert torch.equal(collecting(inputs), before)
    keeping(inputs), hooked(inputs)
    assert (keeping[0].kept < 0).any()
    assert (seen[0] < 0).any()


@torch.no_grad()
def test_hooks_on_all_modules_see_the_same():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    compute_in_place(model)
    seen: list[torch.Tensor] = []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, given, output: seen.append(output))
    try:
        model(torch.randn(4, 5))
    finally:
        handle.remove()
    assert (seen[0] < 0).any()
    assert len(seen) == 3


def test_a_container_that_is_no_plain_one_is_left_alone():
    residual = Residual(nn.Linear(5, 5), nn.ReLU())
    compute_in_place(residual)
    assert "forward" not in residual.__dict__
