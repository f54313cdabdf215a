"""The compiled loops over parameters given by address, each cut into blocks; needs numba.

Sums may be reordered, but NaN and infinity keep their meaning. A block whose sums are too small or too large for
float32 is summed once more in float64 while it is in the cache: ``zero`` tells the precision. Each sum is chosen on its
own, so that its last digits do not depend on the others: a resumed walk repeats them.
"""

from __future__ import annotations

from typing import Any

import numba as _numba
import numpy as np

numba: Any = _numba
FUSED_BLOCK = 256
"""Coordinates of a block: the compiler makes a library call of a block's copy, and longer ones start slowly."""
SAFE_SUM = 1e-30
"""That of ``kernels``, written out: code that is kept knows of changes in this file only."""
FASTMATH = {"reassoc", "contract", "nsz"}


def jit(function: Any) -> Any:
    """Compile at the first call and keep the code on disk, so that the next process starts at once."""
    try:
        return numba.njit(function, fastmath=FASTMATH, cache=True)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return numba.njit(function, fastmath=FASTMATH)


@numba.extending.intrinsic
def pointer(typing, address, like):
    """The address as a pointer to what the array ``like`` holds."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(like.dtype)(address, like), generate


@jit
def in_range(value):
    return FUSED_BLOCK * SAFE_SUM < abs(value) < np.inf


@jit
def chosen(narrow, wide):
    return np.float64(narrow) if in_range(narrow) else wide


@jit
def copy(source, target):
    for i in range(source.size):
        target[i] = source[i]


@jit
def block_differs(values, kept):
    difference = values.dtype.type(0)
    for i in range(values.size):
        difference |= values[i] ^ kept[i]
    return difference != 0


@jit
def differs(addresses, bounds, kept):
    for index in range(addresses.size):
        values = numba.carray(pointer(addresses[index], kept), bounds[index + 1] - bounds[index])
        others = kept[bounds[index] : bounds[index + 1]]
        for i in range(0, values.size, FUSED_BLOCK):
            if block_differs(values[i : i + FUSED_BLOCK], others[i : i + FUSED_BLOCK]):
                return True
    return False


@jit
def gradient_block(gradient, kept, zero):
    dot = square = zero
    for i in range(gradient.size):
        value = gradient[i] + zero
        dot += value * kept[i]
        square += value * value
    return dot, square


@jit
def slope_block(gradient, moved, zero):
    slope = zero
    for i in range(gradient.size):
        slope += (gradient[i] + zero) * moved[i]
    return slope


@jit
def gradient_sums(addresses, bounds, kept, displacement):
    dot = square = 0.0
    slope = 0.0 if displacement.size else np.nan
    for index in range(addresses.size):
        previous = kept[bounds[index] : bounds[index + 1]]
        if addresses[index] == 0:
            previous[:] = 0
            continue
        gradient = numba.carray(pointer(addresses[index], kept), previous.size)
        for i in range(0, gradient.size, FUSED_BLOCK):
            new, old = gradient[i : i + FUSED_BLOCK], previous[i : i + FUSED_BLOCK]
            if displacement.size:
                moved = displacement[bounds[index] + i : bounds[index] + i + new.size]
                narrow = slope_block(new, moved, kept.dtype.type(0))
                slope += narrow if in_range(narrow) else slope_block(new, moved, 0.0)
            sums = gradient_block(new, old, kept.dtype.type(0))
            if in_range(sums[0]) and in_range(sums[1]):
                dot += sums[0]
                square += sums[1]
            else:
                wide = gradient_block(new, old, 0.0)
                dot += chosen(sums[0], wide[0])
                square += chosen(sums[1], wide[1])
            copy(new, old)
    return dot, square, slope


@jit
def position_block(values, kept, start, zero):
    param = update = distance = zero
    for i in range(values.size):
        value = values[i] + zero
        step = value - kept[i]
        displacement = value - start[i]
        param += value * value
        update += step * step
        distance += displacement * displacement
    return param, update, distance


@jit
def subtract(values, kept, moved):
    for i in range(values.size):
        moved[i] = values[i] - kept[i]


@jit
def position_sums(addresses, bounds, kept, start, displacement, advance):
    param = update = distance = 0.0
    for index in range(addresses.size):
        values = numba.carray(pointer(addresses[index], kept), bounds[index + 1] - bounds[index])
        befores, origins = kept[bounds[index] : bounds[index + 1]], start[bounds[index] : bounds[index + 1]]
        for i in range(0, values.size, FUSED_BLOCK):
            new, old, origin = (
                values[i : i + FUSED_BLOCK],
                befores[i : i + FUSED_BLOCK],
                origins[i : i + FUSED_BLOCK],
            )
            sums = position_block(new, old, origin, kept.dtype.type(0))
            if in_range(sums[0]) and in_range(sums[1]) and in_range(sums[2]):
                param += sums[0]
                update += sums[1]
                distance += sums[2]
            else:
                wide = position_block(new, old, origin, 0.0)
                param += chosen(sums[0], wide[0])
                update += chosen(sums[1], wide[1])
                distance += chosen(sums[2], wide[2])
            if displacement.size:
                subtract(new, old, displacement[bounds[index] + i : bounds[index] + i + new.size])
            if advance:
                copy(new, old)
    return param, update, distance
