"""What a certified step costs, by count, as the data grow to a million examples: the cost stops growing.

    python benchmarks/huge_data.py [--largest-pass 150000] [--tolerance 0.05] [--steps 16]

A small net on synthetic examples of one rule, the same training (by its mini-batches) at every N. Counted are the
examples that go through the model for a step's segment; exact segments need ten passes. No time is measured.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import sgdwalk

NUM_EXAMPLES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
BATCH_SIZE = 100


def examples(count: int) -> tuple[Tensor, Tensor]:
    """Inputs of four numbers, and which of three noisy linear scores is the highest; more begin with the same."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(4, 3, generator=generator)
    blocks = [torch.randn(NUM_EXAMPLES[0], 7, generator=generator) for _ in range(0, count, NUM_EXAMPLES[0])]
    inputs, noise = torch.cat(blocks)[:count].split([4, 3], dim=1)
    return inputs.contiguous(), (inputs @ teacher + noise).argmax(1)


def measure(count: int, options: Any) -> dict[str, Any]:
    inputs, targets = examples(count)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate)
    watching = {"tolerance": options.tolerance, "largest_pass": options.largest_pass}
    # Mini-batches are drawn from the first examples, which are the same for every N.
    batches = torch.Generator().manual_seed(1)
    with sgdwalk.watch(
        model, optimizer, F.cross_entropy, (inputs, targets), method="certified", on_error="raise", **watching
    ) as walk:
        for _ in range(options.before + options.steps):
            rows = torch.randint(NUM_EXAMPLES[0], (BATCH_SIZE,), generator=batches)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    steps = walk.run.steps.iloc[options.before :]
    width = (steps["height_high"] - steps["height_low"]) / 2 / steps["height"]
    return {
        "examples": count,
        "examples_evaluated": steps["examples_evaluated"].tolist(),
        "looks": steps["looks"].tolist(),
        "height": steps["height"].tolist(),
        "height_halfwidth": width.tolist(),
        "ends": "sampled" if walk.run.segments["kind"].iloc[-1] == "estimated" else "over all data",
    }


def row(case: dict[str, Any], options: Any) -> dict[str, Any]:
    evaluated, widths = (torch.tensor(case[name], dtype=torch.float64) for name in _COLUMNS)
    exact = 10 * case["examples"]
    return {
        "N": case["examples"],
        "ends": case["ends"],
        "examples a step, mean": round(float(evaluated.mean())),
        "most": round(float(evaluated.max())),
        "exact": exact,
        "share of exact": float(evaluated.mean()) / exact,
        "half-width / height, median": float(widths.median()),
        "within tolerance": f"{int((widths <= options.tolerance * (1 + 1e-9)).sum())} of {len(widths)}",
    }


_COLUMNS = ("examples_evaluated", "height_halfwidth")


def main() -> None:
    options = common.arguments(
        __doc__.splitlines()[0], largest_pass=150_000, tolerance=0.05, learning_rate=2.0, before=6, steps=16
    )
    cases = [measure(count, options) for count in NUM_EXAMPLES]
    common.report(options.out, "huge_data", vars(options), cases, [row(case, options) for case in cases])


if __name__ == "__main__":
    main()
