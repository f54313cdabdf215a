"""Symmetric matrices of the full loss as operators: products with vectors, from graphs that are kept between them.

A product with the Hessian of one evaluation batch is a backward pass through the graph of that batch's gradient. Making
that graph costs a forward and a backward pass; as long as the parameters stand still it can be used again, which saves
a third of every product but the first. Graphs are kept as far as memory allows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdwalk.errors import InputError
from sgdwalk.graphs import NoSecondDerivativeError, free_bytes, held_bytes, lacks_second_derivative, refuse_dead_ends
from sgdwalk.objective import FullLoss, is_out_of_memory

LARGEST_DENSE = 10_000
"""Parameters up to which an operator may be written out as a matrix."""


class Operator:
    """A symmetric linear map on the parameter space, known by its products with vectors.

    ``operator @ v`` is the product with a vector of d coordinates, in the order of the model's parameters.

    Attributes:
        size: d, the number of coordinates.
        num_products: products taken so far.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device):
        self.size = size
        self.dtype = dtype
        self.device = device
        self.num_products = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The product with one vector (d,), or with each column of a matrix (d, m).

        Raises:
            InputError: where the vector has another length.
        """
        if vector.dim() not in (1, 2) or vector.shape[0] != self.size:
            raise InputError(f"The operator takes vectors of {self.size} coordinates; got shape {tuple(vector.shape)}.")
        if vector.dim() == 2:
            return torch.stack([self @ column for column in vector.T], dim=1)
        self.num_products += 1
        return self.product(vector.detach().to(device=self.device, dtype=self.dtype))

    def product(self, vector: Tensor) -> Tensor:
        """The product itself, uncounted.  # (d,) -> (d,)"""
        raise AssertionError("abstract")

    def dense(self) -> Tensor:
        """The matrix written out, one product a column.  # (d, d)

        Raises:
            InputError: where it has more than 10,000 rows.
        """
        if self.size > LARGEST_DENSE:
            raise InputError(
                f"The matrix has {self.size:,} rows: written out it would not fit; take products with vectors."
            )
        return self @ torch.eye(self.size, dtype=self.dtype, device=self.device)

    def release(self) -> None:
        """Let go of what is kept between products; the operator can still be used."""


def check_operator(matrix: Any, kind: type[Operator] = Operator) -> None:
    """Raise where something else was passed for a matrix, such as the model."""
    if not isinstance(matrix, kind):
        raise InputError(
            "An operator is wanted, such as sgdwalk.hessian(model, loss_fn, data) gives; got a "
            f"{type(matrix).__name__}."
        )


class LossOperator(Operator):
    """A sum over evaluation batches of symmetric maps, each taken from a graph at the site's present point.

    To be used inside ``full_loss.evaluating()``, or with ``guard`` where the site is a snapshot of its own. The site
    must not be moved while graphs are kept: ``release()`` first.

    Args:
        full_loss: the loss, its site standing at θ.
        indices: of the walked parameters to restrict the matrix to; all by default.
        batches: evaluation batches to take the mean over; all by default.
        memory_limit: bytes that kept graphs may take; a quarter of what is free by default.
        guard: context for each product.
    """

    def __init__(
        self,
        full_loss: FullLoss,
        indices: Sequence[int] | None = None,
        *,
        batches: Sequence[int] | None = None,
        memory_limit: int | None = None,
        guard: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        self.full_loss = full_loss
        self.indices = range(len(full_loss.site.leaves)) if indices is None else indices
        leaves = [full_loss.site.leaves[index] for index in self.indices]
        super().__init__(sum(leaf.numel() for leaf in leaves), leaves[0].dtype, leaves[0].device)
        self.batches = range(len(full_loss.data)) if batches is None else batches
        self._guard = guard
        self._memory_limit = memory_limit
        self._graphs: dict[int, Any] = {}
        self._graph_bytes = 0
        self._bytes_by_length: dict[int, int] = {}
        self._keeps = True
        self._total: float | None = None

    @property
    def leaves(self) -> list[torch.nn.Parameter]:
        return [self.full_loss.site.leaves[index] for index in self.indices]

    def product(self, vector: Tensor) -> Tensor:
        with self._guard(), torch.enable_grad(), sdpa_kernel([SDPBackend.MATH]):
            return self._sum_over_batches(vector)

    def _sum_over_batches(self, vector: Tensor) -> Tensor:
        leaves = self.leaves
        total = torch.zeros_like(vector)
        targets = split_like(total, leaves)
        directions = split_like(vector, leaves)
        for index in self.batches:
            for target, part in zip(targets, self._batch_product(index, leaves, directions), strict=True):
                if part is not None:
                    target.add_(part.detach())
        return total

    def _batch_product(self, index: int, leaves: list, directions: list[Tensor]) -> Sequence[Tensor | None]:
        try:
            return self.apply(self._graph_of(index, leaves), leaves, directions)
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not self._graphs:
                raise
        self._keeps = False
        self.release()
        return self.apply(self.build(index, leaves), leaves, directions)

    def _graph_of(self, index: int, leaves: list) -> Any:
        """This batch's graph; kept as long as there is room."""
        graph = self._graphs.get(index)
        if graph is None:
            graph = self.build(index, leaves)
            if self._keeps:
                self._keep_graph(index, graph)
        return graph

    def _keep_graph(self, index: int, graph: Any) -> None:
        if self._memory_limit is None:
            self._memory_limit = free_bytes(self.device) // 4
        length = self.full_loss.data.sizes[index]
        if length not in self._bytes_by_length:
            self._bytes_by_length[length] = held_bytes(graph)
        size = self._bytes_by_length[length]
        if self._graph_bytes + size > self._memory_limit:
            self._keeps = False
            return
        self._graphs[index] = graph
        self._graph_bytes += size

    def build(self, index: int, leaves: list) -> Any:
        """The graph of one evaluation batch from which products are taken."""
        raise AssertionError("abstract")

    def apply(self, graph: Any, leaves: list, directions: list[Tensor]) -> Sequence[Tensor | None]:
        """The batch's share of the product; None stands for zeros."""
        raise AssertionError("abstract")

    def release(self) -> None:
        self._graphs = {}
        self._graph_bytes = 0

    def total_count(self) -> float:
        """The denominator of the mean."""
        if self._total is None:
            self._total = self.full_loss.total_count(self.batches)
        return self._total


class HessianOperator(LossOperator):
    """∇²L: the derivative of each batch's gradient along v, by differentiating twice.

    Where a kernel has no second derivative, the central difference of two float64 gradients stands in for it, and
    ``method`` says ``finite_difference``.
    """

    def __init__(self, full_loss: FullLoss, indices: Sequence[int] | None = None, **options: Any):
        super().__init__(full_loss, indices, **options)
        self.method = full_loss.hvp_method
        self._twin: FullLoss | None = None

    def product(self, vector: Tensor) -> Tensor:
        if self.method == "double_backward":
            try:
                return super().product(vector)
            except (NoSecondDerivativeError, RuntimeError) as error:
                if not lacks_second_derivative(error):
                    raise
            self.release()
            self.method = self.full_loss.hvp_method = "finite_difference"
        with self._guard():
            return self._finite_difference(vector)

    def build(self, index: int, leaves: list) -> tuple[Tensor, ...]:
        loss = self.full_loss.weighted_loss(index, self.total_count())
        gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        refuse_dead_ends([loss, *gradients])
        return gradients

    def apply(self, graph: Any, leaves: list, directions: list[Tensor]) -> Sequence[Tensor | None]:
        pairs = [(g, v) for g, v in zip(graph, directions, strict=True) if g.requires_grad]
        if not pairs:
            return [None] * len(leaves)
        gradients, vectors = zip(*pairs, strict=True)
        return torch.autograd.grad(gradients, leaves, vectors, retain_graph=True, allow_unused=True)

    def _finite_difference(self, vector: Tensor) -> Tensor:
        """(∇L(θ + h v) - ∇L(θ - h v)) / 2h in float64, with h ‖v‖ = ε^(1/3) (1 + ‖θ‖)."""
        direction = vector.to(torch.float64)
        norm = float(torch.linalg.vector_norm(direction))
        if norm == 0.0:
            return torch.zeros_like(vector)
        if self._twin is None:
            self._twin = self.full_loss.in_float64()
        site = self._twin.site
        leaves = [site.leaves[index] for index in self.indices]
        targets = [site.targets[index] for index in self.indices]
        point = [target.clone() for target in targets]
        length = float(torch.linalg.vector_norm(torch.cat([part.reshape(-1) for part in point])))
        h = torch.finfo(torch.float64).eps ** (1 / 3) * (1.0 + length) / norm
        gradients = []
        for sign in (1.0, -1.0):
            for target, origin, part in zip(targets, point, split_like(direction, leaves), strict=True):
                target.copy_(origin + sign * h * part)
            gradients.append(self._twin.gradient(leaves, self.batches))
        for target, origin in zip(targets, point, strict=True):
            target.copy_(origin)
        return ((gradients[0] - gradients[1]) / (2 * h)).to(vector.dtype)

    def release(self) -> None:
        super().release()
        self._twin = None


class GaussNewtonOperator(LossOperator):
    """The generalized Gauss-Newton matrix (1/N) Σ J_iᵀ ∇²_z ℓ_i J_i, z the model's outputs and J = ∂z/∂θ.

    The Hessian of L without the outputs' own curvature: positive semi-definite where the loss is convex in z.
    """

    def product(self, vector: Tensor) -> Tensor:
        try:
            return super().product(vector)
        except (NoSecondDerivativeError, RuntimeError) as error:
            if not lacks_second_derivative(error):
                raise
            raise InputError(
                "The Gauss-Newton matrix cannot be had: the model or loss_fn has a kernel that can be differentiated "
                "once only. The Hessian can, by differences of gradients."
            ) from error

    def build(self, index: int, leaves: list) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
        output, target = self.full_loss.outputs(index)
        if not isinstance(output, Tensor):
            raise InputError(
                f"The Gauss-Newton matrix needs the model's output as one tensor; forward gave a "
                f"{type(output).__name__}."
            )
        free = output.detach().requires_grad_()
        value, _ = self.full_loss.sum_and_count(free, target, self.full_loss.data.sizes[index])
        share = torch.as_tensor(value) / self.total_count()
        (slope,) = torch.autograd.grad(share, free, create_graph=True)
        weights = torch.zeros_like(output, requires_grad=True)
        # Jᵀ w is linear in w; its derivative by w along v is J v.
        pulled = torch.autograd.grad(output, leaves, weights, create_graph=True, materialize_grads=True)
        refuse_dead_ends([*pulled, share, slope], wrong=())
        return output, free, slope, list(pulled), weights

    def apply(self, graph: Any, leaves: list, directions: list[Tensor]) -> Sequence[Tensor | None]:
        output, free, slope, pulled, weights = graph
        pushed = push(pulled, weights, directions)
        if pushed is None or not slope.requires_grad:
            return [None] * len(leaves)
        (curved,) = torch.autograd.grad(slope, free, pushed, retain_graph=True)
        return torch.autograd.grad(output, leaves, curved, retain_graph=True, allow_unused=True)


MATRICES: dict[str, type[LossOperator]] = {"hessian": HessianOperator, "gauss_newton": GaussNewtonOperator}
"""The matrices of L by name."""


class ScaledOperator(Operator):
    """D (A + c I) D for a diagonal D: the symmetric form of a preconditioned matrix, D = P^(-1/2)."""

    def __init__(self, inner: Operator, scale: Tensor, shift: float = 0.0):
        super().__init__(inner.size, inner.dtype, inner.device)
        if scale.shape != (inner.size,):
            raise InputError(f"The preconditioner has shape {tuple(scale.shape)}; it takes ({inner.size},).")
        self._inner, self._scale, self._shift = inner, scale.to(device=inner.device, dtype=inner.dtype), shift

    def product(self, vector: Tensor) -> Tensor:
        scaled = self._scale * vector
        return self._scale * (self._inner @ scaled + self._shift * scaled)

    def release(self) -> None:
        self._inner.release()


def push(pulled: Sequence[Tensor], weights: Tensor, directions: Sequence[Tensor]) -> Tensor | None:
    """J v, from Jᵀ w as a function of w; None where the outputs do not depend on the parameters."""
    pairs = [(g, v) for g, v in zip(pulled, directions, strict=True) if g.requires_grad]
    if not pairs:
        return None
    rows, vectors = zip(*pairs, strict=True)
    (pushed,) = torch.autograd.grad(rows, weights, vectors, retain_graph=True, allow_unused=True)
    return pushed


def split_like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The flat vector cut into views of the tensors' shapes."""
    parts = vector.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@contextlib.contextmanager
def contiguous(full_loss: FullLoss) -> Iterator[None]:
    """Differentiate twice in the default memory format: on a CPU channels_last, faster forwards, is slower there."""
    if not full_loss.channels_last or full_loss.site.vector.device.type != "cpu":
        yield
        return
    full_loss.set_channels_last(False)
    try:
        yield
    finally:
        full_loss.set_channels_last(True)
