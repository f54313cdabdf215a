"""The full loss on the private copy: value, gradient and Hessian-vector product against dense float64 mathematics."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdwalk.data import evaluation_data
from sgdwalk.errors import InputError
from sgdwalk.objective import FullLoss, LossSums
from sgdwalk.operators import HessianOperator
from sgdwalk.params import ParameterVector
from sgdwalk.probes import first_evaluation
from sgdwalk.replica import InPlace, Replica, batchnorm_layers

N = 37


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


def examples(seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(N, 6), torch.randint(0, 3, (N,))


def full_loss(
    model, data=None, loss_fn=None, *, site=Replica, batchnorm="train", batch_size=10, forward=None
) -> FullLoss:
    vector = ParameterVector(model.parameters())
    has_batchnorm = bool(batchnorm_layers(model))
    evaluations = evaluation_data(data or examples(), batch_size, 0, batchnorm=has_batchnorm)
    return FullLoss(site(model, vector, batchnorm), evaluations, loss_fn or nn.CrossEntropyLoss(), forward)


def twin_loss(model: nn.Module, objective: FullLoss, batchnorm: str = "train"):
    """L as a function of the flat parameter vector, in float64, one batch after the other."""
    module = copy.deepcopy(model).double().eval()
    for layer in batchnorm_layers(module):
        layer.train(batchnorm == "train")
    shapes = [(name, p.shape, p.numel()) for name, p in module.named_parameters()]

    def loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [size for *_, size in shapes])
        weights = {name: part.view(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)}
        total = torch.zeros((), dtype=torch.float64)
        for inputs, targets in objective.data:
            output = torch.func.functional_call(copy.deepcopy(module), weights, (inputs.double(),))
            total = total + functional.cross_entropy(output, targets, reduction="sum")
        return total / N

    theta = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    return loss, theta


@pytest.mark.parametrize("site", [Replica, InPlace])
@pytest.mark.parametrize("batchnorm", ["train", "eval"])
def test_value_gradient_and_hvp_equal_the_dense_twin(site, batchnorm):
    model = net()
    model(examples(5)[0])  # running statistics unlike any batch's
    objective = full_loss(model, site=site, batchnorm=batchnorm)
    loss, theta = twin_loss(model, objective, batchnorm)
    vector = torch.randn(theta.numel(), generator=torch.Generator().manual_seed(3))
    with objective.evaluating():
        objective.site.write(objective.site.here)
        value, gradient, product = objective.sums().mean, objective.gradient(), HessianOperator(objective) @ vector
    assert math.isclose(value, float(loss(theta)), rel_tol=2e-7)
    torch.testing.assert_close(gradient.double(), torch.autograd.functional.jacobian(loss, theta), rtol=1e-4, atol=1e-6)
    # Reverse over reverse: torch.func.hessian's forward mode is wrong for BatchNorm in train mode (not even symmetric).
    hessian = torch.autograd.functional.hessian(loss, theta)
    torch.testing.assert_close(product.double(), hessian @ vector.double(), rtol=1e-3, atol=1e-5)
    assert objective.hvp_method == "double_backward"


class FusedTanh(torch.autograd.Function):
    """A kernel without a second derivative, as fused attention kernels are."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


def test_a_kernel_without_second_derivative_gets_a_float64_difference():
    class Fused(nn.Module):
        def forward(self, x):
            return FusedTanh.apply(x)

    smooth, fused = net(), net()
    fused[2] = Fused()
    objective = full_loss(fused)
    loss, theta = twin_loss(smooth, objective)
    vector = torch.randn(theta.numel(), generator=torch.Generator().manual_seed(3))
    with objective.evaluating():
        objective.site.write(objective.site.here)
        hessian = HessianOperator(objective)
        product = hessian @ vector
        assert (hessian @ torch.zeros_like(vector)).abs().sum() == 0
    assert objective.hvp_method == "finite_difference"
    expected = torch.autograd.functional.hessian(loss, theta) @ vector.double()
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-6)


def test_sum_and_count_divides_once():
    """Per-token means of batches with different numbers of tokens are not the mean over tokens."""
    model = nn.Linear(6, 3)
    inputs, targets = examples()
    targets = targets.clone()
    targets[::3] = -100

    def counted(output, target):
        return functional.cross_entropy(output, target, reduction="sum"), (target != -100).sum()

    objective = full_loss(model, (inputs, targets), counted)
    with objective.evaluating():
        value, gradient = objective.sums().mean, objective.gradient()
    expected = functional.cross_entropy(model(inputs), targets)
    assert math.isclose(value, expected.item(), rel_tol=1e-6)
    expected.backward()
    torch.testing.assert_close(gradient, torch.cat([model.weight.grad.reshape(-1), model.bias.grad]))


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), "sums over the batch"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1])), "no mean over examples"),
        (lambda output, target: output.std() + functional.cross_entropy(output, target), "no mean over examples"),
        (lambda output, target: 3.0, "returned a float"),
        (lambda output, target: functional.cross_entropy(output, target, reduction="none")[:2], r"shape \(2,\)"),
    ],
    ids=["sum", "class_weights", "between_examples", "float", "wrong_shape"],
)
def test_a_loss_that_is_no_mean_is_refused(loss_fn, message):
    objective = full_loss(net(), loss_fn=loss_fn)
    with pytest.raises(InputError, match=message), objective.evaluating():
        first_evaluation(objective)


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="none"),
        lambda output, target: (functional.cross_entropy(output, target, reduction="sum"), len(target)),
        lambda output, target: [functional.cross_entropy(output, target, reduction="sum"), torch.tensor(len(target))],
    ],
    ids=["mean", "per_example", "sum_and_count", "list_of_tensors"],
)
def test_every_honest_form_of_a_loss_gives_the_same_number(loss_fn):
    model, reference = net(), full_loss(net())
    objective = full_loss(model, loss_fn=loss_fn)
    with objective.evaluating(), reference.evaluating():
        sums, unchecked = first_evaluation(objective)
        assert math.isclose(sums.mean, reference.sums().mean, rel_tol=1e-7)
    assert unchecked == []


def test_a_loss_that_the_model_computes_itself_is_told_as_unchecked():
    def forward(model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1]), None

    objective = full_loss(nn.Linear(6, 3), loss_fn=lambda output, target: output, forward=forward)
    with objective.evaluating():
        _, unchecked = first_evaluation(objective)
    assert len(unchecked) == 1
    assert "sum, count" in unchecked[0]


def test_memory_that_does_not_suffice_halves_the_batch_and_keeps_the_number():
    class Greedy(nn.Linear):
        def forward(self, x):
            if len(x) > 3:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            return super().forward(x)

    torch.manual_seed(0)
    model = Greedy(6, 3)
    objective = full_loss(model)
    inputs, targets = examples()
    with objective.evaluating():
        value = objective.sums().mean
    assert objective.halved == {0, 1, 2, 3}
    expected = functional.cross_entropy(nn.Linear.forward(model, inputs), targets)
    assert math.isclose(value, expected.item(), rel_tol=1e-6)


def test_memory_that_does_not_suffice_is_raised_where_batchnorm_forbids_halves():
    class Greedy(nn.Module):
        def forward(self, x):
            raise MemoryError

    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), Greedy())
    objective = full_loss(model)
    with pytest.raises(MemoryError), objective.evaluating():
        objective.sums()


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(12, 3, 8, 8), torch.randint(0, 3, (12,))


class ConvNet(nn.Module):
    def __init__(self, flatten) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.flatten = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3), flatten

    def forward(self, x):
        return self.head(self.flatten(torch.relu(self.conv(x))))


@pytest.mark.parametrize(
    ("flatten", "used"),
    [(lambda x: x.flatten(1), True), (lambda x: x.view(len(x), -1), False)],
    ids=["flatten", "view"],
)
def test_channels_last_only_where_the_model_runs_in_it(flatten, used):
    model = ConvNet(flatten)
    objective = full_loss(model, images())
    assert objective.use_channels_last() is used
    with objective.evaluating():
        objective.site.write(objective.site.here)
        value = objective.sums().mean
    inputs, targets = images()
    assert math.isclose(value, functional.cross_entropy(model(inputs), targets).item(), rel_tol=2e-6)
    assert model.conv.weight.is_contiguous()


class CastsItself(nn.Module):
    """Under an autocast of its own, which keeps weights that it has cast."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


def test_weights_cast_at_one_point_are_not_used_at_another():
    model = CastsItself()
    inputs, targets = torch.randn(12, 4), torch.randint(0, 3, (12,))
    objective = full_loss(model, (inputs, targets), functional.cross_entropy)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    with objective.evaluating():
        for each in (model, moved, model):
            objective.site.write([parameter.detach() for parameter in each.parameters()])
            with torch.no_grad():
                parts = zip(inputs.split(10), targets.split(10), strict=True)
                wanted = sum(functional.cross_entropy(each(x), y).item() * len(y) for x, y in parts) / 12
            assert math.isclose(objective.sums().mean, wanted, rel_tol=1e-6)


def test_mean_of_sums():
    assert LossSums((1.0, 3.0), (1.0, 3.0)).mean == 1.0
    assert math.isnan(LossSums((1.0, math.inf), (1.0, 1.0)).mean)
    # 1e16 + 1 - 1e16 keeps the 1
    assert LossSums((1e16, 1.0, -1e16), (1.0, 1.0, 2.0)).mean == 0.25
