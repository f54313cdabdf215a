"""Figures 3 and 7, and Equation 3: curvature over training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from sgdwalk.paper import decomposition_claims, spectral_charts, spectral_claims, spectral_tables
from sgdwalk.paper.figure import PILOTED, Figure, Table, published_name
from sgdwalk.paper.spectral_trainings import (
    DECOMPOSITION_CUT,
    LAST_EPOCH,
    SPECTRAL_CUT,
    decomposition,
    spectral,
)
from sgdwalk.paper.trainings import ARCHITECTURES, CUTS, Architecture, Scale, our_epoch

TITLES: Mapping[str, str] = {
    "fig3": "Figure 3: spectral norm and validation accuracy over training, VGG-11 on CIFAR-10",
    "fig7": "Figure 7: spectral norm and validation accuracy over training, ResNet-56 on CIFAR-10",
    "eq3": "Equation 3: Hessian = second moment of gradients + a second term",
}


def _spectral_figure(id: str, architecture: Architecture, learning_rate: float, scale: Scale) -> Figure:
    source = f"Figure {id.removeprefix('fig')}, caption"
    last = our_epoch(LAST_EPOCH, scale)
    return Figure(
        id,
        scale,
        TITLES[id],
        "Max eigenvalue (spectral norm) of the Hessian and validation accuracy for "
        f"{published_name(architecture)} trained on CIFAR-10 using a fixed learning rate of {learning_rate:g} and "
        f"batch size 100. {spectral_claims.CAPTION} {spectral_claims.ACCURACY}",
        (architecture,),
        {"sgd": spectral(architecture, scale, learning_rate)},
        (
            ("", spectral_claims.falling_norm("sgd", last, source)),
            ("", spectral_claims.late_rise("sgd", last, source)),
            ("", spectral_claims.improving_accuracy("sgd", last, source)),
            ("", spectral_claims.late_drop("sgd", last, source)),
            ("", spectral_claims.inverse_trends("sgd", source)),
            ("", spectral_claims.larger_with_running_statistics("sgd", source)),
        ),
        chart=lambda runs: spectral_charts.spectral_curves(runs["sgd"], ARCHITECTURES[architecture]),
        tables=(
            Table(
                "spectral-norm",
                "Spectral norm and validation accuracy",
                "The eigenvalue of largest magnitude, signed, before the last update of the epoch, with the statistics "
                "of each batch (train) and with running statistics (eval); empty where the search had not converged. "
                "products: Hessian-vector products that it took. ratio: of magnitudes, eval by train. accuracy: on the "
                "validation images, after the epoch.",
                lambda runs: spectral_tables.curves(runs["sgd"]),
            ),
            Table(
                "ways",
                "The same parameters, measured in other ways",
                "train: as above. whole: over all training images, where that is another number. authors: as the "
                "authors' code does, 15 power iterations scaled by the largest entry, from a random vector, over the "
                "images of train, in batches five times as large, in a new order and newly augmented at each "
                "iteration. by_part: divided by train.",
                lambda runs: spectral_tables.ways(runs["sgd"]),
            ),
        ),
        cut=f"{CUTS[scale][architecture]} {SPECTRAL_CUT}" if scale == "small" else "",
        deviations=(PILOTED,),
    )


def _equation_3(scale: Scale) -> Figure:
    source = "Section 4, Equation 3; Appendix D, Equation 8"
    return Figure(
        "eq3",
        scale,
        TITLES["eq3"],
        f"H(θ) = C(θ) + 1/N Σ ∂L_i/∂p_i · ∂²p_i/∂θ². … {decomposition_claims.NEAR_MINIMA}.",
        ("mlp",),
        {"sgd": decomposition(scale)},
        (
            ("", decomposition_claims.identity("sgd", source)),
            ("", decomposition_claims.almost_equal("sgd", source)),
            ("", decomposition_claims.vanishing_residual("sgd", source)),
            ("", decomposition_claims.aligned("sgd", source)),
        ),
        chart=lambda runs: spectral_charts.equation_3(runs["sgd"]),
        tables=(
            Table(
                "equation-3",
                "H, C and R over training",
                "Before each of these updates: loss (nats per example) and accuracy on the training images; identity: "
                "‖H - C - R‖ / ‖H‖ in Frobenius norms, identity_running: the same with BatchNorm's running statistics, "
                "on random vectors; hessian, second_moment, residual: spectral norms of H, C, R, share: by that of H; "
                "overlap: of the spaces of the top eigenvectors of C and H, as many as classes, chance: of two random "
                "ones; angle: between the two top eigenvectors, radians; exponent: γ in v_iᵀ C v_i ∝ λ_i^γ along the "
                "eigenvectors v_i of H whose eigenvalue is at least a thousandth of the largest, with the 95 % "
                "interval of the regression, over as many pairs as stand there. C = H would have γ = 1; Zhang, Yang "
                "and Tu (arXiv 2602.05600) find 1 ≤ γ ≤ 2.",
                lambda runs: spectral_tables.equation_3(runs["sgd"]),
            ),
        ),
        cut="" if scale == "smoke" else DECOMPOSITION_CUT,
        deviations=(PILOTED,),
    )


FIGURES: Mapping[str, Callable[[Scale], Figure]] = {
    "fig3": partial(_spectral_figure, "fig3", "vgg11", 0.1),
    "fig7": partial(_spectral_figure, "fig7", "resnet56", 0.3),
    "eq3": _equation_3,
}
"""Id -> what makes the figure at a scale."""
