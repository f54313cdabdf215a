"""Does a step take longer the longer a walk lasts? 10,000 watched updates, bare and watched in turns.

    python benchmarks/constant_time.py

Each side has an equal net of its own; one update of each is timed in every round, so drift of the machine meets all.
Compared are the medians of the first and the last tenth of the updates.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import sgdwalk

NUM_EXAMPLES, BATCH_SIZE = 200, 100


def training(inputs: Tensor, targets: Tensor) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def update() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[:BATCH_SIZE]), targets[:BATCH_SIZE]).backward()
        optimizer.step()

    return model, optimizer, update


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], steps=10_000)
    torch.manual_seed(0)
    inputs, targets = torch.randn(NUM_EXAMPLES, 64), torch.randint(10, (NUM_EXAMPLES,))
    data = (inputs, targets)

    sides: dict[str, Callable[[], None]] = {"bare": training(inputs, targets)[2]}
    with tempfile.TemporaryDirectory() as folder:
        walks = []
        for name, run, when in [
            ("cheap columns, in memory", None, None),
            ("segments, in memory", None, sgdwalk.every(1)),
            ("segments, run folder", Path(folder) / "run", sgdwalk.every(1)),
        ]:
            model, optimizer, sides[name] = training(inputs, targets)
            walks.append(
                sgdwalk.watch(
                    model,
                    optimizer,
                    F.cross_entropy,
                    data,
                    run=run,
                    when=when,
                    batch_size=BATCH_SIZE,
                    on_error="raise",
                )
            )
        raw = common.alternate(sides, rounds=options.steps, warmup=0)
        for walk in walks:
            walk.close()
            assert len(walk.run.steps) == options.steps

    tenth = options.steps // 10
    medians = {
        name: [common.milliseconds(values[k * tenth : (k + 1) * tenth]) for k in range(10)]
        for name, values in raw.items()
    }
    rows = [
        {
            "side": name,
            "first tenth, ms a step": values[0],
            "last tenth, ms a step": values[-1],
            "last / first": values[-1] / values[0],
            "the same, against bare": values[-1] / values[0] / (medians["bare"][-1] / medians["bare"][0]),
            "slowest tenth / first": float(np.max(values)) / values[0],
        }
        for name, values in medians.items()
    ]
    microseconds = {name: [round(1e6 * value) for value in values] for name, values in raw.items()}
    common.report(options.out, "constant_time", vars(options), {"microseconds": microseconds, "deciles": medians}, rows)


if __name__ == "__main__":
    main()
