"""The losses and gradients of single examples, each taken within its evaluation batch.

Under BatchNorm in train mode the loss ℓ_i of an example depends on the whole batch, through its statistics; it is taken
in its fixed evaluation batch, so that L is the mean of the ℓ_i and every identity between them stays exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sgdwalk.data import cut_rows, map_tensors
from sgdwalk.errors import InputError
from sgdwalk.objective import FullLoss
from sgdwalk.probes import AGREEMENT

PIECE = 8
"""Examples of a forward pass for single gradients: each costs a backward pass through all of them."""

CHUNK_BYTES = 1 << 28
"""Bytes of single gradients made at a time."""


def example_losses(full_loss: FullLoss, output: Any, target: Any, size: int) -> Tensor:
    """ℓ_i of ``size`` examples, nats, in float64, to differentiate.  # (size,)

    Raises:
        InputError: where loss_fn gives no losses of single examples and cannot be applied to them one by one.
    """
    loss = full_loss.loss_fn(output, target)
    if isinstance(loss, (tuple, list)):
        raise InputError(
            "loss_fn returned a pair (sum, count), but the losses of single examples are needed: return them, as a "
            f"tensor of shape ({size},), for example with reduction='none', or return the batch mean."
        )
    full_loss.as_sum_and_count(loss, size)  # refuses whatever is no loss of a batch
    if loss.dim() == 1:
        return loss.to(torch.float64)
    if size == 1:
        return loss.reshape(1).to(torch.float64)
    advice = f"return per-example losses of shape ({size},), for example with reduction='none'."
    try:
        losses = _one_by_one(full_loss, output, target, size)
    except ValueError:
        raise InputError(
            "The losses of single examples are needed, but loss_fn returns the mean of a batch, and the model's output "
            f"or the target has no row for each example to apply it to: {advice}"
        ) from None
    mean, whole = losses.detach().mean(), loss.detach().to(torch.float64)
    if not torch.isclose(mean, whole, rtol=AGREEMENT, atol=AGREEMENT * 1e-2):
        raise InputError(
            f"The losses of single examples are needed, but loss_fn applied to one example at a time gives a mean of "
            f"{float(mean):.6g} over a batch, and {float(whole):.6g} for the batch as a whole: {advice}"
        )
    return losses


def _one_by_one(full_loss: FullLoss, output: Any, target: Any, size: int) -> Tensor:
    """A batch-mean loss_fn applied to each row of output and target.  # (size,)"""

    def of_batch_of_one(output: Any, target: Any) -> Tensor:
        row = (map_tensors(lambda tensor: tensor.unsqueeze(0), tree) for tree in (output, target))
        return torch.as_tensor(full_loss.loss_fn(*row)).reshape(())

    for tree in (output, target):
        cut_rows(tree, size, 0, 1)  # ValueError where there is no row for each example
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some operation of loss_fn is slow there
            return torch.func.vmap(of_batch_of_one)(output, target).to(torch.float64)
    except Exception:  # whatever vmap cannot do, the loop can; what is truly wrong is raised there
        rows = [[cut_rows(tree, size, i, i + 1) for tree in (output, target)] for i in range(size)]
        losses = [torch.as_tensor(full_loss.loss_fn(*row)).reshape(()) for row in rows]
        return torch.stack(losses).to(torch.float64)


def example_gradients(full_loss: FullLoss, index: int, leaves: Sequence[Tensor], first: int = 0) -> Iterator[Tensor]:
    """∇ℓ_i for the examples of one evaluation batch from ``first`` on, in order, a few at a time.  # (m, d) each

    Where BatchNorm does not mix the examples of a batch, the batch goes through the model in pieces, which is cheaper
    by the ratio of their sizes; the losses of the pieces must be those of the whole, or the whole is differentiated.
    """
    size = full_loss.data.sizes[index]
    if not full_loss.mixes_examples and size > PIECE:
        whole = example_losses(full_loss, *full_loss.outputs(index), size)
        for low in range(first, size, PIECE):
            high = min(low + PIECE, size)
            with torch.enable_grad():
                losses = _losses_of_piece(full_loss, index, low, high)
            if losses is None or not torch.allclose(losses, whole[low:high], rtol=AGREEMENT, atol=AGREEMENT * 1e-2):
                break
            yield from _jacobian(losses, leaves, 0)
            first = high
    if first < size:
        with torch.enable_grad():
            losses = example_losses(full_loss, *full_loss.outputs(index), size)
        yield from _jacobian(losses, leaves, first)


def _losses_of_piece(full_loss: FullLoss, index: int, low: int, high: int) -> Tensor | None:
    """ℓ_i of a part of a batch; None where the batch cannot be cut."""
    try:
        output, target = full_loss.outputs(index, low, high)
    except ValueError:
        return None
    return example_losses(full_loss, output, target, high - low)


def _jacobian(losses: Tensor, leaves: Sequence[Tensor], first: int) -> Iterator[Tensor]:
    """The gradients of ``losses[first:]``, as rows: several backward passes at once where the kernels allow it."""
    num_coordinates = sum(leaf.numel() for leaf in leaves)
    width = max(1, min(len(losses), CHUNK_BYTES // (num_coordinates * leaves[0].element_size())))
    at_once = True
    for low in range(first, len(losses), width):
        weights = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)[low : low + width]
        parts: list[Sequence[Tensor | None]] = []
        if at_once:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that some kernel is slow there
                    parts = [_backward(losses, leaves, weights, batched=True)]
            except RuntimeError:  # a kernel that cannot
                at_once = False
        if not at_once:
            parts = [_backward(losses, leaves, weight, batched=False) for weight in weights]
        count = len(weights) // len(parts)
        rows = [_as_rows(gradients, leaves, count) for gradients in parts]
        yield rows[0] if len(rows) == 1 else torch.cat(rows)


def _backward(losses: Tensor, leaves: Sequence[Tensor], weights: Tensor, *, batched: bool) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(losses, leaves, weights, retain_graph=True, allow_unused=True, is_grads_batched=batched)


def _as_rows(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor], count: int) -> Tensor:
    """Gradients by each leaf side by side; a missing one counts as zeros.  # (count, d)"""
    columns = [
        leaf.new_zeros(count, leaf.numel()) if gradient is None else gradient.reshape(count, -1)
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]
    return torch.cat(columns, dim=1).detach()
