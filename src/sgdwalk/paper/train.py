"""One training of one of the paper's networks, watched: a plain loop that can stop between any two updates and go on
bitwise."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sgdwalk
from sgdwalk.paper import cost, noising, record
from sgdwalk.paper.compare import Compare
from sgdwalk.paper.config import AUTHORS_GD_BATCHES, Execution, Experiment
from sgdwalk.paper.data import NUM_CLASSES, Split, remark
from sgdwalk.paper.decomposition import Decomposition
from sgdwalk.paper.models import build
from sgdwalk.paper.part_curvature import PartSpectralNorm
from sgdwalk.paper.schedules import HoldHeight, scheduler_for
from sgdwalk.paper.seeds import seed_for
from sgdwalk.paper.spectral import SpectralNorms
from sgdwalk.paper.timing import Stopwatch

SECONDS_BETWEEN_CHECKPOINTS = 20.0
VALIDATION_BATCH = 1_000
"""Validation examples that go through the model at a time; the result does not depend on it."""


def train(
    experiment: Experiment,
    data: tuple[Split, Split],
    folder: Path,
    *,
    after: Path | None = None,
    name: str | None = None,
    execution: Execution | None = None,
    resume: bool = False,
    strict: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int, float], None] = lambda num_done, num_updates, fraction: None,
) -> bool:
    """Train, watch the walk into a run folder, and say whether the training came to its end.

    Args:
        experiment: the settings that decide the numbers.
        data: training and validation examples, from ``sgdwalk.paper.data.load``.
        folder: the run folder; it must not exist unless ``resume``.
        after: the run folder of ``experiment.after``, where there is one; that training must be finished.
        name: what the run is called; the folder's name where not given.
        execution: threads, device, checkpoints.
        resume: go on from the newest checkpoint in ``folder``; the numbers are bitwise those of a run never stopped.
        strict: a measurement that fails ends the training, instead of being recorded and switched off.
        stop: asked between two updates; once True, the state is saved and the training left.
        progress: called with updates done, updates planned and the fraction of the work done.

    Returns:
        True at the end of the training, False when ``stop`` ended it.
    """
    execution = Execution() if execution is None else execution
    gd = experiment.algorithm == "gd"
    torch.set_num_threads(execution.num_threads)
    training, validation = (split.to(execution.device) for split in data)
    loader = Minibatches(experiment)

    torch.manual_seed(seed_for(experiment.seed, "initial weights"))
    model = build(experiment, tuple(training.inputs.shape[1:]), NUM_CLASSES[experiment.dataset]).to(execution.device)
    if experiment.network != "mlp":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    measured = noising.measure(experiment, model, training)
    if experiment.after is not None:
        model.load_state_dict(last_weights(experiment.after, after))
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=experiment.learning_rate,
        momentum=experiment.momentum,
        weight_decay=experiment.weight_decay,
    )
    scheduler = scheduler_for(experiment, optimizer)
    seed_everything(seed_for(experiment.seed, "training"))
    noise = noising.added(optimizer, experiment, measured)

    certifying: dict[str, Any] = {}
    if experiment.method == "certified":
        certifying = {name: getattr(experiment, name) for name in ("tolerance", "barriers", "certify")}
    with sgdwalk.watch(
        model,
        optimizer,
        cross_entropy,
        (training.inputs, training.targets),
        run=folder,
        name=folder.name if name is None else name,
        when=experiment.when() if experiment.watch else None,
        num_points=experiment.num_points,
        method=experiment.method,
        **certifying,
        batch_size=experiment.batch_size,
        measures=measures(experiment, model, training),
        steps_per_epoch=None if gd else experiment.steps_per_epoch,
        resume=resume,
        on_error="raise" if strict else "disable",
        config=record.describe(experiment, remark(experiment, training)) | noising.describe(noise, measured),
    ) as walk:
        checkpoints = Checkpointing(folder / "checkpoints", model, optimizer, scheduler, noise, execution)
        stopwatch = Stopwatch(folder)
        start = checkpoints.restore(walk) if resume else 0
        work = WorkDone(experiment, start)
        for step in range(start, experiment.num_updates):
            stopped = stop()
            if stopped or checkpoints.due(step):
                checkpoints.save(step, walk)
                stopwatch.save()
            if stopped:
                return False
            epoch, position = divmod(step, experiment.steps_per_epoch)

            optimizer.zero_grad()
            if gd:
                batch_loss = accumulate_gradient(model, walk, experiment)
                walk.note(epoch=epoch + 1)
            else:
                inputs, targets = loader.batch(epoch, position, training)
                loss = cross_entropy(model(inputs), targets)
                loss.backward()
                batch_loss = loss.item()
            walk.note(batch_loss=batch_loss)
            with stopwatch.running(cost.only_segment(experiment, step)):
                optimizer.step()
            if isinstance(scheduler, HoldHeight):
                scheduler.step(height=walk.run.steps["height"].iloc[-1] if experiment.watched(step) else math.nan)
            elif scheduler is not None:
                scheduler.step()

            if experiment.validated(step):
                loss, accuracy = validate(model, validation)
                walk.note(validation_loss=loss, validation_accuracy=accuracy)
            progress(step + 1, experiment.num_updates, work.after(step))
        checkpoints.save(experiment.num_updates, walk)
        stopwatch.save()
    return True


def last_weights(before: Experiment, folder: Path | None) -> dict[str, Tensor]:
    """The model's state at the end of a training that another goes on from."""
    if folder is None or not folder.joinpath("run.json").exists():
        raise sgdwalk.InputError(f"{folder} holds no training to go on from: run that one first.")
    run = sgdwalk.open_run(folder)
    record.check_same_training(folder, run, before)
    newest = sgdwalk.Checkpoints(folder / "checkpoints").load_newest()
    if newest is None or newest[0] != before.num_updates or not record.is_finished(run):
        raise sgdwalk.InputError(
            f"{folder} is to be gone on from and is not finished: {len(run.steps):,} of its {before.num_updates:,} "
            "updates are there, or its last checkpoint is not. Bring it to its end first."
        )
    return newest[1]["model"]


def measures(experiment: Experiment, model: nn.Module, training: Split) -> dict[str, Any]:
    """What is measured beside the segments: curvature and comparisons, where they are asked for."""
    chosen: dict[str, Any] = {}
    when = experiment.curvature_when()
    if when is not None:
        scale = AUTHORS_GD_BATCHES if experiment.algorithm == "gd" and experiment.gd_gradient == "sum" else 1
        chosen["spectral_norm"] = sgdwalk.at(when, sgdwalk.SpectralNorm(0.01, gradient_scale=scale))
        if experiment.algorithm == "sgd":
            chosen["batch_sharpness"] = sgdwalk.at(when, sgdwalk.BatchSharpness())
            chosen["noise_scale"] = sgdwalk.at(when, sgdwalk.GradientNoiseScale())
    part_when = experiment.part_curvature_when()
    if part_when is not None:
        chosen["part_spectral_norm"] = sgdwalk.at(part_when, PartSpectralNorm(experiment, model, training))
    if experiment.spectral_epochs:
        chosen["spectral_norm"] = sgdwalk.at(experiment.spectral, SpectralNorms(experiment, model, training))
    if experiment.decomposition_steps:
        chosen["equation3"] = sgdwalk.at(experiment.decomposed, Decomposition(experiment, model, training))
    if experiment.compare and experiment.watch:
        chosen["compare"] = sgdwalk.at(experiment.compare_when(), Compare(experiment, model, training))
    return chosen


def accumulate_gradient(model: nn.Module, walk: sgdwalk.Walk, experiment: Experiment) -> float:
    """Leave the full gradient in ``.grad``, batch by batch; returns the mean loss over the training examples."""
    factor = AUTHORS_GD_BATCHES if experiment.gd_gradient == "sum" else 1
    total = 0.0
    for inputs, targets in walk.batches():
        loss_sum = cross_entropy(model(inputs), targets, reduction="sum")
        (loss_sum * (factor / experiment.num_examples)).backward()
        total += loss_sum.item()
    return total / experiment.num_examples


@torch.no_grad()
def validate(model: nn.Module, validation: Split) -> tuple[float, float]:
    """Mean loss (nats per example) and accuracy on the validation examples, with BatchNorm's running statistics."""
    model.eval()
    outputs = torch.cat([model(inputs) for inputs in validation.inputs.split(VALIDATION_BATCH)])
    model.train()
    loss = cross_entropy(outputs, validation.targets).item()
    return loss, (outputs.argmax(dim=1) == validation.targets).double().mean().item()


class Minibatches:
    """The mini-batches of an epoch: order and augmentation are pure functions of seed, epoch and position."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def rows(self, epoch: int, position: int) -> Tensor:
        """Indices of the examples of one mini-batch, both arguments counted from 0."""  # (batch_size,)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_for(self._experiment.seed, "order", epoch))
            self._order = torch.randperm(self._experiment.num_examples, generator=generator)
            self._epoch = epoch
        size = self._experiment.batch_size
        return self._order[position * size : (position + 1) * size]

    def batch(self, epoch: int, position: int, training: Split) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one mini-batch, augmented where the experiment asks for it."""
        rows = self.rows(epoch, position)
        if not self._experiment.augment:
            return training.batch(rows)
        update = epoch * self._experiment.steps_per_epoch + position
        return training.batch(rows, torch.Generator().manual_seed(seed_for(self._experiment.seed, "crops", update)))


class Checkpointing:
    """Saves the state before an update, with every random stream, and puts it back."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None,
        noise: noising.Noise | None,
        execution: Execution,
    ):
        self._checkpoints = sgdwalk.Checkpoints(folder)
        self._model = model
        self._optimizer = optimizer
        self._noise = noise
        self._scheduler = scheduler
        self._every = execution.checkpoint_every
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        if self._every is not None:
            return step % self._every == 0
        return time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS

    def save(self, step: int, walk: sgdwalk.Walk) -> None:
        state = {
            "model": dict(self._model.state_dict()),
            "optimizer": self._optimizer.state_dict(),
            "walk": walk.state_dict(),
            "random": random_state(),
        }
        if self._noise is not None:
            state["noise"] = self._noise.state_dict()
        if self._scheduler is not None:
            state["scheduler"] = self._scheduler.state_dict()
        self._checkpoints.save(step, state)
        self._saved_at = time.monotonic()

    def restore(self, walk: sgdwalk.Walk) -> int:
        """Put the newest state back and return the step it stands before; the start where none was saved yet."""
        newest = self._checkpoints.load_newest()
        if newest is None:
            walk.load_state_dict(walk.state_dict())  # a walk that has not begun: rows after the start are taken back
            return 0
        step, state = newest
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        walk.load_state_dict(state["walk"])
        set_random_state(state["random"])
        if self._noise is not None:
            self._noise.load_state_dict(state["noise"])
        return step


def seed_everything(seed: int) -> None:
    """Start every global random stream from one seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy stream is the global one, which others may draw from
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Every global random stream as it stands."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_initialized() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """Put every global random stream back to where ``random_state`` found it."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


class WorkDone:
    """The fraction of a training's work that is done, where a watched update costs more than another."""

    def __init__(self, experiment: Experiment, start: int):
        self._experiment = experiment
        self._done = sum(cost.passes(experiment, step) for step in range(start))
        left = sum(cost.passes(experiment, step) for step in range(start, experiment.num_updates))
        self._total = self._done + left

    def after(self, step: int) -> float:
        """The fraction once this update is done; updates come in order."""
        self._done += cost.passes(self._experiment, step)
        return self._done / self._total
