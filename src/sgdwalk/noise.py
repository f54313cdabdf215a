"""Two matrices of gradients that are often taken for one another: the second moment C of single examples' gradients,
and the noise S_B of mini-batch gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sgdwalk.eigensolver import inner_products
from sgdwalk.errors import InputError
from sgdwalk.examples import example_gradients, example_losses
from sgdwalk.graphs import NoSecondDerivativeError, refuse_dead_ends
from sgdwalk.objective import Forward, LossFunction
from sgdwalk.operators import push
from sgdwalk.outer_products import OuterProducts
from sgdwalk.standing import LossOptions, StandingLoss


class GradientSecondMoment(OuterProducts):
    """C = (1/N) Σ ∇ℓ_i ∇ℓ_iᵀ; made by :func:`sgdwalk.gradient_second_moment`.

    Attributes:
        num_rows: N, the number of examples.
        method: ``double_backward`` (products from C v = Jᵀ J v / N), or ``single_gradients`` once a kernel turned out
            to have no second derivative.
    """

    def __init__(self, full_loss: StandingLoss, *, memory_limit: int | None = None):
        num_examples = full_loss.data.num_examples
        guard = full_loss.evaluating
        super().__init__(full_loss, num_examples, 1 / num_examples, memory_limit=memory_limit, guard=guard)
        self.method = "double_backward"
        with guard():  # refuse a loss without single examples now, not at the first product
            example_losses(full_loss, *full_loss.outputs(0), full_loss.data.sizes[0])

    def product(self, vector: Tensor) -> Tensor:
        if self.method == "double_backward":
            try:
                return super().product(vector)
            except NoSecondDerivativeError:
                self.release()
                self.method = "single_gradients"
        return self.by_rows(vector.unsqueeze(0))[0]

    def build(self, index: int, leaves: list) -> tuple[Tensor, list[Tensor], Tensor]:
        losses = example_losses(self.full_loss, *self.full_loss.outputs(index), self.full_loss.data.sizes[index])
        weights = torch.zeros_like(losses, requires_grad=True)
        pulled = torch.autograd.grad(losses, leaves, weights, create_graph=True, materialize_grads=True)
        refuse_dead_ends(pulled)
        return losses, list(pulled), weights

    def apply(self, graph: Any, leaves: list, directions: list[Tensor]) -> Sequence[Tensor | None]:
        losses, pulled, weights = graph
        pushed = push(pulled, weights, directions)
        if pushed is None:
            return [None] * len(leaves)
        return torch.autograd.grad(losses, leaves, self.scale * pushed, retain_graph=True, allow_unused=True)

    def make_rows(self, first: int) -> Iterator[Tensor]:
        for index, size in enumerate(self.full_loss.data.sizes):
            if first < size:
                yield from example_gradients(self.full_loss, index, self.leaves, max(first, 0))
            first -= size


class GradientNoise(OuterProducts):
    """S_B = B · Cov(mini-batch gradient) between K mini-batches; made by :func:`sgdwalk.gradient_noise`.

    Attributes:
        batch_size: B.
        num_batches: K.
        num_left_out: examples that no mini-batch holds, because B does not divide N.
    """

    def __init__(self, full_loss: StandingLoss, batch_size: int | None, *, memory_limit: int | None = None):
        sizes = full_loss.data.sizes
        self.batch_size = Counter(sizes).most_common(1)[0][0] if batch_size is None else batch_size
        self._parts = [(index, 0, size) for index, size in enumerate(sizes) if size == self.batch_size]
        if not full_loss.data.prebatched and sizes[-1] == self.batch_size + 1:
            self._parts += _cut_last(full_loss, self.batch_size)
        self.num_batches = len(self._parts)
        self.num_left_out = full_loss.data.num_examples - self.num_batches * self.batch_size
        if self.num_batches < 2:
            raise InputError(
                f"{full_loss.data.num_examples} examples make {self.num_batches} mini-batches of {self.batch_size}: "
                "a variance between mini-batches needs two at least; pass more data or a smaller batch_size."
            )
        scale = self.batch_size / (self.num_batches - 1)
        super().__init__(full_loss, self.num_batches, scale, memory_limit=memory_limit, guard=full_loss.evaluating)
        self._mean: Tensor | None = None

    def product(self, vector: Tensor) -> Tensor:
        return self.by_rows(vector.unsqueeze(0))[0]

    @property
    def mean_gradient(self) -> Tensor:
        """The mean of the K mini-batch gradients: ∇L where no example is left out.  # (d,)"""
        with self._passing():
            return self._centre().clone()

    def batch_gram(self) -> Tensor:
        """The inner products g_a · g_b of the mini-batch gradients themselves, in float64.  # (K, K), CPU"""
        centred = self.gram() / self.scale
        with self._passing():
            mean = self._centre().unsqueeze(0)
            along = torch.cat([inner_products(rows, mean) for _, rows in self._chunks()]).squeeze(1)
        return centred + along + along.unsqueeze(1) + inner_products(mean, mean)

    def make_rows(self, first: int) -> Iterator[Tensor]:
        mean = self._centre()
        for part in self._parts[first:]:
            yield (self._gradient(part) - mean).unsqueeze(0)

    def _chunks(self, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        self._centre()
        yield from super()._chunks(first)

    def _keep(self) -> bool:
        self._centre()
        return super()._keep()

    def _centre(self) -> Tensor:
        """The mean of the gradients, taken once; the centred ones stay where they fit."""
        if self._mean is None:
            total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
            rows = None
            if self.num_rows <= self._room():
                rows = torch.empty(self.num_rows, self.size, dtype=self.dtype, device=self.device)
            for number, part in enumerate(self._parts):
                gradient = self._gradient(part)
                total += gradient
                if rows is not None:
                    rows[number] = gradient
            self._mean = (total / self.num_rows).to(self.dtype)
            self._rows = None if rows is None else rows.sub_(self._mean)
        return self._mean

    def _gradient(self, part: tuple[int, int, int]) -> Tensor:
        """The gradient of one mini-batch's mean loss.  # (d,)"""
        index, low, high = part
        whole = high - low == self.full_loss.data.sizes[index]
        with torch.enable_grad():
            output, target = self.full_loss.outputs(index) if whole else self.full_loss.outputs(index, low, high)
            value, count = self.full_loss.sum_and_count(output, target, high - low)
            gradients = torch.autograd.grad(torch.as_tensor(value) / count, self.leaves, materialize_grads=True)
        return torch.cat([gradient.reshape(-1) for gradient in gradients])


def _cut_last(full_loss: StandingLoss, batch_size: int) -> list[tuple[int, int, int]]:
    """The partition joins a last single example to the batch before; here it is cut off again, where that can be."""
    last = len(full_loss.data) - 1
    try:
        with full_loss.evaluating():
            full_loss.outputs(last, 0, batch_size)
    except ValueError:
        return []
    cuts = [(last, 0, batch_size)]
    return [*cuts, (last, 1, 2)] if batch_size == 1 else cuts


def gradient_second_moment(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    memory_limit: int | None = None,
    **options: Unpack[LossOptions],
) -> GradientSecondMoment:
    """The uncentred second moment of single examples' gradients, C = (1/N) Σ ∇ℓ_i ∇ℓ_iᵀ, as an operator: ``C @ v``.

    It is the C of the paper's Eq. 3: the Hessian of a negative log-likelihood is H = C + R with R of
    :func:`sgdwalk.hessian_residual`. It is neither the covariance of the gradients (the mean is not taken off) nor the
    noise of mini-batches (:func:`sgdwalk.gradient_noise`). With labels drawn from the model it would be the Fisher
    matrix; with the data's own labels it is what is called the empirical Fisher matrix. Under BatchNorm in train mode
    ℓ_i is taken in its fixed evaluation batch.

    A product costs about six forward passes over ``data`` (graphs are kept while they fit, as for a Hessian) and needs
    no single gradients: with J the Jacobian of the ℓ_i it is Jᵀ (J v) / N. ``.trace()``, ``.diagonal()``,
    ``.squared_norms()``, ``.gram()`` and ``.eigenpairs(k)`` take the single gradients: about eight backward passes over
    ``data``, or under BatchNorm in train mode as many as an evaluation batch has examples.

    Args:
        model: the model; it is copied and stays as it is. θ are its d parameters that need a gradient, in its order.
        loss_fn: ``loss_fn(output, target)`` returning per-example losses, or the mean of a batch: then it is applied to
            one row of output and target at a time.
        data: the N examples: a pair of tensors, a map-style data set, a DataLoader or a list of batches.
        memory_limit: bytes that kept gradients may take, and kept graphs; a quarter of what is free by default.
        **options: ``batch_size``, ``batchnorm``, ``parameters``, ``forward``, ``partition_seed``: see
            :class:`sgdwalk.LossOptions`.

    Raises:
        InputError: for a model, loss_fn or data that cannot be measured; for a loss_fn that returns (sum, count) or
            cannot be applied to single rows.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> torch.nn.init.zeros_(model.weight).shape
    torch.Size([1, 2])
    >>> data = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0], [1.0]])
    >>> C = sgdwalk.gradient_second_moment(model, torch.nn.MSELoss(), data)  # ∇ℓ_i = 2 (x_i·w - y_i) x_i
    >>> C.dense().tolist(), C.trace()
    ([[2.0, 0.0], [0.0, 8.0]], 10.0)

    Source: the paper, Eq. 3 and Eq. 8.
    """
    return GradientSecondMoment(StandingLoss(model, loss_fn, data, **options), memory_limit=memory_limit)


def gradient_noise(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    batch_size: int | None,
    seed: int = 0,
    batchnorm: Literal["train", "eval"] = "train",
    parameters: Sequence[str] | None = None,
    forward: Forward | None = None,
    memory_limit: int | None = None,
) -> GradientNoise:
    """The noise of mini-batch gradients, S_B = B/(K-1) Σ (g_b - ḡ)(g_b - ḡ)ᵀ, as an operator: ``S @ v``.

    g_b are the gradients of the K mini-batches of B examples that a random permutation of ``data`` is cut into, ḡ is
    their mean. For a model without BatchNorm the expectation of S_B over permutations is the covariance of single
    examples' gradients (divisor N-1), whatever B. Under BatchNorm in train mode each mini-batch has its own statistics:
    S_B then depends on B and is no covariance of single examples. Everything else is in evaluation mode: noise of
    dropout or augmentation is not in it.

    A last mini-batch of another size is left out, and ``num_left_out`` says how many examples that is: its gradient has
    another variance, and under BatchNorm another mean. The K gradients are kept while they fit into memory
    (``release()`` lets them go), else each pass makes them again.

    Args:
        model: the model; it is copied and stays as it is.
        loss_fn: ``loss_fn(output, target)`` returning a batch mean, per-example losses, or a pair (sum, count).
        data: a pair of tensors, a map-style data set, a DataLoader or a list of batches.
        batch_size: B, examples a mini-batch; None for data that come in batches, which then are the mini-batches, or
            for a DataLoader's own.
        seed: of the permutation.
        batchnorm: ``train`` (each mini-batch's own statistics) or ``eval`` (running ones).
        parameters: names of parameters or layers to restrict θ to.
        forward: ``forward(model, batch) -> (output, target)`` for batches that are no (input, target) pairs.
        memory_limit: bytes that kept gradients may take; a quarter of what is free by default.

    Raises:
        InputError: for a model, loss_fn or data that cannot be measured; where there are fewer than two mini-batches.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> data = torch.ones(4, 1), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> S = sgdwalk.gradient_noise(model, torch.nn.MSELoss(), data, batch_size=1)  # ∇ℓ_i = 2 (w - y_i)
    >>> S.num_batches, round(S.trace(), 4)  # 4 times the sample variance of y, 5/3
    (4, 6.6667)

    Source: the paper, Eq. 2, and McCandlish et al. 2018 (arXiv 1812.06162).
    """
    if batch_size is None and not isinstance(data, (DataLoader, list)):
        raise InputError(
            "batch_size=None, but the noise of mini-batches depends on their size: pass batch_size, for example that "
            "of training."
        )
    loss = StandingLoss(
        model,
        loss_fn,
        data,
        batch_size=batch_size,
        batchnorm=batchnorm,
        parameters=parameters,
        forward=forward,
        partition_seed=seed,
    )
    return GradientNoise(loss, batch_size, memory_limit=memory_limit)
