"""What one training is: settings that a person can read and a program can hash, checked before anything starts."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import tyro

import sgdwalk
from sgdwalk.paper.checks import check_choice, check_count, check_number

NUM_TRAIN = {"digits": 1_500, "mnist": 45_000, "cifar10": 45_000, "tiny-imagenet": 10_000}
"""Training examples of each data set: of scikit-learn's 1,797 digits the first 1,500, of MNIST and CIFAR-10 the first
45,000 (the authors' code), of Tiny-ImageNet the images of its first 20 classes (the paper: "a subset")."""
NUM_VALIDATION = {"digits": 297, "mnist": 10_000, "cifar10": 5_000, "tiny-imagenet": 1_000}
"""Validation examples of each."""
IMAGE_SIZE = {"digits": 8, "mnist": 28, "cifar10": 32, "tiny-imagenet": 64}
"""Height and width of the images, in pixels."""
SCHEDULES = ("constant", "cyclical", "trapezoid", "stepwise", "hold")
COLOUR = ("cifar10", "tiny-imagenet")
"""Data sets of colour photographs, which convolutions and augmentation are for."""

STAGES = 3
"""A stepwise schedule cuts the training into so many equal stages."""
ANNEALED = 0.5
"""A trapezoid, and a schedule that holds a height, anneal the learning rate over this last part of the training."""

AUTHORS_GD_BATCHES = 9
"""The authors' code adds up the mean gradients of nine mini-batches of 5,000 of the 45,000 examples."""
FINE_EVERY = 5
"""Of the segments that are compared, every fifth is measured at 100 intervals."""
COMPARISONS = ("authors", "eval", "subset", "fine")
"""The ways to measure a segment beside the clean one."""
SAME_AS_BEFORE = (
    *("dataset", "num_train", "image_divisor"),
    *("network", "hidden", "blocks", "width_divisor", "dropout", "seed"),
)
"""What a training shares with the one whose weights it goes on from."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The settings that decide a training's numbers: two runs are the same training if and only if these are equal.

    Raises ``sgdwalk.InputError`` where a setting cannot be meant.

    >>> experiment = Experiment(algorithm="sgd", batch_size=100, epochs=2)
    >>> experiment.steps_per_epoch, experiment.num_updates
    (15, 30)
    """

    dataset: Literal["digits", "mnist", "cifar10", "tiny-imagenet"] = "digits"
    """``digits``: scikit-learn's bundled 8×8 digits. The others are the paper's."""
    num_train: int | None = None
    """Train on this many of the data set's training examples, the first ones; all of them where not given."""
    num_validation: int | None = None
    """Validate on this many of the data set's validation examples, the first ones; all of them where not given."""
    image_divisor: int = 1
    """Shrink images by averaging squares of so many pixels a side; 1 leaves them as they are."""
    network: Literal["mlp", "vgg11", "resnet"] = "mlp"
    """``mlp``: linear layers with BatchNorm. ``vgg11`` and ``resnet``: the paper's convolutional networks, for cifar10
    and tiny-imagenet."""
    hidden: tuple[int, ...] = (500, 350)
    """mlp: width of each hidden layer; the paper's has 500 and 350."""
    blocks: int = 9
    """resnet: residual blocks in each of the three stages, a depth of 6 · blocks + 2; 9 make ResNet-56."""
    width_divisor: int = 1
    """vgg11, resnet: divide the channels of every convolution, and the units of hidden layers, by this."""
    dropout: float = 0.0
    """mlp: probability with which a hidden unit is dropped in training; the paper uses none."""
    augment: bool = False
    """Train sgd on random crops (padding of 4 pixels) and horizontal flips, as the authors' code does on photographs.
    The full loss is always that of the images as they are."""
    algorithm: Literal["gd", "sgd"] = "sgd"
    """``gd``: full-batch gradient descent, one update a pass over the data. ``sgd``: one update a mini-batch."""
    gd_gradient: Literal["mean", "sum"] = "mean"
    """``mean``: gd follows the mean gradient. ``sum``: nine times that, as the authors' public code does, which adds up
    the mean gradients of nine mini-batches."""
    learning_rate: float = 0.1
    """Learning rate η, fixed where no schedule moves it; the paper's is 0.1."""
    schedule: Literal["constant", "cyclical", "trapezoid", "stepwise", "hold"] = "constant"
    """``cyclical``: up to ``peak_rate`` and back in a line, ``cycles`` times. ``trapezoid``: up as in the first of so
    many cycles, flat, and over the last half of the training back in a line. ``stepwise``: times ``decay`` after each
    third of the training. ``hold``: after each measured update such that the height above the valley floor comes to
    ``target_height``, ``peak_rate`` at most, and over the last half back in a line, never up. All but ``stepwise``
    start and end at ``learning_rate``."""
    peak_rate: float | None = None
    """cyclical, trapezoid, hold: highest learning rate."""
    cycles: int = 1
    """cyclical, trapezoid: cycles that the training is as long as."""
    decay: float = 0.1
    """stepwise: factor of the learning rate after each third."""
    target_height: float | None = None
    """hold: the height of Table 2 that is held, nats per example."""
    momentum: float = 0.0
    """Heavy-ball momentum; the paper uses none."""
    weight_decay: float = 0.0
    """L2 coefficient λ, which adds λθ to the gradient that updates the parameters; the authors' code has 1e-4."""
    batch_size: int = 100
    """Examples in a mini-batch. The full loss is evaluated in batches of this size too, so that BatchNorm sees there
    what it sees in training."""
    epochs: int = 10
    """Passes over the training examples."""
    steps: int | None = None
    """Stop after this many updates, if the epochs have not ended before."""
    seed: int = 0
    """Decides initial weights, order of the examples and dropout."""
    watch: bool = True
    """Measure segments; False leaves the cheap columns (cosine, distance, norms)."""
    watch_every: int = 1
    """Measure the segment of every k-th update."""
    watch_first: int | None = None
    """Of each watched epoch, measure only the first updates, this many (gd: of the whole run)."""
    watch_epochs: tuple[int, ...] = ()
    """Measure only in these epochs, counted from 1 (sgd only: an epoch of gd is one update)."""
    num_points: int = 10
    """Intervals of a segment: the full loss is had at α = 0, 1/num_points, …, 1. The paper's is 10."""
    method: Literal["exact", "certified"] = "exact"
    """``exact``: evaluate every point of a segment over all training examples. ``certified``: the ends so, what lies
    between on samples, each loss with a 95 % interval. Both watch the same training."""
    tolerance: float = 0.05
    """certified: the height's half-width that is accepted, as a share of the height."""
    barriers: Literal["estimated", "exact"] = "estimated"
    """certified: ``exact`` evaluates the points that leave a barrier undecided, ``estimated`` leaves it so."""
    certify: Literal["height", "curve"] = "height"
    """certified: of what ``tolerance`` is, of the height or of every loss along a segment."""
    curvature_every: int | None = None
    """Measure spectral norm, batch sharpness and gradient noise scale at every k-th update; never where not given."""
    curvature_first: int | None = None
    """Measure curvature only in the first updates of epoch 1, this many (gd: of the whole run)."""
    curvature_examples: int | None = None
    """Measure the spectral norm over the first training examples, this many, at the first update of each epoch of
    watch_epochs (sgd only); never where not given."""
    spectral_epochs: tuple[int, ...] = ()
    """Measure the spectral norm before the last update of these epochs, counted from 1, with BatchNorm in train mode
    and with its running statistics."""
    spectral_examples: int | None = None
    """Over this many of the training examples, the first ones; all of them where not given."""
    spectral_compare_epochs: tuple[int, ...] = ()
    """In these of the spectral epochs also over all training examples, and by the authors' power iteration."""
    decomposition_steps: tuple[int, ...] = ()
    """Write out both terms of the paper's Equation 3 before these updates, counted from 0; small networks only."""
    compare: tuple[Literal["authors", "eval", "subset", "fine"], ...] = ()
    """Measure some watched segments in other ways too, side by side. ``authors``: every point over a fresh random
    partition of freshly augmented images, as the authors' code does, and θ_t four more times. ``eval``: with
    BatchNorm's running statistics. ``subset``: over a quarter and a sixteenth of the evaluation batches. ``fine``: at
    100 intervals, every fifth of these segments."""
    compare_epochs: tuple[int, ...] = ()
    """Compare in these epochs only, of those that are watched (sgd only)."""
    compare_first: int = 20
    """Of each of them, compare the first updates, this many (gd: of the whole run)."""
    validate_every: int = 1
    """Validate after every k-th epoch (gd: update), and after the last update."""
    noise_factor: float = 0.0
    """Add isotropic noise to every gradient: this share of the largest gradient variance at the initial weights; 0 adds
    none. The paper's are 0.1 and 0.05."""
    noise_reading: Literal["variance", "std"] = "variance"
    """What that share is: the noise's ``variance``, as the paper says, or its standard deviation, ``std``, as which the
    authors' public code uses it."""
    after: Annotated[Experiment | None, tyro.conf.Suppress] = None
    """Go on from where this training ended: from its weights, as a new walk. Of the same network and data."""

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, NUM_TRAIN)
        check_choice("algorithm", self.algorithm, ("gd", "sgd"))
        check_choice("gd_gradient", self.gd_gradient, ("mean", "sum"))
        check_count("num_train", self.num_train, 2, NUM_TRAIN[self.dataset])
        check_count("batch_size", self.batch_size, 2, self.num_examples)
        check_count("epochs", self.epochs, 1)
        check_count("steps", self.steps, 1)
        check_count("seed", self.seed, 0)
        check_count("watch_every", self.watch_every, 1)
        check_count("watch_first", self.watch_first, 1)
        check_count("num_points", self.num_points, 2)
        check_choice("method", self.method, ("exact", "certified"))
        check_choice("barriers", self.barriers, ("estimated", "exact"))
        check_choice("certify", self.certify, ("height", "curve"))
        if not 0 < self.tolerance < 1:
            raise sgdwalk.InputError(
                f"tolerance must be a share of the height between 0 and 1; got {self.tolerance!r}."
            )
        if self.method == "exact":
            for name in ("tolerance", "barriers", "certify"):
                if getattr(self, name) != getattr(type(self), name):
                    raise sgdwalk.InputError(
                        f"{name}={getattr(self, name)!r} is for method=certified; method=exact measures every loss: "
                        f"add --method certified, or leave out {name}."
                    )
        check_count("curvature_every", self.curvature_every, 1)
        check_count("curvature_first", self.curvature_first, 1)
        check_count("curvature_examples", self.curvature_examples, 2, self.num_examples)
        check_count("compare_first", self.compare_first, 1)
        check_choice("network", self.network, ("mlp", "vgg11", "resnet"))
        check_count("num_validation", self.num_validation, 1)
        check_count("image_divisor", self.image_divisor, 1)
        check_count("blocks", self.blocks, 1)
        check_count("width_divisor", self.width_divisor, 1, 16)
        for comparison in self.compare:
            check_choice("compare: a comparison", comparison, COMPARISONS)
        self._check_images()
        self._check_noise_and_start()
        self._check_schedule()
        for width in self.hidden:
            check_count("hidden: a width", width, 1)
        for epoch in self.watch_epochs:
            check_count("watch_epochs: an epoch", epoch, 1, self.epochs)
        for epoch in self.compare_epochs:
            check_count("compare_epochs: an epoch", epoch, 1, self.epochs)
        self._check_curvature()
        check_number("learning_rate", self.learning_rate, 0.0, math.inf)
        check_number("weight_decay", self.weight_decay, 0.0, math.inf)
        check_number("momentum", self.momentum, 0.0, 1.0)
        check_number("dropout", self.dropout, 0.0, 1.0)
        if self.algorithm == "gd" and self.watch_epochs:
            raise sgdwalk.InputError(
                f"watch_epochs={self.watch_epochs} with algorithm=gd, where an epoch is one update: "
                "use watch_first or watch_every."
            )
        if self.watch and not any(self.watched(step) for step in range(self.num_updates)):
            raise sgdwalk.InputError(
                f"none of the {self.num_updates} updates is watched under {self.when()}: widen watch_every, "
                "watch_first or watch_epochs, or train longer."
            )

    def _check_images(self) -> None:
        size, divisor = IMAGE_SIZE[self.dataset], self.image_divisor
        if self.network != "mlp" and self.dataset not in COLOUR:
            raise sgdwalk.InputError(
                f"network={self.network} is for {' and '.join(COLOUR)}; {self.dataset} takes network=mlp."
            )
        if self.augment and self.dataset not in COLOUR:
            raise sgdwalk.InputError(f"augment is for {' and '.join(COLOUR)}, not for {self.dataset}.")
        if size % divisor:
            raise sgdwalk.InputError(
                f"image_divisor={divisor} does not divide the {size} pixels of an image of {self.dataset}."
            )
        if self.network == "vgg11" and self.image_size not in (32, 64):
            raise sgdwalk.InputError(
                f"vgg11 takes images of 32 or 64 pixels; {self.dataset} with image_divisor={divisor} has "
                f"{self.image_size}."
            )

    def _check_noise_and_start(self) -> None:
        check_count("validate_every", self.validate_every, 1)
        check_choice("noise_reading", self.noise_reading, ("variance", "std"))
        check_number("noise_factor", self.noise_factor, 0.0, math.inf)
        if self.noise_factor and self.num_examples < 2 * AUTHORS_GD_BATCHES:
            raise sgdwalk.InputError(
                f"noise_factor={self.noise_factor} with {self.num_examples} training examples: the gradient's variance "
                f"is that between {AUTHORS_GD_BATCHES} mini-batches, so take at least {2 * AUTHORS_GD_BATCHES}."
            )
        if self.after is not None:
            unlike = [name for name in SAME_AS_BEFORE if getattr(self, name) != getattr(self.after, name)]
            if unlike:
                raise sgdwalk.InputError(
                    f"after names a training with another {', another '.join(unlike)}: only one of the same network "
                    "and data can be gone on from."
                )

    @property
    def lineage(self) -> tuple[Experiment, ...]:
        """The trainings that lead to this one, the first to be run first, and itself last."""
        return (self,) if self.after is None else (*self.after.lineage, self)

    def _check_curvature(self) -> None:
        for epoch in self.spectral_epochs:
            check_count("spectral_epochs: an epoch", epoch, 1, self.epochs)
        for epoch in self.spectral_compare_epochs:
            check_count("spectral_compare_epochs: an epoch", epoch, 1, self.epochs)
        check_count("spectral_examples", self.spectral_examples, 2, self.num_examples)
        for step in self.decomposition_steps:
            check_count("decomposition_steps: a step", step, 0, self.num_updates - 1)
        if self.spectral_epochs and self.curvature_every is not None:
            raise sgdwalk.InputError(
                "spectral_epochs and curvature_every fill the same column, spectral_norm: choose one of them."
            )

    def _check_schedule(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_count("cycles", self.cycles, 1)
        check_number("decay", self.decay, 0.0, 1.0)
        settings = {"peak_rate": ("cyclical", "trapezoid", "hold"), "target_height": ("hold",)}
        for name, schedules in settings.items():
            value = getattr(self, name)
            if (value is None) == (self.schedule in schedules):
                needs = "needs" if value is None else "takes no"
                raise sgdwalk.InputError(
                    f"schedule={self.schedule} {needs} {name}, which is for {', '.join(schedules)}."
                )
        if self.peak_rate is not None and not 0 < self.learning_rate <= self.peak_rate < math.inf:
            raise sgdwalk.InputError(
                f"peak_rate must be finite and at least learning_rate={self.learning_rate}, which must be above 0; got "
                f"{self.peak_rate!r}."
            )
        if self.target_height is not None and not 0 < self.target_height < math.inf:
            raise sgdwalk.InputError(f"target_height must be above 0 and finite; got {self.target_height!r}.")
        if self.schedule == "hold" and not self.watch:
            raise sgdwalk.InputError("schedule=hold follows the heights that are measured: it needs watch=True.")

    @property
    def image_size(self) -> int:
        """Height and width of the images that enter the network, in pixels."""
        return IMAGE_SIZE[self.dataset] // self.image_divisor

    @property
    def num_examples(self) -> int:
        """N, the number of training examples, over which the full loss is a mean."""
        return NUM_TRAIN[self.dataset] if self.num_train is None else self.num_train

    @property
    def steps_per_epoch(self) -> int:
        """Updates in a pass over the data; the N mod batch_size examples left over sit that epoch out."""
        return 1 if self.algorithm == "gd" else self.num_examples // self.batch_size

    @property
    def num_updates(self) -> int:
        """Updates in the whole training."""
        planned = self.epochs * self.steps_per_epoch
        return planned if self.steps is None else min(planned, self.steps)

    @property
    def validation_size(self) -> int:
        """Validation examples."""
        there = NUM_VALIDATION[self.dataset]
        return there if self.num_validation is None else min(self.num_validation, there)

    def validated(self, step: int) -> bool:
        """Whether the model is validated after this update."""
        epoch, position = divmod(step, self.steps_per_epoch)
        epoch_ends = position == self.steps_per_epoch - 1 and (epoch + 1) % self.validate_every == 0
        return epoch_ends or step == self.num_updates - 1

    def when(self) -> sgdwalk.When:
        """The steps whose segments are measured, whatever ``watch`` says."""
        chosen = sgdwalk.every(self.watch_every)
        if self.algorithm == "gd":
            return chosen if self.watch_first is None else chosen & sgdwalk.first_steps(self.watch_first)
        epochs = self.watch_epochs or tuple(range(1, self.epochs + 1))
        if self.watch_first is not None:
            chosen &= sgdwalk.first_steps(self.watch_first, epochs=epochs)
        elif self.watch_epochs:
            chosen &= sgdwalk.in_epochs(*epochs)
        return chosen.bind(self.steps_per_epoch)

    def watched(self, step: int) -> bool:
        """Whether the segment of this update is measured."""
        return self.watch and self.when()(step)

    def curvature_when(self) -> sgdwalk.When | None:
        """The steps at which curvature is measured, or None."""
        if self.curvature_every is None:
            return None
        chosen = sgdwalk.every(self.curvature_every)
        if self.curvature_first is not None:
            chosen &= sgdwalk.first_steps(self.curvature_first)
        return chosen.bind(None if self.algorithm == "gd" else self.steps_per_epoch)

    def part_curvature_when(self) -> sgdwalk.When | None:
        """The steps at which the spectral norm over a part of the examples is measured, or None."""
        if self.curvature_examples is None or not self.watch_epochs:
            return None
        return sgdwalk.first_steps(1, epochs=self.watch_epochs).bind(self.steps_per_epoch)

    def spectral(self, step: int) -> bool:
        """Whether ``spectral_epochs`` has the spectral norm measured at this update."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return position == self.steps_per_epoch - 1 and epoch + 1 in self.spectral_epochs

    def spectral_compared(self, step: int) -> bool:
        """Whether it is measured in other ways too."""
        return self.spectral(step) and step // self.steps_per_epoch + 1 in self.spectral_compare_epochs

    def decomposed(self, step: int) -> bool:
        """Whether Equation 3 is written out at this update."""
        return step in self.decomposition_steps

    def compare_when(self) -> sgdwalk.When:
        """The steps whose segments are measured in other ways too, where any are named."""
        if self.algorithm == "gd":
            return self.when() & sgdwalk.first_steps(self.compare_first)
        epochs = self.compare_epochs or self.watch_epochs or tuple(range(1, self.epochs + 1))
        return (self.when() & sgdwalk.first_steps(self.compare_first, epochs=epochs)).bind(self.steps_per_epoch)

    def compared(self, step: int) -> tuple[str, ...]:
        """The other ways in which this update's segment is measured."""
        if not self.compare or not self.watched(step) or not self.compare_when()(step):
            return ()
        position = step if self.algorithm == "gd" else step % self.steps_per_epoch
        return tuple(each for each in self.compare if each != "fine" or position % FINE_EVERY == 0)

    def to_dict(self) -> dict[str, Any]:
        """The settings in JSON's types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Experiment:
        """The experiment whose ``to_dict`` this is."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        if plain.get("after") is not None:
            plain["after"] = cls.from_dict(plain["after"])
        return cls(**plain)

    @property
    def settings_hash(self) -> str:
        """Ten hexadecimal digits that tell these settings from all others: figures share trainings by it.

        Only settings that differ from their defaults count: a setting that is added to this class, with a default
        under which all stays as it was, leaves finished trainings what they are.
        """
        chosen = {name: value for name, value in self.to_dict().items() if value != _defaults()[name]}
        if self.after is not None:
            chosen["after"] = self.after.settings_hash
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:10]

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """Where stored settings differ from these, one line a setting: what is stored, what was asked."""
        asked, stored = self.to_dict(), _defaults() | dict(settings)
        if stored["after"] is not None:
            stored["after"] = Experiment.from_dict(stored["after"]).to_dict()
        return [
            f"{name}: {stored[name]!r} in the run, {asked.get(name)!r} now"
            for name in sorted(stored)
            if stored[name] != asked.get(name)
        ]


@functools.cache
def _defaults() -> dict[str, Any]:
    return Experiment().to_dict()


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is carried out: what changes its speed and safety and is not meant to change its numbers."""

    num_threads: int = 1
    """torch's threads. One by default: then results do not depend on how many cores there are."""
    device: str = "cpu"
    """Where to train: ``cpu``, ``cuda``, ``cuda:1``, …"""
    checkpoint_every: int | None = None
    """Updates between two checkpoints; by default one whenever 20 seconds have passed since the last."""

    def __post_init__(self) -> None:
        check_count("num_threads", self.num_threads, 1)
        check_count("checkpoint_every", self.checkpoint_every, 1)

    def to_dict(self) -> dict[str, Any]:
        """The settings in JSON's types."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
