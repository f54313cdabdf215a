"""What a reproduction will take: time from a few timed forward passes on the very device, disk from what is written."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sgdwalk.paper.config import COLOUR, Experiment
from sgdwalk.paper.cost import work
from sgdwalk.paper.data import NUM_CLASSES
from sgdwalk.paper.models import build

TIMED_SECONDS = 1.0
"""How long each network is timed."""
BYTES_PER_UPDATE = 500
"""A row of the run folder's database."""
BYTES_PER_POINT = 60
"""A loss along a segment, or of a comparison."""
VECTORS_IN_A_CHECKPOINT = 6
"""Parameters, θ_0, θ_t, the last gradient, buffers and more."""
CHECKPOINTS_KEPT = 2
SPEED_SETTINGS = (
    *("dataset", "num_train", "image_divisor", "network", "hidden", "blocks", "width_divisor", "dropout", "batch_size"),
)
"""What decides how fast a network's forward pass is: those alike in it are timed once."""


@dataclass(frozen=True)
class Estimate:
    """Time and disk of one training."""

    experiment: Experiment
    seconds: float
    """Alone on the device."""
    bytes: float


def estimate(experiments: Sequence[Experiment], device: str = "cpu", num_threads: int = 1) -> list[Estimate]:
    """Time a few forward passes of each network, and scale to the whole work.

    Backward counts twice forward (:mod:`sgdwalk.paper.cost`). Starting the process, loading data and writing pages is
    left out.

    Args:
        experiments: the trainings.
        device: where they will run; the passes are timed there.
        num_threads: torch's threads of each.
    """
    torch.set_num_threads(num_threads)
    speeds: dict[Experiment, tuple[float, int]] = {}
    found = []
    for experiment in experiments:
        alike = Experiment(**{name: getattr(experiment, name) for name in SPEED_SETTINGS})
        if alike not in speeds:
            speeds[alike] = _examples_per_second(alike, device)
        rate, num_parameters = speeds[alike]
        points = sum(
            experiment.num_points * experiment.watched(step) + 10 * len(experiment.compared(step))
            for step in range(experiment.num_updates)
        )
        written = BYTES_PER_UPDATE * experiment.num_updates + BYTES_PER_POINT * points
        kept = 4 * num_parameters * (1 + CHECKPOINTS_KEPT * VECTORS_IN_A_CHECKPOINT)
        found.append(Estimate(experiment, work(experiment) / rate, written + kept))
    return found


def start_seconds(experiments: Sequence[Experiment]) -> float:
    """What a process takes until it trains, most of it for importing torch and what reads data; measured with one."""
    reads = any(each.dataset != "digits" for each in experiments)
    start = time.perf_counter()
    modules = f"torch._dynamo, sgdwalk.paper.worker{', datasets' if reads else ''}"
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.perf_counter() - start


@torch.no_grad()
def _examples_per_second(experiment: Experiment, device: str) -> tuple[float, int]:
    """Forward throughput on random inputs in batches of the training's size, and the number of parameters."""
    size = experiment.image_size
    shape = (3, size, size) if experiment.dataset in COLOUR else (size * size,)
    model = build(experiment, shape, NUM_CLASSES[experiment.dataset]).to(device)
    inputs = torch.rand(experiment.batch_size, *shape, device=device)
    if experiment.network != "mlp":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for _ in range(3):
        model(inputs).sum().item()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < TIMED_SECONDS:
        model(inputs).sum().item()
        count += len(inputs)
    rate = count / (time.perf_counter() - start)
    return rate, sum(parameter.numel() for parameter in model.parameters())
