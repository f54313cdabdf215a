"""Claims about curvature over training, on trainings of which each is known to be true, false or undecided."""

import pytest

import synthetic
from sgdwalk.paper import decomposition_claims, spectral_charts, spectral_claims, spectral_tables
from sgdwalk.paper.judging import above
from sgdwalk.records import NAN, EpochNote, StepRecord
from sgdwalk.run import Run

EPOCHS = (1, 5, 10, 30, 60, 75, 85, 95, 100)


def training(norm=lambda e: 10.0, running=lambda e: 30.0, accuracy=lambda e: 0.5, seed=0, epochs=EPOCHS):
    """A run of 100 epochs of one update, with these values at some of their ends."""
    records = []
    for epoch in range(1, 101):
        measures = {}
        if epoch in epochs:
            measures = {
                "spectral_norm": norm(epoch),
                "spectral_norm_num_products": 9.0,
                "spectral_norm_eval": running(epoch),
                "spectral_norm_eval_num_products": 8.0,
            }
        records.append(StepRecord(epoch - 1, epoch=epoch, learning_rate=0.1, measures=measures))
    notes = [EpochNote(epoch, epoch, {"validation_accuracy": accuracy(epoch)}) for epoch in range(1, 101)]
    return Run(synthetic.settings("training", config={"seed": seed}), records, notes)


def three(vary=0.02, **curves):
    """Three seeds whose norms and accuracies differ by a few percent."""
    made = []
    for k in range(3):
        factor = 1 + vary * k
        bent = {
            name: (lambda e, each=each, factor=factor: each(e) * factor ** ((e > 50) - (e > 90)))
            for name, each in curves.items()
        }
        made.append(training(**bent, seed=k))
    return made


def mixed(one, other):
    return [training(**one), training(**other, seed=1), training(**one, seed=2)]


FALLING = {"norm": lambda e: 20.0 / e**0.5}
RISING = {"norm": lambda e: 2.0 * e**0.5}
LATE_RISE = {"norm": lambda e: 5.0 if e <= 90 else 8.0}
LATE_FALL = {"norm": lambda e: 5.0 if e <= 90 else 3.0}
IMPROVING = {"accuracy": lambda e: 0.3 + 0.004 * e}
WORSENING = {"accuracy": lambda e: 0.8 - 0.004 * e}

SPECTRAL = {  # claim -> trainings that make it supported, contradicted, not resolved
    "falls": (
        spectral_claims.falling_norm("sgd", 100, ""),
        three(**FALLING),
        three(**RISING),
        mixed(FALLING, RISING),
    ),
    "rises at the end": (
        spectral_claims.late_rise("sgd", 100, ""),
        three(**LATE_RISE),
        three(**LATE_FALL),
        mixed(LATE_RISE, LATE_FALL),
    ),
    "accuracy improves": (
        spectral_claims.improving_accuracy("sgd", 100, ""),
        three(**IMPROVING),
        three(**WORSENING),
        mixed(IMPROVING, WORSENING),
    ),
    "accuracy drops": (
        spectral_claims.late_drop("sgd", 100, ""),
        three(**WORSENING),
        three(**IMPROVING),
        mixed(IMPROVING, WORSENING),
    ),
    "inverse": (
        spectral_claims.inverse_trends("sgd", ""),
        [training(**FALLING, **IMPROVING) for _ in range(3)],
        [training(**RISING, **IMPROVING) for _ in range(3)],
        mixed({**FALLING, **IMPROVING}, {**RISING, **IMPROVING}),
    ),
    "running statistics": (
        spectral_claims.larger_with_running_statistics("sgd", ""),
        three(running=lambda e: 25.0),
        three(running=lambda e: 10.5),  # larger, but by less than a fifth
        mixed({"running": lambda e: 30.0}, {"running": lambda e: 5.0}),
    ),
}


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_claim_about_the_spectral_norm_is_judged_as_its_trainings_are(name):
    claim, true, false, between = SPECTRAL[name]
    assert claim.judge({"sgd": true}).verdict == "supported"
    assert claim.judge({"sgd": false}).verdict == "contradicted"
    assert claim.judge({"sgd": between}).verdict == "not resolved"
    assert claim.judge({"sgd": true[:1]}).verdict == "not resolved"  # one seed has no interval
    nothing = Run(synthetic.settings("nothing"), [StepRecord(0, epoch=1)])
    assert claim.judge({"sgd": [nothing]}).verdict == "not testable at this scale"


def test_a_number_known_on_paper():
    found = spectral_claims.falling_norm("sgd", 100, "").judge({"sgd": [training(**LATE_RISE)] * 2})
    # Geometric means: 5 early; (5·5·5·8·8)^(1/5) = 6.034 in the second half.
    assert found.finding.startswith("Ratio 0.829 (0.829 to 0.829, 95 %, 2 seeds)")


def test_the_magnitude_of_a_negative_eigenvalue_counts():
    claim = spectral_claims.falling_norm("sgd", 100, "")
    negative = three(norm=lambda e: -20.0 / e**0.5)
    assert claim.judge({"sgd": negative}) == claim.judge({"sgd": three(**FALLING)})


def test_values_that_have_not_converged_are_left_out_and_counted():
    runs = three(norm=lambda e: NAN if e in (5, 60) else 20.0 / e**0.5)
    found = spectral_claims.falling_norm("sgd", 100, "").judge({"sgd": runs})
    assert found.verdict == "supported"
    assert "6 measurement(s) had not converged and are left out" in found.finding
    found = spectral_claims.larger_with_running_statistics("sgd", "").judge({"sgd": runs})
    assert "of 21 points. 6 measurement(s) had not converged" in found.finding
    lost = [*runs[:2], training(norm=lambda e: NAN if e > 50 else 10.0)]
    found = spectral_claims.falling_norm("sgd", 100, "").judge({"sgd": lost})
    assert found.verdict == "not resolved"
    assert "Undefined in 1 of 3 trainings" in found.finding


def test_the_table_and_the_chart_leave_gaps_where_nothing_converged():
    runs = [training(norm=lambda e: NAN if e == 30 else 10.0)]
    table = spectral_tables.curves(runs)
    assert table["epoch"].tolist() == list(EPOCHS)
    assert table["train"].isna().tolist() == [epoch == 30 for epoch in EPOCHS]
    assert table["ratio"].dropna().tolist() == pytest.approx([3.0] * 8)
    chart = spectral_charts.spectral_curves(runs, "a network")
    assert "1 that had not converged are left out" in chart.caption
    assert "epoch 30: not converged, 30 with running statistics" in chart.alternative
    line = chart.figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [epoch for epoch in EPOCHS if epoch != 30]


def test_other_ways_stand_in_a_table_of_their_own():
    measures = {"spectral_norm": 4.0, "spectral_norm_num_products": 9.0, "spectral_norm_whole": 2.0}
    measures["spectral_norm_authors"] = 5.0
    records = [
        StepRecord(0, epoch=1, measures=measures),
        StepRecord(1, epoch=2, measures=dict(list(measures.items())[:2])),
    ]
    run = Run(synthetic.settings("ways", config={"seed": 3}), records)
    (row,) = spectral_tables.ways([run]).itertuples()
    assert (row.seed, row.epoch, row.whole_by_part, row.authors_by_part) == (3, 1, 0.5, 1.25)


def decomposed(residual=lambda k: 1.0, moment=lambda k: 1.0, overlap=0.8, identity=1e-15, loss=0.01, accuracy=1.0):
    """A run with Equation 3 at five of its updates; ‖H‖ is 1."""
    records = []
    for k in range(10):
        measures = {}
        if k % 2 == 0:
            measures = {
                "equation3_identity": identity,
                "equation3_identity_running": 1e-16,
                "equation3_hessian": 1.0,
                "equation3_second_moment": moment(k),
                "equation3_residual": residual(k),
                "equation3_overlap": overlap,
                "equation3_chance": 0.01,
                "equation3_loss": 2.0 - k / 10 if k < 8 else loss,
                "equation3_accuracy": accuracy,
            }
        records.append(StepRecord(k, epoch=1, measures=measures))
    return Run(synthetic.settings("decomposed", config={"seed": 0}), records)


def seeds(**options):
    return [decomposed(**options) for _ in range(3)]


EQUATION = {
    "identity": (
        decomposition_claims.identity("sgd", ""),
        seeds(),
        [*seeds()[:2], decomposed(identity=1e-3)],
        seeds(identity=1e-9),
    ),
    "almost equal": (
        decomposition_claims.almost_equal("sgd", ""),
        seeds(residual=lambda k: 1 - 0.12 * k),  # 0.04 at the last
        seeds(residual=lambda k: 0.9),
        [*seeds(residual=lambda k: 0.01)[:2], decomposed(residual=lambda k: 0.9)],
    ),
    "vanishing": (
        decomposition_claims.vanishing_residual("sgd", ""),
        seeds(residual=lambda k: 10.0**-k),
        seeds(residual=lambda k: 1.0 + k),
        [*seeds(residual=lambda k: 10.0**-k)[:2], decomposed()],
    ),
    "aligned": (
        decomposition_claims.aligned("sgd", ""),
        seeds(overlap=0.9),
        seeds(overlap=0.2),
        [decomposed(overlap=0.9), decomposed(overlap=0.1), decomposed(overlap=0.6)],
    ),
}


@pytest.mark.parametrize("name", EQUATION)
def test_a_claim_about_equation_3_is_judged_as_its_trainings_are(name):
    claim, true, false, between = EQUATION[name]
    assert claim.judge({"sgd": true}).verdict == "supported"
    assert claim.judge({"sgd": false}).verdict == "contradicted"
    assert claim.judge({"sgd": between}).verdict == "not resolved"
    nothing = Run(synthetic.settings("nothing"), [StepRecord(0, epoch=1)])
    assert claim.judge({"sgd": [nothing]}).verdict == "not testable at this scale"


def test_an_undefined_identity_is_not_passed_over():
    found = decomposition_claims.identity("sgd", "").judge({"sgd": seeds(identity=NAN)})
    assert found.verdict == "not resolved"
    assert "at 15 of 30 points" in found.finding


@pytest.mark.parametrize("end", [{"loss": 0.2}, {"accuracy": 0.99}], ids=str)
def test_without_a_minimum_nothing_is_said_of_one(end):
    found = decomposition_claims.almost_equal("sgd", "").judge({"sgd": seeds(residual=lambda k: 0.01, **end)})
    assert found.verdict == "not testable at this scale"
    some = [*seeds(residual=lambda k: 0.01)[:2], decomposed(residual=lambda k: 0.01, **end)]
    assert decomposition_claims.almost_equal("sgd", "").judge({"sgd": some}).verdict == "not resolved"
    falling = seeds(residual=lambda k: 10.0**-k)[:2]
    for last in (decomposed(residual=lambda k: 10.0**-k, **end), decomposed(residual=lambda k: 9.0, **end)):
        found = decomposition_claims.vanishing_residual("sgd", "").judge({"sgd": [*falling, last]})
        assert found.verdict == "not resolved"  # one is not near a minimum, whatever its residual
        assert "Undefined in 1 of 3 trainings" in found.finding


def test_a_loss_that_leaps_up_at_the_end_leaves_the_minimum_where_it_was():
    def leaping(k):
        return 0.04 if k == 6 else 0.9

    runs = seeds(residual=leaping, loss=1.9)
    tables = [spectral_tables.decompositions(run) for run in runs]
    assert [decomposition_claims._nearest(table)["residual"] for table in tables] == [0.04] * 3


def test_the_table_of_equation_3_and_its_picture():
    run = decomposed(residual=lambda k: 0.5, moment=lambda k: 0.25)
    table = spectral_tables.equation_3([run])
    assert table["update"].tolist() == [0, 2, 4, 6, 8]
    assert table["residual_share"].tolist() == [0.5] * 5
    assert table["second_moment_share"].tolist() == [0.25] * 5
    chart = spectral_charts.equation_3([run])
    assert "update 8: loss 0.01, ‖C‖/‖H‖ 0.25, ‖R‖/‖H‖ 0.5, overlap 0.80" in chart.alternative


def test_a_mean_above_a_threshold():
    # Mean 2, standard deviation 1, n = 3: 2 ± 4.3027 / √3.
    found = above([1.0, 2.0, 3.0], -0.5, "number")
    assert (found.verdict, found.finding) == ("supported", "Number 2 (-0.484 to 4.48, 95 %, 3 seeds).")
    assert above([1.0, 2.0, 3.0], 4.5, "number").verdict == "contradicted"
    assert above([1.0, 2.0, 3.0], 4.4, "number").verdict == "not resolved"
    assert above([], 0.0, "number").verdict == "not testable at this scale"


NAMES = {claim.name for claim, *_ in (*SPECTRAL.values(), *EQUATION.values())}
"""Claims that are tested here."""
