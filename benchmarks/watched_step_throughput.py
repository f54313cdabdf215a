"""A watched training step against plain scripts written after the code that the paper's authors published.

    python benchmarks/watched_step_throughput.py --data-dir DIR [--net mlp|vgg11|resnet56|all]

A watched training step: one SGD update on a mini-batch of 100, and the full loss at the ten new points of its segment
over N examples in evaluation batches of 100, BatchNorm taking each batch's statistics. Three sides train the same
layers from the same start on the same mini-batches, in turns:

* watched: the update inside ``sgdwalk.watch()`` with its defaults, of the net that ``sgdwalk reproduce`` trains. It is
  written to work in place: ReLUs and a block's sum take the place of what they are made from, which is a part of what
  is gained here (a tenth for ResNet-56), and which a net of one's own has where it is written so;
* plain script: the net as it is commonly written (``nets.py``), and the evaluation loop of the authors'
  ``interpolation.py`` (LynetteXing1991/walk_with_sgd, 2018) in today's torch, over tensors that lie in memory ready to
  use. At each point the state dict is interpolated (running statistics too) and loaded, then a shuffling DataLoader
  hands out its batches and each batch's loss is fetched;
* plain script with transforms: the same, where the data set makes each example ready when it is asked for, as the
  authors' does at every point: crop after padding by 4, flip and normalization for images, normalization for MNIST.

All sides evaluate ten points a step: the authors' grid is α = 0, 0.1, …, 0.9, for α = 1 is the next segment's start; so
is ``watch()``'s 0.1, …, 1, whose start is the end of the segment before. A script that evaluates both ends would pay
eleven.

The scripts are spared what the authors' code does besides: checkpoints written and read at every update, a net built
anew for every segment, accuracies, files written. Each script runs in a process of its own, as scripts do, and its
loader in that process (``num_workers=0``; the authors take two further ones), so that every side has the one thread and
nothing else; a side does nothing while it is another's turn. ``in our process``: the plain script once more where
``watch()`` has made freed memory stay with the process, which makes the script faster too. ``loss differs by`` is the
mean distance of the scripts' losses from the watched ones, point by point: they shuffle and augment anew at each point.
The ratio of processor seconds leaves out the time that a busy machine gave to others.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import common
import nets
import sgdwalk
from sgdwalk.paper import models

SIZES = {"mlp": 5_000, "vgg11": 1_000, "resnet56": 1_000}
"""Examples N where no --examples is given: half a minute a step with one thread."""

ROUNDS = {"mlp": 9, "vgg11": 3, "resnet56": 3}
"""Rounds where no --rounds is given."""

LEARNING_RATE = 0.1
NUM_POINTS = 10
IN_OUR_PROCESS = "plain script, in our process"
WANTED = 0.75


class Training:
    """A net, its optimizer, and an endless supply of mini-batches; the same for every side."""

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int):
        self.model = copy.deepcopy(model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        self.batches = itertools.cycle(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))

    def step(self) -> None:
        inputs, targets = next(self.batches)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()


class PlainScript:
    """An update, then the losses on its segment by interpolated state dicts."""

    def __init__(self, training: Training, loader: DataLoader):
        self.training = training
        self.loader = loader
        self.model = copy.deepcopy(training.model)
        self.criterion = nn.CrossEntropyLoss()

    def step(self) -> list[float]:
        start = {name: value.clone() for name, value in self.training.model.state_dict().items()}
        self.training.step()
        end = self.training.model.state_dict()
        losses = []
        for k in range(NUM_POINTS):
            alpha = k / NUM_POINTS
            point = {name: (1 - alpha) * start[name] + alpha * end[name] for name in start}
            self.model.load_state_dict(point)
            losses.append(self.full_loss())
        return losses

    def full_loss(self) -> float:
        self.model.train()
        total = 0.0
        with torch.no_grad():
            for inputs, targets in self.loader:
                total += self.criterion(self.model(inputs), targets).item()
        return total / len(self.loader)


def plain_script(
    threads: int, model: nn.Module, inputs: Tensor, targets: Tensor, dataset: Dataset, batch_size: int
) -> Callable[[], tuple[list[float], float]]:
    """A script's watched step: its losses, and the processor seconds that it took."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    training = Training(model, inputs, targets, batch_size)
    script = PlainScript(training, DataLoader(dataset, batch_size=batch_size, shuffle=True))

    def step() -> tuple[list[float], float]:
        begin = time.process_time()
        losses = script.step()
        return losses, time.process_time() - begin

    return step


class TransformedImages(Dataset):
    """CIFAR-10 as bytes; crop after padding by 4, flip and normalization for each example as it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images = images  # (N, 3, 32, 32), uint8
        self.labels = labels.tolist()
        self.mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
        self.deviation = torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        top, left, flipped = torch.randint(9, (3,)).tolist()
        image = F.pad(self.images[index], (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        if flipped % 2:
            image = image.flip(2)
        return (image.float().div_(255) - self.mean).div_(self.deviation), self.labels[index]


class TransformedDigits(Dataset):
    """MNIST as bytes; normalization for each example as it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images = images  # (N, 1, 28, 28), uint8
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float().div_(255).sub_(0.5).flatten(), self.labels[index]


def transformed(name: str, data_dir: Path, count: int) -> Dataset:
    images, labels = common.examples(data_dir / ("mnist" if name == "mlp" else "cifar10"), "train", count)
    images = (images * 255).round().to(torch.uint8)
    return (TransformedDigits if name == "mlp" else TransformedImages)(images, labels)


def reproduced(name: str, plain: nn.Module) -> nn.Module:
    """The net that ``sgdwalk reproduce`` trains, with a plain one's weights: both have the same layers in one order."""
    make = {
        "mlp": lambda: models.MLP((784, 500, 350, 10)),
        "vgg11": lambda: models.VGG11(10),
        "resnet56": lambda: models.ResNet(10),
    }
    model = make[name]()
    model.load_state_dict(dict(zip(model.state_dict(), plain.state_dict().values(), strict=True)))
    return model


def measure(name: str, options) -> dict:
    torch.manual_seed(0)
    count = options.examples or SIZES[name]
    inputs, targets = (common.mnist if name == "mlp" else common.cifar10)(options.data_dir, count)
    datasets = {
        "plain script": TensorDataset(inputs, targets),
        "plain script with transforms": transformed(name, Path(options.data_dir), count),
    }
    model = {"mlp": nets.mlp, "vgg11": nets.vgg11, "resnet56": nets.resnet56}[name]()
    watched = Training(reproduced(name, model), inputs, targets, options.batch_size)
    taken: dict[str, list[tuple[list[float], float]]] = {side: [] for side in (*datasets, IN_OUR_PROCESS)}
    processor: dict[str, list[float]] = {"watched": []}
    sides: dict[str, Callable[[], None]] = {"watched": common.counted(watched.step, processor["watched"])}
    with contextlib.ExitStack() as stack:
        for side, dataset in (*datasets.items(), (IN_OUR_PROCESS, datasets["plain script"])):
            what = (options.threads, model, inputs, targets, dataset, options.batch_size)
            here = side == IN_OUR_PROCESS
            step = plain_script(*what) if here else stack.enter_context(common.elsewhere(plain_script, *what))
            sides[side] = lambda step=step, kept=taken[side]: kept.append(step())
        walk = stack.enter_context(
            sgdwalk.watch(
                *(watched.model, watched.optimizer, F.cross_entropy, (inputs, targets)),
                batch_size=options.batch_size,
                on_error="raise",
            )
        )
        # The first watched update compares with float64 as well (the loss noise); the warm-up takes it.
        raw = common.alternate(sides, rounds=options.rounds or ROUNDS[name])
    segments = walk.run.segments
    losses = segments[segments.alpha < 1].loss.to_numpy()
    for side, steps in taken.items():
        processor[side] = [seconds for _, seconds in steps]
    processor = {side: kept[-len(raw[side]) :] for side, kept in processor.items()}
    return {
        "net": name,
        "examples": count,
        "seconds": raw,
        "processor_seconds": processor,
        "ratios": {side: common.ratio(raw["watched"], raw[side]) for side in taken},
        "processor_ratios": {side: common.ratio(processor["watched"], processor[side]) for side in taken},
        "loss_differs_by": {
            side: fmean(abs(losses - list(itertools.chain.from_iterable(each for each, _ in steps))).tolist())
            for side, steps in taken.items()
        },
        "last_loss": float(losses[-1]),
    }


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], net="all", examples=0, batch_size=100, rounds=0)
    for name in list(SIZES) if options.net == "all" else [options.net]:
        case = measure(name, options)
        rows = [
            {
                "net": case["net"],
                "N": case["examples"],
                "against": side,
                "its watched step, ms": common.milliseconds(case["seconds"][side]),
                "ours, ms": common.milliseconds(case["seconds"]["watched"]),
                "ratio (median)": ratio["median"],
                "quartiles": f"{ratio['quartile_low']:.3f}-{ratio['quartile_high']:.3f}",
                "of processor seconds": case["processor_ratios"][side]["median"],
                "rounds": ratio["rounds"],
                "loss differs by": case["loss_differs_by"][side],
                "wanted": "" if side == IN_OUR_PROCESS else f"≤ {WANTED}",
            }
            for side, ratio in case["ratios"].items()
        ]
        common.report(options.out, f"watched_step_throughput_{name}", vars(options), [case], rows)


if __name__ == "__main__":
    main()
