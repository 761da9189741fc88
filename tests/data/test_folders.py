"""Class folders of images: what is found in them, and what is said of those that are broken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import memexp
from memexp import data
from memexp.data import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMEXP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path / "images"


def load(root: Path, *overrides: str, group: str = "cifar10", batch_size: int = 4) -> data.Splits:
    cfg = memexp.compose([f"dataset={group}", f"dataset.root={root}", *overrides])
    return data.load(cfg.dataset, batch_size=batch_size, seed=0, device=torch.device("cpu"))


STREAMED = ["dataset.image_size=24", "dataset.resize_size=24", "dataset.workers=0"]
KINDS = pytest.mark.parametrize(("group", "options"), [("cifar10", []), ("imagefolder", STREAMED)])


@KINDS
def test_images_and_labels_come_from_the_folders(root, group, options):
    splits = load(root, *options, group=group)
    assert splits.classes == ("cat", "dog")
    assert (splits.train.images, splits.test.images) == (12, 4)
    images, labels = next(iter(splits.test.epoch(0)))
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (4, *splits.shape))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 0, 1, 1]


@KINDS
def test_a_truncated_image_is_named_and_can_be_left_out(root, group, options):
    broken = root / "train" / "cat" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(DataError, match=r"cat/3\.jpg.*dataset\.skip_broken=true"):
        for _ in load(root, *options, group=group).train.epoch(0):
            pass
    splits = load(root, *options, "dataset.skip_broken=true", group=group)
    assert splits.train.images == 11
    assert any("1 broken image" in note and "3.jpg" in note for note in splits.notes)
    assert sum(len(labels) for _, labels in splits.named("train").epoch(0)) == 11


def test_a_file_that_is_no_image_is_named(root):
    (root / "test" / "dog" / "notes.png").write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.png: not a readable image"):
        load(root)


@KINDS
def test_an_empty_class_folder_is_named(root, group, options):
    for path in (root / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train/dog: the class folder holds no images.*dataset\.classes"):
        load(root, *options, group=group)


def test_folders_that_are_not_there_are_named_with_the_layout(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no train/ folder; expected: .*train/CLASS"):
        load(tmp_path / "empty")
    (root / "test").rename(root / "validation")
    with pytest.raises(DataError, match="neither test/ nor val/"):
        load(root)
    (root / "validation").rename(root / "val")
    (root / "val" / "cow").mkdir()
    with pytest.raises(DataError, match=r"has class folders that .*train has not: cow"):
        load(root)


def test_grey_and_cmyk_images_become_rgb(root):
    pixels = np.full((32, 32), 100, np.uint8)
    Image.fromarray(pixels).save(root / "test" / "cat" / "0.jpg")
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(root / "test" / "cat" / "1.jpg")
    images, _ = next(iter(load(root, "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]").test.epoch(0)))
    assert (images[0] * 255 - 100).abs().max() < 2
    red = images[1].mean((1, 2))
    assert red[0] > 0.9
    assert red[1:].max() < 0.1


def test_the_cache_follows_the_files(root):
    before = next(iter(load(root).test.epoch(0)))[0]
    assert torch.equal(next(iter(load(root).test.epoch(0)))[0], before)
    Image.new("RGB", (32, 32), (9, 9, 9)).save(root / "test" / "cat" / "0.png")
    (root / "test" / "cat" / "0.jpg").unlink()
    assert not torch.equal(next(iter(load(root).test.epoch(0)))[0], before)


def test_a_damaged_cache_is_made_again(root, tmp_path):
    load(root)
    (cached,) = (tmp_path / "cache").glob("*.npz")
    cached.write_bytes(cached.read_bytes()[:100])
    splits = load(root)
    assert splits.train.images == 12
    assert any("damaged" in note for note in splits.notes)


def test_a_subset_of_the_classes_is_renumbered(root):
    splits = load(root, "dataset.classes=[dog,cat]")
    assert splits.classes == ("dog", "cat")
    assert sorted(next(iter(splits.test.epoch(0)))[1].tolist()) == [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"'cow' is no class; there are cat, dog"):
        load(root, "dataset.classes=[cow,cat]")


@pytest.mark.parametrize(
    ("group", "folder", "name"),
    [
        ("cifar10", "cifar-10-batches-py", "data_batch_1"),
        ("cifar100", "cifar-100-python", "train"),
        ("fashion_mnist", "FashionMNIST/raw", "train-images-idx3-ubyte"),
    ],
)
def test_damaged_files_of_the_authors_are_named(tmp_path, group, folder, name):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / name).write_bytes(b"\x00\x00\x08\x09 not what it should be")
    with pytest.raises(DataError, match=r"files are missing or damaged .*dataset\.download=true"):
        load(tmp_path, group=group)
