"""Eq. 3 of the paper, H = C + R, to rounding, and R against the second derivatives of a softmax's probabilities."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import nets
import sgdwalk
from gradient_twins import KINDS, cross_entropies, hessian_of_mean, losses_twin, net, parameters_of
from sgdwalk.operators import HessianOperator
from sgdwalk.standing import StandingLoss
from test_objective import FusedTanh

N = 23
LOSSES = {"mean": nn.CrossEntropyLoss(), "per_example": nn.CrossEntropyLoss(reduction="none")}


def three(model, data, loss_fn=LOSSES["mean"], **options):
    """H, C and R of the same L, written out."""
    loss = StandingLoss(model, loss_fn, data, **options)
    hessian = HessianOperator(loss, guard=loss.evaluating)
    C = sgdwalk.gradient_second_moment(model, loss_fn, data, **options)
    R = sgdwalk.hessian_residual(model, loss_fn, data, **options)
    return hessian.dense(), C.dense(), R.dense()


def residual_from_probabilities(model: nn.Module, batches) -> Tensor:
    """-(1/N) Σ (1/p_i) ∂²p_i/∂θ² with p_i from a softmax, one example after the other."""

    def probabilities(output: Tensor, target: Tensor) -> Tensor:
        return torch.softmax(output, 1).gather(1, target.unsqueeze(1)).squeeze(1)

    of_theta, theta = losses_twin(model, batches, probabilities), parameters_of(model)
    p = of_theta(theta)
    total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    for i in range(len(p)):
        total -= torch.autograd.functional.hessian(lambda point, i=i: of_theta(point)[i], theta) / p[i]
    return total / len(p)


CASES = [(kind, "mean") for kind in KINDS] + [("batchnorm", "per_example")]


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_the_hessian_is_the_second_moment_plus_the_residual(kind, form):
    """In float64 to 1e-13 of the largest entry, over batches of 5 and a last one of 3, BatchNorm in train mode."""
    model, data = net(kind), nets.classification(N, dtype=torch.float64)
    H, C, R = three(model, data, LOSSES[form], batch_size=5)
    scale = float(H.abs().max())
    torch.testing.assert_close(H / scale, (C + R) / scale, rtol=0, atol=1e-13)
    assert float(R.abs().max()) > 0.01 * scale  # nothing that rounding could hide
    losses = losses_twin(model, list(StandingLoss(model, LOSSES[form], data, batch_size=5).data), cross_entropies)
    dense = hessian_of_mean(losses, parameters_of(model))
    torch.testing.assert_close(H / scale, dense / scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batchnorm", ["train", "eval"])
def test_the_identity_holds_in_both_modes_of_batchnorm(batchnorm):
    model, data = net("batchnorm"), nets.classification(N, dtype=torch.float64)
    model(data[0] + 1.0)  # running statistics unlike any batch's
    H, C, R = three(model, data, batch_size=6, batchnorm=batchnorm)
    torch.testing.assert_close(H, C + R, rtol=0, atol=1e-13 * float(H.abs().max()))


@pytest.mark.parametrize("kind", ["tanh", "batchnorm"])
def test_the_residual_equals_its_definition(kind):
    model, data = net(kind), nets.classification(9, dtype=torch.float64)
    operator = sgdwalk.hessian_residual(model, LOSSES["mean"], data, batch_size=4)
    expected = residual_from_probabilities(model, list(operator.full_loss.data))
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-10, atol=1e-12)


def test_float32_and_restricted_parameters():
    model, data = net("batchnorm", torch.float32), nets.classification(N)
    H, C, R = three(model, data, batch_size=5, parameters=["0.weight", "4"])
    assert H.shape == (5 * 8 + 3 * 8 + 3,) * 2
    torch.testing.assert_close(H, C + R, rtol=0, atol=1e-5 * float(H.abs().max()))
    whole = sgdwalk.hessian_residual(model, LOSSES["mean"], data, batch_size=5).dense()
    torch.testing.assert_close(R[:40, :40], whole[:40, :40], rtol=1e-4, atol=1e-6)


def test_one_logit_on_paper():
    """p = σ(w x): C = (1-p)² x², H = p (1-p) x², so R = (1-p)(2p-1) x²; tiny and certain probabilities included."""
    for w, x in ((0.3, 1.0), (-40.0, 1.0), (40.0, 1.0), (1.0, 3.0)):
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(model.weight, w)
        data = torch.full((1, 1), x, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        residual = sgdwalk.hessian_residual(model, nn.BCEWithLogitsLoss(), data).dense().item()
        p, q = (torch.sigmoid(torch.tensor(sign * w * x, dtype=torch.float64)).item() for sign in (1, -1))
        assert residual == pytest.approx(q * (2 * p - 1) * x * x, rel=1e-9)


def test_nothing_of_the_users_is_touched_and_the_numbers_are_the_same_again():
    nets.seed_everything(5)
    model, data = net("batchnorm", torch.float32), nets.classification(N)
    functional.cross_entropy(model(data[0]), data[1]).backward()
    state, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    flags = [layer.training for layer in model.modules()]
    streams = random.getstate(), torch.get_rng_state()
    first, again = (
        sgdwalk.hessian_residual(model, LOSSES["mean"], data, batch_size=5) @ torch.ones(91) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert random.getstate() == streams[0]
    assert torch.equal(torch.get_rng_state(), streams[1])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [layer.training for layer in model.modules()] == flags


def test_what_cannot_be_had_is_refused():
    data = nets.classification(N)

    def summed(output, target):
        return functional.cross_entropy(output, target, reduction="sum"), len(target)

    with pytest.raises(sgdwalk.InputError, match=r"pair \(sum, count\)"):
        sgdwalk.hessian_residual(net("tanh", torch.float32), summed, data)

    class Fused(nn.Module):
        def forward(self, x):
            return FusedTanh.apply(x)

    model = net("tanh", torch.float32)
    model[1] = Fused()
    operator = sgdwalk.hessian_residual(model, LOSSES["mean"], data)
    with pytest.raises(sgdwalk.InputError, match="kernel that has no second derivative"):
        operator @ torch.ones(operator.size)


def test_what_torch_itself_cannot_differentiate_twice_is_refused_in_words():
    class Distances(nn.Module):
        def forward(self, x):
            return torch.cdist(x, torch.eye(3, 6))

    model = nn.Sequential(nn.Linear(5, 6), Distances())
    operator = sgdwalk.hessian_residual(model, LOSSES["mean"], nets.classification(N))
    with pytest.raises(sgdwalk.InputError, match="kernel that has no second derivative"):
        operator @ torch.ones(operator.size)
