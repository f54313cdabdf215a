"""Where the optimizer came from: θ_0, θ_t and g_{t-1}, and what follows from them at every update.

Three vectors of the parameters' size are kept. Everything here is cheap enough for every update of a training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sgdwalk.kernels import choose_kernel
from sgdwalk.params import ParameterVector, tensor_bytes
from sgdwalk.records import NAN


class Trajectory:
    """Cosine, distance and norms of one walk (paper, section 3; definitions in docs/quantities.md).

    Args:
        parameters: what the optimizers move; where they stand now is θ_0.
        gauge: keep d_t = θ_{t+1} - θ_t too, a vector more, for the slope d_{t-1}·g_t.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, gauge: bool = False):
        self.vector = ParameterVector(parameters)
        self.kernel = choose_kernel(self.vector.device)
        self.point = self.vector.read()
        """θ_t between and during updates; θ_{t+1} once ``arrive()`` was called.  # (d,)"""
        self.start = self.point.clone()
        self.gradient: Tensor | None = None
        """g_{t-1}; None before the first update.  # (d,)"""
        self.displacement = self.vector.zeros() if gauge else None
        """d_{t-1}, the last update as it happened; None where it is not kept.  # (d,)"""
        self._no_slope = "no update before the first"
        self._gradient_square = NAN
        self._final: list[Tensor | None] = [None] * len(self.vector.parameters)
        self._refresh()

    def _refresh(self) -> None:
        sums = self.kernel.position_sums(self.vector, self.point, self.start, advance=False)
        self._param_square, _, self._distance_square = sums

    def depart(self, parameters: Iterable[nn.Parameter]) -> tuple[bool, int]:
        """Before an update: take note of θ_t. Returns whether it moved since the last update, and how many parameters
        were added to the optimizer since then (θ_0 of those is where they stand now)."""
        self.vector.check_layout()
        added = self._grow(list(parameters))
        moved = self.kernel.moved(self.vector, self.point)
        if moved:
            self.vector.read_into(self.point)
        if moved or added:
            self._refresh()
            self._no_slope = "the parameters were changed after the update before"
        self._final = [None] * len(self.vector.parameters)
        return moved, added

    def gradients_final(self, parameters: Iterable[nn.Parameter], *, keep: bool) -> None:
        """Take some parameters' gradients as the optimizer received them; ``keep`` copies those that may change."""
        for parameter in parameters:
            index = self.vector.index.get(id(parameter))
            if index is not None:
                gradient = self.vector.gradient(parameter)
                self._final[index] = gradient.clone() if keep and gradient is not None else gradient

    def measure(self, *, advance: bool) -> tuple[dict[str, float], dict[str, str]]:
        """After an update: the columns of its row, and reasons for the undefined ones.

        ``advance`` lets θ_{t+1} become the kept point at once; without it θ_t stays, until ``arrive()``.
        """
        self.vector.check_layout()
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        first = self.gradient is None
        if self.gradient is None:
            self.gradient = self.vector.zeros()
        dot, square, slope = self.kernel.gradient_sums(self.vector, self._final, self.gradient, self.displacement)
        if self.displacement is not None:
            known = math.isfinite(slope) and not self._no_slope
            values["gauge"] = slope if known else NAN
            if not known:
                reasons["gauge"] = self._no_slope or "a gradient or an update is not finite"
            self._no_slope = ""
        values["cosine"], why = _cosine(dot, self._gradient_square, square, first=first)
        if why:
            reasons["cosine"] = why
        param_square, update_square, distance_square = self.kernel.position_sums(
            self.vector, self.point, self.start, advance=advance, displacement=self.displacement
        )
        squares = {
            "grad_norm": square,
            "param_norm": self._param_square,
            "distance": self._distance_square,
            "update_norm": update_square,
            "next_distance": distance_square,
        }
        for name, value in squares.items():
            values[name] = math.sqrt(value) if math.isfinite(value) else NAN
            if not math.isfinite(value):
                reasons[name] = "not finite"
        self._final = [None] * len(self.vector.parameters)
        self._gradient_square = square
        self._param_square, self._distance_square = param_square, distance_square
        return values, reasons

    def arrive(self) -> None:
        """Nothing is left to be measured between θ_t and θ_{t+1}: the latter becomes the kept point."""
        self.vector.read_into(self.point)

    def digest(self) -> str:
        """Digest of the kept point, to tell after a resume whether training stands where the walk was saved."""
        return hashlib.blake2b(tensor_bytes(self.point), digest_size=16).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": self.start.clone(),
            "gradient": None if self.gradient is None else self.gradient.clone(),
            "gradient_square": self._gradient_square,
            "displacement": None if self.displacement is None else self.displacement.clone(),
            "no_slope": self._no_slope,
            "point_digest": self.digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start.copy_(state["start"])
        self.gradient = None if state["gradient"] is None else state["gradient"].to(self.start, copy=True)
        self._gradient_square = state["gradient_square"]
        if self.displacement is not None:
            if state["displacement"] is None:
                self._no_slope = "the walk went on from a state without the update before"
            else:
                self.displacement.copy_(state["displacement"])
                self._no_slope = state["no_slope"]
        self.vector.read_into(self.point)
        self._refresh()

    def _grow(self, parameters: list[nn.Parameter]) -> int:
        """Follow parameters that were added to the optimizer, such as layers unfrozen late."""
        known = self.vector.index
        if all(id(parameter) in known for parameter in parameters):
            return 0
        new = [parameter for parameter in {id(p): p for p in parameters}.values() if id(parameter) not in known]
        added = ParameterVector(new)
        self.vector = ParameterVector([*self.vector.parameters, *new])
        here = added.read()
        self.point = torch.cat([self.point, here])
        self.start = torch.cat([self.start, here])
        if self.gradient is not None:
            self.gradient = torch.cat([self.gradient, added.zeros()])
        if self.displacement is not None:
            self.displacement = torch.cat([self.displacement, added.zeros()])
        return len(new)


def _cosine(dot: float, previous_square: float, square: float, *, first: bool) -> tuple[float, str | None]:
    """cos(g_{t-1}, g_t), or why there is none."""
    if first:
        return NAN, "no gradient before the first"
    if not (math.isfinite(dot) and math.isfinite(previous_square) and math.isfinite(square)):
        return NAN, "a gradient is not finite"
    if previous_square == 0.0 or square == 0.0:
        return NAN, "a gradient is zero"
    # Two roots, not the root of a product, which may underflow.
    return max(-1.0, min(1.0, dot / math.sqrt(previous_square) / math.sqrt(square))), None
