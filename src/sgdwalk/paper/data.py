"""The data sets as tensors in memory, in the paper's order and normalization. Only Parquet is read, no pickle."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sgdwalk
from sgdwalk.paper.config import NUM_TRAIN, Experiment

MNIST_HUB_ID = "ylecun/mnist"
MNIST_REVISION = "77f3279092a1c1579b2250db8eafed0ad422088c"
"""The commit of the hub's copy that is read: two plain Parquet files, which a later upload cannot change."""
MNIST_VALIDATION = slice(50_000, 60_000)
"""The authors' validation images; 45,000 to 49,999 are used for nothing."""

MNIST_FIRST_LABELS = (5, 0, 4, 1, 9, 2, 1, 3, 1, 4)
"""How the original training set begins; copies in another order exist."""


@dataclass(frozen=True)
class Split:
    """Examples as tensors."""

    inputs: Tensor
    """(examples, features), float32, in [-0.5, 0.5]."""
    targets: Tensor
    """(examples,), int64."""

    def to(self, device: str) -> Split:
        """The same examples on a device."""
        return Split(self.inputs.to(device), self.targets.to(device))


def load(experiment: Experiment, data_dir: Path | None = None) -> tuple[Split, Split]:
    """The examples that an experiment trains on, and those that validate it.

    Args:
        experiment: names the data set and how many of its training examples are used.
        data_dir: for MNIST: a folder that holds ``mnist/mnist/*.parquet``; the hub's copy where not given.

    Raises:
        sgdwalk.InputError: the data cannot be had; says what to put where.
    """
    if experiment.dataset == "digits":
        return _digits(experiment.num_examples)
    return _mnist(experiment.num_examples, data_dir)


def remark(experiment: Experiment, training: Split) -> str:
    """What a reader of the numbers should know of the data; an empty text where they are the paper's."""
    if experiment.dataset == "digits":
        return "scikit-learn's bundled 8×8 digits, not the paper's data."
    first = tuple(training.targets[: len(MNIST_FIRST_LABELS)].tolist())
    if first != MNIST_FIRST_LABELS[: len(first)]:
        return "A copy of MNIST whose images are in another order: the training images are not the authors' 45,000."
    return ""


def _digits(num_train: int) -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16, (1797,)
    inputs = torch.tensor(images / 16 - 0.5, dtype=torch.float32)
    targets = torch.tensor(labels, dtype=torch.int64)
    validation = slice(NUM_TRAIN["digits"], None)
    return Split(inputs[:num_train], targets[:num_train]), Split(inputs[validation], targets[validation])


def _mnist(num_train: int, data_dir: Path | None) -> tuple[Split, Split]:
    import datasets

    table = _download_mnist() if data_dir is None else _read_mnist(data_dir / "mnist" / "mnist")
    if len(table) != 60_000 or not {"image", "label"} <= set(table.column_names):
        raise sgdwalk.InputError(
            f"MNIST's training file has {len(table):,} rows and the columns {', '.join(table.column_names)}; wanted "
            f"are 60,000 with image and label: take train-00000-of-00001.parquet of the hub's {MNIST_HUB_ID}, whole."
        )
    images = table.cast_column("image", datasets.Image(decode=False))  # still PNG bytes: only what is used is decoded
    return _as_split(images, slice(0, num_train)), _as_split(images, MNIST_VALIDATION)


def _download_mnist() -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(MNIST_HUB_ID, revision=MNIST_REVISION, split="train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise sgdwalk.InputError(
            f"MNIST could not be had from the hub ({type(error).__name__}: {str(error)[:200]}). Try again with a "
            f"network, or download {MNIST_HUB_ID} at revision {MNIST_REVISION} elsewhere, put its file "
            "train-00000-of-00001.parquet into DIR/mnist/mnist/, and pass --data-dir DIR."
        ) from error


def _read_mnist(folder: Path) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    files = sorted(str(file) for file in folder.glob("train-*.parquet"))
    if not files:
        raise sgdwalk.InputError(
            f"no file train-*.parquet in {folder}: put the one of the hub's {MNIST_HUB_ID} there, or leave --data-dir "
            "out to have it downloaded."
        )
    datasets.disable_progress_bars()  # reading a local file takes a moment; a download keeps its bar
    try:
        return datasets.load_dataset("parquet", data_files=files, split="train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise sgdwalk.InputError(
            f"{', '.join(files)} cannot be read as Parquet ({error.__cause__ or error}): "
            f"put a whole copy of the hub's {MNIST_HUB_ID} there."
        ) from error


def _as_split(images: Any, rows: slice) -> Split:
    from PIL import Image

    chosen = images.select(range(*rows.indices(len(images))))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in chosen["image"]])
    inputs = torch.tensor(pixels.reshape(len(pixels), -1), dtype=torch.float32) / 255 - 0.5  # (examples, 784)
    return Split(inputs, torch.tensor(chosen["label"], dtype=torch.int64))
