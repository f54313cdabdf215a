"""What a figure of the paper is: trainings, what is shown of them, claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

import sgdwalk
from sgdwalk.paper.charts import Chart
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.judging import Claim
from sgdwalk.paper.trainings import ARCHITECTURES, CUTS, Architecture, Scale

DEVIATIONS = (
    "The full loss is measured on one fixed partition of the training images into batches of the training's own size, "
    "at every point of every segment, without augmentation. The authors' code draws a fresh partition and fresh crops "
    "for each point, and so adds noise to the curve.",
    "BatchNorm uses the statistics of each evaluation batch, as the paper's footnote 5 has it; its running statistics "
    "play no part. The authors' code interpolates those as well, without effect on the loss.",
    "Walks start at θ_0, before the first update; the authors' curves start at θ_1.",
    "GD follows the mean gradient over all training images, as they are, with the fixed learning rate 0.1. The "
    "authors' public code adds up the mean gradients of nine mini-batches of 5,000, which makes that 0.9; both "
    "readings are shown.",
    "The cosine is that of the loss gradients. The authors' code took it after weight decay (1e-4 θ) had been added.",
    "Training ends with the last epoch that is shown; the paper's MLP was trained on to epoch 40.",
    "Weight decay is 1e-4 and the first seed 1111, as in the authors' code; the paper mentions neither.",
    "Under GD BatchNorm sees batches of the evaluation's size, theirs had 5,000 images.",
)
"""How our setting differs from the paper's at every scale."""

PILOTED = (
    "Some thresholds, and the length of the trainings, were set after short pilot trainings of one seed had been "
    "looked at; the trainings that are judged here were made after that."
)
"""Said of figures for which it is so."""

Method = Literal["exact", "certified"]
"""How the segments of a figure's trainings are measured."""

Runs = Mapping[str, Sequence[sgdwalk.Run]]
"""By role, one a seed."""


@dataclass(frozen=True)
class Panel:
    """One walk that a figure shows: the first 40 updates of an epoch of the first seed."""

    role: str
    epoch: int | None
    """None: the first updates of the run, as for GD, where an epoch is one update."""
    label: str


@dataclass(frozen=True)
class Table:
    """Numbers on a page and in a CSV file."""

    name: str
    title: str
    text: str
    """What the columns are, and how to read them."""
    make: Callable[[Runs], pd.DataFrame]
    needs_exact: bool = False
    """It reads losses of which the last digits count, such as those that another protocol is compared with."""


@dataclass(frozen=True)
class Choice:
    """Trainings that are known only when a figure's first ones are done, as after a grid search."""

    choose: Callable[[Runs], Mapping[str, tuple[Experiment, ...]]]
    """From the first trainings by role, the further ones by role, one a seed."""
    like: tuple[Experiment, ...]
    """As many trainings of the same cost, for an estimate made before."""


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper, at one scale."""

    id: str
    scale: Scale
    title: str
    published: str
    """What the paper shows, in its words."""
    architectures: tuple[Architecture, ...]
    trainings: Mapping[str, tuple[Experiment, ...]]
    """By role, one a seed; the first of each role is watched where a panel shows it."""
    claims: tuple[tuple[str, Claim], ...]
    """Each with the reading it is judged on, or an empty text."""
    panels: tuple[Panel, ...] = ()
    """Walks in the paper's three panels. The first is the figure itself; others stand beside it for comparison."""
    chart: Callable[[Runs], Chart] | None = None
    """The picture of what is no walk."""
    tables: tuple[Table, ...] = field(default=())
    further_cuts: tuple[str, ...] = ()
    """What this figure leaves out besides what its networks' trainings do at its scale."""
    cut: str = ""
    """What this scale leaves out, where that is not what it leaves out of the architectures elsewhere."""
    choice: Choice | None = None
    """Further trainings, chosen by what the first ones came to."""
    reported: tuple[str, ...] = ()
    """Roles whose first trainings the report shows; where none is named those of the panels, or else all."""
    deviations: tuple[str, ...] = ()
    """How this figure differs from the paper's, beside what is said of all."""
    exact: Figure | None = None
    """Where segments are certified: the same figure with all of them exact."""

    @property
    def method(self) -> Method:
        return "exact" if self.exact is None else "certified"

    @property
    def page(self) -> str:
        """Name of the folder of its page."""
        return page_name(self.id, self.scale, self.method)

    @property
    def experiments(self) -> list[Experiment]:
        """Every training once; before one that goes on from another, that other."""
        shown = [experiment for each in self.trainings.values() for experiment in each]
        return list(dict.fromkeys(one for experiment in shown for one in experiment.lineage))

    @property
    def cuts(self) -> list[str]:
        """What this scale leaves out, network by network."""
        shared = [self.cut] if self.cut else [CUTS[self.scale][each] for each in self.architectures]
        return list(dict.fromkeys([*shared, *self.further_cuts]))


def page_name(id: str, scale: str, method: str) -> str:
    """Name of the folder of a page.

    >>> page_name("fig1", "small", "exact"), page_name("fig1", "small", "certified")
    ('fig1-small', 'fig1-small-certified')
    """
    return f"{id}-{scale}" + ("" if method == "exact" else f"-{method}")


def published_name(architecture: Architecture) -> str:
    return {"mlp": "MLP", "vgg11": "VGG-11", "resnet56": "Resnet-56", "vgg11-tiny": "VGG-11"}[architecture]


def published_data(architecture: Architecture) -> str:
    return ARCHITECTURES[architecture].partition(" on ")[2]
