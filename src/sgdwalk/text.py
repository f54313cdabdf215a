"""Text that was written by others, made safe and short enough to show, and numbers made readable.

A run's name, a measure's name or an event's message may hold anything: escape sequences, line separators, a megabyte.
What a person sees of it is one line of visible characters, and a cut is said.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

import numpy as np

_BARS = "▁▂▃▄▅▆▇█"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})


def plain(value: object, limit: int = 200) -> str:
    """One line of visible characters: controls are spelled out, and what is longer than ``limit`` is cut, and said so.

    Args:
        value: anything; its ``str`` is shown.
        limit: the most characters of it that are shown.

    >>> plain("SGD\\x1b[31m")
    'SGD\\\\x1b[31m'
    >>> plain("a" * 1000, limit=5)
    'aaaaa… (5 of 1,000 characters)'
    """
    text = str(value)
    shown = "".join(_visible(character) for character in text[:limit])
    return shown if len(text) <= limit else f"{shown}… ({limit:,} of {len(text):,} characters)"


def _visible(character: str) -> str:
    if character == "\n":
        return " "
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def number(value: float | None, digits: int = 3, *, zeros: bool = False) -> str:
    """A number for a person: ``digits`` significant digits, a true minus sign, a dash where it is undefined.

    Trailing zeros go unless ``zeros``, which a column of numbers wants.

    >>> number(-0.0123456)
    '−0.0123'
    >>> number(123456.0), number(1.5e-7), number(float("nan")), number(2)
    ('123,456', '1.5e−7', '–', '2')
    >>> number(0.5, 4, zeros=True)
    '0.5000'
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if "." in mantissa and not zeros:
            mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{mantissa}e{int(exponent)}"
    else:
        decimals = max(digits - 1 - math.floor(math.log10(size)), 0)
        text = f"{value:,.{decimals}f}"
        if "." in text and not zeros:
            text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")


def count(quantity: int, noun: str, plural: str | None = None) -> str:
    """A quantity with its noun in the right number.

    >>> count(1, "barrier"), count(0, "barrier"), count(1200, "update")
    ('1 barrier', '0 barriers', '1,200 updates')
    """
    return f"{quantity:,} {noun if quantity == 1 else plural or noun + 's'}"


def sparkline(values: Iterable[float], width: int = 60) -> str:
    """A line of bars for a terminal, lowest value to highest; undefined values leave a space.

    More than ``width`` values are drawn as the means of ``width`` equal parts.

    >>> sparkline([0, 1, 2, 3, float("nan"), 7])
    '▁▂▃▄ █'
    >>> sparkline([5, 5, 5])
    '▄▄▄'
    """
    numbers = np.asarray(list(values), dtype=np.float64)
    numbers[np.isinf(numbers)] = math.nan
    if len(numbers) > width:
        parts = (part[~np.isnan(part)] for part in np.array_split(numbers, width))
        numbers = np.array([part.mean() if len(part) else math.nan for part in parts])
    finite = numbers[~np.isnan(numbers)]
    if len(finite) == 0:
        return " " * len(numbers)
    low, span = finite.min(), np.ptp(finite)
    if span == 0:
        return "".join(" " if math.isnan(value) else _BARS[3] for value in numbers)
    return "".join(" " if math.isnan(value) else _BARS[round(7 * (value - low) / span)] for value in numbers)
