"""Trainings along which curvature is measured: Figures 3 and 7, and Equation 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sgdwalk.paper.config import Experiment
from sgdwalk.paper.trainings import Architecture, Scale, base, our_epoch, seeds

LAST_EPOCH = 100
"""The paper trains for 100 epochs."""
SPECTRAL_EPOCHS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (1, 2, 3),
    "small": (1, 10, 25, 50, 75, 85, 95, 100),
    "paper": (1, 2, 3, *range(5, 101, 5)),
}
"""Epochs at whose ends the spectral norm is measured."""
COMPARED_EPOCHS: Mapping[Scale, tuple[int, ...]] = {"smoke": (3,), "small": (100,), "paper": (1, 10, 25, 50, 100)}
"""Epochs in which the first seed's is also measured over all images and as the authors' code does."""
SPECTRAL_EXAMPLES: Mapping[Scale, int | None] = {"smoke": 240, "small": 390, "paper": None}
"""Training images that the spectral norm is taken over; the authors took 25,000 of their 45,000."""
DECOMPOSITION_STEPS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (0, 49),
    "small": (0, 30, 100, 300, 1_000, 4_499),
    "paper": (0, 30, 100, 300, 1_000, 4_499),
}
"""Updates before which Equation 3 is written out, the last one with the training images learnt by heart."""
DECOMPOSITION_RATE = 0.05
"""At 0.1, which is the paper's for other networks, the loss of this one leaps up again after thousands of updates."""

SPECTRAL_CUT = (
    "The spectral norm is taken over the first 390 of the 1,200 training images (a third; the authors took 25,000 of "
    "45,000), in three seeds, at the ends of eight epochs; after the last over all 1,200 as well. That it falls or "
    "rises over training, and by how much running statistics change it, can be judged on a fixed part; what happens "
    "“towards the end” of 45,000 updates cannot be told from 4,000."
)
"""What Figures 3 and 7 leave out at ``small`` besides the networks' cuts."""
DECOMPOSITION_CUT = (
    "The paper shows no experiment for Equation 3. Ours is one in which all three matrices can be written out in "
    "float64: real MNIST, its first 300 images shrunk to 7×7 pixels, and an MLP of two hidden layers of 10 units with "
    "BatchNorm (760 parameters), trained by SGD in mini-batches of 100 at learning rate 0.05 without weight decay, "
    "until every training image is told rightly. Whether the terms are almost equal near minima of larger networks is "
    "not said by it."
)
"""What Equation 3 is tested on at every scale but ``smoke``."""


def spectral(architecture: Architecture, scale: Scale, learning_rate: float) -> tuple[Experiment, ...]:
    """SGD through 100 epochs without watched segments, the spectral norm at the ends of some of them; one a seed."""
    first = replace(
        base(architecture, scale),
        learning_rate=learning_rate,
        epochs=our_epoch(LAST_EPOCH, scale),
        watch=False,
        spectral_epochs=SPECTRAL_EPOCHS[scale],
        spectral_examples=SPECTRAL_EXAMPLES[scale],
    )
    compared = replace(first, spectral_compare_epochs=COMPARED_EPOCHS[scale])
    return (compared, *(replace(first, seed=seed) for seed in seeds(scale)[1:]))


def decomposition(scale: Scale) -> tuple[Experiment, ...]:
    """SGD on a network that is small enough to write its Hessian out, down to interpolation; one a seed."""
    if scale == "smoke":
        tiny = replace(base("mlp", scale), num_train=60, hidden=(4, 4), weight_decay=0.0, epochs=25, watch=False)
        return (replace(tiny, decomposition_steps=DECOMPOSITION_STEPS[scale]),)
    small = Experiment(
        dataset="mnist",
        image_divisor=4,
        num_train=300,
        num_validation=1_000,
        hidden=(10, 10),
        learning_rate=DECOMPOSITION_RATE,
        epochs=1_500,
        validate_every=100,
        watch=False,
        decomposition_steps=DECOMPOSITION_STEPS[scale],
    )
    return tuple(replace(small, seed=seed) for seed in seeds(scale))
