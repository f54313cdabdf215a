"""A segment whose end is not evaluated but awaited: the next pass of the user's loop computes the outputs there.

A loop that runs over ``walk.batches()`` before every update goes with all data through the model at θ_{t+1} anyway.
Then segment t is measured before update t + 1, from what was heard in that pass; where no pass came, or one that cannot
be taken (see :mod:`sgdwalk.overheard`), its end is evaluated as always. Meanwhile nothing of what L was at the update
is lost: θ_t and θ_{t+1} are kept, and the private copy of the model is held as it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from torch import Tensor

from sgdwalk.objective import FullLoss, LossSums
from sgdwalk.overheard import Heard
from sgdwalk.replica import function_state, update_digest


def _held_nowhere(full_loss: FullLoss) -> tuple[list[int], bytes]:
    """What L reads and no copy is kept of: the data and what the loss function is steered by."""
    digest = hashlib.blake2b(digest_size=16)
    update_digest(digest, function_state(full_loss.loss_fn))
    return full_loss.data.versions(), digest.digest()


@dataclass
class AwaitedEnd:
    """Segment t between its update and the measurement of its losses; to be made with L up to date.

    From here to ``release()`` the model's copy stays as it is.
    """

    full_loss: FullLoss
    step: int
    """t."""
    start: Tensor
    """θ_t, a copy.  # (d,)"""
    start_sums: LossSums
    """L(θ_t)."""
    fingerprint: bytes
    """Of all that L depended on besides the parameters right after the update."""
    heard: Heard | None = None
    """What was heard at θ_{t+1}; None where the end must be evaluated."""
    _unheld: tuple[list[int], bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._unheld = _held_nowhere(self.full_loss)
        self.full_loss.site.hold()

    def hear(self, heard: Heard, fingerprint: bytes) -> None:
        """A pass went over all data at θ_{t+1}; it serves where L is what it was, and outputs were kept."""
        if heard.outputs and fingerprint == self.fingerprint:
            self.heard = heard

    def why_lost(self) -> str:
        """Why L can no longer be what it was at the update; empty where it can."""
        versions, function = _held_nowhere(self.full_loss)
        if versions != self._unheld[0]:
            return "the data were written to before the end of the segment was evaluated"
        if function != self._unheld[1]:
            return "loss_fn was changed before the end of the segment was evaluated"
        return ""

    def release(self) -> None:
        """Let the copy follow the model again."""
        self.full_loss.site.release()
