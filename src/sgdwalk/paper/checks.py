"""Settings that cannot be meant are refused before anything starts: what was wanted, and what was given.

Each raises ``sgdwalk.InputError``.
"""

from __future__ import annotations

import math
from typing import Any

import sgdwalk


def check_count(name: str, value: int | None, least: int, most: int | None = None) -> None:
    """An integer between two bounds, or None, which is left alone."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        wanted = f"an integer of at least {least:,}" + ("" if most is None else f" and at most {most:,}")
        raise sgdwalk.InputError(f"{name} must be {wanted}; got {value!r}.")


def check_number(name: str, value: float, low: float, high: float) -> None:
    """A number from ``low`` on and below ``high``."""
    if not low <= value < high:
        wanted = f"at least {low:g} and finite" if high == math.inf else f"at least {low:g} and below {high:g}"
        raise sgdwalk.InputError(f"{name} must be {wanted}; got {value!r}.")


def check_choice(name: str, value: str, choices: Any) -> None:
    """One of the choices."""
    if value not in choices:
        raise sgdwalk.InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
