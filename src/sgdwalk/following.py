"""Updates that are -η g_t, followed without a copy of where they began.

Of θ_t a sketch is kept, a few thousandths of its size. It tells after the update that θ_{t+1} is θ_t - η g_t, all that
the columns ask of θ_t; so that need neither be read before the update, to see that nobody moved it, nor be kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sgdwalk.kernels import BLOCK, GradientSums, Kernel, NumbaKernel, PositionSums
from sgdwalk.params import ParameterVector

STRAYED = "the parameters were changed after the update before, or this one was not -η g_t"
LOST = "the update is lost in the rounding of the parameters, or was not quite -η g_t"
NOT_FINITE = "a gradient or an update is not finite"
"""Why an update that was followed has not all its numbers."""

ROUNDING = 1e-5
"""By how much ‖θ_{t+1} - θ_t‖² and η²‖g_t‖² may differ, as a share, for the update to be -η g_t but for rounding."""
BEGIN = 2e-3
"""How large a share of the update's length may be open for the next one to be the first that is followed."""
RESIDUAL = 6e-3
"""How far from -η g_t, as a share of its length, a followed update may end for the next to be followed too."""
TOO_FAR = 1e-2
"""How far for its own length to be known; rounding, which has no direction, changes that by the square."""
FEWEST_BLOCKS = 32
"""Of θ: with fewer it is as cheap to keep a copy, and a sketch tells less."""


def is_plain(rate: float, square: float, update: float) -> bool:
    """Whether an update is -η g_t by its length; ``square`` is ‖g_t‖², ``update`` ‖θ_{t+1} - θ_t‖²."""
    plain = rate**2 * square
    return abs(update - plain) <= ROUNDING * plain


def outlasts_rounding(rate: float, square: float, param: float, dtype: torch.dtype) -> bool:
    """Whether η g_t is so long that the rounding of θ, whose square is ``param``, leaves little of it open.

    >>> [outlasts_rounding(rate, 1.0, 100.0, torch.float32) for rate in (0.1, 1e-4)]
    [True, False]
    """
    return torch.finfo(dtype).eps ** 2 * param <= BEGIN**2 * rate**2 * square


class Follower:
    """Follows θ from where it stands, as long as every update is -η g_t."""

    def __init__(self, kernel: NumbaKernel, vector: ParameterVector):
        self._kernel, self._vector = kernel, vector
        self._sketch = kernel.sketch(vector)
        self.is_sure = True
        """Whether the last update ended so near to where it had to that the next may be followed too."""

    @classmethod
    def begin(cls, kernel: Kernel, vector: ParameterVector) -> Follower | None:
        """None where it would save nothing: only the fused loops make a sketch of what they read anyway."""
        if vector.size < FEWEST_BLOCKS * BLOCK or not isinstance(kernel, NumbaKernel) or not kernel.can_follow(vector):
            return None
        return cls(kernel, vector)

    def strayed(self) -> bool:
        """Whether θ has been moved since the last update, by more than rounding."""
        return self._kernel.strayed(self._vector, self._sketch)

    def sums(
        self, gradients: Sequence[Tensor | None], previous: Tensor, start: Tensor, rate: float
    ) -> tuple[GradientSums, PositionSums, str]:
        """Those of an update with learning rate ``rate``, and what is wrong with it, if anything.

        Its length is that of -η g_t, NaN where the update was another one.
        """
        gradient, position, residual = self._kernel.followed_sums(
            self._vector, gradients, previous, start, self._sketch, rate
        )
        plain = rate**2 * gradient.square
        if not (math.isfinite(plain) and math.isfinite(position.param)):
            return gradient, position, NOT_FINITE
        if not math.isfinite(residual):
            return gradient, position, STRAYED
        if plain and residual > TOO_FAR**2 * plain:
            return gradient, position, LOST
        self.is_sure = residual <= RESIDUAL**2 * plain or not plain
        return gradient, position._replace(update=plain), ""
