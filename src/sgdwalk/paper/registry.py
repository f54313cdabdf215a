"""What can be reproduced: for each id and scale the trainings it needs, what it shows of them, and its claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import sgdwalk
from sgdwalk.paper import claims
from sgdwalk.paper.claims import Claim
from sgdwalk.paper.config import Experiment

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
FigureId = Literal["fig17", "fig18", "fig19"]

AUTHORS_SEED = 1111
"""The seed in the authors' public code."""
AUTHORS_WEIGHT_DECAY = 1e-4
"""The L2 coefficient there; the paper does not mention it."""

CUTS: Mapping[Scale, str] = {
    "smoke": "Only to see that everything runs: scikit-learn's 8×8 digits, hidden layers of 50 and 35 units, one seed. "
    "Nothing here says anything about the paper.",
    "small": "Real MNIST and the paper's network, learning rate and batch size, but the first 15,000 of the 45,000 "
    "training images, because a watched update costs ten passes over them. An epoch has 150 updates instead of 450.",
    "paper": "The published setting: 45,000 training images and the whole network.",
}
"""What each scale leaves out, and why."""

READINGS = {"gd": "mean gradient", "gd-sum": "sum of nine mean gradients"}
"""Role of a training by GD -> what the paper's "full batch gradient" is read as."""

DEVIATIONS = (
    "The full loss is measured on one fixed partition of the training images into batches of 100, at every point of "
    "every segment. The authors' code draws a fresh partition for each point, and so adds noise to the curve.",
    "BatchNorm uses the statistics of each evaluation batch, as the paper's footnote 5 has it; its running statistics "
    "play no part. The authors' code interpolates those as well, without effect on the loss.",
    "Walks start at θ_0, before the first update; the authors' curves start at θ_1.",
    "GD follows the mean gradient over all training images with the fixed learning rate 0.1. The authors' public code "
    "adds up the mean gradients of nine mini-batches of 5,000, which makes that 0.9; both readings are shown.",
    "The cosine is that of the loss gradients. The authors' code took it after weight decay (1e-4 θ) had been added.",
)
"""How our setting differs from the paper's at every scale."""


@dataclass(frozen=True)
class Panel:
    """One walk that a figure shows: the first 40 updates of an epoch of the first seed."""

    role: str
    epoch: int | None
    """None: the first updates of the run, as for GD, where an epoch is one update."""
    label: str


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, at one scale."""

    id: FigureId
    scale: Scale
    title: str
    published: str
    """What the paper shows, in its words."""
    panels: tuple[Panel, ...]
    """The first is the figure itself; others stand beside it for comparison."""
    trainings: Mapping[str, tuple[Experiment, ...]]
    """By role, one a seed; the first of each role is watched where a panel shows it."""
    claims: tuple[tuple[str, Claim], ...]
    """Each with the reading it is judged on, or an empty text."""

    @property
    def experiments(self) -> list[Experiment]:
        """Every training once."""
        return list(dict.fromkeys(experiment for each in self.trainings.values() for experiment in each))


TITLES: Mapping[FigureId, str] = {
    "fig17": "Figure 17: MLP on MNIST, first 40 updates of full-batch GD",
    "fig18": "Figure 18: MLP on MNIST, first 40 updates of SGD's epoch 1",
    "fig19": "Figure 19: MLP on MNIST, first 40 updates of SGD's epoch 2",
}


def figure(id: FigureId, scale: Scale) -> Figure:
    """What a figure needs and claims at a scale.

    >>> fig18, fig19 = figure("fig18", "small"), figure("fig19", "small")
    >>> fig18.trainings["sgd"] == fig19.trainings["sgd"]  # one training serves both
    True
    """
    if id not in TITLES:
        raise sgdwalk.InputError(f"{id!r} cannot be reproduced yet; what can be: {', '.join(TITLES)}.")
    if scale not in SCALES:
        raise sgdwalk.InputError(f"{scale!r} is no scale; choose one of {', '.join(SCALES)}.")
    gd, gd_sum, sgd = _gd(scale), _gd_sum(scale), _sgd(scale)
    if id == "fig17":
        return Figure(
            id,
            scale,
            TITLES[id],
            "Plots for MLP Epoch 1 trained using full batch Gradient Descent (GD) on MNIST.",
            tuple(Panel(role, None, f"GD, {reading}") for role, reading in READINGS.items()),
            {"gd": gd[:1], "gd-sum": gd_sum[:1]},
            tuple(
                (reading, claim(role))
                for claim in (claims.valley, claims.negative_cosine, claims.opposite_gradients, claims.falling_floor)
                for role, reading in READINGS.items()
            ),
        )
    epoch = 1 if id == "fig18" else 2
    against_gd = [lambda role: claims.less_negative_cosine(epoch, role)]
    if epoch == 1:
        against_gd.append(claims.farther_than_gd)
    return Figure(
        id,
        scale,
        TITLES[id],
        f"Plots for MLP Epoch {epoch} trained using SGD on MNIST.",
        (Panel("sgd", epoch, f"SGD, epoch {epoch}"),),
        {"sgd": sgd, "gd": gd, "gd-sum": gd_sum},
        (
            ("", claims.rough_floor(epoch)),
            ("", claims.few_barriers(epoch)),
            *((f"GD: {reading}", claim(role)) for claim in against_gd for role, reading in READINGS.items()),
        ),
    )


def _base(scale: Scale) -> Experiment:
    """The paper's MLP, cut to a scale."""
    full = Experiment(
        dataset="mnist",
        batch_size=100,
        learning_rate=0.1,
        weight_decay=AUTHORS_WEIGHT_DECAY,
        seed=AUTHORS_SEED,
    )
    if scale == "smoke":
        return replace(full, dataset="digits", hidden=(50, 35), batch_size=30)
    return full if scale == "paper" else replace(full, num_train=15_000)


def _seeds(experiment: Experiment, scale: Scale) -> tuple[Experiment, ...]:
    """The watched training, and the unwatched ones that tell how its distance and cosine vary."""
    others = () if scale == "smoke" else (AUTHORS_SEED + 1, AUTHORS_SEED + 2)
    return (experiment, *(replace(experiment, seed=seed, watch=False) for seed in others))


def _gd(scale: Scale) -> tuple[Experiment, ...]:
    return _seeds(replace(_base(scale), algorithm="gd", epochs=claims.FIRST_UPDATES), scale)


def _gd_sum(scale: Scale) -> tuple[Experiment, ...]:
    return tuple(replace(experiment, gd_gradient="sum") for experiment in _gd(scale))


def _sgd(scale: Scale) -> tuple[Experiment, ...]:
    return _seeds(
        replace(_base(scale), algorithm="sgd", epochs=2, watch_first=claims.FIRST_UPDATES, watch_epochs=(1, 2)), scale
    )
