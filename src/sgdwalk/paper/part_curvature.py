"""The spectral norm over a part of the training examples: for many trainings at a cost that all of them can bear."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

import sgdwalk
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.data import Split

TOLERANCE = 0.05
"""‖H v - λ v‖ ≤ tolerance · |λ|: the error of λ is about its square, well below what a part instead of all costs."""


class PartSpectralNorm:
    """Columns ``part_spectral_norm``, ``_residual`` and ``_num_products``, at θ_t.

    Over the first ``curvature_examples`` training examples, in batches of the training's size, each with its own
    BatchNorm statistics.
    """

    def __init__(self, experiment: Experiment, model: nn.Module, training: Split):
        self._experiment = experiment
        self._model = model
        self._training = training

    def __call__(self, here: Any) -> dict[str, Any]:
        model = copy.deepcopy(self._model)
        with torch.no_grad():
            vector_to_parameters(here.parameters, model.parameters())
        part = slice(self._experiment.curvature_examples)
        data = (self._training.inputs[part], self._training.targets[part])
        found = sgdwalk.spectral_norm(
            model, cross_entropy, data, batch_size=self._experiment.batch_size, tolerance=TOLERANCE
        )
        value = found.value if found.converged else sgdwalk.Undefined(found.reason)
        return {"value": value, "residual": found.residual, "num_products": float(found.num_products)}
