"""What can be reproduced: every id, what it is, and what it needs and claims at a scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import sgdwalk
from sgdwalk.paper import (
    noise_figures,
    quadratic_figures,
    role_figures,
    schedule_figures,
    spectral_figures,
    table_figures,
    walk_figures,
)
from sgdwalk.paper.figure import Figure
from sgdwalk.paper.trainings import SCALES, Scale

FigureId = Literal[
    "fig1",
    "fig2",
    "fig3",
    "fig4",
    "fig5",
    "fig6",
    "fig7",
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
    "fig22",
    "fig23",
    "fig24",
    "fig25",
    "fig26",
    "fig27",
    "fig28",
    "table1",
    "table2",
    "footnote6",
    "eq3",
    "roles",
]
IDS: tuple[FigureId, ...] = get_args(FigureId)

_MODULES = (
    walk_figures,
    table_figures,
    spectral_figures,
    role_figures,
    noise_figures,
    schedule_figures,
    quadratic_figures,
)
FIGURES: Mapping[str, Callable[[Scale], Figure]] = {
    id: make for module in _MODULES for id, make in module.FIGURES.items()
}
"""Id -> what makes the figure at a scale."""

_TITLES = {id: title for module in _MODULES for id, title in module.TITLES.items()}
TITLES: Mapping[FigureId, str] = {id: _TITLES[id] for id in IDS}
"""Id -> the figure in a few words, in the order in which they are listed."""


def figure(id: FigureId, scale: Scale) -> Figure:
    """What a figure or table needs and claims at a scale.

    >>> fig18, fig19 = figure("fig18", "small"), figure("fig19", "small")
    >>> fig18.trainings["sgd"] == fig19.trainings["sgd"]  # one training serves both
    True
    """
    if id not in TITLES:
        raise sgdwalk.InputError(f"{id!r} cannot be reproduced; what can be: {', '.join(TITLES)}.")
    if scale not in SCALES:
        raise sgdwalk.InputError(f"{scale!r} is no scale; choose one of {', '.join(SCALES)}.")
    return FIGURES[id](scale)
