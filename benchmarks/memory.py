"""Memory that a walk needs beside the data and one evaluation batch's activations, in parameter vectors.

    python benchmarks/memory.py

A net of 25 million parameters (one vector: 100 MB) and little else is trained bare and watched, each in a process of
its own, as a peak of resident memory belongs to a process. The kernel's high-water mark is reset between phases, and
the C library is told to give freed memory back, so that a peak is what was in use together. The bare side evaluates the
full loss once too: the activations stand on both sides and cancel. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import common
import sgdwalk

WIDTH, DEPTH = 2500, 4
NUM_EXAMPLES, BATCH_SIZE = 40, 20
VECTOR_BYTES = 4 * DEPTH * WIDTH * (WIDTH + 1)
SIDES = ("bare", "copy", "model")
WANTED = {"watch()": "≤ 4", "first watched update": "≤ 6", "later watched updates": "≤ 4"}


# ------------------------------------------------------------------------------------------- inside a child process
def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def live_tensor_bytes() -> int:
    """Bytes of all storages that a Python tensor still refers to."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def net(width: int) -> nn.Module:
    return nn.Sequential(*(layer for _ in range(DEPTH) for layer in (nn.Linear(width, width), nn.Tanh())))


def child(side: str, num_steps: int) -> dict:
    torch.manual_seed(0)
    # A tiny walk first, so that all code is loaded and compiled on every side before anything is measured.
    tiny = net(8)
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    with sgdwalk.watch(tiny, optimizer, F.mse_loss, (torch.randn(4, 8), torch.randn(4, 8)), on_error="raise"):
        update(tiny, optimizer, torch.randn(4, 8), torch.randn(4, 8))
    live_tensor_bytes()

    model = net(WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, targets = torch.randn(NUM_EXAMPLES, WIDTH), torch.randn(NUM_EXAMPLES, WIDTH)
    update(model, optimizer, inputs[:BATCH_SIZE], targets[:BATCH_SIZE])
    if side == "bare":

        def both() -> None:
            update(model, optimizer, inputs[:BATCH_SIZE], targets[:BATCH_SIZE])
            evaluate(model, inputs, targets)

        return {"bare": phase(both)}

    peaks = {}
    resident, tensors = [], []
    with tempfile.TemporaryDirectory() as folder:
        walks = []
        peaks["watch()"] = phase(
            lambda: walks.append(
                sgdwalk.watch(
                    model,
                    optimizer,
                    F.mse_loss,
                    (inputs, targets),
                    batch_size=BATCH_SIZE,
                    evaluate_on=side,
                    run=Path(folder) / "run",
                    on_error="raise",
                )
            )
        )

        def step() -> None:
            update(model, optimizer, inputs[:BATCH_SIZE], targets[:BATCH_SIZE])
            resident.append(status_bytes("VmRSS"))
            tensors.append(live_tensor_bytes())

        peaks["first watched update"] = phase(step)
        # The hundredth segment after the first measures the loss noise again.
        peaks["later watched updates"] = phase(lambda: [step() for _ in range(min(num_steps - 1, 99))])
        for _ in range(num_steps - len(resident)):
            step()
        walks[0].close()
        assert len(walks[0].run.steps) == num_steps
    return {"peaks": peaks, "resident": resident, "tensors": tensors}


def update(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.mse_loss(model(inputs), targets).backward()
    optimizer.step()


def evaluate(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    with torch.no_grad():
        for x, y in zip(inputs.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True):
            F.mse_loss(model(x), y)


def phase(run) -> int:
    """The process's highest resident memory while ``run`` runs, in bytes."""
    gc.collect()
    reset_peak()
    run()
    return status_bytes("VmHWM")


# ------------------------------------------------------------------------------------------------------ the parent
def measure(side: str, num_steps: int) -> dict:
    # Every block above 64 KiB is mapped on its own and unmapped when it is freed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--child", side, "--steps", str(num_steps)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], steps=200)
    raw = {side: measure(side, options.steps) for side in SIDES}
    rows = []
    for side in SIDES[1:]:
        for name, peak in raw[side]["peaks"].items():
            rows.append(
                {
                    "evaluate_on": side,
                    "measured": name,
                    "value": f"{(peak - raw['bare']['bare']) / VECTOR_BYTES:.2f} vectors",
                    "wanted": WANTED[name],
                }
            )
        for name, values in (("resident memory", raw[side]["resident"]), ("live tensors", raw[side]["tensors"])):
            grown = values[-1] - values[len(values) // 20]
            rows.append(
                {
                    "evaluate_on": side,
                    "measured": f"growth of {name}, updates {len(values) // 20} to {len(values) - 1}",
                    "value": f"{grown / 2**20:.2f} MiB",
                    "wanted": "none",
                }
            )
    common.report(options.out, "memory", vars(options), raw, rows)


if __name__ == "__main__":
    if "--child" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--child")
        parser.add_argument("--steps", type=int)
        chosen = parser.parse_args()
        torch.set_num_threads(1)
        print(json.dumps(child(chosen.child, chosen.steps)))
    else:
        main()
