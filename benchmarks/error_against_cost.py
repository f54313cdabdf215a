"""Every method's error in the heights of an epoch against exact ones, and its price in bare training steps.

    python benchmarks/error_against_cost.py --data-dir DIR [--net mlp|conv] [--part error|certified|price]

Error: one training is watched exactly at every update; beside it samplings by ``--samplings`` seeds, interpolated
outputs at every ``--outputs-every`` updates, and what the update's own mini-batch says. Polynomials through fewer
losses are drawn through the exact ones. L is over the first ``--evaluated`` training examples, all where not given.
Certified: the same training, watched within each tolerance and held against what the error part has stored.
Price: equal trainings in turns, the expensive methods one update at a time, the others ``--steps``.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import nets
import sgdwalk
from sgdwalk import valley
from sgdwalk.measures import Here
from sgdwalk.outputs import lagrange
from sgdwalk.params import lerp_into
from sgdwalk.sampled import DENSE, NUM_UNITS, SAMPLE_ONE_IN

SIZES = {"mlp": (45_000, 100), "conv": (4_500, 30)}
"""Training examples and batch size: the paper's, and a tenth of CIFAR-10 in 150 updates an epoch."""
NETS: dict[str, Callable[[], nn.Module]] = {"mlp": nets.mlp, "conv": lambda: nets.vgg11(width_divisor=8)}
GRID = np.arange(11) / 10
NODES = ((0, 10), (0, 5, 10), (0, 3, 7, 10), (0, 3, 5, 7, 10))
"""Points k / 10 at which the model is evaluated, from two to five."""
TOLERANCES = (0.05, 0.01)
FORWARDS = np.arange(5) / 4
"""Where a line search of five forward passes evaluates its mini-batch."""
ROUNDING = 1e-7
"""Nats per example."""
WARM_UP = 12
"""Updates after which a certified walk has seen enough to plan by."""


class Training:
    """One training in mini-batches of a fresh permutation an epoch."""

    def __init__(self, name: str, inputs: Tensor, targets: Tensor, evaluated: int = 0):
        torch.manual_seed(0)
        self.model = NETS[name]()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.inputs, self.targets, self.batch_size = inputs, targets, SIZES[name][1]
        self.evaluated = evaluated or len(targets)
        self.steps_per_epoch = len(targets) // self.batch_size
        self._rows = self._draw()

    def _draw(self):
        generator = torch.Generator().manual_seed(1)
        for _ in itertools.count():
            order = torch.randperm(len(self.targets), generator=generator)
            yield from order.split(self.batch_size)[: self.steps_per_epoch]

    def watch(self, **options: Any) -> sgdwalk.Walk:
        return sgdwalk.watch(
            self.model,
            self.optimizer,
            F.cross_entropy,
            (self.inputs[: self.evaluated], self.targets[: self.evaluated]),
            batch_size=self.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            on_error="raise",
            **options,
        )

    def steps(self, count: int, after: Callable[[list[Tensor], Tensor], None] | None = None) -> Callable[[], None]:
        """``count`` updates; ``after`` is told the parameters before each, and its rows."""

        def run() -> None:
            for rows in itertools.islice(self._rows, count):
                before = [p.detach().clone() for p in self.model.parameters()] if after is not None else []
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(self.inputs[rows]), self.targets[rows]).backward()
                self.optimizer.step()
                if after is not None:
                    after(before, rows)

        return run


# ------------------------------------------------------------------------------------------------- the other methods
class InterpolatedOutputs:
    """A measure: the height from outputs at a few points and polynomials through them; keeps those at the end."""

    def __init__(self, *choices: Sequence[int]):
        self.choices = choices
        self.points = sorted({point for nodes in choices for point in nodes})
        self.kept: tuple[int, list[Tensor]] | None = None

    @torch.no_grad()
    def __call__(self, here: Here) -> dict[str, float]:
        full_loss = here.full_loss()
        site, data = full_loss.site, full_loss.data
        start, end = site.vector.views(here.parameters), site.here
        outputs: dict[int, list[Tensor]] = {}
        if self.kept is not None and self.kept[0] == here.step:
            outputs[0] = self.kept[1]
        for point in self.points:
            if point not in outputs:
                lerp_into(site.targets, start, end, point / 10)
                outputs[point] = [full_loss.outputs(index)[0].clone() for index in range(len(data))]
        self.kept = here.step + 1, outputs[10]
        site.write(start)
        targets = torch.cat([data[index][1] for index in range(len(data))])
        at_points = {point: torch.cat(values) for point, values in outputs.items()}
        found = {}
        for nodes in self.choices:
            losses = [
                float(F.cross_entropy(sum(w * at_points[k] for k, w in zip(nodes, weights, strict=True)), targets))
                for weights in lagrange(nodes, 10).tolist()
            ]
            found[str(len(nodes))] = float(valley.height(losses))
        return found


class MiniBatch:
    """What the mini-batch of an update says of its own segment, on a copy of the model."""

    def __init__(self, training: Training, *, slopes: bool):
        self.training, self.slopes = training, slopes
        self.model = copy.deepcopy(training.model)
        self.losses: list[list[float]] = []
        self.end_slopes: list[tuple[float, float]] = []

    def __call__(self, before: list[Tensor], rows: Tensor) -> None:
        inputs, targets = self.training.inputs[rows], self.training.targets[rows]
        own, after = list(self.model.parameters()), [p.detach() for p in self.training.model.parameters()]
        losses, slopes = [], []
        for alpha in FORWARDS:
            with torch.no_grad():
                lerp_into(own, before, after, float(alpha))
            sloping = self.slopes and alpha in (0.0, 1.0)
            with torch.set_grad_enabled(sloping):
                loss = F.cross_entropy(self.model(inputs), targets)
            losses.append(float(loss.detach()))
            if sloping:
                gradient = torch.autograd.grad(loss, own)
                moves = [a - b for a, b in zip(after, before, strict=True)]
                slopes.append(sum(float((g * d).sum()) for g, d in zip(gradient, moves, strict=True)))
        self.losses.append(losses)
        if self.slopes:
            self.end_slopes.append((slopes[0], slopes[1]))

    def heights(self) -> dict[str, np.ndarray]:
        """By five losses, and by the parabola closest to both end losses and both end slopes."""
        losses = np.array(self.losses)
        found = {"mini-batch, five forwards": valley.height(losses)}
        if self.slopes:
            # a + b α + c α² at 0 and 1, and its slope b + 2 c α there.
            design = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 2]], float)
            wanted = np.column_stack([losses[:, 0], losses[:, -1], np.array(self.end_slopes)])
            a, b, c = np.linalg.lstsq(design, wanted.T, rcond=None)[0]
            found["mini-batch, losses and slopes"] = valley.height(
                a[:, None] + b[:, None] * GRID + c[:, None] * GRID**2
            )
        return found


def sampled(seed: int) -> sgdwalk.At:
    return sgdwalk.at(
        sgdwalk.one_in(SAMPLE_ONE_IN, seed=seed, dense=DENSE), sgdwalk.SampledSegments(NUM_UNITS, seed=seed)
    )


# -------------------------------------------------------------------------------------------------------------- error
def error(name: str, data: tuple[Tensor, Tensor], options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    training = Training(name, *data, options.evaluated)
    count = options.updates or training.steps_per_epoch
    of_batch = MiniBatch(training, slopes=True)
    measures: dict[str, Any] = {f"sampling{seed}": sampled(seed) for seed in range(options.samplings)}
    measures["outputs"] = sgdwalk.at(sgdwalk.every(options.outputs_every), InterpolatedOutputs(*NODES))
    with training.watch(measures=measures, gauge=True) as walk:
        training.steps(count, after=of_batch)()
    run = walk.run
    exact = run.steps["height"].to_numpy(float)
    curves = run.segments["loss"].to_numpy(float).reshape(len(exact), -1)
    heights = {"exact": exact, **of_batch.heights()}
    for nodes in NODES[1:]:
        heights[f"losses at {len(nodes)} points"] = valley.height(
            curves[:, list(nodes)] @ lagrange(nodes, 10).numpy().T
        )
    for nodes in NODES:
        heights[f"outputs at {len(nodes)} points"] = run.steps[f"outputs_{len(nodes)}"].to_numpy(float)
    raw: dict[str, Any] = {"losses": curves.tolist()}
    rows = [_of_steps(key, found, exact) for key, found in heights.items()]
    rows.append(_of_sampling(run, exact, options.samplings, raw))
    rows.append(_of_gauge(run, curves, raw))
    return rows, raw | {"heights": {key: found.tolist() for key, found in heights.items()}}


def certified(name: str, data: tuple[Tensor, Tensor], options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, raw = [], {}
    for tolerance in TOLERANCES:
        training = Training(name, *data, options.evaluated)
        with training.watch(method="certified", tolerance=tolerance) as walk:
            training.steps(options.updates or training.steps_per_epoch)()
        steps = walk.run.steps
        stored = json.loads((options.out / f"error_against_cost_{name}_error.json").read_text("utf-8"))["raw"]
        losses = np.array(stored["losses"])
        np.testing.assert_allclose(steps["loss"], losses[:, 0], rtol=2e-6, err_msg="not the same training")
        key = f"certified, tolerance {tolerance:g}"
        row = _of_steps(key, steps["height"].to_numpy(float), np.array(stored["heights"]["exact"]))
        low, high = steps["height_low"] - ROUNDING, steps["height_high"] + ROUNDING
        row["coverage"] = float(((low <= stored["heights"]["exact"]) & (stored["heights"]["exact"] <= high)).mean())
        columns = ("height", "height_low", "height_high", "looks", "examples_evaluated")
        raw[key] = {column: steps[column].tolist() for column in columns}
        rows.append(row)
    return rows, raw


def _of_steps(name: str, found: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """One height a step: the error of a step and that of the mean over these steps."""
    known = np.isfinite(found)
    errors = np.abs(found[known] / exact[known] - 1)
    return {
        "method": name,
        "error of a step (median)": float(np.median(errors)),
        "error of a step (95th percentile)": float(np.quantile(errors, 0.95)),
        "error of the mean": float(abs(found[known].mean() / exact[known].mean() - 1)),
        "steps": int(known.sum()),
        "coverage": "",
    }


def _of_sampling(run: sgdwalk.Run, exact: np.ndarray, samplings: int, raw: dict[str, Any]) -> dict[str, Any]:
    """Many samplings of one epoch: the root-mean-square error of the mean, and how often the interval covers it."""
    found = [sgdwalk.analysis.sampled_epochs(run, f"sampling{seed}").iloc[0] for seed in range(samplings)]
    means = np.array([each["mean_height"] for each in found])
    low, high = ([float(each[f"height_{side}"]) for each in found] for side in ("low", "high"))
    raw["sampled"] = {"means": means.tolist(), "low": low, "high": high}
    return {
        "method": "sampled",
        "error of a step (median)": "",
        "error of a step (95th percentile)": "",
        "error of the mean": float(np.sqrt(np.mean((means / exact.mean() - 1) ** 2))),
        "steps": len(exact),
        "coverage": float(np.mean([a <= exact.mean() <= b for a, b in zip(low, high, strict=True)])),
    }


def _of_gauge(run: sgdwalk.Run, curves: np.ndarray, raw: dict[str, Any]) -> dict[str, Any]:
    """The mean slope at the ends of updates, against that of the polynomial of degree 4 closest to each segment."""
    true = np.array([np.polyder(np.poly1d(np.polyfit(GRID, curve, 4)))(1.0) for curve in curves])[:-1]
    gauge = run.steps["gauge"].to_numpy(float)[1:]
    row = sgdwalk.analysis.gauge_epochs(run).iloc[0]
    raw["gauge"] = {"gauge": gauge.tolist(), "slope": true.tolist(), "low": row["gauge_low"], "high": row["gauge_high"]}
    return {
        "method": "gauge (the mean slope at the end, not the height)",
        "error of a step (median)": float(np.median(np.abs(gauge / true - 1))),
        "error of a step (95th percentile)": float(np.quantile(np.abs(gauge / true - 1), 0.95)),
        "error of the mean": float(abs(gauge.mean() / true.mean() - 1)),
        "steps": len(gauge),
        "coverage": bool(row["gauge_low"] <= true.mean() <= row["gauge_high"]),
    }


# -------------------------------------------------------------------------------------------------------------- price
def price(name: str, data: tuple[Tensor, Tensor], options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    every_step: Mapping[str, dict[str, Any]] = {
        "exact": {},
        **{f"losses at {points + 1} points": {"num_points": points} for points in (2, 3, 4)},
        **{f"certified, tolerance {each:g}": {"method": "certified", "tolerance": each} for each in TOLERANCES},
        **{
            f"outputs at {len(nodes)} points": {"when": None, "measures": {"outputs": _every(nodes)}} for nodes in NODES
        },
    }
    cheap: Mapping[str, dict[str, Any]] = {
        "cosine, distance, norms": {"when": None},
        "gauge": {"when": None, "gauge": True},
        "sampled": {"when": None, "measures": {"sampled": sampled(0)}},
    }
    count = max(1, options.steps // SAMPLE_ONE_IN) * SAMPLE_ONE_IN
    sides: dict[str, tuple[Callable[[], None], int]] = {
        "bare": (Training(name, *data, options.evaluated).steps(count), count)
    }
    walks = []
    for key, watching in {**every_step, **cheap}.items():
        training = Training(name, *data, options.evaluated)
        walks.append(training.watch(**watching))
        sides[key] = training.steps(number := 1 if key in every_step else count), number
        if key.startswith("certified"):
            training.steps(WARM_UP)()
    for slopes, key in ((False, "mini-batch, five forwards"), (True, "mini-batch, losses and slopes")):
        training = Training(name, *data, options.evaluated)
        sides[key] = training.steps(count, after=MiniBatch(training, slopes=slopes)), count
    raw = common.alternate({key: run for key, (run, _) in sides.items()}, rounds=options.rounds)
    for walk in walks:
        walk.close()
    per_step = {key: np.array(seconds) / sides[key][1] for key, seconds in raw.items()}
    rows = []
    for key in sides:
        ratio = common.ratio(per_step[key].tolist(), per_step["bare"].tolist())
        rows.append(
            {
                "method": key,
                "training with it / bare": ratio["median"],
                "quartiles": f"{ratio['quartile_low']:.4g}-{ratio['quartile_high']:.4g}",
                "rounds": ratio["rounds"],
            }
        )
    return rows, {key: values.tolist() for key, values in per_step.items()}


def _every(nodes: Sequence[int]) -> sgdwalk.At:
    return sgdwalk.at(sgdwalk.every(1), InterpolatedOutputs(nodes))


def main() -> None:
    defaults = {"net": "mlp", "part": "error", "samplings": 100, "outputs_every": 5, "steps": 60, "rounds": 15}
    options = common.arguments((__doc__ or "").splitlines()[0], examples=0, evaluated=0, updates=0, **defaults)
    size = options.examples or SIZES[options.net][0]
    data = (common.mnist if options.net == "mlp" else common.cifar10)(options.data_dir, size)
    settings = vars(options) | {"num_units": NUM_UNITS, "sample_one_in": SAMPLE_ONE_IN, "dense": DENSE, "size": size}
    rows, raw = {"error": error, "certified": certified, "price": price}[options.part](options.net, data, options)
    common.report(options.out, f"error_against_cost_{options.net}_{options.part}", settings, raw, rows)


if __name__ == "__main__":
    main()
