"""Freed memory stays with a process that evaluates, and only there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource, sys
import numpy as np
from sgdwalk.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    blocks = [np.ones(6 << 17), np.ones(6 << 17)]
    del blocks
before = faults()
for _ in range(20):
    blocks = [np.ones(6 << 17), np.ones(6 << 17)]
    del blocks
print(faults() - before)
"""


def page_faults(*arguments, **environment):
    run = [sys.executable, "-c", PAGE_FAULTS, *arguments]
    found = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives freed blocks back")
def test_freed_memory_is_not_asked_for_again():
    """20 rounds of two blocks of 6 MiB: pages are cleared anew in each round, or not at all."""
    assert page_faults("keep") < 100
    assert page_faults("") > 10_000
    assert page_faults("keep", MALLOC_MMAP_THRESHOLD_="131072") > 10_000
