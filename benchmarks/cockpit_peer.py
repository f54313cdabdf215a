"""Cockpit's distance and norms against the bare training step of the same MLP at batch 100.

    python -m venv .cockpit && .cockpit/bin/pip install -r benchmarks/cockpit_requirements.txt
    .cockpit/bin/python benchmarks/cockpit_peer.py

Runs in an environment of its own and needs nothing of sgdwalk. Cockpit has no cosine between consecutive gradients;
its nearest quantities are Distance, UpdateSize and GradNorm, each tracked at every step and given no more than they
ask for. ``Alpha`` (the shape of the mini-batch loss along the step, two points with slopes) is measured beside them.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
warnings.filterwarnings("ignore", message="Encountered BatchNorm module in training mode")
warnings.filterwarnings("ignore", message="Full backward hook is firing")

import torch  # noqa: E402
from backpack import extend  # noqa: E402
from cockpit import Cockpit, quantities  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import common  # noqa: E402
import nets  # noqa: E402

SETS: dict[str, Callable[[], list]] = {
    "Distance, UpdateSize, GradNorm": lambda: [
        quantities.Distance(track_schedule=always),
        quantities.UpdateSize(track_schedule=always),
        quantities.GradNorm(track_schedule=always),
    ],
    "Alpha": lambda: [quantities.Alpha(track_schedule=always)],
}


def always(step: int) -> bool:
    return step >= 0


class Training:
    """The paper's MLP, trained bare or under Cockpit's context as its manual shows it."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int, tracked: Callable[[], list] | None):
        torch.manual_seed(0)
        self.tracked = tracked
        self.model = nets.mlp()
        self.loss, self.each_loss = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")
        self.per_example = tracked is SETS["Alpha"]
        if tracked is not None:
            self.cockpit = Cockpit(self.model.parameters(), quantities=tracked())
        if self.per_example:
            self.model, self.loss, self.each_loss = extend(self.model), extend(self.loss), extend(self.each_loss)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.batches = itertools.cycle(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
        self.step = 0

    def steps(self, count: int) -> Callable[[], None]:
        def run() -> None:
            for inputs, targets in itertools.islice(self.batches, count):
                self.update(inputs, targets)

        return run

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        self.optimizer.zero_grad()
        output = self.model(inputs)
        loss = self.loss(output, targets)
        if self.tracked is None:
            loss.backward()
        else:
            info = {"batch_size": len(inputs), "loss": loss, "optimizer": self.optimizer}
            if self.per_example:
                info["individual_losses"] = self.each_loss(output, targets)
            with self.cockpit(self.step, info=info):
                loss.backward(create_graph=self.cockpit.create_graph(self.step))
        self.optimizer.step()
        self.step += 1


def main() -> None:
    options = common.arguments(__doc__.splitlines()[0], batch_size=100, steps=50, rounds=41)
    count = 50 * options.batch_size
    if options.data_dir is None:
        inputs, targets = torch.rand(count, 784) - 0.5, torch.randint(10, (count,))
    else:
        inputs, targets = common.mnist(options.data_dir, count)

    sides = {"bare": Training(inputs, targets, options.batch_size, None)}
    for name, tracked in SETS.items():
        sides[name] = Training(inputs, targets, options.batch_size, tracked)
    raw = common.alternate(
        {name: side.steps(options.steps) for name, side in sides.items()}, rounds=options.rounds, warmup=3
    )
    rows = [
        {
            "Cockpit's": name,
            "bare step, ms": common.milliseconds(raw["bare"]) / options.steps,
            "tracked step, ms": common.milliseconds(raw[name]) / options.steps,
            "ratio (median)": (ratio := common.ratio(raw[name], raw["bare"]))["median"],
            "quartiles": f"{ratio['quartile_low']:.3f}-{ratio['quartile_high']:.3f}",
            "rounds": ratio["rounds"],
        }
        for name in SETS
    ]
    common.report(options.out, "cockpit_peer", vars(options), raw, rows)


if __name__ == "__main__":
    main()
