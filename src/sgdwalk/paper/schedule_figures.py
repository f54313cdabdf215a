"""Figures 6 and 27: cyclical, trapezoidal and stepwise learning rates, each tuned, and one that holds the height."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from sgdwalk.paper import schedule_charts, schedule_claims, schedule_tables
from sgdwalk.paper.config import Experiment
from sgdwalk.paper.figure import Choice, Figure, Runs, Table, published_name
from sgdwalk.paper.schedule_trainings import EPOCHS, EQUAL, SCHEDULES, best, grid, tuned
from sgdwalk.paper.trainings import ARCHITECTURES, Architecture, Scale

SHOWN: Mapping[str, Architecture] = {"fig6": "vgg11", "fig27": "resnet56"}
"""Id -> network."""
TITLES: Mapping[str, str] = {
    id: f"Figure {id.removeprefix('fig')}: {ARCHITECTURES[architecture]}, three learning rate schedules"
    for id, architecture in SHOWN.items()
}


def _figure(id: str, scale: Scale, architecture: Architecture) -> Figure:
    points = grid(architecture, scale)
    shown = f"Section 5, Figure {id.removeprefix('fig')} ({ARCHITECTURES[architecture]})"

    def choose(runs: Runs) -> Mapping[str, tuple[Experiment, ...]]:
        return tuned({schedule: roles[best(runs, roles)] for schedule, roles in points.items()}, scale)

    firsts = {schedule: next(iter(roles.values())) for schedule, roles in points.items()}
    like = tuple(experiment for each in tuned(firsts, scale).values() for experiment in each)
    others = [(role, SCHEDULES[role]) for role in ("cyclical", "trapezoid", "stepwise")]
    budgets = {"hold": "the same number of updates", EQUAL: "the same number of forward passes"}
    return Figure(
        id,
        scale,
        TITLES[id],
        f"Plots for {published_name(architecture)} on CIFAR-10 trained using Cyclic learning rate (CLR), SGD with "
        "stepwise annealing, and trapezoid schedule. Cycles in the CLR schedule are redundant, which is shown by the "
        "trapezoid schedule.",
        (architecture,),
        {role: (experiment,) for roles in points.values() for role, experiment in roles.items()},
        (
            ("", schedule_claims.cycles_are_redundant("trapezoid", "cyclical", shown)),
            ("cyclical", schedule_claims.raising_is_better("cyclical", "stepwise", "cyclical", shown)),
            ("trapezoid", schedule_claims.raising_is_better("trapezoid", "stepwise", "trapezoid", shown)),
            *(
                (reading, schedule_claims.height_is_an_advantage(role, other, name, "Section 5"))
                for role, reading in budgets.items()
                for other, name in others
            ),
        ),
        chart=schedule_charts.curves,
        tables=(
            Table(
                "schedules",
                "The schedules as tuned",
                "Validation accuracy after the last epoch: mean over the seeds, low and high: Student's 95 % interval. "
                "None of these seeds took part in choosing the settings; the validation images did. training_loss: "
                "mean of the last epoch's mini-batches, nats per example. passes: forward passes over the training "
                "examples that a training costs, a backward pass counted as two; for a height that is held they "
                "include its measurements, three passes each, but not the few that watching takes at the start.",
                schedule_tables.compared,
            ),
            Table(
                "grid",
                "The grids",
                "One seed each. peak_rate: highest learning rate; cycles: cycles of CLR, and for the trapezoid those "
                "of which it rises as in the first; learning_rate: stepwise, before the first of two drops by decay; "
                "target_height: height that is held, nats per example, with a rate of peak_rate at most. The highest "
                "validation accuracy is chosen.",
                lambda runs: schedule_tables.chosen(runs, points),
            ),
            Table(
                "held",
                "How well the height was held",
                "Nats per example, seed by seed, over the second half of the heights that were measured before the "
                "annealing. updates_at_peak_rate: there the cap, not the height, decided the rate.",
                schedule_tables.held,
            ),
        ),
        choice=Choice(choose, like),
        reported=tuple(schedule_tables.NAMES),
        deviations=(
            "The grids, the length of the training "
            f"({EPOCHS[scale]} epochs at this scale), the start of the rise and the end of the annealing are ours: the "
            "paper tunes by a grid that it does not tell, and says that the schedules are apparent from the figures. "
            "The trapezoid is annealed over the last half, stepwise drops come after each third.",
            "Settings are chosen with one seed and compared with others."
            if scale != "smoke"
            else "Settings are chosen and compared with the same seed, one alone.",
            "The schedule that holds the height is ours: a rule of section 5's guideline, which the paper leaves to "
            "future work.",
        ),
    )


FIGURES: Mapping[str, Callable[[Scale], Figure]] = {
    id: partial(_figure, id, architecture=architecture) for id, architecture in SHOWN.items()
}
"""Id -> what makes the figure at a scale."""
