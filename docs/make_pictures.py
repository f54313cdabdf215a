"""Make the pictures of the documentation: python docs/make_pictures.py [FOLDER], docs/pictures by default.

Two walks on scikit-learn's bundled digits, watched in full, and one step that was laid across a barrier. Every number
in a picture was measured by sgdwalk while this script ran.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sgdwalk
from sgdwalk import drawing, figures, svg
from sgdwalk.drawing import COLOURS, Picture

Side = Literal["left", "center", "right"]

FOLDER = Path(__file__).parent / "pictures"
NUM_UPDATES = 60
LEARNING_RATE = 0.8
SHOWN_STEP = 33
"""A step of SGD that bounces: its floor is inside the segment."""


def digits() -> tuple[Tensor, Tensor]:
    """The first 1,500 digits: inputs (1500, 64) in [-0.5, 0.5], targets (1500,)."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:1500] / 16 - 0.5, dtype=torch.float32), torch.tensor(labels[:1500])


def walk(name: str, batches: Iterator[Tensor]) -> sgdwalk.Run:
    """Train 64-100-70-10 with tanh, one update for each batch of row numbers, and watch every update."""
    inputs, targets = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 70), nn.Tanh(), nn.Linear(70, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    with sgdwalk.watch(model, optimizer, cross_entropy, (inputs, targets), name=name) as watching:
        for rows in batches:
            loss = cross_entropy(model(inputs[rows]), targets[rows])
            watching.note(batch_loss=loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watching.run


def mini_batches(num_updates: int) -> Iterator[Tensor]:
    """Batches of 50 row numbers, drawn without replacement within an epoch."""
    for update in range(num_updates):
        if update % 30 == 0:
            order = torch.randperm(1500)
        yield order[update % 30 * 50 : (update % 30 + 1) * 50]  # pyright: ignore[reportPossiblyUnboundVariable]


def whole_batches(num_updates: int) -> Iterator[Tensor]:
    """All rows, every time: gradient descent."""
    return (torch.arange(1500) for _ in range(num_updates))


def across_a_barrier() -> sgdwalk.Run:
    """One parameter x with L(x) = (x² - 1)² / 2, moved from one well towards the other."""
    model = nn.Linear(1, 1, bias=False)
    data = torch.ones(2, 1), torch.ones(2, 1)
    with sgdwalk.watch(model, None, lambda x, target: ((x**2 - target) ** 2 / 2).mean(), data) as watching:
        for place in (-1.05, 1.15):
            if place > 0:
                watching.before_step()
            with torch.no_grad():
                model.weight.fill_(place)
            if place > 0:
                watching.after_step()
    return watching.run


def segment(bounce: sgdwalk.Run, barrier: sgdwalk.Run) -> Picture:
    """Two segments with the words for what is on them: a bounce, and a barrier."""
    picture = Picture(figsize=(7.6, 3.2), dpi=72, facecolor=COLOURS["paper"])
    picture.title = "Floor, height, α* and barrier"
    left, right = picture.add_axes((0.08, 0.15, 0.4, 0.7)), picture.add_axes((0.58, 0.15, 0.4, 0.7))
    row = _draw_losses(left, bounce, SHOWN_STEP, "A bounce")
    left.axhline(row["floor"], color=COLOURS["floor"], linestyle=drawing.FLOOR_DASHES, linewidth=1.6)
    _say(left, "floor", (0, row["floor"]), (0, 6), "left", "floor")
    _measure(left, row["floor_alpha"], row["floor"], row["floor"] + row["height"], "height", "floor")
    left.plot(row["alpha_star"], row["floor"], "^", color=COLOURS["purple"], markersize=9, zorder=6)
    _say(left, f"α* = {row['alpha_star']:.2f}", (row["alpha_star"], row["floor"]), (0, -18), "center", "purple")
    other = _draw_losses(right, barrier, 0, "A barrier")
    top = other["barrier_height"] + max(other["loss"], other["next_loss"])
    right.axhline(top - other["barrier_height"], color=COLOURS["alarm"], linestyle=(0, (1, 2)), linewidth=1.2)
    _measure(right, 0.5, top - other["barrier_height"], top, "barrier\nheight", "alarm")
    picture.alternative = (
        f"Two curves of the loss over α. Left, {_words(row)} The curve is lowest between its ends, at the floor; the "
        f"parabola's minimum α* is at {row['alpha_star']:.2f}. Right, {_words(other)} Between its ends the curve rises "
        f"{other['barrier_height']:.3g} above the higher one: a barrier."
    )
    return picture


def _draw_losses(ax: Axes, run: sgdwalk.Run, step: int, title: str) -> Mapping[Any, Any]:
    """The losses along one segment with its ends marked; returns the step's row."""
    points, row = run.segments[run.segments["step"] == step], run.steps.to_dict("index")[step]
    ax.set_facecolor("none")
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["rule"])
    ax.tick_params(colors=COLOURS["muted"], labelsize=11, length=0)
    ax.set_title(title, fontsize=12, fontweight="bold", color=COLOURS["ink"], loc="left", pad=12)
    ax.set_xlabel("α", fontsize=11, color=COLOURS["muted"])
    ax.set_xticks([0, 0.5, 1])
    ax.locator_params(axis="y", nbins=4)
    low, span = points["loss"].min(), points["loss"].max() - points["loss"].min()
    ax.set(xlim=(-0.06, 1.06), ylim=(low - 0.25 * span, low + 1.2 * span))
    ax.plot(points["alpha"], points["loss"], "o-", color=COLOURS["ink"], markersize=3, linewidth=1.1)
    ax.plot([0, 1], [row["loss"], row["next_loss"]], "o", color=COLOURS["blue"], markersize=7, zorder=5)
    up = -18 if row["barrier"] else 10
    _say(ax, "L(θ_t)", (0, row["loss"]), (2, up), "left", "blue")
    _say(ax, "L(θ_t+1)", (1, row["next_loss"]), (5, up), "right", "blue")
    return row


def _words(row: Mapping[Any, Any]) -> str:
    return f"from {row['loss']:.3g} to {row['next_loss']:.3g}, floor {row['floor']:.3g}, height {row['height']:.3g}."


def _say(ax: Axes, text: str, place: tuple[float, float], shift: tuple[float, float], side: Side, colour: str) -> None:
    ax.annotate(text, place, shift, textcoords="offset points", ha=side, fontsize=11, color=COLOURS[colour])


def _measure(ax: Axes, alpha: float, low: float, high: float, text: str, colour: str) -> None:
    """A double arrow with its name."""
    style = {"arrowstyle": "<->", "color": COLOURS[colour], "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (alpha, low), (alpha, high), arrowprops=style)
    _say(ax, text, (alpha, low + 0.4 * (high - low)), (-6, 0), "right", colour)


def standalone(picture: Picture) -> str:
    """The picture as a file of its own, in light colours or, where the reader's screen is dark, in dark ones."""
    styles = svg.StyleSheet()
    root = ElementTree.fromstring(svg.inline_svg(picture, "picture", styles))
    width, height = root.get("viewBox", "").split()[2:]
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.get("viewBox", ""),
        "width": width,
        "height": height,
        "role": "img",
    }
    paper = ElementTree.Element("rect", {"width": width, "height": height, "class": styles.name("fill: #ffffff")})
    head = [ElementTree.Element(tag) for tag in ("title", "desc", "style")]
    head[0].text, head[1].text = picture.title, picture.alternative
    page = Path(svg.__file__).with_name("report.css").read_text(encoding="utf-8")
    dark_block = page.partition("prefers-color-scheme: dark")[2].partition("}")[0]
    dark = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", dark_block))
    light_rules, dark_rules = (
        re.sub(r"var\(--(\w+)\)", lambda found, palette=palette: palette[found[1]], styles.css)
        for palette in (COLOURS, dark)
    )
    font = 'text{font-family:"DejaVu Sans",Verdana,system-ui,sans-serif}'
    head[2].text = f"\n{font}\n{light_rules}\n@media (prefers-color-scheme: dark) {{\n{dark_rules}\n}}\n"
    root[:] = [*head, paper, *root]
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def main(folder: Path = FOLDER) -> None:
    """Make every picture."""
    sgd = walk("SGD", mini_batches(NUM_UPDATES))
    gd = walk("GD", whole_batches(NUM_UPDATES))
    pictures = {
        "sgd": figures.three_panels(sgd, steps=range(20, NUM_UPDATES)),
        "gd": figures.three_panels(gd, steps=range(20, NUM_UPDATES), style=1),
        "segment": segment(sgd, across_a_barrier()),
        "heights": figures.heights(sgd, gd),
        "alpha-star": figures.alpha_star(sgd, gd),
        "progress": figures.progress(sgd, gd),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (folder / f"{name}.svg").write_text(standalone(picture), encoding="utf-8")
        print(f"{name}.svg: {picture.alternative}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
