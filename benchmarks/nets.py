"""The paper's three networks, written plainly: peers run in environments of their own, without sgdwalk."""

from __future__ import annotations

import math

from torch import Tensor, nn


def mlp() -> nn.Module:
    """784-500-350-10 for MNIST, BatchNorm and ReLU after both hidden layers."""
    return nn.Sequential(
        nn.Linear(784, 500),
        nn.BatchNorm1d(500),
        nn.ReLU(),
        nn.Linear(500, 350),
        nn.BatchNorm1d(350),
        nn.ReLU(),
        nn.Linear(350, 10),
    )


def vgg11(width_divisor: int = 1) -> nn.Module:
    """Configuration A for 32x32 images: BatchNorm after every convolution, classifier 512-512-512-10, no dropout.

    ``width_divisor`` divides every layer's width.
    """
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in (each // width_divisor for each in stage):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    hidden = [nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()]
    return initialized(nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(channels, 10)))


class PreActivationBlock(nn.Module):
    """BatchNorm-ReLU-convolution twice; a strided 1x1 convolution as the shortcut where the size changes."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut = nn.Conv2d(channels, width, 1, stride=stride, bias=False) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.norm1(x))
        shortcut = self.shortcut(activated if isinstance(self.shortcut, nn.Conv2d) else x)
        return self.conv2(self.relu(self.norm2(self.conv1(activated)))) + shortcut


def resnet56() -> nn.Module:
    """Pre-activation, nine blocks each of 16, 32 and 64 channels, then BatchNorm-ReLU-average pool-linear."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    channels = 16
    for width in (16, 32, 64):
        for block in range(9):
            stride = 2 if block == 0 and width != 16 else 1
            layers.append(PreActivationBlock(channels, width, stride))
            channels = width
    layers += [nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return initialized(nn.Sequential(*layers))


def initialized(model: nn.Module) -> nn.Module:
    """Convolutions from N(0, 2 / (k² · channels out)) with zero biases; all else at torch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
