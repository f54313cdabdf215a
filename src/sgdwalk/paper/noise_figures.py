"""Figures 5, 25 and 26, and footnote 6: isotropic noise in place of mini-batches', and what gets out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from sgdwalk.paper import noise_charts, noise_claims, noise_tables
from sgdwalk.paper.figure import Figure, Table, published_name
from sgdwalk.paper.judging import Claim
from sgdwalk.paper.noise_trainings import (
    CUTS,
    DEVIATIONS,
    FACTORS,
    LOWER_RATE,
    NOISE_ROLES,
    READINGS,
    UPDATES_AFTER,
    against_gd,
    change_role,
    going_on,
    on_top_of_sgd,
    starts,
)
from sgdwalk.paper.trainings import ARCHITECTURES, Architecture, Scale

ARCHITECTURE_OF: Mapping[str, Architecture] = {"fig5": "vgg11", "fig25": "resnet56", "fig26": "mlp"}
"""Id -> network."""
GD_READINGS = {"gd": "mean gradient", "gd-sum": "sum of nine mean gradients"}
"""Role of a training by GD -> what the paper's full gradient is read as."""
NOISE_LABELS: Mapping[str, str] = {
    role: f"GD with noise, factor {factor}, {READINGS[reading]}" for role, (reading, factor) in NOISE_ROLES.items()
}
LABELS: Mapping[str, str] = {"gd": "GD", "gd-sum": "GD, sum of nine mean gradients", **NOISE_LABELS, "sgd": "SGD"}

TITLES: Mapping[str, str] = {
    **{
        id: f"Figure {id.removeprefix('fig')}: {ARCHITECTURES[architecture]}, GD against GD with isotropic noise"
        for id, architecture in ARCHITECTURE_OF.items()
    },
    "footnote6": "Footnote 6: what gets a training with isotropic noise out of where it is stuck",
}

STRENGTH_TEXT = (
    "The largest coordinate of B times the variance of mini-batch gradients at the initial weights. authors: nine "
    "mini-batches that hold all examples, divisor K; the noise is a share of this one. less biased: smaller ones, so "
    "that there are at least thirty, divisor K - 1. bias: by how much the maximum is too large where all coordinates' "
    "true variances are equal. sigma2_at: what the noise's variance would be in the paper's words."
)
ENDS_TEXT = (
    "Means over the seeds, and the lowest and highest. loss: mean of the last tenth of the updates, nats per example "
    "(of SGD its mini-batches'); accuracy: mean of the last three validations; median_cosine: from update 20 on; "
    "distance: ‖θ_T - θ_0‖."
)


def _figure(id: str, scale: Scale, architecture: Architecture) -> Figure:
    shown = f"Figure {id.removeprefix('fig')} ({ARCHITECTURES[architecture]})"
    trainings = against_gd(architecture, scale)
    found: list[tuple[str, Claim]] = [
        (NOISE_LABELS[role], claim(role, shown))
        for claim in (
            noise_claims.higher_loss,
            noise_claims.stuck,
            noise_claims.worse_accuracy,
            noise_claims.farther_than_gd,
            noise_claims.much_farther_than_sgd,
            noise_claims.much_larger_norm,
        )
        for role in NOISE_ROLES
        if len(trainings.get(role, ())) == len(trainings["gd"])
    ]
    found += [
        (GD_READINGS[role], noise_claims.opposite_throughout(role, shown)) for role in GD_READINGS if role in trainings
    ]
    found += [("", noise_claims.gd_generalizes_worse(shown)), ("", noise_claims.sgd_has_the_smaller_norm(shown))]
    labels = {role: LABELS[role] for role in trainings}
    paper = noise_tables.PAPER_NORMS if architecture == "vgg11" else {}
    found += [(LABELS[role], noise_claims.norm(role, value)) for role, value in paper.items() if role in trainings]
    norms_text = (
        "start_norm: ‖θ_0‖; norm: before the last update, mean, lowest and highest over the seeds; norm_by_start: "
        "their ratio. noise_alone: what σ, the learning rate, weight decay and the number of updates give with the "
        "gradient left out."
    )
    of_vgg = " paper_by_start: by the 87.1 at which the authors' network starts." if paper else ""
    tables = [
        Table("ends", "Where the trainings ended", ENDS_TEXT, lambda runs: noise_tables.ends(runs, labels)),
        Table("norms", "Norms", norms_text + of_vgg, lambda runs: noise_tables.norms(runs, labels, paper)),
        Table("strengths", "How strong the noise was", STRENGTH_TEXT, noise_tables.strengths),
    ]
    if architecture == "vgg11":
        tables.append(
            Table(
                "arithmetic",
                "What the paper's norms would take",
                "Calculated, not run: for the published network (9,756,426 parameters, ‖θ_0‖ = 87.1, learning rate "
                "0.1), the updates after which noise alone makes the paper's norms, without and with weight decay of "
                "1e-4, and the norm after 1,500 updates with it. Figure 5 shows at least 1,500.",
                lambda runs: noise_tables.arithmetic(),
            )
        )
    return Figure(
        id,
        scale,
        TITLES[id],
        f"Plots for {published_name(architecture)} trained by GD (without noise) and GD with artificial isotropic "
        "noise sampled from Gaussian distribution with different variances.",
        (architecture,),
        trainings,
        tuple(found),
        chart=lambda runs: noise_charts.against_gd(runs, labels),
        tables=tuple(tables),
        further_cuts=_cuts(architecture, scale),
    )


def _footnote_6(scale: Scale) -> Figure:
    begun = starts(scale)
    trainings = {role: runs for start in begun for role, runs in going_on(*start, scale).items()}
    on_top = on_top_of_sgd(scale)
    found: list[tuple[str, Claim]] = []
    labels: dict[str, str] = {}
    for architecture, reading in begun:
        role = partial(change_role, architecture=architecture, reading=reading)
        words, stuck = f"{published_name(architecture)}, {READINGS[reading]}", role("stuck")
        found += [
            (words, noise_claims.no_help(role("lower"), stuck, "lower learning rate")),
            (words, noise_claims.no_help(role("gd"), stuck, "switch to GD")),
            (words, noise_claims.helps(role("sgd"), stuck, "switch to SGD")),
        ]
        labels |= {
            stuck: f"{published_name(architecture)}, GD with noise, factor {FACTORS[0]}, {READINGS[reading]}",
            role("lower"): f"then with noise at learning rate {LOWER_RATE}",
            role("gd"): "then by GD",
            role("sgd"): "then by SGD",
        }
    noisy = [role for role in on_top if role.startswith("sgd-noise-")]
    for role in noisy:
        words = READINGS["variance" if role.endswith("variance") else "std"]
        found.append((words, noise_claims.noise_helps_sgd(role)))
        if "sgd-half" in on_top:
            found.append((words, noise_claims.smaller_batch_matters(role)))
    on_top_labels = {
        role: f"SGD, mini-batches of {each[0].batch_size}"
        + (f", with noise, factor {FACTORS[0]}, {READINGS[each[0].noise_reading]}" if role in noisy else "")
        for role, each in on_top.items()
    }
    return Figure(
        "footnote6",
        scale,
        TITLES["footnote6"],
        "We additionally find that the model trained with isotropic noise gets stuck because we find that neither "
        "reducing learning rate, nor switching to GD at this point leads to reduction in training loss. However, "
        "switching to SGD makes the loss go down.",
        tuple(dict.fromkeys(architecture for architecture, _ in begun)),
        {**trainings, **on_top},
        tuple(found),
        chart=lambda runs: noise_charts.going_on(runs, begun),
        tables=(
            Table("ends", "Going on from the noisy training", ENDS_TEXT, lambda runs: noise_tables.ends(runs, labels)),
            Table(
                "on-top",
                "Isotropic noise on top of SGD, and other batch sizes",
                f"After as many updates, not epochs. {ENDS_TEXT}",
                lambda runs: noise_tables.ends(runs, on_top_labels),
            ),
        ),
        further_cuts=(
            *dict.fromkeys(cut for architecture, _ in begun for cut in _cuts(architecture, scale)),
            f"{UPDATES_AFTER[scale]:,} updates of every training that goes on from another; distances are from there. "
            f"The lower learning rate is {LOWER_RATE}, a tenth. The paper says neither.",
        ),
    )


def _cuts(architecture: Architecture, scale: Scale) -> tuple[str, ...]:
    return (*([CUTS[scale][architecture]] if architecture in CUTS[scale] else []), *DEVIATIONS)


FIGURES: Mapping[str, Callable[[Scale], Figure]] = {
    **{id: partial(_figure, id, architecture=architecture) for id, architecture in ARCHITECTURE_OF.items()},
    "footnote6": _footnote_6,
}
"""Id -> what makes the figure at a scale."""
