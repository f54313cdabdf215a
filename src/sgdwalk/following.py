"""Updates that are -η g_t, followed without a copy of where they began.

Of θ_t a sketch is kept, a few thousandths of its size. It tells after the update that θ_{t+1} is θ_t - η g_t, all that
the columns ask of θ_t; so that need neither be read before the update, to see that nobody moved it, nor be kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sgdwalk.kernels import GradientSums, Kernel, NumbaKernel, PositionSums
from sgdwalk.params import ParameterVector
from sgdwalk.records import NAN

STRAYED = "the parameters were changed after the update before, or this one was not -η g_t"
LOST = "the update is lost in the rounding of the parameters"
NOT_FINITE = "a gradient or an update is not finite"
"""Why an update that was followed has not all its numbers."""

ROUNDING = 1e-5
"""By how much ‖θ_{t+1} - θ_t‖² and η²‖g_t‖² may differ, as a share, for the update to be -η g_t but for rounding."""
TOO_MUCH = 1e-3
"""So too, for an update that is followed to be known; an update ten times as short as one before comes to that."""


def is_plain(rate: float, square: float, update: float) -> bool:
    """Whether an update is -η g_t by its length; ``square`` is ‖g_t‖², ``update`` ‖θ_{t+1} - θ_t‖²."""
    plain = rate**2 * square
    return abs(update - plain) <= ROUNDING * plain


def outlasts_rounding(rate: float, square: float, param: float, dtype: torch.dtype, *, share: float = ROUNDING) -> bool:
    """Whether η g_t is as long as the update that it makes, though that is rounded: no coordinate of θ, whose square is
    ``param``, loses more than half its last place.

    >>> [outlasts_rounding(rate, 1.0, 100.0, torch.float32) for rate in (0.1, 1e-4)]
    [True, False]
    """
    return (torch.finfo(dtype).eps / 2) ** 2 * param <= share * rate**2 * square


class Follower:
    """Follows θ from where it stands, as long as every update is -η g_t."""

    def __init__(self, kernel: NumbaKernel, vector: ParameterVector):
        self._kernel, self._vector = kernel, vector
        self._sketch = kernel.sketch(vector)

    @classmethod
    def begin(cls, kernel: Kernel, vector: ParameterVector) -> Follower | None:
        """None where it would save nothing: only the fused loops make a sketch of what they read anyway."""
        return cls(kernel, vector) if isinstance(kernel, NumbaKernel) and kernel.can_follow(vector) else None

    def strayed(self) -> bool:
        """Whether θ has been moved since the last update, by more than rounding."""
        return self._kernel.strayed(self._vector, self._sketch.copy())

    def sums(
        self, gradients: Sequence[Tensor | None], previous: Tensor, start: Tensor, rate: float | None
    ) -> tuple[GradientSums, PositionSums, str]:
        """Those of an update with learning rate ``rate``, and what is wrong with it, if anything.

        Its length is that of -η g_t, NaN where the update was another one.
        """
        eta = NAN if rate is None else rate
        gradient, position, agrees = self._kernel.followed_sums(
            self._vector, gradients, previous, start, self._sketch, eta
        )
        square = gradient.square
        if not (math.isfinite(square) and math.isfinite(position.param)):
            return gradient, position, NOT_FINITE
        if not agrees:
            return gradient, position, STRAYED
        if square and not outlasts_rounding(eta, square, position.param, self._vector.dtype, share=TOO_MUCH):
            return gradient, position, LOST
        return gradient, position._replace(update=eta**2 * square), ""
