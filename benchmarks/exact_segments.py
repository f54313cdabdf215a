"""A watched update against the bare forward passes that its segment needs: ten over all N examples.

    python benchmarks/exact_segments.py --data-dir DIR [--net mlp|vgg11|resnet56|all]

Both sides see the same weights, the same N examples in memory and the same evaluation batches. Watched: one
``optimizer.step()`` with its gradient at hand, everything that the walk does around it included. Bare: ten times
``for batch: loss += cross_entropy(model(batch))`` without gradients, on a model whose BatchNorm layers take batch
statistics, written as well as it can be: for convolutions also in ``channels_last``, and the faster format counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import nets
import sgdwalk

NUM_POINTS = 10
SIZES = {"mlp": 10_000, "vgg11": 300, "resnet56": 300}
"""Examples N where no --examples is given: a bare side of some ten seconds with one thread."""


def bare_passes(model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int) -> Callable[[], float]:
    """Ten evaluations of the full loss, nothing else."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    batches = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))

    def run() -> float:
        loss = 0.0
        with torch.no_grad():
            for _ in range(NUM_POINTS):
                total = torch.zeros((), dtype=torch.float64)
                for x, y in batches:
                    total += F.cross_entropy(model(x), y, reduction="sum")
                loss = total.item() / len(targets)
        return loss

    return run


def measure(name: str, options) -> dict:
    torch.manual_seed(0)
    count = options.examples or SIZES[name]
    inputs, targets = (common.mnist if name == "mlp" else common.cifar10)(options.data_dir, count)
    model = {"mlp": nets.mlp, "vgg11": nets.vgg11, "resnet56": nets.resnet56}[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    F.cross_entropy(model(inputs[: options.batch_size]), targets[: options.batch_size]).backward()

    sides: dict[str, Callable[[], object]] = {"bare": bare_passes(model, inputs, targets, options.batch_size)}
    if name != "mlp":
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        strided = inputs.to(memory_format=torch.channels_last)
        sides["bare, channels_last"] = bare_passes(last, strided, targets, options.batch_size)

    data = (inputs, targets)
    with sgdwalk.watch(model, optimizer, F.cross_entropy, data, batch_size=options.batch_size, on_error="raise"):
        # The first watched update compares with float64 as well (the loss noise); the warm-up takes it.
        raw = common.alternate({"watched": optimizer.step, **sides}, rounds=options.rounds)

    against = min(sides, key=lambda side: common.milliseconds(raw[side]))
    return {
        "net": name,
        "examples": count,
        "batch_size": options.batch_size,
        "against": against,
        "ratio": common.ratio(raw["watched"], raw[against]),
        "seconds": raw,
    }


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], net="all", examples=0, batch_size=100, rounds=9)
    for name in list(SIZES) if options.net == "all" else [options.net]:
        case = measure(name, options)
        row = {
            "net": case["net"],
            "N": case["examples"],
            "10 bare passes, ms": common.milliseconds(case["seconds"][case["against"]]),
            "watched update, ms": common.milliseconds(case["seconds"]["watched"]),
            "ratio (median)": case["ratio"]["median"],
            "quartiles": f"{case['ratio']['quartile_low']:.3f}-{case['ratio']['quartile_high']:.3f}",
            "rounds": case["ratio"]["rounds"],
            "wanted": "≤ 1.10",
        }
        common.report(options.out, f"exact_segments_{name}", vars(options), [case], [row])


if __name__ == "__main__":
    main()
