"""``watch(method="certified")`` on whole trainings: the numbers of the exact walk within the intervals it says."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD

import nets
import sgdwalk
from sgdwalk import certified, columns, looks, outputs, params, passage, run, sample_sizes, segment, short_rows, units

CERTIFIED = {"method": "certified", "on_error": "raise"}
UPDATES = 12


def net(kind="plain", dtype=torch.float32):
    model = nets.mlp(batchnorm=kind != "plain", dtype=dtype)
    if kind == "relu":
        model[-2] = nn.ReLU()
    return model


def walked(model, *, steps=UPDATES, lr=0.8, num_examples=605, loss_fn=functional.cross_entropy, start=0, **watching):
    """The run of a short training on batches of 20, and the optimizer after it."""
    dtype = next(model.parameters()).dtype
    inputs, targets = nets.classification(num_examples, dtype=dtype)
    optimizer = SGD(model.parameters(), lr=lr)
    watching.setdefault("batch_size", 20)
    with sgdwalk.watch(model, optimizer, loss_fn, (inputs, targets), **watching) as walk:
        update(model, optimizer, inputs, targets, range(start, start + steps))
    return walk.run


def update(model, optimizer, inputs, targets, steps):
    for step in steps:
        rows = torch.randint(len(inputs), (20,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()


def assert_holds(found, exact, *, most_misses=1):
    """Ends and floor as they must be; intervals hold but for a step or two, since 95 % of them do."""
    estimated, true = found.segments, exact.segments
    assert (estimated["alpha"] == true["alpha"]).all()
    ends = estimated["alpha"].isin([0.0, 1.0])
    assert (estimated["kind"][ends] == "exact").all()
    np.testing.assert_allclose(estimated["loss"][ends], true["loss"][ends], rtol=1e-6, atol=1e-8)
    is_exact = estimated["kind"] == "exact"
    assert (is_exact == (estimated["halfwidth"] == 0)).all()
    np.testing.assert_allclose(estimated["loss"][is_exact], true["loss"][is_exact], rtol=1e-6, atol=1e-8)
    missed = (estimated["loss"] - true["loss"]).abs() > estimated["halfwidth"] + 1e-7
    assert missed.groupby(estimated["step"]).any().sum() <= most_misses
    steps = found.steps[found.steps["looks"].notna()]
    assert (steps["height_low"] <= steps["height"]).all()
    assert (steps["height"] <= steps["height_high"]).all()
    assert (steps["floor_low"] <= steps["floor"]).all()
    assert (steps["floor"] <= steps["floor_high"]).all()


@pytest.mark.parametrize("num_points", [10, 5, 3, 2])
@pytest.mark.parametrize("kind", ["plain", "batchnorm", "relu"])
def test_the_losses_lie_within_their_intervals(kind, num_points):
    found = walked(net(kind), num_points=num_points, **CERTIFIED)
    exact = walked(net(kind), num_points=num_points)
    assert_holds(found, exact, most_misses=2)
    assert (found.steps["looks"] < 3).sum() >= UPDATES / 2, "or nothing was estimated"
    estimated = found.steps["looks"] < 3
    width = (found.steps["height_high"] - found.steps["height_low"]) / 2
    allowed = np.maximum(0.05 * found.steps["height"], 4 * found.steps["loss_noise"])
    assert (width <= allowed * (1 + 1e-9))[estimated].all()
    assert (width[~estimated] == 0).all()


def test_in_float64_a_step_that_is_exact_has_the_losses_of_the_exact_walk():
    found = walked(net(dtype=torch.float64), tolerance=1e-9, lr=5.0, **CERTIFIED)
    exact = walked(net(dtype=torch.float64), lr=5.0)
    steps = found.steps.index[found.steps["looks"] == 3]
    assert len(steps) > 1
    for column in ("floor", "height", "floor_alpha", "height_low", "height_high"):
        wanted = exact.steps[column.removesuffix("_low").removesuffix("_high")]
        np.testing.assert_allclose(found.steps[column][steps], wanted[steps], rtol=1e-12)
    rows = found.segments["step"].isin(steps) & (found.segments["kind"] == "exact")
    np.testing.assert_allclose(found.segments["loss"][rows], exact.segments["loss"][rows], rtol=1e-14)
    # Only the points that may be the floor are evaluated over all data.
    evaluated = rows[found.segments["step"] != 0].groupby(found.segments["step"]).sum()
    assert evaluated[steps[1:]].between(3, 11).all()
    assert (evaluated[steps[1:]] < 11).any()
    reasons = found.steps["looks_reason"].dropna()
    assert reasons[0] == "the noise of the loss was measured"
    assert reasons[1:].str.fullmatch("after [12] looks? the interval was wider than the tolerance 1e-09").all()


def test_batches_of_the_sample_are_not_evaluated_again_where_that_does_not_do(monkeypatch):
    """Where batches are the units: an exact loss is bit for bit the exact walk's, from what was seen and the rest."""
    evaluated: list[tuple[bytes, bytes]] = []

    def heard(module, arguments):
        if isinstance(module, nn.Sequential):
            weights = b"".join(map(params.tensor_bytes, module.parameters()))
            evaluated.append((weights, params.tensor_bytes(arguments[0])))

    def refused(*arguments, _certify=certified.certify, **options):
        outcome = _certify(*arguments, **options)
        return outcome and dataclasses.replace(outcome, accepted=False)

    exact = walked(net("relu"))
    monkeypatch.setattr(certified, "certify", refused)
    with nn.modules.module.register_module_forward_pre_hook(heard):
        found = walked(net("relu"), tolerance=0.01, when=lambda step: evaluated.clear() or True, **CERTIFIED)
    looked = found.steps["looks_reason"].str.startswith("after ", na=False)
    assert looked.sum() > UPDATES / 2
    assert looked.iloc[-1]
    assert len({weights for weights, _ in evaluated}) == 10, "the end and all points between, of the last step"
    assert len(evaluated) == len(set(evaluated))
    some = len(next(iter(evaluated))[1]) // 20
    assert found.steps["examples_evaluated"].iloc[-1] == sum(len(inputs) for _, inputs in evaluated) / some
    rows = found.segments["kind"] == "exact"
    assert rows.sum() > 3 * UPDATES
    assert found.segments["loss"][rows].tolist() == exact.segments["loss"][rows].tolist()


def test_a_step_that_is_exact_to_begin_with_evaluates_no_batch_twice():
    exact, found = walked(net("relu")), walked(net("relu"), **CERTIFIED)
    first = found.steps.iloc[0]
    assert first["looks_reason"] == "the noise of the loss was measured"
    assert first["examples_evaluated"] == 11 * 605, "the sample that later steps are planned by is in it"
    ours, theirs = (walk.segments.query("step == 0")["loss"].tolist() for walk in (found, exact))
    assert len(ours) == 11
    assert ours == theirs
    assert first["loss_noise"] == exact.steps["loss_noise"].iloc[0]


@pytest.mark.parametrize("kind", ["plain", "relu"])
def test_evaluations_of_an_interrupted_step_are_not_those_of_the_next(kind, monkeypatch):
    inputs, targets = nets.classification(605)
    model = net(kind)
    optimizer = SGD(model.parameters(), lr=0.8)
    with sgdwalk.watch(
        model, optimizer, functional.cross_entropy, (inputs, targets), batch_size=20, **CERTIFIED
    ) as walk:
        with monkeypatch.context() as patched:
            patched.setattr(segment, "lerp_into", interrupted)
            patched.setattr(passage.Passage, "loss_at", interrupted)
            with pytest.raises(KeyboardInterrupt):
                update(model, optimizer, inputs, targets, range(1))
        update(model, optimizer, inputs, targets, range(1, 4))
    evaluated = walk.run.steps["examples_evaluated"]
    assert evaluated.isna().tolist() == [True, False, False, False]
    assert evaluated[1] <= 605 * 11 + (0 if kind == "relu" else 605 * 3)


def interrupted(*_):
    raise KeyboardInterrupt


def test_where_a_look_sees_every_batch_the_loss_is_that_of_the_exact_walk(monkeypatch):
    monkeypatch.setattr(sample_sizes, "NEARLY_ALL", 0.0)
    monkeypatch.setattr(looks, "WORTHWHILE", 2.0)
    exact, found = walked(net("relu")), walked(net("relu"), tolerance=1e-6, **CERTIFIED)
    steps = found.steps.index[found.steps["looks"] == 2]
    rows = (found.segments["kind"] == "exact") & found.segments["step"].isin(steps)
    assert rows.sum() > 3 * len(steps) > 0, "more than both ends"
    assert found.segments["loss"][rows].tolist() == exact.segments["loss"][rows].tolist()


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_training_is_bitwise_what_it_is_unwatched(kind, evaluate_on):
    states = []
    for watch in (True, False):
        torch.manual_seed(7)
        model = net(kind)
        inputs, targets = nets.classification(205)
        optimizer = SGD(model.parameters(), lr=0.5)
        numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
        if watch:
            sgdwalk.watch(
                model,
                optimizer,
                functional.cross_entropy,
                (inputs, targets),
                batch_size=10,
                evaluate_on=evaluate_on,
                **CERTIFIED,
            )
        update(model, optimizer, inputs, targets, range(5))
        assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
        states.append((nets.everything(model, [optimizer]), torch.get_rng_state()))
    nets.assert_identical(*states)


@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_with_the_whole_curve_certified_every_loss_lies_within_the_tolerance(kind):
    found = walked(net(kind), num_examples=2_000, certify="curve", **CERTIFIED)
    exact, of_height = walked(net(kind), num_examples=2_000), walked(net(kind), num_examples=2_000, **CERTIFIED)
    assert_holds(found, exact)
    assert (found.steps["looks"] < 3).sum() >= UPDATES / 2, "or nothing was estimated"
    assert found.info["settings"]["certify"] == "curve"
    widest = found.segments.groupby("step")["halfwidth"].max()
    allowed = np.maximum(0.05 * found.steps["height"], 4 * found.steps["loss_noise"].max())
    assert (widest <= allowed * (1 + 1e-9)).all()
    assert (of_height.segments.groupby("step")["halfwidth"].max() > allowed).any()
    errors = [(run.steps["alpha_star_r2"] - exact.steps["alpha_star_r2"]).abs().max() for run in (found, of_height)]
    assert errors[0] < 0.005
    assert errors[0] <= max(errors[1], 1e-5)  # below which neither is wrong


def test_what_a_step_costs_and_what_it_looked_at():
    found = walked(net("batchnorm"), num_examples=4_000, **CERTIFIED)
    steps = found.steps
    assert (steps["looks"][0], steps["nodes"][0]) == (3, 11)
    first = steps[steps["looks"] == 1].iloc[0]
    assert first["nodes"] == 3
    # The end over all data; 12 units at random with 6 of them at the second level: none has outputs that move so much
    # farther than those of others that it would be taken with certainty.
    sizes = 4_000 + 20 * (12 + 8 * 6)
    assert first["examples_evaluated"] == sizes
    settings = found.info["settings"]
    chosen = {name: settings[name] for name in ("method", "tolerance", "barriers", "sampling_seed")}
    assert chosen == {"method": "certified", "tolerance": 0.05, "barriers": "estimated", "sampling_seed": 0}


def test_the_columns_are_there_for_certified_walks_alone():
    found, exact = walked(net(), steps=2, **CERTIFIED), walked(net(), steps=2)
    assert list(found.steps.columns)[: len(run.STEP_TABLE_COLUMNS)] == list(run.STEP_TABLE_COLUMNS)
    following = list(found.steps.columns)[len(run.STEP_TABLE_COLUMNS) :]
    assert following[: len(run.CERTIFIED_COLUMNS)] == list(run.CERTIFIED_COLUMNS)
    assert not {*run.CERTIFIED_COLUMNS} & {*exact.steps.columns}
    assert columns.measure_columns(found) == []


def test_the_same_seed_gives_the_same_numbers_and_another_one_others():
    one, again, other = (walked(net("relu"), sampling_seed=seed, **CERTIFIED) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one.segments, again.segments, check_exact=True)
    assert (one.segments["loss"] != other.segments["loss"]).any()


def with_loss_inside(model, batch):
    inputs, targets = batch
    return functional.cross_entropy(model(inputs), targets), targets


LOSS_INSIDE = {"forward": with_loss_inside, "loss_fn": lambda output, target: output}


@pytest.mark.parametrize(
    ("kind", "how"),
    [("plain", {}), ("batchnorm", {}), ("plain", LOSS_INSIDE), ("plain", LOSS_INSIDE | {"largest_pass": 300})],
    ids=["plain", "batchnorm", "loss inside", "sampled ends"],
)
def test_a_walk_goes_on_bitwise_from_its_state(kind, how, tmp_path):
    whole = walked(net(kind), run=tmp_path / "whole", **how, **CERTIFIED)
    inputs, targets = nets.classification(605)
    model = net(kind)
    folder = tmp_path / "parts"
    optimizer = SGD(model.parameters(), lr=0.8)
    arguments = {"batch_size": 20, "run": folder, "loss_fn": functional.cross_entropy, **how, **CERTIFIED}
    arguments["data"] = inputs, targets
    with sgdwalk.watch(model, optimizer, **arguments) as walk:
        update(model, optimizer, inputs, targets, range(7))
        # Through a checkpoint on disk and back.
        sgdwalk.Checkpoints(tmp_path / "checkpoints").save(7, {"walk": walk.state_dict(), "model": model.state_dict()})
    _, state = sgdwalk.Checkpoints(tmp_path / "checkpoints").load_newest()
    other = net(kind)
    other.load_state_dict(state["model"])
    optimizer = SGD(other.parameters(), lr=0.8)
    with sgdwalk.watch(other, optimizer, resume=True, **arguments) as walk:
        walk.load_state_dict(state["walk"])
        update(other, optimizer, inputs, targets, range(7, UPDATES))
    parts = sgdwalk.open_run(folder)
    pd.testing.assert_frame_equal(parts.steps, whole.steps, check_exact=True)
    pd.testing.assert_frame_equal(parts.segments, whole.segments, check_exact=True)
    for told in ("loss_interpolated", "loss_unchecked"):
        assert nets.event_kinds(parts).count(told) == nets.event_kinds(whole).count(told)
        assert (told in nets.event_kinds(whole)) == bool(how)


def test_a_resumed_walk_must_want_the_same(tmp_path):
    walked(net(), steps=2, run=tmp_path / "run", **CERTIFIED)
    with pytest.raises(sgdwalk.ResumeError, match=r"settings.tolerance was 0.05 and is 0.01"):
        walked(net(), run=tmp_path / "run", resume=True, tolerance=0.01, **CERTIFIED)


def test_where_the_loss_reads_buffers_that_moved_the_start_is_evaluated_again():
    found = walked(net("relu"), batchnorm="eval", **CERTIFIED)
    assert_holds(found, walked(net("relu"), batchnorm="eval"))
    assert (found.steps["examples_evaluated"] >= 2 * 605).all()


def test_a_step_that_was_not_watched_leaves_no_start():
    found = walked(net("relu"), when=sgdwalk.every(2), **CERTIFIED)
    assert_holds(found, walked(net("relu"), when=sgdwalk.every(2)))
    watched = found.steps["looks"].dropna()
    assert list(watched.index) == list(range(0, UPDATES, 2))
    assert (found.steps["examples_evaluated"].dropna() >= 2 * 605).all()


# --- losses of every kind ---------------------------------------------------------------------------------------------


def per_example(output, target):
    return functional.cross_entropy(output, target, reduction="none")


def sum_and_count(output, target):
    return functional.cross_entropy(output, target, reduction="sum"), len(target)


def weighted(output, target):
    weight = torch.tensor([1.0, 2.0, 0.5])
    loss = functional.cross_entropy(output, target, weight=weight, reduction="sum")
    return loss, weight[target].sum()


def count_in_an_array(output, target):
    return functional.cross_entropy(output, target, reduction="sum"), torch.tensor([len(target)])


def one_by_one_only(output, target):
    """torch.func.vmap cannot do this."""
    return functional.cross_entropy(output, target) if float(output.detach().sum()) < 1e9 else output.sum()


@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
@pytest.mark.parametrize("loss_fn", [per_example, sum_and_count, weighted, count_in_an_array, one_by_one_only])
def test_every_kind_of_loss_function(kind, loss_fn):
    found = walked(net(kind), loss_fn=loss_fn, **CERTIFIED)
    assert_holds(found, walked(net(kind), loss_fn=loss_fn))
    assert (found.steps["looks"] < 3).any()


def test_a_loss_that_cannot_be_taken_for_many_units_at_once_has_the_same_numbers():
    fast = walked(net("relu"), **CERTIFIED)
    slow = walked(net("relu"), loss_fn=one_by_one_only, **CERTIFIED)
    np.testing.assert_allclose(slow.segments["loss"], fast.segments["loss"], rtol=1e-6)


def in_a_mapping(model, batch):
    inputs, targets = batch
    return {"logits": model(inputs), "index": torch.arange(len(inputs))}, targets


def test_a_loss_made_inside_forward_is_interpolated_itself_and_the_record_says_so():
    found = walked(net("relu"), **LOSS_INSIDE, **CERTIFIED)
    assert_holds(found, walked(net("relu")))
    assert nets.event_kinds(found).count("loss_interpolated") == 1
    assert "the loss itself is interpolated" in found.events["message"].iloc[-1]


def test_outputs_may_be_any_tree_of_tensors():
    arguments = {"forward": in_a_mapping, "loss_fn": lambda o, t: functional.cross_entropy(o["logits"], t)}
    found = walked(net("relu"), **arguments, **CERTIFIED)
    pd.testing.assert_frame_equal(found.segments, walked(net("relu"), **CERTIFIED).segments, check_exact=True)


# --- where it cannot be estimated -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_looked_at_exactly_and_has_its_reason():
    model = net()
    inputs, targets = nets.classification(605)
    optimizer = SGD(model.parameters(), lr=0.5)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets), **CERTIFIED) as walk:
        update(model, optimizer, inputs, targets, range(2))
        for group in optimizer.param_groups:
            group["lr"] = math.inf
        update(model, optimizer, inputs, targets, range(2, 3))
        found = walk.run
    last = found.steps.iloc[-1]
    assert last["looks"] == 3
    assert last["looks_reason"] == "a loss is not finite"
    assert "not finite at α" in last["segment_reason"]
    assert math.isnan(last["height"])
    assert math.isnan(last["height_low"])
    assert pd.isna(last["barrier"])


class Inverse(nn.Module):
    """x / w: nothing along a step that crosses w = 0 is finite there."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def forward(self, inputs):
        return inputs / self.weight


def test_a_loss_that_is_not_finite_inside_is_no_warning_and_no_failure():
    model, inputs = Inverse(), torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    optimizer = SGD(model.parameters(), lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sgdwalk.watch(model, optimizer, nn.MSELoss(), (inputs, torch.zeros(400, 1)), **CERTIFIED) as walk:
            for gradient in (0.01, 1.98, -0.01):
                model.weight.grad = torch.full((1,), gradient)
                optimizer.step()
    crossing = walk.run.segments.query("step == 1")
    assert not np.isfinite(crossing["loss"]).all()
    assert np.isfinite(walk.run.segments.query("step == 2")["loss"]).all()


def test_a_few_batches_are_no_sample():
    found = walked(net("batchnorm"), num_examples=100, **CERTIFIED)
    assert (found.steps["looks"] == 3).all()
    assert found.steps["looks_reason"][1] == "the data have too few units to sample from for this tolerance"
    pd.testing.assert_series_equal(
        found.segments["loss"], walked(net("batchnorm"), num_examples=100).segments["loss"], rtol=1e-6
    )


def test_outputs_too_large_to_keep_are_computed_again(monkeypatch):
    kept = walked(net("relu"), **CERTIFIED)
    monkeypatch.setattr(passage, "KEPT_BYTES", 0)
    again = walked(net("relu"), **CERTIFIED)
    pd.testing.assert_frame_equal(again.segments, kept.segments, check_exact=True)
    estimated = kept.steps["looks"] < 3
    more = (again.steps["examples_evaluated"] - kept.steps["examples_evaluated"])[estimated]
    assert (more >= 605).all()


def test_where_memory_lacks_the_segment_is_exact(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(passage.Passage, "ends", fail)
    found = walked(net(), **CERTIFIED)
    assert (found.steps["looks_reason"] == "the outputs do not fit into memory").all()
    assert_holds(found, walked(net()))


def test_what_divides_the_loss_must_not_change_along_the_step():
    def confident(output, target):
        sure = output.detach().amax(1) > output.detach().mean()
        return (per_example(output, target) * sure).sum(), sure.sum()

    model = net("batchnorm")
    with pytest.raises(sgdwalk.InputError, match="no mean over examples"):
        walked(model, loss_fn=confident, **CERTIFIED)

    def margin(output, target):
        sure = output.detach().amax(1) > 0.7
        return (per_example(output, target) * sure).sum(), sure.sum()

    found = walked(net("batchnorm"), loss_fn=margin, **CERTIFIED)
    assert (found.steps["looks_reason"][1:] == "what loss_fn divides by changes along the step").any()
    assert_holds(found, walked(net("batchnorm"), loss_fn=margin))


def squares_of_large(output, target):
    large = output.abs() > 1
    return (output.square() * large).sum(), large.sum()


@pytest.mark.parametrize("options", [{}, {"largest_pass": 400}])
def test_what_divides_the_loss_may_change_between_the_ends_alone(options):
    # As many outputs are above 1 at the end as are below -1 at the start, of every pair of examples; inside fewer are.
    inputs = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    data = torch.stack([inputs, -inputs], dim=1).reshape(-1, 1), torch.zeros(800, 1)
    runs = []
    for watching in ({"method": "certified", **options}, {}):
        model = nn.Linear(1, 1)
        nn.init.ones_(model.weight)
        nn.init.constant_(model.bias, -1.0)
        model.weight.requires_grad_(False)
        optimizer = SGD([model.bias], lr=1.0)
        watching |= {"partition_seed": None, "batch_size": 20, "on_error": "raise"}
        with sgdwalk.watch(model, optimizer, squares_of_large, data, **watching) as walk:
            for _ in range(3):
                model.bias.grad = 2 * model.bias.detach().clone()
                optimizer.step()
        runs.append(walk.run)
    found, exact = runs
    assert (found.steps["looks_reason"][1:] == "what loss_fn divides by changes along the step").all()
    np.testing.assert_allclose(found.segments["loss"], exact.segments["loss"], rtol=1e-6)


class CountsAtZero(nn.Module):
    """Squared error, made in forward, over half as many examples at the start as anywhere else."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs, targets):
        count = (1.0 + float(self.weight.detach() != 0)) * len(inputs)
        return (inputs * (self.weight + 1) - targets).square().sum(), count


@pytest.mark.parametrize("options", [{}, {"largest_pass": 1000}])
def test_what_divides_the_loss_may_change_at_the_start_alone(options):
    data = torch.randn(2, 4000, 1, generator=torch.Generator().manual_seed(0))
    runs = []
    for watching in ({"method": "certified", **options}, {}):
        model = CountsAtZero()
        optimizer = SGD(model.parameters(), lr=1.0)
        watching |= {"forward": lambda model, batch: (model(*batch), batch[1]), "on_error": "raise"}
        loss = lambda output, target: output  # noqa: E731
        with sgdwalk.watch(model, optimizer, loss, tuple(data), batch_size=20, **watching) as walk:
            for _ in range(3):
                model.weight.grad = torch.full((1,), 0.1)
                optimizer.step()
        runs.append(walk.run)
    np.testing.assert_allclose(*(run.segments.query("step == 0")["loss"] for run in runs), rtol=1e-6)
    assert (runs[0].steps["looks"][1:] < 3).all(), "the others count the same throughout"


@pytest.mark.parametrize(("num_examples", "batch_size"), [(400, 500), (2000, 500)])
def test_a_first_step_that_does_not_move_makes_no_later_interval_too_narrow(num_examples, batch_size):
    runs = []
    for watching in (CERTIFIED, {}):
        torch.manual_seed(0)
        inputs = torch.randn(num_examples, 8)
        data = inputs, (inputs @ torch.randn(8, 3)).argmax(dim=1)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        optimizer = SGD(model.parameters(), lr=0.0)
        with sgdwalk.watch(model, optimizer, functional.cross_entropy, data, batch_size=batch_size, **watching) as walk:
            update(model, optimizer, *data, range(UPDATES))
        runs.append(walk.run)
    found, exact = runs
    assert (found.steps["looks"][1:] < 3).all(), "not exact: intervals have to hold"
    assert ((found.segments["loss"] - exact.segments["loss"]).abs() <= found.segments["halfwidth"] + 1e-15).all()
    assert not (found.steps["barrier"].dropna().astype(bool)).any()


# --- barriers ---------------------------------------------------------------------------------------------------------


def test_barriers_are_true_false_or_undecided_and_exact_ones_are_decided(monkeypatch):
    certify = certified.certify

    def wide(*arguments, **options):
        """Intervals so wide that a barrier would be in them, yet accepted."""
        outcome = certify(*arguments, **options)
        widths = np.where(outcome.halfwidths > 0, 5.0, 0.0)
        return dataclasses.replace(outcome, halfwidths=widths, accepted=True)

    monkeypatch.setattr(certified, "certify", wide)
    estimated = walked(net("relu"), **CERTIFIED)
    decided = walked(net("relu"), barriers="exact", **CERTIFIED)
    exact = walked(net("relu"))
    undecided = estimated.steps["looks"] < 3
    assert (estimated.steps["barrier"].isna() == undecided).all()
    assert (estimated.steps["barrier_reason"][undecided] == run.UNDECIDED).all()
    assert (decided.steps["barrier"] == exact.steps["barrier"]).all()
    assert (decided.segments["kind"] == "exact").all()
    more = decided.steps["examples_evaluated"] - estimated.steps["examples_evaluated"]
    assert (more[undecided] < 9 * 605).all(), "but for the batches of the sample"
    assert (more[undecided] > 4 * 605).all()


# --- what watch() takes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"tolerance": 0}, "tolerance=0: a share of the height between 0 and 1"),
        ({"tolerance": 1.5}, "tolerance=1.5"),
        ({"tolerance": "5 %"}, "tolerance='5 %'"),
        ({"barriers": "sure"}, "barriers='sure' does not exist; there is 'estimated' and 'exact'"),
        ({"certify": "floor"}, "certify='floor' does not exist; there is 'height' and 'curve'"),
        ({"sampling_seed": 0.5}, "sampling_seed must be an integer of at least 0, got 0.5"),
        ({"measures": {"looks": float}}, "cannot be named 'looks'"),
    ],
    ids=lambda argument: str(argument)[:20],
)
def test_what_cannot_be_meant_is_refused(argument, message):
    with pytest.raises(sgdwalk.InputError, match=message):
        walked(net(), **argument, **CERTIFIED)


@pytest.mark.parametrize("method", [None, "exact", "sampled"])
@pytest.mark.parametrize(
    "argument", [{"tolerance": 0.1}, {"barriers": "exact"}, {"certify": "curve"}, {"largest_pass": None}], ids=str
)
def test_what_only_certified_segments_have_is_not_ignored(method, argument):
    (told,) = (f"{name}={value!r}" for name, value in argument.items())
    with pytest.raises(sgdwalk.InputError, match=f'{told} given with method="{method or "exact"}"'):
        walked(net(), method=method, **argument)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 3, 15, 16, 40])
def test_losses_over_few_classes_are_what_they_are_without_the_shorter_way(classes, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = 5 * torch.randn(2, 7, 20, classes, generator=generator, dtype=dtype)
    targets = torch.randint(classes, (7, 20), generator=generator)
    each = torch.func.vmap(torch.func.vmap(functional.cross_entropy), in_dims=(0, None))
    with short_rows.ShortRows():
        shorter = each(scores, targets)
        along_another = functional.log_softmax(scores, dim=1)
    by_hand = (scores.exp().sum(-1).log() - scores.gather(-1, targets.expand(2, 7, 20)[..., None])[..., 0]).mean(-1)
    torch.testing.assert_close(shorter, by_hand, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shorter, each(scores, targets))
    torch.testing.assert_close(along_another, functional.log_softmax(scores, dim=1), rtol=0, atol=0)


def test_interpolated_outputs_run_through_their_nodes():
    weights = outputs.lagrange([0, 5, 10], 10)
    points = torch.arange(11, dtype=torch.float64)
    torch.testing.assert_close(weights @ points[[0, 5, 10]] ** 2, points**2)
    assert (weights[[0, 5, 10]] == torch.eye(3)).all()


@pytest.mark.parametrize(("rate", "node"), [(0.05, 7), (6.0, 5), (20.0, 3)])
def test_chord_and_levels_of_all_units_add_up_and_are_the_truth_where_the_chord_has_its_floor(rate, node):
    model = net().double()
    inputs, targets = nets.classification(600)
    inputs = inputs.double()
    optimizer = SGD(model.parameters(), lr=rate)
    walk = sgdwalk.watch(model, optimizer, functional.cross_entropy, (inputs, targets), batch_size=20)
    loss = walk._measuring.full_loss
    start = [parameter.detach().clone() for parameter in model.parameters()]
    functional.cross_entropy(model(inputs[:100]), targets[:100]).backward()
    optimizer.step()
    end = [parameter.detach().clone() for parameter in model.parameters()]
    with loss.evaluating():
        here = passage.Passage(loss, units.units_of(loss), 10)
        here.begin(start, end)
        first, chord, _, last = here.ends(None, None)
        along = np.array([first.mean, *(chord[1:-1] / 600), last.mean])
        assert np.clip(along.argmin(), 3, 7) == node
        every = np.arange(len(here.units))
        one, other = here.middle_minus_chord(every), here.true_minus_middle(every)
        for k, missed in enumerate(along + (one + other).sum(axis=0)):
            params.lerp_into(loss.site.targets, start, end, k / 10)
            assert missed == pytest.approx(loss.sums().mean, rel=1e-13)
    assert np.flatnonzero(~other.any(axis=0)).tolist() == [0, node, 10]
    assert np.flatnonzero(~one.any(axis=0)).tolist() == [0, 10]


@pytest.mark.parametrize("sizes", [(605, 20), (7, 3), (5_000, 512), (3, 1)])
def test_units_cover_the_data_once(sizes):
    count, batch = sizes
    model = net()
    inputs, targets = nets.classification(count)
    walk = sgdwalk.watch(
        model, SGD(model.parameters(), lr=0.1), functional.cross_entropy, (inputs, targets), batch_size=batch
    )
    loss = walk._measuring.full_loss
    with loss.evaluating():
        found = units.units_of(loss)
        assert not found.whole or batch == 1
        assert len(found) <= 2 * units.MOST_UNITS
        covered = [
            (b, row)
            for b, low, high in zip(found.batch, found.low, found.high, strict=True)
            for row in range(low, high)
        ]
        assert covered == [(b, row) for b, size in enumerate(loss.data.sizes) for row in range(size)]
        together = loss.sums().mean
        parts = [
            float(loss.sum_and_count(output, target, int(size))[0])
            for (output, target), size in zip(found.evaluate(loss, np.arange(len(found))), found.sizes, strict=True)
        ]
    assert sum(parts) / count == pytest.approx(together, rel=1e-6)


class Centred(nn.Module):
    """Takes the mean over the batch away: mixes examples without any BatchNorm."""

    def __init__(self):
        super().__init__()
        self.inner = nets.mlp()

    def forward(self, inputs):
        output = self.inner(inputs)
        return output - output.mean(0)


def test_a_model_that_mixes_examples_without_batchnorm_has_whole_batches_as_units():
    def loss_fn(output, target):
        return functional.cross_entropy(output, target)

    found, exact = (walked(Centred(), loss_fn=loss_fn, **arguments) for arguments in (CERTIFIED, {}))
    assert_holds(found, exact)
    estimated = found.steps[found.steps["looks"] == 1]
    assert ((estimated["examples_evaluated"] - 605) % 5 == 0).all()


class AwakensLater(nn.Module):
    """Mixes the examples of a batch by a branch whose weights start at zero."""

    def __init__(self):
        super().__init__()
        self.hidden, self.plain, self.mixing = nn.Linear(5, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        nn.init.zeros_(self.mixing.weight)
        nn.init.zeros_(self.mixing.bias)

    def forward(self, inputs):
        hidden = self.hidden(inputs).relu()
        return self.plain(hidden) + self.mixing(hidden - hidden.amax(0))


def test_what_mixes_examples_only_after_an_update_is_noticed():
    torch.manual_seed(0)
    model = AwakensLater()
    other = copy.deepcopy(model)
    found = walked(model, lr=0.3, num_examples=4_000, batch_size=100, steps=20, **CERTIFIED)
    assert_holds(found, walked(other, lr=0.3, num_examples=4_000, batch_size=100, steps=20))


def test_batches_of_different_widths_are_sampled_each_with_its_like():
    """Padded sentences: words 1 to 8 counted, 0 is padding; three classes."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for width in [4, 6, 9] * 20:
        words = torch.randint(1, 9, (20, width), generator=generator)
        words[:, -1] *= torch.randint(2, (20,), generator=generator)
        batches.append((words, words[:, 0] % 3))

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.EmbeddingBag(9, 8, padding_idx=0), nn.Tanh(), nn.Linear(8, 3))

    runs = []
    for options in (CERTIFIED, {}):
        model = build()
        optimizer = SGD(model.parameters(), lr=0.5)
        with sgdwalk.watch(model, optimizer, functional.cross_entropy, batches, **options) as walk:
            for words, targets in batches[:UPDATES]:
                optimizer.zero_grad()
                functional.cross_entropy(model(words), targets).backward()
                optimizer.step()
        runs.append(walk.run)
    assert (runs[0].steps["looks"] < 3).any()
    assert_holds(*runs)


class Masked(nn.Module):
    """The last of four logits is out of the question."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, inputs):
        output = self.body(inputs)
        return torch.cat([output, torch.full_like(output[:, :1], -torch.inf)], dim=1)


@pytest.mark.parametrize(
    ("options", "calls"),
    [({}, 40), (CERTIFIED, 3), (CERTIFIED, 40), (CERTIFIED | {"largest_pass": 500}, 3)],
    ids=["exact", "at the ends", "between them", "ends sampled"],
)
def test_a_loop_that_goes_on_after_ctrl_c_has_the_losses_of_where_it_stands(options, calls):
    """What was kept of the end of the segment that was interrupted is no start of the next one."""
    model, whole = net(), net()
    inputs, targets = nets.classification(605)
    calls_left = [math.inf]

    def loss_fn(output, target):
        calls_left[0] -= 1
        if not calls_left[0]:
            raise KeyboardInterrupt
        return functional.cross_entropy(output, target)

    runs = []
    for one, interrupted in ((model, True), (whole, False)):
        optimizer = SGD(one.parameters(), lr=0.8)
        with sgdwalk.watch(one, optimizer, loss_fn, (inputs, targets), batch_size=20, **options) as walk:
            for step in range(6):
                calls_left[0] = calls if interrupted and step == 3 else math.inf
                try:
                    update(one, optimizer, inputs, targets, range(step, step + 1))
                except KeyboardInterrupt:
                    assert interrupted
                    assert step == 3
        runs.append(walk.run)
    found, exact = runs
    assert "interrupted by KeyboardInterrupt" in found.steps["segment_reason"][3]
    assert list(found.steps.index[found.steps["loss"].isna()]) == [3]
    rest = exact.steps.drop(3)
    np.testing.assert_allclose(
        found.steps["loss"].drop(3), rest["loss"], rtol=1e-2 if "largest_pass" in options else 1e-6
    )


def test_outputs_of_another_kind_are_no_start(monkeypatch):
    """At the look now and then at what mixes examples, a forward that now returns the loss itself is followed."""
    monkeypatch.setattr("sgdwalk.measuring.NOISE_EVERY", 3)
    inside = [False]

    def forward(model, batch):
        output = model(batch[0])
        return (functional.cross_entropy(output, batch[1]), batch[1]) if inside[0] else (output, batch[1])

    def loss_fn(output, target):
        return functional.cross_entropy(output, target) if output.dim() else output

    def run_of(**options):
        model = net()
        inputs, targets = nets.classification(605)
        optimizer = SGD(model.parameters(), lr=0.8)
        inside[0] = False
        data = list(zip(inputs.split(20), targets.split(20), strict=True))
        with sgdwalk.watch(model, optimizer, loss_fn, data, forward=forward, on_error="raise", **options) as walk:
            for step in range(6):
                inside[0] = step >= 3
                update(model, optimizer, inputs, targets, range(step, step + 1))
        return walk.run

    found = run_of(method="certified")
    assert found.events["kind"].tolist() == ["loss_interpolated"]
    assert_holds(found, run_of())


@pytest.mark.parametrize("options", [{}, {"largest_pass": 500}], ids=["ends over all data", "ends sampled"])
def test_masked_logits_are_no_reason_for_the_exact_losses(options):
    """-inf at both ends is -inf in between, and no move that a sample must look at."""
    found = walked(Masked(), tolerance=0.2, **CERTIFIED, **options)
    assert found.steps["height"].notna().all()
    assert (found.steps["looks"] < 3).sum() >= UPDATES // 2
    if not options:
        assert_holds(found, walked(Masked(), on_error="raise"))
