"""A few units of a few random steps: the mean height of an epoch for about the price of the training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sgdwalk.draws import generator
from sgdwalk.errors import InputError
from sgdwalk.measures import Here, Undefined
from sgdwalk.objective import FullLoss, as_sums
from sgdwalk.outputs import all_finite, lagrange, unmoved_kept
from sgdwalk.params import lerp_into
from sgdwalk.sampling import NUM_UNITS, sampled_segment
from sgdwalk.shared_layer import NotShared, SharedLayer, find_shared_layer

SAMPLE_ONE_IN = 7
"""A sampled walk looks at one step of so many, ..."""
DENSE = 4
"""... and at the start of training at more: at all of the first 8, then at one of 2, of 3, and so on."""
NODES = (0.0, 0.5, 1.0)
"""Where the model is evaluated; its outputs in between are a parabola through these."""
OUTPUT_BYTES = 256 * 2**20
"""Memory for the outputs of drawn batches at all nodes."""
COLUMNS = ("loss", "next_loss", "floor", "height", "interior", "alpha_star")


class SampledSegments:
    """A measure for :func:`sgdwalk.watch`: losses along the segment over a few evaluation batches drawn at random.

    Columns ``NAME_loss``, ``NAME_next_loss``, ``NAME_floor``, ``NAME_height``, ``NAME_interior`` and
    ``NAME_alpha_star`` of that step, and ``NAME_num_units``, the number of batches drawn. One step's height is noisy by
    about its own size; the mean over an epoch is what it is for: :func:`sgdwalk.analysis.sampled_epochs`. The model's
    outputs are evaluated at both ends and halfway and interpolated in between, so that a step costs three forward
    passes over the drawn batches; a model whose output is no one tensor is evaluated at every point instead.

    Args:
        num_units: evaluation batches to draw, without replacement.
        num_points: intervals of a segment.
        seed: of the draws; with the step it decides them.

    Raises:
        InputError: fewer than 2 batches, or more than the data have.

    >>> import torch, sgdwalk
    >>> _ = torch.manual_seed(0)
    >>> model, inputs, targets = torch.nn.Linear(3, 1), torch.randn(640, 3), torch.randn(640, 1)
    >>> optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=1.0), torch.nn.MSELoss()
    >>> chosen = {"sampled": sgdwalk.at(sgdwalk.one_in(5), sgdwalk.SampledSegments(4))}
    >>> with sgdwalk.watch(model, optimizer, loss_fn, (inputs, targets), when=None, measures=chosen, batch_size=20,
    ...                    steps_per_epoch=20) as walk:
    ...     for rows in torch.randperm(640).split(32):
    ...         optimizer.zero_grad()
    ...         loss_fn(model(inputs[rows]), targets[rows]).backward()
    ...         optimizer.step()
    >>> int(sgdwalk.analysis.sampled_epochs(walk.run).loc[1, "num_sampled"])
    4

    Source: the height is that of "A Walk with SGD", Table 2; the estimator is described in docs/methods.md.
    """

    def __init__(self, num_units: int = NUM_UNITS, *, num_points: int = 10, seed: int = 0):
        for name, value, least in (("num_units", num_units, 2), ("num_points", num_points, 2), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be an integer of at least {least}; got {value!r}.")
        self.num_units = num_units
        self.num_points = num_points
        self.seed = seed

    def for_walk(self, here: Here) -> SampledSegments:
        """Itself, after checking that the data have so many evaluation batches."""
        available = len(here.full_loss().data)
        if self.num_units > available:
            raise InputError(
                f"{self.num_units} evaluation batches are to be drawn, and the data have {available}: pass a smaller "
                "batch_size to watch(), or a smaller num_units to SampledSegments()."
            )
        return self

    @torch.no_grad()
    def __call__(self, here: Here) -> dict[str, float | Undefined]:
        full_loss = here.full_loss()
        draw = generator("units of a sampled segment", self.seed, here.step)
        units = torch.randperm(len(full_loss.data), generator=draw)[: self.num_units].tolist()
        start, end = full_loss.site.vector.views(here.parameters), full_loss.site.here
        try:
            losses, counts = unit_losses(full_loss, start, end, units, self.num_points)
        finally:
            full_loss.site.write(start)
        num_units = {"num_units": float(len(units))}
        if not all(math.isfinite(loss) for row in losses for loss in row):
            return num_units | dict.fromkeys(COLUMNS, Undefined("a loss along the segment is not finite"))
        found = sampled_segment(losses, counts, len(full_loss.data))
        return num_units | {
            name: Undefined("the losses are no parabola with a minimum") if math.isnan(value) else value
            for name, value in zip(COLUMNS, map(float, found), strict=True)
        }


def unit_losses(
    full_loss: FullLoss, start: Sequence[Tensor], end: Sequence[Tensor], units: Sequence[int], num_points: int
) -> tuple[list[list[float]], list[float]]:
    """Mean loss of some evaluation batches at every point of a segment, and what each counts.

    Returns:
        Losses, one list of ``num_points + 1`` for each unit, and the counts.
    """
    try:
        return _unit_losses(full_loss, start, end, units, num_points, find_shared_layer(full_loss))
    except NotShared:
        return _unit_losses(full_loss, start, end, units, num_points, None)


def _unit_losses(
    full_loss: FullLoss,
    start: Sequence[Tensor],
    end: Sequence[Tensor],
    units: Sequence[int],
    num_points: int,
    shared: SharedLayer | None,
) -> tuple[list[list[float]], list[float]]:
    alphas = [k / num_points for k in range(num_points + 1)]
    weights = lagrange([node * num_points for node in NODES], num_points).tolist()
    losses: list[list[float]] = []
    counts: list[float] = []
    with contextlib.nullcontext() if shared is None else shared.installed(start, end):
        at_a_time = 1  # until the size of an output is known
        remaining = list(units)
        while remaining:
            group, remaining = remaining[:at_a_time], remaining[at_a_time:]
            outputs = []
            for alpha in NODES:
                lerp_into(full_loss.site.targets, start, end, alpha)
                outputs.append([_output(full_loss, unit, alpha, shared) for unit in group])
            sample = outputs[0][0][0]
            if not isinstance(sample, Tensor) or not sample.is_floating_point():
                return _evaluated(full_loss, start, end, units, alphas)
            at_a_time = max(1, OUTPUT_BYTES // (len(NODES) * sample.numel() * sample.element_size()))
            if shared is not None:
                shared.forget()
            for unit, *at_nodes in zip(group, *outputs, strict=True):
                target, size = at_nodes[0][1], full_loss.data.sizes[unit]
                along = _interpolated([output for output, _ in at_nodes], weights)
                sums = as_sums([full_loss.sum_and_count(output, target, size) for output in along])
                counts.append(sums.counts[0])
                losses.append([value / counts[-1] for value in sums.sums])
    between = [loss for row in losses for loss in row[1:-1]]
    if not all(map(math.isfinite, between)) and all(
        math.isfinite(loss) for row in losses for loss in (row[0], row[-1])
    ):
        return _evaluated(full_loss, start, end, units, alphas)  # a mask that is another one at each end, say
    return losses, counts


def _output(full_loss: FullLoss, unit: int, alpha: float, shared: SharedLayer | None) -> tuple[Any, Any]:
    """Output and target of one evaluation batch at the site's point, which is that of α."""
    batch = full_loss.prepared(unit)
    if shared is not None:
        shared.at(alpha, unit, batch)
    return full_loss.forward(full_loss.site.module, batch)


def _interpolated(values: Sequence[Tensor], weights: Sequence[Sequence[float]]) -> Iterator[Tensor]:
    """The polynomial through the values at the nodes, at each point: one at a time, as outputs may be large."""
    finite = all_finite(values)
    for of_point in weights:
        total = torch.zeros_like(values[0])
        for weight, value in zip(of_point, values, strict=True):
            if weight:
                total.add_(value, alpha=weight)
        yield total if finite else unmoved_kept(total, values)


def _evaluated(
    full_loss: FullLoss, start: Sequence[Tensor], end: Sequence[Tensor], units: Sequence[int], alphas: Sequence[float]
) -> tuple[list[list[float]], list[float]]:
    """The same by evaluating every point, for models whose output is no one tensor."""
    losses: list[list[float]] = [[] for _ in units]
    counts = [1.0] * len(units)
    for alpha in alphas:
        lerp_into(full_loss.site.targets, start, end, alpha)
        for index, unit in enumerate(units):
            value, count = full_loss.batch(unit)
            counts[index] = float(count)
            losses[index].append(float(value) / counts[index])
    return losses, counts
