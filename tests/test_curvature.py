"""Spectral norm, eigenpairs, trace and density against dense float64 matrices, and of cases known on paper."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sgdwalk
from nets import assert_identical, everything
from sgdwalk.errors import InputError

N, B = 37, 10


class Block(nn.Module):
    """Self-attention over three tokens of two features, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(2, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.view(len(x), 3, 2))
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(self.norm(tokens + attended).flatten(1))


class Tied(nn.Module):
    """One matrix read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


NETS = {
    "batchnorm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)),
    "groupnorm": lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.GELU(), nn.Linear(8, 3)),
    "relu": lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)),
    "attention": Block,
    "tied": Tied,
}


def net(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return NETS[kind]().to(dtype)


def examples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(N, 6, generator=draw).to(dtype), torch.randint(0, 3, (N,), generator=draw)


def batches() -> list[tuple[Tensor, Tensor]]:
    """The partition of ``partition_seed=0``, written down from its definition."""
    inputs, targets = examples()
    order = np.random.default_rng(0).permutation(N)
    return [(inputs[rows], targets[rows]) for rows in (order[k : k + B] for k in range(0, N, B))]


def dense_hessian(model: nn.Module, scale: float = 1.0) -> Tensor:
    """∂²L/∂θ² in float64: reverse over reverse, one row at a time.  # (d, d)"""
    module = copy.deepcopy(model).double().eval()
    for layer in module.modules():
        layer.train(isinstance(layer, nn.BatchNorm1d))
    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]
    theta = torch.cat([p.detach().reshape(-1) for p in module.parameters()])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([math.prod(shape) for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        sums = [
            functional.cross_entropy(
                torch.func.functional_call(copy.deepcopy(module), weights, (x,)), y, reduction="sum"
            )
            for x, y in batches()
        ]
        return scale * torch.stack(sums).sum() / N

    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
        return torch.autograd.functional.hessian(loss, theta)


def top(matrix: Tensor) -> float:
    values = torch.linalg.eigvalsh(matrix)
    return float(values[values.abs().argmax()])


# ------------------------------------------------------------------------------------------------- against dense twins
@pytest.mark.parametrize("kind", NETS)
def test_spectral_norm_equals_the_dense_one(kind):
    model = net(kind)
    expected = top(dense_hessian(model))
    result = sgdwalk.spectral_norm(model, nn.CrossEntropyLoss(), examples(), batch_size=B, tolerance=1e-7)
    assert result.converged
    assert result.reason == ""
    assert math.isclose(result.value, expected, rel_tol=1e-9)
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), examples(), batch_size=B)
    residual = torch.linalg.vector_norm(matrix @ result.vector - result.value * result.vector)
    assert math.isclose(float(residual), result.residual, rel_tol=1e-3, abs_tol=1e-12)
    assert float(residual) <= 1e-7 * abs(expected)


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
@pytest.mark.parametrize("kind", ["batchnorm", "attention"])
def test_several_eigenpairs_equal_the_dense_ones(kind, which):
    model = net(kind)
    values = torch.linalg.eigvalsh(dense_hessian(model))
    order = {"magnitude": values.abs().argsort(descending=True), "largest": values.argsort(descending=True)}
    expected = values[order.get(which, values.argsort())][:4]
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), examples(), batch_size=B)
    pairs = sgdwalk.eigenpairs(matrix, 4, which=which, tolerance=1e-6)
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9)


def test_float32_is_as_good_as_its_tolerance():
    expected = top(dense_hessian(net("batchnorm", torch.float32)))
    model = net("batchnorm", torch.float32)
    for tolerance, bound in ((0.05, 1e-2), (1e-3, 1e-5)):
        result = sgdwalk.spectral_norm(
            model, nn.CrossEntropyLoss(), examples(torch.float32), batch_size=B, tolerance=tolerance
        )
        assert result.converged
        assert math.isclose(result.value, expected, rel_tol=bound)


def test_a_dominant_negative_eigenvalue_keeps_its_sign():
    expected = top(dense_hessian(net("relu"), scale=-1.0))
    assert expected < 0

    def ascent(output, target):
        return -functional.cross_entropy(output, target)

    result = sgdwalk.spectral_norm(net("relu"), ascent, examples(), batch_size=B, tolerance=1e-6)
    assert result.converged
    assert math.isclose(result.value, expected, rel_tol=1e-8)


def test_restricted_to_a_layer_it_is_the_dense_block():
    model = net("relu")
    names = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    rows = torch.tensor([name.startswith("2.") for name in names])
    block = dense_hessian(model)[rows][:, rows]
    options = {"batch_size": B, "parameters": ["2"]}
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), examples(), **options)
    torch.testing.assert_close(matrix.dense(), block, rtol=1e-9, atol=1e-11)
    result = sgdwalk.spectral_norm(model, nn.CrossEntropyLoss(), examples(), tolerance=1e-6, **options)
    assert math.isclose(result.value, top(block), rel_tol=1e-8)


# ------------------------------------------------------------------------------------------------- known on paper
def test_linear_regression_has_the_eigenvalues_of_its_inputs():
    """L = ‖X θ - y‖² / N: H = 2 XᵀX / N with eigenvalues 2 s²/N for the singular values s of X."""
    draw = torch.Generator().manual_seed(0)
    inputs, targets = (
        torch.randn(50, 7, generator=draw, dtype=torch.float64),
        torch.randn(50, 1, generator=draw).double(),
    )
    expected = 2 * torch.linalg.svdvals(inputs).square() / 50
    model = nn.Linear(7, 1, bias=False).double()
    matrix = sgdwalk.hessian(model, nn.MSELoss(), (inputs, targets), batch_size=8)
    pairs = sgdwalk.eigenpairs(matrix, 7, tolerance=1e-9)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        sgdwalk.gauss_newton(model, nn.MSELoss(), (inputs, targets), batch_size=8).dense(), matrix.dense()
    )
    assert math.isclose(sgdwalk.trace(matrix).value, float(expected.sum()), rel_tol=1e-12)


class Spectrum(nn.Module):
    """L = ½ Σ a_i θ_i² at every example: a Hessian with the spectrum a."""

    def __init__(self, spectrum: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones_like(spectrum))
        self.register_buffer("spectrum", spectrum)

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * self.spectrum * self.theta.square()).sum().expand(len(x))


def identity(output: Tensor, target: Tensor) -> Tensor:
    return output


def bowl(spectrum: Tensor) -> tuple:
    return Spectrum(spectrum), identity, (torch.zeros(4, 1), torch.zeros(4))


def test_progress_is_told_after_each_product():
    told = []
    spectrum = torch.linspace(0.1, 1.0, 60, dtype=torch.float64)
    result = sgdwalk.spectral_norm(*bowl(spectrum), tolerance=1e-6, progress=lambda *each: told.append(each))
    assert [products for products, _, _ in told] == list(range(1, result.num_products + 1))
    assert [converged for _, converged, _ in told] == [0] * (len(told) - 1) + [1]
    assert told[-1][2] <= 1e-6 < told[0][2]


def test_zero_curvature_is_zero_and_converged():
    result = sgdwalk.spectral_norm(*bowl(torch.zeros(6)))
    assert (result.value, result.residual, result.converged) == (0.0, 0.0, True)


def test_a_degenerate_top_is_found_with_its_multiplicity():
    spectrum = torch.tensor([5.0, 1.0, 5.0, 2.0, 0.5, 5.0, *[0.1] * 30], dtype=torch.float64)
    pairs = sgdwalk.eigenpairs(sgdwalk.hessian(*bowl(spectrum)), 4, tolerance=1e-8)
    torch.testing.assert_close(pairs.values, torch.tensor([5.0, 5.0, 5.0, 2.0], dtype=torch.float64))


def test_curvature_that_is_not_finite_is_told():
    class Root(Spectrum):
        """|θ_0|^(3/2): a finite slope and an infinite curvature at 0."""

        def forward(self, x):
            return super().forward(x) + self.theta[0].square().pow(0.75)

    model = Root(torch.tensor([1.0, 2.0, 3.0]))
    with torch.no_grad():
        model.theta[0] = 0.0
    result = sgdwalk.spectral_norm(model, identity, (torch.zeros(4, 1), torch.zeros(4)))
    assert not result.converged
    assert "not finite" in result.reason
    assert "NOT CONVERGED" in repr(result)


def test_too_few_products_are_said_and_not_passed_on():
    spectrum = torch.linspace(0.9, 1.0, 400, dtype=torch.float64)
    result = sgdwalk.spectral_norm(*bowl(spectrum), tolerance=1e-6, max_products=3)
    assert not result.converged
    assert result.reason == "not converged after 3 products"
    assert result.num_products == 3
    assert result.residual > 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"tolerance": 2}, "between 0 and 1"),
        ({"max_products": 0}, "at least one product"),
        ({"parameters": ["encoder"]}, "no parameter or layer 'encoder'"),
        ({"parameters": "0.weight"}, "a list of names"),
        ({"batchnorm": "off"}, "batchnorm='off'"),
        ({"batch_size": None}, "pass batch_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_settings_get_one_clear_sentence(options, message):
    with pytest.raises(InputError, match=message):
        sgdwalk.spectral_norm(net("batchnorm"), nn.CrossEntropyLoss(), examples(), **{"batch_size": B, **options})


# ------------------------------------------------------------------------------------------------ nothing is disturbed
def test_the_model_and_every_random_stream_stay_as_they_are():
    model = net("batchnorm", torch.float32)
    inputs, targets = examples(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    before = everything(model, [optimizer])
    first = sgdwalk.spectral_norm(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=B)
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=B)
    sgdwalk.trace(matrix, num_products=12)
    sgdwalk.spectral_density(matrix, num_probes=1, num_steps=5)
    sgdwalk.batch_sharpness(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=B)
    assert_identical(everything(model, [optimizer]), before)
    again = sgdwalk.spectral_norm(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=B)
    assert (first.value, first.residual, first.num_products) == (again.value, again.residual, again.num_products)
    assert torch.equal(first.vector, again.vector)


def test_the_operator_stays_where_it_was_made():
    model = net("relu")
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), examples(), batch_size=B)
    vector = torch.ones(matrix.size, dtype=torch.float64)
    before = matrix @ vector
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(matrix @ vector, before)
    matrix.release()
    assert torch.equal(matrix @ vector, before)


# ------------------------------------------------------------------------------------------------- trace and density
@pytest.mark.parametrize("kind", ["batchnorm", "groupnorm"])
def test_trace_lies_within_its_standard_error(kind):
    model = net(kind)
    exact = float(torch.trace(dense_hessian(model)))
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), examples(), batch_size=B)
    estimates = [sgdwalk.trace(matrix, num_products=30, seed=seed) for seed in range(40)]
    z = np.asarray([(estimate.value - exact) / estimate.standard_error for estimate in estimates])
    # Ten samples each: |t_9| > 2.26 in 5 % of draws. Of 40, more than 7 misses have a probability below 1e-3.
    assert (abs(z) > 2.26).sum() <= 7
    assert abs(z.mean()) < 4 / math.sqrt(40)
    exactly = sgdwalk.trace(matrix, num_products=matrix.size)
    assert (exactly.standard_error, exactly.num_products) == (0.0, matrix.size)
    assert math.isclose(exactly.value, exact, rel_tol=1e-9)


def test_the_part_of_the_range_takes_what_dominates():
    """Three large eigenvalues in directions of no coordinate: plain random vectors would miss by several."""
    draw = torch.Generator().manual_seed(0)
    axis = functional.normalize(torch.randn(203, generator=draw, dtype=torch.float64), dim=0)
    spectrum = torch.cat([torch.tensor([100.0, 50.0, -20.0]), torch.full((200,), 0.1)]).double()
    reflection = torch.eye(203, dtype=torch.float64) - 2 * torch.outer(axis, axis)

    class Turned(Spectrum):
        def forward(self, x):
            return (0.5 * self.spectrum * (reflection @ self.theta).square()).sum().expand(len(x))

    matrix = sgdwalk.hessian(Turned(spectrum), identity, (torch.zeros(4, 1), torch.zeros(4)))
    estimate = sgdwalk.trace(matrix, num_products=30)
    signs = torch.randint(0, 2, (1000, 203), generator=draw).double() * 2 - 1
    plain = ((signs @ reflection).square() @ spectrum).std() / math.sqrt(30)
    assert estimate.standard_error < float(plain) / 20
    assert abs(estimate.value - 150.0) < 5 * estimate.standard_error


def test_density_has_the_moments_of_the_spectrum():
    model = net("batchnorm")
    exact = torch.linalg.eigvalsh(dense_hessian(model)).numpy()
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), examples(), batch_size=B)
    density = sgdwalk.spectral_density(matrix, num_probes=30, num_steps=20)
    np.testing.assert_allclose(density.weights.sum(1), 1.0, rtol=1e-12)
    assert density.num_products == 600
    for power in (1, 2):
        samples = (density.weights * density.nodes**power).sum(1)
        error = samples.std(ddof=1) / math.sqrt(len(samples))
        assert abs(samples.mean() - (exact**power).mean()) < 4 * error
    assert math.isclose(density.nodes.max(), exact.max(), rel_tol=1e-6)
    grid = np.linspace(exact.min() - 1, exact.max() + 1, 4001)
    assert math.isclose(np.trapezoid(density.density(grid, width=0.01), grid), 1.0, rel_tol=1e-6)


def test_density_of_few_eigenvalues_is_exact_and_stops_early():
    spectrum = torch.tensor([2.0, 2.0, 7.0, 7.0, 7.0, 7.0], dtype=torch.float64)
    density = sgdwalk.spectral_density(sgdwalk.hessian(*bowl(spectrum)), num_probes=1, num_steps=40)
    held = density.weights[0] > 1e-12
    np.testing.assert_allclose(density.nodes[0][held], [2.0, 7.0], rtol=1e-12)
    np.testing.assert_allclose(density.weights[0][held], [1 / 3, 2 / 3], rtol=1e-12)
    products = density.num_products
    assert repr(density) == f"SpectralDensity(1 probe of 6 steps, eigenvalues from 2 to 7, {products} products)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda matrix: sgdwalk.trace(matrix, num_products=11), "at least 12"),
        (lambda matrix: sgdwalk.spectral_density(matrix, num_steps=0), "num_steps=0"),
        (lambda matrix: sgdwalk.eigenpairs(matrix, 0), "k=0"),
        (lambda matrix: sgdwalk.eigenpairs(matrix, which="best"), "which='best'"),
        (lambda matrix: matrix @ torch.ones(2), "3 coordinates"),
    ],
    ids=["trace", "density", "k", "which", "length"],
)
def test_questions_that_make_no_sense_are_refused(call, message):
    matrix = sgdwalk.hessian(*bowl(torch.ones(3)))
    with pytest.raises(InputError, match=message):
        call(matrix)


@pytest.mark.parametrize(
    "call",
    [
        sgdwalk.eigenpairs,
        sgdwalk.trace,
        sgdwalk.spectral_density,
        lambda model: sgdwalk.preconditioned(model, torch.optim.Adam(model.parameters())),
        lambda model: sgdwalk.noise_alignment(model, None),
    ],
)
def test_a_model_is_no_operator(call):
    with pytest.raises(InputError, match=r"An operator is wanted, such as sgdwalk.hessian\(.* gives; got a Linear"):
        call(nn.Linear(2, 1))


def test_an_alignment_wants_eigenpairs():
    matrix = sgdwalk.hessian(*bowl(torch.ones(3)))
    with pytest.raises(InputError, match=r"Eigenpairs are wanted.*got a Tensor"):
        sgdwalk.noise_alignment(matrix, torch.ones(3))


@pytest.mark.parametrize("call", [sgdwalk.hessian, sgdwalk.spectral_norm, sgdwalk.batch_sharpness])
def test_a_misspelt_option_is_told_beside_those_that_exist(call):
    with pytest.raises(InputError, match=r"There is no option 'batchsize'.* takes batch_size, batchnorm, parameters"):
        call(*bowl(torch.ones(3)), batchsize=2)


# ----------------------------------------------------------------------------------------------------- batch sharpness
def test_batch_sharpness_equals_the_dense_ratio():
    """Σ g_Bᵀ H_B g_B / Σ ‖g_B‖² over the three whole batches; the ragged one is another B and left out."""
    model = net("batchnorm")
    ratios = []
    module = copy.deepcopy(model).train()
    for inputs, targets in batches()[:3]:
        loss = functional.cross_entropy(module(inputs), targets)
        gradients = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        product = torch.autograd.grad(flat @ flat.detach(), list(module.parameters()))
        curved = torch.cat([p.reshape(-1) for p in product])
        ratios.append((float(flat.detach() @ curved), float(flat.detach() @ flat.detach())))
    curvatures, squares = np.asarray(ratios).T
    result = sgdwalk.batch_sharpness(model, nn.CrossEntropyLoss(), examples(), batch_size=B, num_batches=None)
    assert (result.batch_size, result.num_batches, result.reason) == (B, 3, "")
    assert math.isclose(result.value, curvatures.mean() / squares.mean(), rel_tol=1e-9)
    spread = np.std(curvatures - result.value * squares, ddof=1) / math.sqrt(3) / squares.mean()
    assert math.isclose(result.standard_error, spread, rel_tol=1e-6)


def test_batch_sharpness_of_a_full_batch_is_the_rayleigh_quotient_of_its_gradient():
    spectrum = torch.tensor([1.0, 4.0], dtype=torch.float64)  # g = (1, 4), gᵀHg = 65, ‖g‖² = 17
    result = sgdwalk.batch_sharpness(*bowl(spectrum))
    assert math.isclose(result.value, 65 / 17, rel_tol=1e-12)
    assert math.isnan(result.standard_error)


def test_batch_sharpness_without_a_gradient_is_undefined():
    model, loss_fn, data = bowl(torch.zeros(3))
    result = sgdwalk.batch_sharpness(model, loss_fn, data)
    assert math.isnan(result.value)
    assert result.reason == "every mini-batch gradient is zero"


# ------------------------------------------------------------------------------------------------------- along a walk
def walk(model, optimizer, data, steps, *, options=None, **measures):
    inputs, targets = data
    loss_fn = nn.CrossEntropyLoss()
    kept = []
    with sgdwalk.watch(
        model, optimizer, loss_fn, data, when=None, batch_size=B, on_error="raise", measures=measures, **(options or {})
    ) as walked:
        for step in range(steps):
            kept.append(copy.deepcopy(model))
            rows = torch.arange(step * 7, step * 7 + 20) % N
            optimizer.zero_grad()
            loss_fn(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return walked.run.steps, kept


EVERY = sgdwalk.every(1)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
def test_along_a_walk_it_is_the_one_of_each_iterate(evaluate_on):
    model = net("batchnorm", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    steps, kept = walk(
        model,
        optimizer,
        examples(torch.float32),
        6,
        options={"evaluate_on": evaluate_on},
        norm=sgdwalk.at(EVERY, sgdwalk.SpectralNorm(1e-3)),
        sharpness=sgdwalk.at(EVERY, sgdwalk.BatchSharpness(None)),
    )
    for step, before in enumerate(kept):
        assert math.isclose(steps["norm"][step], top(dense_hessian(before)), rel_tol=1e-5)
        expected = sgdwalk.batch_sharpness(
            before, nn.CrossEntropyLoss(), examples(torch.float32), batch_size=B, num_batches=None
        )
        assert math.isclose(steps["sharpness"][step], expected.value, rel_tol=1e-4)
    threshold = (2 + 2 * 0.9) / 0.05 - 1e-2
    np.testing.assert_allclose(steps["norm_threshold"], threshold, rtol=1e-12)
    np.testing.assert_allclose(steps["norm_edge_ratio"], steps["norm"] / threshold, rtol=1e-12)
    assert (steps["norm_residual"] <= 1e-3 * steps["norm"].abs()).all()
    assert steps["norm_num_products"].iloc[1:].mean() < steps["norm_num_products"].iloc[0]
    assert steps["sharpness_edge_ratio"].isna().all()
    assert "momentum" in steps["sharpness_edge_ratio_reason"].iloc[0]


def test_adams_edge_is_that_of_the_preconditioned_hessian():
    model = net("relu", torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    states = []

    class Keep:
        def __call__(self, here):
            state = [optimizer.state[p] for p in model.parameters()]
            t = float(state[0]["step"])
            second = torch.cat([s["exp_avg_sq"].double().reshape(-1) for s in state])
            states.append((1 - 0.9**t) * ((second / (1 - 0.999**t)).sqrt() + 1e-8))
            return 0.0

    steps, kept = walk(
        model,
        optimizer,
        examples(torch.float32),
        2,  # at the third the two largest eigenvalues differ by 0.4 %
        keep=sgdwalk.at(EVERY, Keep()),
        edge=sgdwalk.at(EVERY, sgdwalk.SpectralNorm(1e-3, preconditioned=True)),
        plain=sgdwalk.at(EVERY, sgdwalk.SpectralNorm(1e-3)),
    )
    for step, before in enumerate(kept):
        matrix = dense_hessian(before) + 0.1 * torch.eye(len(states[step]), dtype=torch.float64)
        scale = states[step].rsqrt()
        assert math.isclose(steps["edge"][step], top(scale[:, None] * matrix * scale), rel_tol=1e-4)
        assert math.isclose(steps["plain"][step], top(dense_hessian(before)), rel_tol=1e-4)
    np.testing.assert_allclose(steps["edge_threshold"], (2 + 2 * 0.9) / (0.1 * 0.01), rtol=1e-12)
    assert steps["plain_threshold"].isna().all()
    assert "preconditioned=True" in steps["plain_threshold_reason"].iloc[0]


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_adam_has_no_threshold_where_it_has_no_preconditioner(eps):
    """An unused parameter never has one, with eps=0 a coordinate without a gradient; plain H has no threshold then."""
    model = net("relu", torch.float32)
    if eps > 0.0:
        model.unused = nn.Parameter(torch.ones(2))
    else:
        model[0].weight.register_hook(lambda gradient: gradient * 0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=eps)
    steps, _ = walk(
        model,
        optimizer,
        examples(torch.float32),
        1,
        plain=sgdwalk.at(EVERY, sgdwalk.SpectralNorm(0.1)),
        edge=sgdwalk.at(EVERY, sgdwalk.SpectralNorm(0.1, preconditioned=True)),
    )
    assert steps["plain"].notna().all()
    assert steps["plain_threshold"].isna().all()
    assert steps["edge"].isna().all()
    assert "preconditioner" in steps["edge_reason"][0]


def test_both_searches_of_a_measurement_share_the_products(monkeypatch):
    """The value jumps at each measurement, so that the first search is followed by a look."""
    model = net("relu", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
    for most in (2, 3, 5, 8):
        measure = sgdwalk.SpectralNorm(0.2, max_products=most, look_every=100)
        steps, _ = walk(model, optimizer, examples(torch.float32), 6, norm=sgdwalk.at(EVERY, measure))
        assert steps["norm_num_products"].max() <= most


def test_a_preconditioner_belongs_to_the_point_of_its_matrix():
    model = net("relu", torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs, targets = examples(torch.float32)

    def update():
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    update()
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), (inputs, targets), parameters=["0"])
    scaled = sgdwalk.preconditioned(matrix, optimizer)
    before = scaled.dense()
    update()
    assert_identical(scaled.dense(), before)  # it stays where it was made
    with pytest.raises(InputError, match="has moved since the matrix was made"):
        sgdwalk.preconditioned(matrix, optimizer)


def test_an_unconverged_number_is_no_number_of_the_walk():
    model = net("relu", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    measure = sgdwalk.SpectralNorm(1e-3, max_products=2)
    steps, _ = walk(model, optimizer, examples(torch.float32), 2, norm=sgdwalk.at(EVERY, lambda here: measure(here)))
    assert steps["norm"].isna().all()
    assert steps["norm_edge_ratio"].isna().all()
    assert "not converged after 2 products; the best value is" in steps["norm_reason"].iloc[0]
    assert steps["norm_residual"].notna().all()
    assert measure.state_dict()["start"] is None


def falling_and_rising(measure, num_steps):
    """The measure along a walk whose top eigenvalue falls while another one, in a direction of its own, rises past it.

    Also the two eigenvalues at each step.
    """

    class Crossing(nn.Module):
        def __init__(self):
            super().__init__()
            self.time = nn.Parameter(torch.zeros(1))
            self.theta = nn.Parameter(torch.zeros(300))
            self.register_buffer("bulk", torch.linspace(0.0, 0.5, 300))

        def forward(self, x):
            rising = self.bulk.clone()
            rising[7], rising[11] = 1.0 - 0.02 * self.time[0].detach(), 0.6 + 0.02 * self.time[0].detach()
            return (0.5 * rising * self.theta.square()).sum().expand(len(x))

    model = Crossing()
    data = (torch.zeros(4, 1), torch.zeros(4))
    with sgdwalk.watch(model, None, identity, data, measures={"norm": measure}, num_points=2) as walked:
        for _ in range(num_steps):
            walked.before_step(learning_rate=1.0)
            with torch.no_grad():
                model.time += 1
            walked.after_step()
    times = np.arange(num_steps)
    return walked.run.steps, 1.0 - 0.02 * times, 0.6 + 0.02 * times


def test_two_eigenvalues_that_cross_are_not_mistaken():
    steps, falling, rising = falling_and_rising(sgdwalk.SpectralNorm(0.01), 25)
    np.testing.assert_allclose(steps["norm"], np.maximum(falling, rising), rtol=1e-2)


def test_without_looks_the_last_eigenvector_is_followed_alone():
    steps, falling, _ = falling_and_rising(sgdwalk.SpectralNorm(0.01, look_every=None), 15)
    np.testing.assert_allclose(steps["norm"], falling, rtol=1e-2)  # the other is larger from the 10th on
    assert steps["norm_num_products"][1:].eq(1).all()


def test_a_resumed_walk_goes_on_bitwise():
    def start():
        model = net("batchnorm", torch.float32)
        return model, torch.optim.SGD(model.parameters(), lr=0.5)

    def update(model, optimizer, step):
        inputs, targets = examples(torch.float32)
        rows = torch.arange(step * 7, step * 7 + 20) % N
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()

    def watch(model, optimizer):
        return sgdwalk.watch(
            model,
            optimizer,
            nn.CrossEntropyLoss(),
            examples(torch.float32),
            batch_size=B,
            when=None,
            on_error="raise",
            measures={
                "norm": sgdwalk.at(EVERY, sgdwalk.SpectralNorm(0.02)),
                "sharpness": sgdwalk.at(EVERY, sgdwalk.BatchSharpness(2)),
            },
        )

    model, optimizer = start()
    with watch(model, optimizer) as whole:
        for step in range(8):
            update(model, optimizer, step)
    model, optimizer = start()
    with watch(model, optimizer) as first:
        for step in range(4):
            update(model, optimizer, step)
        saved = copy.deepcopy([first.state_dict(), model.state_dict(), optimizer.state_dict()])
    model, optimizer = start()
    with watch(model, optimizer) as second:
        model.load_state_dict(saved[1])
        optimizer.load_state_dict(saved[2])
        second.load_state_dict(saved[0])
        for step in range(4, 8):
            update(model, optimizer, step)
    columns = [column for column in whole.run.steps if column.startswith(("norm", "sharpness"))]
    assert_identical(second.run.steps[columns].to_numpy(float), whole.run.steps[columns].to_numpy(float))


def test_a_spectral_norm_begins_anew_in_each_walk_and_under_each_name():
    def numbers(measures):
        model = net("relu", torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        table, _ = walk(model, optimizer, examples(torch.float32), 2, **measures)
        return [table[[column for column in table if column.startswith(name)]].to_numpy(float) for name in measures]

    shared = sgdwalk.at(EVERY, sgdwalk.SpectralNorm(0.01))
    (fresh,) = numbers({"alone": sgdwalk.at(EVERY, sgdwalk.SpectralNorm(0.01))})
    for again in (*numbers({"one": shared, "two": shared}), *numbers({"one": shared})):
        assert_identical(again, fresh)


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (sgdwalk.SpectralNorm(parameters=["7"]), r"measures\['norm'\] cannot be taken. There is no .* '7'.*0\.weight"),
        (sgdwalk.SpectralNorm, r"measures\['norm'\] is the class SpectralNorm: pass an instance"),
        (sgdwalk.at(EVERY, sgdwalk.BatchSharpness), r"measures\['norm'\] is the class BatchSharpness"),
    ],
    ids=["parameters", "class", "class_with_a_schedule"],
)
def test_a_measure_that_cannot_be_taken_is_refused_at_once(measure, message, evaluate_on):
    model, data = net("batchnorm", torch.float32), examples(torch.float32)
    before = everything(model, [])
    with pytest.raises(InputError, match=message):
        sgdwalk.watch(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            nn.CrossEntropyLoss(),
            data,
            batch_size=B,
            measures={"norm": measure},
            evaluate_on=evaluate_on,
        )
    assert_identical(everything(model, []), before)


@pytest.mark.parametrize("measure", [sgdwalk.SpectralNorm(), sgdwalk.BatchSharpness(), sgdwalk.GradientNoiseScale()])
def test_a_measure_of_a_loss_that_is_not_there_is_refused_at_once(measure):
    model = net("relu", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"measures\['it'\] cannot be taken. This walk was given no data"):
        sgdwalk.watch(model, optimizer, None, None, when=None, measures={"it": sgdwalk.at(EVERY, measure)})


def test_a_layer_that_begins_to_walk_later_may_be_named():
    model, (inputs, targets) = net("relu", torch.float32), examples(torch.float32)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    measures = {"head": sgdwalk.at(lambda step: step == 1, sgdwalk.SpectralNorm(0.05, parameters=["4"]))}
    with sgdwalk.watch(
        model, optimizer, nn.CrossEntropyLoss(), (inputs, targets), when=None, on_error="raise", measures=measures
    ) as walked:
        for _ in range(2):
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if len(optimizer.param_groups) == 1:
                optimizer.add_param_group({"params": list(model[4].parameters())})
    assert walked.run.steps["head"].notna().tolist() == [False, True]


def test_measures_of_one_step_share_their_graphs(monkeypatch):
    from sgdwalk.operators import HessianOperator

    built = []
    build = HessianOperator.build
    monkeypatch.setattr(HessianOperator, "build", lambda self, i, leaves: built.append(i) or build(self, i, leaves))
    model = net("relu", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    vector = torch.ones(sum(p.numel() for p in model.parameters()))
    walk(
        model,
        optimizer,
        examples(torch.float32),
        2,
        norm=sgdwalk.at(EVERY, sgdwalk.SpectralNorm(0.02)),
        mine=sgdwalk.at(EVERY, lambda here: float(here.hvp(vector) @ vector) + here.loss() + float(here.gradient()[0])),
    )
    assert sorted(built) == sorted(itertools.chain(range(4), range(4)))


def test_second_derivatives_that_are_wrong_are_found_by_their_asymmetry(monkeypatch):
    """torch 2.13 differentiates weight_norm twice wrongly: were that not known, the matrix would be no Hessian."""
    monkeypatch.setattr("sgdwalk.operators.refuse_dead_ends", lambda *tensors, **options: None)
    model = net("relu")
    nn.utils.parametrizations.weight_norm(model[0])
    result = sgdwalk.spectral_norm(model, nn.CrossEntropyLoss(), examples(), batch_size=B, tolerance=0.05)
    assert not result.converged
    assert "not symmetric" in result.reason
    with pytest.raises(InputError, match="not symmetric"):
        sgdwalk.trace(sgdwalk.hessian(model, nn.CrossEntropyLoss(), examples(), batch_size=B), num_products=30)


def test_batch_sharpness_stands_beside_the_threshold_of_the_spectral_norm():
    model = net("relu", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5.0)
    steps, _ = walk(
        model,
        optimizer,
        examples(torch.float32),
        1,
        norm=sgdwalk.at(EVERY, sgdwalk.SpectralNorm(1e-2)),
        sharpness=sgdwalk.at(EVERY, sgdwalk.BatchSharpness()),
    )
    assert steps["norm_threshold"].tolist() == steps["sharpness_threshold"].tolist() == [15.0]


def test_a_measure_that_would_never_be_taken_is_refused():
    model = net("relu", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="would never be taken"):
        walk(model, optimizer, examples(torch.float32), 1, norm=sgdwalk.SpectralNorm())
