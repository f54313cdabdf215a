"""Data sets: order, split, normalization, and what is said where they cannot be had."""

import hashlib
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
    with pytest.raises(sgdwalk.InputError, match=r"no file train-\*\.parquet in .*mnist/mnist: put those of the hub's"):
        data.load(Experiment(dataset="mnist"), tmp_path)


def test_a_part_of_mnist_is_refused(tmp_path):
    write_mnist(tmp_path, num_images=30)
    with pytest.raises(sgdwalk.InputError, match="has 30 rows and the columns image, label; wanted are 60,000"):
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


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "tiny-imagenet"])
def test_an_unreachable_hub_says_what_to_place_where(monkeypatch, dataset):
    import huggingface_hub

    source = data.SOURCES[dataset]

    def unreachable(hub_id, **options):
        assert hub_id == source.hub_id
        assert options["revision"] == source.revision
        assert options["repo_type"] == "dataset"
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(sgdwalk.InputError) as caught:
        data.load(Experiment(dataset=dataset))
    for word in (
        source.revision,
        "train-*.parquet",
        f"DIR/{source.folder}/",
        "--data-dir DIR",
        "goes on where it stood",
    ):
        assert word in str(caught.value)


def cached(monkeypatch, tmp_path, content, name=None):
    """A local cache as the hub's library lays it out: a link to a file that is named by its content's sha256."""
    import huggingface_hub

    blob = tmp_path / "blobs" / (name or hashlib.sha256(content).hexdigest())
    blob.parent.mkdir()
    blob.write_bytes(content)
    link = tmp_path / "snapshot" / "mnist" / "train-00000-of-00001.parquet"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshot"))
    return blob


def test_a_download_is_read_from_the_cache(monkeypatch, tmp_path):
    whole = write_mnist(tmp_path / "elsewhere").read_bytes()
    cached(monkeypatch, tmp_path, whole)
    training, _ = data.load(Experiment(dataset="mnist", num_train=200))
    assert training.inputs.shape == (200, 784)


@pytest.mark.parametrize("damage", ["half", "bit"])
def test_a_damaged_download_is_named_and_not_used(monkeypatch, tmp_path, damage):
    whole = write_mnist(tmp_path / "elsewhere", num_images=50).read_bytes()
    middle = len(whole) // 2
    broken = whole[:middle] if damage == "half" else whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    blob = cached(monkeypatch, tmp_path, broken, hashlib.sha256(whole).hexdigest())
    with pytest.raises(sgdwalk.InputError, match=r"is not what the hub has \(sha256") as caught:
        data.load(Experiment(dataset="mnist"))
    assert f"delete {blob}" in str(caught.value)


def test_a_mirror_that_serves_another_file_is_not_used(tmp_path):
    content = b"another file"
    file = tmp_path / hashlib.sha256(content).hexdigest()  # as the cache names it after the mirror's own word
    file.write_bytes(content)
    with pytest.raises(sgdwalk.InputError, match=r"is not what the hub has \(sha256 .*, wanted 8428b53a"):
        data.check_download(file, data.SOURCES["cifar10"], "train")
    data.check_download(file, data.SOURCES["mnist"], "train")  # of which nothing more is known


def test_a_cache_without_the_split_says_so(monkeypatch, tmp_path):
    import huggingface_hub

    (tmp_path / "mnist").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(sgdwalk.InputError, match=r"no mnist/train-\*\.parquet in the local cache"):
        data.load(Experiment(dataset="mnist"))


def write_photographs(folder, column, size, labels, files=("train",), mode="RGB"):
    """Files in the hub's layout whose image i has the colour (i, 2i, 3i) modulo 256 everywhere."""
    folder.mkdir(parents=True)
    for name in files:
        images = []
        for i in range(len(labels)):
            file = io.BytesIO()
            colour = (i % 256, 2 * i % 256, 3 * i % 256) if mode == "RGB" else i % 256
            Image.new(mode, (size, size), colour).save(file, format="png", compress_level=0)
            images.append({"bytes": file.getvalue(), "path": None})
        table = pyarrow.table({column: images, "label": labels})
        pyarrow.parquet.write_table(table, folder / f"{name}-00000-of-00001.parquet")


def test_cifar10_is_normalized_split_and_ordered_as_the_authors_have_it(tmp_path):
    labels = [i % 10 for i in range(50_000)]
    write_photographs(tmp_path / "cifar10" / "plain_text", "img", 32, labels)
    experiment = Experiment(dataset="cifar10", num_train=300, num_validation=40)
    training, validation = data.load(experiment, tmp_path)
    assert training.inputs.shape == (300, 3, 32, 32)
    assert validation.inputs.shape == (40, 3, 32, 32)
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    for i in (0, 7, 299):
        wanted = [((k + 1) * i % 256 / 255 - mean[k]) / deviation[k] for k in range(3)]
        torch.testing.assert_close(training.inputs[i, :, 5, 9], torch.tensor(wanted))
    torch.testing.assert_close(validation.inputs[0, 0, 0, 0].item(), (45_000 % 256 / 255 - mean[0]) / deviation[0])
    assert training.augmentation.padding == 4
    black = training.augmentation.black
    assert black == pytest.approx([-m / d for m, d in zip(mean, deviation, strict=True)])


def test_tiny_imagenet_is_its_first_twenty_classes_in_a_fixed_order(tmp_path):
    labels = [i // 5 for i in range(150)]  # class by class, 30 classes
    write_photographs(tmp_path / "tiny-imagenet" / "data", "image", 64, labels, files=("train", "valid"), mode="L")
    experiment = Experiment(dataset="tiny-imagenet", num_train=60, batch_size=20)
    training, validation = data.load(experiment, tmp_path)
    assert training.inputs.shape == (60, 3, 64, 64)
    assert set(validation.targets.tolist()) == set(range(20))
    assert training.targets.max() < 20
    assert len(set(training.targets.tolist())) > 15  # mixed, although the file goes class by class
    again, _ = data.load(experiment, tmp_path)
    assert torch.equal(again.inputs, training.inputs)
    assert training.augmentation.padding == 0


def test_images_can_be_shrunk_by_averaging(tmp_path):
    write_photographs(tmp_path / "tiny-imagenet" / "data", "image", 64, [0, 1] * 10, files=("train", "valid"))
    whole, _ = data.load(Experiment(dataset="tiny-imagenet", num_train=4, batch_size=2), tmp_path)
    half, _ = data.load(Experiment(dataset="tiny-imagenet", num_train=4, batch_size=2, image_divisor=2), tmp_path)
    torch.testing.assert_close(half.inputs, torch.nn.functional.avg_pool2d(whole.inputs, 2))


def test_an_image_of_another_size_is_refused_before_it_is_decoded(tmp_path):
    write_photographs(tmp_path / "tiny-imagenet" / "data", "image", 128, [0, 1], files=("train", "valid"))
    with pytest.raises(sgdwalk.InputError, match="has 128×128 pixels, wanted are 64 each way"):
        data.load(Experiment(dataset="tiny-imagenet", num_train=2, batch_size=2), tmp_path)


def test_a_copy_in_another_order_is_remarked():
    def split(labels):
        return data.Split(torch.zeros(len(labels), 784), torch.tensor(labels))

    mnist = Experiment(dataset="mnist")
    assert data.remark(mnist, split([5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5])) == ""
    assert "another order" in data.remark(mnist, split([3, 7, 1, 8, 1, 5, 0, 8, 7, 1]))
    assert "not the paper's data" in data.remark(Experiment(), split([0, 1, 2]))


def test_a_jpeg_copy_of_cifar10_and_a_part_of_tiny_imagenet_are_remarked(tmp_path):
    write_photographs(tmp_path / "tiny-imagenet" / "data", "image", 64, [0, 1] * 10, files=("train", "valid"))
    tiny = Experiment(dataset="tiny-imagenet", num_train=4, batch_size=2)
    assert "20 of 100,000 images" in data.remark(tiny, data.load(tiny, tmp_path)[0])
    with pytest.raises(sgdwalk.InputError, match="has 20 images of the classes that are used; wanted are 30"):
        data.load(Experiment(dataset="tiny-imagenet", num_train=30, batch_size=2), tmp_path)

    write_photographs(tmp_path / "cifar10" / "plain_text", "img", 32, [i % 10 for i in range(50_000)])
    cifar = Experiment(dataset="cifar10", num_train=20, num_validation=4, batch_size=10)
    assert data.remark(cifar, data.load(cifar, tmp_path)[0]).startswith("A copy of cifar10 whose images are in another")
    jpeg = io.BytesIO()
    Image.new("RGB", (32, 32)).save(jpeg, format="jpeg")
    table = pyarrow.table({"img": [{"bytes": jpeg.getvalue(), "path": None}] * 50_000, "label": [0] * 50_000})
    pyarrow.parquet.write_table(table, tmp_path / "cifar10" / "plain_text" / "train-00000-of-00001.parquet")
    assert data.remark(cifar, data.load(cifar, tmp_path)[0]).startswith("A JPEG copy of uoft-cs/cifar10")


@pytest.mark.data
@pytest.mark.skipif("SGDWALK_DATA_DIR" not in os.environ, reason="SGDWALK_DATA_DIR names no folder of real data sets")
@pytest.mark.parametrize(
    ("dataset", "shape", "classes"), [("cifar10", (3, 32, 32), 10), ("tiny-imagenet", (3, 64, 64), 20)]
)
def test_real_photographs(dataset, shape, classes):
    experiment = Experiment(dataset=dataset, num_train=2_000, num_validation=500)
    training, validation = data.load(experiment, Path(os.environ["SGDWALK_DATA_DIR"]))
    assert training.inputs.shape == (2_000, *shape)
    assert validation.inputs.shape == (500, *shape)
    assert sorted(set(training.targets.tolist())) == list(range(classes))
    assert training.inputs.mean().abs() < 0.2
    assert training.inputs.std() == pytest.approx(1.2, abs=0.15)


@pytest.mark.data
@pytest.mark.skipif("SGDWALK_DATA_DIR" not in os.environ, reason="SGDWALK_DATA_DIR names no folder of real data sets")
def test_real_mnist():
    training, validation = data.load(Experiment(dataset="mnist"), Path(os.environ["SGDWALK_DATA_DIR"]))
    assert training.inputs.shape == (45_000, 784)
    assert validation.inputs.shape == (10_000, 784)
    assert sorted(set(training.targets.tolist())) == list(range(10))
    assert training.inputs.mean() + 0.5 == pytest.approx(0.1307, abs=0.001)  # the known mean brightness
