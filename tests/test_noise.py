"""C and S_B as operators against matrices written out from their definitions, in float64, and against closed forms."""

from __future__ import annotations

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import nets
import sgdwalk
from gradient_twins import KINDS, cross_entropies, gradients_one_by_one, losses_twin, net, parameters_of
from sgdwalk.outer_products import OuterProducts
from test_objective import FusedTanh

N = 23
"""With batches of 5 the last one has three examples; with 11 the last single one joins the batch before."""

TOLERANCE = {torch.float64: {"rtol": 1e-11, "atol": 1e-13}, torch.float32: {"rtol": 2e-4, "atol": 1e-6}}

LOSSES = {"mean": nn.CrossEntropyLoss(), "per_example": nn.CrossEntropyLoss(reduction="none")}


def second_moment(kind, *, dtype=torch.float64, loss_fn=LOSSES["mean"], **options):
    """The operator, the gradients of its examples by the twin, and its model."""
    model, data = net(kind, dtype), nets.classification(N, dtype=dtype)
    operator = sgdwalk.gradient_second_moment(model, loss_fn, data, batch_size=5, **options)
    losses = losses_twin(model, list(operator.full_loss.data), cross_entropies)
    return operator, gradients_one_by_one(losses, parameters_of(model)), model


def check(operator: OuterProducts, matrix: Tensor, **tolerance: float) -> None:
    """All that an operator tells against its matrix."""
    close = {"check_dtype": False, **tolerance}
    torch.testing.assert_close(operator.dense(), matrix, **close)
    torch.testing.assert_close(torch.tensor(operator.trace(), dtype=torch.float64), matrix.trace(), **close)
    torch.testing.assert_close(operator.diagonal(), matrix.diagonal(), **close)
    values, _ = torch.linalg.eigh(matrix)
    values = values.flip(0)
    gram = torch.linalg.eigvalsh(operator.gram()).flip(0)
    few = min(len(values), len(gram))
    scale = float(values[0])
    torch.testing.assert_close(gram[:few] / scale, values[:few] / scale, rtol=0, atol=tolerance["rtol"])
    pairs = operator.eigenpairs(3, tolerance=1e-7 if tolerance["rtol"] < 1e-10 else 1e-3)
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values / scale, values[:3] / scale, rtol=0, atol=tolerance["rtol"])
    torch.testing.assert_close(
        pairs.vectors @ pairs.vectors.T, torch.eye(3), check_dtype=False, rtol=0, atol=tolerance["rtol"]
    )
    images = (matrix @ pairs.vectors.double().T).T
    away = torch.linalg.vector_norm(images - pairs.values[:, None] * pairs.vectors.double(), dim=1)
    torch.testing.assert_close(pairs.residuals / scale, away / scale, rtol=0, atol=10 * tolerance["rtol"])


# ------------------------------------------------------------------------------------------------- second moment
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_second_moment_equals_its_definition(kind, dtype):
    operator, gradients, _ = second_moment(kind, dtype=dtype)
    tolerance = dict(TOLERANCE[dtype])
    tolerance["atol"] *= float(gradients.square().sum() / N)
    check(operator, gradients.T @ gradients / N, **tolerance)
    assert operator.method == "double_backward"


@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)
def test_the_form_of_the_loss_does_not_matter(loss_fn):
    operator, gradients, _ = second_moment("batchnorm", loss_fn=loss_fn)
    torch.testing.assert_close(operator.dense(), gradients.T @ gradients / N, **TOLERANCE[torch.float64])
    torch.testing.assert_close(operator.squared_norms(), gradients.square().sum(1), **TOLERANCE[torch.float64])


def test_a_loss_that_vmap_cannot_take_goes_row_by_row():
    def steered(output, target):
        loss = functional.cross_entropy(output, target)
        return loss if loss.item() > 0 else 2 * loss

    operator, gradients, _ = second_moment("tanh", loss_fn=steered)
    torch.testing.assert_close(operator.dense(), gradients.T @ gradients / N, **TOLERANCE[torch.float64])


def test_linear_regression_on_paper():
    """∇ℓ_i = 2 (x_i·w - y_i) x_i, so C = (4/N) Σ r_i² x_i x_iᵀ and H = (2/N) XᵀX."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(N, 4, dtype=torch.float64), torch.randn(N, 1, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    operator = sgdwalk.gradient_second_moment(model, nn.MSELoss(), (inputs, targets), batch_size=6)
    residuals = inputs @ model.weight.detach().T - targets
    expected = 4 / N * (residuals * inputs).T @ (residuals * inputs)
    check(operator, expected, rtol=1e-12, atol=1e-13)


class Mean(nn.Module):
    """A model that is its mean and nothing else: with half a squared error ∇ℓ_i = θ - x_i."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(size, dtype=dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.theta.expand(len(inputs), -1)


def half_squared_errors(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(1) / 2


def test_a_mean_has_the_second_moment_and_the_covariance_of_its_data():
    torch.manual_seed(0)
    x = torch.randn(N, 4, dtype=torch.float64) + 1
    C = sgdwalk.gradient_second_moment(Mean(4), half_squared_errors, (x, x))
    check(C, x.T @ x / N, rtol=1e-12, atol=1e-13)
    S = sgdwalk.gradient_noise(Mean(4), half_squared_errors, (x, x), batch_size=1)
    assert (S.num_batches, S.num_left_out) == (N, 0)
    check(S, torch.cov(x.T), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(S.mean_gradient, -x.mean(0))


@pytest.mark.parametrize("memory_limit", [None, 3_000], ids=["kept", "made_again"])
@pytest.mark.parametrize("kind", ["tanh", "batchnorm"])
def test_gradients_that_do_not_fit_are_made_again(kind, memory_limit):
    operator, gradients, _ = second_moment(kind, memory_limit=memory_limit)
    assert (operator._room() >= N) is (memory_limit is None)
    check(operator, gradients.T @ gradients / N, **TOLERANCE[torch.float64])


def test_batches_larger_than_a_piece_are_cut_where_that_changes_nothing():
    """One batch of 20 goes through the model in pieces of 8, but not where the model itself mixes its examples."""

    class Contrast(nn.Module):
        def __init__(self, strength):
            super().__init__()
            self.inner, self.strength = net("tanh"), strength

        def forward(self, inputs):
            sizes.append(len(inputs))
            output = self.inner(inputs)
            return output - self.strength * output.mean(0)

    sizes: list = []
    data = nets.classification(20, dtype=torch.float64)
    for strength, seen in ((0.0, [20, 8, 8, 4]), (0.5, [20, 8, 20])):
        model = Contrast(strength)
        operator = sgdwalk.gradient_second_moment(model, nn.CrossEntropyLoss(reduction="none"), data)
        sizes.clear()
        norms = operator.squared_norms()
        assert sizes == seen
        losses = losses_twin(model, list(operator.full_loss.data), cross_entropies)
        gradients = gradients_one_by_one(losses, parameters_of(model))
        torch.testing.assert_close(norms, gradients.square().sum(1), **TOLERANCE[torch.float64])


def test_a_kernel_without_second_derivative_is_multiplied_through_single_gradients():
    class Fused(nn.Module):
        def forward(self, x):
            return FusedTanh.apply(x)

    smooth, fused = net("tanh"), net("tanh")
    fused[1] = Fused()
    data = nets.classification(N, dtype=torch.float64)
    products = [
        sgdwalk.gradient_second_moment(model, nn.CrossEntropyLoss(), data, batch_size=5) for model in (smooth, fused)
    ]
    torch.testing.assert_close(products[1].dense(), products[0].dense())
    assert products[1].method == "single_gradients"
    assert products[1].trace() == pytest.approx(products[0].trace(), rel=1e-12)


def test_restricted_parameters():
    whole, _, model = second_moment("tanh")
    part, _, _ = second_moment("tanh", parameters=["2"])
    size = sum(p.numel() for p in model[2].parameters())
    torch.testing.assert_close(part.dense(), whole.dense()[-size:, -size:])
    torch.testing.assert_close(part.diagonal(), whole.diagonal()[-size:])


def test_eigenvalues_beyond_the_rank_are_zero():
    torch.manual_seed(0)
    x = torch.randn(3, 8, dtype=torch.float64)
    pairs = sgdwalk.gradient_second_moment(Mean(8), half_squared_errors, (x, x)).eigenpairs(5)
    assert pairs.values[3:].tolist() == [0.0, 0.0]
    assert pairs.converged.tolist() == [True, True, True, False, False]
    assert "rank 3" in pairs.reason
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(5, dtype=torch.float64))
    assert float(pairs.residuals.max()) < 1e-14


# ------------------------------------------------------------------------------------------- noise of mini-batches
def batch_gradients(model: nn.Module, batches) -> Tensor:
    rows = [
        gradients_one_by_one(losses_twin(model, [batch], cross_entropies), parameters_of(model)) for batch in batches
    ]
    return torch.stack([row.mean(0) for row in rows])


def covariance(rows: Tensor, batch_size: int) -> Tensor:
    away = rows - rows.mean(0)
    return batch_size * away.T @ away / (len(rows) - 1)


@pytest.mark.parametrize("memory_limit", [None, 1_500], ids=["kept", "made_again"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", ["batchnorm", "tied"])
def test_noise_equals_its_definition(kind, dtype, memory_limit):
    """Under BatchNorm each mini-batch has its own statistics; the last one, of three examples, is left out."""
    model, data = net(kind, dtype), nets.classification(N, dtype=dtype)
    options = {"batch_size": 5, "seed": 4, "memory_limit": memory_limit}
    operator = sgdwalk.gradient_noise(model, LOSSES["mean"], data, **options)
    assert (operator.batch_size, operator.num_batches, operator.num_left_out) == (5, 4, 3)
    order = np.random.default_rng(4).permutation(N)
    batches = [(data[0][rows], data[1][rows]) for rows in np.split(order[:20], 4)]
    rows = batch_gradients(model, batches)
    tolerance = dict(TOLERANCE[dtype])
    tolerance["atol"] *= float(covariance(rows, 5).trace())
    check(operator, covariance(rows, 5), **tolerance)
    close = {"check_dtype": False, **TOLERANCE[dtype]}
    torch.testing.assert_close(operator.mean_gradient, rows.mean(0), **close)
    torch.testing.assert_close(operator.batch_gram(), rows @ rows.T, **close)
    operator.release()
    assert operator.trace() == pytest.approx(float(covariance(rows, 5).trace()), rel=TOLERANCE[dtype]["rtol"])


def test_a_last_single_example_is_cut_off_again():
    """The evaluation partition makes it part of the batch before."""
    data = nets.classification(N, dtype=torch.float64)
    operator = sgdwalk.gradient_noise(net("tanh"), LOSSES["mean"], data, batch_size=11, seed=0)
    assert (operator.num_batches, operator.num_left_out) == (2, 1)
    order = np.random.default_rng(0).permutation(N)
    rows = batch_gradients(net("tanh"), [(data[0][part], data[1][part]) for part in (order[:11], order[11:22])])
    torch.testing.assert_close(operator.dense(), covariance(rows, 11), **TOLERANCE[torch.float64])


def test_the_expectation_over_partitions_is_the_covariance_of_single_gradients():
    """Exactly so for every B: checked by averaging over all partitions of six examples into pairs."""
    torch.manual_seed(0)
    x = torch.randn(6, 2, dtype=torch.float64)
    pairings = [
        [(0, a), *rest]
        for a in range(1, 6)
        for rest in (lambda left: [[(left[0], left[i]), tuple(set(left[1:]) - {left[i]})] for i in (1, 2, 3)])(
            [j for j in range(1, 6) if j != a]
        )
    ]
    assert len(pairings) == 15
    matrices = [
        sgdwalk.gradient_noise(
            Mean(2), half_squared_errors, [(x[list(pair)], x[list(pair)]) for pair in pairing], batch_size=None
        ).dense()
        for pairing in pairings
    ]
    torch.testing.assert_close(torch.stack(matrices).mean(0), torch.cov(x.T))


def test_sum_and_count_is_a_loss_like_any_other_for_the_noise():
    def summed(output, target):
        return functional.cross_entropy(output, target, reduction="sum"), len(target)

    data = nets.classification(N, dtype=torch.float64)
    matrices = [
        sgdwalk.gradient_noise(net("tanh"), loss_fn, data, batch_size=5).dense() for loss_fn in (LOSSES["mean"], summed)
    ]
    torch.testing.assert_close(*matrices)


def test_batchnorm_makes_the_noise_depend_on_the_batch_size():
    data = nets.classification(24, dtype=torch.float64)
    for batchnorm, depends in (("train", True), ("eval", False)):
        traces = []
        for batch_size in (2, 12):
            draws = [
                sgdwalk.gradient_noise(
                    net("batchnorm"), LOSSES["mean"], data, batch_size=batch_size, seed=seed, batchnorm=batchnorm
                ).trace()
                for seed in range(12)
            ]
            traces.append(float(np.mean(draws)))
        assert (abs(traces[0] / traces[1] - 1) > 0.5) is depends, traces


# ------------------------------------------------------------------------------------------------------ both
def made(model, data):
    return [
        sgdwalk.gradient_second_moment(model, LOSSES["mean"], data, batch_size=5),
        sgdwalk.gradient_noise(model, LOSSES["mean"], data, batch_size=5),
    ]


def ask(operator: OuterProducts) -> list:
    vector = torch.ones(operator.size)
    pairs = operator.eigenpairs(2)
    return [operator @ vector, operator.trace(), operator.diagonal(), operator.gram(), pairs.values, pairs.vectors]


def test_nothing_of_the_users_is_touched_and_the_numbers_are_the_same_again():
    nets.seed_everything(5)
    model, data = net("batchnorm", torch.float32), nets.classification(N)
    functional.cross_entropy(model(data[0]), data[1]).backward()
    model[0].eval()
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    flags = [layer.training for layer in model.modules()]
    streams = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    first, again = ([ask(operator) for operator in made(model, data)] for _ in range(2))
    assert random.getstate() == streams[0]
    assert np.random.get_state()[1].tolist() == streams[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), streams[2])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [p._version for p in model.parameters()] == versions
    assert [layer.training for layer in model.modules()] == flags
    assert torch.is_grad_enabled()
    for one, other in zip(itertools.chain(*first), itertools.chain(*again), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_the_operators_stay_where_they_were_made():
    model, data = net("tanh", torch.float32), nets.classification(N)
    operators = made(model, data)
    before = [operator.trace() for operator in operators]
    with torch.no_grad():
        model[0].weight.zero_()
    for operator in operators:
        operator.release()
    assert [operator.trace() for operator in operators] == before


def between_examples(output: Tensor, target: Tensor) -> Tensor:
    """A mean for the usual parts of a batch, but not for single examples."""
    return functional.cross_entropy(output, target) * (1.0 if len(output) > 1 else 2.0)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (
            lambda output, target: (functional.cross_entropy(output, target, reduction="sum"), len(target)),
            r"pair \(sum, count\).*shape \(8,\).*reduction='none'",
        ),
        (between_examples, "one example at a time gives a mean of .* for the batch as a whole"),
    ],
    ids=["sum_and_count", "between_examples"],
)
def test_a_loss_without_single_examples_is_refused(loss_fn, message):
    with pytest.raises(sgdwalk.InputError, match=message):
        sgdwalk.gradient_second_moment(net("tanh", torch.float32), loss_fn, nets.classification(N), batch_size=8)


def test_a_loss_that_the_model_computes_itself_is_refused():
    def forward(model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1]), None

    options = {"forward": forward, "batch_size": 5}
    with pytest.raises(sgdwalk.InputError, match="no row for each example"):
        sgdwalk.gradient_second_moment(net("tanh"), lambda out, _: out, nets.classification(N), **options)


def test_too_few_batches_and_missing_sizes_are_refused():
    model, data = net("tanh", torch.float32), nets.classification(N)
    with pytest.raises(sgdwalk.InputError, match="23 examples make 1 mini-batches of 20"):
        sgdwalk.gradient_noise(model, LOSSES["mean"], data, batch_size=20)
    with pytest.raises(sgdwalk.InputError, match="batch_size=None, but the noise of mini-batches depends"):
        sgdwalk.gradient_noise(model, LOSSES["mean"], data, batch_size=None)
    one = tuple(tensor[:1] for tensor in data)
    with pytest.raises(sgdwalk.InputError, match="1 examples make 1 mini-batches of 1"):
        sgdwalk.gradient_noise(model, LOSSES["mean"], one, batch_size=1)
    operator = sgdwalk.gradient_noise(model, LOSSES["mean"], data, batch_size=5)
    with pytest.raises(sgdwalk.InputError, match="k=0"):
        operator.eigenpairs(0)
    with pytest.raises(sgdwalk.InputError, match="takes vectors of 75 coordinates"):
        operator @ torch.ones(3)
