"""Figures 6 and 27 as pictures: loss, validation accuracy and learning rate of the tuned schedules."""

from __future__ import annotations

from matplotlib.figure import Figure

from sgdwalk.paper import schedule_tables
from sgdwalk.paper.charts import INK, MUTED, Chart, dress
from sgdwalk.paper.schedule_tables import NAMES, Runs, training_loss

STYLES = {
    "cyclical": ("#0b62a8", "-", "o"),
    "trapezoid": ("#cc4a10", "-", "s"),
    "stepwise": ("#00785a", "-", "^"),
    "hold": ("#8a4a9e", "-", "D"),
    "hold-equal": ("#8a4a9e", ":", "v"),
}
"""Role -> colour, line, marker."""


def curves(runs: Runs) -> Chart:
    """Training loss, validation accuracy, learning rate over the epochs: each seed faint, the mean of seeds bold."""
    figure = Figure(figsize=(7.6, 8.0), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    titles = ("Training loss, nats per example", "Validation accuracy", "Learning rate")
    for axis, title in zip(panels, titles, strict=True):
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        dress(axis)
    for role, name in NAMES.items():
        colour, line, marker = STYLES[role]
        losses = [training_loss(run) for run in runs[role]]
        accuracies = [run.epochs["validation_accuracy"] for run in runs[role]]
        for axis, seeds in zip(panels, (losses, accuracies), strict=False):
            for each in seeds:
                axis.plot(each.index, each, line, color=colour, alpha=0.25, linewidth=0.9)
            mean = sum(seeds[1:], seeds[0]) / len(seeds)
            every = max(1, len(mean) // 12)
            axis.plot(mean.index, mean, line, color=colour, marker=marker, markersize=4, markevery=every, label=name)
        for number, run in enumerate(runs[role]):
            per_epoch = schedule_tables.settings_of(run).steps_per_epoch
            style = {"alpha": 1.0, "linewidth": 1.4} if number == 0 else {"alpha": 0.35, "linewidth": 0.9}
            panels[2].plot(run.steps.index / per_epoch, run.steps["learning_rate"], line, color=colour, **style)
    panels[2].set_ylim(bottom=0)
    panels[2].set_xlabel("epoch", color=MUTED)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    table = schedule_tables.compared(runs)
    said = "; ".join(f"{row.schedule} {row.validation_accuracy:.3f}" for row in table.itertuples())
    return Chart(
        figure,
        "The schedules, each as tuned. Top: mean loss of an epoch's mini-batches. Middle: validation accuracy after "
        "it. Bold: the mean of the seeds, faint: each seed. Bottom: the learning rate at every update; where the "
        "height is held it differs from seed to seed (first seed bold). Dotted: the height held for as many "
        "forward passes as the other schedules take, and so for fewer epochs.",
        f"Validation accuracy after the last epoch, mean of the seeds: {said}.",
        "Ours, drawn like the paper's",
    )
