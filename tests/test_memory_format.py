"""The order of memory of a convolutional net, layer by layer: which layers, the same numbers, nothing of the user's."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

import sgdwalk
from sgdwalk.data import evaluation_data
from sgdwalk.memory_format import SlowConvolutions, set_memory_format
from sgdwalk.objective import FullLoss
from sgdwalk.params import ParameterVector
from sgdwalk.replica import Replica


class Deep(nn.Module):
    """A wide first layer, two deep ones with many weights and short rows, and a wide one behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 256, 3, padding=1)
        self.norm = nn.BatchNorm2d(256)
        self.deep = nn.Conv2d(256, 256, 3, padding=1)
        self.point = nn.Conv2d(256, 4, 1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        x = torch.relu(self.deep(x))
        return self.last(functional.interpolate(torch.relu(self.point(x)), scale_factor=4.0)).mean(dim=(2, 3))


def pictures():
    torch.manual_seed(1)
    return torch.randn(6, 3, 8, 8), torch.randint(0, 3, (6,))


def full_loss(model):
    vector = ParameterVector(model.parameters())
    data = evaluation_data(pictures(), 6, 0, batchnorm=True)
    return FullLoss(Replica(model, vector, "train"), data, functional.cross_entropy, None)


def value(loss):
    with loss.evaluating():
        loss.site.write(loss.site.here)
        return loss.sums().mean


@pytest.mark.parametrize(
    ("channels", "kernel", "size", "groups", "slow"),
    [
        (256, 3, 4, 1, True),
        (256, 3, 6, 1, True),
        (256, 3, 2, 1, True),
        (256, 3, 1, 1, False),
        (256, 3, 7, 1, False),
        (128, 3, 4, 1, False),
        (512, 1, 4, 1, False),
        (768, 1, 4, 1, False),
        (256, 3, 4, 256, False),
    ],
)
def test_which_convolutions_are_slow(channels, kernel, size, groups, slow):
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups)
    with SlowConvolutions() as noted, torch.no_grad():
        layer(torch.zeros(1, channels, size, size))
    assert noted.layers(nn.Sequential(layer)) == (frozenset({"0"}) if slow else frozenset())


def test_deep_layers_stay_in_the_usual_order_and_the_loss_is_the_same():
    model = Deep()
    before = copy.deepcopy(model.state_dict())
    loss = full_loss(model)
    usual = value(loss)
    assert loss.use_channels_last()
    module = loss.site.module
    orders = {name: layer.weight.is_contiguous() for name, layer in module.named_children() if name != "norm"}
    assert orders == {"first": False, "deep": True, "point": True, "last": False}  # a 1x1 kernel is in both orders
    seen = {}
    for name in ("first", "deep", "last"):
        layer = getattr(model, name)
        layer.register_forward_hook(lambda _, given, out, name=name: seen.update({name: (given[0], out)}))
    assert value(loss) == pytest.approx(usual, rel=2e-6)
    assert {name: (given.is_contiguous(), out.is_contiguous()) for name, (given, out) in seen.items()} == {
        "first": (False, False),
        "deep": (False, False),
        "last": (False, False),
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert not any("_conv_forward" in layer.__dict__ for layer in model.modules())


def test_the_usual_order_comes_back_whole():
    loss = full_loss(Deep())
    usual = value(loss)
    loss.use_channels_last()
    loss.set_channels_last(False)
    assert value(loss) == usual
    assert all(parameter.is_contiguous() for parameter in loss.site.module.parameters())
    assert not any("_conv_forward" in layer.__dict__ for layer in loss.site.module.modules())


def test_a_float64_copy_is_bound_to_its_own_layers():
    loss = full_loss(Deep())
    loss.use_channels_last()
    with loss.evaluating():
        loss.site.write(loss.site.here)
        twin = loss.in_float64()
        assert twin.site.module.deep._conv_forward.__self__ is twin.site.module.deep
        assert twin.sums().mean == pytest.approx(loss.sums().mean, rel=2e-6)


def test_a_layer_replaced_in_training_is_followed():
    model = Deep()
    loss = full_loss(model)
    loss.use_channels_last()
    value(loss)
    model.deep = nn.Conv2d(256, 256, 3, padding=1)
    model.last = nn.Conv2d(4, 3, 1)
    inputs, targets = pictures()
    assert value(loss) == pytest.approx(functional.cross_entropy(model(inputs), targets).item(), rel=2e-6)


def test_a_layer_with_a_convolution_of_its_own_keeps_it():
    model = Deep()
    model.deep._conv_forward = types.MethodType(
        lambda layer, x, weight, bias: 2 * functional.conv2d(x, weight, bias, padding=1), model.deep
    )
    loss = full_loss(model)
    usual = value(loss)
    loss.use_channels_last()
    assert value(loss) == pytest.approx(usual, rel=2e-6)
    loss.set_channels_last(False)
    assert value(loss) == usual


class Gated(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):  # pyright: ignore[reportIncompatibleMethodOverride]
        output = super()._conv_forward(input, weight, bias)
        return output, output > 0

    def forward(self, input):
        output, mask = self._conv_forward(input, self.weight, self.bias)
        return output * mask


def test_a_subclass_convolves_in_its_own_way():
    model = Deep()
    model.deep = Gated(256, 256, 3, padding=1)
    loss = full_loss(model)
    usual = value(loss)
    assert loss.use_channels_last()
    assert value(loss) == pytest.approx(usual, rel=2e-6)


class Unbatched(nn.Module):
    """Convolves a last batch of one image without its first dimension, or all images one by one under ``vmap``."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.deep, self.way = nn.Conv2d(256, 256, 3, padding=1), way

    def forward(self, x):
        x = x.repeat(1, 86, 1, 1)[:, :256, :4, :4]
        if len(x) > 1:
            return self.deep(x).mean(dim=(2, 3))[:, :3]
        x = self.deep(x.squeeze(0)).unsqueeze(0) if self.way == "squeezed" else torch.func.vmap(self.deep)(x)
        return x.mean(dim=(2, 3))[:, :3]


@pytest.mark.parametrize("way", ["squeezed", "vmap"])
def test_a_later_batch_of_another_kind(way):
    model, (inputs, targets) = Unbatched(way), pictures()
    data = evaluation_data(
        list(zip(inputs.split([3, 2, 1]), targets.split([3, 2, 1]), strict=True)), None, 0, batchnorm=False
    )
    loss = FullLoss(Replica(model, ParameterVector(model.parameters()), "train"), data, functional.cross_entropy, None)
    assert loss.use_channels_last()
    assert loss.site.module.deep.weight.is_contiguous()
    assert value(loss) == pytest.approx(functional.cross_entropy(model(inputs), targets).item(), rel=2e-6)


def test_a_layer_shared_by_outputs_of_many_sizes_is_no_slow_one():
    layer = nn.Conv2d(256, 256, 3, padding=1)
    with SlowConvolutions() as noted, torch.no_grad():
        for size in (4, 8):
            layer(torch.zeros(1, 256, size, size))
    assert noted.layers(nn.Sequential(layer)) == frozenset()


def test_the_same_order_twice_is_the_same_order():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    for _ in range(2):
        set_memory_format(model, torch.channels_last, {"1"})
        assert [layer.weight.is_contiguous() for layer in model] == [False, True]


class Shared(nn.Module):
    """A backbone that copies of the model have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False)

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        return self.deep(x)


def test_a_layer_that_is_the_users_own_gets_no_method():
    model = Deep()
    model.deep = Shared()
    loss = full_loss(model)
    usual = value(loss)
    loss.use_channels_last()
    assert value(loss) == pytest.approx(usual, rel=2e-6)
    assert "_conv_forward" not in model.deep.deep.__dict__


def test_a_3d_convolution_beside_is_no_obstacle():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.volume = nn.Conv2d(3, 3, 3), nn.Conv3d(3, 3, 1)

        def forward(self, x):
            return self.volume(self.flat(x).unsqueeze(2)).mean(dim=(2, 3, 4))

    model = Both()
    loss = full_loss(model)
    inputs, targets = pictures()
    loss.use_channels_last()
    assert value(loss) == pytest.approx(functional.cross_entropy(model(inputs), targets).item(), rel=2e-6)


def test_a_watched_deep_net_has_the_losses_that_plain_code_finds():
    model, (inputs, targets) = Deep(), pictures()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    points = []
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, (inputs, targets), batch_size=6, on_error="raise"
    ) as walk:
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            points.append(copy.deepcopy(model).double())
    segments = walk.run.segments
    for step, point in enumerate(points):
        mean = functional.cross_entropy(point(inputs.double()), targets).item()
        (found,) = segments[(segments.step == step) & (segments.alpha == 1.0)].loss
        assert abs(found - mean) <= 2e-6 * mean + 1e-7
