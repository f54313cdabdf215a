"""Figures 4 and 22 to 24, and the study ``roles``: what learning rate and batch size do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from sgdwalk.paper import role_charts, role_claims, role_measures
from sgdwalk.paper.figure import PILOTED, Figure, Table
from sgdwalk.paper.judging import Claim
from sgdwalk.paper.role_measures import ACCURACY, COSINE, DISTANCE, HEIGHT, SPECTRAL_NORM, Moment
from sgdwalk.paper.role_trainings import (
    NETWORKS,
    USUAL_RATE,
    Setting,
    batch_settings,
    compared,
    grid,
    rate_settings,
    sweep,
)
from sgdwalk.paper.trainings import ARCHITECTURES, Architecture, Scale, base

COSINE_FIGURES: Mapping[str, Architecture] = {
    "fig4": "vgg11",
    "fig22": "resnet56",
    "fig23": "mlp",
    "fig24": "vgg11-tiny",
}
TITLES: Mapping[str, str] = {
    **{
        id: f"Figure {id.removeprefix('fig')}: cosine by batch size and by learning rate, {ARCHITECTURES[each]}"
        for id, each in COSINE_FIGURES.items()
    },
    "roles": "Roles: learning rate and batch size, what follows which",
}


def moments(architecture: Architecture, scale: Scale) -> tuple[Moment, Moment]:
    """When walks are compared: after a fixed number of updates, and of epochs."""
    where = compared(architecture, scale)
    return Moment(where.updates, "updates"), Moment(where.epochs, "epochs")


def _cuts(architecture: Architecture, scale: Scale) -> str:
    """How long the trainings of an architecture are, and with which batch sizes."""
    where, usual = compared(architecture, scale), base(architecture, scale)
    sizes = ", ".join(str(each.batch_size) for each in batch_settings(architecture, scale))
    return (
        f"{ARCHITECTURES[architecture]}, by learning rate and batch size: batch sizes {sizes} for the paper's 50, 100, "
        f"500 and 1,000, all cut by the same factor; trained for {where.epochs} epochs and for at least "
        f"{where.updates} updates, what {usual.batch_size} examples a batch make in them. How long the paper's "
        "trainings were is not said. A larger batch makes fewer updates an epoch, so that after a fixed number of "
        "epochs it may still be on the way into the valley."
    )


def _cosine_figure(id: str, scale: Scale, architecture: Architecture) -> Figure:
    batches, rates = batch_settings(architecture, scale), rate_settings(architecture, scale)
    settings = tuple(dict.fromkeys((*batches, *rates)))
    updates, epochs = when = moments(architecture, scale)
    claims: list[tuple[str, Claim]] = []
    for moment in when:
        reading = f"fixed number of {moment.unit}"
        claims.append((reading, role_claims.follows(batches, COSINE, "batch size", "falls", moment)))
        claims.append((reading, role_claims.follows(batches, DISTANCE, "batch size", "falls", moment)))
    claims.append(("", role_claims.same_cosine_at_any_rate(rates, batches, updates)))
    claims.append(("fixed number of updates", role_claims.batch_changes_cosine_more(batches, rates, updates)))
    return Figure(
        id,
        scale,
        TITLES[id],
        "Changing batch size changes the cosine of angle between consecutive gradients while changing learning rate "
        "does not have any significant effect on the cosine. This shows batch size has a qualitatively different role "
        "compared with learning rate. Note that the curves are smoothened for visual clarity.",
        (architecture,),
        {each.role: sweep(each, scale) for each in settings},
        tuple(claims),
        chart=lambda runs: role_charts.cosine_and_distance(runs, batches, rates, updates.number),
        further_cuts=() if scale == "smoke" else (_cuts(architecture, scale),),
        deviations=(PILOTED,),
        tables=(
            Table(
                "settings",
                "Cosine, distance and validation accuracy, setting by setting",
                f"Batch sizes are the paper's 50, 100, 500 and 1,000 by the same factor as the usual one at this "
                f"scale, here {', '.join(str(each.batch_size) for each in batches)}, at learning rate {USUAL_RATE}; "
                f"learning rates are the paper's. After {updates} (so many as {rates[0].batch_size} examples a batch "
                f"make in {epochs}) and after {epochs}. cosine: mean over the second half of the updates until then. "
                "Means over the seeds with Student's 95 % interval. How long the paper's trainings were is not said; "
                "its values stand in its picture only.",
                lambda runs: role_measures.settings_table(runs, settings, when),
            ),
        ),
    )


def _roles(scale: Scale) -> Figure:
    cells: dict[Architecture, tuple[Setting, ...]] = {each: grid(each, scale) for each in NETWORKS}
    when: dict[Architecture, tuple[Moment, Moment]] = {each: moments(each, scale) for each in NETWORKS}
    claims: list[tuple[str, Claim]] = []
    tables: list[Table] = []
    for network in NETWORKS:
        settings, name = cells[network], ARCHITECTURES[network]
        for moment in when[network]:
            found = (
                role_claims.follows(settings, HEIGHT, "learning rate", "rises", moment),
                role_claims.rules(settings, HEIGHT, "learning rate", moment),
                role_claims.follows(settings, DISTANCE, "batch size", "falls", moment),
                role_claims.follows(settings, DISTANCE, "learning rate", "rises", moment),
                role_claims.rules(settings, DISTANCE, "batch size", moment),
                role_claims.follows(settings, COSINE, "batch size", "falls", moment),
                role_claims.follows(settings, SPECTRAL_NORM, "learning rate", "falls", moment),
                role_claims.follows(settings, SPECTRAL_NORM, "batch size", "rises", moment),
                role_claims.follows(settings, ACCURACY, "learning rate", "rises", moment),
                role_claims.follows(settings, ACCURACY, "batch size", "falls", moment),
            )
            claims += [(name, claim) for claim in found]
        usual_size = rate_settings(network, scale)[0].batch_size
        usual = [each for each in settings if each.batch_size == usual_size]
        sizes = [each for each in settings if each.learning_rate == USUAL_RATE]
        claims.append(
            (f"{name}, usual batch size", role_claims.same_cosine_at_any_rate(usual, sizes, when[network][0]))
        )
        claims += [
            (name, role_claims.same_at_equal_ratio(settings, when[network][1], large=large)) for large in (False, True)
        ]
        claims.append((name, role_claims.no_barriers_at_small_rates(settings)))
        tables += _tables(network, scale)
    return Figure(
        "roles",
        scale,
        TITLES["roles"],
        "Learning rate controls the height at which the optimization bounces above the valley floor while batch size "
        "controls the level of noise due to gradient covariance which seems to facilitate exploration of different "
        "regions in the valley.",
        NETWORKS,
        {each.role: sweep(each, scale) for network in NETWORKS for each in cells[network]},
        tuple(claims),
        chart=lambda runs: role_charts.grids(runs, cells, when),
        further_cuts=() if scale == "smoke" else tuple(_cuts(each, scale) for each in NETWORKS),
        deviations=(PILOTED,),
        tables=tuple(tables),
    )


def _tables(network: Architecture, scale: Scale) -> list[Table]:
    settings, when, name = grid(network, scale), moments(network, scale), ARCHITECTURES[network]
    return [
        Table(
            f"slopes-{network}",
            f"What follows what: {name}",
            "rate and batch: the change of the quantity, or of its log₂ (then an exponent), with a doubling of the "
            "learning rate and of the batch size: least squares over the grid, one slope a seed, mean and Student's 95 "
            "% interval over the seeds. unknown: trainings without a value, which are left out. Heights and spectral "
            "norms are those of the loss that a training experiences, whose BatchNorm statistics are of its own batch "
            "size.",
            lambda runs: role_measures.slopes_table(runs, settings, when),
        ),
        Table(
            f"grid-{network}",
            f"The grid: {name}",
            "Means over the seeds. height: of the first two updates after that; cosine: over the second half of the "
            "updates until then; spectral_norm: over the first training examples, five usual batches of them.",
            lambda runs: role_measures.grid_table(runs, settings, when),
        ),
        Table(
            f"ratios-{network}",
            f"One ratio of learning rate to batch size: {name}",
            f"After {when[1]}, the time of the stochastic differential equation: distance, validation loss and height "
            "at the larger learning rate by those at the smaller one, with 90 % intervals over the seeds (two "
            "one-sided tests at 5 %). The equation speaks of the path, so of distance and loss, and not of the height, "
            "which is that of one step and depends on its size.",
            lambda runs: role_measures.ratios_table(runs, settings, when[1]),
        ),
        Table(
            f"barriers-{network}",
            f"Barriers by learning rate: {name}",
            "Watched updates of all batch sizes and seeds that cross a barrier, with the 95 % interval of their share "
            "(Clopper and Pearson) as if updates were independent. All are of the first epochs: Table 1's barriers "
            "come later.",
            lambda runs: role_measures.barriers_table(runs, settings),
        ),
    ]


FIGURES: Mapping[str, Callable[[Scale], Figure]] = {
    **{id: partial(_cosine_figure, id, architecture=each) for id, each in COSINE_FIGURES.items()},
    "roles": _roles,
}
"""Id -> what makes the figure at a scale."""
