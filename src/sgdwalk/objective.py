"""The full loss L(θ): value and gradient over all evaluation batches."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgdwalk import text
from sgdwalk.allocator import keep_freed_memory
from sgdwalk.data import EvaluationData, map_tensors
from sgdwalk.errors import InputError
from sgdwalk.isolation import isolated
from sgdwalk.memory_format import SlowConvolutions
from sgdwalk.replica import Replica, Site, batchnorm_layers, function_state, update_digest

NOISE_BATCHES = 10
"""Evaluation batches on which the loss noise and the determinism of L are probed."""

LossFunction = Callable[[Any, Any], Any]
Forward = Callable[[nn.Module, Any], tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums of the loss and counts, batch by batch, in float64."""

    sums: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def mean(self) -> float:
        """L: reduced once, divided once; nats per example (per counted unit where loss_fn gives counts)."""
        total, count = sum(self.sums), math.fsum(self.counts)
        if not math.isfinite(total) or count == 0.0:
            return math.nan
        return math.fsum(self.sums) / count

    def first(self, batches: int) -> LossSums:
        return LossSums(self.sums[:batches], self.counts[:batches])


def as_sums(pairs: Sequence[tuple[Tensor | float, Tensor | float]]) -> LossSums:
    """Sums and counts of batches, which may still be on a device, as numbers."""
    return LossSums(_floats([value for value, _ in pairs]), _floats([count for _, count in pairs]))


def default_forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """``(model(input), target)`` of an (input, target) batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        if isinstance(batch, Tensor):
            kind = f"one tensor of shape {tuple(batch.shape)}"
        else:
            entries = f" with {text.count(len(batch), 'entry', 'entries')}" if hasattr(batch, "__len__") else ""
            kind = f"a {type(batch).__name__}{entries}"
        raise InputError(
            f"A batch of data is {kind}, not an (input, target) pair: pass data of pairs, such as data=(inputs, "
            "targets), or forward=, a function (model, batch) -> (output, target)."
        )
    return model(batch[0]), batch[1]


class FullLoss:
    """L at whatever point stands in ``site``; to be used inside ``evaluating()``."""

    def __init__(self, site: Site, data: EvaluationData, loss_fn: LossFunction, forward: Forward | None):
        self.site = site
        self.data = data
        self.loss_fn = loss_fn
        self.forward = forward or default_forward
        self.hvp_method = "double_backward"
        """How second derivatives are had; ``finite_difference`` once a kernel turned out to have none."""
        self.halved: set[int] = set()
        self._device = site.vector.device
        self.mixes_examples = site.batchnorm == "train" and bool(batchnorm_layers(site.source))
        """Whether an example's loss depends on the others of its batch, through BatchNorm in train mode."""
        self.channels_last = False
        if self._device.type == "cpu":
            keep_freed_memory()

    def fingerprint(self) -> bytes:
        """Digest of all that L depends on besides the walked parameters: the site's and the loss function's."""
        digest = hashlib.blake2b(self.site.fingerprint(), digest_size=16)
        update_digest(digest, function_state(self.loss_fn))
        return digest.digest()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Isolated from training, the site brought up to date and put back afterwards."""
        with isolated(self._device), self.site.occupied():
            yield

    def sums(self, batches: int | None = None) -> LossSums:
        """The loss summed over the first ``batches`` batches (all by default) at the site's present point."""
        return as_sums([self.batch(index) for index in range(len(self.data) if batches is None else batches)])

    def gradient(self, leaves: Sequence[nn.Parameter] | None = None, batches: Sequence[int] | None = None) -> Tensor:
        """∇L at the site's point, flat; by all walked parameters over all batches, or by and over some.  # (d,)"""
        leaves = self.site.leaves if leaves is None else leaves
        total = torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=leaves[0].dtype, device=self._device)
        count = self.total_count(batches)
        with torch.enable_grad():
            for index in range(len(self.data)) if batches is None else batches:
                loss = self.weighted_loss(index, count)
                total += _flatten(torch.autograd.grad(loss, leaves, materialize_grads=True))
        return total

    def in_float64(self) -> FullLoss:
        """The same loss on a float64 copy of the site's module; costs two more parameter vectors while it lives."""
        twin = copy.copy(self)
        twin.site = copy.copy(self.site)
        if isinstance(self.loss_fn, nn.Module):  # class weights, say
            twin.loss_fn = copy.deepcopy(self.loss_fn).to(torch.float64)
        memo: dict[int, Any] = {}
        for tensor in (*self.site.module.parameters(), *self.site.module.buffers()):
            memo[id(tensor)] = _in_float64(tensor)  # at once: a float32 copy on the way would be one vector more
        twin.site.module = copy.deepcopy(self.site.module, memo)
        twin.site.leaves = [memo[id(leaf)] for leaf in self.site.leaves]
        twin.site.targets = [leaf.detach() for leaf in twin.site.leaves]
        return twin

    def use_channels_last(self) -> bool:
        """Switch a convolutional net to channels_last where it runs and gives the same loss; faster on CPU and GPU, on
        the CPU but for some convolutions."""
        site = self.site
        if not isinstance(site, Replica) or not any(isinstance(layer, nn.Conv2d) for layer in site.module.modules()):
            return False
        with self.evaluating():
            site.write(site.here)
            with SlowConvolutions() as slow:
                before = self.sums(1)
            if self._device.type == "cpu":
                site.usual_order = slow.layers(site.module)
            try:
                self.set_channels_last(True)
                after = self.sums(1)
            except RuntimeError:  # .view() of an activation, a 3-D convolution beside, say
                after = LossSums((math.nan,), (1.0,))
            if not math.isclose(before.mean, after.mean, rel_tol=1e-4, abs_tol=1e-6):
                self.set_channels_last(False)
        return self.channels_last

    def set_channels_last(self, yes: bool) -> None:
        """Store the copy's weights, and give it its inputs, in that order of memory or in the usual one."""
        assert isinstance(self.site, Replica), "the user's own model keeps its format"
        self.site.set_memory_format(torch.channels_last if yes else torch.contiguous_format)
        self.channels_last = yes

    def as_input(self, batch: Any) -> Any:
        """A batch as the site's module takes it: on its device, in its dtype and memory format."""
        dtype = self.site.leaves[0].dtype

        def prepare(tensor: Tensor) -> Tensor:
            if tensor.device != self._device:
                tensor = tensor.to(self._device)
            if dtype == torch.float64 and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            if self.channels_last and tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            return tensor

        return map_tensors(prepare, batch)

    def prepared(self, index: int) -> Any:
        """An evaluation batch as the site's module takes it: on its device, in its dtype and memory format."""
        return self.as_input(self.data[index])

    def batch(self, index: int) -> tuple[Tensor | float, Tensor | float]:
        batch = self.data[index]
        try:
            return self.sum_and_count(*self.forward(self.site.module, self.as_input(batch)), self.data.sizes[index])
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or self.mixes_examples or self.data.sizes[index] < 2:
                raise
        self.halved.add(index)
        return self._in_halves(batch, self.data.sizes[index])

    def _in_halves(self, batch: Any, size: int) -> tuple[float, float]:
        """Sum and count of a batch that did not fit into memory, from halves of it, and halves of those."""
        total = count = 0.0
        for low, high in ((0, size // 2), (size // 2, size)):
            part = map_tensors(lambda tensor, low=low, high=high: tensor[low:high], batch)
            try:
                value, number = self.sum_and_count(*self.forward(self.site.module, self.as_input(part)), high - low)
                total, count = total + float(value), count + float(number)
            except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or high - low < 2:
                    raise
                value, number = self._in_halves(part, high - low)
                total, count = total + value, count + number
        return total, count

    def outputs(self, index: int, low: int = 0, high: int | None = None) -> tuple[Any, Any]:
        """The model's output and the target of one evaluation batch, or of its examples low to high alone.

        Raises:
            ValueError: where a tensor of the batch has no row for each example, so that it cannot be cut.
        """
        batch = self.data[index] if high is None else self.data.rows(index, low, high)
        return self.forward(self.site.module, self.as_input(batch))

    def sum_and_count(self, output: Any, target: Any, size: int) -> tuple[Tensor | float, Tensor | float]:
        return self.as_sum_and_count(self.loss_fn(output, target), size)

    def as_sum_and_count(self, loss: Any, size: int) -> tuple[Tensor | float, Tensor | float]:
        """What ``loss_fn`` returned for ``size`` examples, as the batch's sum and the count to divide by."""
        if isinstance(loss, (tuple, list)):
            value, count = loss
            return value, count
        if not isinstance(loss, Tensor):
            raise InputError(
                f"loss_fn returned a {type(loss).__name__}: return the batch mean as a tensor, per-example losses, or "
                "a pair (sum, count)."
            )
        if loss.dim() == 0:
            return loss.to(torch.float64) * size, float(size)
        if loss.dim() == 1 and len(loss) == size:
            return loss.sum(dtype=torch.float64), float(size)
        raise InputError(
            f"loss_fn returned losses of shape {tuple(loss.shape)} for a batch of {size} examples: return the batch "
            f"mean, per-example losses of shape ({size},), or a pair (sum, count)."
        )

    def weighted_loss(self, index: int, total_count: float) -> Tensor:
        """One evaluation batch's share of L, to differentiate: the shares add up to L."""
        value, _ = self.sum_and_count(*self.outputs(index), self.data.sizes[index])
        return torch.as_tensor(value) / total_count

    def total_count(self, batches: Sequence[int] | None = None) -> float:
        """The denominator of L, or of the mean over some batches: examples, unless loss_fn counts for itself."""
        chosen = range(len(self.data)) if batches is None else batches
        with torch.no_grad():
            if isinstance(self.loss_fn(*self.outputs(0)), Tensor):
                return float(sum(self.data.sizes[index] for index in chosen))
            return math.fsum(_floats([self.batch(index)[1] for index in chosen]))


def _in_float64(tensor: Tensor) -> Tensor:
    converted = tensor.detach().to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.detach().clone()
    return nn.Parameter(converted, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else converted


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU (a plain RuntimeError in torch) or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text


def _floats(values: list[Tensor | float]) -> tuple[float, ...]:
    """Scalars on any device as Python floats with a single transfer."""
    if not any(isinstance(value, Tensor) for value in values):
        return tuple(float(value) for value in values)
    stacked = torch.stack([torch.as_tensor(value).detach().to(torch.float64).reshape(()) for value in values])
    return tuple(stacked.tolist())


def _flatten(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([(tensor.to_dense() if tensor.is_sparse else tensor).reshape(-1) for tensor in tensors])
