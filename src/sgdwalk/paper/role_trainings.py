"""The trainings that tell what learning rate and batch size do: Figures 4 and 22 to 24, and the study ``roles``.

Batch sizes are multiples of the architecture's usual one, the paper's 100. Every training makes at least as many
updates as the usual batch size makes in ``EPOCHS``, and at least so many epochs, so that walks can be compared at a
fixed number of updates and at a fixed number of epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sgdwalk.paper.config import Experiment
from sgdwalk.paper.trainings import Architecture, Scale, base, seeds

USUAL_RATE = 0.1
RATES: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.05, 0.1),
    "small": (0.05, 0.1, 0.2),
    "paper": (0.05, 0.1, 0.2),
}
"""Learning rates of Figures 4 and 22 to 24, at the usual batch size."""
MULTIPLES: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.5, 1),
    "small": (0.5, 1, 5, 10),
    "paper": (0.5, 1, 5, 10),
}
"""Batch sizes of these figures, at learning rate 0.1: the paper's are 50, 100, 500 and 1,000."""
GRID_RATES: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.05, 0.1),
    "small": (0.01, 0.05, 0.1, 0.5),
    "paper": (0.01, 0.05, 0.1, 0.5),
}
GRID_MULTIPLES: Mapping[Scale, tuple[float, ...]] = {"smoke": (0.5, 1), "small": (0.5, 1, 5), "paper": (0.5, 1, 5)}
"""The grid of ``roles``: every learning rate with every batch size."""
NETWORKS: tuple[Architecture, ...] = ("mlp", "vgg11")
"""The networks of ``roles``."""
EPOCHS: Mapping[Scale, int] = {"smoke": 4, "small": 4, "paper": 10}
"""Epochs at the usual batch size, after which walks are compared. Even: half as large batches do as many updates in
half of them, and the updates whose segments are measured stand at the beginning of an epoch."""
WATCHED = 2
"""Updates whose segments are measured where walks are compared; more seeds and settings tell more than more of them."""
CURVATURE_EXAMPLES = 5
"""The spectral norm is measured over this many usual batches: one of the largest in the grid."""


@dataclass(frozen=True, order=True)
class Setting:
    """A network, a learning rate, a batch size: one cell of the grid."""

    architecture: Architecture
    learning_rate: float
    batch_size: int

    @property
    def role(self) -> str:
        """The name that its trainings have in a figure.

        >>> Setting("mlp", 0.1, 100).role
        'mlp η=0.1 B=100'
        """
        return f"{self.architecture} η={self.learning_rate:g} B={self.batch_size}"


@dataclass(frozen=True)
class Compared:
    """Where walks of an architecture are compared."""

    updates: int
    """So many updates."""
    epochs: int
    """And so many epochs: at the usual batch size the same."""


def compared(architecture: Architecture, scale: Scale) -> Compared:
    """At how many updates and epochs walks are compared.

    >>> compared("vgg11", "small")
    Compared(updates=160, epochs=4)
    """
    return Compared(EPOCHS[scale] * base(architecture, scale).steps_per_epoch, EPOCHS[scale])


def batch_settings(architecture: Architecture, scale: Scale) -> tuple[Setting, ...]:
    """Several batch sizes at the usual learning rate."""
    usual = base(architecture, scale).batch_size
    return tuple(Setting(architecture, USUAL_RATE, int(each * usual)) for each in MULTIPLES[scale])


def rate_settings(architecture: Architecture, scale: Scale) -> tuple[Setting, ...]:
    """Several learning rates at the usual batch size."""
    return tuple(Setting(architecture, rate, base(architecture, scale).batch_size) for rate in RATES[scale])


def grid(architecture: Architecture, scale: Scale) -> tuple[Setting, ...]:
    """Every learning rate of ``roles`` with every batch size."""
    usual = base(architecture, scale).batch_size
    return tuple(
        Setting(architecture, rate, int(each * usual)) for rate in GRID_RATES[scale] for each in GRID_MULTIPLES[scale]
    )


def sweep(setting: Setting, scale: Scale) -> tuple[Experiment, ...]:
    """The trainings of a setting, one a seed; in the grid of ``roles`` a few of their updates are watched."""
    usual = base(setting.architecture, scale)
    plain = replace(usual, learning_rate=setting.learning_rate, batch_size=setting.batch_size, watch=False)
    where = compared(setting.architecture, scale)
    after_updates, after_epochs = where.updates, where.epochs * plain.steps_per_epoch
    if (setting.architecture in NETWORKS or scale == "smoke") and setting in grid(setting.architecture, scale):
        plain = replace(
            plain,
            steps=max(after_updates, after_epochs) + WATCHED,
            epochs=max(after_updates, after_epochs) // plain.steps_per_epoch + 1,
            watch=True,
            watch_epochs=tuple(sorted({step // plain.steps_per_epoch + 1 for step in (after_updates, after_epochs)})),
            watch_first=WATCHED,
            curvature_examples=CURVATURE_EXAMPLES * usual.batch_size,
        )
    else:
        plain = replace(
            plain,
            steps=max(after_updates, after_epochs),
            epochs=-(-max(after_updates, after_epochs) // plain.steps_per_epoch),
        )
    return tuple(replace(plain, seed=seed) for seed in seeds(scale))
