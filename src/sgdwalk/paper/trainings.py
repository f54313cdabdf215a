"""Every training of the reproduction, by architecture and scale: ids that need the same one share it by its settings.

A scale says how much of the published setting is left; what each cuts, and why, stands in ``CUTS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

from sgdwalk.paper.config import Experiment

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Architecture = Literal["mlp", "vgg11", "resnet56", "vgg11-tiny"]
ARCHITECTURES: Mapping[Architecture, str] = {
    "mlp": "MLP on MNIST",
    "vgg11": "VGG-11 on CIFAR-10",
    "resnet56": "ResNet-56 on CIFAR-10",
    "vgg11-tiny": "VGG-11 on Tiny-ImageNet",
}

AUTHORS_SEED = 1111
"""The seed in the authors' public code."""
AUTHORS_WEIGHT_DECAY = 1e-4
"""The L2 coefficient there; the paper does not mention it."""
NUM_SEEDS: Mapping[Scale, int] = {"smoke": 1, "small": 3, "paper": 3}
"""Trainings of each kind: they tell how much a number varies from seed to seed."""
NUM_UNWATCHED_SEEDS: Mapping[Scale, int] = {"smoke": 1, "small": 5, "paper": 3}
"""Of trainings compared by cosines, distances or accuracies, and not watched but to steer a learning rate: they cost
little, and five seeds tell differences half as large as three do."""
UNWATCHED_EPOCHS = 2
"""So long go SGD's trainings with the further seeds at most, in the setting of Figures 1 to 21."""
GD_UPDATES = 40
"""The paper shows the first 40 updates of gradient descent."""
TABLE_EPOCHS: Mapping[Architecture, tuple[int, ...]] = {
    "mlp": (1, 10, 25),
    "vgg11": (1, 10, 25, 100),
    "resnet56": (1, 10, 25, 100),
    "vgg11-tiny": (1,),
}
"""The epochs of Tables 1 and 2; Figures 14 to 16 and 11 to 13 show the starts of epochs 2, 25 and 100."""
WHOLE_NETWORK_SGD_IMAGES = 4_000
"""Enough for 40 fresh mini-batches of 100."""
WHOLE_NETWORK_GD_IMAGES: Mapping[Literal["mean", "sum"], tuple[int, ...]] = {"mean": (200, 400), "sum": (200,)}
"""What gradient descent on two cores can pass over 40 times; two numbers show whither more examples would lead."""
CURVATURE_EVERY: Mapping[Scale, int] = {"smoke": 20, "small": 4, "paper": 4}
"""Along the walks of Figures 1 and 2 the spectral norm is measured at every so many updates."""
OTHERS_WATCH_EVERY = 5
"""The trainings with other seeds are watched at every fifth update of those epochs."""
VALIDATE_EVERY = 10
"""Epochs between two validations where no statement is about them: of gradient descent, where there would be one for
each update, and of those trainings with other seeds."""

CUTS: Mapping[Scale, Mapping[Architecture, str]] = {
    "smoke": dict.fromkeys(
        ARCHITECTURES,
        "Only to see that everything runs: an MLP of 50 and 35 hidden units on 450 of scikit-learn's 8×8 digits "
        "stands in for every network. Nothing here says anything about the paper.",
    ),
    "small": {
        "mlp": "Real MNIST and the paper's network, learning rate and batch size, but the first 6,000 of the 45,000 "
        "training images, because a watched update costs ten passes over them. An epoch has 60 updates instead of 450.",
        "vgg11": "Real CIFAR-10 and all layers of VGG-11, each with an eighth of its channels; the first 1,200 of the "
        "45,000 training images in mini-batches of 30 instead of 100, so that an epoch has 40 updates instead of 450, "
        "and 100 epochs as many as the paper's first 9; the first 1,000 validation images. Learning rate, "
        "augmentation and the number of epochs are the paper's. "
        "Distances, norms and counts of barriers in an epoch of 450 updates cannot be compared with the paper's. For "
        "the distances of Figures 1 and 2 the whole network walks 40 updates besides, not watched: SGD through the "
        "first 4,000 images in mini-batches of 100, GD over the first 200 and, on the mean gradient, the first 400.",
        "resnet56": "Real CIFAR-10, shrunk to 16×16 pixels, and a pre-activation ResNet of the same kind, but two "
        "blocks a stage instead of nine (ResNet-14) and half the channels; the first 1,200 of the 45,000 training "
        "images in mini-batches of 30 instead of 100, so that an epoch has 40 updates instead of 450, and 100 epochs "
        "as many as the paper's first 9; the first 1,000 validation images. Learning rates, augmentation and the "
        "number of epochs are the paper's. Distances, norms and counts of barriers in an epoch of 450 updates cannot "
        "be compared with the paper's.",
        "vgg11-tiny": "Twenty classes of Tiny-ImageNet, shrunk to 32×32 pixels, and all layers of VGG-11, each with an "
        "eighth of its channels; 1,000 training images in mini-batches of 25 instead of 100. Distances cannot be "
        "compared with the paper's.",
    },
    "paper": {
        "mlp": "The published setting: 45,000 training images and the whole network.",
        "vgg11": "The published setting: 45,000 training images and the whole network.",
        "resnet56": "The published setting: 45,000 training images and the whole network.",
        "vgg11-tiny": "The whole network, and 10,000 images of 20 classes: which subset the paper took is not said.",
    },
}
"""What each scale leaves out, and why."""


def base(architecture: Architecture, scale: Scale) -> Experiment:
    """The paper's setting for an architecture, cut to a scale.

    >>> base("vgg11", "paper").steps_per_epoch
    450
    """
    if scale == "smoke":
        return Experiment(
            num_train=450, hidden=(50, 35), batch_size=30, weight_decay=AUTHORS_WEIGHT_DECAY, seed=AUTHORS_SEED
        )
    full = Experiment(dataset="mnist", weight_decay=AUTHORS_WEIGHT_DECAY, seed=AUTHORS_SEED)
    small = scale == "small"
    if architecture == "mlp":
        return replace(full, num_train=6_000) if small else full
    if architecture == "vgg11-tiny":
        full = replace(full, dataset="tiny-imagenet", network="vgg11", augment=True)
        return replace(full, width_divisor=8, image_divisor=2, num_train=1_000, batch_size=25) if small else full
    full = replace(full, dataset="cifar10", network="vgg11" if architecture == "vgg11" else "resnet", augment=True)
    if not small:
        return full
    cut = replace(full, num_train=1_200, num_validation=1_000, batch_size=30)
    if architecture == "vgg11":
        return replace(cut, width_divisor=8)
    return replace(cut, blocks=2, width_divisor=2, image_divisor=2)


def seeds(scale: Scale, numbers: Mapping[Scale, int] = NUM_SEEDS) -> tuple[int, ...]:
    """Of the trainings of each kind, the authors' first."""
    return tuple(AUTHORS_SEED + number for number in range(numbers[scale]))


def our_epoch(epoch: int, scale: Scale) -> int:
    """Which of our epochs stands for one of the paper's: the same, but for ``smoke``, where a few stand for all."""
    return {1: 1, 2: 2, 10: 2, 20: 2, 25: 3, 30: 3, 40: 3, 100: 3}[epoch] if scale == "smoke" else epoch


def gd(architecture: Architecture, scale: Scale, gradient: Literal["mean", "sum"]) -> tuple[Experiment, ...]:
    """The first 40 updates of gradient descent: a watched training, and others with other seeds that are not.

    Args:
        architecture: the network and its data.
        scale: how much of the published setting.
        gradient: how the paper's "full batch gradient" is read.
    """
    plain = replace(base(architecture, scale), algorithm="gd", augment=False, validate_every=VALIDATE_EVERY)
    watched = replace(plain, gd_gradient=gradient, epochs=GD_UPDATES)
    others = tuple(replace(watched, seed=seed, watch=False) for seed in seeds(scale, NUM_UNWATCHED_SEEDS)[1:])
    if architecture == "vgg11":
        watched = replace(watched, curvature_every=CURVATURE_EVERY[scale])
    return (watched, *others)


def sgd(architecture: Architecture, scale: Scale, learning_rate: float = 0.1) -> tuple[Experiment, ...]:
    """SGD through all epochs that figures and tables show: one watched throughout them, others now and then.

    Args:
        architecture: the network and its data.
        scale: how much of the published setting.
        learning_rate: at another than the first of an architecture (Table 2) only the tables' epochs are watched.
    """
    tables = TABLE_EPOCHS[architecture]
    epochs = tuple(sorted({our_epoch(epoch, scale) for epoch in tables}))
    plain = replace(base(architecture, scale), learning_rate=learning_rate, epochs=epochs[-1])
    if architecture == "vgg11-tiny":
        plain = replace(plain, epochs=3 if scale == "smoke" else 1)  # 40 updates at least
        watched = replace(plain, watch_first=GD_UPDATES)
    elif learning_rate != 0.1:
        watched = replace(plain, watch_epochs=epochs)
    else:
        watched = _watched_throughout(architecture, scale, plain, epochs)
    other = replace(plain, watch_epochs=epochs, watch_every=OTHERS_WATCH_EVERY, validate_every=VALIDATE_EVERY)
    return (watched, *(replace(other, seed=seed) for seed in seeds(scale)[1:]))


def unwatched_sgd(architecture: Architecture, scale: Scale, epoch: int) -> tuple[Experiment, ...]:
    """The starts of such trainings with further seeds, for cosines and distances of an early epoch; else none."""
    (watched, *_) = sgd(architecture, scale)
    epochs = min(UNWATCHED_EPOCHS, watched.epochs)
    if epoch > epochs:
        return ()
    plain = replace(base(architecture, scale), learning_rate=watched.learning_rate, epochs=epochs, watch=False)
    return tuple(replace(plain, seed=seed) for seed in seeds(scale, NUM_UNWATCHED_SEEDS)[NUM_SEEDS[scale] :])


def whole_network_sgd(scale: Scale) -> tuple[Experiment, ...]:
    """VGG-11 at its full width where a scale cuts it, for 40 updates that are not watched: how far does it come?"""
    if scale != "small":
        return ()
    plain = replace(base("vgg11", "paper"), num_validation=100, watch=False)
    walk = replace(plain, num_train=WHOLE_NETWORK_SGD_IMAGES, steps=GD_UPDATES, epochs=1)
    return tuple(replace(walk, seed=seed) for seed in seeds(scale))


def whole_network_gd(scale: Scale) -> Mapping[tuple[Literal["mean", "sum"], int], Experiment]:
    """The same by gradient descent, for each reading of its gradient and each number of images."""
    if scale != "small":
        return {}
    plain = replace(base("vgg11", "paper"), algorithm="gd", augment=False, watch=False)
    plain = replace(plain, num_validation=100, validate_every=VALIDATE_EVERY)
    return {
        (gradient, images): replace(plain, gd_gradient=gradient, num_train=images, epochs=GD_UPDATES)
        for gradient, numbers in WHOLE_NETWORK_GD_IMAGES.items()
        for images in numbers
    }


def _watched_throughout(
    architecture: Architecture, scale: Scale, plain: Experiment, epochs: tuple[int, ...]
) -> Experiment:
    """Every update of the epochs that are shown; some of them measured in other ways, too."""
    shown = {*epochs, our_epoch(2, scale)}
    if architecture == "vgg11":  # Figure 8 counts barriers over 40 epochs
        shown |= set(range(1, 41)) if scale == "paper" else {our_epoch(epoch, scale) for epoch in (20, 30, 40)}
    watched = replace(plain, watch_epochs=tuple(sorted(shown)))
    late = tuple(epoch for epoch in epochs if epoch != our_epoch(10, scale) or architecture == "mlp")
    compare = ("authors",) if architecture == "resnet56" else ("authors", "eval", "subset", "fine")
    watched = replace(watched, compare=compare, compare_epochs=late, compare_first=2 if scale == "smoke" else 15)
    return (
        replace(watched, curvature_every=CURVATURE_EVERY[scale], curvature_first=GD_UPDATES)
        if architecture == "vgg11"
        else watched
    )
