"""L(θ_t) from the forward passes of a loop that accumulates the full gradient over ``walk.batches()``.

Such a loop computes the output of every evaluation batch at θ_t anyway, so the loss at the segment's start need not be
evaluated again. It is taken only where it cannot be another number: each batch goes once, as it is, through the
user's own module, in the precision of L, and on the first batch the loss agrees with an evaluation of it. Dropout,
autocast or BatchNorm in another mode fail that check, and L is then evaluated as always.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sgdwalk.isolation import is_measuring, isolated
from sgdwalk.objective import FullLoss, LossSums, default_forward

AGREEMENT = 2e-6
"""Relative difference of two float32 evaluations of one batch; beyond it they are of different functions."""


class Overheard:
    """One pass of the user's loop over the evaluation batches; afterwards ``sums`` is L there, or None."""

    def __init__(self, full_loss: FullLoss, model: nn.Module):
        self.sums: LossSums | None = None
        self._full_loss = full_loss
        self._model = model
        self._expected: tuple[Tensor, Tensor, list[int]] | None = None
        self._outputs: list[Any] = []
        self._listens = full_loss.site.source is model and full_loss.forward is default_forward

    def batches(self) -> Iterator[Any]:
        """The evaluation batches, while the model's outputs for them are taken note of."""
        heard: list[tuple[float, float]] = []
        with self._hook():
            for index, batch in enumerate(self._full_loss.data):
                self._await(batch)
                yield batch
                if self._listens:
                    heard += self._take(index)
        if self._listens:
            self.sums = LossSums(*map(tuple, zip(*heard, strict=True)))

    @contextlib.contextmanager
    def _hook(self) -> Iterator[None]:
        if not self._listens:
            yield
            return
        handle = self._model.register_forward_hook(self._hear)
        try:
            yield
        finally:
            handle.remove()

    def _await(self, batch: Any) -> None:
        self._outputs = []
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
        self._expected = (batch[0], batch[1], [part._version for part in batch]) if pair else None

    def _hear(self, _: nn.Module, inputs: tuple, output: Any) -> None:
        if not is_measuring():
            known = self._expected is not None and len(inputs) == 1 and inputs[0] is self._expected[0]
            self._outputs.append(output.detach() if known and isinstance(output, Tensor) else None)

    def _take(self, index: int) -> list[tuple[float, float]]:
        """Sum and count of the batch just used; gives up where they are not to be had."""
        output = self._outputs[0] if len(self._outputs) == 1 else None
        heard = None
        if self._expected is not None and output is not None and output.dtype == self._full_loss.site.vector.dtype:
            given, target, versions = self._expected
            if [given._version, target._version] == versions:
                heard = self._sum_and_count(index, output, target)
        if heard is None or (index == 0 and not self._agrees(*heard)):
            self._listens = False
            return []
        return [heard]

    def _sum_and_count(self, index: int, output: Tensor, target: Tensor) -> tuple[float, float] | None:
        try:
            with isolated(self._full_loss.site.vector.device):
                value, count = self._full_loss.sum_and_count(output, target, self._full_loss.data.sizes[index])
                return float(value), float(count)
        except Exception:  # the evaluation that takes its place will tell
            return None

    def _agrees(self, value: float, count: float) -> bool:
        with self._full_loss.evaluating():
            self._full_loss.site.write(self._full_loss.site.here)
            again = self._full_loss.sums(1).mean
        bound = AGREEMENT * abs(again) + 1e-7
        return count > 0 and math.isfinite(again) and abs(value / count - again) <= bound
