"""Class folders of images: what is found in them, and what is said of those that are broken."""

import os
import shutil
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


NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")  # ten, as CIFAR-10 has


@pytest.fixture
def root(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in NAMES:
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path / "images"


def load(root: Path, *overrides: str, group: str = "cifar10", batch_size: int = 4) -> data.Splits:
    cfg = memexp.compose(["model=vgg16", f"dataset={group}", f"dataset.root={root}", *overrides])
    return data.load(cfg.dataset, batch_size=batch_size, seed=0, device=torch.device("cpu"))


STREAMED = ["dataset.image_size=32", "dataset.resize_size=32", "dataset.workers=0"]
KINDS = pytest.mark.parametrize(("group", "options"), [("cifar10", []), ("imagefolder", STREAMED)])


@KINDS
def test_images_and_labels_come_from_the_folders(root, group, options):
    splits = load(root, *options, group=group)
    assert splits.classes == NAMES
    assert (splits.train.images, splits.test.images) == (40, 20)
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
    assert splits.train.images == 39
    assert any("1 broken image" in note and "3.jpg" in note for note in splits.notes)
    assert sum(len(labels) for _, labels in splits.named("train").epoch(0)) == 39


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
    splits = load(root, *options, "dataset.classes=[cat,elk]", group=group)  # as the message proposes
    assert {label for _, labels in splits.train.epoch(0) for label in labels.tolist()} == {0, 1}


def test_a_class_of_cifar_that_is_missing_is_missed(root):
    for split in ("train", "test"):
        shutil.rmtree(root / split / "jay")
    with pytest.raises(DataError, match=r"there are 9 class folders in .*, not 10: ant, bee.*imagefolder"):
        load(root)


@KINDS
def test_no_folder_at_all_is_told_the_layout(tmp_path, monkeypatch, group, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMEXP_DATA", raising=False)
    cfg = memexp.compose(["model=vgg16", f"dataset={group}"])
    with pytest.raises(
        DataError, match=rf"nothing at data/{group}; set dataset\.root=DIR, where DIR holds .*train.*CLASS"
    ):
        data.load(cfg.dataset, batch_size=4, seed=0, device=torch.device("cpu"))


def test_folders_that_are_not_there_are_named_with_the_layout(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no train/ folder \(it holds no folders and no files\); .*train/CLASS"):
        load(tmp_path / "empty")
    (root / "test").rename(root / "held")
    with pytest.raises(DataError, match="neither test/ nor val/"):
        load(root)
    (root / "held").rename(root / "val")
    (root / "val" / "cow").mkdir()
    with pytest.raises(DataError, match=r"has class folders that the training images have not: cow"):
        load(root)


def test_grey_and_cmyk_images_become_rgb(root):
    pixels = np.full((32, 32), 100, np.uint8)
    Image.fromarray(pixels).save(root / "test" / "ant" / "0.jpg")
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(root / "test" / "ant" / "1.jpg")
    deep = Image.fromarray(np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32))
    deep.save(root / "test" / "ant" / "2.png")  # 16 bits a pixel, which Pillow alone would clip at 255
    images, _ = next(iter(load(root, "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]").test.epoch(0)))
    assert (images[0] * 255 - 100).abs().max() < 2
    red = images[1].mean((1, 2))
    assert red[0] > 0.9
    assert red[1:].max() < 0.1
    assert abs(images[2].mean() - 0.5) < 0.01


def test_the_cache_is_found_by_the_content_of_the_files(root, tmp_path):
    def first(folder: Path) -> tuple[torch.Tensor, bool]:
        splits = load(folder)
        return next(iter(splits.test.epoch(0)))[0], any("are cached in" in note for note in splits.notes)

    before, decoded = first(root)
    assert decoded
    again, decoded = first(root.rename(tmp_path / "moved"))
    assert torch.equal(again, before)
    assert not decoded
    changed = tmp_path / "moved" / "test" / "ant" / "0.jpg"
    content, status = bytearray(changed.read_bytes()), changed.stat()
    content[-40] ^= 255
    changed.write_bytes(content)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither its size nor its time tells
    again, decoded = first(tmp_path / "moved")
    assert decoded
    assert not torch.equal(again, before)


def test_a_damaged_cache_is_made_again(root, tmp_path):
    load(root)
    (cached,) = (tmp_path / "cache").glob("*.npz")
    cached.write_bytes(cached.read_bytes()[:100])
    splits = load(root)
    assert splits.train.images == 40
    assert any("damaged" in note for note in splits.notes)


@KINDS
@pytest.mark.parametrize("wanted", ["[dog,cat]", "[3,2]"])
def test_a_subset_of_the_classes_is_renumbered(root, group, options, wanted):
    Image.new("RGB", (32, 32), (255, 0, 0)).save(root / "test" / "dog" / "red.png")
    splits = load(root, *options, f"dataset.classes={wanted}", group=group, batch_size=5)
    assert splits.classes == ("dog", "cat")
    images, labels = next(iter(splits.test.epoch(0)))
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1]
    assert labels[(images[:, 0] - images[:, 1]).mean((1, 2)).argmax()] == 0  # the red one is a dog
    with pytest.raises(DataError, match=r"'cow' is no class; there are ant, bee"):
        load(root, *options, "dataset.classes=[cow,cat]", group=group)


@KINDS
def test_a_limit_takes_evenly_of_the_classes_and_validation_is_held_out(root, group, options):
    splits = load(root, *options, "dataset.limit=20", "dataset.test_limit=10", "dataset.val_fraction=0.5", group=group)
    assert splits.val is not None
    for found in (splits.named("train"), splits.val, splits.test):
        labels = torch.cat([labels for _, labels in found.epoch(0)])
        assert torch.equal(labels.bincount(), torch.ones(10, dtype=torch.int64))
    shown = {image.numpy().tobytes() for images, _ in splits.named("train").epoch(0) for image in images}
    assert len(shown) == 10
    assert not any(image.numpy().tobytes() in shown for images, _ in splits.val.epoch(0) for image in images)
    with pytest.raises(DataError, match=r"dataset\.limit: 5 images cannot cover 10 classes"):
        load(root, *options, "dataset.limit=5", group=group)


def test_streamed_batches_are_the_same_however_many_workers_and_wherever_resumed(root):
    def listed(workers: int, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        options = ["dataset.image_size=32", "dataset.resize_size=32", f"dataset.workers={workers}"]
        return list(load(root, *options, group="imagefolder", batch_size=10).train.epoch(2, start))

    whole = listed(0)
    assert len(whole) == 4
    for (a, i), (b, j) in zip([*whole, *whole[3:]], [*listed(2), *listed(1, start=3)], strict=True):
        assert torch.equal(a, b)
        assert torch.equal(i, j)


def test_a_worker_says_what_is_broken_in_one_line(root):
    for path in (root / "train" / "cat").iterdir():
        path.write_text("not an image")
    options = ["dataset.image_size=32", "dataset.resize_size=32", "dataset.workers=1"]
    with pytest.raises(DataError, match=r"^\S*train/cat/\d\.jpg: not a readable image[^\n]*$"):
        list(load(root, *options, group="imagefolder").train.epoch(0))


@KINDS
def test_processes_share_the_images(root, group, options):
    cfg = memexp.compose(["model=vgg16", f"dataset={group}", f"dataset.root={root}", *options])

    def labels(rank: int, size: int, batch_size: int) -> list[list[int]]:
        splits = data.load(
            cfg.dataset, batch_size=batch_size, seed=0, device=torch.device("cpu"), rank=rank, world_size=size
        )
        return [labels.tolist() for _, labels in splits.train.epoch(0)]

    together = [a + b for a, b in zip(labels(0, 2, 4), labels(1, 2, 4), strict=True)]
    assert list(map(sorted, together)) == list(map(sorted, labels(0, 1, 8)))
    with pytest.raises(DataError, match="the train split has 40 images for 41 processes, and each needs one"):
        labels(0, 41, 1)


def test_each_streamed_image_and_epoch_has_an_augmentation_of_its_own(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                picture.save(tmp_path / split / name / f"{i}.png")
    train = load(tmp_path, *STREAMED, group="imagefolder", batch_size=8).train
    crops = [image.numpy().tobytes() for epoch in (0, 1) for images, _ in train.epoch(epoch) for image in images]
    assert len(set(crops)) == 16


@pytest.mark.parametrize("group", ["imagefolder", "cifar10"])
def test_a_split_that_leaves_a_process_without_an_image_is_refused_in_one_sentence(tree, load, group):
    cifar = tuple(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
    root = tree(cifar if group == "cifar10" else ("ant", "bee"), train=8, test=1)
    few = 10 if group == "cifar10" else 2
    load(root, group=group, world_size=few, rank=few - 1)
    with pytest.raises(DataError, match=f"the test split has {few} images for {few + 1} processes, and each needs one"):
        load(root, group=group, world_size=few + 1)
