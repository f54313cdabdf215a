"""Parts of the data whose loss can be evaluated alone: what a sample is drawn from.

Where the model mixes the examples of a batch (BatchNorm in train mode, say) a unit is a whole evaluation batch, else
some consecutive examples of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdwalk.data import cut_rows, leaves
from sgdwalk.objective import FullLoss
from sgdwalk.outputs import floats, joined, with_floats

MOST_UNITS = 512
"""Units into which data are cut at most: enough for a sample, few enough that each holds many examples."""
FEWEST_EXAMPLES = 10
"""Of a unit, about, and more where there are many: in one of two or three a single example may hold what differs."""


class LossAsOutput:
    """Stands in for a full loss whose outputs cannot be interpolated: a batch's sum of losses is its output."""

    def __init__(self, full_loss: FullLoss):
        self._full_loss = full_loss
        self.site, self.data = full_loss.site, full_loss.data

    def outputs(self, index: int, low: int = 0, high: int | None = None) -> tuple[Tensor, Tensor]:
        value, count = self._full_loss.batch(index)
        return torch.as_tensor(value, dtype=torch.float64), torch.as_tensor(count, dtype=torch.float64)

    def sum_and_count(self, output: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return output, target


@dataclass(frozen=True)
class Units:
    """The parts, numbered through."""

    batch: NDArray[np.intp]
    low: NDArray[np.intp]
    high: NDArray[np.intp]
    """Examples low to high of that evaluation batch."""
    whole: bool
    """Whether every unit is a whole batch, and may be nothing else."""

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def sizes(self) -> NDArray[np.intp]:
        return self.high - self.low

    def evaluate(self, source: Any, wanted: NDArray[np.intp]) -> list[tuple[Any, Any]]:
        """Output and target of each unit wanted, at the point where the source's site stands."""
        if isinstance(source, LossAsOutput):
            return [source.outputs(int(self.batch[unit])) for unit in wanted]
        batches = self.together(source, wanted)
        return [pair for batch, bounds in batches for pair in self.outputs(source, batch, bounds)]

    def together(self, source: FullLoss, wanted: NDArray[np.intp]) -> Iterator[tuple[Any, list[int]]]:
        """The units wanted as the model takes them, as many at a time as make an evaluation batch.

        Yields:
            A batch, and where in it each unit begins and the last one ends.
        """
        sizes = self.sizes
        if self.whole:
            for unit in wanted:
                yield source.prepared(int(self.batch[unit])), [0, int(sizes[unit])]
            return
        most, data = max(source.data.sizes), source.data
        position = 0
        while position < len(wanted):
            stops = sizes[wanted[position:]].cumsum()
            part = wanted[position : position + max(1, int(np.searchsorted(stops, most, side="right")))]
            rows = [data.rows(int(self.batch[u]), int(self.low[u]), int(self.high[u])) for u in part]
            # Batches that are padded to different widths do not go together.
            alike = [_shapes(each) == _shapes(rows[0]) for each in rows]
            number = alike.index(False) if False in alike else len(rows)
            yield source.as_input(joined(rows[:number], torch.cat)), [0, *stops[:number].tolist()]
            position += number

    def outputs(self, source: FullLoss, batch: Any, bounds: list[int]) -> list[tuple[Any, Any]]:
        """Output and target of each unit of such a batch, at the point where the source's site stands."""
        output, target = source.forward(source.site.module, batch)
        # Clones, since a model may hand out the same buffer every time.
        output = with_floats(output, [tensor.clone() for tensor in floats(output)])
        if self.whole:
            return [(output, target)]
        cuts = itertools.pairwise(bounds)
        return [tuple(cut_rows(tree, bounds[-1], low, high) for tree in (output, target)) for low, high in cuts]  # pyright: ignore[reportReturnType]


def _shapes(rows: Any) -> list[Any]:
    """What must be alike for rows to be joined: all but the number of examples."""
    return [(leaf.dtype, leaf.shape[1:]) for leaf in leaves(rows) if isinstance(leaf, Tensor)]


def source_of(full_loss: FullLoss) -> tuple[Any, str]:
    """Where outputs come from at the site's present point; and in words why it is the loss, where it is."""
    output, target = full_loss.outputs(0)
    tensors = floats(output)
    if not tensors or any(tensor.dim() == 0 for tensor in tensors):
        return LossAsOutput(full_loss), "the model's output is no tensor with a row for each example"
    if not any(isinstance(leaf, Tensor) for leaf in leaves(target)):
        return LossAsOutput(full_loss), "the target is no tensor"
    return full_loss, ""


def units_of(source: Any, num_examples: int | None = None) -> Units:
    """Cut the data into units, after a look at whether the model treats examples one by one.

    Args:
        source: of the outputs.
        num_examples: that would make ``MOST_UNITS`` units; all data by default.
    """
    sizes = source.data.sizes
    if isinstance(source, LossAsOutput) or source.mixes_examples or not _separable(source):
        return whole_batches(sizes)
    wanted = max(1 if num_examples else FEWEST_EXAMPLES, -(-(num_examples or sum(sizes)) // MOST_UNITS))
    batch, low, high = [], [], []
    for index, size in enumerate(sizes):
        bounds = np.linspace(0, size, max(1, round(size / wanted)) + 1).round().astype(int)
        batch += [index] * (len(bounds) - 1)
        low += bounds[:-1].tolist()
        high += bounds[1:].tolist()
    return Units(np.array(batch), np.array(low), np.array(high), whole=False)


def whole_batches(sizes: Sequence[int]) -> Units:
    """Every evaluation batch as a unit."""
    return Units(np.arange(len(sizes)), np.zeros(len(sizes), np.intp), np.array(sizes), whole=True)


def _separable(full_loss: FullLoss) -> bool:
    """Whether a part of a batch evaluated alone has the outputs that it has within the batch."""
    index = int(np.argmax(full_loss.data.sizes))
    size = full_loss.data.sizes[index]
    if size < 2:
        return False
    cut = max(1, size // 3)
    whole, target = full_loss.outputs(index)
    try:
        cut_rows(target, size, 0, cut)
        for low, high in ((0, cut), (cut, size)):
            alone, _ = full_loss.outputs(index, low, high)
            within = cut_rows(whole, size, low, high)
            for one, other in zip(floats(alone), floats(within), strict=True):
                if one.shape != other.shape:
                    return False
                # Masked logits are infinite in both, and no number in their difference.
                away = float(torch.where(one == other, 0.0, one - other).abs().max())
                scale = float(torch.where(other.isfinite(), other, 0.0).abs().max())
                if not away <= 1e-4 * scale + 1e-6:
                    return False
    except Exception:  # it cannot be cut, or fails on a part: batches stay whole
        return False
    return True
