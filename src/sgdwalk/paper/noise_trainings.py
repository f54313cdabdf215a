"""The trainings of Figures 5, 25 and 26 and of footnote 6: GD, GD with isotropic noise, SGD, at equal updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from sgdwalk.paper.config import Experiment
from sgdwalk.paper.trainings import AUTHORS_SEED, NUM_UNWATCHED_SEEDS, Architecture, Scale, base, seeds

FACTORS = (0.1, 0.05)
"""Shares of the largest gradient variance (section 4)."""
Reading = Literal["variance", "std"]
READINGS: Mapping[Reading, str] = {"variance": "σ² as in the paper's words", "std": "σ as in the authors' code"}
"""What such a share is."""
UPDATES: Mapping[Scale, Mapping[Architecture, int]] = {
    "smoke": {"vgg11": 50, "resnet56": 50, "mlp": 50},
    "small": {"vgg11": 200, "resnet56": 120, "mlp": 250},
    "paper": {"vgg11": 1_500, "resnet56": 1_500, "mlp": 1_500},
}
"""Updates of every training; "close to -1 for 1500 iterations" (section 4) is the only number the paper gives."""
UPDATES_AFTER: Mapping[Scale, int] = {"smoke": 40, "small": 100, "paper": 1_500}
"""Updates of every training that goes on from a noisy one; the paper does not say."""
NUM_TRAIN: Mapping[Architecture, int] = {"vgg11": 300, "resnet56": 300, "mlp": 600}
"""At ``small``: an update by GD is a pass over all of them."""
NUM_VALIDATION: Mapping[Architecture, int] = {"vgg11": 1_000, "resnet56": 1_000, "mlp": 2_000}
VALIDATE_EVERY = 20
"""Updates between two validations, of SGD to the nearest epoch."""
LOWER_RATE = 0.01
"""Footnote 6: "reducing learning rate"; to how much is not said. A tenth."""

CUTS: Mapping[Scale, Mapping[Architecture, str]] = {
    "smoke": {},
    "small": {
        architecture: f"For this study the first {NUM_TRAIN[architecture]} training images, because an update by GD is "
        f"a pass over all of them; the first {NUM_VALIDATION[architecture]:,} validation images; "
        f"{UPDATES['small'][architecture]} updates of every training. The paper trains until the loss saturates, and "
        "shows 1,500. What the noise does in so few updates can be told; where it would end cannot. Norms and "
        "distances depend on the number of parameters and of updates, and only their ranks and ratios are compared."
        for architecture in UPDATES["small"]
    },
    "paper": dict.fromkeys(
        UPDATES["paper"], "1,500 updates of every training: until when the paper trained is not said."
    ),
}
DEVIATIONS = (
    "Nothing is augmented in this study, SGD's mini-batches neither: GD and SGD differ in the gradient's noise alone.",
    "The loss of SGD is the mean of its mini-batches' losses, before each update; that of GD is the full loss.",
    "The cosine is that of the gradients as the optimizer received them, their noise included.",
)


def noise_role(reading: Reading, factor: float) -> str:
    return f"noise-{reading}-{factor}"


NOISE_ROLES: Mapping[str, tuple[Reading, float]] = {
    noise_role(reading, factor): (reading, factor) for reading in READINGS for factor in FACTORS
}
"""Role -> reading and factor of GD with noise."""


def against_gd(architecture: Architecture, scale: Scale) -> dict[str, tuple[Experiment, ...]]:
    """By role, one a seed: GD by both readings of its gradient, GD with noise, SGD."""
    gd = _gd(architecture, scale)
    noisy = {
        role: _seeds(replace(gd, noise_factor=factor, noise_reading=reading), scale)
        for role, (reading, factor) in NOISE_ROLES.items()
        if reading in readings(scale)
    }
    if scale == "small" and architecture != "vgg11":  # the smaller noise has one training there, and no verdict
        noisy = {role: each if NOISE_ROLES[role][1] == FACTORS[0] else each[:1] for role, each in noisy.items()}
    summed = {} if scale == "smoke" else {"gd-sum": (replace(gd, gd_gradient="sum"),)}
    return {"gd": _seeds(gd, scale), **summed, **noisy, "sgd": _seeds(_sgd(gd, gd.num_updates), scale)}


def readings(scale: Scale) -> tuple[Reading, ...]:
    """Both; in ``smoke``, which must be over in seconds, one."""
    return ("variance",) if scale == "smoke" else tuple(READINGS)


def starts(scale: Scale) -> tuple[tuple[Architecture, Reading], ...]:
    """The noisy trainings that footnote 6 is asked of, all with the larger noise.

    At ``small`` the MLP in both readings, because it comes as far as the paper's network does, in multiples of its
    start's norm, and VGG-11, which the paper means, in one.
    """
    if scale == "smoke":
        return (("vgg11", "variance"),)
    if scale == "small":
        return (("vgg11", "variance"), ("mlp", "variance"), ("mlp", "std"))
    return tuple((architecture, reading) for architecture in ("vgg11", "mlp") for reading in READINGS)


def going_on(architecture: Architecture, reading: Reading, scale: Scale) -> dict[str, tuple[Experiment, ...]]:
    """By role, one a seed: a training with the larger noise, and what is tried from where it ended (footnote 6)."""
    stuck = against_gd(architecture, scale)[noise_role(reading, FACTORS[0])]
    updates = UPDATES_AFTER[scale]

    def after(change: str) -> tuple[Experiment, ...]:
        found = []
        for each in stuck:
            on = replace(each, epochs=updates, after=each)
            if change == "lower":
                on = replace(on, learning_rate=LOWER_RATE)
            else:
                on = replace(on, noise_factor=0.0, noise_reading="variance")
            found.append(_sgd(on, updates) if change == "sgd" else on)
        return tuple(found)

    changes = {change_role(change, architecture, reading): after(change) for change in ("lower", "gd", "sgd")}
    return {change_role("stuck", architecture, reading): stuck, **changes}


def change_role(change: str, architecture: Architecture, reading: Reading) -> str:
    return f"{change}-{architecture}-{reading}"


def on_top_of_sgd(scale: Scale) -> dict[str, tuple[Experiment, ...]]:
    """By role, one a seed: SGD at three batch sizes, and at the middle one with noise on top, at equal updates.

    In ``smoke`` at the middle one alone.
    """
    gd = _gd("vgg11", scale)
    middle, updates = gd.batch_size, gd.num_updates
    sizes = {"sgd": middle}
    if scale != "smoke":
        sizes = {"sgd-half": middle // 2, **sizes, "sgd-double": 2 * middle}
    plain = {
        role: _seeds(_sgd(replace(gd, batch_size=batch_size), updates), scale) for role, batch_size in sizes.items()
    }
    noisy = {
        f"sgd-noise-{reading}": _seeds(
            replace(_sgd(gd, updates), noise_factor=FACTORS[0], noise_reading=reading), scale
        )
        for reading in readings(scale)
    }
    return plain | noisy


def _gd(architecture: Architecture, scale: Scale) -> Experiment:
    plain = replace(
        base(architecture, scale), augment=False, watch=False, algorithm="gd", validate_every=VALIDATE_EVERY
    )
    if scale == "small":
        plain = replace(plain, num_train=NUM_TRAIN[architecture], num_validation=NUM_VALIDATION[architecture])
    return replace(plain, epochs=UPDATES[scale][architecture])


def _sgd(gd: Experiment, updates: int) -> Experiment:
    """Mini-batches in place of the full gradient, for as many updates."""
    an_epoch = gd.num_examples // gd.batch_size
    often = max(1, round(VALIDATE_EVERY / an_epoch))
    return replace(gd, algorithm="sgd", epochs=-(-updates // an_epoch), steps=updates, validate_every=often)


def _seeds(first: Experiment, scale: Scale) -> tuple[Experiment, ...]:
    assert first.seed == AUTHORS_SEED
    return tuple(replace(first, seed=seed) for seed in seeds(scale, NUM_UNWATCHED_SEEDS))
