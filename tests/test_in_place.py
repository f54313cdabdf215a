"""ReLUs in place: bitwise the same numbers, and nobody sees another activation than before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sgdwalk.in_place import rectify_in_place


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
    rectify_in_place(twin)
    inputs = torch.randn(2, 3, 8, 8)
    before = inputs.clone()
    with torch.set_grad_enabled(grad):
        assert torch.equal(twin(inputs), model(inputs))
    assert torch.equal(inputs, before)


def test_memory_is_spared():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    rectify_in_place(model)
    outputs = []
    with torch.no_grad():
        hook = model[0].register_forward_hook(lambda layer, given, output: outputs.append(output))
        assert model(torch.ones(2, 5)).data_ptr() != outputs[0].data_ptr(), "a hook keeps what it saw"
        assert (outputs[0] < 0).any()
        hook.remove()
        addresses = []
        model[0].__dict__["forward"] = lambda x: addresses.append(y := nn.functional.linear(x, model[0].weight)) or y
        assert model(torch.ones(2, 5)).data_ptr() == addresses[0].data_ptr()


def test_gradients_are_those_of_the_model():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 1))
    twin = copy.deepcopy(model)
    rectify_in_place(twin)
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
        rectify_in_place(net)
    assert torch.equal(collecting(inputs), before)
    keeping(inputs), hooked(inputs)
    assert (keeping[0].kept < 0).any()
    assert (seen[0] < 0).any()


@torch.no_grad()
def test_hooks_on_all_modules_see_the_same():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    rectify_in_place(model)
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
    rectify_in_place(residual)
    assert "forward" not in residual.__dict__
