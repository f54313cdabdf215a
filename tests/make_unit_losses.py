"""Write ``unit_losses.npz``: what real nets' units do along real steps, for the tests of the certified intervals.

    SGDWALK_DATA_DIR=DIR python tests/make_unit_losses.py [--middle-at-5] [NAME | NAME_early | …late | …edge ...]

``resnet56_whole`` takes an hour, the others minutes. For each step: L along the chord (``chord``, points), what the
middle level adds to it (``first``, units × points) and the truth to that (``second``), and the units' signs. float64.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import common
from sgdwalk.data import evaluation_data
from sgdwalk.objective import FullLoss
from sgdwalk.paper.models import MLP, VGG11, ResNet
from sgdwalk.params import ParameterVector
from sgdwalk.passage import Passage
from sgdwalk.replica import Replica
from sgdwalk.units import source_of, units_of

MIDDLE_AT_5 = "--middle-at-5" in sys.argv
"""For samples whose ends are sampled too: nothing tells them where the chord has its floor."""
OUT = Path(__file__).parent / ("unit_losses_middle_at_5.npz" if MIDDLE_AT_5 else "unit_losses.npz")
WHEN = ("early", "late", "edge")
EARLY = 30


class Tokens(nn.Module):
    """A small causal transformer: (sequences, length) -> (sequences, length, 17)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(17, 32), nn.Parameter(0.1 * torch.randn(24, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 17)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden = self.layers(self.embedding(tokens) + self.position, mask=mask, is_causal=True)
        return self.head(hidden)


def group_norm_net() -> nn.Module:
    def block(channels: int, width: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.GELU()]

    return nn.Sequential(*block(3, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(1024, 10))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def per_token(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="sum"), target.numel()


def images(count: int) -> tuple[Tensor, Tensor]:
    return common.cifar10(Path(os.environ["SGDWALK_DATA_DIR"]), count)


def digits(count: int) -> tuple[Tensor, Tensor]:
    return common.mnist(Path(os.environ["SGDWALK_DATA_DIR"]), count)


def nearly_separable(count: int) -> tuple[Tensor, Tensor]:
    """Points in three classes that a linear map tells apart; their losses have heavy tails once they are fitted."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 5, generator=generator)
    return inputs, (inputs @ torch.randn(5, 3, generator=generator)).argmax(1)


def sequences(count: int) -> tuple[Tensor, Tensor]:
    """Words in which each letter follows from the two before it, but for one in ten."""
    rng = np.random.default_rng(0)
    table = rng.integers(17, size=(17, 17))
    letters = rng.integers(17, size=(count, 25))
    for place in range(2, 25):
        ruled = table[letters[:, place - 2], letters[:, place - 1]]
        letters[:, place] = np.where(rng.random(count) < 0.1, letters[:, place], ruled)
    tokens = torch.from_numpy(letters)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


class Net(NamedTuple):
    """How a net is trained, and over what its losses are taken."""

    build: Callable[[], nn.Module]
    load: Callable[[int], tuple[Tensor, Tensor]]
    examples: int
    evaluation: int
    batch: int
    rate: float
    edge: float
    late: int
    """The step that is late; one after ``EARLY`` is early."""
    loss_fn: Callable = functional.cross_entropy
    alone: bool = False
    """Whether each example is a unit: they differ more than the tens that a walk makes of so few."""


NETS = {
    "mlp": Net(lambda: MLP((784, 125, 88, 10)), digits, 13_450, 100, 100, rate=0.1, edge=2.0, late=400),
    "vgg11": Net(lambda: VGG11(10), images, 5_000, 50, 50, rate=0.1, edge=0.5, late=150),
    "resnet56": Net(lambda: ResNet(10), images, 5_000, 50, 50, rate=0.1, edge=1.0, late=100),
    "resnet56_whole": Net(lambda: ResNet(10), images, 45_000, 50, 50, rate=0.1, edge=1.0, late=100),
    "small": Net(small_net, nearly_separable, 3_000, 100, 100, rate=4.0, edge=8.0, late=300),
    "groupnorm": Net(group_norm_net, images, 400, 100, 50, rate=0.05, edge=0.3, late=200, alone=True),
    "transformer": Net(Tokens, sequences, 400, 100, 50, rate=0.2, edge=0.6, late=300, loss_fn=per_token, alone=True),
}


def case(name: str, when: str) -> dict[str, np.ndarray]:
    net = NETS[name]
    torch.manual_seed(0)
    model, (inputs, targets) = net.build(), net.load(net.examples)
    optimizer = torch.optim.SGD(model.parameters(), lr=net.edge if when == "edge" else net.rate)
    vector = ParameterVector(model.parameters())
    data = evaluation_data((inputs, targets), net.evaluation, 0, batchnorm=True)
    loss = FullLoss(Replica(model, vector, "train"), data, net.loss_fn, None)
    loss.use_channels_last()
    for _ in range((EARLY if when == "early" else net.late) + 1):
        rows = torch.randint(len(inputs), (net.batch,))
        optimizer.zero_grad()
        value = net.loss_fn(model(inputs[rows]), targets[rows])
        (value if isinstance(value, Tensor) else value[0] / value[1]).backward()
        start = vector.read()
        optimizer.step()
    with loss.evaluating():
        source, _ = source_of(loss)
        passage = Passage(source, units_of(source, 1 if net.alone else None), 10)
        passage.begin(vector.views(start), loss.site.here)
        first, chord, signs, end = passage.ends(None, None)
        if MIDDLE_AT_5:
            passage._node = 5
        chord = chord / sum(end.counts)
        chord[0], chord[-1] = first.mean, end.mean
        units = np.arange(len(passage.units))
        parts = {
            "chord": chord,
            "signs": signs,
            "first": passage.middle_minus_chord(units),
            "second": passage.true_minus_middle(units),
        }
    return {f"{name}_{when}/{key}": value for key, value in parts.items()}


def main() -> None:
    torch.set_num_threads(1)
    cases = [(name, when) for name in NETS for when in WHEN]
    names = [each for each in sys.argv[1:] if not each.startswith("--")] or list(NETS)
    if unknown := set(names) - set(NETS) - set(map("_".join, cases)):
        raise SystemExit(f"{', '.join(sorted(unknown))}: no such net; there is {', '.join(NETS)}.")
    wanted = [(name, when) for name, when in cases if name in names or f"{name}_{when}" in names]
    for name, when in wanted:
        found = case(name, when)
        true = sum(found[f"{name}_{when}/{key}"].sum(axis=0) for key in ("first", "second"))
        losses = found[f"{name}_{when}/chord"] + true
        height = (losses[0] + losses[-1] - 2 * losses.min()) / 2
        spreads = [found[f"{name}_{when}/{key}"].std(axis=0).max() for key in ("first", "second")]
        units = len(found[f"{name}_{when}/signs"])
        print(name, when, units, "units, loss", losses[0], "height", height, [units * s / height for s in spreads])
        stored = dict(np.load(OUT)) if OUT.exists() else {}
        np.savez_compressed(OUT, **stored | found)
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
