"""What a data set is, told apart from others and matched by name; what is known of one before its images are read."""

import shutil

import numpy as np
import pytest
import torch

import memexp
from memexp import data
from memexp.data import DataError

CIFAR = tuple("abcdefghij")
GROUPS = pytest.mark.parametrize("group", ["imagefolder", "cifar10"])


def rename(root):
    (root / "train" / "b").rename(root / "train" / "z")
    (root / "test" / "b").rename(root / "test" / "z")


def swap(root):
    """The same names in all places, with other images behind them."""
    for split in ("train", "test"):
        for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
            (root / split / old).rename(root / split / new)


CHANGES = {
    "renamed": rename,
    "swapped": swap,
    "removed": lambda root: (root / "train" / "c" / "1.png").unlink(),
    "added": lambda root: shutil.copy(root / "test" / "c" / "0.png", root / "train" / "c" / "9.png"),
    "moved": lambda root: (root / "train" / "c" / "1.png").rename(root / "train" / "d" / "9.png"),
    "replaced": lambda root: shutil.copy(root / "train" / "c" / "1.png", root / "test" / "c" / "0.png"),
}


@GROUPS
@pytest.mark.parametrize("change", CHANGES)
def test_c10_the_fingerprint_tells_a_changed_data_set(tree, load, picture, group, change):
    root = tree(CIFAR, train=2, test=1)
    picture(root / "train" / "c" / "1.png", 33)  # another size, in bytes too
    for i, name in enumerate(CIFAR):
        picture(root / "train" / name / "0.png", 34 + i)
    before = load(root, group=group)
    moved = root.rename(root.parent / "moved")
    assert load(moved, group=group).fingerprint == before.fingerprint
    root = moved.rename(root)
    CHANGES[change](root)
    after = load(root, group=group)
    assert after.fingerprint != before.fingerprint


@GROUPS
def test_c10_the_fingerprint_is_of_the_data_not_of_what_is_used_of_them(tree, load, group):
    root = tree(CIFAR, train=4, test=2)
    plain = load(root, group=group)
    assert plain.fingerprint.startswith("10 classes, images: 40 train, 20 test, ")
    for option in ("dataset.limit=20", "dataset.val_fraction=0.5", "dataset.skip_broken=true", "dataset.flip=false"):
        assert load(root, option, group=group).fingerprint == plain.fingerprint, option
    broken = root / "train" / "c" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with_broken = load(root, "dataset.skip_broken=true", group=group).fingerprint
    assert with_broken != plain.fingerprint
    if group == "imagefolder":  # such a run may have begun before the file was found to be broken
        assert load(root, group=group).fingerprint == with_broken


@pytest.mark.parametrize("group", ["digits", "synthetic"])
def test_c10_built_in_sets_have_one_too(group):
    found = [
        data.load(
            memexp.compose(["model=vgg16", f"dataset={group}", *options]).dataset,
            batch_size=8,
            seed=seed,
            device=torch.device("cpu"),
        ).fingerprint
        for seed, options in ((0, []), (1, ["dataset.limit=100"]))
    ]
    assert found[0] == found[1] != ""


def test_c10_classes_are_matched_by_name():
    scores = torch.arange(4.0)[None]
    assert data.match(("a", "b", "c", "d"), ("d", "a", "b", "c")) == [3, 0, 1, 2]
    assert scores[:, data.match(("a", "b", "c", "d"), ("c", "b"))].tolist() == [[2.0, 1.0]]
    assert data.match(("a", "b"), ("a", "b")) == [0, 1]


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        (("a", "b"), ("a", "z"), r"was not trained on: z \(those that it knows and the data set lacks: b\)"),
        (("a", "b"), ("a", "b", "c"), r"was not trained on: c; rename the folders"),
        (("a", "a"), ("a", "b"), r"network was trained on name 'a' more than once"),
        (("a", "b"), ("b", "b"), r"data set name 'b' more than once"),
        (tuple("abcdefgh"), tuple("stuvwxyz"), r"not trained on: s, t, u, v, w and 3 more"),
    ],
)
def test_c10_classes_that_do_not_match_are_named(then, now, message):
    with pytest.raises(DataError, match=message):
        data.match(then, now)


def test_c11_classes_are_counted_from_the_folders(tree, monkeypatch):
    names = tuple(f"n{number:08d}" for number in range(7))
    root = tree(names, train=1, val=1)
    read = []
    monkeypatch.setattr("memexp.data.folders.listing", lambda *arguments: read.append(arguments))
    for group in ("imagenet", "imagefolder"):
        cfg = memexp.compose(["model=vgg16", f"dataset={group}", f"dataset.root={root}"])
        assert data.describe(cfg.dataset, notes := []) == (7, (3, 224, 224))
        assert notes == []
    assert not read


def test_c11_what_is_assumed_is_said(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMEXP_DATA", raising=False)
    assert data.describe(memexp.compose(["model=vgg16", "dataset=imagenet"]).dataset, notes := []) == (
        1000,
        (3, 224, 224),
    )
    assert [
        note.startswith("1000 classes are assumed: dataset=imagenet: nothing at data/imagenet") for note in notes
    ] == [True]
    with pytest.raises(DataError, match="nothing at data/imagefolder"):
        data.describe(memexp.compose(["model=vgg16", "dataset=imagefolder"]).dataset, [])


def test_c11_a_subset_of_imagenet_has_its_rows_among_the_thousand():
    names = data.imagenet_classes()
    assert (len(names), len(set(names)), list(names)) == (1000, 1000, sorted(names))
    assert (names[0], names[1], names[207], names[281], names[999]) == (
        "n01440764",  # tench
        "n01443537",  # goldfish
        "n02099601",  # golden retriever
        "n02123045",  # tabby
        "n15075141",  # toilet tissue
    )
    rows = data.match(names, ("n01443537", "n02099601", "n15075141"))
    assert torch.arange(1000)[rows].tolist() == [1, 207, 999]
    assert np.array_equal(data.match(names, names), np.arange(1000))


def test_d5_the_pixels_are_on_the_device_once(tree, load):
    root = tree(CIFAR, train=6, test=3, val=2)
    picture = 32 * 32 * 3
    splits = load(root, group="cifar10")
    images = [tensor for tensor in splits.held if tensor.dtype == torch.uint8]
    assert sum(tensor.nbytes for tensor in images) == 110 * picture
    storages = {tensor.untyped_storage().data_ptr() for tensor in splits.held}
    assert len(storages) == len(splits.held)  # none is a view of another
    (root / "val").rename(root / "unused")
    held_out = load(root, "dataset.val_fraction=0.5", group="cifar10")
    assert held_out.val is not None
    assert sum(tensor.nbytes for tensor in held_out.held if tensor.dtype == torch.uint8) == 90 * picture
    for split in (held_out.train, held_out.val, held_out.plain_train):
        assert split._pixels is held_out.train._pixels


def test_d5_streamed_data_hold_what_normalises_them_only(tree, load):
    splits = load(tree(train=2, val=1))
    assert [tuple(tensor.shape) for tensor in splits.held] == [(24 * 24 * 3,)] * 2


@pytest.mark.parametrize("option", ["dataset.val_fraction=0.5", "dataset.padding=0"])
def test_the_pixels_that_are_held_are_never_written_to(tree, load, option):
    splits = load(tree(CIFAR, train=4, test=1), option, group="cifar10")
    before = [tensor.clone() for tensor in splits.held]
    for _ in range(2):
        list(splits.train.epoch(0))
        list(splits.test.epoch(0))
    assert all(torch.equal(a, b) for a, b in zip(before, splits.held, strict=True))
