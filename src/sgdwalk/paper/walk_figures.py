"""Figures 1, 2 and 9 to 21: the first 40 updates of GD, and of epochs of SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from sgdwalk.paper import barrier_claims, protocols, tables, walk_claims
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.figure import Figure, Panel, Table, published_data, published_name
from sgdwalk.paper.judging import Claim
from sgdwalk.paper.selections import FIRST_UPDATES
from sgdwalk.paper.trainings import (
    ARCHITECTURES,
    Architecture,
    Scale,
    gd,
    our_epoch,
    sgd,
    unwatched_sgd,
    whole_network_gd,
    whole_network_sgd,
)

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

TITLES: Mapping[str, str] = {
    **{
        id: f"Figure {id.removeprefix('fig')}: {ARCHITECTURES[architecture]}, first 40 updates of full-batch GD"
        for id, architecture in GD_FIGURES.items()
    },
    **{
        id: f"Figure {id.removeprefix('fig')}: {ARCHITECTURES[architecture]}, first 40 updates of SGD's epoch {epoch}"
        for id, (architecture, epoch) in SGD_FIGURES.items()
    },
}


def _gd_figure(id: str, scale: Scale, architecture: Architecture) -> Figure:
    shown = f"Figure {id.removeprefix('fig')} ({ARCHITECTURES[architecture]})"
    found = [
        (reading, claim(role, shown))
        for claim in (
            walk_claims.valley,
            walk_claims.quadratic,
            walk_claims.negative_cosine,
            walk_claims.opposite_gradients,
            walk_claims.falling_floor,
        )
        for role, reading in READINGS.items()
    ]
    if id == "fig1":
        words = "the cosine of the angle between consecutive gradients after iteration 15 is going negative"
        found = [each for each in found if each[1].name != "negative cosine"]
        for role, reading in READINGS.items():
            found.append((reading, walk_claims.negative_cosine(role, shown, words=words)))
            found.append((reading, walk_claims.underdamped(role, "GD")))
            found.append(
                (
                    reading,
                    walk_claims.distance(
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
        for (gradient, images), experiment in whole_network_gd(scale).items():
            role = {"mean": "gd", "sum": "gd-sum"}[gradient]
            whole[f"{role}-whole-{images}"] = (experiment,)
            walks[f"{role}-whole-{images}"] = f"GD, {READINGS[role]}, whole network, {images:,} images"
    return Figure(
        id,
        scale,
        TITLES[id],
        f"Plots for {published_name(architecture)} Epoch 1 trained using full batch Gradient Descent (GD) on "
        f"{published_data(architecture)}.",
        (architecture,),
        {"gd": gd(architecture, scale, "mean"), "gd-sum": gd(architecture, scale, "sum"), **whole},
        tuple(found),
        panels=tuple(Panel(role, None, f"GD, {reading}") for role, reading in READINGS.items()),
        tables=(
            _distances(walks, architecture, "gd"),
            *(parabolas_table(role, None, f"GD, {reading}") for role, reading in READINGS.items()),
        ),
    )


def _sgd_figure(id: str, scale: Scale, architecture: Architecture, papers_epoch: int) -> Figure:
    epoch = our_epoch(papers_epoch, scale)
    walkers = (*sgd(architecture, scale), *unwatched_sgd(architecture, scale, epoch))
    shown = f"Figure {id.removeprefix('fig')} ({ARCHITECTURES[architecture]})"
    found: list[tuple[str, Claim]] = [
        ("", walk_claims.rough_floor("sgd", epoch, shown)),
        ("", barrier_claims.few_barriers("sgd", epoch, f"Section 3.1, Table 1; {shown}", first=FIRST_UPDATES)),
    ]
    against_gd = [lambda role: walk_claims.less_negative_cosine("sgd", epoch, role, shown)]
    if papers_epoch == 1:
        if architecture != "vgg11-tiny":  # whose training ends with this epoch
            found.append(("", walk_claims.bounces("sgd", shown)))
        against_gd.append(lambda role: walk_claims.farther_than_gd("sgd", role, shown))
    found += [(f"GD: {reading}", claim(role)) for claim in against_gd for role, reading in READINGS.items()]
    if id == "fig2":
        found.append(("", walk_claims.underdamped("sgd", "SGD")))
        words = "the distance after 40 iterations is ~ 1.7, which is larger than the distance moved by GD"
        walker = "sgd" if scale != "small" else "sgd-whole"
        value, source = tables.PAPER_DISTANCE["sgd"], "Section 3.1 (Figure 2)"
        found.append(("", walk_claims.distance(walker, value, words, source, testable=True)))
    if id == "fig21":
        words = "according to our quantitative evaluation there is no barrier between any two consecutive iterations"
        found.append(("", barrier_claims.no_barrier("sgd", epoch, words, "Appendix A (Figure 21)")))
    walks = {"sgd": "SGD", **{role: f"GD, {reading}" for role, reading in READINGS.items()}}
    whole: dict[str, tuple[Experiment, ...]] = {}
    if id == "fig2" and scale == "small":
        whole = {"sgd-whole": whole_network_sgd(scale)}
        walks["sgd-whole"] = "SGD, whole network, 4,000 images"
    return Figure(
        id,
        scale,
        TITLES[id],
        f"Plots for {published_name(architecture)} Epoch {papers_epoch} trained using SGD on "
        f"{published_data(architecture)}.",
        (architecture,),
        {
            "sgd": walkers,
            "gd": gd(architecture, scale, "mean")[: len(walkers)],
            "gd-sum": gd(architecture, scale, "sum")[: len(walkers)],
            **whole,
        },
        tuple(found),
        panels=(Panel("sgd", epoch, f"SGD, epoch {epoch}"),),
        tables=(
            *((_distances(walks, architecture, "sgd"),) if papers_epoch == 1 else ()),
            parabolas_table("sgd", epoch, f"SGD, epoch {epoch}"),
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


def parabolas_table(role: str, epoch: int | None, label: str) -> Table:
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


FIGURES: Mapping[str, Callable[[Scale], Figure]] = {
    **{id: partial(_gd_figure, id, architecture=architecture) for id, architecture in GD_FIGURES.items()},
    **{
        id: partial(_sgd_figure, id, architecture=architecture, papers_epoch=epoch)
        for id, (architecture, epoch) in SGD_FIGURES.items()
    },
}
"""Id -> what makes the figure at a scale."""
