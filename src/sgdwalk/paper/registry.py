"""What can be reproduced: for each id and scale the trainings it needs, what it shows of them, and its claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import pandas as pd

import sgdwalk
from sgdwalk.paper import charts, claims, protocols, tables
from sgdwalk.paper.charts import Chart
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.judging import Claim
from sgdwalk.paper.trainings import (
    ARCHITECTURES,
    CUTS,
    SCALES,
    TABLE_EPOCHS,
    Architecture,
    Scale,
    gd,
    our_epoch,
    sgd,
    whole_network,
)

FigureId = Literal[
    "fig1",
    "fig2",
    "fig8",
    "fig9",
    "fig10",
    "fig11",
    "fig12",
    "fig13",
    "fig14",
    "fig15",
    "fig16",
    "fig17",
    "fig18",
    "fig19",
    "fig20",
    "fig21",
    "table1",
    "table2",
]
IDS: tuple[FigureId, ...] = get_args(FigureId)

READINGS = {"gd": "mean gradient", "gd-sum": "sum of nine mean gradients"}
"""Role of a training by GD -> what the paper's "full batch gradient" is read as."""

GD_FIGURES: Mapping[str, Architecture] = {"fig1": "vgg11", "fig9": "resnet56", "fig17": "mlp", "fig20": "vgg11-tiny"}
SGD_FIGURES: Mapping[str, tuple[Architecture, int]] = {
    "fig2": ("vgg11", 1),
    "fig10": ("resnet56", 1),
    "fig11": ("resnet56", 2),
    "fig12": ("resnet56", 25),
    "fig13": ("resnet56", 100),
    "fig14": ("vgg11", 2),
    "fig15": ("vgg11", 25),
    "fig16": ("vgg11", 100),
    "fig18": ("mlp", 1),
    "fig19": ("mlp", 2),
    "fig21": ("vgg11-tiny", 1),
}
"""Id -> network, and the epoch whose first 40 updates the figure shows."""
FIGURE_8_EPOCHS = (1, 10, 20, 30, 40)
"""Epochs that are counted where not every one of the first 40 is watched."""
SMALLER_RATE = {"vgg11": 0.05}
"""Table 2's second learning rate."""
RESNET_RATE = 0.3
"""Table 2's for ResNet-56; its second row is missing in our copy of the paper."""

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


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper, at one scale."""

    id: FigureId
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

    @property
    def experiments(self) -> list[Experiment]:
        """Every training once."""
        return list(dict.fromkeys(experiment for each in self.trainings.values() for experiment in each))

    @property
    def cuts(self) -> list[str]:
        """What this scale leaves out, network by network."""
        return list(dict.fromkeys(CUTS[self.scale][each] for each in self.architectures))


def title(id: FigureId) -> str:
    """A figure in a few words.

    >>> title("fig2")
    "Figure 2: VGG-11 on CIFAR-10, first 40 updates of SGD's epoch 1"
    """
    number = f"{'Table' if id.startswith('table') else 'Figure'} {id.removeprefix('table').removeprefix('fig')}"
    if id in GD_FIGURES:
        return f"{number}: {ARCHITECTURES[GD_FIGURES[id]]}, first 40 updates of full-batch GD"
    if id in SGD_FIGURES:
        architecture, epoch = SGD_FIGURES[id]
        return f"{number}: {ARCHITECTURES[architecture]}, first 40 updates of SGD's epoch {epoch}"
    return {
        "fig8": f"{number}: barriers in each of the first 40 epochs, VGG-11 on CIFAR-10",
        "table1": f"{number}: barriers crossed in an epoch",
        "table2": f"{number}: mean height above the valley floor in an epoch",
    }[id]


TITLES: Mapping[FigureId, str] = {id: title(id) for id in IDS}


def figure(id: FigureId, scale: Scale) -> Figure:
    """What a figure or table needs and claims at a scale.

    >>> fig18, fig19 = figure("fig18", "small"), figure("fig19", "small")
    >>> fig18.trainings["sgd"] == fig19.trainings["sgd"]  # one training serves both
    True
    """
    if id not in TITLES:
        raise sgdwalk.InputError(f"{id!r} cannot be reproduced yet; what can be: {', '.join(TITLES)}.")
    if scale not in SCALES:
        raise sgdwalk.InputError(f"{scale!r} is no scale; choose one of {', '.join(SCALES)}.")
    if id in GD_FIGURES:
        return _gd_figure(id, scale, GD_FIGURES[id])
    if id in SGD_FIGURES:
        return _sgd_figure(id, scale, *SGD_FIGURES[id])
    return {"fig8": _figure_8, "table1": _table_1, "table2": _table_2}[id](scale)


def _gd_figure(id: FigureId, scale: Scale, architecture: Architecture) -> Figure:
    shown = f"Figure {id.removeprefix('fig')} ({ARCHITECTURES[architecture]})"
    found = [
        (reading, claim(role, shown))
        for claim in (
            claims.valley,
            claims.quadratic,
            claims.negative_cosine,
            claims.opposite_gradients,
            claims.falling_floor,
        )
        for role, reading in READINGS.items()
    ]
    if id == "fig1":
        words = "the cosine of the angle between consecutive gradients after iteration 15 is going negative"
        found = [each for each in found if each[1].name != "negative cosine"]
        for role, reading in READINGS.items():
            found.append((reading, claims.negative_cosine(role, shown, words=words)))
            found.append((reading, claims.underdamped(role, "GD")))
            found.append(
                (
                    reading,
                    claims.distance(
                        role,
                        tables.PAPER_DISTANCE["gd"],
                        "the parameter distance from initialization during these 40 iterations reaches ~ 1.4",
                        "Section 3.1 (Figure 1)",
                        testable=False,
                    ),
                )
            )
    walks = {role: f"GD, {reading}" for role, reading in READINGS.items()}
    whole: dict[str, tuple[Experiment, ...]] = {}
    if id == "fig1" and scale == "small":
        whole = {"gd-whole": whole_network(scale, "mean"), "gd-sum-whole": whole_network(scale, "sum")}
        walks |= {f"{role}-whole": f"GD, {reading}, whole network, 300 images" for role, reading in READINGS.items()}
    return Figure(
        id,
        scale,
        TITLES[id],
        f"Plots for {_published_name(architecture)} Epoch 1 trained using full batch Gradient Descent (GD) on "
        f"{_published_data(architecture)}.",
        (architecture,),
        {"gd": gd(architecture, scale, "mean"), "gd-sum": gd(architecture, scale, "sum"), **whole},
        tuple(found),
        panels=tuple(Panel(role, None, f"GD, {reading}") for role, reading in READINGS.items()),
        tables=(
            _distances(walks, architecture, "gd"),
            *(_parabolas(role, None, f"GD, {reading}") for role, reading in READINGS.items()),
        ),
    )


def _sgd_figure(id: FigureId, scale: Scale, architecture: Architecture, papers_epoch: int) -> Figure:
    epoch = our_epoch(papers_epoch, scale)
    shown = f"Figure {id.removeprefix('fig')} ({ARCHITECTURES[architecture]})"
    found: list[tuple[str, Claim]] = [
        ("", claims.rough_floor("sgd", epoch, shown)),
        ("", claims.few_barriers("sgd", epoch, f"Section 3.1, Table 1; {shown}", first=claims.FIRST_UPDATES)),
    ]
    against_gd = [lambda role: claims.less_negative_cosine("sgd", epoch, role, shown)]
    if papers_epoch == 1:
        if architecture != "vgg11-tiny":  # whose training ends with this epoch
            found.append(("", claims.bounces("sgd", shown)))
        against_gd.append(lambda role: claims.farther_than_gd("sgd", role, shown))
    found += [(f"GD: {reading}", claim(role)) for claim in against_gd for role, reading in READINGS.items()]
    if id == "fig2":
        found.append(("", claims.underdamped("sgd", "SGD")))
        words = "the distance after 40 iterations is ~ 1.7, which is larger than the distance moved by GD"
        walker = "sgd" if scale != "small" else "sgd-whole"
        value, source = tables.PAPER_DISTANCE["sgd"], "Section 3.1 (Figure 2)"
        found.append(("", claims.distance(walker, value, words, source, testable=True)))
    if id == "fig21":
        words = "according to our quantitative evaluation there is no barrier between any two consecutive iterations"
        found.append(("", claims.no_barrier("sgd", epoch, words, "Appendix A (Figure 21)")))
    walks = {"sgd": "SGD", **{role: f"GD, {reading}" for role, reading in READINGS.items()}}
    whole: dict[str, tuple[Experiment, ...]] = {}
    if id == "fig2" and scale == "small":
        whole = {"sgd-whole": whole_network(scale)}
        walks["sgd-whole"] = "SGD, whole network, 4,000 images"
    return Figure(
        id,
        scale,
        TITLES[id],
        f"Plots for {_published_name(architecture)} Epoch {papers_epoch} trained using SGD on "
        f"{_published_data(architecture)}.",
        (architecture,),
        {
            "sgd": sgd(architecture, scale),
            "gd": gd(architecture, scale, "mean"),
            "gd-sum": gd(architecture, scale, "sum"),
            **whole,
        },
        tuple(found),
        panels=(Panel("sgd", epoch, f"SGD, epoch {epoch}"),),
        tables=(
            *((_distances(walks, architecture, "sgd"),) if papers_epoch == 1 else ()),
            _parabolas("sgd", epoch, f"SGD, epoch {epoch}"),
        ),
    )


def _figure_8(scale: Scale) -> Figure:
    (watched, *others) = sgd("vgg11", scale)
    epochs = tuple(
        epoch
        for epoch in watched.watch_epochs
        if epoch <= 40 and (scale == "paper" or epoch in {our_epoch(each, scale) for each in FIGURE_8_EPOCHS})
    )
    source = "Section 3.1, Figure 8"
    return Figure(
        "fig8",
        scale,
        TITLES["fig8"],
        "Numbers of barriers found during training loss interpolation for every epoch (450 iterations) for VGG-11 on "
        "CIFAR-10.",
        ("vgg11",),
        {"sgd": (watched, *others)},
        (
            ("", claims.most_epochs_without("sgd", epochs, source)),
            ("", claims.low_barriers("sgd", source, epochs)),
        ),
        chart=lambda runs: charts.barriers_by_epoch(runs["sgd"][0], epochs),
    )


def _table_1(scale: Scale) -> Figure:
    networks: tuple[Architecture, ...] = ("vgg11", "resnet56", "mlp")
    epochs: dict[Architecture, dict[int, int]] = {
        each: {epoch: our_epoch(epoch, scale) for epoch in TABLE_EPOCHS[each]} for each in networks
    }
    trainings = {each: sgd(each, scale) for each in networks}
    found: list[tuple[str, Claim]] = []
    for each in networks:
        source = f"Section 3.1, Table 1 ({ARCHITECTURES[each]})"
        ours = list(dict.fromkeys(epochs[each].values()))
        found += [(ARCHITECTURES[each], claims.few_barriers(each, epoch, source)) for epoch in ours]
        row = f"{_published_name(each)} {' '.join(str(count) for count in tables.PAPER_BARRIERS[each].values())}"
        found.append((ARCHITECTURES[each], claims.more_barriers_late(each, ours[0], ours[-1], row, source)))
        found.append((ARCHITECTURES[each], claims.low_barriers(each, f"{source}; said of Figure 8")))

    def compared(which: Architecture) -> Sequence[int]:
        return trainings[which][0].compare_epochs

    return Figure(
        "table1",
        scale,
        TITLES["table1"],
        "Number of barriers crossed during training of a whole epoch (450 iterations) for VGG-11 and Resnet-56 on "
        "CIFAR-10 and MLP on MNIST.",
        networks,
        trainings,
        tuple(found),
        chart=lambda runs: charts.barrier_shares(tables.barriers(runs, epochs)),
        tables=(
            Table(
                "table1",
                "Barriers, the paper's and ours",
                "Of the training that was watched throughout; significant: above twice the loss noise. low and high: "
                "95 % interval of the share (Clopper and Pearson). other_seeds: two trainings watched at every fifth "
                "update. authors: the first of the same updates, as many as stand under authors_updates, evaluated as "
                "the authors' code does. The paper's counts are of 450 updates, ours of as many as stand here.",
                lambda runs: tables.barriers(runs, epochs),
            ),
            *(
                Table(
                    f"noise-{each}",
                    f"How much of it is evaluation noise? {ARCHITECTURES[each]}",
                    "The same iterates by the clean evaluation and by the authors', who draw a fresh random partition "
                    "(and, for photographs, fresh augmentation) at every point of a segment. deviation: of repeated "
                    "evaluations of one θ by their protocol. expected: what the clean segments become when independent "
                    "noise of this deviation is added to every loss (mean of 2,000 simulations; for barriers with "
                    "their 95 % range); full: the same with the deviation over 45,000 images, which falls with 1/√N. "
                    "Where photographs are augmented, theirs is also the loss of other images.",
                    lambda runs, each=each: protocols.authors_noise(runs[each][0], compared(each)),
                )
                for each in networks
            ),
            *(
                Table(
                    f"batchnorm-{each}",
                    f"Running statistics, and fewer examples: {ARCHITECTURES[each]}",
                    "The same updates with the statistics of each batch (clean) and with BatchNorm's running "
                    "statistics (eval), and the clean evaluation over a quarter and a sixteenth of the evaluation "
                    "batches.",
                    lambda runs, each=each: protocols.batchnorm_and_examples(runs[each][0], compared(each)),
                )
                for each in ("vgg11", "mlp")
            ),
            *(
                Table(
                    f"finer-{each}",
                    f"A finer grid: {ARCHITECTURES[each]}",
                    "The same updates on 10 and on 100 intervals. floor_gap: floor on 10 less floor on 100, in "
                    "heights; mean and largest.",
                    lambda runs, each=each: protocols.finer_grid(runs[each][0], compared(each)),
                )
                for each in ("vgg11", "mlp")
            ),
        ),
    )


def _table_2(scale: Scale) -> Figure:
    epochs = {epoch: our_epoch(epoch, scale) for epoch in TABLE_EPOCHS["vgg11"]}
    ours = list(dict.fromkeys(epochs.values()))
    roles: dict[str, tuple[Architecture, float]] = {
        "vgg11": ("vgg11", 0.1),
        "vgg11-low": ("vgg11", 0.05),
        "resnet56": ("resnet56", RESNET_RATE),
    }
    source = "Section 3.2, Table 2"
    small_rate = (
        "if we use a small learning rate, SGD should encounter such barriers and likely cross them. But we found in "
        "our experiments that this was not the case"
    )
    return Figure(
        "table2",
        scale,
        TITLES["table2"],
        "Average height of SGD above valley floor across the iterations in one epoch for different epochs during the "
        "training of VGG-11 and Resnet-56 using SGD on CIFAR-10.",
        ("vgg11", "resnet56"),
        {
            "vgg11": sgd("vgg11", scale),
            "vgg11-low": sgd("vgg11", scale, SMALLER_RATE["vgg11"]),
            "resnet56": sgd("resnet56", scale, RESNET_RATE),
        },
        (
            *(
                (f"{ARCHITECTURES[network]}, η = {rate}", claims.falling_height(role, ours, f"Section 5; {source}"))
                for role, (network, rate) in roles.items()
            ),
            ("VGG-11", claims.lower_at_small_rate("vgg11-low", "vgg11", ours, source)),
            *(
                ("VGG-11, η = 0.05", claims.few_barriers("vgg11-low", epoch, "Section 6", words=small_rate))
                for epoch in ours
            ),
        ),
        chart=lambda runs: charts.heights(tables.heights(runs, roles, epochs)),
        tables=(
            Table(
                "table2",
                "Mean heights, the paper's and ours",
                "Nats per example. mean: over the seeds, each the mean over every fifth update of the epoch, which "
                "all of them have; low and high: Student's 95 % interval. throughout: over every update, of the seed "
                "that was watched at all of them.",
                lambda runs: tables.heights(runs, roles, epochs),
            ),
            Table(
                "noise",
                "How much of it is evaluation noise? VGG-11 on CIFAR-10, η = 0.1",
                "clean_height and authors_height: the same updates by both evaluations; expected_height: of the clean "
                "segments when noise of the deviation between repeated evaluations is added to every loss (2,000 "
                "simulations).",
                lambda runs: protocols.authors_noise(runs["vgg11"][0], sgd("vgg11", scale)[0].compare_epochs),
            ),
            *(_parabolas(role, None, f"{ARCHITECTURES[each]}, η = {rate}") for role, (each, rate) in roles.items()),
        ),
    )


def _distances(walks: Mapping[str, str], architecture: Architecture, algorithm: str) -> Table:
    paper = f" The paper: about {tables.PAPER_DISTANCE[algorithm]}." if architecture == "vgg11" else ""
    return Table(
        "distance",
        "Distance from the start after 40 updates",
        f"‖θ_40 - θ_0‖: mean, lowest and highest over the seeds; start_norm is ‖θ_0‖.{paper}",
        lambda runs: tables.distances(runs, walks),
    )


def _parabolas(role: str, epoch: int | None, label: str) -> Table:
    return Table(
        f"parabolas-{role}",
        f"Segments as parabolas: {label}",
        "After Mutschler and Zell (2021), who fit parabolas to the full loss along SGD's updates: r2 is the median "
        "share of the losses' variance that a parabola explains (r2_low: 5 % of the segments stay below); alpha_star "
        "where its minimum lies, in steps (median; below 0.5 the step climbs higher than it left); beyond_minimum the "
        "share of steps that pass it; line_search_rate what an exact line search along the same direction would take "
        "(median and quartiles). All watched updates of all seeds.",
        lambda runs: protocols.parabolas(runs[role], [epoch]),
    )


def _published_name(architecture: Architecture) -> str:
    return {"mlp": "MLP", "vgg11": "VGG-11", "resnet56": "Resnet-56", "vgg11-tiny": "VGG-11"}[architecture]


def _published_data(architecture: Architecture) -> str:
    return ARCHITECTURES[architecture].partition(" on ")[2]
