"""The paper's networks: a multilayer perceptron, VGG-11 and ResNet-56, each of which can be made narrower.

ReLUs and a block's sum take the place of what they are made from: the same numbers in less memory and time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from sgdwalk.paper.config import Experiment

VGG11_CHANNELS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
"""Configuration A of Simonyan and Zisserman (2014): convolutions of 3×3, and where the image is halved."""
VGG11_CLASSIFIER = {32: (512, 512), 64: (1024, 512)}
"""Image size -> units of the classifier's hidden layers; 512 and 2,048 features enter them."""
RESNET_CHANNELS = (16, 32, 64)
"""Channels of the three stages of a ResNet for CIFAR-10 (He et al., 2016)."""


def build(experiment: Experiment, example_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The network of an experiment with fresh weights from torch's global random stream.

    Args:
        experiment: names the network and how it is cut.
        example_shape: of one input: (channels, height, width), or (features,).
        num_classes: outputs.
    """
    if experiment.network == "mlp":
        widths = (math.prod(example_shape), *experiment.hidden, num_classes)
        return MLP(widths, dropout=experiment.dropout)
    channels, image_size, _ = example_shape
    if experiment.network == "vgg11":
        return VGG11(num_classes, channels=channels, image_size=image_size, width_divisor=experiment.width_divisor)
    return ResNet(num_classes, channels=channels, blocks=experiment.blocks, width_divisor=experiment.width_divisor)


class MLP(nn.Module):
    """Linear → BatchNorm → ReLU (→ dropout) for each hidden layer, then a linear layer: the paper's MLP for MNIST.

    The paper only says "MLP"; the authors' public code has 784-500-350-10 with BatchNorm after both hidden layers, and
    was run in a torch whose BatchNorm scales started uniformly in (0, 1) and not at 1.

    Args:
        widths: units of each layer, input and output included, e.g. ``(784, 500, 350, 10)``.
        dropout: probability of dropping a hidden unit; 0 leaves the layer out.
        batchnorm_scales: ``uniform``: as the authors', drawn from U(0, 1). ``ones``: torch's default since 1.0.

    >>> import torch
    >>> model = MLP((784, 500, 350, 10))
    >>> model(torch.zeros(5, 784)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self, widths: tuple[int, ...], *, dropout: float = 0.0, batchnorm_scales: Literal["uniform", "ones"] = "uniform"
    ):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (width_in, width_out) in enumerate(pairwise(widths[:-1]), 1):
            layers[f"linear{number}"] = nn.Linear(width_in, width_out)
            layers[f"norm{number}"] = nn.BatchNorm1d(width_out)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            if dropout > 0:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
        layers["output"] = nn.Linear(widths[-2], widths[-1])
        self.layers = nn.Sequential(layers)
        if batchnorm_scales == "uniform":
            for layer in self.layers:
                if isinstance(layer, nn.BatchNorm1d):
                    nn.init.uniform_(layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:  # (examples, …) -> (examples, classes)
        return self.layers(inputs.flatten(1))


class VGG11(nn.Module):
    """VGG-11 with BatchNorm after every convolution and a classifier of three linear layers, without dropout.

    As in the authors' public code: convolutions keep their bias and start as N(0, 2 / (k² · channels out)); BatchNorm
    starts at scale 1 and shift 0; linear layers at torch's default.

    Args:
        num_classes: outputs.
        channels: of the images.
        image_size: height and width of the images, 32 or 64 pixels.
        width_divisor: divides the channels of every convolution and the units of every hidden layer; 1 is the paper's.

    >>> import torch
    >>> VGG11(10, width_divisor=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, *, channels: int = 3, image_size: int = 32, width_divisor: int = 1):
        super().__init__()
        features: list[nn.Module] = []
        for width in VGG11_CHANNELS:
            if isinstance(width, str):
                features.append(nn.MaxPool2d(2))
                continue
            width //= width_divisor
            features += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*features)
        units = [channels * (image_size // 32) ** 2, *(u // width_divisor for u in VGG11_CLASSIFIER[image_size])]
        classifier: list[nn.Module] = []
        for units_in, units_out in pairwise(units):
            classifier += [nn.Linear(units_in, units_out), nn.ReLU(inplace=True)]
        self.classifier = nn.Sequential(*classifier, nn.Linear(units[-1], num_classes))
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:  # (examples, channels, height, width) -> (examples, classes)
        return self.classifier(self.features(images).flatten(1))


class PreActivationBlock(nn.Module):
    """BatchNorm-ReLU-convolution twice; a 1×1 convolution without BatchNorm as the shortcut where the stride is 2."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, width, 1, stride=stride, bias=False) if stride != 1 else None

    def forward(self, images: Tensor) -> Tensor:
        activated = self.norm1(images).relu_()
        shortcut = images if self.shortcut is None else self.shortcut(activated)
        return self.conv2(self.norm2(self.conv1(activated)).relu_()).add_(shortcut)


class ResNet(nn.Module):
    """A pre-activation ResNet of depth 6 · blocks + 2 for small images; with nine blocks a stage it is ResNet-56.

    A convolution, three stages of 16, 32 and 64 channels, then BatchNorm, ReLU, the mean over the image and a linear
    layer (He et al., 2016). Convolutions have no bias and start as N(0, 2 / (k² · channels out)).

    Args:
        num_classes: outputs.
        channels: of the images.
        blocks: residual blocks in each of the three stages.
        width_divisor: divides the channels of every stage; 1 is the paper's.

    >>> import torch
    >>> ResNet(10, blocks=2)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, *, channels: int = 3, blocks: int = 9, width_divisor: int = 1):
        super().__init__()
        widths = [width // width_divisor for width in RESNET_CHANNELS]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        channels = widths[0]
        for width in widths:
            for _ in range(blocks):
                stages.append(PreActivationBlock(channels, width, 1 if width == channels else 2))
                channels = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.output = nn.Linear(channels, num_classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:  # (examples, channels, height, width) -> (examples, classes)
        return self.output(self.norm(self.stages(self.stem(images))).relu_().mean(dim=(2, 3)))


def initialize_convolutions(model: nn.Module) -> None:
    """Convolutions from N(0, 2 / (k² · channels out)) with zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
