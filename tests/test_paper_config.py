"""Settings of an experiment: what they mean, what is refused, and the hash by which trainings are shared."""

from dataclasses import fields, replace

import pytest

import sgdwalk
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.cost import passes


def watched(experiment):
    return [step for step in range(experiment.num_updates) if experiment.watched(step)]


def test_an_epoch_of_sgd_is_the_mini_batches_that_fit():
    experiment = Experiment(num_train=1000, batch_size=300, epochs=4)
    assert experiment.steps_per_epoch == 3
    assert experiment.num_updates == 12


def test_an_epoch_of_gd_is_one_update():
    experiment = Experiment(algorithm="gd", epochs=40)
    assert (experiment.steps_per_epoch, experiment.num_updates) == (1, 40)


def test_steps_cut_the_training_short_and_never_lengthen_it():
    assert Experiment(epochs=2, steps=7).num_updates == 7
    assert Experiment(epochs=2, steps=1000).num_updates == 30


def test_the_papers_epoch_has_450_updates():
    assert Experiment(dataset="mnist", batch_size=100).steps_per_epoch == 450


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, list(range(45))),
        ({"watch": False}, []),
        ({"watch_every": 20}, [0, 20, 40]),
        ({"watch_first": 2}, [0, 1, 15, 16, 30, 31]),
        ({"watch_first": 2, "watch_epochs": (1, 3)}, [0, 1, 30, 31]),
        ({"watch_epochs": (2,)}, list(range(15, 30))),
        ({"watch_epochs": (2,), "watch_every": 10}, [20]),
    ],
    ids=str,
)
def test_watched_updates_of_sgd(changes, steps):
    assert watched(Experiment(epochs=3, **changes)) == steps


def test_watched_updates_of_gd_are_counted_over_the_whole_run():
    assert watched(Experiment(algorithm="gd", epochs=10, watch_first=3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "imagenet"}, "dataset must be one of digits, mnist, cifar10, tiny-imagenet; got 'imagenet'"),
        ({"algorithm": "adam"}, "algorithm must be one of gd, sgd; got 'adam'"),
        ({"gd_gradient": "median"}, "gd_gradient must be one of mean, sum"),
        ({"num_train": 1501}, "num_train must be an integer of at least 2 and at most 1,500; got 1501"),
        ({"batch_size": 1}, "batch_size must be an integer of at least 2"),
        ({"batch_size": 1501}, "at most 1,500; got 1501"),
        ({"num_train": 50}, "batch_size must be an integer of at least 2 and at most 50; got 100"),
        ({"epochs": 0}, "epochs must be an integer of at least 1; got 0"),
        ({"steps": 0}, "steps must be"),
        ({"seed": -1}, "seed must be"),
        ({"hidden": (10, 0)}, "hidden: a width must be an integer of at least 1; got 0"),
        ({"num_points": 1}, "num_points must be an integer of at least 2; got 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0 and finite; got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be at least 0 and finite; got inf"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1; got 1.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"watch_every": 0}, "watch_every must be"),
        ({"watch_epochs": (11,)}, "watch_epochs: an epoch must be an integer of at least 1 and at most 10; got 11"),
        ({"algorithm": "gd", "watch_epochs": (1,)}, "use watch_first or watch_every"),
        ({"watch_epochs": (3,), "steps": 20}, "none of the 20 updates is watched"),
        ({"network": "vgg16"}, "network must be one of mlp, vgg11, resnet; got 'vgg16'"),
        ({"network": "vgg11"}, "network=vgg11 is for cifar10 and tiny-imagenet; digits takes network=mlp"),
        ({"augment": True}, "augment is for cifar10 and tiny-imagenet, not for digits"),
        ({"image_divisor": 3}, "image_divisor=3 does not divide the 8 pixels"),
        ({"dataset": "cifar10", "network": "vgg11", "image_divisor": 2}, "vgg11 takes images of 32 or 64 pixels"),
        ({"width_divisor": 17}, "width_divisor must be an integer of at least 1 and at most 16; got 17"),
        ({"blocks": 0}, "blocks must be"),
        ({"num_validation": 0}, "num_validation must be"),
        ({"compare": ("theirs",)}, "compare: a comparison must be one of authors, eval, subset, fine"),
        ({"compare_epochs": (11,)}, "compare_epochs: an epoch must be an integer of at least 1 and at most 10"),
        ({"compare_first": 0}, "compare_first must be"),
        ({"curvature_first": 0}, "curvature_first must be"),
        ({"validate_every": 0}, "validate_every must be"),
        ({"noise_factor": -0.1}, "noise_factor must be at least 0"),
        ({"noise_reading": "deviation"}, "noise_reading must be one of variance, std; got 'deviation'"),
        ({"noise_factor": 0.1, "num_train": 17, "batch_size": 2}, "take at least 18"),
        ({"after": Experiment(seed=1, hidden=(3,))}, "another hidden, another seed: only one of the same network"),
        (
            {"spectral_epochs": (11,)},
            "spectral_epochs: an epoch must be an integer of at least 1 and at most 10; got 11",
        ),
        ({"method": "sampled"}, "method must be one of exact, certified; got 'sampled'"),
        ({"tolerance": 0.01}, "tolerance=0.01 is for method=certified"),
        ({"certify": "curve"}, "certify='curve' is for method=certified"),
        ({"barriers": "exact"}, "barriers='exact' is for method=certified"),
        ({"tolerance": 1.0}, "tolerance must be a share of the height between 0 and 1; got 1.0"),
        ({"barriers": "guessed"}, "barriers must be one of estimated, exact; got 'guessed'"),
        ({"certify": "floor"}, "certify must be one of height, curve; got 'floor'"),
        ({"spectral_examples": 1}, "spectral_examples must be an integer of at least 2 and at most 1,500; got 1"),
        ({"spectral_compare_epochs": (0,)}, "spectral_compare_epochs: an epoch must be an integer of at least 1"),
        (
            {"decomposition_steps": (150,)},
            "decomposition_steps: a step must be an integer of at least 0 and at most 149",
        ),
        ({"spectral_epochs": (1,), "curvature_every": 5}, "fill the same column, spectral_norm: choose one"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(sgdwalk.InputError) as caught:
        Experiment(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("changes", [{"num_threads": 0}, {"checkpoint_every": 0}], ids=str)
def test_executions_that_cannot_be_meant_are_refused(changes):
    with pytest.raises(sgdwalk.InputError, match="at least 1; got 0"):
        Execution(**changes)


def test_settings_survive_json():
    experiment = Experiment(hidden=(5, 3), watch_epochs=(1, 2), num_train=400)
    assert Experiment.from_dict(experiment.to_dict()) == experiment


OTHERS = {
    "dataset": "mnist",
    "num_train": 1400,
    "hidden": (500,),
    "dropout": 0.1,
    "algorithm": "gd",
    "gd_gradient": "sum",
    "learning_rate": 0.2,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 50,
    "epochs": 11,
    "steps": 20,
    "seed": 1,
    "watch": False,
    "watch_every": 2,
    "watch_first": 3,
    "watch_epochs": (1,),
    "num_points": 20,
    "method": "certified",
    "tolerance": 0.1,
    "barriers": "exact",
    "certify": "curve",
    "curvature_every": 5,
    "num_validation": 100,
    "image_divisor": 2,
    "network": "resnet",
    "blocks": 2,
    "width_divisor": 2,
    "augment": True,
    "curvature_first": 10,
    "curvature_examples": 300,
    "spectral_epochs": (1, 2),
    "spectral_examples": 50,
    "spectral_compare_epochs": (2,),
    "decomposition_steps": (0, 5),
    "compare": ("authors",),
    "compare_epochs": (1,),
    "compare_first": 5,
    "validate_every": 3,
    "noise_factor": 0.1,
    "noise_reading": "std",
    "after": Experiment(seed=0),
    "schedule": "stepwise",
    "cycles": 2,
    "decay": 0.5,
    "peak_rate": 2.0,
    "target_height": 0.2,
}


def test_every_setting_counts_in_the_hash_and_is_named_where_it_differs():
    experiment = Experiment()
    assert set(OTHERS) == {field.name for field in fields(Experiment)}
    hashes = {experiment.settings_hash}
    for name, value in OTHERS.items():
        if name in ("network", "augment"):  # these are for photographs
            experiment = replace(experiment, dataset="cifar10", num_train=1400)
        experiment = replace(
            experiment, method="certified" if name in ("tolerance", "barriers", "certify") else "exact"
        )
        if name == "after":
            value = replace(experiment, epochs=2)
        if name == "peak_rate":  # it and a height are for schedules that need them
            experiment = replace(experiment, schedule="hold", peak_rate=1.0, target_height=0.1)
        other = replace(experiment, **{name: value})
        hashes.add(other.settings_hash)
        (difference,) = other.differences(experiment.to_dict())
        assert difference.startswith(f"{name}: ")
    assert len(hashes) == len(OTHERS) + 1


def test_comparisons_are_of_the_first_watched_updates_of_their_epochs():
    experiment = Experiment(
        epochs=4, watch_epochs=(1, 3, 4), compare=("authors", "fine"), compare_epochs=(1, 3), compare_first=6
    )
    compared = {step: experiment.compared(step) for step in range(60) if experiment.compared(step)}
    assert list(compared) == [*range(6), *range(30, 36)]
    assert {step for step, names in compared.items() if "fine" in names} == {0, 5, 30, 35}
    assert all("authors" in names for names in compared.values())
    gd = Experiment(algorithm="gd", epochs=40, compare=("eval",), compare_first=3)
    assert [step for step in range(40) if gd.compared(step)] == [0, 1, 2]


def test_curvature_can_be_left_to_the_first_updates():
    when = Experiment(curvature_every=4, curvature_first=10).curvature_when()
    assert [step for step in range(30) if when(step)] == [0, 4, 8]
    assert Experiment().curvature_when() is None


def test_the_spectral_norm_over_a_part_is_measured_where_watching_begins():
    experiment = Experiment(epochs=4, watch_epochs=(2, 4), watch_first=2, curvature_examples=300)
    when = experiment.part_curvature_when()
    assert [step for step in range(60) if when(step)] == [15, 45]
    assert passes(experiment, 15) - passes(experiment, 16) == pytest.approx(120 * 300 / 1500)
    assert Experiment(watch_epochs=(2,)).part_curvature_when() is None
    assert Experiment(curvature_examples=300).part_curvature_when() is None


def test_the_spectral_norm_is_measured_before_the_last_update_of_its_epochs():
    experiment = Experiment(epochs=4, watch=False, spectral_epochs=(1, 3), spectral_compare_epochs=(3, 4))
    assert [step for step in range(60) if experiment.spectral(step)] == [14, 44]
    assert [step for step in range(60) if experiment.spectral_compared(step)] == [44]
    assert [step for step in range(60) if passes(experiment, step) > 1] == [14, 44]
    part = replace(experiment, spectral_examples=750)
    assert passes(part, 14) < passes(experiment, 14) < passes(experiment, 44)


def test_equation_3_is_written_out_where_it_is_asked_for():
    experiment = Experiment(decomposition_steps=(0, 7))
    assert [step for step in range(experiment.num_updates) if experiment.decomposed(step)] == [0, 7]


def test_the_hash_is_the_same_in_every_process_and_version():
    # Finished trainings on disk are found by it: a change of this value orphans them, and must be meant.
    assert Experiment(learning_rate=0.2).settings_hash == "0721694f4c"
    assert Experiment().differences(Experiment().to_dict()) == []


def test_a_setting_at_its_default_leaves_the_hash_as_it_is():
    # So that a setting that is new, and off by default, finds the trainings that were made without it.
    assert Experiment(momentum=0.0, learning_rate=0.2).settings_hash == Experiment(learning_rate=0.2).settings_hash
    assert Experiment(momentum=0.9).settings_hash != Experiment().settings_hash
    older = {name: value for name, value in Experiment().to_dict().items() if name != "momentum"}
    assert Experiment().differences(older) == []
    assert Experiment(momentum=0.9).differences(older) == ["momentum: 0.0 in the run, 0.9 now"]
    assert Experiment().differences({"forgotten": 1}) == ["forgotten: 1 in the run, None now"]


def test_a_training_goes_on_from_another():
    first = Experiment(algorithm="gd", noise_factor=0.1, watch_first=3, hidden=(5, 3))
    second = replace(first, noise_factor=0.0, after=first)
    third = replace(first, algorithm="sgd", after=second)
    assert third.lineage == (first, second, third)
    assert Experiment.from_dict(third.to_dict()) == third
    assert len({each.settings_hash for each in (*third.lineage, replace(third, after=first))}) == 4


def test_a_setting_that_is_new_leaves_the_hash_of_what_goes_on_from_another_as_it_is():
    first = Experiment(learning_rate=0.2)
    after = replace(first, after=first)
    assert after.settings_hash == "6405a98f8f"
    stored = after.to_dict()
    del stored["after"]["momentum"], stored["momentum"]  # as a version without it would have written
    assert after.differences(stored) == []
    (difference,) = replace(first, after=replace(first, momentum=0.9)).differences(stored)
    assert difference.startswith("after: ")
