"""How far isotropic noise carries the parameters: the arithmetic behind the final norms of the paper's Figure 5."""

from __future__ import annotations

import math

from sgdwalk.errors import InputError


def norm_under_noise(
    start_norm: float,
    *,
    sigma: float,
    num_parameters: int,
    learning_rate: float,
    num_updates: float,
    weight_decay: float = 0.0,
) -> float:
    """The root mean square of ‖θ_T‖ after T updates of noise alone, the gradient's own drift ignored.

    Each update is θ ← (1 - η γ) θ - η ε with ε ~ N(0, σ² I), so with q = (1 - η γ)²

        E‖θ_T‖² = q^T ‖θ_0‖² + η² σ² d (1 - q^T) / (1 - q),

    and ‖θ_0‖² + η² σ² d T without weight decay (q = 1).

    Args:
        start_norm: ‖θ_0‖.
        sigma: σ, the noise's standard deviation in each coordinate.
        num_parameters: d.
        learning_rate: η.
        num_updates: T.
        weight_decay: γ of an L2 term.

    Raises:
        InputError: for numbers that are negative, or η γ of 1 and more.

    >>> round(norm_under_noise(3.0, sigma=2.0, num_parameters=4, learning_rate=0.5, num_updates=4), 6)  # 9 + 4 · 4
    5.0

    Source: paper, Figure 5 (norms of the final parameters).
    """
    q = _decay(start_norm, sigma, num_parameters, learning_rate, num_updates, weight_decay)
    kick = (learning_rate * sigma) ** 2 * num_parameters
    if q == 1.0:
        return math.sqrt(start_norm**2 + kick * num_updates)
    left = q**num_updates
    return math.sqrt(left * start_norm**2 + kick * (1.0 - left) / (1.0 - q))


def updates_to_norm(
    norm: float,
    *,
    start_norm: float,
    sigma: float,
    num_parameters: int,
    learning_rate: float,
    weight_decay: float = 0.0,
) -> float:
    """The number of updates T after which :func:`norm_under_noise` is ``norm``; infinite where it never is.

    With weight decay the norm tends to η σ (d / (1 - q))^(1/2) and never passes it.

    >>> updates_to_norm(5.0, start_norm=3.0, sigma=2.0, num_parameters=4, learning_rate=0.5)
    4.0

    Source: paper, Figure 5: from 87 to 369 and 443 for VGG-11, learning rate 0.1.
    """
    q = _decay(start_norm, sigma, num_parameters, learning_rate, norm, weight_decay)
    kick = (learning_rate * sigma) ** 2 * num_parameters
    if norm == start_norm:
        return 0.0
    if q == 1.0:
        return (norm**2 - start_norm**2) / kick if kick > 0 and norm > start_norm else math.inf
    limit = kick / (1.0 - q)
    share = (norm**2 - limit) / (start_norm**2 - limit) if start_norm**2 != limit else 0.0
    return math.log(share) / math.log(q) if 0.0 < share < 1.0 else math.inf


def _decay(*amounts: float) -> float:
    """q = (1 - η γ)², after checking the numbers."""
    if any(not math.isfinite(amount) or amount < 0 for amount in amounts):
        raise InputError(f"Norms, σ, d, η, T and γ must be finite and not negative; got {amounts}.")
    learning_rate, weight_decay = amounts[3], amounts[5]
    if learning_rate * weight_decay >= 1:
        raise InputError(
            f"η γ = {learning_rate * weight_decay:g}: weight decay must leave something of the parameters."
        )
    return (1.0 - learning_rate * weight_decay) ** 2
