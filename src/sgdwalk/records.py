"""Frozen records of a run: the only bridge between measuring (torch) and reading (NumPy, pandas).

A record holds raw measurements only. Floor, height, barrier and every table are derived from them when a run is read
(see :mod:`sgdwalk.valley`). An undefined number is NaN and has its reason, in words, under its column's name in
``reasons``; infinities are stored as NaN with a reason too. What nobody looked at is NaN and has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

SCHEMA_VERSION = 1
"""Version of the run folder's layout; a folder of another version is refused, never guessed."""

NAN = math.nan

EXACT_LOOK = 3
"""``looks`` of a certified segment whose floor was evaluated over all data; before it come looks at samples."""


@dataclass(frozen=True, slots=True)
class SegmentPoint:
    """The full loss at one point (1 - α) θ_t + α θ_{t+1} of a segment."""

    alpha: float
    """Position α on the segment, 0 at θ_t and 1 at θ_{t+1}."""
    loss: float
    """Full loss L there, in nats per example; NaN where it is not finite."""
    kind: str = "exact"
    """``exact`` or ``estimated``."""
    halfwidth: float = 0.0
    """Half-width of the loss's confidence interval; 0 for an exact point."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What was measured around update t, which takes θ_t to θ_{t+1}."""

    step: int
    """t, counted from 0 over performed updates."""
    epoch: int | None = None
    """Counted from 1; None where the loop did not say."""
    learning_rate: float = NAN
    """Learning rate of the first parameter group."""
    batch_loss: float = NAN
    """Mini-batch loss that the loop noted."""
    cosine: float = NAN
    """cos(g_{t-1}, g_t)."""
    distance: float = NAN
    """‖θ_t - θ_0‖₂."""
    next_distance: float = NAN
    """‖θ_{t+1} - θ_0‖₂."""
    grad_norm: float = NAN
    """‖g_t‖₂."""
    param_norm: float = NAN
    """‖θ_t‖₂."""
    update_norm: float = NAN
    """‖θ_{t+1} - θ_t‖₂."""
    loss_noise: float = NAN
    """max over the grid of |L_used - L_float64|, where it was measured at this very step."""
    segment: tuple[SegmentPoint, ...] = ()
    """The full loss along the segment, by increasing α; empty where the step was not watched."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Columns added by the user's measures."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Column name -> why its value is undefined. ``segment`` is the key for losses along the segment."""


STEP_COLUMNS = (
    "epoch",
    "learning_rate",
    "batch_loss",
    "cosine",
    "distance",
    "next_distance",
    "grad_norm",
    "param_norm",
    "update_norm",
    "loss_noise",
)
"""The raw columns of a step, in the order in which they are stored."""


@dataclass(frozen=True, slots=True)
class EpochNote:
    """Values that the loop noted for an epoch, such as a validation accuracy."""

    epoch: int
    """Counted from 1."""
    step: int
    """Updates performed when the note was made."""
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the walk and that a reader of its numbers should know."""

    sequence: int
    """Order of the event within its run, from 0."""
    step: int
    """Updates performed when it happened."""
    kind: str
    """A short name: ``skipped_update``, ``moved_parameters``, ``measurement_failed``, …"""
    message: str
    """One or two sentences for a person."""
