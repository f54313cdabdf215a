"""What holds for every walk: the invariants of the definitions, on random small nets and random steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import reference
import sgdwalk
from reference import FLOAT32_ABSOLUTE, FLOAT32_RELATIVE, Batch

# Every example trains a net: few of them, always the same ones.
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Setting:
    seed: int
    num_examples: int
    batch_size: int
    num_points: int
    widths: tuple[int, ...]
    norm: str
    optimizer: str
    learning_rate: float
    num_steps: int


SETTINGS = st.builds(
    Setting,
    seed=st.integers(0, 2**16),
    num_examples=st.integers(4, 40),
    batch_size=st.integers(3, 24),
    num_points=st.integers(2, 12),
    widths=st.lists(st.integers(2, 9), min_size=0, max_size=2).map(tuple),
    norm=st.sampled_from(["none", "batch", "layer"]),
    optimizer=st.sampled_from(["sgd", "momentum", "decay", "adam"]),
    learning_rate=st.sampled_from([0.003, 0.03, 0.3, 3.0]),
    num_steps=st.integers(2, 5),
)


def build(setting: Setting) -> tuple[nn.Module, torch.optim.Optimizer, Batch, list[Batch]]:
    """Model, optimizer, data to evaluate on, and the training's mini-batches."""
    torch.manual_seed(setting.seed)
    layers: list[nn.Module] = []
    width = 4
    for following in setting.widths:
        layers.append(nn.Linear(width, following))
        if setting.norm == "batch":
            layers.append(nn.BatchNorm1d(following))
        elif setting.norm == "layer":
            layers.append(nn.LayerNorm(following))
        layers.append(nn.Tanh())
        width = following
    model = nn.Sequential(*layers, nn.Linear(width, 3))
    rate = setting.learning_rate
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=rate),
        "momentum": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, nesterov=True),
        "decay": lambda p: torch.optim.SGD(p, lr=rate, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=rate),
    }[setting.optimizer](model.parameters())
    data = (torch.randn(setting.num_examples, 4), torch.randint(3, (setting.num_examples,)))
    training = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(setting.num_steps)]
    return model, optimizer, data, training


def walk_through(setting: Setting, **options) -> tuple[sgdwalk.Run, list[reference.Update], list[Batch]]:
    model, optimizer, data, training = build(setting)
    options = {"batch_size": setting.batch_size, "num_points": setting.num_points} | options
    with sgdwalk.watch(model, optimizer, F.cross_entropy, data, on_error="raise", **options) as walk:
        partition = [(x.clone(), y.clone()) for x, y in walk.batches()]
        updates = reference.train(model, optimizer, training, F.cross_entropy)
    return walk.run, updates, partition


def curves(run: sgdwalk.Run) -> np.ndarray:
    return np.stack([points.loss.to_numpy() for _, points in run.segments.groupby("step")])  # (steps, points)


@few
@given(SETTINGS)
def test_what_a_segment_says_follows_from_its_losses(setting: Setting) -> None:
    run, _, _ = walk_through(setting)
    steps = run.steps
    for step, losses in enumerate(curves(run).tolist()):
        row = steps.loc[step]
        assert len(losses) == setting.num_points + 1
        assert row.loss == losses[0]
        assert row.next_loss == losses[-1]
        assert row.floor == reference.floor(losses)
        assert row.floor_alpha == reference.floor_alpha(losses)
        assert row.floor <= min(row.loss, row.next_loss)
        assert math.isclose(row.height, reference.height(losses), rel_tol=1e-12, abs_tol=1e-15)
        assert row.height >= abs(row.loss - row.next_loss) / 2 - 1e-15 * row.loss
        assert row.height >= 0
        assert bool(row.barrier) == reference.barrier(losses) == (row.barrier_height > 0)
        assert row.barrier_height == reference.barrier_height(losses)
        assert bool(row.barrier_significant) == (bool(row.barrier) and row.barrier_height > 2 * row.loss_noise)


@few
@given(SETTINGS)
def test_losses_equal_the_twin(setting: Setting) -> None:
    run, updates, partition = walk_through(setting)
    for losses, update in zip(curves(run), updates, strict=True):
        twin = reference.segment_losses(
            update.model,
            update.start,
            update.end,
            partition,
            lambda output, target: (F.cross_entropy(output, target, reduction="sum"), len(target)),
            num_points=setting.num_points,
        )
        np.testing.assert_allclose(losses, twin, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)


@few
@given(SETTINGS)
def test_consecutive_segments_share_their_ends_bitwise(setting: Setting) -> None:
    run, _, _ = walk_through(setting)
    steps = run.steps
    assert list(steps.loss[1:]) == list(steps.next_loss[:-1])
    assert list(steps.distance[1:]) == list(steps.next_distance[:-1])
    assert steps.distance[0] == 0.0


@few
@given(SETTINGS)
def test_cheap_columns_equal_the_twin(setting: Setting) -> None:
    run, updates, _ = walk_through(setting, when=None)
    origin = updates[0].start
    for step, update in enumerate(updates):
        row = run.steps.loc[step]
        expected = {
            "distance": reference.distance(update.start, origin),
            "next_distance": reference.distance(update.end, origin),
            "update_norm": reference.distance(update.end, update.start),
            "param_norm": reference.norm(update.start),
            "grad_norm": reference.norm(update.gradient),
        }
        # Blocks of at most 512 coordinates are summed in float32, so a norm keeps about six digits.
        for name, value in expected.items():
            assert math.isclose(row[name], value, rel_tol=1e-5, abs_tol=1e-9), (name, row[name], value)
        if step > 0:
            twin = reference.cosine(updates[step - 1].gradient, update.gradient)
            assert math.isclose(row.cosine, twin, rel_tol=0, abs_tol=1e-6)
            assert abs(row.cosine) <= 1 + 1e-6


@few
@given(SETTINGS)
def test_distances_obey_the_triangle_inequality(setting: Setting) -> None:
    run, _, _ = walk_through(setting, when=None)
    steps = run.steps
    slack = 1e-5 * (steps.distance + steps.next_distance)
    assert (steps.next_distance <= steps.distance + steps.update_norm + slack).all()
    assert (steps.update_norm <= steps.distance + steps.next_distance + slack).all()


@few
@given(SETTINGS.filter(lambda setting: setting.norm != "batch"), st.integers(1, 1000))
def test_without_batchnorm_the_partition_is_only_rounding(setting: Setting, seed: int) -> None:
    shuffled, _, _ = walk_through(setting, partition_seed=seed)
    plain, _, _ = walk_through(setting)
    in_order, _, _ = walk_through(setting, partition_seed=None)
    other_size, _, _ = walk_through(setting, batch_size=2)
    for run in (shuffled, in_order, other_size):
        np.testing.assert_allclose(curves(run), curves(plain), rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)


@few
@given(SETTINGS.filter(lambda setting: setting.norm == "batch" and setting.widths))
def test_with_batchnorm_the_same_partition_gives_the_same_bits(setting: Setting) -> None:
    first, _, partition = walk_through(setting)
    again, _, repeated = walk_through(setting)
    np.testing.assert_array_equal(curves(first), curves(again))
    assert all(x.equal(y) for (x, _), (y, _) in zip(partition, repeated, strict=True))


@few
@given(SETTINGS)
def test_the_schedule_changes_no_number(setting: Setting) -> None:
    """A segment whose start was not kept from the one before evaluates it afresh, to the same bits."""
    every, _, _ = walk_through(setting)
    second, _, _ = walk_through(setting, when=sgdwalk.every(2))
    np.testing.assert_array_equal(curves(every)[::2], curves(second))


@few
@given(SETTINGS)
def test_a_grid_twice_as_fine_contains_the_coarse_one(setting: Setting) -> None:
    coarse, _, _ = walk_through(setting)
    fine, _, _ = walk_through(setting, num_points=2 * setting.num_points)
    np.testing.assert_array_equal(curves(fine)[:, ::2], curves(coarse))
    assert (fine.steps.floor <= coarse.steps.floor).all()
    assert (fine.steps.height >= coarse.steps.height).all()


@few
@given(SETTINGS.filter(lambda setting: setting.norm != "batch"))
def test_every_example_twice_is_the_same_loss(setting: Setting) -> None:
    """L is a mean: repeating the data changes its rounding only, however the last batch is cut."""
    once, _, _ = walk_through(setting)
    model, optimizer, (inputs, targets), training = build(setting)
    doubled = (torch.cat([inputs, inputs]), torch.cat([targets, targets]))
    options = {"batch_size": setting.batch_size, "num_points": setting.num_points}
    with sgdwalk.watch(model, optimizer, F.cross_entropy, doubled, on_error="raise", **options) as walk:
        reference.train(model, optimizer, training, F.cross_entropy)
    np.testing.assert_allclose(curves(walk.run), curves(once), rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
