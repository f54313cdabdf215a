"""Data sets: order, split, normalization, and what is said where they cannot be had."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import sgdwalk
from sgdwalk.paper import data
from sgdwalk.paper.config import Experiment


def test_digits_are_scikit_learns_in_order_and_normalized():
    training, validation = data.load(Experiment())
    images, labels = load_digits(return_X_y=True)
    assert training.inputs.shape == (1500, 64)
    assert validation.inputs.shape == (297, 64)
    torch.testing.assert_close(training.inputs[7].double(), torch.tensor(images[7] / 16 - 0.5))
    assert torch.cat([training.targets, validation.targets]).tolist() == labels.tolist()
    assert training.inputs.min() == -0.5
    assert training.inputs.max() == 0.5


def test_num_train_takes_the_first_examples_and_leaves_validation_alone():
    training, validation = data.load(Experiment(num_train=200))
    whole, same = data.load(Experiment())
    assert torch.equal(training.inputs, whole.inputs[:200])
    assert torch.equal(validation.inputs, same.inputs)


def write_mnist(folder, num_images=60_000):
    """A file in the hub's layout whose image i shows the number i in its first two pixels."""
    encoded = []
    for i in range(num_images):
        pixels = np.zeros((28, 28), dtype=np.uint8)
        pixels[0, :2] = i % 256, i // 256
        encoded.append(pixels)
    images = [{"bytes": png(pixels), "path": None} for pixels in encoded]
    (folder / "mnist" / "mnist").mkdir(parents=True)
    file = folder / "mnist" / "mnist" / "train-00000-of-00001.parquet"
    table = pyarrow.table({"image": images, "label": [i % 10 for i in range(num_images)]})
    pyarrow.parquet.write_table(table, file)
    return file


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", compress_level=0)
    return file.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_mnist_trains_on_the_first_images_and_validates_on_50000_to_59999(tmp_path):
    write_mnist(tmp_path)
    training, validation = data.load(Experiment(dataset="mnist", num_train=1000), tmp_path)

    def numbers(split):
        pixels = ((split.inputs[:, :2] + 0.5) * 255).round().int()
        return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()

    assert numbers(training) == list(range(1000))
    assert numbers(validation) == list(range(50_000, 60_000))
    assert training.targets.tolist() == [i % 10 for i in range(1000)]
    assert training.inputs.dtype == torch.float32
    assert training.inputs[:, 2:].eq(-0.5).all()


def test_a_folder_without_mnist_says_what_to_put_where(tmp_path):
    with pytest.raises(
        sgdwalk.InputError, match=r"no file train-\*\.parquet in .*mnist/mnist: put the one of the hub's"
    ):
        data.load(Experiment(dataset="mnist"), tmp_path)


def test_a_part_of_mnist_is_refused(tmp_path):
    write_mnist(tmp_path, num_images=30)
    with pytest.raises(sgdwalk.InputError, match="30 rows and the columns image, label; wanted are 60,000"):
        data.load(Experiment(dataset="mnist"), tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"cos\nsystem\n(S'touch owned'\ntR.", b"PAR1"], ids=["empty", "pickle", "cut"]
)
def test_what_is_no_parquet_is_named_and_never_executed(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mnist" / "mnist" / "train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(sgdwalk.InputError, match=r"train-00000-of-00001\.parquet cannot be read as Parquet"):
        data.load(Experiment(dataset="mnist"), tmp_path)
    assert not (tmp_path / "owned").exists()


def test_an_unreachable_hub_says_what_to_place_where(monkeypatch):
    import datasets

    def unreachable(*arguments, **options):
        assert arguments == (data.MNIST_HUB_ID,)
        assert options["revision"] == data.MNIST_REVISION
        raise ConnectionError("Couldn't reach 'ylecun/mnist' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(sgdwalk.InputError) as caught:
        data.load(Experiment(dataset="mnist"))
    for word in (data.MNIST_REVISION, "train-00000-of-00001.parquet", "DIR/mnist/mnist/", "--data-dir DIR"):
        assert word in str(caught.value)


def test_a_copy_in_another_order_is_remarked():
    def split(labels):
        return data.Split(torch.zeros(len(labels), 784), torch.tensor(labels))

    mnist = Experiment(dataset="mnist")
    assert data.remark(mnist, split([5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5])) == ""
    assert "another order" in data.remark(mnist, split([3, 7, 1, 8, 1, 5, 0, 8, 7, 1]))
    assert "not the paper's data" in data.remark(Experiment(), split([0, 1, 2]))


@pytest.mark.data
@pytest.mark.skipif("SGDWALK_DATA_DIR" not in os.environ, reason="SGDWALK_DATA_DIR names no folder of real data sets")
def test_real_mnist():
    training, validation = data.load(Experiment(dataset="mnist"), Path(os.environ["SGDWALK_DATA_DIR"]))
    assert training.inputs.shape == (45_000, 784)
    assert validation.inputs.shape == (10_000, 784)
    assert sorted(set(training.targets.tolist())) == list(range(10))
    assert training.inputs.mean() + 0.5 == pytest.approx(0.1307, abs=0.001)  # the known mean brightness
