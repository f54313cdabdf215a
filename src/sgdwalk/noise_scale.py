"""The gradient noise scale: the batch size at which the noise of a mini-batch gradient is as large as the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sgdwalk.distributions import student_t_975
from sgdwalk.draws import generator
from sgdwalk.eigensolver import inner_products
from sgdwalk.errors import InputError
from sgdwalk.measures import Here, Undefined
from sgdwalk.noise import gradient_noise
from sgdwalk.objective import Forward, LossFunction

FEWEST_BATCHES = 3
"""Mini-batches without which there is no jackknife."""


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """tr Σ / ‖g‖², with its 95 % interval.

    Attributes:
        value: the estimate, in examples; NaN where the estimate of ‖g‖² is not positive.
        low: lower end of the 95 % interval.
        high: its upper end; infinite where the gradient cannot be told from zero.
        trace: the unbiased estimate of tr Σ, tr S_B.
        squared_gradient: the unbiased estimate of ‖g‖² (it may be negative), or ‖∇L‖² itself for ``gradient="data"``.
        batch_size: B.
        num_batches: K.
        num_left_out: examples that no mini-batch holds.
        gradient: ``population`` or ``data``: what g is.
        reason: why the value is undefined or the interval unbounded; empty otherwise.
    """

    value: float
    low: float
    high: float
    trace: float
    squared_gradient: float
    batch_size: int
    num_batches: int
    num_left_out: int
    gradient: Literal["population", "data"]
    reason: str


def gradient_noise_scale(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    batch_size: int | None,
    gradient: Literal["population", "data"] = "population",
    seed: int = 0,
    batchnorm: Literal["train", "eval"] = "train",
    parameters: Sequence[str] | None = None,
    forward: Forward | None = None,
) -> NoiseScale:
    """tr Σ / ‖g‖² from the gradients g_b of K mini-batches of B examples, Σ = S_B of :func:`sgdwalk.gradient_noise`.

    tr Σ / B is the expected squared deviation of a mini-batch gradient, so at the batch size B = tr Σ / ‖g‖² noise and
    gradient are equally long. It is estimated as a ratio of unbiased means, over the pairs a ≠ b of mini-batches:

        tr Σ ≈ B (mean ‖g_b‖² - mean g_a·g_b),    ‖g‖² ≈ mean g_a·g_b = ‖ḡ‖² - tr Σ / (B K).

    What g is depends on the question:

    - ``population``: the gradient of the distribution that ``data`` are a sample of. For a probe set that stands for
      more data, and for what a step means beyond the training set. ‖ḡ‖² itself would be too large by tr Σ / (B K), the
      noise that is left in the mean.
    - ``data``: ∇L over exactly these examples. For the training set itself: SGD that draws from it has ∇L as its mean
      direction, and ‖ḡ‖² = ‖∇L‖² is known without error. Late in training it is much larger than the population's.
      Wants a B that divides N. Under BatchNorm, L is that of these K mini-batches.

    The interval needs the K × K Gram matrix of the g_b only. Covariances come from the delete-one jackknife; the
    interval is Fieller's, the ratios r for which tr Σ - r ‖g‖² cannot be told from zero, with Student's t of K-1
    degrees of freedom. Where ‖g‖² cannot be told from zero its upper end is infinite, and ``reason`` says so. For
    ``data`` only tr Σ is uncertain (another partition would give another one); its interval is symmetric in the
    logarithm. Simulated coverage with normal gradients is 93 % to 100 % for K ≥ 10 and noise in five or more equal
    directions; noise in a single direction brings it down to 84 % where K is small or the gradient near zero.

    Args:
        model: the model; it is copied and stays as it is.
        loss_fn: ``loss_fn(output, target)`` returning a batch mean, per-example losses, or a pair (sum, count).
        data: a pair of tensors, a map-style data set, a DataLoader or a list of batches.
        batch_size: B; None for data that come in batches. A small one gives many mini-batches, and a short interval.
        gradient: ``population`` or ``data``.
        seed: of the permutation that is cut into mini-batches.
        batchnorm: ``train`` (each mini-batch's own statistics; the noise scale then depends on B) or ``eval``.
        parameters: names of parameters or layers to restrict θ to.
        forward: ``forward(model, batch) -> (output, target)`` for batches that are no (input, target) pairs.

    Raises:
        InputError: as :func:`sgdwalk.gradient_noise`; for ``gradient="data"`` where mini-batches leave examples out.

    >>> import torch, sgdwalk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> data = torch.ones(4, 1), torch.tensor([[2.0], [3.0], [4.0], [5.0]])  # ∇ℓ_i = -2 y_i
    >>> scale = sgdwalk.gradient_noise_scale(model, torch.nn.MSELoss(), data, batch_size=1, gradient="data")
    >>> round(scale.trace, 4), round(scale.squared_gradient, 4), round(scale.value, 4)  # 4 · 5/3, 7²
    (6.6667, 49.0, 0.1361)

    Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv 1812.06162); Fieller 1954.
    """
    if gradient not in ("population", "data"):
        raise InputError(f"gradient={gradient!r} does not exist; there is 'population' and 'data'.")
    noise = gradient_noise(
        model,
        loss_fn,
        data,
        batch_size=batch_size,
        seed=seed,
        batchnorm=batchnorm,
        parameters=parameters,
        forward=forward,
    )
    if gradient == "data" and noise.num_left_out:
        raise InputError(
            f"Mini-batches of {noise.batch_size} leave {noise.num_left_out} of {noise.full_loss.data.num_examples} "
            "examples out, so their mean gradient is not that of all data: pass a batch_size that divides the number "
            "of examples, or gradient='population'."
        )
    return noise_scale_of(noise.batch_gram(), noise.batch_size, gradient, num_left_out=noise.num_left_out)


def noise_scale_of(
    gram: Tensor,
    batch_size: int,
    gradient: Literal["population", "data"] = "population",
    *,
    num_left_out: int = 0,
) -> NoiseScale:
    """The noise scale from the inner products g_a · g_b of K mini-batch gradients.  # (K, K), float64"""
    pairs = _Pairs(gram, batch_size)
    trace = pairs.trace
    squared = float(gram.mean()) if gradient == "data" else pairs.squared_gradient
    covariance = pairs.covariance()
    value = trace / squared if squared > 0 else math.nan
    reason = "" if squared > 0 else "the squared gradient is estimated as not above zero"
    if covariance is None:
        low, high = 0.0, math.inf
        reason = reason or f"an interval needs {FEWEST_BATCHES} mini-batches at least"
    elif gradient == "data":
        low, high = (0.0, math.inf) if not squared > 0 else _around(trace, covariance[0], squared, pairs.quantile)
    else:
        low, high = fieller(trace, squared, covariance, pairs.quantile)
        if math.isinf(high):
            reason = reason or "the gradient cannot be told from zero, so the interval has no upper end"
    return NoiseScale(value, low, high, trace, squared, batch_size, len(gram), num_left_out, gradient, reason)


class GradientNoiseScale:
    """The gradient noise scale along a walk, as a measure: ``watch(..., measures={"noise": GradientNoiseScale()})``.

    The mini-batches are evaluation batches of the walk: pass ``watch`` the batch size of training. Fills ``noise``
    (tr Σ / ‖g‖², in examples), ``noise_low`` and ``noise_high``, its 95 % interval, ``noise_trace`` (tr Σ),
    ``noise_gradient_square`` (‖g‖²) and ``noise_batch_size``. Costs a gradient of each mini-batch, and memory for all
    of them at once: ``num_batches`` vectors of the parameters' size.

    Args:
        num_batches: mini-batches to measure on, drawn afresh at each step; None for all.
        gradient: what g is, ``population`` or ``data``, as for :func:`gradient_noise_scale`; ``data`` takes all.
        seed: of the draw.

    >>> import torch, sgdwalk
    >>> model, data = torch.nn.Linear(2, 1), (torch.randn(50, 2), torch.randn(50, 1))
    >>> optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss()
    >>> measures = {"noise": sgdwalk.GradientNoiseScale()}
    >>> with sgdwalk.watch(model, optimizer, loss_fn, data, batch_size=5, measures=measures) as walk:
    ...     loss_fn(model(data[0][:5]), data[1][:5]).backward()
    ...     optimizer.step()
    >>> walk.run.steps[["noise_trace", "noise_batch_size"]].notna().to_numpy().tolist()
    [[True, True]]

    Source: McCandlish et al. 2018 (arXiv 1812.06162).
    """

    def __init__(
        self,
        num_batches: int | None = 20,
        *,
        gradient: Literal["population", "data"] = "population",
        seed: int = 0,
    ):
        if gradient not in ("population", "data"):
            raise InputError(f"gradient={gradient!r} does not exist; there is 'population' and 'data'.")
        counts = isinstance(num_batches, int) and not isinstance(num_batches, bool) and num_batches >= FEWEST_BATCHES
        if num_batches is not None and not counts:
            raise InputError(
                f"num_batches={num_batches!r}: at least {FEWEST_BATCHES} mini-batches, or None for all: an interval "
                "needs them."
            )
        self.num_batches = None if gradient == "data" else num_batches
        self.gradient: Literal["population", "data"] = gradient
        self.seed = seed

    def for_walk(self, here: Here) -> GradientNoiseScale:
        """Itself: it has no memory, and can be taken where there is a full loss."""
        here.full_loss()
        return self

    def __call__(self, here: Here) -> dict[str, float | Undefined]:
        loss = here.full_loss()
        sizes = loss.data.sizes
        whole = [index for index, size in enumerate(sizes) if size == max(sizes)]  # a ragged last batch is another B
        if len(whole) < 2:
            return {"value": Undefined(f"{len(whole)} mini-batch of {max(sizes)} examples; at least 2 are needed")}
        if self.gradient == "data" and len(whole) < len(sizes):
            ragged = f"{len(whole)} of {len(sizes)} evaluation batches have {max(sizes)} examples"
            return {"value": Undefined(f"{ragged}; gradient='data' needs all of one size")}
        draw = generator("mini-batches of the gradient noise scale", self.seed, here.step)
        chosen = [whole[i] for i in torch.randperm(len(whole), generator=draw)[: self.num_batches].tolist()]
        rows = torch.stack([loss.gradient(batches=[index]) for index in chosen])
        gram = inner_products(rows, rows)
        if not bool(torch.isfinite(gram).all()):
            return {"value": Undefined("a gradient is not finite")}
        scale = noise_scale_of(gram, max(sizes), self.gradient)
        return {
            "value": scale.value if math.isfinite(scale.value) else Undefined(scale.reason),
            "low": scale.low,
            "high": scale.high if math.isfinite(scale.high) else Undefined(scale.reason),
            "trace": scale.trace,
            "gradient_square": scale.squared_gradient,
            "batch_size": float(max(sizes)),
        }


class _Pairs:
    """Means over one and over two different mini-batches, as they are and with each batch left out in turn."""

    def __init__(self, gram: Tensor, batch_size: int):
        self._gram, self._b, self._k = gram, batch_size, len(gram)
        self._diagonal = gram.diagonal()
        self._off = float(gram.sum() - self._diagonal.sum())
        self.squared_gradient = self._off / (self._k * (self._k - 1))
        self.trace = batch_size * (float(self._diagonal.mean()) - self.squared_gradient)
        self.quantile = student_t_975(self._k - 1)

    def covariance(self) -> tuple[float, float, float] | None:
        """Jackknife (co)variances of trace and squared gradient: of the first, of both, of the second."""
        k = self._k
        if k < FEWEST_BATCHES:
            return None
        squares = (self._off - 2 * (self._gram.sum(1) - self._diagonal)) / ((k - 1) * (k - 2))
        traces = self._b * ((float(self._diagonal.sum()) - self._diagonal) / (k - 1) - squares)
        matrix = torch.cov(torch.stack([traces, squares])) * (k - 1) ** 2 / k
        # Near a gradient of zero, the jackknife sees too little spread where all g_b happen to cancel: the variance
        # that remains then is 2 tr (S_B / B)² / (K (K - 1)).
        centred = self._gram - self._gram.mean(0) - self._gram.mean(1, keepdim=True) + self._gram.mean()
        least = 2 * float(centred.square().sum()) / ((k - 1) ** 2 * k * (k - 1))
        return float(matrix[0, 0]), float(matrix[0, 1]), max(float(matrix[1, 1]), least)


def fieller(over: float, under: float, covariance: tuple[float, float, float], quantile: float) -> tuple[float, float]:
    """The non-negative ratios r for which |over - r under| ≤ quantile · its standard error, as (low, high).

    ``high`` is infinite where ``under`` is not told from zero, or not positive.

    >>> fieller(6.0, 2.0, (0.0, 0.0, 0.25), 2.0)  # 6 / (2 ± 1)
    (2.0, 6.0)
    >>> fieller(6.0, 0.5, (0.0, 0.0, 0.25), 2.0)
    (4.0, inf)
    """
    t2 = quantile * quantile
    a = under * under - t2 * covariance[2]
    b = over * under - t2 * covariance[1]
    c = over * over - t2 * covariance[0]
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0.0:
        return (max((b - root) / a, 0.0), (b + root) / a) if under > 0.0 else (0.0, math.inf)
    if c <= 0.0 or b + root <= 0.0:  # the numerator is not told from zero either: nothing is known
        return 0.0, math.inf
    return c / (b + root), math.inf  # the positive one of two roots of different sign, free of cancellation


def _around(trace: float, variance: float, squared: float, quantile: float) -> tuple[float, float]:
    if trace <= 0.0:
        return 0.0, 0.0
    factor = math.exp(quantile * math.sqrt(variance) / trace)
    return trace / factor / squared, trace * factor / squared
