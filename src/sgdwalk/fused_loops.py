"""The compiled loops over vectors given by address, each cut into blocks; needs numba.

Sums may be reordered, but NaN and infinity keep their meaning. A block whose sums are too small or too large for
float32 is summed once more in float64 while it is in the cache. Each sum is chosen on its own, so that its last digits
do not depend on the others: a resumed walk repeats them.
"""

from __future__ import annotations

import functools
from typing import Any

import numba as _numba
import numpy as np

numba: Any = _numba
FUSED_BLOCK = 512
"""Coordinates of a block: that of ``kernels``, written out as below."""
SAFE_SUM = 1e-30
"""That of ``kernels``, written out: code that is kept knows of changes in this file only."""
FASTMATH = {"reassoc", "contract", "nsz"}
NOWHERE = -1
"""The address of a vector that is not there; an empty one may lie at 0."""
MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: a mark times it is another one for every other mark."""


def keys(number: int) -> np.ndarray:
    """32-bit numbers without a pattern (SplitMix64: G. L. Steele and others, OOPSLA 2014), the same for ever."""
    state = np.arange(1, number + 1, dtype=np.uint64) * MIX
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))).astype(np.uint32)


KEYS = keys(2 * FUSED_BLOCK)
"""Of the marks, for the 32-bit words of one block."""
WEIGHTS = (1 + (KEYS[:FUSED_BLOCK] >> 8) / 2.0**24).astype(np.float32) * np.where(KEYS[:FUSED_BLOCK] & 1, 1, -1).astype(
    np.float32
)
"""Of the sketches, for the coordinates of one block: of either sign, and of 1 to 2, so that each coordinate counts."""
SQUARE_WEIGHT = 7 / 3
"""Mean square of the weights: (1 + u)² where u is between 0 and 1."""
SLACK = 24.0
"""Units in the last place, of the lengths of what is added up, by which sketches may differ for rounding: three times
as many as were seen."""


def jit(function: Any, **options: Any) -> Any:
    """Compile at the first call and keep the code on disk, so that the next process starts at once."""
    try:
        return numba.njit(function, fastmath=FASTMATH, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return numba.njit(function, fastmath=FASTMATH, **options)


jit_inline = functools.partial(jit, forceinline=True)
"""Puts a loop in place of its call, or arrays that it reads and writes are not known to be apart: 4 times slower."""


@numba.extending.intrinsic
def pointer(typing, address, like):
    """The address as a pointer to what the array ``like`` holds."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(like.dtype)(address, like), generate


@jit
def array(address, size, like):
    return numba.carray(pointer(address, like), size)


@jit
def in_range(value):
    return FUSED_BLOCK * SAFE_SUM < abs(value) < np.inf


@jit
def chosen(narrow, wide):
    return np.float64(narrow) if in_range(narrow) else wide


# -------------------------------------------------------------------------------------------------- has θ been moved?
@jit
def block_differs(values, kept):
    difference = np.uint32(0)
    for i in range(values.size):
        difference |= values[i] ^ kept[i]
    return difference != 0


@jit
def differs(addresses, bounds, words, kept):
    """Whether any bit of the parameters is another one than in the kept copy; ``words`` of 32 bits a coordinate."""
    for index in range(addresses.size):
        size = words * (bounds[index + 1] - bounds[index])
        values, others = array(addresses[index], size, KEYS), array(kept + 4 * words * bounds[index], size, KEYS)
        for i in range(0, size, KEYS.size):
            if block_differs(values[i : i + KEYS.size], others[i : i + KEYS.size]):
                return True
    return False


@jit
def joined(mark, block):
    """The mark with one more block's (NH, a sum of products of keyed words: J. Black and others, UMAC, 1999).

    Its halves are mixed first, or what blocks differ by would add up in the upper half, and out of it.
    """
    total, half = np.uint64(0), block.size // 2
    for i in range(half):
        one, other = np.uint32(block[i] + KEYS[i]), np.uint32(block[i + half] + KEYS[i + half])
        total += np.uint64(one) * np.uint64(other)
    if block.size % 2:
        total += np.uint64(block[block.size - 1])
    return (mark ^ (mark >> np.uint64(32))) * MIX + total


@jit
def marks(addresses, bounds, words):
    """The mark of the parameters: where any bit is another one, so is the mark, but for a chance of 2^-32."""
    mark, length = np.uint64(0), words * FUSED_BLOCK
    for index in range(addresses.size):
        values = array(addresses[index], words * (bounds[index + 1] - bounds[index]), KEYS)
        for i in range(0, values.size, length):
            mark = joined(mark, values[i : i + length])
    return mark


# ------------------------------------------------------------------------------------ is θ where the gradient leads?
# A sketch is a weighted sum of each block's coordinates. It is linear: that of θ - η g is known from those of θ and g,
# and holds for hardly any other vector (R. Freivalds, "Probabilistic machines can use less running time", 1977).
@jit
def sketch_block(values, zero):
    total = zero
    for i in range(values.size):
        total += (values[i] + zero) * WEIGHTS[i]
    return np.float64(total)


@jit
def finite_sketch(narrow, values):
    """Once more in float64 where sums have left the range of float32."""
    return narrow if abs(narrow) < np.inf else sketch_block(values, 0.0)


@jit
def is_rounding(difference, squares, words):
    """Whether sketches of one block differ by rounding alone, given the squares of the vectors added up in them; a
    coordinate too small for all its digits is rounded by what is normal."""
    precision, smallest = (2.0**-23, 2.0**-126) if words == 1 else (2.0**-52, 2.0**-1022)
    return abs(difference) <= SLACK * precision * np.sqrt(squares) + 2 * FUSED_BLOCK * smallest


@jit
def sketch_of(addresses, bounds, words, like, sketch, compare):
    """Take the parameters' sketch; or ``compare`` it with the one given: whether that is the same but for rounding."""
    zero, block, same = like.dtype.type(0), 0, True
    for index in range(addresses.size):
        values = array(addresses[index], bounds[index + 1] - bounds[index], like)
        for i in range(0, values.size, FUSED_BLOCK):
            here = values[i : i + FUSED_BLOCK]
            now = finite_sketch(sketch_block(here, zero), here)
            if compare:
                same &= is_rounding(now - sketch[block], gradient_block(here, here, 0.0)[1], words)
            else:
                sketch[block] = now
            block += 1
    return same


# ----------------------------------------------------------------------------------------------------- an update's sums
# Whole blocks are summed and replaced in one loop. It runs with vector instructions only where what is written lies
# apart from what is read, and two vectors of less than a block may lie too close: these are summed in loops that write
# nothing, or the order of their sums would depend on where they lie.
@jit_inline
def copy(source, target):
    for i in range(source.size):
        target[i] = source[i]


@jit
def gradient_block(gradient, previous, zero):  # ``zero`` tells the precision, as below
    dot = square = zero
    for i in range(gradient.size):
        value = gradient[i] + zero
        dot += value * previous[i]
        square += value * value
    return dot, square


@jit_inline
def replace_gradient_block(gradient, kept, previous):
    dot = square = gradient.dtype.type(0)
    for i in range(gradient.size):
        value, old = gradient[i], kept[i]
        dot += value * old
        square += value * value
        previous[i] = old
        kept[i] = value
    return dot, square


@jit
def position_block(values, point, start, zero):
    param = update = distance = zero
    for i in range(values.size):
        value = values[i] + zero
        step = value - point[i]
        displacement = value - start[i]
        param += value * value
        update += step * step
        distance += displacement * displacement
    return param, update, distance


@jit
def followed_block(values, start, gradient, zero):
    param = distance = there = turn = zero
    for i in range(values.size):
        value = values[i] + zero
        displacement = value - start[i]
        param += value * value
        distance += displacement * displacement
        there += value * WEIGHTS[i]
        turn += (gradient[i] + zero) * WEIGHTS[i]
    return np.float64(param), np.float64(distance), np.float64(there), np.float64(turn)


@jit_inline
def replace_position_block(values, kept, start, point):
    param = update = distance = values.dtype.type(0)
    for i in range(values.size):
        value, old = values[i], kept[i]
        step = value - old
        displacement = value - start[i]
        param += value * value
        update += step * step
        distance += displacement * displacement
        point[i] = old
        kept[i] = value
    return param, update, distance


@jit_inline
def slope_block(gradient, point, before, zero):
    slope = zero
    for i in range(gradient.size):
        slope += (gradient[i] + zero) * ((point[i] + zero) - before[i])
    return slope


@jit
def update_sums(places, bounds, words, like, take, look, advance, sketch, rate):
    """dot, square and slope of the gradients; param, update and distance of the parameters, and their mark.

    ``places`` are the addresses of the gradients, ``NOWHERE`` counts as zeros, of the parameters, and of the flat
    vectors g_{t-1}, θ_t, θ_0 and θ_{t-1}, ``NOWHERE`` where that is not kept. ``take`` sums over the gradients, which
    replace g_{t-1}; ``look`` over the parameters, which with ``advance`` replace the oldest point that is kept.

    Where θ_t is not kept, ``sketch`` is its, and becomes that of the parameters; then there is neither update nor mark.
    The last number is how far, squared, the parameters are from θ_t less ``rate`` times the gradients, as the sketches
    tell, and infinite where a block is farther than by rounding.
    """
    number = bounds.size - 1
    gradients, parameters, kept = places[:number], places[number : 2 * number], places[2 * number :]
    has_before, follows = kept[3] != NOWHERE, look and kept[1] == NOWHERE
    dot = square = param = update = distance = 0.0
    slope = 0.0 if has_before else np.nan
    zero, mark = like.dtype.type(0), np.uint64(0)
    # What a block of g_{t-1} or θ_t was; and a copy of one of θ_t, to be replaced where no point is.
    scratch, aside = np.empty(FUSED_BLOCK, like.dtype), np.empty(FUSED_BLOCK, like.dtype)
    block, residual = 0, 0.0
    for index in range(number):
        size, shift = bounds[index + 1] - bounds[index], 4 * words * bounds[index]
        previous, point = array(kept[0] + shift, size, like), array(kept[1] + shift, size, like)
        start, before = array(kept[2] + shift, size, like), array(kept[3] + shift, size, like)
        gradient, values = array(gradients[index], size, like), array(parameters[index], size, like)
        bits = array(parameters[index], words * size, KEYS)
        takes = take and gradients[index] != NOWHERE
        if take and not takes:
            previous[:] = 0
        for i in range(0, size, FUSED_BLOCK):
            to = min(i + FUSED_BLOCK, size)
            whole, held = to - i == FUSED_BLOCK, scratch[: to - i]
            square_here = 0.0
            if takes:
                new, old = gradient[i:to], previous[i:to]
                if has_before:
                    narrow = slope_block(new, point[i:to], before[i:to], zero)
                    slope += narrow if in_range(narrow) else slope_block(new, point[i:to], before[i:to], 0.0)
                if whole:
                    one = replace_gradient_block(new, old, held)
                else:
                    copy(old, held)
                    one = gradient_block(new, held, zero)
                    copy(new, old)
                if in_range(one[0]) and in_range(one[1]):
                    dot += one[0]
                    square_here = np.float64(one[1])
                else:
                    wide = gradient_block(new, held, 0.0)
                    dot += chosen(one[0], wide[0])
                    square_here = chosen(one[1], wide[1])
                square += square_here
            if follows:
                there, origin = values[i:to], start[i:to]
                step, eta = (gradient[i:to], rate) if takes else (there, 0.0)
                param_here, distance_here, now, turn = followed_block(there, origin, step, zero)
                if not (in_range(param_here) and in_range(distance_here)):
                    widest = position_block(there, there, origin, 0.0)
                    param_here = chosen(param_here, widest[0])
                    distance_here = chosen(distance_here, widest[2])
                param += param_here
                distance += distance_here
                now, turn = finite_sketch(now, there), finite_sketch(turn, step)
                away = now - (sketch[block] - eta * turn)
                fits = is_rounding(away, param_here + rate * rate * square_here, words)
                residual += away * away / SQUARE_WEIGHT if fits else np.inf
                sketch[block] = now
                block += 1
            elif look:
                here, there, origin = point[i:to], values[i:to], start[i:to]
                replaced = here
                if has_before or not advance:
                    replaced = before[i:to] if advance else aside[: to - i]
                    copy(here, replaced)
                if whole:
                    sums = replace_position_block(there, replaced, origin, held)
                else:
                    copy(here, held)
                    sums = position_block(there, held, origin, zero)
                    copy(there, replaced)
                if in_range(sums[0]) and in_range(sums[1]) and in_range(sums[2]):
                    param += sums[0]
                    update += sums[1]
                    distance += sums[2]
                else:
                    widest = position_block(there, held, origin, 0.0)
                    param += chosen(sums[0], widest[0])
                    update += chosen(sums[1], widest[1])
                    distance += chosen(sums[2], widest[2])
                mark = joined(mark, bits[words * i : words * to])
    if follows:
        update = np.nan
    return dot, square, slope, param, update, distance, mark, residual
