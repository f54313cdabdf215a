"""What watching costs under gradient descent over the evaluation batches, where ends of segments are overheard.

    python benchmarks/gd_batches.py --data-dir DIR [--examples N] [--rounds 12] [--tolerance 0.05]

Two trainings of an MLP 784-500-500-10 from the same start take full gradients over the same list of batches, one update
at a time in turns within one process. One goes over ``walk.batches()`` and is watched with ``method="certified"``; the
other is a bare loop. A watched update holds its pass over the batches, the step, and the measurement of the segment
before, to whose end that pass came.

The very first update evaluates every point, for the loss noise, and each hundredth after does: what that adds to every
update of a long training is in a column of its own. The first ``--before`` updates are not among the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import sgdwalk
from sgdwalk.measuring import NOISE_EVERY

WANTED = 1.15


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10))


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    num_examples: int,
) -> dict[str, float]:
    """One update by the full gradient; wall and processor seconds."""
    begin, processor = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    for inputs, targets in batches():
        (F.cross_entropy(model(inputs), targets, reduction="sum") / num_examples).backward()
    optimizer.step()
    return {"seconds": time.perf_counter() - begin, "processor_seconds": time.process_time() - processor}


def measure(options: Any) -> dict[str, Any]:
    inputs, targets = common.mnist(options.data_dir, options.examples)
    batches = list(zip(inputs.split(options.batch_size), targets.split(options.batch_size), strict=True))
    models = {side: mlp() for side in ("watched", "unwatched")}
    optimizers = {side: torch.optim.SGD(model.parameters(), lr=options.learning_rate) for side, model in models.items()}
    walk = sgdwalk.watch(
        models["watched"],
        optimizers["watched"],
        F.cross_entropy,
        batches,
        method="certified",
        tolerance=options.tolerance,
        on_error="raise",
    )
    sources = {"watched": walk.batches, "unwatched": lambda: batches}
    raw: dict[str, list[dict[str, float]]] = {side: [] for side in models}
    for step in range(options.before + options.rounds):
        for side in sorted(models, reverse=step % 2 == 1):
            raw[side].append(update(models[side], optimizers[side], sources[side], options.examples))
    walk.close()
    pairs = zip(models["watched"].parameters(), models["unwatched"].parameters(), strict=True)
    # In the round of update t the segment t - 1 is finished: the last one's end is evaluated by close(), outside.
    steps = walk.run.steps.iloc[options.before - 1 : -1]
    return {
        "steps": raw,
        "passes": (steps["examples_evaluated"] / options.examples).tolist(),
        "looks": steps["looks"].tolist(),
        "floor_alpha": steps["floor_alpha"].tolist(),
        "height": steps["height"].tolist(),
        "height_halfwidth": ((steps["height_high"] - steps["height_low"]) / 2 / steps["height"]).tolist(),
        "same_parameters": all(torch.equal(one, other) for one, other in pairs),
        "ratios": {
            kind: common.ratio(
                *([each[kind] for each in raw[side][options.before :]] for side in ("watched", "unwatched"))
            )
            for kind in ("seconds", "processor_seconds")
        },
    }


def row(case: dict[str, Any], options: Any) -> dict[str, Any]:
    watched, unwatched = (
        np.array([each["processor_seconds"] for each in case["steps"][side]]) for side in ("watched", "unwatched")
    )
    counted = slice(options.before, None)
    usual, bare = np.median(watched[counted]), np.median(unwatched[counted])
    return {
        "N": options.examples,
        "batch": options.batch_size,
        "tolerance": options.tolerance,
        "updates": options.rounds,
        "time / unwatched (median)": case["ratios"]["seconds"]["median"],
        "processor time / unwatched (median)": case["ratios"]["processor_seconds"]["median"],
        "quartiles": "{quartile_low:.3f}-{quartile_high:.3f}".format(**case["ratios"]["processor_seconds"]),
        f"with the exact one in {NOISE_EVERY}": float((usual + (watched[0] - usual) / NOISE_EVERY) / bare),
        "wanted": f"≤ {WANTED:g}",
        "passes evaluated, mean": float(np.mean(case["passes"])),
        "half-width, median": float(np.median(case["height_halfwidth"])),
        "floors inside": int(sum(0 < alpha < 1 for alpha in case["floor_alpha"])),
        "same parameters": case["same_parameters"],
    }


def main() -> None:
    options = common.arguments(
        __doc__.splitlines()[0],
        examples=45_000,
        batch_size=100,
        learning_rate=0.1,
        tolerance=0.05,
        before=3,
        rounds=12,
    )
    case = measure(options)
    common.report(options.out, "gd_batches", vars(options), case, [row(case, options)])


if __name__ == "__main__":
    main()
