"""``method="certified"`` under a loop over ``walk.batches()``: ends of segments are heard there, not evaluated again.

The same loop over a plain list of the same batches is the other side of most tests: there every end is evaluated.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD

import nets
import sgdwalk
from sgdwalk import certified, measuring, overheard, passage

N, B = 605, 20
UPDATES = 9
CERTIFIED = {"method": "certified", "on_error": "raise", "batch_size": B}


def net(kind="plain", dtype=torch.float32, dropout=0.0):
    model = nets.mlp(batchnorm=kind != "plain", dtype=dtype, dropout=dropout)
    if kind == "relu":
        model[-2] = nn.ReLU()
    return model


def accumulate(model, batches, loss=nets.plain_loss):
    for inputs, targets in batches:
        (loss(model, inputs, targets) * (len(targets) / N)).backward()


def descend(
    model,
    *,
    heard=True,
    steps=UPDATES,
    lr=5.0,
    loss=nets.plain_loss,
    loss_fn=functional.cross_entropy,
    data=None,
    before_pass=lambda step, walk: None,
    before_step=lambda step, walk: None,
    after_step=lambda step, walk: None,
    **watching,
):
    """Gradient descent over ``walk.batches()``, or with ``heard=False`` over a list of the same batches."""
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.5)
    arguments = {**CERTIFIED, **watching}
    data = nets.classification(N, dtype=next(model.parameters()).dtype) if data is None else data
    with sgdwalk.watch(model, optimizer, loss_fn, data, **arguments) as walk:
        batches = list(walk.batches())
        for step in range(steps):
            before_pass(step, walk)
            optimizer.zero_grad()
            accumulate(model, walk.batches() if heard else batches, loss)
            before_step(step, walk)
            optimizer.step()
            after_step(step, walk)
    return walk.run


def assert_same_numbers(found, other, *, exactly=()):
    """The same rows up to rounding; the columns that ask nothing of L bitwise."""
    assert found.steps.index.tolist() == other.steps.index.tolist()
    for name in ("looks", "nodes", "barrier"):
        pd.testing.assert_series_equal(found.steps[name], other.steps[name])
    for name in ("cosine", "distance", "next_distance", "grad_norm", "param_norm", "update_norm", *exactly):
        pd.testing.assert_series_equal(found.steps[name], other.steps[name], check_exact=True)
    pd.testing.assert_series_equal(found.segments["kind"], other.segments["kind"])
    for name in ("step", "alpha", "loss", "halfwidth"):
        np.testing.assert_allclose(found.segments[name], other.segments[name], rtol=2e-6, atol=5e-7)  # float32


def heard_ends(found, other):
    """Steps whose end was heard: one pass over the data less was evaluated than where it was not."""
    saved = other.steps["examples_evaluated"] - found.steps["examples_evaluated"]
    assert saved.dropna().isin([0, N]).all()
    return saved.index[saved == N].tolist()


# --- what is heard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "relu", "batchnorm"])
def test_the_numbers_are_those_of_an_evaluated_end_and_the_pass_over_the_end_is_saved(kind):
    found, other = descend(net(kind)), descend(net(kind), heard=False)
    assert_same_numbers(found, other)
    # The first is exact, for the loss noise; no pass follows the last.
    assert heard_ends(found, other) == list(range(1, UPDATES - 1))
    assert (found.steps["looks"][1 : UPDATES - 1] < 3).any()


@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_the_losses_are_those_of_a_float64_twin_within_their_intervals(kind):
    model = net(kind)
    found = descend(model)
    twin, points = net(kind), []
    optimizer = SGD(twin.parameters(), lr=5.0, momentum=0.5)
    batches = same_batches(kind)
    for _ in range(UPDATES):
        points.append(copy.deepcopy(twin))
        optimizer.zero_grad()
        accumulate(twin, batches)
        optimizer.step()
    points.append(twin)
    nets.assert_identical(model.state_dict(), twin.state_dict())
    missed = set()
    for step, part in found.segments.groupby("step"):
        for point in part.itertuples():
            error = abs(point.loss - loss_between(points[step], points[step + 1], point.alpha, batches))
            if point.kind == "exact":
                assert error < 1e-6
            if error > point.halfwidth + 1e-6:
                missed.add(step)
    assert len(missed) <= 1, "95 % of the segments hold whole"
    assert (found.steps["looks"] < 3).any()


def same_batches(kind):
    model = net(kind)
    with sgdwalk.watch(
        model, SGD(model.parameters(), lr=1.0), functional.cross_entropy, nets.classification(N), batch_size=B
    ) as walk:
        return list(walk.batches())


def loss_between(start, end, alpha, batches):
    """L at (1 - α) start + α end by hand, in float64, BatchNorm by each batch's statistics."""
    between = copy.deepcopy(start).double()
    with torch.no_grad():
        for target, one, other in zip(between.parameters(), start.parameters(), end.parameters(), strict=True):
            target.copy_((1 - alpha) * one.double() + alpha * other.double())
        return sum(float(functional.cross_entropy(between(x.double()), y, reduction="sum")) for x, y in batches) / N


@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_in_float64_exact_points_are_those_of_the_exact_walk(kind):
    found = descend(net(kind, torch.float64), tolerance=1e-9, lr=20.0)
    exact = descend(net(kind, torch.float64), method="exact", heard=False, lr=20.0)
    assert (found.steps["looks"] == 3).sum() > 1, "or nothing but the first was exact"
    rows = found.segments["kind"] == "exact"
    np.testing.assert_allclose(found.segments["loss"][rows], exact.segments["loss"][rows], rtol=1e-13)


def test_no_more_goes_through_the_model_than_the_sample_and_one_batch_to_compare():
    model, measured, totals = net(), [], []

    def count(module, inputs, output):
        if sgdwalk.is_measuring():
            measured.append(len(output))

    model.register_forward_hook(count)
    data = nets.classification(6 * N)
    found = descend(model, lr=0.5, data=data, after_step=lambda step, walk: totals.append(sum(measured)))
    assert (found.steps["looks"][1:] == 1).all()
    # After update t + 1 the segment t is done.
    between = [later - earlier for earlier, later in itertools.pairwise(totals[1:])]
    assert between == [evaluated + B for evaluated in found.steps["examples_evaluated"][1 : UPDATES - 1]]
    assert max(between) < 6 * N


def test_a_net_whose_copy_has_another_memory_format():
    def without_dropout():
        model = nets.conv_net()
        model[3] = nn.Identity()
        return model

    found, other = (descend(without_dropout(), data=nets.images(N), lr=0.5, heard=heard) for heard in (True, False))
    assert heard_ends(found, other) == list(range(1, UPDATES - 1))
    assert_same_numbers(found, other)


def test_products_of_reduced_precision_are_told_from_rounding():
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(100, 500, generator=generator), torch.randn(500, 10, generator=generator)
    exact = (inputs.double() @ weight.double()).float()

    def reduced(tensor):  # to the ten bits after the point that TF32 keeps
        return (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)

    assert overheard._same_outputs(inputs @ weight, exact)
    assert not overheard._same_outputs(reduced(inputs) @ reduced(weight), exact)
    assert not overheard._same_outputs(torch.full_like(exact, math.nan), exact)
    assert not overheard._same_outputs(exact[:50], exact)
    assert not overheard._same_outputs(exact.sum(), exact.sum())


def test_where_only_some_steps_are_watched_both_ends_are_heard():
    found = descend(net("relu"), when=sgdwalk.every(3), steps=11)
    other = descend(net("relu"), when=sgdwalk.every(3), steps=11, heard=False)
    assert_same_numbers(found, other)
    saved = (other.steps["examples_evaluated"] - found.steps["examples_evaluated"]).dropna()
    assert saved.to_dict() == {0: 0, 3: 2 * N, 6: 2 * N, 9: 2 * N}


def test_a_pass_after_the_last_update_serves_its_segment():
    model = net()

    def pass_over(step, walk):
        if step == UPDATES - 1:
            for inputs, _ in walk.batches():
                model(inputs)

    found = descend(model, after_step=pass_over)
    assert heard_ends(found, descend(net(), heard=False)) == list(range(1, UPDATES))


def test_what_the_loop_writes_into_its_outputs_does_not_matter():
    def written_over(model, inputs, targets):
        output = model(inputs)
        loss = functional.cross_entropy(output, targets)
        output.data.fill_(7.0)
        return loss

    found, other = (descend(net("relu"), loss=written_over, heard=heard) for heard in (True, False))
    assert heard_ends(found, other) == list(range(1, UPDATES - 1))
    assert_same_numbers(found, other)


# --- training and the record ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluate_on", ["copy", "model"])
@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_training_is_bitwise_what_it_is_unwatched(kind, evaluate_on):
    states = []
    for watch in (True, False):
        nets.seed_everything(7)
        model = net(kind)
        optimizer = SGD(model.parameters(), lr=2.0, momentum=0.5)
        batches = same_batches(kind)
        nets.seed_everything(7)
        walk = None
        if watch:
            walk = sgdwalk.watch(
                model,
                optimizer,
                functional.cross_entropy,
                nets.classification(N),
                evaluate_on=evaluate_on,
                **CERTIFIED,
            )
        for _ in range(5):
            optimizer.zero_grad()
            accumulate(model, batches if walk is None else walk.batches())
            optimizer.step()
        states.append(nets.everything(model, [optimizer]))
        if walk is not None:
            assert walk._measuring.awaits_end == (evaluate_on == "copy")
            walk.close()
            nets.assert_identical(nets.everything(model, [optimizer]), states[0])
    nets.assert_identical(*states)


def test_rows_come_in_order_with_the_update_after_theirs(tmp_path):
    folder, stored = tmp_path / "run", []
    descend(
        net(),
        run=folder,
        before_pass=lambda step, walk: stored.append(sgdwalk.open_run(folder).steps.index.tolist()),
        before_step=lambda step, walk: walk.note(epoch=step + 1, batch_loss=float(step)),
    )
    # Step 0 is exact and there at once.
    assert stored == [[], [0], *(list(range(step - 1)) for step in range(2, UPDATES))]
    run = sgdwalk.open_run(folder)
    assert run.steps.index.tolist() == list(range(UPDATES))
    assert run.steps["epoch"].tolist() == [step + 1 for step in range(UPDATES)]
    assert run.steps["batch_loss"].tolist() == [float(step) for step in range(UPDATES)]


def test_reading_the_walk_brings_the_row_of_the_update_just_made():
    lengths = []
    found = descend(net(), after_step=lambda step, walk: lengths.append(walk.run.steps["height"].notna().sum()))
    other = descend(net(), heard=False)
    assert lengths == list(range(1, UPDATES + 1))
    assert heard_ends(found, other) == []
    assert_same_numbers(found, other)


def test_measures_are_taken_at_their_own_step():
    def where(here):
        momentum = next(iter(here.optimizers[0].state.values()))["momentum_buffer"]
        return {
            "step": float(here.step),
            "norm": float(here.parameters.double().norm()),
            "loss": here.loss(),
            "momentum": float(momentum.double().sum()),
        }

    arguments = {"measures": {"where": where}, "gauge": True}
    found, other = (descend(net(), heard=heard, **arguments) for heard in (True, False))
    assert_same_numbers(found, other, exactly=("where_step", "where_norm", "where_momentum", "gauge"))
    assert heard_ends(found, other) == list(range(1, UPDATES - 1))
    assert found.steps["where_step"].tolist() == list(range(UPDATES))
    assert found.steps["where_loss"].tolist() == found.steps["loss"].tolist()
    assert list(found.steps.columns) == list(other.steps.columns)


@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_a_walk_goes_on_bitwise_from_its_state(kind, tmp_path):
    def state_at(step, walk):
        if step == 5:
            states.append((copy.deepcopy(model.state_dict()), walk.state_dict()))

    states = []
    model = net(kind)
    whole = descend(model, run=tmp_path / "whole", lr=0.8, before_pass=state_at)
    never_saved = descend(net(kind), run=tmp_path / "never", lr=0.8)
    assert_same_numbers(whole, never_saved)
    # The row that waited when the state was taken is in the state's run, with an end evaluated for it.
    assert heard_ends(never_saved, whole) == [4]

    folder = tmp_path / "parts"
    first = net(kind)
    optimizer = SGD(first.parameters(), lr=0.8, momentum=0.5)
    data, loss_fn = nets.classification(N), functional.cross_entropy
    with sgdwalk.watch(first, optimizer, loss_fn, data, run=folder, **CERTIFIED) as walk:
        for _ in range(5):
            optimizer.zero_grad()
            accumulate(first, walk.batches())
            optimizer.step()
        state = {"walk": walk.state_dict(), "model": first.state_dict(), "optimizer": optimizer.state_dict()}
        assert sgdwalk.open_run(folder).steps.index.tolist() == list(range(5))
        sgdwalk.Checkpoints(tmp_path / "checkpoints").save(5, state)
        accumulate(first, walk.batches())  # one more update, which is taken back
        optimizer.step()
    _, state = sgdwalk.Checkpoints(tmp_path / "checkpoints").load_newest()
    second = net(kind)
    optimizer = SGD(second.parameters(), lr=0.8, momentum=0.5)
    with sgdwalk.watch(second, optimizer, loss_fn, data, run=folder, resume=True, **CERTIFIED) as walk:
        second.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        walk.load_state_dict(state["walk"])
        for _ in range(5, UPDATES):
            optimizer.zero_grad()
            accumulate(second, walk.batches())
            optimizer.step()
    parts = sgdwalk.open_run(folder)
    pd.testing.assert_frame_equal(parts.steps, whole.steps, check_exact=True)
    pd.testing.assert_frame_equal(parts.segments, whole.segments, check_exact=True)
    nets.assert_identical(second.state_dict(), model.state_dict())


def test_a_walk_put_back_while_a_segment_waits_goes_on_from_there():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.8)
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(N), **CERTIFIED) as walk:

        def update(times):
            for _ in range(times):
                optimizer.zero_grad()
                accumulate(model, walk.batches())
                optimizer.step()

        update(3)
        state = copy.deepcopy((model.state_dict(), walk.state_dict()))
        update(3)
        once = walk.run
        update(2)
        model.load_state_dict(state[0])
        walk.load_state_dict(state[1])
        assert walk.run.steps.index.tolist() == [0, 1, 2]
        update(3)
        pd.testing.assert_frame_equal(walk.run.segments, once.segments, check_exact=True)


# --- where an end must be evaluated -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "loss", "options"),
    [
        (lambda: net(dropout=0.3), nets.plain_loss, {}),
        (net, nets.loss_with_autocast, {}),
        (net, nets.loss_of_second_pass, {}),
        (net, nets.loss_of_other_inputs, {}),
        (lambda: net("batchnorm").eval(), nets.plain_loss, {}),
        (lambda: net("batchnorm"), nets.plain_loss, {"batchnorm": "eval"}),
        (net, nets.plain_loss, {"evaluate_on": "model"}),
        (net, nets.plain_loss, {"forward": lambda model, batch: (model(batch[0]), batch[1])}),
    ],
    ids=["dropout", "autocast", "twice", "other_inputs", "eval_mode", "running_statistics", "in_place", "forward"],
)
def test_what_might_be_another_number_is_evaluated(make, loss, options):
    runs = []
    for heard in (True, False):
        nets.seed_everything(1)
        runs.append(descend(make(), loss=loss, heard=heard, lr=0.5, **options))
    found, other = runs
    assert heard_ends(found, other) == []
    assert_same_numbers(found, other)
    assert nets.event_kinds(found) == nets.event_kinds(other) == []


def test_large_outputs_are_not_kept(monkeypatch):
    for module in (passage, certified):
        monkeypatch.setattr(module, "KEPT_BYTES", 2 * N * 3 * 4 - 1)
    found, other = descend(net()), descend(net(), heard=False)
    assert heard_ends(found, other) == []
    assert_same_numbers(found, other)


def test_a_pass_broken_off_is_not_taken_and_the_next_one_is():
    def run(heard):
        model = net()
        optimizer = SGD(model.parameters(), lr=2.0)
        with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(N), **CERTIFIED) as walk:
            batches = list(walk.batches())
            for step in range(UPDATES):
                optimizer.zero_grad()
                for index, (inputs, targets) in enumerate(walk.batches() if heard else batches):
                    if step == 4 and index == 20:
                        break
                    (nets.plain_loss(model, inputs, targets) * (len(targets) / N)).backward()
                optimizer.step()
            assert not model._forward_hooks
        return walk.run

    found, other = run(True), run(False)
    assert_same_numbers(found, other)
    # No pass came for the end of step 3; that of step 4 was not expected to be heard.
    assert heard_ends(found, other) == [1, 2, 5, 6, 7]


def test_parameters_moved_before_or_after_the_pass():
    def clip(at):
        def clipping(step, walk):
            if step == at:
                with torch.no_grad():
                    model[0].weight.clamp_(-0.3, 0.3)

        return clipping

    for place, expected in (("before_pass", [1, 2, 5, 6, 7]), ("before_step", [1, 2, 3, 5, 6, 7])):
        runs = []
        for heard in (True, False):
            model = net()
            runs.append(descend(model, heard=heard, **{place: clip(4)}))
        assert_same_numbers(*runs)
        assert heard_ends(*runs) == expected, place
        assert [nets.event_kinds(run) for run in runs] == [["moved_parameters"]] * 2


def test_parameters_moved_for_the_pass_alone():
    """Moved and put back bit for bit, as extrapolating methods do: what was heard is of another point."""

    def elsewhere(model, inputs, targets):
        saved = model[0].weight.detach().clone()
        with torch.no_grad():
            model[0].weight.mul_(1.5)
        loss = functional.cross_entropy(model(inputs), targets)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            model[0].weight.copy_(saved)
        return sum((g.detach() * p).sum() for g, p in zip(gradients, model.parameters(), strict=True))

    found, other = descend(net(), loss=elsewhere), descend(net(), loss=elsewhere, heard=False)
    assert heard_ends(found, other) == []
    assert_same_numbers(found, other)


class Tempered(nn.Module):
    """Has what L reads besides the parameters: a plain attribute and a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = net()
        self.temperature = 1.0
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, inputs):
        return self.inner(inputs) / self.temperature + self.shift


def halve(_, inputs, output):
    return output / 2


@pytest.mark.parametrize("what", ["attribute", "buffer", "hook"])
@pytest.mark.parametrize("place", ["before_pass", "before_step"])
def test_what_else_l_reads_may_change_while_a_segment_waits(what, place):
    """Segment 3 is of the model as it was right after update 3."""

    def change(step, walk):
        if step == 4 and what == "attribute":
            model.temperature = 1.7
        elif step == 4 and what == "buffer":
            model.shift += torch.tensor([0.3, 0.0, -0.2])
        elif step == 4:
            model.register_forward_hook(halve)

    runs = []
    for heard in (True, False):
        model = Tempered()
        runs.append(descend(model, heard=heard, lr=0.5, **{place: change}))
    assert_same_numbers(*runs)
    # Where it changes after the pass what was heard in it is still right; L(θ_4) as it then is must be evaluated.
    assert (3 in heard_ends(*runs)) == (place == "before_step")
    assert 4 not in heard_ends(*runs)
    assert heard_ends(*runs)[-1] == UPDATES - 2


class Smoothed(nn.Module):
    def __init__(self):
        super().__init__()
        self.smoothing = 0.0

    def forward(self, output, target):
        return functional.cross_entropy(output, target, label_smoothing=self.smoothing)


def test_a_loss_function_that_changes_while_a_segment_waits_leaves_it_without_a_number():
    loss_fn = Smoothed()

    def change(step, walk):
        loss_fn.smoothing = 0.1 if step >= 4 else 0.0

    found = descend(net(), loss_fn=loss_fn, before_pass=change, lr=0.5)
    loss_fn.smoothing = 0.0
    other = descend(net(), loss_fn=loss_fn, after_step=change, heard=False, lr=0.5)
    assert found.steps["loss"].isna().tolist() == [step == 3 for step in range(UPDATES)]
    assert found.steps["segment_reason"][3] == "loss_fn was changed before the end of the segment was evaluated"
    kept = found.segments["step"].isin([0, 1, 2, 5, 6, 7, 8])
    others = other.segments["step"].isin([0, 1, 2, 5, 6, 7, 8])
    np.testing.assert_allclose(found.segments["loss"][kept], other.segments["loss"][others], rtol=2e-6, atol=1e-7)


def test_data_written_to_while_a_segment_waits_leave_it_without_a_number():
    inputs, targets = nets.classification(N)

    def change(step, walk):
        if step == 4:
            inputs.mul_(1.5)

    found = descend(net(), data=(inputs, targets), before_step=change, lr=0.5)
    assert found.steps["loss"].isna().tolist() == [step == 3 for step in range(UPDATES)]
    assert "data were written to" in found.steps["segment_reason"][3]
    assert nets.event_kinds(found) == ["data_changed"]


def test_passes_inside_a_closure_are_not_waited_for():
    def run(heard):
        model = net()
        optimizer = SGD(model.parameters(), lr=2.0)
        with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(N), **CERTIFIED) as walk:
            batches = list(walk.batches())

            def closure():
                optimizer.zero_grad()
                accumulate(model, walk.batches() if heard else batches)
                return torch.zeros(())

            for step in range(UPDATES):
                optimizer.step(closure)
                assert len(walk._journal.run.steps) == step + 1
        return walk.run

    found, other = run(True), run(False)
    assert heard_ends(found, other) == []
    assert_same_numbers(found, other)


# --- failures and interruptions ---------------------------------------------------------------------------------------


def test_a_segment_that_fails_when_its_end_comes_is_told_and_ends_no_training(monkeypatch):
    measure = certified.CertifiedSegments.measure

    def failing(self, query):
        if query.step == 3:
            raise ValueError("broken")
        return measure(self, query)

    monkeypatch.setattr(certified.CertifiedSegments, "measure", failing)
    found = descend(net(), on_error="disable")
    assert found.steps.index.tolist() == list(range(UPDATES))
    assert found.steps["segment_reason"][3] == "measurement failed: ValueError: broken"
    assert found.steps["loss"].notna().tolist() == [step < 3 for step in range(UPDATES)]
    assert nets.event_kinds(found) == ["measurement_failed"]
    with pytest.raises(ValueError, match="broken"):
        descend(net(), on_error="raise")


def test_an_interruption_while_the_last_end_is_evaluated_keeps_the_row(monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    model = net()
    optimizer = SGD(model.parameters(), lr=2.0)
    walk = sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(N), **CERTIFIED)
    for _ in range(3):
        optimizer.zero_grad()
        accumulate(model, walk.batches())
        optimizer.step()
    monkeypatch.setattr(measuring.Measuring, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        walk.close()
    steps = walk.run.steps
    assert steps.index.tolist() == [0, 1, 2]
    assert "interrupted by KeyboardInterrupt" in steps["segment_reason"][2]
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(("error", "reason"), [(KeyboardInterrupt, "interrupted"), (ValueError, "")])
def test_a_measure_that_raises_leaves_no_segment_waiting(error, reason):
    def measure(here):
        if here.step == 4:
            raise error("not this time")
        return 1.0

    model = net()
    optimizer = SGD(model.parameters(), lr=2.0)
    arguments = {"measures": {"one": measure}, **CERTIFIED}
    with sgdwalk.watch(model, optimizer, functional.cross_entropy, nets.classification(N), **arguments) as walk:
        for step in range(UPDATES):
            optimizer.zero_grad()
            accumulate(model, walk.batches())
            with pytest.raises(error, match="not this time") if step == 4 else contextlib.nullcontext():
                optimizer.step()
    steps = walk.run.steps
    assert steps.index.tolist() == list(range(UPDATES))
    assert steps["loss"].isna().tolist() == [step == 4 for step in range(UPDATES)]
    assert reason in steps["segment_reason"][4]
