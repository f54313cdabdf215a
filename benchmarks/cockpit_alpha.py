"""What Cockpit's Alpha says of the heights of an epoch, against exact ones, and its price in bare training steps.

    .cockpit/bin/python benchmarks/cockpit_alpha.py --data-dir DIR [--net mlp|conv]

In the environment of cockpit_peer.py. The training is the one that error_against_cost.py stored exact heights of, with
the same mini-batches; that it is, but for the rounding of another processor, the heights on the mini-batches of some
updates tell. Alpha fits a parabola to the losses and slopes at the ends of an update, on its own mini-batch at the
start and on the next one's at the end, weighted by their variances within these; the height is the parabola's over the
update. Price: equal trainings in turns.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from backpack import extend
from cockpit import Cockpit, quantities
from cockpit.quantities import alpha as cockpit_alpha
from torch import Tensor, nn

import common
import nets

NETS = {"mlp": nets.mlp, "conv": lambda: nets.vgg11(width_divisor=8)}
BATCH_SIZES = {"mlp": 100, "conv": 30}
GRID = np.arange(11) / 10
CHECK_EVERY = 50
AGREES = 0.02
"""Median over these of the relative difference of two heights on a mini-batch of the same training."""


class Training:
    """One training in mini-batches of a fresh permutation an epoch, under Cockpit's context or bare."""

    def __init__(self, name: str, data: tuple[Tensor, Tensor], *, tracked: bool):
        torch.manual_seed(0)
        self.model, self.loss, self.each_loss = (
            NETS[name](),
            nn.CrossEntropyLoss(),
            nn.CrossEntropyLoss(reduction="none"),
        )
        self.plain = copy.deepcopy(self.model)
        self.cockpit = None
        if tracked:
            alpha = quantities.Alpha(track_schedule=lambda step: step >= 0)
            self.cockpit = Cockpit(self.model.parameters(), quantities=[alpha])
            self.model, self.loss, self.each_loss = extend(self.model), extend(self.loss), extend(self.each_loss)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.inputs, self.targets, self.batch_size = *data, BATCH_SIZES[name]
        self.steps_per_epoch = len(self.targets) // self.batch_size
        self._rows, self.step = self._draw(), 0

    def _draw(self):
        generator = torch.Generator().manual_seed(1)
        for _ in itertools.count():
            order = torch.randperm(len(self.targets), generator=generator)
            yield from order.split(self.batch_size)[: self.steps_per_epoch]

    def parameters(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def update(self) -> Tensor:
        """One update; returns the rows of its mini-batch."""
        rows = next(self._rows)
        self.optimizer.zero_grad()
        output, targets = self.model(self.inputs[rows]), self.targets[rows]
        loss = self.loss(output, targets)
        if self.cockpit is None:
            loss.backward()
        else:
            info = {"batch_size": len(rows), "loss": loss, "optimizer": self.optimizer}
            info["individual_losses"] = self.each_loss(output, targets)
            with self.cockpit(self.step, info=info):
                loss.backward(create_graph=self.cockpit.create_graph(self.step))
        self.optimizer.step()
        self.step += 1
        return rows

    @torch.no_grad()
    def height_on_batch(self, start: list[Tensor], end: list[Tensor], rows: Tensor) -> float:
        """Along an update, of the loss on some rows at five points."""
        losses = []
        for share in np.arange(5) / 4:
            for parameter, one, other in zip(self.plain.parameters(), start, end, strict=True):
                parameter.copy_(torch.lerp(one, other, float(share)))
            losses.append(float(F.cross_entropy(self.plain(self.inputs[rows]), self.targets[rows])))
        return height(np.array(losses))


def height(losses: np.ndarray) -> float:
    return float((losses[0] + losses[-1]) / 2 - losses.min())


def errors(name: str, data: tuple[Tensor, Tensor], stored: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    exact, on_batch = (np.array(stored["heights"][key]) for key in ("exact", "mini-batch, five forwards"))
    training, fits, apart = Training(name, data, tracked=True), [], []

    def kept(length: float, *arguments: Any) -> Any:
        found = fit(length, *arguments)
        fits.append((length, found))
        return found

    fit = cockpit_alpha._fit_quadratic
    with mock.patch.object(cockpit_alpha, "_fit_quadratic", kept):
        for step in range(len(exact) + 1):  # the next mini-batch makes the end of the last update
            start = training.parameters() if step % CHECK_EVERY == 0 else []
            rows = training.update()
            if start and step < len(exact):
                seen = training.height_on_batch(start, training.parameters(), rows)
                apart.append(abs(seen / on_batch[step] - 1))
            if step % CHECK_EVERY == 0:
                print(f"update {step} of {len(exact)}", flush=True)
    if np.median(apart) > AGREES:
        raise SystemExit(f"Heights on mini-batches differ from the stored ones by {apart}: it is another training.")
    found = np.full(len(exact), np.nan)
    for step, (length, coefficients) in enumerate(fits):
        if coefficients is not None:
            found[step] = height(np.polynomial.Polynomial(coefficients)(GRID * length))
    known = np.isfinite(found)
    off = np.abs(found[known] / exact[known] - 1)
    row = {
        "method": "Cockpit's Alpha",
        "error of a step (median)": float(np.median(off)),
        "error of a step (95th percentile)": float(np.quantile(off, 0.95)),
        "error of the mean": float(abs(found[known].mean() / exact[known].mean() - 1)),
        "steps": int(known.sum()),
        "coverage": "",
    }
    assert training.cockpit is not None
    alphas = [training.cockpit.get_output()[step]["Alpha"] for step in range(len(exact))]
    return row, {"heights": found.tolist(), "alpha": alphas, "apart_from_stored_training": apart}


def updates(training: Training, count: int) -> None:
    for _ in range(count):
        training.update()


def price(name: str, data: tuple[Tensor, Tensor], options: Any) -> tuple[dict[str, Any], dict[str, list[float]]]:
    counts = {"bare": options.steps, "Cockpit's Alpha": options.tracked_steps}
    sides = {
        key: functools.partial(updates, Training(name, data, tracked=key != "bare"), count)
        for key, count in counts.items()
    }
    raw = common.alternate(sides, rounds=options.rounds, warmup=3)
    raw = {key: [each / counts[key] for each in seconds] for key, seconds in raw.items()}
    ratio = common.ratio(raw["Cockpit's Alpha"], raw["bare"])
    quartiles = f"{ratio['quartile_low']:.4g}-{ratio['quartile_high']:.4g}"
    return {"training with it / bare": ratio["median"], "quartiles": quartiles, "rounds": ratio["rounds"]}, raw


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], net="mlp", steps=20, tracked_steps=5, rounds=15)
    stored = json.loads((common.RESULTS / f"error_against_cost_{options.net}_error.json").read_text("utf-8"))
    data = (common.mnist if options.net == "mlp" else common.cifar10)(options.data_dir, stored["settings"]["size"])
    row, raw = errors(options.net, data, stored["raw"])
    costs, seconds = price(options.net, data, options)
    name = f"error_against_cost_{options.net}_cockpit"
    common.report(options.out, name, vars(options), raw | {"seconds": seconds}, [row | costs])


if __name__ == "__main__":
    main()
