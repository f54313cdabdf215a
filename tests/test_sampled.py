"""Sampled segments: a few evaluation batches of a few steps, against slow float64 twins and whole walks."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import sgdwalk
from sgdwalk import summary
from sgdwalk.sampling import sampled_segment


def data(n=240, features=6, classes=4):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(n, features, generator=generator)
    return inputs, (inputs[:, :classes] + torch.randn(n, classes, generator=generator)).argmax(dim=1)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def train(model, inputs, targets, *, steps=24, rate=0.5, batch=20, **watching):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.5)
    points = []
    watching = {"batch_size": batch, "steps_per_epoch": 12, "on_error": "raise"} | watching
    with sgdwalk.watch(model, optimizer, nn.functional.cross_entropy, (inputs, targets), **watching) as walk:
        for step in range(steps):
            points.append([parameter.detach().clone() for parameter in model.parameters()])
            rows = torch.arange(step * batch, (step + 1) * batch) % len(inputs)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        points.append([parameter.detach().clone() for parameter in model.parameters()])
    return walk.run, points


def sampled(num_units=12, when=None, **options):
    return {"sampled": sgdwalk.at(when or sgdwalk.every(1), sgdwalk.SampledSegments(num_units, **options))}


def test_all_units_are_a_float64_twins_segment():
    inputs, targets = data()
    run, points = train(net(), inputs, targets, steps=6, when=None, measures=sampled(12), partition_seed=None)
    twin = net().double()
    for step in range(6):
        curves = []
        for alpha in np.linspace(0, 1, 11):
            with torch.no_grad():
                for target, start, end in zip(twin.parameters(), points[step], points[step + 1], strict=True):
                    target.copy_((1 - alpha) * start.double() + alpha * end.double())
                outputs = [twin(rows.double()) for rows in inputs.split(20)]
            losses = [
                nn.functional.cross_entropy(output, target).item()
                for output, target in zip(outputs, targets.split(20), strict=True)
            ]
            curves.append(losses)
        units = np.array(curves).T
        row = run.steps.loc[step].to_dict()
        height = float(sgdwalk.valley.height(units.mean(axis=0)))
        assert row["sampled_loss"] == pytest.approx(units[:, 0].mean(), rel=2e-6)
        assert row["sampled_next_loss"] == pytest.approx(units[:, -1].mean(), rel=2e-6)
        # The halves are drawn at random, so the corrections differ: both stand within the noise of the units.
        noise = np.std([sampled_segment(units[np.random.default_rng(k).permutation(12)]).height for k in range(50)])
        assert abs(row["sampled_height"] - height) < 6 * noise + 0.02 * height


def test_outputs_linear_in_the_parameters_are_interpolated_exactly():
    inputs, targets = data()
    torch.manual_seed(1)
    model = nn.Linear(6, 4)
    run, points = train(model, inputs, targets, steps=3, when=None, measures=sampled(2), batch=120)
    twin = nn.Linear(6, 4).double()
    for step in range(3):
        curve = []
        for alpha in np.linspace(0, 1, 11):
            with torch.no_grad():
                for target, start, end in zip(twin.parameters(), points[step], points[step + 1], strict=True):
                    target.copy_((1 - alpha) * start.double() + alpha * end.double())
                curve.append(nn.functional.cross_entropy(twin(inputs.double()), targets).item())
        row = run.steps.loc[step].to_dict()
        assert row["sampled_loss"] == pytest.approx(curve[0], rel=2e-6)
        assert row["sampled_next_loss"] == pytest.approx(curve[-1], rel=2e-6)
        assert row["sampled_interior"] == (0 < int(np.argmin(curve)) < 10)


def test_training_is_bit_identical():
    inputs, targets = data()
    watched, bare = net(), net()
    train(watched, inputs, targets, when=None, measures=sampled(4))
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.5, momentum=0.5)
    for step in range(24):
        rows = torch.arange(step * 20, (step + 1) * 20) % len(inputs)
        optimizer.zero_grad()
        nn.functional.cross_entropy(bare(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    for ours, theirs in zip(watched.state_dict().values(), bare.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_mean_of_an_epoch_is_right_on_average_and_its_interval_covers():
    """Forty samplings of one walk beside its exact segments."""
    inputs, targets = data(n=600)
    seeds = range(40)
    measures = {
        f"s{seed}": sgdwalk.at(sgdwalk.one_in(3, seed=seed), sgdwalk.SampledSegments(10, seed=seed)) for seed in seeds
    }
    run, _ = train(net(), inputs, targets, steps=30, measures=measures, steps_per_epoch=30)
    exact = run.steps["height"].mean()
    found = [sgdwalk.analysis.sampled_epochs(run, f"s{seed}").loc[1].to_dict() for seed in seeds]
    means = np.array([each["mean_height"] for each in found])
    assert all(each["num_sampled"] == 10 for each in found)
    assert abs(means.mean() - exact) < 3.5 * means.std() / np.sqrt(len(means)) + 0.02 * exact
    covered = sum(each["height_low"] <= exact <= each["height_high"] for each in found)
    assert covered >= 33  # P(fewer) = 0.004 if each covers with 95 %, neighbours being independent
    assert len(set(means)) == len(means)


def test_the_same_seed_draws_the_same_numbers_whatever_else_is_measured():
    inputs, targets = data()
    first, _ = train(net(), inputs, targets, when=None, measures=sampled(4, sgdwalk.one_in(3)))
    again, _ = train(net(), inputs, targets, measures=sampled(4, sgdwalk.one_in(3)))
    other, _ = train(net(), inputs, targets, when=None, measures=sampled(4, sgdwalk.one_in(3), seed=1))
    column = "sampled_height"
    assert first.steps[column].equals(again.steps[column])
    assert not first.steps[column].equals(other.steps[column])


def test_other_measures_of_the_step_still_see_the_start():
    inputs, targets = data()
    measures = {**sampled(4), "zz_loss": lambda here: here.full_loss().sums().mean}
    run, _ = train(net(), inputs, targets, steps=4, measures=measures)
    assert run.steps["zz_loss"].to_numpy() == pytest.approx(run.steps["loss"].to_numpy(), rel=1e-6)


class Pairs(nn.Module):
    """A model whose output is no one tensor."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, inputs):
        return {"logits": self.inner(inputs)}


def test_a_model_whose_output_is_no_tensor_is_evaluated_at_every_point():
    inputs, targets = data()

    def loss_fn(output, target):
        return nn.functional.cross_entropy(output["logits"], target)

    model, plain = Pairs(), net()
    model.inner.load_state_dict(copy.deepcopy(plain.state_dict()))
    found = []
    for each, function in ((model, loss_fn), (plain, nn.functional.cross_entropy)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        with sgdwalk.watch(
            each,
            optimizer,
            function,
            (inputs, targets),
            when=None,
            measures=sampled(6),
            batch_size=20,
            on_error="raise",
        ) as walk:
            for _ in range(2):
                optimizer.zero_grad()
                function(each(inputs), targets).backward()
                optimizer.step()
        found.append(walk.run.steps["sampled_height"].to_numpy())
    assert found[0] == pytest.approx(found[1], rel=0.05, abs=1e-4)


def test_a_loss_that_is_not_finite_has_its_reason():
    inputs, targets = data()
    model = net()
    run, _ = train(model, inputs, targets, steps=3, rate=float("inf"), when=None, measures=sampled(4))
    assert run.steps["sampled_height"].isna().all()
    assert "not finite" in run.steps["sampled_height_reason"].iloc[0]
    row = sgdwalk.analysis.sampled_epochs(run).loc[1]
    assert (row["num_sampled"], row["undefined"]) == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_units": 1}, "num_units"), ({"num_points": 1}, "num_points"), ({"seed": -1}, "seed")],
)
def test_what_cannot_be_sampled_is_refused(options, message):
    with pytest.raises(sgdwalk.InputError, match=message):
        sgdwalk.SampledSegments(**options)


def test_more_units_than_there_are_is_told_before_training():
    inputs, targets = data()
    with pytest.raises(sgdwalk.InputError, match="13 evaluation batches are to be drawn, and the data have 12"):
        train(net(), inputs, targets, when=None, measures=sampled(13))


def test_a_run_without_samples_says_so():
    inputs, targets = data()
    run, _ = train(net(), inputs, targets, steps=2)
    with pytest.raises(sgdwalk.InputError, match="no sampled heights"):
        sgdwalk.analysis.sampled_epochs(run)


def test_the_method_samples_the_steps_that_are_asked_for():
    inputs, targets = data()
    run, _ = train(net(), inputs, targets, steps=60, method="sampled", when=sgdwalk.in_epochs(2, 3, 4))
    chosen = run.steps.index[run.steps["sampled_height"].notna()]
    drawn = sgdwalk.one_in(7, dense=4)
    assert chosen.tolist() == [step for step in range(12, 48) if drawn(step)]
    assert all(12 <= step < 48 for step in chosen)
    assert run.steps["height"].isna().all()
    assert len(run.segments) == 0
    assert run.info["settings"]["method"] == "sampled"
    assert sgdwalk.analysis.sampled_epochs(run)["num_sampled"].sum() == len(chosen)
    assert set(sgdwalk.analysis.sampled_epochs(run)["num_units"].dropna()) == {4}


def test_sampled_steps_of_a_dense_start_count_as_the_updates_they_stand_for():
    inputs, targets = data()
    run, _ = train(net(), inputs, targets, steps=48, method="sampled", steps_per_epoch=48)
    chosen = run.steps[run.steps["sampled_height"].notna()]
    steps = chosen.index.to_list()
    halfway = [(one + other) / 2 for one, other in itertools.pairwise(steps)]
    edges = [2 * steps[0] - halfway[0], *halfway, 2 * steps[-1] - halfway[-1]]
    weights = np.diff(edges)
    assert len(set(weights)) > 2
    row = sgdwalk.analysis.sampled_epochs(run).loc[1]
    for column, mean in (("height", "mean_height"), ("floor", "mean_floor"), ("interior", "bounce_share")):
        assert row[mean] == pytest.approx(np.average(chosen[f"sampled_{column}"], weights=weights), rel=1e-12)
    (told,) = (sentence for sentence in summary.describe(run) if "of the updates" in sentence)
    assert f"on {100 * row['bounce_share']:.0f} % of the updates" in told
    assert row["bounce_share"] != pytest.approx(chosen["sampled_interior"].mean(), abs=0.02)  # the test could fail


def test_the_method_needs_a_second_batch_and_its_name():
    inputs, targets = data()
    with pytest.raises(sgdwalk.InputError, match="all data are a single one: pass a batch_size smaller"):
        train(net(), inputs, targets, steps=1, method="sampled", batch=240)
    with pytest.raises(sgdwalk.InputError, match="'sampled'"):
        train(net(), inputs, targets, steps=1, method="sampled", measures={"sampled": lambda here: 0.0})


class Masked(nn.Module):
    """The last of five logits is out of the question: everywhere, or as soon as the first bias has moved."""

    def __init__(self, *, later=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)
        self.start = self.layer.bias[0].item() if later else None

    def forward(self, inputs):
        masked = torch.arange(5) == 4
        if self.start is not None:
            masked = masked & (self.layer.bias[0] != self.start)
        return torch.where(masked, -torch.inf, 3 * self.layer(inputs).tanh())


@pytest.mark.parametrize("later", [False, True], ids=["at every node", "at some nodes"])
def test_masked_logits_have_a_height(later):
    """-inf at every node is -inf in between; where the mask is another one at each end, every point is evaluated."""
    inputs, targets = data()
    run, _ = train(Masked(later=later), inputs, targets, steps=4, when=sgdwalk.every(1), measures=sampled(12))
    steps = run.steps
    assert steps["sampled_height"].notna().all()
    np.testing.assert_allclose(steps["sampled_height"], steps["height"], rtol=0.02)
    if later:
        assert steps["sampled_height"][0] == pytest.approx(steps["height"][0], rel=1e-5)


def test_a_resumed_walk_must_draw_the_same(tmp_path):
    inputs, targets = data()
    train(net(), inputs, targets, steps=4, run=tmp_path / "run", method="sampled", sampling_seed=1)
    with pytest.raises(sgdwalk.ResumeError, match=r"settings.sampling_seed was 1 and is 2"):
        train(net(), inputs, targets, run=tmp_path / "run", resume=True, method="sampled", sampling_seed=2)
