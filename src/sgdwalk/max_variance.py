"""The largest coordinate of the mini-batch noise, from which the paper takes the strength of isotropic noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sgdwalk.distributions import expected_largest_variance
from sgdwalk.errors import InputError
from sgdwalk.noise import gradient_noise
from sgdwalk.objective import Forward, LossFunction


@dataclass(frozen=True, slots=True)
class MaxGradientVariance:
    """The largest coordinate of diag S_B, and what it is worth.

    Attributes:
        value: the largest of d sample variances, times B.
        coordinate: which one, in the order of the model's parameters.
        num_coordinates: d.
        batch_size: B, examples a mini-batch.
        num_batches: K, mini-batches.
        num_left_out: examples that no mini-batch holds, because B does not divide N.
        divisor: ``K-1`` (unbiased for each coordinate) or ``K``.
        bias: the expectation of ``value`` over the true variance where that is the same for all d coordinates and
            their noise is independent and normal. Where one true variance stands out, the bias is smaller.
    """

    value: float
    coordinate: int
    num_coordinates: int
    batch_size: int
    num_batches: int
    num_left_out: int
    divisor: Literal["K-1", "K"]
    bias: float


def max_gradient_variance(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    batch_size: int | None,
    seed: int = 0,
    divisor: Literal["K-1", "K"] = "K-1",
    batchnorm: Literal["train", "eval"] = "train",
    parameters: Sequence[str] | None = None,
    forward: Forward | None = None,
) -> MaxGradientVariance:
    """The largest coordinate of the diagonal of S_B = B · Cov(mini-batch gradient), over K mini-batches.

    The maximum over d coordinates of variances of K samples lies above the largest true variance, the more so the
    larger d and the smaller K: with equal true variances by a factor of 6.2 for d = 9.8 million and K = 9 (5.5 with
    divisor K), and of 1.4 for K = 450. ``bias`` is that factor for this d and K. A small batch size, with more
    mini-batches, makes it small; without BatchNorm S_B has the same expectation for every B.

    The paper takes the variance of isotropic noise as a share of this number at initialization. Its authors' setting
    is ``batch_size=5000, divisor="K"`` on 45,000 examples: K = 9.

    Args:
        model: the model; it is copied and stays as it is.
        loss_fn: ``loss_fn(output, target)`` returning a batch mean, per-example losses, or a pair (sum, count).
        data: a pair of tensors, a map-style data set, a DataLoader or a list of batches.
        batch_size: B, examples a mini-batch; None for data that come in batches.
        seed: of the permutation that is cut into mini-batches.
        divisor: of the sum of squares in each coordinate's variance, ``K-1`` or the authors' ``K``.
        batchnorm: ``train`` (each mini-batch's own statistics) or ``eval`` (running ones).
        parameters: names of parameters or layers to restrict θ to.
        forward: ``forward(model, batch) -> (output, target)`` for batches that are no (input, target) pairs.

    Raises:
        InputError: as :func:`sgdwalk.gradient_noise`; for another divisor.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    >>> result = sgdwalk.max_gradient_variance(
    ...     model, torch.nn.MSELoss(), (inputs, torch.zeros(4, 1)), batch_size=1, divisor="K"
    ... )
    >>> result.num_batches, result.num_coordinates, round(result.bias, 2)
    (4, 2, 1.07)

    Source: the paper, section 4.
    """
    if divisor not in ("K-1", "K"):
        raise InputError(f"divisor={divisor!r} does not exist; there is 'K-1' and 'K'.")
    noise = gradient_noise(
        model,
        loss_fn,
        data,
        batch_size=batch_size,
        seed=seed,
        batchnorm=batchnorm,
        parameters=parameters,
        forward=forward,
    )
    k = noise.num_batches
    share = 1.0 if divisor == "K-1" else (k - 1) / k
    largest, coordinate = torch.max(noise.diagonal(), dim=0)
    return MaxGradientVariance(
        value=share * float(largest),
        coordinate=int(coordinate),
        num_coordinates=noise.size,
        batch_size=noise.batch_size,
        num_batches=k,
        num_left_out=noise.num_left_out,
        divisor=divisor,
        bias=share * expected_largest_variance(noise.size, k - 1),
    )
