"""The data sets as tensors in memory, in the paper's order and normalization. Only Parquet is read, no pickle."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import sgdwalk
from sgdwalk.paper.augmentation import Augmentation
from sgdwalk.paper.config import IMAGE_SIZE, NUM_TRAIN, Experiment


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: Parquet files of the Hugging Face hub, at one revision for good.

    Attributes:
        hub_id: of the data set.
        revision: commit of the hub's copy that is read, which a later upload cannot change.
        folder: where the files lie, in the hub's copy and under ``--data-dir``.
        image: name of the column of images; ``label`` is that of the classes.
        size: height and width of the images, in pixels.
        rows: number of examples in each split.
        mean, deviation: of each channel, by which pixels in [0, 1] are normalized, as in the authors' code.
        padding: of random crops, in pixels.
        first_labels: how the original training set begins; copies in another order exist.
        lossless: whether the hub's images are.
        whole: number of training images in the hub's copy where a part of it serves, too.
        sha256: of a split's only file, where it is known: no mirror can serve another.
    """

    hub_id: str
    revision: str
    folder: str
    image: str
    size: int
    rows: Mapping[str, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    padding: int = 0
    first_labels: tuple[int, ...] = ()
    lossless: bool = True
    whole: int | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


SOURCES: Mapping[str, Source] = {
    "mnist": Source(
        hub_id="ylecun/mnist",
        revision="77f3279092a1c1579b2250db8eafed0ad422088c",
        folder="mnist/mnist",
        image="image",
        size=IMAGE_SIZE["mnist"],
        rows={"train": 60_000},
        mean=(0.5,),
        deviation=(1.0,),
        first_labels=(5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    ),
    "cifar10": Source(
        hub_id="uoft-cs/cifar10",
        revision="0b2714987fa478483af9968de7c934580d0bb9a2",
        folder="cifar10/plain_text",
        image="img",
        size=IMAGE_SIZE["cifar10"],
        rows={"train": 50_000},
        mean=(0.4914, 0.4822, 0.4465),
        deviation=(0.2023, 0.1994, 0.2010),
        padding=4,
        first_labels=(6, 9, 9, 4, 1, 1, 2, 7, 8, 3),
        sha256={"train": "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883"},
    ),
    "tiny-imagenet": Source(
        hub_id="zh-plus/tiny-imagenet",
        revision="5a77092c28e51558c5586e9c5eb71a7e17a5e43f",
        folder="tiny-imagenet/data",
        image="image",
        size=IMAGE_SIZE["tiny-imagenet"],
        rows={},
        mean=(0.485, 0.456, 0.406),
        deviation=(0.229, 0.224, 0.225),
        lossless=False,
        whole=100_000,
    ),
}
VALIDATION: Mapping[str, slice] = {"mnist": slice(50_000, 60_000), "cifar10": slice(45_000, 50_000)}
"""Rows of the training file that validate, as in the authors' code; MNIST's 45,000 to 49,999 are used for nothing."""
NUM_CLASSES = {"digits": 10, "mnist": 10, "cifar10": 10, "tiny-imagenet": 20}
"""Classes; of Tiny-ImageNet's 200 the first 20 are used."""
TINY_ORDER_SEED = 0
"""Of the fixed permutation of Tiny-ImageNet's training images, which the hub has class by class."""


@dataclass(frozen=True)
class Split:
    """Examples as tensors, normalized."""

    inputs: Tensor
    """(examples, features) or (examples, channels, height, width), float32."""
    targets: Tensor
    """(examples,), int64."""
    augmentation: Augmentation | None = None
    """How photographs are cropped and flipped."""
    remarks: tuple[str, ...] = ()
    """In what the files differ from the hub's."""

    def to(self, device: str) -> Split:
        """The same examples on a device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def batch(self, rows: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some examples; a generator has them augmented at random."""
        rows = rows.to(self.targets.device)
        inputs = self.inputs[rows]
        if generator is not None:
            assert self.augmentation is not None
            inputs = self.augmentation(inputs, generator)
        return inputs, self.targets[rows]


def load(experiment: Experiment, data_dir: Path | None = None) -> tuple[Split, Split]:
    """The examples that an experiment trains on, and those that validate it.

    Args:
        experiment: names the data set and how many of its training examples are used.
        data_dir: holds a folder for each data set with the hub's files; the hub's own copies where not given.

    Raises:
        sgdwalk.InputError: the data cannot be had; says what to put where.
    """
    return load_examples(wanted_of(experiment), data_dir)


class Wanted(NamedTuple):
    """All that decides which examples an experiment has: others that want the same share them."""

    dataset: str
    num_examples: int
    num_validation: int | None
    image_divisor: int


def wanted_of(experiment: Experiment) -> Wanted:
    """What an experiment wants of its data set."""
    return Wanted(*(getattr(experiment, name) for name in Wanted._fields))


def load_examples(wanted: Wanted, data_dir: Path | None = None) -> tuple[Split, Split]:
    """The examples to train on and those to validate by; as ``load``."""
    training, validation = _digits(wanted.num_examples) if wanted.dataset == "digits" else _images(wanted, data_dir)
    count = wanted.num_validation
    return training, replace(validation, inputs=validation.inputs[:count], targets=validation.targets[:count])


def remark(experiment: Experiment, training: Split) -> str:
    """What a reader of the numbers should know of the data; an empty text where they are the paper's."""
    if experiment.dataset == "digits":
        return "scikit-learn's bundled 8×8 digits, not the paper's data."
    wanted = SOURCES[experiment.dataset].first_labels
    said = list(training.remarks)
    if tuple(training.targets[: len(wanted)].tolist()) != wanted[: len(training.targets)]:
        said.append(
            f"A copy of {experiment.dataset} whose images are in another order: not the authors' training images."
        )
    return " ".join(said)


def _digits(num_train: int) -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16, (1797,)
    inputs = torch.tensor(images / 16 - 0.5, dtype=torch.float32)
    targets = torch.tensor(labels, dtype=torch.int64)
    validation = slice(NUM_TRAIN["digits"], None)
    return Split(inputs[:num_train], targets[:num_train]), Split(inputs[validation], targets[validation])


def _images(wanted: Wanted, data_dir: Path | None) -> tuple[Split, Split]:
    source = SOURCES[wanted.dataset]
    table = read(source, "train", data_dir)
    if wanted.dataset == "tiny-imagenet":
        order = np.random.default_rng(TINY_ORDER_SEED).permutation(len(table))
        labels = np.asarray(table["label"])
        chosen = order[labels[order] < NUM_CLASSES["tiny-imagenet"]]
        held_out = read(source, "valid", data_dir)
        validation_rows = np.flatnonzero(np.asarray(held_out["label"]) < NUM_CLASSES["tiny-imagenet"])
    else:
        chosen = np.arange(NUM_TRAIN[wanted.dataset])
        held_out = table
        validation_rows = np.arange(len(table))[VALIDATION[wanted.dataset]]
    divisor = wanted.image_divisor
    if len(chosen) < wanted.num_examples:
        raise sgdwalk.InputError(
            f"train of {source.hub_id} has {len(chosen):,} images of the classes that are used; wanted are "
            f"{wanted.num_examples:,}: put the hub's train-*.parquet there, whole, or lower num_train."
        )
    return (
        _as_split(source, table, chosen[: wanted.num_examples], divisor),
        _as_split(source, held_out, validation_rows[: wanted.num_validation], divisor),
    )


def read(source: Source, split: str, data_dir: Path | None) -> Any:
    """One split of a data set, its images still encoded: from a folder, or from the hub.

    Raises:
        sgdwalk.InputError: it cannot be had, or is not what the hub has; says what to put where.
    """
    import datasets

    folder = download(source, split) if data_dir is None else data_dir / source.folder
    table = _read_folder(source, split, folder)
    rows = source.rows.get(split, len(table))
    if len(table) != rows or not {source.image, "label"} <= set(table.column_names):
        raise sgdwalk.InputError(
            f"{split} of {source.hub_id} has {len(table):,} rows and the columns {', '.join(table.column_names)}; "
            f"wanted are {rows:,} with {source.image} and label: take the hub's {split}-*.parquet, whole."
        )
    return table.cast_column(source.image, datasets.Image(decode=False))  # only what is used is decoded


def download(source: Source, split: str) -> Path:
    """The folder of the hub's files in the local cache: what is missing is downloaded, what was begun is gone on with.

    Raises:
        sgdwalk.InputError: the hub cannot be reached and nothing is in the cache, or a file is not what the hub has.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    inside = source.folder.rpartition("/")[2]
    try:
        snapshot = snapshot_download(
            source.hub_id,
            repo_type="dataset",
            revision=source.revision,
            allow_patterns=[f"{inside}/{split}-*.parquet"],
        )
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise sgdwalk.InputError(
            f"{source.hub_id} could not be had from the hub ({type(error).__name__}: {str(error)[:200]}). Try again "
            f"with a network: a download goes on where it stood. Or {_elsewhere(source, split)}"
        ) from error
    folder = Path(snapshot) / inside
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise sgdwalk.InputError(
            f"the hub's {source.hub_id} has no {inside}/{split}-*.parquet in the local cache, and the hub cannot be "
            f"reached. Try again with a network, or {_elsewhere(source, split)}"
        )
    for file in files:
        check_download(file, source, split)
    return folder


def check_download(file: Path, source: Source, split: str) -> None:
    """Raise where a cached file is not what the hub has, by the sha256 known of it or by which the cache names it.

    A cache without links (on some Windows machines) names no sha256; the file's rows are checked in any case.
    """
    wanted = source.sha256.get(split, file.resolve().name)
    if len(wanted) != hashlib.sha256().digest_size * 2:
        return
    with open(file, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != wanted:
        raise sgdwalk.InputError(
            f"{file} is not what the hub has (sha256 {found}, wanted {wanted}): delete {file.resolve()} and try again, "
            f"or {_elsewhere(source, split)}"
        )


def _elsewhere(source: Source, split: str) -> str:
    return (
        f"download {source.hub_id} at revision {source.revision} elsewhere, put its {split}-*.parquet into "
        f"DIR/{source.folder}/, and pass --data-dir DIR."
    )


def _read_folder(source: Source, split: str, folder: Path) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    files = sorted(str(file) for file in folder.glob(f"{split}-*.parquet"))
    if not files:
        raise sgdwalk.InputError(
            f"no file {split}-*.parquet in {folder}: put those of the hub's {source.hub_id} there, or leave --data-dir "
            "out to have them downloaded."
        )
    datasets.disable_progress_bars()  # reading a local file takes a moment
    try:
        return datasets.load_dataset("parquet", data_files=files, split="train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise sgdwalk.InputError(
            f"{', '.join(files)} cannot be read as Parquet ({error.__cause__ or error}): "
            f"put a whole copy of the hub's {source.hub_id} there."
        ) from error


def _as_split(source: Source, table: Any, rows: np.ndarray, divisor: int) -> Split:
    from PIL import Image

    chosen = table.select(rows)
    mode = "L" if len(source.mean) == 1 else "RGB"  # some of Tiny-ImageNet's photographs are grey
    formats: set[str | None] = set()
    pixels = np.empty((len(chosen), source.size, source.size, len(source.mean)), dtype=np.uint8)
    for index, each in enumerate(chosen[source.image]):
        image = Image.open(io.BytesIO(each["bytes"]))  # reads the header alone
        if image.size != (source.size, source.size):
            raise sgdwalk.InputError(
                f"an image of {source.hub_id} has {image.width}×{image.height} pixels, wanted are {source.size} each "
                f"way: put a whole copy of the hub's files at revision {source.revision} there."
            )
        pixels[index] = np.asarray(image.convert(mode)).reshape(source.size, source.size, -1)
        formats.add(image.format)
    remarks = ()
    if source.lossless and "JPEG" in formats:
        remarks = (f"A JPEG copy of {source.hub_id}: its pixels differ slightly from the original's.",)
    if source.whole and len(table) != source.whole:
        remarks = (f"A part of {source.hub_id}, {len(table):,} of {source.whole:,} images: a download gives others.",)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if divisor > 1:
        images = torch.nn.functional.avg_pool2d(images, divisor)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (source.mean, source.deviation))
    inputs = ((images - mean) / deviation).contiguous()  # (examples, channels, height, width)
    targets = torch.tensor(chosen["label"], dtype=torch.int64)
    if mode == "L":
        return Split(inputs.flatten(1), targets, remarks=remarks)
    black = tuple(-m / d for m, d in zip(source.mean, source.deviation, strict=True))
    return Split(inputs, targets, Augmentation(source.padding // divisor, black), remarks)
