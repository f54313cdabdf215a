"""Cosine, distance and norms of every update against the bare training step of the paper's MLP at batch 100.

    python benchmarks/cheap_columns.py [--data-dir DIR]

Equal nets train on the same mini-batches in turns of ``--steps`` updates: unwatched, watched with NumPy's operations,
with the fused loops that numba compiles, and so with the gauge besides. Random inputs of MNIST's shape serve
where no data are named: no number here depends on the pixels.

``memory floor``: a bare training that after every update moves through memory what the columns cannot do without, by
NumPy's own dot products and copies: θ_t is compared with its copy before the update (2 vectors are read), g_t is
multiplied by and kept in place of g_{t-1} (2 read, 1 written), θ_{t+1} is held against θ_t and θ_0 and kept (3 read, 1
written). ``least traffic``: the same for a tool that trusts the loop: θ_t is as the last update left it, and nothing
writes to g_{t-1}, which is kept without a copy (5 read, 1 written).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import common
import nets
import sgdwalk
from sgdwalk.kernels import NumbaKernel, NumpyKernel

WANTED = {"numpy": 1.5, "numba": 1.15, "numba, and the gauge": 1.15}
FLOOR, LEAST = "memory floor", "least traffic"
CHUNK = 1 << 17
"""Coordinates that the floor takes at a time: chunks of 0.5 MiB stay in the cache from one call to the next."""
KERNELS = {"numpy": NumpyKernel, "numba": NumbaKernel, "numba, and the gauge": NumbaKernel}


class Training:
    """The paper's MLP and an endless supply of mini-batches."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int):
        torch.manual_seed(0)
        self.model = nets.mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        batches = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
        self.batches = itertools.cycle(batches)

    def steps(self, count: int, after: Callable[[], None] | None = None) -> Callable[[], None]:
        def run() -> None:
            for inputs, targets in itertools.islice(self.batches, count):
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(inputs), targets).backward()
                self.optimizer.step()
                if after is not None:
                    after()

        return run


def memory_traffic(coordinates: int, *, trusting: bool) -> Callable[[], None]:
    """What the columns of one update read and write, with nothing else done."""
    theta, kept, start, gradient, previous = np.random.default_rng(0).standard_normal((5, coordinates), np.float32)
    spans = [slice(low, low + CHUNK) for low in range(0, coordinates, CHUNK)]

    def once() -> None:
        if not trusting:
            for span in spans:
                theta[span] @ kept[span]
        for span in spans:
            gradient[span] @ previous[span]
            if not trusting:
                previous[span] = gradient[span]
        for span in spans:
            theta[span] @ kept[span]
            theta[span] @ start[span]
            kept[span] = theta[span]

    return once


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], batch_size=100, steps=50, rounds=41)
    count = 50 * options.batch_size
    if options.data_dir is None:
        inputs, targets = torch.rand(count, 784) - 0.5, torch.randint(10, (count,))
    else:
        inputs, targets = common.mnist(options.data_dir, count)

    sides = {"bare": Training(inputs, targets, options.batch_size)}
    walks = {}
    for name, kernel in KERNELS.items():
        sides[name] = Training(inputs, targets, options.batch_size)
        walks[name] = sgdwalk.watch(
            sides[name].model, sides[name].optimizer, None, None, when=None, gauge="gauge" in name, on_error="raise"
        )
        walks[name]._trajectory.kernel = kernel()
    runs = {name: side.steps(options.steps) for name, side in sides.items()}
    for name in (FLOOR, LEAST):
        bare = Training(inputs, targets, options.batch_size)
        coordinates = sum(parameter.numel() for parameter in bare.model.parameters())
        runs[name] = bare.steps(options.steps, after=memory_traffic(coordinates, trusting=name == LEAST))
    raw = common.alternate(runs, rounds=options.rounds, warmup=3)
    for walk in walks.values():
        walk.close()

    rows = [
        {
            "columns by": name,
            "bare step, ms": common.milliseconds(raw["bare"]) / options.steps,
            "watched step, ms": common.milliseconds(raw[name]) / options.steps,
            "ratio (median)": (ratio := common.ratio(raw[name], raw["bare"]))["median"],
            "quartiles": f"{ratio['quartile_low']:.3f}-{ratio['quartile_high']:.3f}",
            "rounds": ratio["rounds"],
            "wanted": f"≤ {WANTED[name]}" if name in WANTED else "",
        }
        for name in (*KERNELS, FLOOR, LEAST)
    ]
    common.report(options.out, "cheap_columns", vars(options), raw, rows)


if __name__ == "__main__":
    main()
