"""Cosine, distance and norms of every update against the bare training step of the paper's MLP at batch 100.

    python benchmarks/cheap_columns.py [--data-dir DIR]

Equal nets train on the same mini-batches in turns of ``--steps`` updates: unwatched, watched with NumPy's operations,
with the fused loops that numba compiles, and so with the gauge besides, each at every update and at one in ten, drawn
at random. They train by SGD without momentum; with it, where θ_t is kept at every update and the gauge needs a vector
more, beside a bare training with momentum. Random inputs of MNIST's shape serve where no data are named: no number here
depends on the pixels.

``hooks alone``: a walk whose columns are made up, without a look at any vector. ``memory floor``: a bare training
whose updates come with what the columns cannot do without, compiled to one pass each and with no walk around it: g_t
is multiplied by and kept in place of g_{t-1} (2 vectors read, 1 written), θ_{t+1} is held against θ_0 (2 read).
``memory floor, θ_t kept``: where the update may be another than -η g_t, θ_t is read before it, to see that it is as the
last one left it (1 read), and θ_{t+1} is held against it, too, and kept (1 read, 1 written).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import nets
import sgdwalk
from sgdwalk.kernels import GradientSums, NumbaKernel, NumpyKernel, PositionSums

HOOKS = "hooks alone"
ONE_IN = 10
BARE = ("bare", "bare, momentum")
FLOOR, KEPT = "memory floor", "memory floor, θ_t kept"


class NoKernel:
    """Touches no vector: what is left is that a walk hears of every update, and keeps a row of it."""

    name = "none"

    def moved(self, *arguments: object) -> bool:
        return False

    def gradient_sums(self, *arguments: object) -> GradientSums:
        return GradientSums(1.0, 1.0, 0.0)

    def position_sums(self, *arguments: object) -> PositionSums:
        return PositionSums(1.0, 1.0, 0.0)

    def update_sums(self, *arguments: object, advance: bool) -> tuple[GradientSums, PositionSums]:
        return self.gradient_sums(), self.position_sums()


MOMENTUM = ", momentum"
KERNELS = {
    "numpy": NumpyKernel,
    "numba": NumbaKernel,
    "numba, and the gauge": NumbaKernel,
    f"numba{MOMENTUM}": NumbaKernel,
    f"numba, and the gauge{MOMENTUM}": NumbaKernel,
}
WANTED = {name: 1.5 if name == "numpy" else 1.15 for name in KERNELS}


def walks_of() -> dict[str, tuple[type, sgdwalk.When, float | None]]:
    """Each watched side's kernel, the updates at which it keeps the columns, and the ratio that is wanted."""
    often = {"": sgdwalk.every(1), f", one update in {ONE_IN}": sgdwalk.one_in(ONE_IN)}
    sides = {
        name + said: (kernel, columns, WANTED[name])
        for name, kernel in KERNELS.items()
        for said, columns in often.items()
    }
    return {**sides, HOOKS: (NoKernel, sgdwalk.every(1), None)}


class Training:
    """The paper's MLP and an endless supply of mini-batches."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int, *, momentum: bool = False):
        torch.manual_seed(0)
        self.model = nets.mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9 if momentum else 0.0)
        batches = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
        self.batches = itertools.cycle(batches)

    def steps(self, count: int, traffic: Traffic | None = None) -> Callable[[], None]:
        def run() -> None:
            for inputs, targets in itertools.islice(self.batches, count):
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(inputs), targets).backward()
                if traffic is not None:
                    traffic.before()
                self.optimizer.step()
                if traffic is not None:
                    traffic.after()

        return run


# The least arithmetic that reads what must be read, in float32 and in any order.
@numba.njit(fastmath=True)
def sum_of_bits(vector):
    bits = np.int32(0)
    for i in range(len(vector)):
        bits = np.int32(bits + vector[i])  # or numba widens every one of them
    return bits


@numba.njit(fastmath=True)
def dot_and_keep(gradient, kept):
    total = np.float32(0)
    for i in range(len(gradient)):
        total += gradient[i] * kept[i]
        kept[i] = gradient[i]
    return total


@numba.njit(fastmath=True)
def squares(theta, start):
    distance = np.float32(0)
    for i in range(len(theta)):
        distance += (theta[i] - start[i]) ** 2
    return distance


@numba.njit(fastmath=True)
def squares_and_keep(theta, kept, start):
    update, distance = np.float32(0), np.float32(0)
    for i in range(len(theta)):
        update += (theta[i] - kept[i]) ** 2
        distance += (theta[i] - start[i]) ** 2
        kept[i] = theta[i]
    return update + distance


class Traffic:
    """What the columns of one update read and write, with little else done."""

    def __init__(self, model: nn.Module, *, keeps_point: bool):
        self.parameters, self.keeps_point = list(model.parameters()), keeps_point
        self.kept = [theta.copy() for theta in self.thetas()]
        self.start = [theta.copy() for theta in self.thetas()]
        self.previous = [np.zeros_like(theta) for theta in self.thetas()]

    def thetas(self) -> list[np.ndarray]:
        return [parameter.detach().numpy().ravel() for parameter in self.parameters]

    def before(self) -> None:
        if self.keeps_point:
            for theta in self.thetas():
                sum_of_bits(theta.view(np.int32))

    def after(self) -> None:
        gradients = [parameter.grad.numpy().ravel() for parameter in self.parameters if parameter.grad is not None]
        for gradient, previous in zip(gradients, self.previous, strict=True):
            dot_and_keep(gradient, previous)
        for theta, kept, start in zip(self.thetas(), self.kept, self.start, strict=True):
            if self.keeps_point:
                squares_and_keep(theta, kept, start)
            else:
                squares(theta, start)


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], batch_size=100, steps=50, rounds=41)
    count = 50 * options.batch_size
    if options.data_dir is None:
        inputs, targets = torch.rand(count, 784) - 0.5, torch.randint(10, (count,))
    else:
        inputs, targets = common.mnist(options.data_dir, count)

    sides = {name: Training(inputs, targets, options.batch_size, momentum=MOMENTUM in name) for name in BARE}
    walks = {}
    watched = walks_of()
    for name, (kernel, columns, _) in watched.items():
        sides[name] = Training(inputs, targets, options.batch_size, momentum=MOMENTUM in name)
        model, optimizer, gauge = sides[name].model, sides[name].optimizer, "gauge" in name
        walks[name] = sgdwalk.watch(
            model, optimizer, None, None, when=None, columns=columns, gauge=gauge, on_error="raise"
        )
        walks[name]._trajectory.kernel = kernel()
    runs = {name: side.steps(options.steps) for name, side in sides.items()}
    for name in (FLOOR, KEPT):
        bare = Training(inputs, targets, options.batch_size)
        runs[name] = bare.steps(options.steps, Traffic(bare.model, keeps_point=name == KEPT))
    raw = common.alternate(runs, rounds=options.rounds, warmup=3)
    for walk in walks.values():
        walk.close()

    wanted = {name: ratio for name, (*_, ratio) in watched.items()}
    rows = [
        {
            "columns by": name,
            "bare step, ms": common.milliseconds(raw[bare := BARE[MOMENTUM in name]]) / options.steps,
            "watched step, ms": common.milliseconds(raw[name]) / options.steps,
            "ratio (median)": (ratio := common.ratio(raw[name], raw[bare]))["median"],
            "quartiles": f"{ratio['quartile_low']:.3f}-{ratio['quartile_high']:.3f}",
            "rounds": ratio["rounds"],
            "wanted": f"≤ {wanted[name]}" if wanted.get(name) else "",
        }
        for name in (*watched, FLOOR, KEPT)
    ]
    common.report(options.out, "cheap_columns", vars(options), raw, rows)


if __name__ == "__main__":
    main()
