"""The same segment measured in other ways: as the authors' code does, with running statistics, on a finer grid.

A measure for ``sgdwalk.watch``: its columns stand beside the clean ones of the same update, so that whatever differs
between them is the protocol's doing. Losses are stored, nothing is derived from them here.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sgdwalk.paper.config import Experiment
from sgdwalk.paper.data import Split
from sgdwalk.paper.seeds import seed_for

FINE_POINTS = 100
"""Intervals of the fine grid."""
REPEATS = 4
"""Further evaluations of L(θ_t) by the authors' protocol: with the segment's own, five of the same quantity."""

Batches = Iterable[tuple[Tensor, Tensor]]


class Compare:
    """Columns ``compare_PROTOCOL_K``: the loss at α = K / intervals, nats per example.

    ``authors``: at every point a fresh random partition of the training examples, freshly augmented where the training
    is; ``authors_repeat_K`` are further evaluations at θ_t. ``eval``: BatchNorm's running statistics, as they are after
    the update. ``quarter``, ``sixteenth``: the clean protocol over the first batches of the fixed partition only.
    ``fine``: the clean protocol at 100 intervals.
    """

    def __init__(self, experiment: Experiment, model: nn.Module, training: Split):
        self._experiment = experiment
        self._model = model
        self._training = training
        self._copy: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, here: Any) -> dict[str, float]:
        start, end = here.parameters, torch.cat([parameter.reshape(-1) for parameter in here.walked()])
        if self._copy is None:
            self._copy = copy.deepcopy(self._model)
        batches = here.full_loss().data
        found: dict[str, float] = {}

        def along(name: str, batches: Callable[[int], Batches], intervals: int, *, batchnorm: bool = True) -> None:
            for k in range(intervals + 1):
                point = torch.lerp(start, end, k / intervals)
                found[f"{name}_{k}"] = self._loss(point, batches(k), batchnorm=batchnorm)

        coarse = self._experiment.num_points
        compared = self._experiment.compared(here.step)
        if "authors" in compared:
            along("authors", lambda k: self._fresh(here.step, k), coarse)
            for k in range(REPEATS):
                found[f"authors_repeat_{k}"] = self._loss(start, self._fresh(here.step, coarse + 1 + k))
        if "eval" in compared:
            along("eval", lambda k: batches, coarse, batchnorm=False)
        if "subset" in compared:
            for name, part in (("quarter", 4), ("sixteenth", 16)):
                along(name, lambda k, part=part: itertools.islice(batches, max(1, len(batches) // part)), coarse)
        if "fine" in compared:
            along("fine", lambda k: batches, FINE_POINTS)
        return found

    def _loss(self, point: Tensor, batches: Batches, *, batchnorm: bool = True) -> float:
        """The mean loss at a point; ``batchnorm`` takes each batch's own statistics."""
        assert self._copy is not None
        # All buffers as they are after the update: evaluating with batch statistics moves the running ones.
        self._copy.load_state_dict(self._model.state_dict())
        own = list(self._copy.parameters())
        for parameter, values in zip(own, point.split([parameter.numel() for parameter in own]), strict=True):
            parameter.copy_(values.view(parameter.shape))
        self._copy.eval()
        for module in self._copy.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(batchnorm)
        total = torch.zeros((), dtype=torch.float64)
        count = 0
        for inputs, targets in batches:
            total += cross_entropy(self._copy(inputs), targets, reduction="sum").double().cpu()
            count += len(targets)
        return total.item() / count

    def _fresh(self, step: int, draw: int) -> Batches:
        """The training examples in a new random partition, augmented where the training is."""
        experiment = self._experiment
        generator = torch.Generator().manual_seed(seed_for(experiment.seed, f"authors' evaluation {draw}", step))
        order = torch.randperm(experiment.num_examples, generator=generator)
        for rows in order.split(experiment.batch_size):
            yield self._training.batch(rows, generator if experiment.augment else None)
