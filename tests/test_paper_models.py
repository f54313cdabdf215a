"""The paper's MLP: layers, parameter count, initial values."""

import pytest
import torch
from torch import nn

from sgdwalk.paper.models import MLP


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
