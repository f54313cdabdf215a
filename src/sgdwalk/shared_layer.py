"""The work that all points of a segment have in common: a first linear layer's output is linear in α.

Where a ``nn.Linear`` is called on the evaluation batch itself, W(α) x + b(α) = (1 - α) (W₀ x + b₀) + α (W₁ x + b₁): two
products serve all points. For an MLP that is most of its work. Every call is checked: another input, the batch after
the model wrote to it, and a layer whose weights the model changed go through the layer as it stands. What is written
past torch, through ``.data``, is not seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sgdwalk.objective import FullLoss, default_forward
from sgdwalk.replica import Replica

FEWEST_INPUTS = 32
"""Interpolating an output costs about three numbers moved for each; below so many inputs the product costs no more."""
GROUP_BYTES = 8 << 20
"""Outputs kept at a time, with the inputs that they belong to."""


class NotShared(Exception):
    """A batch cannot serve all points: it is no (input, target) pair, or the model wrote to its input on the way."""


class SharedLayer:
    """A first linear layer of the private copy, whose outputs at both ends of a segment are kept batch by batch.

    Args:
        layer: in the private copy.
        weight, bias: which of the walked parameters they are; None for a layer without a bias.
    """

    def __init__(self, layer: nn.Linear, weight: int, bias: int | None):
        self.layer = layer
        self._weight, self._bias = weight, bias
        self._ends: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())
        self._alpha = 0.0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._index = -1
        self._named: dict[int, tuple[Tensor, int]] = {}
        self._versions: list[int] = []

    @contextlib.contextmanager
    def installed(self, start: Sequence[Tensor], end: Sequence[Tensor]) -> Iterator[None]:
        """Within it the layer answers from what is kept, where it is called on the batch that was named."""
        self._ends = (start, end)
        self.layer.__dict__["forward"] = self._forward  # of the private copy: the user's layer keeps its method
        try:
            yield
        finally:
            del self.layer.__dict__["forward"]
            self._ends, self._index = ((), ()), -1
            self.forget()

    def forget(self) -> None:
        """Let go of the outputs of the batches so far."""
        self._kept, self._named = {}, {}

    def grouped(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
        """Runs of batches, each with whatever goes with it, that fit with their outputs into the memory set aside."""
        group: list[tuple[Any, Any]] = []
        used = 0
        for each in batches:
            inputs = input_of(each[0])
            if inputs is None:
                raise NotShared
            outputs = 2 * self.layer.out_features * (inputs.numel() // self.layer.in_features)
            size = (inputs.numel() + outputs) * inputs.element_size()
            if group and used + size > GROUP_BYTES:
                yield group
                group, used = [], 0
            group.append(each)
            used += size
        if group:
            yield group

    def at(self, alpha: float, index: int, batch: Any) -> None:
        """The next evaluation is of this batch at this α, where the site stands.

        Raises:
            NotShared: where the same batch was written to since it was named first, or is no pair.
        """
        inputs = input_of(batch)
        if inputs is None:
            raise NotShared
        named, version = self._named.get(index, (None, -1))
        if named is not inputs:
            self._named[index] = (inputs, inputs._version)
        elif inputs._version != version:
            raise NotShared
        self._alpha, self._index, self._versions = alpha, index, self._present_versions()

    def _present_versions(self) -> list[int]:
        return [parameter._version for parameter in (self.layer.weight, self.layer.bias) if parameter is not None]

    def _forward(self, input: Tensor) -> Tensor:  # nn.Linear's name, by which it may be called
        if not self._is_batch(input) or self._present_versions() != self._versions:
            return linear(input, self.layer.weight, self.layer.bias)
        kept = self._kept.get(self._index)
        if kept is None or kept[0].shape[:-1] != input.shape[:-1]:
            kept = self._kept[self._index] = self._at_end(0, input), self._at_end(1, input)
        first, last = kept
        if self._alpha in (0.0, 1.0):
            return (last if self._alpha else first).clone()  # the model may write to it
        return torch.lerp(first, last, self._alpha)

    def _at_end(self, which: int, inputs: Tensor) -> Tensor:
        end = self._ends[which]
        bias = None if self._bias is None else end[self._bias]
        return linear(inputs, end[self._weight], bias)

    def _is_batch(self, inputs: Tensor) -> bool:
        """Whether these are the named batch's own numbers, in any shape."""
        if self._index not in self._named:
            return False
        batch, version = self._named[self._index]
        return (
            _same_memory(inputs, batch)
            and inputs.is_contiguous()
            and batch.is_contiguous()
            and batch._version == version
        )


def input_of(batch: Any) -> Tensor | None:
    """The input of an (input, target) pair where it is a dense tensor."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    return batch[0] if pair and isinstance(batch[0], Tensor) and batch[0].layout == torch.strided else None


def _same_memory(one: Any, other: Tensor) -> bool:
    return (
        isinstance(one, Tensor)
        and one.layout == torch.strided
        and one.data_ptr() == other.data_ptr()
        and one.numel() == other.numel()
        and one.dtype == other.dtype
    )


def find_shared_layer(full_loss: FullLoss) -> SharedLayer | None:
    """The linear layer that takes the evaluation batch, if the model has one; found by one evaluation of a batch.

    To be called inside ``full_loss.evaluating()``. Only a plain layer of the private copy counts: no subclass, no
    parametrization, no hooks, its weights walked and used nowhere else.
    """
    site = full_loss.site
    if not isinstance(site, Replica) or full_loss.forward is not default_forward:
        return None
    candidates = _candidates(site)
    batch = full_loss.prepared(0) if candidates else None
    inputs = input_of(batch)
    if inputs is None:
        return None
    calls: list[tuple[nn.Linear, bool]] = []
    version = inputs._version

    def note(layer: nn.Linear, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append((layer, _same_memory(arguments[0] if arguments else keywords.get("input"), inputs)))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in candidates]
    try:
        full_loss.forward(site.module, batch)
    finally:
        for handle in handles:
            handle.remove()
    if inputs._version != version:  # a model that writes to its input needs a fresh one at every point
        return None
    for layer, (weight, bias) in candidates.items():
        if [own for called, own in calls if called is layer] == [True]:
            return SharedLayer(layer, weight, bias)
    return None


def _candidates(site: Replica) -> dict[nn.Linear, tuple[int, int | None]]:
    """Plain linear layers with their parameters' numbers among the walked ones."""
    walked = {id(leaf): index for index, leaf in enumerate(site.leaves)}
    uses: dict[int, int] = {}
    for module in site.module.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found = {}
    for layer in site.module.modules():
        if type(layer) is not nn.Linear or layer.in_features < FEWEST_INPUTS or _is_hooked(layer):
            continue
        own = [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]
        if all(id(parameter) in walked and uses[id(parameter)] == 1 for parameter in own):
            found[layer] = walked[id(layer.weight)], None if layer.bias is None else walked[id(layer.bias)]
    return found


def _is_hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)
