"""The reproduction with certified segments: which figures can have them, and what they then are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import sgdwalk
from sgdwalk.paper import table_figures, walk_figures
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.figure import Figure, Method
from sgdwalk.paper.registry import IDS, FigureId, figure
from sgdwalk.paper.trainings import Scale

TOLERANCE = 0.05
"""Half-width of the height's interval, as a share of the height: what ``watch`` takes where nothing is said."""
CURVE_TOLERANCE = 0.02
"""That of every loss along a segment of gradient descent, whose shape a statement is about: that a parabola explains
99 % of the losses' variance. Errors of a fiftieth of the height, here and there, make about a quarter of the rest."""
CERTIFIABLE: tuple[FigureId, ...] = tuple(id for id in IDS if id in {*walk_figures.FIGURES, *table_figures.FIGURES})
"""Ids whose statements are about watched segments. Others measure curvature, or cosines and distances, or follow the
heights that they measure: samples along segments would save them little, or change them."""


def figures(ids: Sequence[FigureId], scale: Scale, method: Method, *, others: str = "refuse") -> list[Figure]:
    """What some ids need and claim, with their segments measured by a method.

    Args:
        ids: the figures.
        scale: how much of the published setting.
        method: ``certified`` has the figures of :data:`CERTIFIABLE` with certified segments.
        others: what becomes of other figures then: ``refuse`` them, or leave them ``exact``.

    Raises:
        InputError: figures that cannot have certified segments are to be refused.

    >>> [each.page for each in figures(["fig1", "fig28"], "small", "certified", others="exact")]
    ['fig1-small-certified', 'fig28-small']
    """
    others_named = [id for id in ids if id not in CERTIFIABLE]
    if method == "certified" and others == "refuse" and others_named:
        raise sgdwalk.InputError(
            f"{', '.join(others_named)} cannot have certified segments: what is said there is not of segments, or "
            f"follows their very numbers. Those that can: {', '.join(CERTIFIABLE)}. With `all`, these are certified "
            "and the others exact."
        )
    wanted = [figure(id, scale) for id in ids]
    return [certified(each) if method == "certified" and each.id in CERTIFIABLE else each for each in wanted]


def certified(wanted: Figure) -> Figure:
    """A figure with the segments of its trainings certified, without the tables that need exact losses."""
    trainings: Mapping[str, tuple[Experiment, ...]] = {
        role: tuple(certified_training(each) for each in experiments) for role, experiments in wanted.trainings.items()
    }
    tables = tuple(table for table in wanted.tables if not table.needs_exact)
    return replace(wanted, trainings=trainings, tables=tables, exact=wanted)


def certified_training(experiment: Experiment) -> Experiment:
    """The same training, watched with certified segments, itself where none is watched.

    Barriers of SGD are counted, so theirs are decided exactly; of gradient descent the shape of segments is judged, so
    every loss along them is certified. No segment is measured by another protocol: what such a comparison tells is in
    the last digits of exact losses.

    >>> certified_training(Experiment(compare=("authors",))) == Experiment(method="certified", barriers="exact")
    True
    """
    if not experiment.watch:
        return experiment
    plain, gd = Experiment(), experiment.algorithm == "gd"
    return replace(
        experiment,
        method="certified",
        tolerance=CURVE_TOLERANCE if gd else TOLERANCE,
        barriers="estimated" if gd else "exact",
        certify="curve" if gd else "height",
        compare=plain.compare,
        compare_epochs=plain.compare_epochs,
        compare_first=plain.compare_first,
    )


def left_out(wanted: Figure) -> list[str]:
    """Titles of the tables that a figure with certified segments does without."""
    return [] if wanted.exact is None else [table.title for table in wanted.exact.tables if table.needs_exact]
