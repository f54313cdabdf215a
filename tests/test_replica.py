"""Where evaluations run: the copy follows the model, and the model itself is put back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sgdwalk.errors import InputError
from sgdwalk.params import ParameterVector
from sgdwalk.replica import InPlace, Replica, bare_module


class Scaled(nn.Module):
    """Reads a plain attribute, a buffer, a frozen and a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.register_buffer("shift", torch.zeros(4))
        self.temperature = 1.0

    def forward(self, x):
        return self.norm(self.frozen(self.second(self.first(x)))) / self.temperature + self.shift


def walked(model: nn.Module) -> ParameterVector:
    return ParameterVector(parameter for parameter in model.parameters() if parameter.requires_grad)


INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def evaluated(site) -> torch.Tensor:
    with torch.no_grad(), site.occupied():
        site.write(site.here)
        return site.module(INPUTS)


@pytest.mark.parametrize("site_class", [Replica, InPlace])
def test_changes_of_anything_that_is_read_reach_the_evaluation(site_class):
    model = Scaled()
    site = site_class(model, walked(model), "eval")
    assert len(site.leaves) == 5  # first.weight (tied), first.bias, second.bias, norm.weight, norm.bias
    for change in (
        lambda: setattr(model, "temperature", 0.5),
        lambda: model.shift.add_(1.0),
        lambda: model.frozen.weight.mul_(2.0),
        lambda: model.norm.running_mean.add_(0.5),
        lambda: model.first.weight.add_(0.1),
        lambda: setattr(model, "frozen", nn.Linear(4, 4)),
        lambda: model.register_buffer("shift", torch.full((1,), 3.0)),
    ):
        fingerprint = site.fingerprint()
        walks = change.__code__.co_names[:2] == ("first", "weight")
        with torch.no_grad():
            change()
        assert (site.fingerprint() == fingerprint) is ("first" in change.__code__.co_names), walks
        torch.testing.assert_close(evaluated(site), copy.deepcopy(model).eval()(INPUTS), rtol=0, atol=0)


def test_running_statistics_are_read_in_eval_mode_only():
    model = Scaled()
    train, evaluation = (Replica(model, walked(model), mode) for mode in ("train", "eval"))
    before = train.fingerprint(), evaluation.fingerprint()
    model(INPUTS)  # training forward: the buffers move, θ does not
    assert train.fingerprint() == before[0]
    assert evaluation.fingerprint() != before[1]


def test_the_copy_shares_nothing_and_keeps_ties():
    model = Scaled()
    site = Replica(model, walked(model), "train")
    assert site.module.first.weight is site.module.second.weight  # pyright: ignore
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), site.occupied():
        for target in site.targets:
            target.fill_(7.0)
        site.module(INPUTS)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_in_place_puts_everything_back_even_after_an_exception():
    model = Scaled().train()
    model.frozen.eval()
    model.cache = None
    buffers = dict(model.named_buffers())
    state = copy.deepcopy(model.state_dict())
    versions = [tensor._version for tensor in (*model.parameters(), *model.buffers())]
    flags = [(layer.training, dict(layer.__dict__)) for layer in model.modules()]
    site = InPlace(model, walked(model), "train")

    def spoil() -> None:
        with torch.no_grad(), site.occupied():
            for target in site.targets:
                target.fill_(7.0)
            model(INPUTS)
            model.shift.fill_(3.0)
            model.cache = INPUTS
            model.temperature = 9.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoil()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)
    assert all(value is buffers[key] for key, value in model.named_buffers())
    assert [tensor._version for tensor in (*model.parameters(), *model.buffers())] == versions
    for layer, (training, attributes) in zip(model.modules(), flags, strict=True):
        assert layer.training is training
        assert layer.__dict__.keys() == attributes.keys()
        assert all(layer.__dict__[key] is value for key, value in attributes.items())
    assert not model.frozen.weight.requires_grad


def test_a_model_that_cannot_be_copied_is_told_what_to_do():
    model = nn.Linear(4, 4)
    model.kept = model(INPUTS)
    with pytest.raises(InputError, match='evaluate_on="model"'):
        Replica(model, walked(model), "train")
    assert evaluated(InPlace(model, walked(model), "train")).shape == (6, 4)


def test_hooks_are_shared_not_copied():
    class Collector:
        def __init__(self) -> None:
            self.seen = 0

        def hook(self, module, inputs, output) -> None:
            self.seen += 1

    model, collector = Scaled(), Collector()
    model.first.register_forward_hook(collector.hook)
    site = Replica(model, walked(model), "train")
    evaluated(site)
    assert collector.seen == 1
    late = model.second.register_forward_hook(collector.hook)
    evaluated(site)
    assert collector.seen == 3
    late.remove()
    evaluated(site)
    assert collector.seen == 4


def test_wrappers_are_seen_through():
    model = Scaled()
    assert bare_module(torch.compile(nn.DataParallel(model), backend="eager")) is model  # pyright: ignore
