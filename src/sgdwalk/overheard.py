"""L(θ_t), and the outputs there, from the forward passes of a loop that runs over ``walk.batches()``.

A loop that accumulates the full gradient computes the output of every evaluation batch at θ_t anyway, so nothing need
be evaluated there again. It is taken only where it cannot be another number: each batch goes once, as it is, through
the user's own module, in the precision of L, no random stream of torch moves while it does, none of Python or NumPy in
the whole pass, and on the first batch it agrees with an evaluation. Dropout, autocast or BatchNorm in another mode fail
that check, and L is then evaluated as always; so it is where anything here fails.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sgdwalk.isolation import host_streams, is_measuring, isolated, torch_streams
from sgdwalk.objective import FullLoss, LossSums, as_sums, default_forward

AGREEMENT = 2e-6
"""Relative difference of two float32 evaluations of one batch; beyond it they are of different functions."""
OUTPUT_AGREEMENT = 3e-5
"""The same for outputs, relative to the largest of the batch; products in TF32 differ by ten times that."""


@dataclass(frozen=True)
class Heard:
    """What one pass of the user's loop over the evaluation batches said of the point where it stood."""

    sums: LossSums
    """L there."""
    outputs: list[Tensor] = field(default_factory=list)
    """Of every batch, as copies; none where they are not kept."""
    targets: list[Tensor] = field(default_factory=list)
    """Of every batch, as the loss takes them; with the outputs."""


class Overheard:
    """One pass of the user's loop over the evaluation batches; afterwards ``heard`` is what it said, or None.

    Args:
        full_loss: L.
        model: the user's own module.
        most_bytes: outputs of all batches are kept up to this size together; else only their losses are.
    """

    def __init__(self, full_loss: FullLoss, model: nn.Module, most_bytes: int = 0):
        self.heard: Heard | None = None
        self._full_loss = full_loss
        self._model = model
        self._most_bytes = most_bytes
        self._expected: tuple[Tensor, Tensor, list[int]] | None = None
        self._outputs: list[Any] = []
        self._streams: list[Tensor] = []
        self._kept: list[tuple[Tensor, Tensor]] = []
        # A module that was compiled in place would be compiled again for every hook that comes or goes.
        compiled = getattr(model, "_compiled_call_impl", None) is not None
        self._listens = full_loss.site.source is model and full_loss.forward is default_forward and not compiled

    def batches(self) -> Iterator[Any]:
        """The evaluation batches, while the model's outputs for them are taken note of."""
        pairs: list[tuple[float, float]] = []
        streams = self._host_streams()
        with self._hook():
            for index, batch in enumerate(self._full_loss.data):
                self._await(batch)
                yield batch
                if self._listens:
                    pairs += self._take(index)
        if self._listens and self._host_streams() == streams:
            self.heard = self._from_outputs() if self._kept else Heard(LossSums(*map(tuple, zip(*pairs, strict=True))))

    def _host_streams(self) -> tuple[Any, ...] | None:
        """Read once a pass, not at every batch: it takes several times as long as with torch's."""
        try:
            return host_streams() if self._listens else None
        except Exception:  # the evaluation that takes its place will tell
            self._listens = False
            return None

    @contextlib.contextmanager
    def _hook(self) -> Iterator[None]:
        if not self._listens:
            yield
            return
        handles = self._model.register_forward_pre_hook(self._enter), self._model.register_forward_hook(self._hear)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _await(self, batch: Any) -> None:
        self._outputs = []
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
        self._expected = (batch[0], batch[1], [part._version for part in batch]) if pair else None

    def _enter(self, _: nn.Module, inputs: tuple) -> None:
        if not is_measuring():
            self._streams = []
            with contextlib.suppress(Exception):
                self._streams = torch_streams(self._full_loss.site.vector.device)

    def _hear(self, _: nn.Module, inputs: tuple, output: Any) -> None:
        if is_measuring():
            return
        try:
            self._outputs.append(self._own(inputs, output))
        except Exception:  # the evaluation that takes its place will tell
            self._outputs.append(None)

    def _own(self, inputs: tuple, output: Any) -> Tensor | None:
        """What is kept of an output; None of one that may be another function's, or another one the next time."""
        known = self._expected is not None and len(inputs) == 1 and inputs[0] is self._expected[0]
        if not (known and isinstance(output, Tensor) and not output.is_inference()):
            return None
        streams = torch_streams(self._full_loss.site.vector.device)
        if not all(torch.equal(now, before) for now, before in zip(streams, self._streams, strict=True)):
            return None
        output = output.detach()
        if not self._kept and output.numel() * output.element_size() * len(self._full_loss.data) > self._most_bytes:
            self._most_bytes = 0
        # At once and as a copy: the loop may write into its outputs, and they may be a small part of a large tensor.
        return output.clone() if self._most_bytes else output

    def _take(self, index: int) -> list[tuple[float, float]]:
        """Sum and count of the batch just used, where its output is not kept; gives up where they are not to be had."""
        try:
            found = self._taken(index)
        except Exception:  # the evaluation that takes its place will tell
            found = None
        self._listens = found is not None
        return found or []

    def _taken(self, index: int) -> list[tuple[float, float]] | None:
        output = self._outputs[0] if len(self._outputs) == 1 else None
        if self._expected is not None and output is not None and output.dtype == self._full_loss.site.vector.dtype:
            given, target, versions = self._expected
            if [given._version, target._version] == versions:
                if self._most_bytes:
                    self._kept.append((output, target.clone()))
                    return []
                heard = self._sum_and_count(index, output, target)
                if index > 0 or self._agrees(*heard):
                    return [heard]
        return None

    # --- losses alone ------------------------------------------------------------------------------------------------

    def _sum_and_count(self, index: int, output: Tensor, target: Tensor) -> tuple[float, float]:
        with isolated(self._full_loss.site.vector.device):
            value, count = self._full_loss.sum_and_count(output, target, self._full_loss.data.sizes[index])
            return float(value), float(count)

    def _agrees(self, value: float, count: float) -> bool:
        with self._full_loss.evaluating():
            self._full_loss.site.write(self._full_loss.site.here)
            again = self._full_loss.sums(1).mean
        bound = AGREEMENT * abs(again) + 1e-7
        return count > 0 and math.isfinite(again) and abs(value / count - again) <= bound

    # --- outputs, once all are there ---------------------------------------------------------------------------------

    def _from_outputs(self) -> Heard | None:
        full_loss = self._full_loss
        outputs = [output for output, _ in self._kept]
        try:
            with full_loss.evaluating():
                full_loss.site.write(full_loss.site.here)
                again, _ = full_loss.outputs(0)
                if not _same_outputs(outputs[0], again):
                    return None
                targets = [full_loss.as_input(target) for _, target in self._kept]
                pairs = zip(outputs, targets, full_loss.data.sizes, strict=True)
                return Heard(as_sums([full_loss.sum_and_count(*each) for each in pairs]), outputs, targets)
        except Exception:  # the evaluation that takes its place will tell
            return None


def _same_outputs(heard: Tensor, evaluated: Any) -> bool:
    """Whether two outputs of one batch have a row for each example and are alike to rounding; NaN is not."""
    if not isinstance(evaluated, Tensor) or heard.dim() == 0 or heard.shape != evaluated.shape:
        return False
    scale = evaluated.abs().max()
    return bool((heard - evaluated).abs().max() <= OUTPUT_AGREEMENT * scale + torch.finfo(heard.dtype).tiny)
