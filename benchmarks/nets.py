"""The paper's three networks as the benchmarks take them: those of the reproduction, BatchNorm scales at torch's 1."""

from __future__ import annotations

from torch import nn

from sgdwalk.paper.models import MLP, VGG11, ResNet


def mlp() -> nn.Module:
    """784-500-350-10 for MNIST, BatchNorm and ReLU after both hidden layers."""
    return MLP((784, 500, 350, 10), batchnorm_scales="ones")


def vgg11() -> nn.Module:
    """Configuration A for 32×32 images: BatchNorm after every convolution, classifier 512-512-512-10, no dropout."""
    return VGG11(10)


def resnet56() -> nn.Module:
    """Pre-activation, nine blocks each of 16, 32 and 64 channels, then BatchNorm, ReLU, mean over the image, linear."""
    return ResNet(10)
