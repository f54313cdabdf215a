"""The mean height of an epoch from sampled segments: its error over many samplings, and its price.

    python benchmarks/sampled_epoch.py --data-dir DIR [--net mlp|conv] [--part accuracy|price|both]

Accuracy: one training whose every update is measured exactly, and sampled by ``--samplings`` seeds beside it: the
root-mean-square error of the sampled means against the exact mean, and how often their 95 % intervals cover it. Price:
two equal trainings in turns of ``--steps`` updates, one bare, one sampled as ``method="sampled"`` does it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import nets
import sgdwalk
from sgdwalk.sampled import NUM_UNITS, SAMPLE_ONE_IN

SIZES = {"mlp": (45_000, 100), "conv": (4_500, 30)}
"""Training examples and batch size: the paper's, and a tenth of CIFAR-10 in 150 updates an epoch."""


def conv() -> nn.Module:
    """VGG-11's convolutions with an eighth of the channels, BatchNorm after each, and one linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, "pool", 16, "pool", 32, 32, "pool", 64, 64, "pool", 64, 64, "pool"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nets.initialized(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)))


class Training:
    """One training in mini-batches of a fresh permutation an epoch."""

    def __init__(self, name: str, inputs: Tensor, targets: Tensor, batch_size: int):
        torch.manual_seed(0)
        self.model = {"mlp": nets.mlp, "conv": conv}[name]()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size
        self.steps_per_epoch = len(targets) // batch_size
        self._rows = self._draw()

    def _draw(self):
        generator = torch.Generator().manual_seed(1)
        for _ in itertools.count():
            yield from torch.randperm(len(self.targets), generator=generator).split(self.batch_size)[
                : self.steps_per_epoch
            ]

    def watch(self, **options) -> sgdwalk.Walk:
        return sgdwalk.watch(
            self.model,
            self.optimizer,
            F.cross_entropy,
            (self.inputs, self.targets),
            batch_size=self.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            on_error="raise",
            **options,
        )

    def steps(self, count: int) -> Callable[[], None]:
        def run() -> None:
            for rows in itertools.islice(self._rows, count):
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(self.inputs[rows]), self.targets[rows]).backward()
                self.optimizer.step()

        return run


def sampled(seed: int) -> object:
    return sgdwalk.at(sgdwalk.one_in(SAMPLE_ONE_IN, seed=seed), sgdwalk.SampledSegments(NUM_UNITS, seed=seed))


def accuracy(name: str, data: tuple[Tensor, Tensor], batch_size: int, options) -> tuple[list, dict]:
    training = Training(name, *data, batch_size)
    measures = {f"sampling{seed}": sampled(seed) for seed in range(options.samplings)}
    rows, raw = [], {}
    with training.watch(measures=measures) as walk:
        training.steps(options.epochs * training.steps_per_epoch)()
    for epoch, steps in walk.run.steps.groupby("epoch"):
        exact = float(steps["height"].mean())
        found = [sgdwalk.analysis.sampled_epochs(walk.run, each).loc[epoch] for each in measures]
        means = np.array([each["mean_height"] for each in found])
        covered = np.mean([each["height_low"] <= exact <= each["height_high"] for each in found])
        raw[f"epoch {epoch}"] = {
            "exact_heights": steps["height"].tolist(),
            "means": means.tolist(),
            "low": [float(each["height_low"]) for each in found],
            "high": [float(each["height_high"]) for each in found],
        }
        rows.append(
            {
                "net": name,
                "epoch": int(epoch),
                "updates": len(steps),
                "exact mean height": exact,
                "error (root mean square)": float(np.sqrt(np.mean((means / exact - 1) ** 2))),
                "bias": float(np.mean(means) / exact - 1),
                "coverage of the 95 % interval": float(covered),
                "samplings": len(means),
                "wanted": "error ≤ 0.10, coverage ≥ 0.90",
            }
        )
    return rows, raw


def price(name: str, data: tuple[Tensor, Tensor], batch_size: int, options) -> tuple[list, dict]:
    sides = {"bare": Training(name, *data, batch_size), "sampled": Training(name, *data, batch_size)}
    walk = sides["sampled"].watch(when=None, measures={"sampled": sampled(0)})
    count = options.steps // SAMPLE_ONE_IN * SAMPLE_ONE_IN
    raw = common.alternate({key: side.steps(count) for key, side in sides.items()}, rounds=options.rounds)
    walk.close()
    for ours, bare in zip(sides["sampled"].model.parameters(), sides["bare"].model.parameters(), strict=True):
        assert torch.equal(ours, bare), "watching changed the training"
    ratio = common.ratio(raw["sampled"], raw["bare"])
    row = {
        "net": name,
        "training with sampling / bare": ratio["median"],
        "quartiles": f"{ratio['quartile_low']:.2f}-{ratio['quartile_high']:.2f}",
        "rounds": ratio["rounds"],
        "wanted": "≤ 2.5",
    }
    return [row], raw


def main() -> None:
    description = (__doc__ or "").splitlines()[0]
    options = common.arguments(
        description, net="mlp", part="both", samplings=100, epochs=1, steps=60, rounds=15, examples=0
    )
    size, batch_size = SIZES[options.net]
    size = options.examples or size
    data = (common.mnist if options.net == "mlp" else common.cifar10)(options.data_dir, size)
    settings = copy.copy(vars(options)) | {"num_units": NUM_UNITS, "sample_one_in": SAMPLE_ONE_IN, "size": size}
    for part, run in (("accuracy", accuracy), ("price", price)):
        if options.part in (part, "both"):
            rows, raw = run(options.net, data, batch_size, options)
            common.report(options.out, f"sampled_epoch_{options.net}_{part}", settings, raw, rows)


if __name__ == "__main__":
    main()
