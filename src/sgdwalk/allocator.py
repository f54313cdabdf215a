"""Memory that evaluations free stays with the process, ready for the next layer."""

from __future__ import annotations

import contextlib
import functools

import numpy as np

LARGEST = (32 << 20) - (64 << 10)
"""Bytes of the largest block that glibc takes as a sign to keep blocks of its size."""


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep blocks of up to 32 MiB when they are freed; once a process.

    glibc gives every freed block above a threshold back to the system, which clears its pages before it lends them
    again: every layer of a forward pass then pays for zeros. The threshold follows the largest block freed so far, up
    to 32 MiB, so a process that once frees such a block keeps what it frees from then on. This block is never written
    to, and takes no memory itself. A process whose environment sets ``MALLOC_MMAP_THRESHOLD_`` keeps its threshold,
    and other C libraries have none.
    """
    with contextlib.suppress(MemoryError):
        np.empty(LARGEST, np.uint8)
