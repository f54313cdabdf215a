"""Learning rate schedules of section 5, one step an update: cyclical and stepwise are torch's, trapezoid and a held
height are here."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, StepLR

from sgdwalk.paper.config import ANNEALED, STAGES, Experiment

GAIN = 0.25
"""Exponent of target height / measured height in the factor of the learning rate. On a quadratic the height grows with
the square of the rate, so ½ would correct a steady height at once; the heights of single mini-batches scatter by some
factor of two, and ¼ averages over a few of them."""
LARGEST_FACTOR = 2.0
"""No measurement changes the learning rate by more, up or down."""


def scheduler_for(experiment: Experiment, optimizer: Optimizer) -> LRScheduler | None:
    """The schedule of a training, whose ``step()`` follows every ``optimizer.step()``; None where the rate is constant.

    Args:
        experiment: the settings.
        optimizer: at the learning rate of the settings; the scheduler sets that of its first update.
    """
    num_updates, peak = experiment.num_updates, experiment.peak_rate
    if experiment.schedule == "cyclical":
        assert peak is not None
        half = num_updates / (2 * experiment.cycles)
        return CyclicLR(optimizer, experiment.learning_rate, peak, step_size_up=half, cycle_momentum=False)  # pyright: ignore[reportArgumentType]
    if experiment.schedule == "trapezoid":
        assert peak is not None
        rise = num_updates / (2 * experiment.cycles)
        ratio = peak / experiment.learning_rate
        return LambdaLR(optimizer, lambda step: trapezoid(step, num_updates, rise, ratio))
    if experiment.schedule == "stepwise":
        return StepLR(optimizer, math.ceil(num_updates / STAGES), experiment.decay)
    if experiment.schedule == "hold":
        assert peak is not None
        assert experiment.target_height is not None
        return HoldHeight(optimizer, experiment.target_height, peak, num_updates)
    return None


def trapezoid(step: int, num_updates: int, rise: float, ratio: float) -> float:
    """The factor of the first learning rate at an update: up to ``ratio`` in a line, flat, and back to 1 in a line.

    Args:
        step: the update, from 0.
        num_updates: at which the factor is 1 again.
        rise: updates that it rises for.
        ratio: highest factor.

    >>> [trapezoid(step, 16, 4, 3.0) for step in (0, 2, 4, 8, 12, 16)]
    [1.0, 2.0, 3.0, 3.0, 2.0, 1.0]

    Source: "A Walk with SGD", section 5: "we increase the learning rate as in the first cycle of CLR, then keep it
    flat, then linearly anneal it".
    """
    height = min(step / rise, 1.0, (num_updates - step) / (ANNEALED * num_updates))
    return 1.0 + (ratio - 1.0) * height


class HoldHeight(LRScheduler):
    """Holds the height above the valley floor at a target, then anneals the learning rate in a line to the first one;
    a rate that lies below the first one stays.

    After an update whose height h was measured, η becomes η · (target / h) ** ``GAIN``, changed by ``LARGEST_FACTOR``
    at most and never above ``peak``. A height of zero asks for the largest factor; without a height, or with one that
    is undefined, the rate stays. In the last part of the training (``ANNEALED``) heights are not looked at.

    Args:
        optimizer: at the first learning rate.
        target: height to hold, nats per example.
        peak: highest learning rate.
        num_updates: of the whole training; after them the rate is the first one, or below it.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> schedule = HoldHeight(optimizer, target=0.16, peak=1.0, num_updates=100)
    >>> optimizer.step(), schedule.step(height=0.01)  # too low: 16 ** ¼ = 2 times the rate
    (None, None)
    >>> optimizer.param_groups[0]["lr"]
    0.2

    Source: "A Walk with SGD", section 5: "it should be advantageous for SGD to maintain a large height from the floor
    of the valley", which "suggests that we should increase the learning rate as training progresses (of course
    eventually it needs to be annealed for convergence to a minimum)". The rule itself is ours.
    """

    def __init__(self, optimizer: Optimizer, target: float, peak: float, num_updates: int):
        self.target = target
        self.peak = peak
        self.num_updates = num_updates
        self.factor = 1.0
        super().__init__(optimizer)

    def step(self, epoch: int | None = None, *, height: float = math.nan) -> None:
        """Go on to the next update.

        Args:
            epoch: torch's, not used.
            height: of the segment of the update just performed, nats per example; NaN where it is not known.
        """
        annealing_from = (1 - ANNEALED) * self.num_updates
        if math.isfinite(height) and self.last_epoch + 1 <= annealing_from:
            wanted = (self.target / height) ** GAIN if height > 0 else LARGEST_FACTOR
            highest = self.peak / self.base_lrs[0]
            self.factor = min(self.factor * min(max(wanted, 1 / LARGEST_FACTOR), LARGEST_FACTOR), highest)
        super().step()

    def get_lr(self) -> list[float | object]:  # pyright: ignore[reportIncompatibleMethodOverride]
        left = max(self.num_updates - self.last_epoch, 0)
        held = min(1.0, left / (ANNEALED * self.num_updates))
        last = min(self.factor, 1.0)
        return [rate * (last + (self.factor - last) * held) for rate in self.base_lrs]
