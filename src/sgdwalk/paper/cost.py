"""What a training costs, counted in forward passes over its examples: a backward pass counts as two of them."""

from __future__ import annotations

import math

from sgdwalk.paper.config import Experiment

CERTIFIED_BATCHES = 90.0
"""Evaluation batches that a certified segment takes beside one pass over its end, as seen on the paper's MLP; where its
samples do not do, the exact evaluation comes on top."""
COMPARISON_PASSES = {"authors": 15.0, "eval": 11.0, "subset": 3.4, "fine": 101.0}
"""The ways to measure a segment beside the clean one, and what each costs at a step, in forward passes."""
CURVATURE_PASSES = 100
"""What the measures of curvature cost at a step, in forward passes; as seen on a narrow VGG-11."""
PART_CURVATURE_PASSES = 120
"""What the spectral norm over a part costs, in forward passes over that part; as seen there: some eleven Hessian-vector
products."""
SPECTRAL_PASSES = {"train": 85, "eval": 60, "authors": 280, "whole": 95}
"""What a spectral norm costs where few are measured, in forward passes over the examples that it takes: some seven
Hessian-vector products, the authors' fifteen with graphs that are made anew for each."""
DECOMPOSITION_PASSES = 4_000
"""What H, C and R written out cost, in forward passes; as seen with 760 parameters."""


def passes(experiment: Experiment, step: int) -> float:
    """What an update costs, in forward passes over the training examples.

    >>> passes(Experiment(algorithm="gd", num_points=10, num_validation=150), 0)
    13.1
    """
    share = 1.0 if experiment.algorithm == "gd" else experiment.batch_size / experiment.num_examples
    training = 3 * share + (experiment.validation_size / experiment.num_examples if experiment.validated(step) else 0)
    return training + (_segment(experiment) if experiment.watched(step) else 0) + _beside_segment(experiment, step)


def only_segment(experiment: Experiment, step: int) -> bool:
    """Whether the segment, and nothing else beside it, is measured at this update."""
    return experiment.watched(step) and not _beside_segment(experiment, step)


def work(experiment: Experiment) -> float:
    """What the whole training costs, in forward passes of one example.

    >>> work(Experiment(algorithm="gd", epochs=2, num_validation=100)) == 2 * (1_500 * 13 + 100)
    True
    """
    return experiment.num_examples * math.fsum(passes(experiment, step) for step in range(experiment.num_updates))


def time_needed(experiment: Experiment) -> float:
    """What the whole training takes, in forward passes of one example through the paper's MLP; roughly.

    >>> from dataclasses import replace
    >>> wide = Experiment(dataset="cifar10", network="vgg11")
    >>> time_needed(wide) > 20 * time_needed(replace(wide, width_divisor=8))
    True
    """
    return work(experiment) * _forward_cost(experiment)


def _forward_cost(experiment: Experiment) -> float:
    """A forward pass of an example, in those of the paper's MLP, as timed on one core."""
    if experiment.network == "mlp":
        return 1.0
    pixels = (experiment.image_size / 32) ** 2
    channels = 1 / experiment.width_divisor**2
    if experiment.network == "vgg11":
        return pixels * (5 + 200 * channels)
    return pixels * experiment.blocks * (10 + 30 * channels)


def _segment(experiment: Experiment) -> float:
    if experiment.method == "exact":
        return experiment.num_points
    return min(experiment.num_points, 1 + CERTIFIED_BATCHES * experiment.batch_size / experiment.num_examples)


def _beside_segment(experiment: Experiment, step: int) -> float:
    """What is measured at an update beside its segment."""
    when = experiment.curvature_when()
    curvature = CURVATURE_PASSES if when is not None and when(step) else 0
    part_when = experiment.part_curvature_when()
    if experiment.curvature_examples is not None and part_when is not None and part_when(step):
        curvature += PART_CURVATURE_PASSES * experiment.curvature_examples / experiment.num_examples
    curvature += _spectral_norm(experiment, step) + (DECOMPOSITION_PASSES if experiment.decomposed(step) else 0)
    return curvature + sum(COMPARISON_PASSES[each] for each in experiment.compared(step))


def _spectral_norm(experiment: Experiment, step: int) -> float:
    if not experiment.spectral(step):
        return 0.0
    ways = ("train", "eval", "authors") if experiment.spectral_compared(step) else ("train", "eval")
    part = (experiment.spectral_examples or experiment.num_examples) / experiment.num_examples
    whole = SPECTRAL_PASSES["whole"] if experiment.spectral_compared(step) else 0.0
    return part * sum(SPECTRAL_PASSES[way] for way in ways) + whole
