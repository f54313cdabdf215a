"""What a step costs with ``method="certified"`` beside the exact one: examples forwarded, and time.

    python benchmarks/certified_segments.py --data-dir DIR [--net mlp|vgg11|resnet56] [--examples N] [--tolerance 0.05]

Both methods watch a training of their own, from the same start and with the same batches, in turns within one process.
The certified walk begins after ``--skip`` updates, and ``--before`` more of its steps are not counted; the exact one,
whose ten passes over the data are what its cost is in examples, watches the last ``--exact`` of the ``--steps`` that
are, all where it is 0. Passes are of all steps counted, times and errors of those that both watch. Both share a first
linear layer's work between points where there is one (the MLP), the exact one more of it; there a third training is
watched exactly without that, by ten evaluations of the whole model.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import common
import nets
import sgdwalk

USUAL_RATE = 0.1
SIZES = {"mlp": 45_000, "vgg11": 10_000, "resnet56": 10_000}
NETS = {"mlp": nets.mlp, "vgg11": nets.vgg11, "resnet56": nets.resnet56}
WANTED = {("mlp", 0.05): "≤ 1/8", ("mlp", 0.01): "≤ 1/4", ("vgg11", 0.05): "≤ 1/4", ("resnet56", 0.05): "≤ 1/4"}


class Training:
    """A net, its optimizer and the walk that watches it."""

    def __init__(
        self, name: str, inputs: torch.Tensor, targets: torch.Tensor, options: Any, first: int, **watching: Any
    ):
        torch.manual_seed(0)
        self.model = NETS[name]()
        self.inputs, self.targets = inputs, targets
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=options.learning_rate)
        self.walk = sgdwalk.watch(
            self.model,
            self.optimizer,
            F.cross_entropy,
            (inputs, targets),
            batch_size=options.batch_size,
            when=lambda step: step >= first,
            on_error="raise",
            **watching,
        )

    def update(self, rows: torch.Tensor) -> dict[str, float]:
        """One update; wall and processor seconds of the optimizer's step with what watches it."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.inputs[rows]), self.targets[rows]).backward()
        begin, processor = time.perf_counter(), time.process_time()
        self.optimizer.step()
        return {"seconds": time.perf_counter() - begin, "processor_seconds": time.process_time() - processor}


def whole_model(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``watch`` does by itself, written out."""
    inputs, targets = batch
    return model(inputs), targets


def measure(name: str, options: Any) -> dict[str, Any]:
    count = options.examples or SIZES[name]
    last = options.skip + options.before + options.steps
    both = options.exact or options.steps
    inputs, targets = (common.mnist if name == "mlp" else common.cifar10)(options.data_dir, count)
    sides = {
        "certified": Training(
            name, inputs, targets, options, first=options.skip, method="certified", tolerance=options.tolerance
        ),
        "exact": Training(name, inputs, targets, options, first=last - both),
    }
    if name == "mlp":  # a forward function of one's own keeps the layers from sharing work
        sides["exact, nothing shared"] = Training(
            name, inputs, targets, options, first=last - both, forward=whole_model
        )
    raw: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    batches = torch.Generator().manual_seed(1)
    for step in range(last):
        rows = torch.randint(count, (100,), generator=batches)
        for side in sorted(sides, reverse=step % 2 == 1):
            seconds = sides[side].update(rows)
            if step >= last - both:
                raw[side].append(seconds)
    runs = {side: training.walk.run for side, training in sides.items()}
    counted_steps = runs["certified"].steps.iloc[-options.steps :]
    certified, exact = (runs[side].steps.iloc[-both:] for side in ("certified", "exact"))
    # The first exact one has no kept start, and measures the noise of the loss.
    counted = slice(1, None)
    error = ((certified["height"] - exact["height"]) / exact["height"]).abs()
    width = (certified["height_high"] - certified["height_low"]) / 2 / certified["height"]
    inside = (certified["height_low"] <= exact["height"] + 1e-7) & (exact["height"] <= certified["height_high"] + 1e-7)
    return {
        "net": name,
        "examples": count,
        "tolerance": options.tolerance,
        "learning_rate": options.learning_rate,
        "seconds": {side: [each["seconds"] for each in values] for side, values in raw.items()},
        "processor_seconds": {side: [each["processor_seconds"] for each in values] for side, values in raw.items()},
        "passes": (counted_steps["examples_evaluated"] / count).tolist(),
        "looks": counted_steps["looks"].tolist(),
        "height": exact["height"].tolist(),
        "height_error": error.tolist(),
        "height_halfwidth": width.tolist(),
        "outside": (~inside).tolist(),
        "ratios": {
            other: {
                kind: common.ratio(*([each[kind] for each in raw[side][counted]] for side in ("certified", other)))
                for kind in ("seconds", "processor_seconds")
            }
            for other in list(sides)[1:]
        },
        "whole_processor_ratio": {
            other: sum(each["processor_seconds"] for each in raw["certified"][counted])
            / sum(each["processor_seconds"] for each in raw[other][counted])
            for other in list(sides)[1:]
        },
    }


def row(case: dict[str, Any]) -> dict[str, Any]:
    passes = np.mean(case["passes"][1:])
    return {
        "net": case["net"] + (f", η = {case['learning_rate']:g}" if case["learning_rate"] != USUAL_RATE else ""),
        "N": case["examples"],
        "tolerance": case["tolerance"],
        "steps": len(case["passes"]) - 1,
        "passes, mean": float(passes),
        "examples / exact": float(passes) / 10,
        "processor time / exact": case["whole_processor_ratio"]["exact"],
        "time / exact (median)": case["ratios"]["exact"]["seconds"]["median"],
        "time / exact, nothing shared": case["ratios"].get("exact, nothing shared", case["ratios"]["exact"])["seconds"][
            "median"
        ],
        "wanted": WANTED.get((case["net"], case["tolerance"]), ""),
        "half-width, median": float(np.median(case["height_halfwidth"][1:])),
        "largest error": float(np.max(case["height_error"][1:])),
        "outside": sum(case["outside"][1:]),
        "exact looks": case["looks"].count(3.0),
    }


def main() -> None:
    options = common.arguments(
        (__doc__ or "").splitlines()[0],
        net="mlp",
        examples=0,
        batch_size=100,
        learning_rate=USUAL_RATE,
        tolerance=0.05,
        skip=0,
        before=12,
        steps=8,
        exact=0,
    )
    case = measure(options.net, options)
    name = f"certified_segments_{options.net}_{options.tolerance:g}"
    if options.learning_rate != USUAL_RATE:
        name += f"_rate_{options.learning_rate:g}"
    name += f"_from_{options.skip}" if options.skip else ""
    common.report(options.out, name, vars(options), case, [row(case)])


if __name__ == "__main__":
    main()
