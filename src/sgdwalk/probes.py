"""Questions put to the loss before training starts, so that a wrong L is refused and not measured."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sgdwalk.data import cut_rows, leaves
from sgdwalk.errors import InputError
from sgdwalk.objective import NOISE_BATCHES, FullLoss, LossSums, is_out_of_memory

AGREEMENT = 1e-4
"""Relative difference that float32 rounding cannot make between a mean and the weighted mean of its parts."""


def first_evaluation(full_loss: FullLoss, num_batches: int | None = None) -> tuple[LossSums, list[str]]:
    """Evaluate L once while checking loss_fn on every batch, and a second time on a few: they must agree.

    With ``num_batches`` only so many are looked at.
    Returns the sums, and what could not be checked, in words.
    """
    _refuse_other_parameters(full_loss)
    unchecked: list[str] = []
    sums: list[float] = []
    counts: list[float] = []
    for index in range(min(num_batches or len(full_loss.data), len(full_loss.data))):
        try:
            value, count = _checked_batch(full_loss, index, unchecked)
        except InputError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                value, count = full_loss.batch(index)
            else:
                raise InputError(_failure(full_loss, index, error)) from error
        sums.append(float(value))
        counts.append(float(count))
    evaluated = LossSums(tuple(sums), tuple(counts))
    if not math.isfinite(evaluated.mean):
        raise InputError(
            f"The full loss is not finite at the start (a sum of {sum(sums)} over a count of {sum(counts):g}): "
            "check the data for NaN and the model's initialization."
        )
    again = full_loss.sums(min(NOISE_BATCHES, len(sums)))
    for index, (one, other) in enumerate(zip(sums, again.sums, strict=False)):
        if not math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6 * counts[index]):
            raise InputError(
                f"Two evaluations of the loss at the same parameters differ on batch {index} "
                f"({one / counts[index]:.8g} and {other / counts[index]:.8g}). The model or loss_fn is random even in "
                "eval mode (functional dropout with training=True, noise layers), or the data change when read. Make "
                "it deterministic in eval mode: use nn.Dropout or pass self.training."
            )
    if max(full_loss.data.sizes) < 2:
        unchecked.append(
            "Whether loss_fn is a batch mean could not be checked, because no batch has two examples; return "
            "(sum, count) to be sure."
        )
    return evaluated, unchecked[:1]


def _refuse_other_parameters(full_loss: FullLoss) -> None:
    """Find a forward or loss_fn that computes with the user's own model instead of the module it is handed."""
    site = full_loss.site
    if site.module is site.source:
        return
    own = {id(parameter) for parameter in site.source.parameters()}
    try:
        with torch.enable_grad():
            value, _ = full_loss.batch(0)
    except Exception:  # the first evaluation, which comes next, explains it
        return
    waiting, seen = [value.grad_fn if isinstance(value, Tensor) else None], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in own:
            raise InputError(
                "The loss is computed with the model's own parameters, not with those of the copy that is evaluated: "
                "forward, loss_fn or a method put on the model holds on to the model itself. Use the module that "
                'forward(model, batch) is handed, or pass evaluate_on="model".'
            )
        waiting.extend(following for following, _ in node.next_functions)


def _checked_batch(full_loss: FullLoss, index: int, unchecked: list[str]) -> tuple[Any, Any]:
    size = full_loss.data.sizes[index]
    output, target = full_loss.outputs(index)
    _check_devices(output, target)
    loss = full_loss.loss_fn(output, target)
    value, count = full_loss.as_sum_and_count(loss, size)
    if size < 2 or not math.isfinite(float(value)):
        return value, count
    cut = max(1, size // 3)
    parts = []
    for low, high in ((0, cut), (cut, size)):
        try:
            part_output, part_target = (cut_rows(tree, size, low, high) for tree in (output, target))
        except ValueError:
            unchecked.append(
                "Whether loss_fn is a batch mean could not be checked, because its output cannot be cut along the "
                "examples; return (sum, count) to be sure."
            )
            return value, count
        parts.append(full_loss.as_sum_and_count(full_loss.loss_fn(part_output, part_target), high - low))
    whole = float(value) / float(count) if float(count) else 0.0
    total = sum(float(number) for _, number in parts)
    together = sum(float(part) for part, _ in parts) / total if total else 0.0
    if not math.isclose(whole, together, rel_tol=AGREEMENT, abs_tol=AGREEMENT * 1e-2):
        raise InputError(_not_a_mean(loss, parts, size, index, whole, together))
    return value, count


def _not_a_mean(loss: Any, parts: list, size: int, index: int, whole: float, together: float) -> str:
    seen = (
        f"loss_fn on evaluation batch {index} gives {whole:.6g}, but the weighted mean of two parts of the batch is "
        f"{together:.6g}"
    )
    if isinstance(loss, Tensor) and loss.dim() == 0:
        cut = max(1, size // 3)
        means = [float(part) / number for (part, _), number in zip(parts, (cut, size - cut), strict=True)]
        if math.isclose(whole, sum(means), rel_tol=AGREEMENT):
            return f"{seen}: it sums over the batch. Return the mean, per-example losses, or a pair (sum, count)."
    return (
        f"{seen}: it is no mean over examples (class weights, ignore_index, per-token means, or a loss between "
        "examples). Return a pair (sum, count), for which the full loss is the total sum over the total count."
    )


def _check_devices(output: Any, target: Any) -> None:
    devices = [{leaf.device for leaf in leaves(tree) if isinstance(leaf, Tensor)} for tree in (output, target)]
    if devices[0] and devices[1] and devices[0] != devices[1]:
        first, second = (", ".join(sorted(map(str, names))) for names in devices)
        raise InputError(f"The model's output is on {first}, but the targets are on {second}: put both on one device.")


def _failure(full_loss: FullLoss, index: int, error: Exception) -> str:
    shapes = [f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in leaves(full_loss.data[index]) if isinstance(leaf, Tensor)]
    hint = ""
    if isinstance(error, IndexError) and "out of bounds" in str(error):
        hint = " Targets must lie in 0 … number of classes - 1."
    elif "Expected more than 1 value per channel" in str(error):
        hint = " BatchNorm in train mode needs at least two examples a batch: pass more data or batchnorm='eval'."
    return (
        f"Evaluating the loss on evaluation batch {index} (tensors of {', '.join(shapes)}) failed: "
        f"{type(error).__name__}: {str(error).rstrip('.')}.{hint} Check data, forward and loss_fn."
    )
