"""The partition: which examples stand together, always the same, whatever form the data come in."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

import sgdwalk
from sgdwalk.data import evaluation_data, leaves, map_tensors

INPUTS = torch.arange(23.0).reshape(23, 1)
TARGETS = torch.arange(23)


class Rows(Dataset):
    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int):
        self.reads += 1
        return INPUTS[index], TARGETS[index]


def blocks(data) -> list[list[int]]:
    return [targets.tolist() for _, targets in data]


def make(data, batch_size=5, seed=0, batchnorm=False):
    return evaluation_data(data, batch_size, seed, batchnorm=batchnorm)


def test_a_permutation_is_cut_into_blocks_and_each_example_stands_once():
    data = make((INPUTS, TARGETS))
    assert data.sizes == [5, 5, 5, 5, 3]
    assert data.num_examples == 23
    order = list(itertools.chain(*blocks(data)))
    assert sorted(order) == list(range(23))
    assert order != list(range(23))
    for inputs, targets in data:
        torch.testing.assert_close(inputs[:, 0].long(), targets)


def test_every_form_of_the_same_data_gives_the_same_partition():
    reference = blocks(make((INPUTS, TARGETS)))
    shuffling = DataLoader(Rows(), batch_size=5, shuffle=True)
    for data in (Rows(), TensorDataset(INPUTS, TARGETS), [INPUTS, TARGETS]):
        assert blocks(make(data)) == reference
    assert blocks(make(shuffling, batch_size=None)) == reference


def test_partition_seed():
    assert blocks(make((INPUTS, TARGETS), seed=None))[0] == [0, 1, 2, 3, 4]
    assert blocks(make((INPUTS, TARGETS), seed=1)) != blocks(make((INPUTS, TARGETS), seed=0))
    assert blocks(make((INPUTS, TARGETS), seed=1)) == blocks(make((INPUTS, TARGETS), seed=1))


@pytest.mark.parametrize(("length", "sizes"), [(11, [5, 6]), (1, [1]), (6, [6]), (3, [3]), (10, [5, 5])])
def test_a_last_batch_of_one_joins_the_batch_before(length, sizes):
    assert make((INPUTS[:length], TARGETS[:length])).sizes == sizes


def test_a_loader_is_never_iterated_and_its_data_set_is_read_once_with_its_collate(monkeypatch):
    rows = Rows()
    loader = DataLoader(
        rows,
        batch_size=7,
        collate_fn=lambda items: (torch.stack([x for x, _ in items]) * 10, [int(y) for _, y in items]),
    )
    monkeypatch.setattr(DataLoader, "__iter__", lambda self: pytest.fail("the loader was iterated"))
    data = make(loader, batch_size=None)
    assert rows.reads == 23 + 20
    inputs, targets = data[0]
    assert inputs[:, 0].tolist() == [10.0 * target for target in targets]
    assert data.sizes == [7, 7, 7, 2]


def test_batch_size_overrides_the_loaders():
    assert make(DataLoader(Rows(), batch_size=7), batch_size=10).sizes == [10, 10, 3]


def test_a_random_subset_sampler_names_the_examples_that_are_trained_on():
    loader = DataLoader(Rows(), batch_size=4, sampler=SubsetRandomSampler([3, 1, 8, 20, 5]))
    assert sorted(itertools.chain(*blocks(make(loader, batch_size=None)))) == [1, 3, 5, 8, 20]


def test_batches_are_the_partition_as_given():
    batches = [(INPUTS[:4], TARGETS[:4]), (INPUTS[4:5], TARGETS[4:5])]
    data = make(batches, batch_size=None)
    assert data.prebatched
    assert data.sizes == [4, 1]
    with pytest.raises(sgdwalk.InputError, match="batches already"):
        make(batches, batch_size=4)


def test_a_loader_of_whole_batches_is_prebatched():
    rows = TensorDataset(INPUTS[:20].reshape(4, 5, 1), TARGETS[:20].reshape(4, 5))
    assert make(DataLoader(rows, batch_size=None), batch_size=None).sizes == [5, 5, 5, 5]


def test_augmentation_is_found_and_named():
    class Augmented(Rows):
        def __getitem__(self, index: int):
            return INPUTS[index] + torch.rand(1), TARGETS[index]

    with pytest.raises(sgdwalk.InputError, match="augmentation"):
        make(Augmented())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((INPUTS, TARGETS[:20]), r"unequal lengths \[23, 20\]"),
        ((INPUTS[:0], TARGETS[:0]), "empty"),
        ([], "empty"),
        (iter([(INPUTS, TARGETS)]), "read once only"),
        ((INPUTS, TARGETS.to("meta")), "several devices"),
        ((INPUTS, torch.tensor(3.0)), "without dimensions"),
    ],
)
def test_bad_data_are_refused(data, message):
    with pytest.raises(sgdwalk.InputError, match=message):
        make(data, batch_size=None)


def test_batchnorm_needs_a_batch_size_unless_batches_come():
    with pytest.raises(sgdwalk.InputError, match="BatchNorm"):
        make((INPUTS, TARGETS), batch_size=None, batchnorm=True)
    assert len(make([(INPUTS, TARGETS)], batch_size=None, batchnorm=True)) == 1
    assert make((INPUTS, TARGETS), batch_size=None).sizes == [23]


def test_fingerprint_changes_with_any_value_and_with_the_partition():
    first = make((INPUTS, TARGETS)).fingerprint()
    changed = INPUTS.clone()
    changed[17] += 1e-3
    assert first == make(Rows()).fingerprint()
    assert first != make((changed, TARGETS)).fingerprint()
    assert first != make((INPUTS, TARGETS), seed=1).fingerprint()
    assert first != make((INPUTS, TARGETS), batch_size=6).fingerprint()


def test_subset_is_random_recorded_and_repeatable():
    first, again, other = (sgdwalk.subset((INPUTS, TARGETS), 8, seed=seed) for seed in (0, 0, 1))
    assert isinstance(first, Subset)
    assert first.indices == again.indices != other.indices
    assert len(set(first.indices)) == 8
    assert make(first).description == "random probe set of 8 of 23 examples, seed 0"
    with pytest.raises(sgdwalk.InputError, match="24 examples of 23"):
        sgdwalk.subset(Rows(), 24)


def test_trees_keep_their_classes():
    class Encoding(dict):
        def __getattr__(self, name):
            return self[name]

    tree = {"a": [torch.ones(2), 3], "b": (torch.zeros(1), Encoding(x=torch.ones(1)))}
    doubled = map_tensors(lambda tensor: tensor * 2, tree)
    assert doubled["b"][1].x.item() == 2.0
    assert [leaf if isinstance(leaf, int) else leaf.tolist() for leaf in leaves(doubled)] == [
        [2.0, 2.0],
        3,
        [0.0],
        [2.0],
    ]
