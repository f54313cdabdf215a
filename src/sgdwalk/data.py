"""The data that define the full loss, cut once into fixed evaluation batches (the partition)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from sgdwalk.errors import InputError
from sgdwalk.isolation import isolated
from sgdwalk.params import tensor_bytes

DEFAULT_BATCH_SIZE = 500
"""Evaluation batch size where no BatchNorm makes it matter: large enough to be fast, small enough to fit."""

PROBED_EXAMPLES = 20
"""Examples read twice to find random augmentation."""


class ProbeSet(Subset):
    """A recorded random subset of a data set; made by :func:`subset`."""

    def __init__(self, dataset: Any, indices: Sequence[int], seed: int):
        super().__init__(dataset, indices)
        self.seed = seed


def subset(dataset: Any, size: int, *, seed: int = 0) -> ProbeSet:
    """Pick a random probe set of ``size`` examples; what is then measured is said of that set, and recorded so.

    Args:
        dataset: a map-style data set, or a pair of tensors (inputs, targets) of equal length.
        size: how many examples to draw, without replacement.
        seed: of the draw; the same seed picks the same examples.

    Raises:
        InputError: where there are fewer than ``size`` examples.

    >>> import torch, sgdwalk
    >>> inputs, targets = torch.randn(100, 3), torch.zeros(100)
    >>> len(sgdwalk.subset((inputs, targets), 10, seed=0))
    10
    """
    if _is_tensors(dataset):
        dataset = TensorDataset(*dataset)
    length = len(dataset)
    if not 1 <= size <= length:
        raise InputError(f"subset() was asked for {size} examples of {length}: ask for 1 to {length}.")
    indices = np.random.default_rng(seed).permutation(length)[:size]
    return ProbeSet(dataset, sorted(indices.tolist()), seed)


class EvaluationData:
    """Evaluation batches, always the same and always in the same order.

    Attributes:
        sizes: examples in each batch.
        num_examples: N, their sum.
        description: what the data are, for the run's record.
    """

    def __init__(self, batches: Sequence[Any], sizes: list[int], description: str, *, prebatched: bool = False):
        self._batches = batches
        self.sizes = sizes
        self.num_examples = sum(sizes)
        self.description = description
        self.prebatched = prebatched

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]

    def __iter__(self) -> Iterator[Any]:
        return (self._batches[index] for index in range(len(self)))

    def rows(self, index: int, low: int, high: int) -> Any:
        """Examples low to high of one batch.

        Raises:
            ValueError: where a tensor of the batch has no row for each example, so that it cannot be cut.
        """
        if isinstance(self._batches, _IndexedTensors):
            return self._batches.rows(index, low, high)
        return cut_rows(self[index], self.sizes[index], low, high)

    def versions(self) -> list[int]:
        """Version counters of the data's tensors: they change where an example is written to in place."""
        trees = self._batches.tensors if isinstance(self._batches, _IndexedTensors) else self._batches
        return [leaf._version for leaf in leaves(trees) if isinstance(leaf, Tensor)]

    def fingerprint(self) -> str:
        """Digest of every value in every batch: two runs with the same one have the same data and partition."""
        digest = hashlib.blake2b(digest_size=16)
        for batch in self:
            for leaf in leaves(batch):
                if isinstance(leaf, Tensor):
                    digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
                    digest.update(tensor_bytes(leaf))
                else:
                    digest.update(repr(leaf).encode())
        return digest.hexdigest()


class _IndexedTensors(Sequence):
    """Blocks of rows of resident tensors, gathered when asked for: the data are never held twice."""

    def __init__(self, tensors: tuple[Tensor, ...], blocks: list[Tensor | slice]):
        self.tensors = tensors
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        block = self._blocks[index]
        if isinstance(block, slice):
            return tuple(tensor[block] for tensor in self.tensors)
        return tuple(tensor.index_select(0, block.to(tensor.device)) for tensor in self.tensors)

    def rows(self, index: int, low: int, high: int) -> Any:
        """Rows low to high of one block, without gathering the others."""
        block = self._blocks[index]
        if isinstance(block, slice):
            return tuple(tensor[block][low:high] for tensor in self.tensors)
        return tuple(tensor.index_select(0, block[low:high].to(tensor.device)) for tensor in self.tensors)


def evaluation_data(
    data: Any, batch_size: int | None, partition_seed: int | None, *, batchnorm: bool
) -> EvaluationData:
    """Cut ``data`` into the fixed evaluation batches that define the full loss.

    Args:
        data: a pair of tensors, a map-style data set, a DataLoader (its data set, never iterated) or a list of batches.
        batch_size: examples a batch; required with BatchNorm unless the data come in batches.
        partition_seed: of the permutation that is cut into blocks; None keeps the data's order.
        batchnorm: whether the model has BatchNorm layers that take each batch's statistics.

    Raises:
        InputError: for data that are empty, of unequal lengths, readable once only, or random; for a seed that is none.
    """
    seed = partition_seed
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise InputError(
            f"partition_seed must be an integer of at least 0, or None for the data's order; got {seed!r}."
        )
    if isinstance(data, DataLoader):
        return _from_loader(data, batch_size, partition_seed, batchnorm=batchnorm)
    if _is_tensors(data):
        return _from_tensors(tuple(data), batch_size, partition_seed, batchnorm, "tensors")
    if isinstance(data, TensorDataset):
        return _from_tensors(data.tensors, batch_size, partition_seed, batchnorm, "TensorDataset")
    if isinstance(data, (list, tuple)):
        return _from_batches(data, batch_size, "list of batches")
    if isinstance(data, (Iterator, IterableDataset, Mapping)) or not hasattr(data, "__getitem__"):
        raise InputError(
            f"data is a {type(data).__name__}, which can be read once only or has no numbered examples, but the full "
            "loss needs the same examples at every point: pass tensors, a map-style Dataset, a DataLoader over one, or "
            "list(...) of its batches."
        )
    return _from_dataset(data, list(range(_length(data))), default_collate, batch_size, partition_seed, batchnorm)


def _from_loader(
    loader: DataLoader, batch_size: int | None, partition_seed: int | None, *, batchnorm: bool
) -> EvaluationData:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        raise InputError(
            "data is a DataLoader over an IterableDataset, which has no fixed examples: pass a list of its batches."
        )
    if loader.batch_size is None and loader.batch_sampler is None:
        with isolated(torch.device("cpu")):
            collate: Callable[[Any], Any] = loader.collate_fn
            batches = [collate(dataset[index]) for index in range(_length(dataset))]
        return _from_batches(batches, batch_size, f"DataLoader over {type(dataset).__name__} of whole batches")
    indices = _sampled(getattr(loader.batch_sampler, "sampler", loader.sampler), _length(dataset))
    own = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return _from_dataset(dataset, indices, loader.collate_fn, batch_size or own, partition_seed, batchnorm)


def _sampled(sampler: Any, length: int) -> list[int]:
    """The examples that a loader's sampler draws from: a training split may be named by the sampler alone."""
    if isinstance(sampler, SubsetRandomSampler):
        return sorted(sampler.indices)
    if isinstance(sampler, (list, tuple, range)):
        return sorted({int(index) for index in sampler})
    if hasattr(sampler, "__len__") and len(sampler) != length and not hasattr(sampler, "num_samples"):
        raise InputError(
            f"The DataLoader's {type(sampler).__name__} draws {len(sampler)} of {length} examples, and which is not "
            "known: pass torch.utils.data.Subset(dataset, indices) as data."
        )
    return list(range(length))


def _from_tensors(
    tensors: tuple[Tensor, ...], batch_size: int | None, partition_seed: int | None, batchnorm: bool, kind: str
) -> EvaluationData:
    if any(tensor.dim() == 0 for tensor in tensors):
        raise InputError("data holds a tensor without dimensions: examples are counted along the first dimension.")
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise InputError(
            f"data holds tensors of unequal lengths {lengths}: inputs and targets need one row for each example."
        )
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise InputError(
            f"data holds tensors on several devices ({', '.join(sorted(devices))}): put inputs and targets on one."
        )
    blocks = _partition(lengths[0], batch_size, partition_seed, batchnorm)
    sizes = [len(block) for block in blocks]
    rows: list[Tensor | slice]
    if partition_seed is None:
        bounds = [0, *itertools.accumulate(sizes)]
        rows = [slice(low, high) for low, high in itertools.pairwise(bounds)]
    else:
        rows = [torch.from_numpy(block).to(tensors[0].device) for block in blocks]
    shapes = " and ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)
    return EvaluationData(_IndexedTensors(tensors, rows), sizes, f"{kind} {shapes}")


def _from_dataset(
    dataset: Any,
    indices: list[int],
    collate: Callable[[list[Any]], Any],
    batch_size: int | None,
    partition_seed: int | None,
    batchnorm: bool,
) -> EvaluationData:
    blocks = _partition(len(indices), batch_size, partition_seed, batchnorm)
    with isolated(torch.device("cpu")):
        examples = [dataset[index] for index in indices]
        for position, index in enumerate(indices[:PROBED_EXAMPLES]):
            if not same(examples[position], dataset[index]):
                raise InputError(
                    f"Example {index} of data differs when it is read a second time, as random augmentation does; the "
                    "full loss needs fixed examples: pass the data set without augmentation (training may keep it)."
                )
        batches = [collate([examples[position] for position in block]) for block in blocks]
    kind = type(dataset).__name__
    if isinstance(dataset, ProbeSet):
        kind = f"random probe set of {len(dataset)} of {len(dataset.dataset)} examples, seed {dataset.seed}"  # pyright: ignore[reportArgumentType]
    return EvaluationData(batches, [len(block) for block in blocks], kind)


def _from_batches(batches: Sequence[Any], batch_size: int | None, kind: str) -> EvaluationData:
    if batch_size is not None:
        raise InputError(
            f"batch_size={batch_size} was given, but data come in batches already, which are the partition: "
            "leave batch_size out."
        )
    if not batches:
        raise InputError("data is empty: the full loss needs at least one example.")
    for index, batch in enumerate(batches):
        if any(isinstance(leaf, Tensor) and leaf.dim() == 0 for leaf in leaves(batch)):
            raise InputError(
                f"Element {index} of data holds a tensor without dimensions, as an example does and a batch does not: "
                "wrap a list of examples in a Dataset, or give it to a DataLoader."
            )
    sizes = [batch_length(batch) for batch in batches]
    if 0 in sizes:
        raise InputError(f"Batch {sizes.index(0)} of data holds no example: leave it out.")
    return EvaluationData(list(batches), sizes, kind, prebatched=True)


def _partition(length: int, batch_size: int | None, seed: int | None, batchnorm: bool) -> list[np.ndarray]:
    """Blocks of one permutation; a last block of one example joins the one before."""
    if length == 0:
        raise InputError("data is empty: the full loss needs at least one example.")
    if batch_size is None:
        if batchnorm:
            raise InputError(
                "The model has BatchNorm layers, so the full loss depends on the evaluation batches: pass batch_size, "
                "for example that of training."
            )
        batch_size = DEFAULT_BATCH_SIZE
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be an integer of at least 1, got {batch_size!r}.")
    order = np.arange(length) if seed is None else np.random.default_rng(seed).permutation(length)
    bounds = list(range(0, length, batch_size))
    if len(bounds) > 1 and length - bounds[-1] == 1:
        bounds.pop()
    return np.split(order, bounds[1:])


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError as error:
        raise InputError(
            f"data is a {type(dataset).__name__} without a length: pass a map-style Dataset (with __len__ and "
            "__getitem__), tensors, or a list of batches."
        ) from error


def _is_tensors(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) > 0 and all(isinstance(part, Tensor) for part in data)


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists and mappings, in order."""
    # Tuples before mappings, which take longer to tell.
    if isinstance(tree, (tuple, list)):
        for part in tree:
            if isinstance(part, Tensor):
                yield part
            else:
                yield from leaves(part)
    elif isinstance(tree, Mapping):
        for key in tree:
            yield from leaves(tree[key])
    else:
        yield tree


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tree with ``function`` applied to each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, part) for part in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(function, part) for part in tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(function, value) for key, value in tree.items()}
        return mapped if type(tree) is dict else _like(tree, mapped)
    return tree


def _like(tree: Mapping, mapped: dict) -> Any:
    """Mapping classes with attribute access (Hugging Face's BatchEncoding and ModelOutput) stay what they are."""
    try:
        return type(tree)(mapped)  # pyright: ignore[reportCallIssue]
    except TypeError:
        return type(tree)(**mapped)


def cut_rows(tree: Any, size: int, low: int, high: int) -> Any:
    """Rows low to high of every tensor of the tree; ValueError where one has no row for each example."""

    def cut(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or len(tensor) != size:
            raise ValueError
        return tensor[low:high]

    return map_tensors(cut, tree)


def batch_length(batch: Any) -> int:
    """Examples in a batch: the length of its first tensor."""
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return len(leaf)
    raise InputError(f"A batch of type {type(batch).__name__} holds no tensor, so its examples cannot be counted.")


def same(first: Any, second: Any) -> bool:
    """Whether two trees hold the same values; NaN equals NaN."""
    for one, other in itertools.zip_longest(leaves(first), leaves(second)):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.shape != other.shape or not torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)):
                return False
        elif isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
            if not np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind in "fc"):
                return False
        elif one is not other and one != other and (one == one or other == other):
            return False
    return True
