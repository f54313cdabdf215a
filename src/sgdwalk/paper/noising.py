"""Isotropic noise in place of mini-batches' (paper, section 4): how strong, measured at the initial weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sgdwalk
from sgdwalk.paper.config import AUTHORS_GD_BATCHES, Experiment
from sgdwalk.paper.data import Split
from sgdwalk.paper.seeds import seed_for

FINER_BATCHES = 30
"""Mini-batches at least, where the largest variance is to be less biased."""


class Noise(Protocol):
    """What adds the noise, as far as a training must know it."""

    sigma: float

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> None: ...


def measure(experiment: Experiment, model: nn.Module, training: Split) -> dict[str, Any] | None:
    """The largest gradient variance at the initial weights, in two settings; None where no noise is asked for.

    ``authors``: between nine mini-batches that hold all examples, divisor K, as the authors' code has it. The paper's
    strength of noise is a share of this one. ``less_biased``: between mini-batches of the training's size, or smaller
    ones where there were fewer than thirty, divisor K - 1: a maximum over many variances of nine samples each is
    several times too large.

    Args:
        experiment: asks for the noise.
        model: at its initial weights.
        training: the examples.
    """
    if not experiment.noise_factor:
        return None
    data = (training.inputs, training.targets)
    ninth = experiment.num_examples // AUTHORS_GD_BATCHES
    authors = sgdwalk.max_gradient_variance(model, cross_entropy, data, batch_size=ninth, divisor="K")
    measured: dict[str, Any] = {"authors": asdict(authors)}
    smaller = min(experiment.batch_size, experiment.num_examples // FINER_BATCHES)
    if smaller > 1:
        finer = sgdwalk.max_gradient_variance(model, cross_entropy, data, batch_size=smaller)
        measured["less_biased"] = asdict(finer)
    return measured


def added(optimizer: torch.optim.Optimizer, experiment: Experiment, measured: dict[str, Any] | None) -> Noise | None:
    """Add noise to an optimizer's gradients from here on; no noise where nothing was measured."""
    if measured is None:
        return None
    return sgdwalk.isotropic_noise(
        optimizer,
        measured["authors"]["value"],
        factor=experiment.noise_factor,
        noise=experiment.noise_reading,
        seed=seed_for(experiment.seed, "isotropic noise", len(experiment.lineage)),
    )


def describe(noise: Noise | None, measured: dict[str, Any] | None) -> dict[str, Any]:
    """What a run's record says of the noise; nothing where there is none."""
    return {} if noise is None else {"isotropic_noise": {**(measured or {}), "sigma": noise.sigma}}
