"""The gauge: d_{t-1}·g_t, what a mini-batch says of the slope at the end of the update before."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import nets
import sgdwalk
from sgdwalk.sampling import mean_of_consecutive
from sgdwalk.trajectory import NOT_KEPT, Trajectory


def quadratic(steps, rate, *, momentum=0.0, optimizer=torch.optim.SGD, **options):
    """GD on θ²/2 with curvature 1 from θ = 3: every gauge is known on paper."""
    parameter = nn.Parameter(torch.tensor([3.0]))
    model = nn.Module()
    model.register_parameter("theta", parameter)
    chosen = optimizer(model.parameters(), lr=rate, **({"momentum": momentum} if momentum else {}))
    points, gradients = [], []
    with sgdwalk.watch(model, chosen, None, None, when=None, gauge=True, on_error="raise", **options) as walk:
        for _ in range(steps):
            points.append(parameter.item())
            chosen.zero_grad()
            (parameter.square().sum() / 2).backward()
            gradients.append(parameter.grad.item())
            chosen.step()
    points.append(parameter.item())
    return walk.run, np.array(points), np.array(gradients)


@pytest.mark.parametrize("rate", [0.5, 1.5])
def test_on_a_quadratic_it_is_known_on_paper(rate):
    run, _, _ = quadratic(6, rate)
    gauge = run.steps["gauge"].to_numpy()
    assert math.isnan(gauge[0])
    assert run.steps["gauge_reason"].iloc[0] == "no update before the first"
    # θ_t = (1 - η)^t θ_0, so d_{t-1}·g_t = -η θ_{t-1} (1 - η) θ_{t-1}: positive where η > 1, beyond the minimum.
    before = 3.0 * (1 - rate) ** np.arange(5)
    assert gauge[1:] == pytest.approx(-rate * (1 - rate) * before**2, rel=1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_it_takes_the_update_as_it_happened(optimizer):
    momentum = 0.9 if optimizer is torch.optim.SGD else 0.0
    run, points, gradients = quadratic(12, 0.1, momentum=momentum, optimizer=optimizer)
    expected = np.diff(points)[:-1] * gradients[1:]
    assert run.steps["gauge"].to_numpy()[1:] == pytest.approx(expected, rel=1e-5, abs=1e-9)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))


def trained(model, optimizer, steps, *, at=None, **watching):
    """A walk over mini-batches, and the gauge from float64 copies of what stood in the model; ``at(t)`` comes before
    update t."""
    points, gradients = [], []

    def flat(tensors):
        return torch.cat([tensor.detach().double().flatten() for tensor in tensors])

    watching = {"when": None, "gauge": True, "on_error": "raise"} | watching
    with sgdwalk.watch(model, optimizer, None, None, **watching) as walk:
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            inputs, targets = torch.randn(16, 6, generator=generator), torch.arange(16) % 3
            if at is not None:
                at(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            points.append(flat(model.parameters()))
            gradients.append(flat(parameter.grad for parameter in model.parameters()))
            optimizer.step()
        kept = walk._trajectory.before is not None
    moves = torch.stack(points).diff(dim=0)
    return walk.run.steps["gauge"].to_numpy(), (moves * torch.stack(gradients[1:])).sum(dim=1).numpy(), kept


def test_plain_sgd_has_it_from_two_gradients_without_a_vector_more():
    """d_{t-1} = -η g_{t-1}, whatever a schedule makes of η."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    gauge, twin, kept = trained(model, optimizer, 12, at=lambda step: schedule.step() if step else None)
    assert gauge[1:] == pytest.approx(twin, rel=2e-4, abs=1e-8)
    assert not kept


def test_what_is_no_plain_sgd_keeps_where_it_came_from():
    """Momentum that comes and goes, two learning rates, weight decay, another class: with no number missing."""

    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            super().step(closure)

    def momentum(optimizer, step):
        optimizer.param_groups[0]["momentum"] = 0.9 * (4 <= step < 8)

    def two_rates(optimizer, step):
        if step == 4:
            optimizer.param_groups[0]["lr"] = 0.1

    for make, at in [
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.3), momentum),
        (lambda model: torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.3), two_rates),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.1), None),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.01, maximize=True), None),
        (lambda model: Mine(model.parameters(), lr=0.3), None),
    ]:
        model = small_net()
        optimizer = make(model)
        during = None if at is None else lambda step, at=at, optimizer=optimizer: at(optimizer, step)
        gauge, twin, kept = trained(model, optimizer, 12, at=during)
        assert gauge[1:] == pytest.approx(twin, rel=2e-4, abs=1e-7)
        assert kept


def test_an_update_that_is_not_what_the_settings_say_is_seen_by_its_length():
    """Here rounding loses it."""
    run, points, gradients = quadratic(6, 1e-9)
    assert points.std() == 0
    assert gradients.all()
    assert run.steps["gauge"].isna().tolist() == [True, True, False, False, False, False]
    assert "not -η g_t" in run.steps["gauge_reason"].loc[1]
    assert (run.steps["gauge"].loc[2:] == 0).all()
    measures = {"kept": sgdwalk.at(sgdwalk.every(1), lambda here: 1.0)}  # until it was taken θ_t stays
    run, _, _ = quadratic(6, 1e-9, measures=measures)
    assert run.steps["gauge"].isna().tolist() == [True, False, False, False, False, False]
    assert (run.steps["gauge"].loc[1:] == 0).all()


def test_a_hook_that_moves_the_parameters_too_costs_one_gauge_and_no_right_one():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)

    def decay(*_):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 - 1e-3)

    def register(step):
        if step == 0:
            optimizer.register_step_pre_hook(decay)

    gauge, twin, kept = trained(model, optimizer, 12, at=register)
    assert np.isnan(gauge[:3]).tolist() == [True, True, False]
    assert gauge[2:] == pytest.approx(twin[1:], rel=2e-4, abs=1e-7)
    assert kept


@pytest.mark.parametrize("columns", [sgdwalk.every(3), sgdwalk.one_in(4)])
def test_it_is_the_same_at_some_updates_alone(columns):
    model = small_net()
    gauge, twin, kept = trained(model, torch.optim.SGD(model.parameters(), lr=0.5), 24, columns=columns)
    known = ~np.isnan(gauge)
    assert 3 < known.sum() < 12
    assert gauge[known] == pytest.approx(np.append(math.nan, twin)[known], rel=2e-4, abs=1e-8)
    assert not kept


def test_from_a_gradient_that_is_not_finite_on_it_is_undefined():
    parameter = nn.Parameter(torch.ones(3))
    model = nn.Module()
    model.register_parameter("theta", parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with sgdwalk.watch(model, optimizer, None, None, when=None, gauge=True) as walk:
        for step in range(5):
            parameter.grad = torch.full((3,), math.inf if step == 2 else 1.0)
            optimizer.step()
    assert walk.run.steps["gauge"].isna().tolist() == [True, False, True, True, True]
    assert walk.run.steps["gauge_reason"].loc[2:].eq("a gradient or an update is not finite").all()


def test_segments_agree_on_the_sign():
    """Full-batch descent: the gauge is the slope at the segment's end itself, which the next two losses bracket."""
    inputs, targets = torch.randn(64, 5, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
    loss_fn = nn.functional.cross_entropy
    with sgdwalk.watch(model, optimizer, loss_fn, (inputs, targets), gauge=True, num_points=200) as walk:
        for _ in range(8):
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()
    losses = walk.run.segments.pivot(index="step", columns="alpha", values="loss").to_numpy()
    slope = (1.5 * losses[:, -1] - 2 * losses[:, -2] + 0.5 * losses[:, -3]) * 200
    assert walk.run.steps["gauge"].to_numpy()[1:] == pytest.approx(slope[:-1], rel=0.02, abs=1e-3)


def test_training_is_bit_identical_and_a_resumed_walk_repeats_it():
    def start():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        return model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)

    def steps(model, optimizer, which):
        for step in which:
            generator = torch.Generator().manual_seed(step)
            inputs, targets = torch.randn(8, 4, generator=generator), torch.arange(8) % 2
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    bare, bare_optimizer = start()
    steps(bare, bare_optimizer, range(10))
    watching = {"when": None, "gauge": True, "on_error": "raise"}
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **watching) as whole:
        steps(model, optimizer, range(10))
    nets.assert_identical(model.state_dict(), bare.state_dict())

    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **watching) as first:
        steps(model, optimizer, range(6))
        state = first.state_dict()
    with sgdwalk.watch(model, optimizer, None, None, **watching) as rest:
        rest.load_state_dict(state)
        steps(model, optimizer, range(6, 10))
    assert rest.run.steps["gauge"].equals(whole.run.steps["gauge"])


def test_parameters_changed_in_between_leave_it_undefined():
    parameter = nn.Parameter(torch.tensor([1.0]))
    model = nn.Module()
    model.register_parameter("theta", parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with sgdwalk.watch(model, optimizer, None, None, when=None, gauge=True) as walk:
        for step in range(4):
            if step == 2:
                parameter.data.mul_(0.5)
            parameter.grad = torch.ones(1)
            optimizer.step()
    assert walk.run.steps["gauge"].isna().tolist() == [True, False, True, False]
    assert "changed" in walk.run.steps["gauge_reason"].loc[2]


def test_before_the_first_update_there_is_no_update_whatever_was_moved():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sgdwalk.watch(model, optimizer, None, None, when=None, gauge=True) as walk:
        nn.init.zeros_(model.weight)
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert walk.run.steps["gauge_reason"].tolist() == ["no update before the first"]
    assert "before the first update" in walk.run.events["message"].item()


def test_a_walk_that_goes_on_from_a_state_without_one_says_so():
    """The state of a walk without a gauge, loaded into a trajectory with one."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(trajectory):
        optimizer.zero_grad()
        model(torch.ones(4, 6)).square().sum().backward()
        trajectory.depart(model.parameters())
        optimizer.step()
        trajectory.gradients_final(model.parameters(), keep=False)
        values, reasons = trajectory.measure(advance=True, rate=0.1)
        return values.get("gauge"), reasons.get("gauge")

    without = Trajectory(model.parameters())
    assert [update(without) for _ in range(2)] == [(None, None)] * 2
    later = Trajectory(model.parameters(), gauge=True)
    later.load_state_dict(without.state_dict())
    gauge, why = update(later)
    assert math.isnan(gauge)
    assert why == NOT_KEPT
    gauge, why = update(later)
    assert math.isfinite(gauge)
    assert why is None


@pytest.mark.parametrize("first", ["model", "walk"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_after_a_resume_it_is_that_of_the_update_before_or_undefined(first, elsewhere):
    """Whichever is loaded first; where the model's weights are not those of the state there was no update to here."""

    def start():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, torch.optim.SGD(model.parameters(), lr=0.3)

    def steps(model, optimizer, which):
        for step in which:
            inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    watching = {"when": None, "gauge": True, "on_error": "raise"}
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **watching) as whole:
        steps(model, optimizer, range(4))
        state, weights = whole.state_dict(), {key: value.clone() for key, value in model.state_dict().items()}
        steps(model, optimizer, range(4, 6))
    if elsewhere:
        weights["weight"] = weights["weight"] * 3
    model, optimizer = start()
    with sgdwalk.watch(model, optimizer, None, None, **watching) as rest:
        loads = [lambda: model.load_state_dict(weights), lambda: rest.load_state_dict(state)]
        for load in loads if first == "model" else reversed(loads):
            load()
        steps(model, optimizer, range(4, 6))
    assert (rest.run.events["kind"].tolist() == ["moved_parameters"]) == elsewhere
    if elsewhere:
        assert math.isnan(rest.run.steps["gauge"].loc[4])
        assert "changed" in rest.run.steps["gauge_reason"].loc[4]
    else:
        assert rest.run.steps["gauge"].equals(whole.run.steps["gauge"])


def smaller(model):
    model.weight.data = torch.zeros(1, 3)


@pytest.mark.parametrize("change", [nn.Module.double, smaller])
def test_no_state_is_loaded_into_a_model_of_another_layout(change):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with sgdwalk.watch(model, optimizer, None, None, when=None, gauge=True) as walk:
        state = walk.state_dict()
        change(model)
        with pytest.raises(sgdwalk.InputError, match="now has"):
            walk.load_state_dict(state)


def test_epochs_have_a_mean_with_an_interval():
    run, _, _ = quadratic(20, 1.5, steps_per_epoch=10)
    table = sgdwalk.analysis.gauge_epochs(run)
    assert table["positive_share"].tolist() == [1.0, 1.0]
    assert table["undefined"].tolist() == [1, 0]
    assert table.loc[1, "mean_gauge"] == pytest.approx(run.steps["gauge"].iloc[:10].mean())
    assert (table["gauge_low"] < table["mean_gauge"]).all()
    with pytest.raises(sgdwalk.InputError, match="gauge=True"):
        sgdwalk.analysis.gauge_epochs(sgdwalk.Run(run.info, []))


def test_batch_means_cover_a_series_with_memory():
    """AR(1) with correlation 0.5: independent-neighbour intervals would miss a third of the time."""
    generator = np.random.default_rng(3)
    missed = naive = 0
    for _ in range(400):
        noise = generator.standard_normal(450)
        series = np.empty(450)
        series[0] = noise[0]
        for t in range(1, 450):
            series[t] = 0.5 * series[t - 1] + noise[t]
        found = mean_of_consecutive(series)
        missed += not found.low <= 0 <= found.high
        naive += abs(series.mean()) > 1.96 * series.std() / math.sqrt(450)
    assert missed < 0.1 * 400
    assert naive > 0.2 * 400


def test_a_measure_of_that_name_is_refused():
    data = torch.randn(8, 2), torch.zeros(8, 1)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(sgdwalk.InputError, match="gauge"):
        sgdwalk.watch(model, optimizer, nn.MSELoss(), data, gauge=True, measures={"gauge": lambda here: 0.0})
