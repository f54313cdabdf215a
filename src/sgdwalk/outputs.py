"""The model's outputs, to be interpolated: kept at both ends of a segment, and the losses of what lies between them.

An output is any tree of tensors that ``loss_fn`` takes. Its floating-point tensors are interpolated; the others stay as
they are at the point evaluated last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdwalk.data import leaves, map_tensors
from sgdwalk.objective import FullLoss
from sgdwalk.short_rows import ShortRows

GROUP_BYTES = 1 << 20
"""Outputs handled in one call of loss_fn, at one point; so small that they stay in the cache."""

AGREEMENT = 1e-5
"""Relative difference of the losses of several units taken at once and one by one; rounding makes less."""


def floats(tree: Any) -> list[Tensor]:
    """The floating-point tensors of a tree, in order: what is interpolated."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def with_floats(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """The same tree with other floating-point tensors."""
    rest = iter(tensors)
    return map_tensors(lambda tensor: next(rest) if tensor.is_floating_point() else tensor, tree)


def joined(trees: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """One tree of many alike, tensor by tensor: ``torch.stack`` or ``torch.cat``."""
    columns = zip(*([leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)] for tree in trees), strict=True)
    return map_tensors(lambda _: join(list(next(columns))), trees[0])


def alike(trees: Sequence[Any]) -> Iterator[list[int]]:
    """Positions of the trees whose tensors have the same shapes, group by group."""
    groups: dict[Any, list[int]] = {}
    for position, tree in enumerate(trees):
        shapes = tuple(tuple(leaf.shape) for leaf in leaves(tree) if isinstance(leaf, Tensor))
        groups.setdefault(shapes, []).append(position)
    yield from groups.values()


def lagrange(nodes: Sequence[float], num_points: int) -> Tensor:
    """Weights of the nodes k / num_points in the polynomial through them, at every point.  # (points, nodes)

    >>> lagrange([0, 2], 2).abs().tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    points = torch.arange(num_points + 1, dtype=torch.float64)
    columns = []
    for node in nodes:
        others = torch.tensor([other for other in nodes if other != node], dtype=torch.float64)
        columns.append(((points[:, None] - others) / (node - others)).prod(dim=1))
    return torch.stack(columns, dim=1)


class Sums(NamedTuple):
    """What units add to L, and to what it is divided by."""

    losses: NDArray[np.float64]
    """Sums of the loss, nats."""
    counts: NDArray[np.float64]


class OutputLoss:
    """The loss as a function of outputs, for many units in one call where ``loss_fn`` allows it."""

    def __init__(self, full_loss: FullLoss):
        self._full_loss = full_loss
        self._at_once = True

    def sums(self, outputs: Any, targets: Any, size: int, *, points: int | None = None) -> Sums:
        """Sums of the loss of units of ``size`` examples, and what ``loss_fn`` counts.

        Args:
            outputs: a tree stacked over units, and over points before them where ``points`` is given.
            targets: a tree stacked over units.

        Returns:
            Arrays of the shape (units,), or (points, units).
        """
        if self._at_once:
            try:
                each = torch.func.vmap(lambda output, target: self._sum_and_count(output, target, size))
                if points is not None:
                    each = torch.func.vmap(each, in_dims=(0, None))
                with ShortRows():
                    return Sums(*np.moveaxis(each(outputs, targets).cpu().numpy(), -1, 0))
            except Exception:  # what loss_fn does cannot be done for many at once; what is truly wrong is raised below
                self._at_once = False
        number = len(next(leaf for leaf in leaves(targets) if isinstance(leaf, Tensor)))
        rows = []
        for point in [None] if points is None else range(points):
            output = outputs if point is None else map_tensors(lambda tensor, point=point: tensor[point], outputs)
            pairs = [
                [map_tensors(lambda t, u=unit: t[u], tree) for tree in (output, targets)] for unit in range(number)
            ]
            rows.append([self._sum_and_count(one, target, size).tolist() for one, target in pairs])
        return Sums(*np.moveaxis(np.array(rows[0] if points is None else rows), -1, 0))

    def check(self, output: Any, target: Any, size: int) -> None:
        """Compare both ways on one unit and settle for the slow one where they differ."""
        if not self._at_once:
            return
        twice, targets = (map_tensors(lambda tensor: torch.stack([tensor, tensor]), tree) for tree in (output, target))
        fast = float(self.sums(twice, targets, size).losses[0])
        slow = float(self._sum_and_count(output, target, size)[0])
        self._at_once = self._at_once and abs(fast - slow) <= AGREEMENT * abs(slow) + 1e-6 * size

    def _sum_and_count(self, output: Any, target: Any, size: int) -> Tensor:
        """# (2,)"""
        pair = [torch.as_tensor(each) for each in self._full_loss.sum_and_count(output, target, size)]
        return torch.stack([each.to(pair[0].device, torch.float64).reshape(()) for each in pair])

    def along(self, ends: Sequence[Sequence[Tensor]], weights: Tensor, template: Any, targets: Any, size: int) -> Sums:
        """Sums of the loss of units whose outputs are interpolated.

        Args:
            ends: at every node, the floating-point tensors of the outputs, stacked over units.
            weights: of the nodes, at the points wanted.  # (points, nodes)
            template: the outputs at any point, stacked over units.
            targets: stacked over units.

        Returns:
            Arrays of the shape (points, units).
        """
        most = max(1, GROUP_BYTES // max(1, sum(t.numel() * t.element_size() for t in ends[0])))
        found = []
        for part in weights.split(most):
            count = len(part)
            mixed = [_mix(part, tensors) for tensors in zip(*ends, strict=True)]
            others = map_tensors(lambda t, n=count: t.expand(n, *t.shape), template)
            found.append(self.sums(with_floats(others, mixed), targets, size, points=count))
        return Sums(*map(np.concatenate, zip(*found, strict=True)))


def _mix(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Σ over nodes of weight · tensor, at every point.  # (points, ...)"""
    shape = (-1, *[1] * tensors[0].dim())
    factors = weights.to(tensors[0])
    total = factors[:, 0].reshape(shape) * tensors[0]
    for node, tensor in enumerate(tensors[1:], 1):
        total.addcmul_(factors[:, node].reshape(shape), tensor)
    return total if all_finite(tensors) else unmoved_kept(total, tensors)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every entry is finite; where their sums are not, as those of very large ones, it may say no."""
    return bool(torch.stack([tensor.sum() for tensor in tensors]).isfinite().all())


def unmoved_kept(mixed: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """What was interpolated, with each entry at which all nodes agree as it is there.

    A masked logit is -inf at every node, and a sum of -inf times weights of both signs, or times 0, is NaN.
    """
    same = torch.stack([tensor == tensors[0] for tensor in tensors[1:]]).all(dim=0)
    return torch.where(same, tensors[0], mixed)


def squared_moves(starts: Sequence[Tensor], ends: Sequence[Tensor]) -> Tensor:
    """Squared distance of two outputs of one unit or batch, for each row.  # (rows,), or () where there are none"""
    total: Tensor | float = 0.0
    for start, end in zip(starts, ends, strict=True):
        move = end - start
        squared = (move if all_finite([move]) else torch.where(start == end, 0.0, move)).square()
        total = total + (squared.flatten(1).sum(1) if squared.dim() > 1 else squared)
    return torch.as_tensor(total)
