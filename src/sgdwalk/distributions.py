"""Quantiles and extremes of the distributions that intervals need, so that the package needs no SciPy."""

from __future__ import annotations

import math

import torch

_NORMAL_975 = 1.959963984540054
_MANY = 1_000
"""Degrees of freedom from which on the expansion around the normal quantile is exact to 1e-9."""


def student_t_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: half-width of a 95 % interval in standard errors.

    By bisection of the closed form of P(|T| ≤ t), Abramowitz & Stegun 26.7.3 and 26.7.4; from 1,000 degrees of freedom
    on by the expansion 26.7.5.

    >>> round(student_t_975(1), 3), round(student_t_975(9), 3), round(student_t_975(10**6), 3)
    (12.706, 2.262, 1.96)
    """
    assert freedom >= 1
    z = _NORMAL_975
    if freedom >= _MANY:
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = z, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| ≤ t)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine if freedom > 1 else 0.0) if odd else (1.0, 1.0)
    for j in range(2 + odd, freedom, 2):
        term *= cosine**2 * (j - 1) / j
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def expected_largest_variance(num_coordinates: int, freedom: int) -> float:
    """E[max of d independent χ²_ν / ν]: how far the largest of d sample variances lies above their common true value.

    The integral of P(max > x) over x ≥ 0, with P(max > x) = 1 - (1 - Q(x))^d.

    >>> round(expected_largest_variance(1, 8), 6)
    1.0
    >>> round(expected_largest_variance(9_800_000, 8), 1), round(expected_largest_variance(9_800_000, 449), 1)
    (6.2, 1.4)
    """
    # P(χ²_ν > ν + 2 sqrt(ν s) + 2 s) ≤ e^-s (Laurent & Massart 2000): beyond s = ln d + 40 nothing is left.
    s = math.log(num_coordinates) + 40.0
    end = (freedom + 2 * math.sqrt(freedom * s) + 2 * s) / freedom
    x = torch.linspace(0.0, end, 200_001, dtype=torch.float64)
    upper = torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), x * (freedom / 2))
    beyond = -torch.expm1(num_coordinates * torch.log1p(-upper.clamp(max=1.0)))
    return float(torch.trapezoid(beyond, x))
