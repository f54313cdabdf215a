"""The guard around measurements: whatever runs inside, nothing outside is different afterwards."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch

import sgdwalk
from sgdwalk.isolation import _PRECISION_HOLDERS, isolated

CPU = torch.device("cpu")


def streams() -> list:
    return [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_random_streams_go_on_as_if_nothing_had_run(raises):
    def seed() -> None:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002

    seed()
    expected = streams()
    seed()
    with contextlib.suppress(ZeroDivisionError), isolated(CPU):
        streams()
        if raises:
            raise ZeroDivisionError
    assert streams() == expected


def test_modes_inside_and_after():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with isolated(CPU):
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            assert sgdwalk.is_measuring()
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        assert not sgdwalk.is_measuring()


@pytest.mark.parametrize("setting", ["overall", "matmul", "convolution", "legacy", "untouched"])
def test_reduced_precision_is_off_inside_and_back_afterwards(setting):
    before = [holder.fp32_precision for holder in _PRECISION_HOLDERS]
    if setting == "legacy":
        torch.set_float32_matmul_precision("medium")
    elif setting != "untouched":
        backends = torch.backends
        holder = {"overall": backends, "matmul": backends.mkldnn.matmul, "convolution": backends.mkldnn.conv}[setting]
        holder.fp32_precision = "tf32" if setting == "overall" else "bf16"
    chosen = [holder.fp32_precision for holder in _PRECISION_HOLDERS]
    try:
        with isolated(CPU):
            assert {holder.fp32_precision for holder in _PRECISION_HOLDERS} == {"ieee"}
        assert [holder.fp32_precision for holder in _PRECISION_HOLDERS] == chosen
    finally:
        if setting == "legacy":
            torch.set_float32_matmul_precision("highest")
        for holder, precision in reversed(list(zip(_PRECISION_HOLDERS, before, strict=True))):
            if holder.fp32_precision != precision:
                holder.fp32_precision = precision
    assert [holder.fp32_precision for holder in _PRECISION_HOLDERS] == before


def test_a_backend_that_follows_the_overall_setting_still_does_afterwards():
    with isolated(CPU):
        pass
    try:
        torch.backends.fp32_precision = "tf32"  # pyright: ignore[reportAttributeAccessIssue]
        assert torch.backends.mkldnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"  # pyright: ignore[reportAttributeAccessIssue]
