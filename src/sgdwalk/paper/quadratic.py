"""Figure 28: gradient descent on a quadratic, its rates of convergence measured and by the formula |λη - 1|."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

EIGENVALUES = (1.0, 2.0, 4.0, 10.0)
"""Of the quadratic that is computed; the paper names no numbers."""
LEARNING_RATES = tuple(round(0.0025 + 0.005 * k, 4) for k in range(50))
"""None is 1/λ or 2/λ, where direction and rate stand on a knife's edge."""
SHOWN_RATE = 0.1525
"""Between 1/λ_max and the next 1/λ: only the steepest direction oscillates, without divergence."""
NUM_UPDATES = 20
FLOOR = 1e-8
"""A coordinate below this part of the whole distance is made of rounding errors, and is not looked at."""


def descend(eigenvalues: Sequence[float], learning_rate: float, num_updates: int) -> NDArray[np.float64]:
    """Gradient descent on L(θ) = ½ θᵀHθ from a point one unit from the minimum along every eigenvector of H.

    H has the eigenvalues given and eigenvectors drawn at random: the updates know nothing of either.

    Returns:
        Coordinates of the iterates along the eigenvectors.  # (num_updates + 1, d)

    >>> descend([1.0, 10.0], 0.15, 1).round(12)
    array([[ 1.  ,  1.  ],
           [ 0.85, -0.5 ]])
    """
    d = len(eigenvalues)
    eigenvectors, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))  # (d, d), in columns
    hessian = eigenvectors @ np.diag(eigenvalues) @ eigenvectors.T
    theta = eigenvectors.sum(axis=1)
    iterates = [theta]
    for _ in range(num_updates):
        theta = theta - learning_rate * hessian @ theta
        iterates.append(theta)
    return np.array(iterates) @ eigenvectors


def rates(eigenvalues: Sequence[float] = EIGENVALUES, learning_rates: Sequence[float] = LEARNING_RATES) -> pd.DataFrame:
    """One row a learning rate and eigenvalue: the rate by the formula and as measured, and whether it oscillates.

    The measured rate is the geometric mean of the factors by which an update changes the distance from the minimum
    along the eigenvector. ``oscillates``: every update lands on the other side.
    """
    rows = []
    for learning_rate in learning_rates:
        path = descend(eigenvalues, learning_rate, NUM_UPDATES)
        clear = np.abs(path) >= FLOOR * np.linalg.norm(path, axis=1, keepdims=True)
        for index, eigenvalue in enumerate(eigenvalues):
            lost = np.flatnonzero(~clear[1:, index])
            updates = int(lost[0]) if len(lost) else NUM_UPDATES
            seen = path[: max(updates, 1) + 1, index]
            rows.append(
                {
                    "learning_rate": learning_rate,
                    "eigenvalue": eigenvalue,
                    "formula": abs(eigenvalue * learning_rate - 1),
                    "measured": float(np.abs(seen[-1] / seen[0]) ** (1 / (len(seen) - 1))),
                    "oscillates": bool(np.all(seen[1:] * seen[:-1] < 0)),
                    "updates": len(seen) - 1,
                }
            )
    return pd.DataFrame(rows)
