"""The paper's networks: layers, parameter counts, initial values."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from sgdwalk.paper.config import Experiment
from sgdwalk.paper.models import MLP, VGG11, PreActivationBlock, ResNet, build


def test_the_papers_mlp_has_as_many_parameters_as_counted_by_hand():
    # 784·500 + 500, BatchNorm 2·500, 500·350 + 350, BatchNorm 2·350, 350·10 + 10
    by_hand = (392_000 + 500) + 1_000 + (175_000 + 350) + 700 + (3_500 + 10)
    assert by_hand == 573_060
    assert sum(p.numel() for p in MLP((784, 500, 350, 10)).parameters()) == by_hand


def test_batchnorm_and_relu_follow_both_hidden_layers():
    kinds = [type(layer) for layer in MLP((784, 500, 350, 10)).layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]


def test_dropout_follows_each_hidden_layer_where_asked_for():
    layers = MLP((4, 3, 2), dropout=0.25).layers
    assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
    assert layers.dropout1.p == 0.25


def test_batchnorm_scales_are_uniform_between_0_and_1_or_all_1():
    torch.manual_seed(0)
    scales = MLP((4, 20_000, 2)).layers.norm1.weight.detach()
    assert 0 <= scales.min() < 1e-3
    assert 1 - 1e-3 < scales.max() < 1
    assert scales.mean() == pytest.approx(0.5, abs=0.01)
    assert (MLP((4, 20, 2), batchnorm_scales="ones").layers.norm1.weight == 1).all()


def test_output_is_what_the_layers_compute_by_hand():
    torch.manual_seed(0)
    model = MLP((3, 4, 2)).double().eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    linear, norm, output = model.layers.linear1, model.layers.norm1, model.layers.output
    hidden = (x @ linear.weight.T + linear.bias) / (1 + norm.eps) ** 0.5 * norm.weight + norm.bias
    expected = hidden.clamp(min=0) @ output.weight.T + output.bias
    torch.testing.assert_close(model(x), expected)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_vgg11_has_as_many_parameters_as_counted_by_hand():
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convolutions = sum(9 * a * b + b for a, b in pairwise(widths))  # 3×3 kernels and a bias
    norms = sum(2 * width for width in widths[1:])
    assert convolutions == 9_220_480
    assert norms == 5_504
    by_hand = convolutions + norms + 2 * (512 * 512 + 512) + (512 * 10 + 10)
    assert by_hand == 9_756_426
    assert num_parameters(VGG11(10)) == by_hand


def test_vgg11_for_64_pixels_has_the_authors_classifier():
    shapes = [
        tuple(layer.weight.shape) for layer in VGG11(20, image_size=64).classifier if isinstance(layer, nn.Linear)
    ]
    assert shapes == [(1024, 2048), (512, 1024), (20, 512)]


def test_vgg11_is_convolution_norm_relu_with_five_pools():
    kinds = "".join(
        {nn.Conv2d: "c", nn.BatchNorm2d: "n", nn.ReLU: "r", nn.MaxPool2d: "p"}[type(x)] for x in VGG11(10).features
    )
    assert kinds == "cnrpcnrpcnrcnrpcnrcnrpcnrcnrp"
    assert all(layer.bias is not None for layer in VGG11(10).features if isinstance(layer, nn.Conv2d))


def test_resnet56_has_as_many_parameters_as_counted_by_hand():
    def block(channels, width):
        shortcut = channels * width if channels != width else 0  # 1×1, without BatchNorm
        return 2 * channels + 9 * channels * width + 2 * width + 9 * width * width + shortcut

    stages = sum(block(a, b) + 8 * block(b, b) for a, b in ((16, 16), (16, 32), (32, 64)))
    by_hand = 9 * 3 * 16 + stages + 2 * 64 + (64 * 10 + 10)
    assert num_parameters(ResNet(10)) == by_hand == 855_578
    convolutions = [layer for layer in ResNet(10).modules() if isinstance(layer, nn.Conv2d)]
    assert len([layer for layer in convolutions if layer.kernel_size == (3, 3)]) == 55  # and the linear layer: 56


@pytest.mark.parametrize(("model", "image_size", "last"), [(ResNet(10), 32, 8), (ResNet(10), 16, 4)])
def test_resnet_halves_the_image_twice(model, image_size, last):
    features = model.stages(model.stem(torch.zeros(1, 3, image_size, image_size)))
    assert features.shape == (1, 64, last, last)


def test_a_block_is_what_it_is_by_hand():
    torch.manual_seed(0)
    block = PreActivationBlock(4, 8, 2).double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def norm(values):
        return values / (1 + 1e-5) ** 0.5

    first = norm(x).clamp(min=0)
    inner = nn.functional.conv2d(first, block.conv1.weight, stride=2, padding=1)
    expected = nn.functional.conv2d(norm(inner).clamp(min=0), block.conv2.weight, padding=1)
    expected = expected + nn.functional.conv2d(first, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("model", [VGG11(10), ResNet(10)], ids=["vgg11", "resnet56"])
def test_initial_values_have_the_authors_moments(model):
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            wanted = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
            error = 5 * wanted / layer.weight.numel() ** 0.5  # five standard errors
            assert layer.weight.mean().item() == pytest.approx(0, abs=error)
            assert layer.weight.std().item() == pytest.approx(wanted, abs=error)
            assert layer.bias is None or not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
        elif isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5  # torch's default: U(-1/√n, 1/√n)
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_vgg11_starts_at_the_norm_of_the_authors_network():
    torch.manual_seed(0)
    norm = sum(parameter.detach().double().square().sum() for parameter in VGG11(10).parameters()) ** 0.5
    assert norm.item() == pytest.approx(87, abs=1)


@pytest.mark.parametrize(("divisor", "channels"), [(1, 512), (8, 64)])
def test_a_divisor_makes_every_layer_narrower(divisor, channels):
    model = VGG11(10, width_divisor=divisor)
    convolutions = [layer.out_channels for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert convolutions == [width // divisor for width in (64, 128, 256, 256, 512, 512, 512, 512)]
    assert model.classifier[0].in_features == model.classifier[0].out_features == channels
    assert ResNet(10, width_divisor=2).output.in_features == 32


def test_an_experiment_builds_its_network():
    vgg = Experiment(dataset="cifar10", network="vgg11", width_divisor=16)
    assert isinstance(build(vgg, (3, 32, 32), 10), VGG11)
    resnet = build(Experiment(dataset="cifar10", network="resnet", blocks=1, width_divisor=4), (3, 32, 32), 10)
    assert isinstance(resnet, ResNet)
    assert len(resnet.stages) == 3
    mlp = build(Experiment(dataset="cifar10", hidden=(7,)), (3, 32, 32), 10)
    assert mlp.layers.linear1.in_features == 3 * 32 * 32
    assert mlp(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
