"""Does a budget hold? The same training bare and with ``watch(budget=...)``, whole trainings in turns in one process.

    python benchmarks/budget.py --data-dir DIR [--net mlp|conv|all] [--budget 1.5]

What counts against the budget is the time from ``watch()`` having returned to the end of the training, the fifteen
updates and the evaluations that the choice is made by included. Beside it stands the whole, with ``watch()`` itself.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

import common
from error_against_cost import SIZES, Training

LOADERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"mlp": common.mnist, "conv": common.cifar10}


class Sides:
    """One training of so many updates from the same start, bare or watched; seconds by what they went into."""

    def __init__(self, name: str, data: tuple[Tensor, Tensor], count: int, budget: float):
        self._name, self._data, self._count, self._budget = name, data, count, budget
        self.raw: dict[str, list[float]] = {"bare": [], "watch()": [], "watched": []}
        self.walks: list[dict[str, Any]] = []

    def _timed(self, key: str, run: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = run()
        self.raw[key].append(time.perf_counter() - began)
        return result

    def bare(self) -> None:
        training = Training(self._name, *self._data)
        self._timed("bare", training.steps(self._count))

    def watched(self) -> None:
        training = Training(self._name, *self._data)
        walk = self._timed("watch()", lambda: training.watch(budget=self._budget))

        def train() -> None:
            training.steps(self._count)()
            walk.close()

        self._timed("watched", train)
        assert walk.plan is not None, f"{self._count} updates are too few to choose"
        told = walk.run.events.set_index("kind")["message"].to_dict()
        self.walks.append({"plan": dataclasses.asdict(walk.plan), **told})


def compare(name: str, options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    size, batch_size = options.examples or SIZES[name][0], SIZES[name][1]
    data = LOADERS[name](options.data_dir, size)
    count = options.updates or options.epochs * (size // batch_size)
    sides = Sides(name, data, count, options.budget)
    common.alternate({"bare": sides.bare, "watched": sides.watched}, rounds=options.rounds)
    raw = {key: seconds[1:] for key, seconds in sides.raw.items()}  # the first is the warm-up
    walks = sides.walks[1:]
    counted = common.ratio(raw["watched"], raw["bare"])
    whole = [first + rest for first, rest in zip(raw["watch()"], raw["watched"], strict=True)]
    plans = [walk["plan"] for walk in walks]
    row = {
        "net": name,
        "N": size,
        "updates": count,
        "budget": options.budget,
        "watched / bare": counted["median"],
        "quartiles": f"{counted['quartile_low']:.3g}-{counted['quartile_high']:.3g}",
        "with watch() itself": common.ratio(whole, raw["bare"])["median"],
        "bare step, ms": common.milliseconds(raw["bare"]) / count,
        "expected": sorted(plan["cost"] for plan in plans)[len(plans) // 2],
        "chosen": ", ".join(dict.fromkeys(f"{plan['method']} 1 in {plan['one_in']}" for plan in plans)),
        "rounds": counted["rounds"],
    }
    return row, {"seconds": raw, "walks": walks}


def main() -> None:
    defaults = {"net": "all", "budget": 1.5, "epochs": 3, "rounds": 9}
    options = common.arguments((__doc__ or "").splitlines()[0], examples=0, updates=0, **defaults)
    for name in list(LOADERS) if options.net == "all" else [options.net]:
        row, raw = compare(name, options)
        common.report(options.out, f"budget_{name}", {**vars(options), "net": name}, raw, [row])


if __name__ == "__main__":
    main()
