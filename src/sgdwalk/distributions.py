"""Quantiles and extremes of the distributions that intervals need."""

from __future__ import annotations

import math

import numpy as np
from scipy import special


def student_t_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: half-width of a 95 % interval in standard errors.

    >>> round(student_t_975(1), 3), round(student_t_975(9), 3), round(student_t_975(10**6), 3)
    (12.706, 2.262, 1.96)
    """
    return float(special.stdtrit(freedom, 0.975))


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
    x = np.linspace(0.0, end, 200_001)
    upper = special.gammaincc(freedom / 2, x * (freedom / 2))
    with np.errstate(divide="ignore"):  # at x = 0 the maximum is beyond for certain: log 0
        beyond = -np.expm1(num_coordinates * np.log1p(-upper))
    return float(np.trapezoid(beyond, x))
