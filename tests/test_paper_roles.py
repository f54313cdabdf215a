"""Learning rate and batch size: slopes known on paper, claims on walks of which they are true, false or open."""

import math

import numpy as np
import pytest
import torch

import sgdwalk
import synthetic
from sgdwalk.paper import data, registry, role_claims, role_figures, role_measures
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.judging import student
from sgdwalk.paper.part_curvature import PartSpectralNorm
from sgdwalk.paper.role_measures import (
    ACCURACY,
    COSINE,
    DISTANCE,
    HEIGHT,
    QUANTITIES,
    SPECTRAL_NORM,
    VALIDATION_LOSS,
    Moment,
)
from sgdwalk.paper.role_trainings import (
    NETWORKS,
    WATCHED,
    Setting,
    batch_settings,
    compared,
    grid,
    rate_settings,
    sweep,
)
from sgdwalk.paper.trainings import SCALES
from sgdwalk.records import NAN, EpochNote, SegmentPoint, StepRecord
from sgdwalk.run import Run

RATES, SIZES = (0.01, 0.05, 0.1, 0.5), (50, 100, 500)
SETTINGS = tuple(Setting("mlp", rate, size) for rate in RATES for size in SIZES)
BATCHES, USUAL = SETTINGS[6:9], SETTINGS[1::3]  # at learning rate 0.1, at batch size 100
UPDATES, EPOCHS = Moment(40, "updates"), Moment(2, "epochs")
EXAMPLES = 2_000


def constant(number):
    return lambda eta, size, seed: number


def power(p, q, spread=0.02):
    """η^p B^q, and a factor that differs from seed to seed and not within one."""
    return lambda eta, size, seed: eta**p * (size / 100) ** q * (1 + spread * seed)


def linear(p, q, tilt=0.0):
    """Changes by p and q a doubling; ``tilt`` moves both up and down from seed to seed."""
    return lambda eta, size, seed: (
        0.3 + (p + tilt * (seed - 1)) * math.log2(eta) + (q + tilt * (seed - 1)) * math.log2(size / 100)
    )


def walk(setting, seed, *, height, distance, cosine, norm, accuracy, loss, barrier, bouncing):
    """A run whose numbers are those of its setting and seed throughout."""
    eta, size = setting.learning_rate, setting.batch_size
    length = EXAMPLES // size
    after = {40, 2 * length}
    records = []
    for t in range(max(after) + WATCHED):
        above = height(eta, size, seed)
        losses = [1 + above, 2 + above if barrier(eta, t) else 1 + above / 2, 1.0, 1 + above / 2, 1 + above]
        if not bouncing(eta):
            losses = [1 + 2 * above, 1 + above, 1 + above / 2, 1 + above / 4, 1.0]
        watched = any(step <= t < step + WATCHED for step in after)
        records.append(
            StepRecord(
                t,
                epoch=t // length + 1,
                learning_rate=eta,
                cosine=NAN if t == 0 else cosine(eta, size, seed),
                next_distance=distance(eta, size, seed),
                segment=tuple(SegmentPoint(k / 4, loss) for k, loss in enumerate(losses)) if watched else (),
                measures={"part_spectral_norm": norm(eta, size, seed) if t in after else NAN},
            )
        )
    noted = {"validation_accuracy": accuracy(eta, size, seed), "validation_loss": loss(eta, size, seed)}
    notes = [EpochNote(epoch, epoch * length, noted) for epoch in range(1, records[-1].epoch + 1)]
    return Run(synthetic.settings("walk"), records, notes)


def world(settings=SETTINGS, seeds=3, **changes):
    plain = {
        "height": constant(0.1),
        "distance": constant(1.0),
        "cosine": constant(-0.1),
        "norm": constant(5.0),
        "accuracy": constant(0.5),
        "loss": constant(1.0),
        "barrier": lambda eta, t: False,
        "bouncing": lambda eta: True,
    }
    return {each.role: [walk(each, seed, **(plain | changes)) for seed in range(seeds)] for each in settings}


def test_slopes_are_the_exponents_of_a_power_law():
    runs = world(height=power(0.7, -0.3), cosine=linear(0.02, -0.05))
    for moment in (UPDATES, EPOCHS):
        np.testing.assert_allclose(role_measures.slopes(runs, SETTINGS, HEIGHT, moment), [[0.7, -0.3]] * 3, rtol=1e-12)
    np.testing.assert_allclose(role_measures.slopes(runs, SETTINGS, COSINE, UPDATES), [[0.02, -0.05]] * 3, rtol=1e-12)


def test_slopes_over_a_balanced_grid_are_those_of_each_factor_alone():
    table = np.random.default_rng(0).uniform(1, 2, size=(len(RATES), len(SIZES)))
    runs = world(distance=lambda eta, size, seed: table[RATES.index(eta), SIZES.index(size)])
    logs = np.log2(table)
    by_rate = np.polyfit(np.log2(RATES), logs.mean(axis=1), 1)[0]
    by_batch = np.polyfit(np.log2(SIZES), logs.mean(axis=0), 1)[0]
    (found, *_) = role_measures.slopes(runs, SETTINGS, DISTANCE, UPDATES)
    np.testing.assert_allclose(found, [by_rate, by_batch], rtol=1e-10)


def test_settings_without_a_value_are_left_out_and_counted():
    runs = world(height=lambda eta, size, seed: NAN if eta == 0.5 and size == 50 else power(0.7, -0.3)(eta, size, seed))
    np.testing.assert_allclose(role_measures.slopes(runs, SETTINGS, HEIGHT, UPDATES)[0], [0.7, -0.3], rtol=1e-12)
    assert role_measures.unknown(runs, SETTINGS, HEIGHT, UPDATES) == 3
    found = role_claims.follows(SETTINGS, HEIGHT, "learning rate", "rises", UPDATES).judge(runs)
    assert "Undefined in 3 training(s)" in found.finding
    nothing = world(height=constant(0.0))  # no logarithm
    assert np.isnan(role_measures.slopes(nothing, SETTINGS, HEIGHT, UPDATES)).all()


def test_where_no_walk_bounces_yet_the_cosine_is_not_judged():
    runs = world(cosine=linear(0.02, -0.05), bouncing=lambda eta: False)
    found = role_claims.follows(SETTINGS, COSINE, "batch size", "falls", UPDATES).judge(runs)
    assert found.verdict == "not testable at this scale"
    assert "not known for any seed" in found.finding
    assert "most watched updates do not pass their floor" in found.finding


def test_a_factor_that_does_not_vary_has_no_slope():
    (found, *_) = role_measures.slopes(world(distance=power(0.5, -0.2)), BATCHES, DISTANCE, UPDATES)
    assert math.isnan(found[0])
    assert found[1] == pytest.approx(-0.2)


def test_moments_of_one_training():
    (run,) = world(seeds=1)["mlp η=0.1 B=50"]
    assert (UPDATES.step(run), EPOCHS.step(run)) == (40, 80)
    assert role_measures.window(run, EPOCHS) == range(40, 80)
    assert role_measures.value(run, HEIGHT, EPOCHS) == pytest.approx(0.1)
    assert role_measures.value(run, SPECTRAL_NORM, UPDATES) == 5.0
    assert role_measures.value(run, ACCURACY, EPOCHS) == 0.5
    assert math.isnan(role_measures.value(run, DISTANCE, Moment(500, "updates")))


def test_numbers_are_read_at_their_moment():
    records = [
        StepRecord(t, epoch=t // 10 + 1, cosine=float(t), next_distance=10.0 + t, measures={"part_spectral_norm": t})
        for t in range(32)
    ]
    notes = [EpochNote(epoch, 10 * epoch, {"validation_accuracy": epoch / 10}) for epoch in (1, 2, 3, 4)]
    run = Run(synthetic.settings("walk"), records, notes)
    after = Moment(20, "updates")
    assert role_measures.value(run, DISTANCE, after) == 29.0  # after the twentieth update
    assert role_measures.value(run, COSINE, after) == np.mean(range(10, 20))
    assert role_measures.value(run, SPECTRAL_NORM, after) == 20.0
    assert role_measures.value(run, ACCURACY, after) == 0.2
    assert role_measures.value(run, DISTANCE, Moment(3, "epochs")) == 39.0
    assert math.isnan(role_measures.value(run, HEIGHT, after))
    assert math.isnan(role_measures.value(run, VALIDATION_LOSS, after))


NAMES = {HEIGHT: "height", DISTANCE: "distance", COSINE: "cosine", SPECTRAL_NORM: "norm", ACCURACY: "accuracy"}
FOLLOWED = [(quantity, *key) for key in role_claims.FOLLOWS for quantity in QUANTITIES if quantity.name == key[0]]


@pytest.mark.parametrize(("quantity", "name", "factor"), FOLLOWED, ids=str)
@pytest.mark.parametrize("sign", ["rises", "falls"])
def test_what_follows_a_factor(quantity, name, factor, sign):
    claim = role_claims.follows(SETTINGS, quantity, factor, sign, UPDATES)
    by_rate = factor == "learning rate"
    up = linear(0.05, 0.0) if by_rate else linear(0.0, 0.05)
    down = linear(-0.05, 0.0) if by_rate else linear(0.0, -0.05)
    steep = [lambda *args, f=f: 2.0 ** f(*args) for f in (up, down)] if quantity.logarithmic else [up, down]
    flat = linear(0.0, 0.0, tilt=0.05)
    flat = (lambda *args: 2.0 ** linear(0.0, 0.0, tilt=0.05)(*args)) if quantity.logarithmic else flat
    true, false = steep if sign == "rises" else reversed(steep)
    key = NAMES[quantity]
    assert claim.judge(world(**{key: true})).verdict == "supported"
    assert claim.judge(world(**{key: false})).verdict == "contradicted"
    assert claim.judge(world(**{key: flat})).verdict == "not resolved"
    assert claim.judge(world(seeds=1, **{key: true})).verdict == "not resolved"
    assert claim.words
    assert claim.source


@pytest.mark.parametrize(("quantity", "factor"), [(HEIGHT, "learning rate"), (DISTANCE, "batch size")], ids=str)
def test_which_factor_rules(quantity, factor):
    claim = role_claims.rules(SETTINGS, quantity, factor, UPDATES)
    rate_rules, batch_rules = power(0.5, -0.1), power(0.1, -0.5)
    key = NAMES[quantity]
    ours, theirs = (rate_rules, batch_rules) if factor == "learning rate" else (batch_rules, rate_rules)
    assert claim.judge(world(**{key: ours})).verdict == "supported"
    assert claim.judge(world(**{key: theirs})).verdict == "contradicted"
    unlike = [power(0.5, -0.1), power(0.1, -0.5), power(0.3, -0.3)]
    found = claim.judge(world(**{key: lambda eta, size, seed: unlike[seed](eta, size, seed)}))
    assert found.verdict == "not resolved"


def test_the_interval_of_slopes_is_students():
    exponents = np.array([0.4, 0.5, 0.7])
    runs = world(height=lambda eta, size, seed: eta ** exponents[seed])
    found = role_claims.follows(SETTINGS, HEIGHT, "learning rate", "rises", UPDATES).judge(runs)
    mean, half = student(exponents)
    assert f"{mean:+.3g} ± {half:.2g} (95 %, 3 seeds)" in found.finding


def by_rate(step, spread=0.001):
    """The cosine changes by ``step`` from each learning rate to the next, and by 0.06 a doubling of the batch size."""
    return lambda eta, size, seed: -0.2 + RATES.index(eta) * (step + spread * (seed - 1)) - 0.06 * math.log2(size / 100)


def test_no_effect_of_the_learning_rate_is_an_equivalence():
    claim = role_claims.same_cosine_at_any_rate(USUAL, BATCHES, UPDATES)
    assert claim.judge(world(cosine=by_rate(0.02))).verdict == "supported"
    assert claim.judge(world(cosine=by_rate(-0.08))).verdict == "contradicted"
    assert claim.judge(world(cosine=by_rate(0.0, spread=0.1))).verdict == "not resolved"  # no difference, no certainty
    assert claim.judge(world(cosine=by_rate(0.02), seeds=1)).verdict == "not resolved"


def test_no_effect_is_less_than_the_batch_sizes():
    """Within the margin of 0.05, but no smaller than what the paper calls significant of the batch size."""
    claim = role_claims.same_cosine_at_any_rate(USUAL, BATCHES, UPDATES)
    alike = world(cosine=lambda *args: by_rate(0.02)(args[0], 100, args[2]) - 0.01 * math.log2(args[1] / 100))
    assert claim.judge(alike).verdict == "not resolved"
    assert "A doubling of the batch size changes it by 0.010" in claim.judge(alike).finding
    flat = world(cosine=lambda *args: by_rate(0.0)(args[0], 100, args[2]))
    assert claim.judge(flat).verdict == "not resolved"


def test_one_pair_of_rates_that_differs_contradicts_that_none_does():
    claim = role_claims.same_cosine_at_any_rate(USUAL, BATCHES, UPDATES)
    jump = world(cosine=lambda eta, size, seed: -0.2 - 0.1 * (eta == 0.5) + 0.001 * seed)
    assert claim.judge(jump).verdict == "contradicted"


def test_batch_size_against_learning_rate():
    claim = role_claims.batch_changes_cosine_more(BATCHES, USUAL, UPDATES)
    assert claim.judge(world(cosine=linear(0.01, -0.05))).verdict == "supported"
    assert claim.judge(world(cosine=linear(-0.05, 0.01))).verdict == "contradicted"
    unlike = [linear(0.01, -0.05), linear(-0.05, 0.01), linear(0.03, 0.03)]
    assert claim.judge(world(cosine=lambda *args: unlike[args[2]](*args))).verdict == "not resolved"


def test_settings_that_do_not_bounce_yet_are_left_out():
    claim = role_claims.follows(SETTINGS, COSINE, "batch size", "falls", UPDATES)
    one = {"cosine": lambda eta, size, seed: (0.3 if eta == 0.01 else -0.05) * math.log2(size / 50)}
    assert claim.judge(world(**one)).verdict == "contradicted"
    found = claim.judge(world(**one, bouncing=lambda eta: eta > 0.01))  # the smallest is on its way into the valley
    assert found.verdict == "supported"
    assert "do not pass their floor: η = 0.01, B = 50; η = 0.01, B = 100; η = 0.01, B = 500." in found.finding


def test_a_fixed_number_of_epochs_is_not_asked_of_the_cosine_where_it_is_cut():
    by_epochs = role_claims.follows(SETTINGS, COSINE, "batch size", "falls", EPOCHS)
    by_updates = role_claims.follows(SETTINGS, COSINE, "batch size", "falls", UPDATES)
    assert (by_epochs.paper_scale_only, by_updates.paper_scale_only) == (True, False)


def test_to_rule_is_more_than_to_lead():
    claim = role_claims.rules(SETTINGS, DISTANCE, "batch size", UPDATES)
    assert claim.judge(world(distance=power(0.42, -0.44))).verdict == "not resolved"
    assert claim.judge(world(distance=power(0.2, -0.44))).verdict == "supported"


def test_a_training_without_a_value_leaves_the_statement_open():
    lost = world(height=lambda eta, size, seed: NAN if eta == 0.5 and seed == 1 else power(0.7, -0.3)(eta, size, seed))
    for claim in (
        role_claims.follows(SETTINGS, HEIGHT, "learning rate", "rises", UPDATES),
        role_claims.rules(SETTINGS, HEIGHT, "learning rate", UPDATES),
    ):
        assert claim.judge(world(height=power(0.7, -0.3))).verdict == "supported"
        assert claim.judge(lost).verdict == "not resolved"


def test_cosines_from_before_bouncing_can_have_begun_are_left_out():
    claim = role_claims.follows(SETTINGS, COSINE, "batch size", "falls", EPOCHS)  # 500 a batch: 8 updates
    misled = world(cosine=lambda eta, size, seed: 0.9 if size == 500 else linear(0.0, -0.05)(eta, size, seed))
    found = claim.judge(misled)
    assert found.verdict == "supported"
    assert found.finding.endswith(" Left out, fewer than 15 updates before the half: batch size 500.")


def test_pairs_of_one_ratio():
    pairs = role_measures.equal_ratios(SETTINGS)
    assert [(one.learning_rate, one.batch_size, two.learning_rate, two.batch_size) for one, two in pairs] == [
        (0.01, 100, 0.05, 500),
        (0.01, 50, 0.1, 500),
        (0.05, 50, 0.1, 100),
        (0.05, 50, 0.5, 500),
        (0.1, 100, 0.5, 500),
    ]


def sde(from_rate, spread=0.01):
    """Distances that depend on the ratio alone, up to a learning rate from which they are half as long."""
    return lambda eta, size, seed: (
        (eta / size) ** 0.5 * (0.5 if eta >= from_rate else 1.0) * (1 + spread * seed * (1 + math.log10(eta)))
    )


def test_one_ratio_is_one_walk_until_the_learning_rate_is_large():
    small, large = (role_claims.same_at_equal_ratio(SETTINGS, EPOCHS, large=large) for large in (False, True))
    as_footnote_1 = world(distance=sde(0.5))
    assert small.judge(as_footnote_1).verdict == "supported"
    assert large.judge(as_footnote_1).verdict == "supported"
    always = world(distance=sde(9.0))
    assert small.judge(always).verdict == "supported"
    assert large.judge(always).verdict == "contradicted"
    early = world(distance=sde(0.1))
    assert small.judge(early).verdict == "contradicted"
    noisy = world(distance=sde(9.0, spread=0.5))
    assert (small.judge(noisy).verdict, large.judge(noisy).verdict) == ("not resolved", "not resolved")


def test_one_ratio_may_differ_in_the_loss_alone():
    small = role_claims.same_at_equal_ratio(SETTINGS, EPOCHS, large=False)
    runs = world(distance=sde(9.0), loss=lambda eta, size, seed: 1 + (eta >= 0.1) + 0.01 * seed * eta)
    assert small.judge(runs).verdict == "contradicted"
    assert small.judge(world(seeds=1)).verdict == "not testable at this scale"


def test_barriers_at_small_learning_rates():
    claim = role_claims.no_barriers_at_small_rates(SETTINGS)
    assert claim.judge(world()).verdict == "supported"
    assert claim.judge(world(barrier=lambda eta, t: eta <= 0.05 and t % 2)).verdict == "contradicted"
    assert claim.judge(world(barrier=lambda eta, t: eta > 0.05)).verdict == "supported"
    rarely = world(barrier=lambda eta, t: eta == 0.05 and t == 40)
    found = claim.judge(rarely)  # 9 of 60
    assert found.verdict == "not resolved"
    assert "9 of 60 watched updates" in found.finding
    few = role_claims.no_barriers_at_small_rates(SETTINGS[4:5])
    assert few.judge(world(seeds=2)).verdict == "not testable at this scale"  # 4 updates


def test_every_claim_of_these_figures_is_tested_here():
    tested = {
        role_claims.no_barriers_at_small_rates(SETTINGS).name,
        role_claims.batch_changes_cosine_more(BATCHES, USUAL, UPDATES).name,
        role_claims.same_cosine_at_any_rate(USUAL, BATCHES, UPDATES).name,
        *(role_claims.same_at_equal_ratio(SETTINGS, UPDATES, large=large).name for large in (False, True)),
        role_claims.rules(SETTINGS, HEIGHT, "learning rate", UPDATES).name,
        role_claims.rules(SETTINGS, DISTANCE, "batch size", UPDATES).name,
        *(
            role_claims.follows(SETTINGS, quantity, factor, sign, UPDATES).name
            for quantity, _, factor in FOLLOWED
            for sign in ("rises", "falls")
        ),
    }
    tested = {name.partition(", after")[0] for name in tested}
    for id in role_figures.FIGURES:
        for _, claim in registry.figure(id, "small").claims:
            assert claim.name.partition(", after")[0] in tested, claim.name


@pytest.mark.parametrize("scale", SCALES)
def test_walks_are_watched_where_they_are_compared(scale):
    for network in NETWORKS:
        where = compared(network, scale)
        for setting in grid(network, scale):
            for experiment in sweep(setting, scale):
                watched = [step for step in range(experiment.num_updates) if experiment.watched(step)]
                moments = sorted({where.updates, where.epochs * experiment.steps_per_epoch})
                assert watched == [step + k for step in moments for k in range(WATCHED)]
                curvature = experiment.part_curvature_when()
                assert [step for step in range(experiment.num_updates) if curvature(step)] == moments


@pytest.mark.parametrize("scale", SCALES)
def test_every_training_is_long_enough(scale):
    for architecture in role_figures.COSINE_FIGURES.values():
        where = compared(architecture, scale)
        for setting in (*batch_settings(architecture, scale), *rate_settings(architecture, scale)):
            for experiment in sweep(setting, scale):
                assert experiment.num_updates >= max(where.updates, where.epochs * experiment.steps_per_epoch)


def test_the_study_shares_trainings_with_figures_4_and_23():
    roles = set(registry.figure("roles", "small").experiments)
    for id in ("fig4", "fig23"):
        assert len(roles & set(registry.figure(id, "small").experiments)) == 12  # four settings, three seeds
    assert len(roles) == 72
    assert not roles & set(registry.figure("fig22", "small").experiments)


def test_the_paper_scale_has_the_published_batch_sizes_and_rates():
    batches = [each.batch_size for each in batch_settings("vgg11", "paper")]
    rates = [each.learning_rate for each in rate_settings("vgg11", "paper")]
    assert (batches, rates) == ([50, 100, 500, 1000], [0.05, 0.1, 0.2])
    (first, *_) = sweep(batch_settings("vgg11", "paper")[3], "paper")
    assert (first.batch_size, first.steps_per_epoch, first.num_examples) == (1000, 45, 45_000)


def test_the_spectral_norm_over_a_part_is_that_of_the_dense_hessian():
    experiment = Experiment(num_train=120, hidden=(4, 3), batch_size=20, watch_epochs=(1,), curvature_examples=60)
    training, _ = data.load(experiment)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 10))
    there = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    class Here:
        parameters = there + 0.1

    found = PartSpectralNorm(experiment, model, training)(Here())
    torch.testing.assert_close(
        torch.cat([p.detach().flatten() for p in model.parameters()]), there, rtol=0, atol=0
    )  # the model stays as it is
    torch.nn.utils.vector_to_parameters(Here.parameters, model.parameters())
    model = model.double()
    part = (training.inputs[:60].double(), training.targets[:60])
    dense = sgdwalk.hessian(model, torch.nn.functional.cross_entropy, part, batch_size=20).dense()
    eigenvalues = torch.linalg.eigvalsh(dense)
    expected = eigenvalues[eigenvalues.abs().argmax()].item()
    assert found["value"] == pytest.approx(expected, rel=0.05**2 * 2)  # the square of the tolerance
