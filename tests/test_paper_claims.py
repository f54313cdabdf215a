"""Each claim of Figures 17 to 19 on walks of which it is known to be true, false, or undecided."""

import math

import numpy as np
import pytest

import synthetic
from sgdwalk.paper import claims
from sgdwalk.records import NAN, SegmentPoint, StepRecord
from sgdwalk.run import Run


def walk(
    *,
    num_steps=40,
    floors=lambda t: 1.0 - t / 100,
    interior=lambda t: True,
    cosine=lambda t: -0.95,
    distance=lambda t: 0.1 * (t + 1),
    barrier=lambda t: False,
    steps_per_epoch=40,
):
    """A run whose every update has the given floor, cosine, distance and barrier; its other numbers are plain."""
    records = []
    for t in range(num_steps):
        bottom, rim = floors(t), floors(t) + 0.5
        losses = [rim, bottom, rim] if interior(t) else [rim + 1, rim, bottom]
        if barrier(t):
            losses = [rim, rim + 1, bottom]
        points = tuple(SegmentPoint(alpha, loss) for alpha, loss in zip((0.0, 0.5, 1.0), losses, strict=True))
        records.append(
            StepRecord(
                t,
                epoch=t // steps_per_epoch + 1,
                cosine=NAN if t == 0 else cosine(t),
                distance=distance(t - 1),
                next_distance=distance(t),
                segment=points,
                loss_noise=0.0 if t == 0 else NAN,
            )
        )
    return Run(synthetic.settings("walk"), records)


def verdict(claim, **walks):
    return claim.judge({role: [run] if isinstance(run, Run) else run for role, run in walks.items()}).verdict


def test_a_floor_between_the_iterates_makes_a_valley():
    claim = claims.valley("gd")
    assert verdict(claim, gd=walk()) == "supported"
    assert verdict(claim, gd=walk(interior=lambda t: False)) == "contradicted"
    assert verdict(claim, gd=walk(interior=lambda t: t % 4 > 0)) == "not resolved"  # 18 of 25


def test_only_updates_from_15_on_count_for_the_valley():
    assert verdict(claims.valley("gd"), gd=walk(interior=lambda t: t >= 15)) == "supported"
    assert verdict(claims.valley("gd"), gd=walk(interior=lambda t: t < 15)) == "contradicted"


def test_too_few_updates_test_nothing():
    for claim in (claims.valley("gd"), claims.negative_cosine("gd"), claims.opposite_gradients("gd")):
        assert verdict(claim, gd=walk(num_steps=30)) == "not testable at this scale"
    assert verdict(claims.few_barriers(1), sgd=walk(num_steps=15)) == "not testable at this scale"
    assert verdict(claims.falling_floor("gd"), gd=walk(num_steps=20)) == "not testable at this scale"


def test_negative_cosines():
    claim = claims.negative_cosine("gd")
    assert verdict(claim, gd=walk(cosine=lambda t: -0.1)) == "supported"
    assert verdict(claim, gd=walk(cosine=lambda t: 0.1)) == "contradicted"
    assert verdict(claim, gd=walk(cosine=lambda t: -0.1 if t % 4 else 0.1)) == "not resolved"


def test_undefined_cosines_are_left_out():
    found = claims.negative_cosine("gd").judge({"gd": [walk(cosine=lambda t: NAN if t == 20 else -0.1)]})
    assert found.verdict == "supported"
    assert found.finding.startswith("24 of 24 cosines are negative (100%)")


@pytest.mark.parametrize(
    ("cosine", "expected"),
    [(-0.99, "supported"), (-0.9, "supported"), (-0.7, "not resolved"), (-0.5, "contradicted"), (0.3, "contradicted")],
)
def test_gradients_close_to_opposite(cosine, expected):
    assert verdict(claims.opposite_gradients("gd"), gd=walk(cosine=lambda t: cosine)) == expected


def test_a_floor_that_falls():
    claim = claims.falling_floor("gd")
    assert verdict(claim, gd=walk()) == "supported"
    assert verdict(claim, gd=walk(floors=lambda t: 1 + t / 100)) == "contradicted"
    assert verdict(claim, gd=walk(floors=lambda t: 1 - t / 100 + 0.02 * (t % 4 == 0))) == "not resolved"  # 30 of 39


def test_a_floor_with_ups_and_downs():
    claim = claims.rough_floor(1)
    assert verdict(claim, sgd=walk(floors=lambda t: 1 + 0.1 * (t % 2))) == "supported"
    assert verdict(claim, sgd=walk()) == "contradicted"
    assert verdict(claim, sgd=walk(floors=lambda t: 1 - t / 100 + 0.02 * (t % 6 == 5))) == "not resolved"  # 6 of 39


def test_the_second_epochs_claim_looks_at_the_second_epoch():
    rough_later = walk(num_steps=100, steps_per_epoch=50, floors=lambda t: 1 + (0.1 * (t % 2) if t >= 50 else -t / 100))
    assert verdict(claims.rough_floor(1), sgd=rough_later) == "contradicted"
    assert verdict(claims.rough_floor(2), sgd=rough_later) == "supported"


@pytest.mark.parametrize(
    ("every", "expected"), [(100, "supported"), (7, "not resolved"), (3, "contradicted")], ids=["one", "six", "many"]
)
def test_barriers(every, expected):
    run = walk(barrier=lambda t: every < 100 and t % every == 0)
    assert verdict(claims.few_barriers(1), sgd=run) == expected


def seeds(values, **changes):
    return [walk(distance=lambda t, last=last: last * (t + 1) / 40, **changes) for last in values]


def test_ranking_distances_needs_several_seeds():
    claim = claims.farther_than_gd("gd")
    assert verdict(claim, sgd=seeds([2.0]), gd=seeds([1.0])) == "not resolved"
    assert verdict(claim, sgd=seeds([2.0, 2.1, 1.9]), gd=seeds([1.0, 1.0, 1.1])) == "supported"
    assert verdict(claim, sgd=seeds([1.0, 1.0, 1.1]), gd=seeds([2.0, 2.1, 1.9])) == "contradicted"
    assert verdict(claim, sgd=seeds([1.0, 2.0, 1.1]), gd=seeds([1.1, 1.0, 1.9])) == "not resolved"


def test_the_interval_of_paired_differences_is_students():
    found = claims.farther_than_gd("gd").judge({"sgd": seeds([2.0, 2.5, 2.4]), "gd": seeds([1.0, 1.0, 1.0])})
    differences = np.array([1.0, 1.5, 1.4])
    half = 4.303 * differences.std(ddof=1) / math.sqrt(3)
    assert f"difference {differences.mean():.3f} ± {half:.3f} (95 %, 3 seeds)" in found.finding


def test_less_negative_cosine():
    claim = claims.less_negative_cosine(1, "gd")
    bouncing = [walk(cosine=lambda t, k=k: -0.9 - 0.01 * k) for k in range(3)]
    wandering = [walk(cosine=lambda t, k=k: 0.01 * k) for k in range(3)]
    assert verdict(claim, sgd=wandering, gd=bouncing) == "supported"
    assert verdict(claim, sgd=bouncing, gd=wandering) == "contradicted"


def test_trainings_that_were_not_watched_serve_where_no_segment_is_needed():
    records = [StepRecord(t, epoch=1, cosine=0.1 * (t > 0), next_distance=2.0 + t) for t in range(40)]
    unwatched = Run(synthetic.settings("unwatched"), records)
    assert verdict(claims.farther_than_gd("gd"), sgd=[unwatched] * 2, gd=seeds([1.0, 1.1])) == "supported"


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [(0, 40, (0.0, 1 - 0.025 ** (1 / 40))), (40, 40, (0.025 ** (1 / 40), 1.0)), (5, 40, (0.0419, 0.2680))],
)
def test_proportion_intervals_known_on_paper_or_from_tables(successes, trials, expected):
    # The middle case: Clopper and Pearson's interval for 5 of 40, as in any table of it.
    np.testing.assert_allclose(claims.proportion_interval(successes, trials), expected, atol=5e-5)
