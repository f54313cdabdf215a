"""How often a warm SpectralNorm is wrong where the optimizer jumps far: at and beyond the edge of stability.

    python benchmarks/warm_spectral_norm.py [--steps 80] [--hidden 32] [--examples 600]
        [--learning-rates 0.1,0.5,2]

An MLP on scikit-learn's digits, mini-batch SGD at learning rates 0.1, 0.5 and 2, the spectral norm of the Hessian over
all of them measured along the walk, every update or every fifth, at two tolerances, with the look every fourth time
(the default) or each time. Each value is compared with a search of the same point that knows nothing of the walk: in
float64, two pairs, tolerance 1e-6, the larger of two random starts. Told are the shares of points that are more than
1 % off, the largest error, values that did not converge, and products, those of a cold search at the same tolerance
beside them.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import common
import sgdwalk

INTERVALS = (1, 5)
TOLERANCES = (1e-3, 0.05)
LOOKS = (4, 1)
BATCH_SIZE = 100
OFF = 0.01


def digits(count: int) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:count], dtype=torch.float32) / 16, torch.tensor(labels[:count])


def mlp(hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def at_point(point: Tensor, hidden: int, dtype: torch.dtype) -> nn.Module:
    model = mlp(hidden).to(dtype)
    nn.utils.vector_to_parameters(point.to(dtype), model.parameters())
    return model


def names() -> dict[str, tuple[int, float, int]]:
    return {f"norm_{index}": settings for index, settings in enumerate(itertools.product(INTERVALS, TOLERANCES, LOOKS))}


def walk(learning_rate: float, data: tuple[Tensor, Tensor], options: Any) -> tuple[Any, dict[int, Tensor]]:
    """Its measured steps, and the points where they were taken."""
    model, loss_fn = mlp(options.hidden), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    points: dict[int, Tensor] = {}

    def keep(here: Any) -> float:
        points[here.step] = here.parameters
        return 0.0

    measures: dict[str, Any] = {"kept": sgdwalk.at(sgdwalk.every(1), keep)}
    for name, (interval, tolerance, look_every) in names().items():
        measure = sgdwalk.SpectralNorm(tolerance, look_every=look_every)
        measures[name] = sgdwalk.at(sgdwalk.every(interval), measure)
    with sgdwalk.watch(model, optimizer, loss_fn, data, when=None, batch_size=600, measures=measures) as walked:
        draw = torch.Generator().manual_seed(1)
        for _ in range(options.steps):
            rows = torch.randperm(len(data[1]), generator=draw)[:BATCH_SIZE]
            optimizer.zero_grad()
            loss_fn(model(data[0][rows]), data[1][rows]).backward()
            optimizer.step()
    return walked.run.steps, points


def reference(point: Tensor, data: tuple[Tensor, Tensor], options: Any) -> float:
    model = at_point(point, options.hidden, torch.float64)
    matrix = sgdwalk.hessian(model, nn.CrossEntropyLoss(), (data[0].double(), data[1]))
    values = []
    for seed in (1, 2):
        found = sgdwalk.eigenpairs(matrix, 2, tolerance=1e-6, max_products=400, seed=seed)
        assert bool(found.converged[0]), found
        values.append(float(found.values[0]))
    return max(values, key=abs)


def cold(point: Tensor, data: tuple[Tensor, Tensor], tolerance: float, options: Any) -> tuple[float, int]:
    """Value and products of a single search from a random start."""
    found = sgdwalk.spectral_norm(
        at_point(point, options.hidden, torch.float32), nn.CrossEntropyLoss(), data, tolerance=tolerance
    )
    return found.value, found.num_products


def summary(values: list[float], exact: list[float], products: list[float]) -> dict[str, float]:
    errors = [abs(value / true - 1) for value, true in zip(values, exact, strict=True) if value == value]
    return {
        "points": len(values),
        "off": sum(error > OFF for error in errors),
        "unconverged": len(values) - len(errors),
        "largest_error": max(errors),
        "mean_products": sum(products) / len(products),
    }


def main() -> None:
    options = common.arguments(
        str(__doc__).splitlines()[0], steps=80, hidden=32, examples=600, learning_rates="0.1,0.5,2"
    )
    data = digits(options.examples)
    rows, raw = [], {}
    for learning_rate in map(float, options.learning_rates.split(",")):
        steps, points = walk(learning_rate, data, options)
        exact = {step: reference(point, data, options) for step, point in points.items()}
        raw[str(learning_rate)] = {"exact": list(exact.values())}
        edge = 2 / learning_rate
        print(
            f"learning rate {learning_rate}: λ {min(exact.values()):.3g} to {max(exact.values()):.3g}, 2/η {edge:.3g}"
        )
        for tolerance in TOLERANCES:
            found = [cold(point, data, tolerance, options) for point in points.values()]
            numbers = summary([value for value, _ in found], list(exact.values()), [count for _, count in found])
            rows.append(row(learning_rate, 1, tolerance, "cold", numbers))
        for name, (interval, tolerance, look_every) in names().items():
            taken = steps[steps[f"{name}_num_products"].notna()]
            values, products = taken[name].tolist(), taken[f"{name}_num_products"].tolist()
            rows.append(
                row(
                    learning_rate,
                    interval,
                    tolerance,
                    look_every,
                    summary(values, [*map(exact.get, taken.index)], products),
                )
            )
            raw[str(learning_rate)][f"every {interval}, {tolerance}, look_every={look_every}"] = values
    common.report(options.out, "warm_spectral_norm", vars(options), raw, rows)


def row(learning_rate: float, interval: int, tolerance: float, look_every: Any, numbers: dict[str, Any]) -> dict:
    setting = {"learning_rate": learning_rate, "interval": interval, "tolerance": tolerance, "look_every": look_every}
    return {**setting, **numbers}


if __name__ == "__main__":
    main()
