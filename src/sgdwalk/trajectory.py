"""Where the optimizer came from: θ_0, θ_t and g_{t-1}, and what follows from them at every update.

Three vectors of the parameters' size are kept, and θ_{t-1} for a gauge where no shorter way leads to it. Everything
here is cheap enough for every update of a training; where only some are looked at, the others cost nothing, and where
they are -η g_t, θ_t need not be kept (see :mod:`sgdwalk.following`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sgdwalk.errors import InputError
from sgdwalk.following import LOST, NOT_FINITE, STRAYED, Follower, is_plain, outlasts_rounding
from sgdwalk.kernels import GradientSums, PositionSums, choose_kernel
from sgdwalk.params import ParameterVector, dense_gradient, tensor_bytes
from sgdwalk.records import NAN

CHANGED = "the parameters were changed, or others added, after the update before"
NOT_PLAIN = "the update before was not -η g_t, as SGD without momentum and weight decay takes it, or lost in rounding"
NOT_KEPT = "the walk went on from a state without the update before"
"""Why an update has no gauge."""

UNKNOWN = {STRAYED: ("param_norm", "distance", "update_norm"), LOST: ("update_norm",)}
"""What cannot be told of an update that was followed, by what is wrong with it."""


class Trajectory:
    """Cosine, distance and norms of one walk (paper, section 3; definitions in docs/quantities.md).

    Args:
        parameters: what the optimizers move; where they stand now is θ_0.
        gauge: tell the slope (θ_t - θ_{t-1})·g_t too. It is -η g_{t-1}·g_t, of which the cosine is made, where the
            update was -η g_{t-1}; from the first other one on θ_{t-1} is kept, a vector more.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, gauge: bool = False):
        self.vector = ParameterVector(parameters)
        self.kernel = choose_kernel(self.vector.device)
        self.point = self.vector.read()
        """θ_t between and during updates; θ_{t+1} after one that was measured and left, or at which ``arrive()`` was
        called. After an update that was passed by an older one, until ``catch_up()``.  # (d,)"""
        self.start = self.point.clone()
        self.gradient: Tensor | None = None
        """g_{t-1}; None before the first update.  # (d,)"""
        self.gauge = gauge
        self.before: Tensor | None = None
        """θ_{t-1}, where the last update began, unless that was passed by; None where it is not kept.  # (d,)"""
        self._rate: float | None = None
        """η of the last update, if that was -η g_{t-1} and θ_{t-1} was not kept."""
        self._no_cosine = "no gradient before the first"
        self._no_slope = "no update before the first" if gauge else NOT_KEPT
        self.is_current = True
        """Whether ``point`` is where the last update ended."""
        self._mark: int | None = None
        """Of ``point``, where it is known: then θ alone is read to see that it was not moved."""
        self._follower: Follower | None = None
        """In place of ``point``, which is elsewhere then, where the last update was followed."""
        self._followed_rate: float | None = None
        """η of the update under way, if it is followed."""
        self.can_follow = False
        """Whether the last update was -η g_t, so that the next may be followed."""
        self.has_strayed = False
        """Whether one that was followed ended elsewhere than it had to; none is followed from then on."""
        self._gradient_square = NAN
        self._final: list[Tensor | None] = [None] * len(self.vector.parameters)
        self._refresh()

    def _refresh(self) -> None:
        sums = self.kernel.position_sums(self.vector, self.start, self.start)
        self._param_square, self._distance_square, self._mark = sums.param, sums.distance, sums.mark

    def depart(
        self, parameters: Iterable[nn.Parameter], *, look: bool = True, rate: float | None = None
    ) -> tuple[bool, int]:
        """Before an update: take note of θ_t, unless it will be passed by. Returns whether θ is known to have moved
        since the last update, and how many parameters were added to the optimizer since then (θ_0 of those is where
        they stand now).

        With ``rate``, η of an update that should be -η g_t, nobody will ask for θ_t itself. Then the update may be
        followed, and a move shows after it.
        """
        added = self._grow(list(parameters))
        self._final = [None] * len(self.vector.parameters)
        self._followed_rate = rate
        follow = look and rate is not None and self.can_follow and not added
        if follow and self._follower is not None:
            return False, 0
        self.vector.check_layout()
        moved = look and self._differs()
        if look and (moved or added or not self.is_current):
            self.catch_up()
            follow = False
        elif added:
            self.is_current = False
        if follow and (follower := Follower.begin(self.kernel, self.vector)) is not None:
            self._follower, self._mark, self.is_current = follower, None, False
        if moved or added:
            self._no_slope = self._no_slope or CHANGED
        return moved, added

    def moved(self) -> bool:
        """Whether θ is known to be elsewhere than where the last update ended: False where that was not looked at."""
        self.vector.check_layout()
        return self._differs()

    def _differs(self) -> bool:
        if self._follower is not None:
            return self._follower.strayed()
        return self.is_current and self.kernel.moved(self.vector, self.point, self._mark)

    def resume(self, digest: str) -> bool:
        """After a state was loaded, before the next update: take note of where the parameters stand. Returns whether
        that is elsewhere than where ``digest``, of the state, was taken."""
        self.catch_up()
        moved = self.digest() != digest
        if moved:
            self._no_slope = self._no_slope or CHANGED
        return moved

    def catch_up(self) -> None:
        """Take note of where the parameters stand now."""
        self.vector.check_layout()
        self.vector.read_into(self.point)
        self._refresh()
        self.is_current, self._follower = True, None

    def gradients_final(self, parameters: Iterable[nn.Parameter], *, keep: bool) -> None:
        """Take some parameters' gradients as the optimizer received them; ``keep`` copies those that may change."""
        indices, dtype = self.vector.index, self.vector.dtype
        for parameter in parameters:
            index = indices.get(id(parameter))
            if index is not None:
                gradient = dense_gradient(parameter, dtype)
                self._final[index] = gradient.clone() if keep and gradient is not None else gradient

    def measure(self, *, advance: bool, rate: float | None = None) -> tuple[dict[str, float], dict[str, str]]:
        """After an update: the columns of its row, and reasons for the undefined ones.

        ``advance`` lets θ_{t+1} become the kept point at once; without it θ_t stays, until ``arrive()``. ``rate`` is η
        where the optimizer is known to take θ_t - η g_t, rounded.
        """
        self.vector.check_layout()
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        previous_square, no_cosine = self._gradient_square, self._no_cosine
        self._no_cosine, self._mark = "the sums of the update before were interrupted", None  # until they are there
        if self._follower is not None:
            rate = self._followed_rate
        gradient, position, fault = self._sums(rate, advance=advance)
        if self.gauge:
            slope, why = gradient.slope, self._no_slope
            if self._rate is not None:
                slope, why = -self._rate * gradient.dot, why or no_cosine
            if fault == STRAYED:
                why = why or STRAYED
            if not (why or math.isfinite(slope)):
                why = NOT_FINITE
            values["gauge"] = NAN if why else slope
            if why:
                reasons["gauge"] = why
            self._note_slope(rate, gradient.square, position.update, fault, lost=advance)
        if no_cosine:
            values["cosine"], why = NAN, no_cosine
        else:
            values["cosine"], why = _cosine(gradient.dot, previous_square, gradient.square)
        if why:
            reasons["cosine"] = why
        squares = {
            "grad_norm": gradient.square,
            "param_norm": self._param_square,
            "distance": self._distance_square,
            "update_norm": position.update,
            "next_distance": position.distance,
        }
        for name, value in squares.items():
            if math.isfinite(value):
                values[name] = math.sqrt(value)
            else:
                values[name], reasons[name] = NAN, "not finite"
        for name in UNKNOWN.get(fault, ()):
            values[name], reasons[name] = NAN, fault
        self._final = [None] * len(self.vector.parameters)
        self._gradient_square, self._no_cosine = gradient.square, ""
        self._param_square, self._distance_square = position.param, position.distance
        self.has_strayed |= fault == STRAYED
        if fault:
            self.catch_up()
        elif advance and self._follower is None:
            self._mark = position.mark
            self._turn()
        if fault or rate is None or rate**2 * gradient.square:  # no update tells nothing
            follower = self._follower
            fits = self._is_plain(rate, gradient, position) if follower is None else follower.is_sure
            self.can_follow = fits and self.before is None and not (fault or self.has_strayed)
        return values, reasons

    def _sums(self, rate: float | None, *, advance: bool) -> tuple[GradientSums, PositionSums, str]:
        """Of the update, and what is wrong with one that was followed. One of -η g_t has that length."""
        if self._follower is not None:
            assert advance
            assert rate is not None
            return self._follower.sums(self._final, self._previous(), self.start, rate)
        if self.gauge and rate is None and self.before is None:
            self.before = self.point.clone()
        gradient, position = self.kernel.update_sums(
            self.vector, self._final, self._previous(), self.point, self.start, self.before, advance=advance
        )
        if self._is_plain(rate, gradient, position):
            assert rate is not None
            position = position._replace(update=rate**2 * gradient.square)
        return gradient, position, ""

    def _is_plain(self, rate: float | None, gradient: GradientSums, position: PositionSums) -> bool:
        """Whether the update is -η g_t, and has its length though θ was rounded."""
        if rate is None or not is_plain(rate, gradient.square, position.update):
            return False
        return outlasts_rounding(rate, gradient.square, position.param, self.vector.dtype)

    def _note_slope(self, rate: float | None, square: float, update: float, fault: str, *, lost: bool) -> None:
        """Note how the slope along this update will be told with the next gradient; ``square`` is ‖g_t‖², ``update``
        ‖θ_{t+1} - θ_t‖². ``lost``: θ_t was replaced, so that of an update that was not -η g_t cannot be told."""
        self._no_slope, self._rate = fault, rate if self.before is None and not fault else None
        if self._rate is None:
            return
        if not (math.isfinite(self._rate**2 * square) and math.isfinite(update)):
            self._no_slope = NOT_FINITE
        elif not is_plain(self._rate, square, update):  # a hook after the step, say, or η g_t is lost in rounding
            self._no_slope, self._rate = NOT_PLAIN if lost else "", None
            self.before = self.point.clone()

    def pass_by(self, *, keep_gradient: bool) -> None:
        """After an update without a look at it; ``keep_gradient`` is for the cosine of the next."""
        if keep_gradient:
            self.vector.check_layout()
            sums = self.kernel.gradient_sums(self.vector, self._final, self._previous())
            self._gradient_square, self._no_cosine = sums.square, ""
        else:
            self._no_cosine = "the gradient before was not kept"
        self._no_slope = "the update before was not looked at"
        self._final = [None] * len(self.vector.parameters)
        self.is_current, self._follower = False, None

    def _previous(self) -> Tensor:
        """g_{t-1}, to be replaced by g_t."""
        if self.gradient is None:
            self.gradient = self.vector.zeros()
        return self.gradient

    def arrive(self) -> None:
        """Nothing is left to be measured between θ_t and θ_{t+1}: the latter becomes the kept point."""
        self.vector.read_into(self.point if self.before is None else self.before)
        self._mark = None
        self._turn()

    def _turn(self) -> None:
        """θ_{t+1} stands where the oldest point stood; where that is another, the two change their names."""
        if self.before is not None:
            self.point, self.before = self.before, self.point

    def digest(self) -> str | None:
        """Digest of where the last update ended, to tell after a resume whether training stands there.

        Where that was not looked at, of where the parameters are now; None where they have other shapes by now.
        """
        parts = [self.point]
        if not self.is_current:
            try:
                self.vector.check_layout()
            except InputError:
                return None
            if self._follower is not None and self._follower.strayed():
                return "moved"  # it ended elsewhere, of which no more is known
            parts = self.vector.parameters
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(tensor_bytes(part))
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": self.start.clone(),
            "gradient": None if self.gradient is None else self.gradient.clone(),
            "gradient_square": self._gradient_square,
            "before": None if self.before is None else self.before.clone(),
            "rate": self._rate,
            "can_follow": self.can_follow,
            "has_strayed": self.has_strayed,
            "no_cosine": self._no_cosine,
            "no_slope": self._no_slope,
            "is_current": self.is_current,
            "point_digest": self.digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vector.check_layout()
        self.start.copy_(state["start"])
        self.gradient = None if state["gradient"] is None else state["gradient"].to(self.start, copy=True)
        self._gradient_square, self._no_cosine = state["gradient_square"], state["no_cosine"]
        self.can_follow, self.has_strayed = state["can_follow"], state["has_strayed"]
        if self.gauge:
            self.before = None if state["before"] is None else state["before"].to(self.start, copy=True)
            self._rate, self._no_slope = state["rate"], state["no_slope"]
        self.catch_up()
        self.is_current = state["is_current"]

    def _grow(self, parameters: list[nn.Parameter]) -> int:
        """Follow parameters that were added to the optimizer, such as layers unfrozen late."""
        known = self.vector.index
        if all(id(parameter) in known for parameter in parameters):
            return 0
        new = [parameter for parameter in {id(p): p for p in parameters}.values() if id(parameter) not in known]
        added = ParameterVector(new)
        self.vector = ParameterVector([*self.vector.parameters, *new])
        here = added.read()
        self.point, self._mark = torch.cat([self.point, here]), None
        self.start = torch.cat([self.start, here])
        if self.gradient is not None:
            self.gradient = torch.cat([self.gradient, added.zeros()])
        if self.before is not None:
            self.before = torch.cat([self.before, here])
        return len(new)


def _cosine(dot: float, previous_square: float, square: float) -> tuple[float, str | None]:
    """cos(g_{t-1}, g_t), or why there is none."""
    if not (math.isfinite(dot) and math.isfinite(previous_square) and math.isfinite(square)):
        return NAN, "a gradient is not finite"
    if previous_square == 0.0 or square == 0.0:
        return NAN, "a gradient is zero"
    # Two roots, not the root of a product, which may underflow.
    return max(-1.0, min(1.0, dot / math.sqrt(previous_square) / math.sqrt(square))), None
