"""The paper's multilayer perceptron."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn


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
            layers[f"relu{number}"] = nn.ReLU()
            if dropout > 0:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
        layers["output"] = nn.Linear(widths[-2], widths[-1])
        self.layers = nn.Sequential(layers)
        if batchnorm_scales == "uniform":
            for layer in self.layers:
                if isinstance(layer, nn.BatchNorm1d):
                    nn.init.uniform_(layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:  # (examples, features) -> (examples, classes)
        return self.layers(inputs)
