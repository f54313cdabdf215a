"""What a run's record says of the training that made it, written by ``train`` and read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sgdwalk
from sgdwalk.paper.config import Experiment


def describe(experiment: Experiment, data_remark: str) -> dict[str, Any]:
    """The settings, their hash, how many updates the training is meant to have, and a remark on its data."""
    return {
        "seed": experiment.seed,
        "experiment": experiment.to_dict(),
        "settings_hash": experiment.settings_hash,
        "num_updates": experiment.num_updates,
        "data_remark": data_remark,
    }


def is_finished(run: sgdwalk.Run) -> bool:
    """Whether a training came to its end: all its updates are there, and so are the values noted after the last.

    A run that ``train`` did not make has no end that could be known, and counts as finished.
    """
    if "settings_hash" not in run.info["config"]:
        return True
    experiment = Experiment.from_dict(run.info["config"]["experiment"])
    last_epoch = (experiment.num_updates - 1) // experiment.steps_per_epoch + 1
    return len(run.steps) == experiment.num_updates and last_epoch in run.epochs.index


def check_same_training(folder: Path, run: sgdwalk.Run, experiment: Experiment) -> None:
    """Raise ``sgdwalk.ResumeError`` where the run in a folder is not of this experiment, naming what differs."""
    differences = experiment.differences(run.info["config"].get("experiment", {}))
    if differences:
        raise sgdwalk.ResumeError(
            f"{folder} was started with other settings ({'; '.join(differences)}): resume it with its own, or give the "
            "new run another name."
        )
