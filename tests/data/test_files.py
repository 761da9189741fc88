"""CIFAR and Fashion-MNIST from the files of their authors."""

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

import memexp
from memexp import data
from memexp.data import DataError, idx

PLAIN = ["dataset.mean=[0,0,0]", "dataset.std=[1,1,1]"]


def load(group: str, root: Path, *overrides: str) -> data.Splits:
    cfg = memexp.compose(["model=vgg16", f"dataset={group}", f"dataset.root={root}", *PLAIN, *overrides])
    return data.load(cfg.dataset, batch_size=10, seed=0, device=torch.device("cpu"))


def bytes_of(batch: torch.Tensor) -> np.ndarray:
    return (batch * 255).round().to(torch.uint8).numpy()


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch) -> tuple[str, Path, np.ndarray]:
    """Files in CIFAR's own format with 10 images each, and the checksums that torchvision then expects of them."""
    kind = request.param
    key, classes = ("labels", 10) if kind is CIFAR10 else ("fine_labels", 100)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3 * 32 * 32), np.uint8)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    batch = {"data": pixels, key: list(range(10))}
    for splits in ("train_list", "test_list"):
        monkeypatch.setattr(kind, splits, [[name, write(name, batch)] for name, _ in getattr(kind, splits)])
    meta = {kind.meta["key"]: [f"class {i}" for i in range(classes)]}
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": write(kind.meta["filename"], meta)})
    return ("cifar10" if kind is CIFAR10 else "cifar100"), folder, pixels.reshape(10, 3, 32, 32)


def test_cifar_is_read_from_its_own_files(cifar):
    group, folder, pixels = cifar
    for root in (folder.parent, folder):  # the folder that holds it, or the folder itself
        splits = load(group, root)
        images, labels = next(iter(splits.test.epoch(0)))
        assert np.array_equal(bytes_of(images), pixels)
        assert labels.tolist() == list(range(10))
        assert splits.classes[:2] == ("class 0", "class 1")
    assert splits.train.images == (50 if group == "cifar10" else 10)


@pytest.mark.parametrize("padding", [0, 2])
def test_c1_a_flipped_image_is_the_image_or_its_mirror(cifar, padding):
    """The authors' pixels come as planes and are seen as rows of colours: an array that is not contiguous."""
    group, folder, pixels = cifar
    splits = load(group, folder.parent, f"dataset.padding={padding}", "dataset.flip=true")
    padded = np.pad(pixels, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    seen = set()
    for epoch in range(4):
        for images, labels in splits.train.epoch(epoch):
            for image, label in zip(bytes_of(images), labels, strict=True):
                crops = [
                    padded[label, :, y : y + 32, x : x + 32]
                    for y in range(2 * padding + 1)
                    for x in range(2 * padding + 1)
                ]
                straight = any(np.array_equal(image, crop) for crop in crops)
                assert straight or any(np.array_equal(image, crop[:, :, ::-1]) for crop in crops)
                seen.add(straight)
    assert seen == {True, False}


def test_c3_the_authors_folder_may_have_another_name(cifar):
    group, folder, pixels = cifar
    splits = load(group, folder.rename(folder.with_name("mine")))
    assert np.array_equal(bytes_of(next(iter(splits.test.epoch(0)))[0]), pixels)


def test_a_file_of_cifar_that_is_damaged_or_missing_is_named(cifar):
    group, folder, _ = cifar
    name = "data_batch_3" if group == "cifar10" else "train"
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name}: is not as its authors published it; .*dataset\.download=true"):
        load(group, folder.parent)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: is missing; get it again"):
        load(group, folder.parent)


def test_a_size_that_the_files_do_not_have_is_refused(cifar):
    group, folder, _ = cifar
    with pytest.raises(DataError, match=r"image_size: cifar100? holds images of 32x32 pixels, not 64x64"):
        load(group, folder.parent, "dataset.image_size=64")


@pytest.fixture
def fashion(tmp_path) -> tuple[Path, np.ndarray]:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(1, 256, (10, 28, 28), np.uint8)
    for split in ("train", "t10k"):
        put(folder / f"{split}-images-idx3-ubyte", pixels)
        put(folder / f"{split}-labels-idx1-ubyte", np.arange(10, dtype=np.uint8))
    return folder, pixels


def put(path: Path, values: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


def test_fashion_mnist_is_padded_to_three_channels(fashion):
    folder, pixels = fashion
    packed = folder / "train-images-idx3-ubyte"
    packed.with_name(packed.name + ".gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    for root in (folder.parent.parent, folder.parent, folder):
        splits = load("fashion_mnist", root)
        images, labels = next(iter(splits.named("train").epoch(0)))
        assert images.shape == (10, 3, 32, 32)
        assert np.array_equal(bytes_of(images)[:, 1, 2:30, 2:30], pixels)
        assert np.count_nonzero(bytes_of(images)) == 3 * pixels.size  # the edge is 0
        assert labels.tolist() == list(range(10))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, lambda b: b"\xff" + b[1:], r"train-images\S*: begins with ff000803; such a file begins with 00000803"),
        (IMAGES, lambda b: b"\0\0\x08\x01" + b[4:], r"train-images\S*: begins with 00000801"),
        (IMAGES, lambda b: b[:-1], r"train-images\S*: holds 7,855 bytes; 10x28x28 values need 7,856"),
        (IMAGES, lambda b: b + b"\0", r"train-images\S*: holds 7,857 bytes"),
        (IMAGES, lambda b: b[:6], r"train-images\S*: holds 6 bytes"),
        (IMAGES, lambda b: b"", r"train-images\S*: begins with nothing"),
        (LABELS, lambda b: b[:-1] + b"\x0a", r"train split has labels from 0 to 10; with 10 classes .* in 0\.\.9"),
        (LABELS, lambda b: b[:7] + b"\x09" + b[8:-1], r"train split has 10 images but 9 labels"),
        (LABELS, None, r"train-labels\S*: there is no such file, nor .*\.gz"),
    ],
)
def test_a_damaged_file_of_fashion_mnist_is_named(fashion, name, change, message):
    path = fashion[0] / name
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(content))
    with pytest.raises(DataError, match=message):
        load("fashion_mnist", fashion[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limit=9", "limit: 9 images cannot cover 10 classes"),
        ("test_limit=9", "test_limit: 9 images cannot cover 10 classes"),
        ("root=.", r"train-images-idx3-ubyte: there is no such file"),
    ],
)
def test_what_can_be_told_of_the_authors_files_is_told_before_they_are_read(fashion, cifar, override, message):
    """It was told once the run had its directory, as a run that failed."""
    for group, root in (("fashion_mnist", fashion[0]), (cifar[0], cifar[1])):
        data.foresee(memexp.compose(["model=vgg16", f"dataset={group}", f"dataset.root={root}"]).dataset)
    cfg = memexp.compose(["model=resnet", "dataset=fashion_mnist", f"dataset.root={fashion[0]}", f"dataset.{override}"])
    with pytest.raises(DataError, match=message):
        data.foresee(cfg.dataset)
    if "limit" in override:
        cfg = memexp.compose(["model=resnet", f"dataset={cifar[0]}", f"dataset.root={cifar[1]}", f"dataset.{override}"])
        with pytest.raises(DataError, match=message.replace("10", "100?")):
            data.foresee(cfg.dataset)


def test_an_image_size_that_the_authors_files_do_not_have_is_told_before_they_are_read(cifar):
    cfg = memexp.compose(["model=resnet", f"dataset={cifar[0]}", f"dataset.root={cifar[1]}", "dataset.image_size=64"])
    with pytest.raises(DataError, match="image_size: 64 is not the 32 of the authors' files"):
        data.foresee(cfg.dataset)


def test_a_packed_file_cut_short_is_named(tmp_path):
    content = gzip.compress(bytes(1000))
    for bad in (content[:-9], b"not packed", content[:10] + b"\xff" * 8 + content[18:]):
        (tmp_path / "x.gz").write_bytes(bad)
        with pytest.raises(DataError, match=r"x\.gz: cannot be read"):
            idx.read(tmp_path, "x", 1)
