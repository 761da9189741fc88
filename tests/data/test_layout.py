"""Which folders are trained on, chosen on and measured, and what is said of layouts that are not understood."""

import os
import re
import shutil
import unicodedata

import pytest
from PIL import Image

from memexp.data import DataError, selection

CIFAR = tuple("abcdefghij")
GROUPS = pytest.mark.parametrize("group", ["imagefolder", "cifar10"])


@GROUPS
@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_c2_val_selects_and_test_is_measured(tree, load, group, val):
    root = tree(CIFAR, train=3, test=1, **{val: 2})
    splits = load(root, group=group)
    assert (splits.train.images, splits.val.images, splits.test.images) == (30, 20, 10)
    assert any(f"best.pt is chosen on {val}/, test/ is measured once at the end" in note for note in splits.notes)
    limited = load(root, "dataset.test_limit=10", "dataset.limit=20", group=group)
    assert (limited.train.images, limited.val.images, limited.test.images) == (20, 10, 10)
    with pytest.raises(DataError, match=r"val_fraction: 0\.5 holds training images out, but \w+ has a val/ folder"):
        load(root, "dataset.val_fraction=0.5", group=group)


@GROUPS
@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "testing"])
def test_c3_the_only_other_split_is_evaluated_on(tree, load, group, name):
    splits = load(tree(CIFAR, train=2, **{name: 1}), group=group)
    assert splits.val is None
    assert splits.test.images == 10
    assert any(f"evaluated on {name}/" in note for note in splits.notes)


@pytest.mark.parametrize("inside", ["", "images/"])
def test_c3_a_test_folder_without_labels_is_passed_over_and_said(tree, load, picture, inside):
    root = tree(train=2, val=1)
    for i in range(5):
        picture(root / "test" / f"{inside}{i}.png")
    splits = load(root)
    assert (splits.val, splits.test.images) == (None, 2)
    assert any("evaluated on val/. test/ has none of the class folders" in note for note in splits.notes)
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match=r"nothing to evaluate on: test/ has none of the class folders .*expected: "):
        load(root)


@pytest.mark.parametrize("wrapping", ["", "unpacked", "ILSVRC/Data/CLS-LOC"])
def test_c3_what_an_archive_or_macos_leaves_beside_is_no_data(tree, load, tmp_path, wrapping):
    root = tree(train=2, val=1)
    (tmp_path / "place" / wrapping).parent.mkdir(parents=True, exist_ok=True)
    root = root.rename(tmp_path / "place" / wrapping) if wrapping else root
    place = tmp_path / "place" if wrapping else root
    shutil.copytree(root, place / "__MACOSX")
    shutil.copytree(root / "train", root / "train" / "__MACOSX")
    shutil.copytree(root / "train", place / ".Trash" / "train")
    splits = load(place)
    assert splits.classes == ("ant", "bee")
    assert splits.train.images == 4
    assert any(f"the images are taken from {root}" in note for note in splits.notes) == bool(wrapping)


def touch(*names):
    def make(root):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    return make


@pytest.mark.parametrize(
    ("group", "make", "message"),
    [
        ("imagefolder", touch("flowers.tar.gz"), r"no train/ folder \(it holds no folders and 1 files \(flowers.tar.gz\)\)"
            r"; unpack flowers\.tar\.gz first"),
        ("imagefolder", touch("a/1.jpg", "b/1.jpg"), r"no train/ folder \(it holds 2 folders \(a, b\)"),
        ("imagefolder", touch("train/1.jpg"), r"train holds no class folders \(it holds no folders and 1 files"),
        ("imagefolder", touch("train/a/1.jpg", "test/a/1.jpg"), r"holds one class folder only, a; .* two classes"),
        ("imagefolder", touch("train/a/1.jpg", "training/a/1.jpg"), r"holds train/ and training/; which is meant\?"),
        ("imagefolder", touch("train/a/1", "train/b/1", "val/a/1", "valid/a/1"), r"holds val/ and valid/; which"),
        ("imagefolder", touch("x/train/a/1.jpg", "y/train/a/1.jpg"), r"x and \S*y each hold a train/ folder"),
        ("cifar10", touch("cifar-10-python.tar.gz"), r"cifar-10-python\.tar\.gz is packed; unpack it there, which gives "
            r"cifar-10-batches-py/, or set dataset\.download=true"),
        ("cifar10", touch("cifar-10-batches-bin/data_batch_1.bin"), r"cifar-10-batches-bin is another version .* only "
            r"cifar-10-batches-py/ is read"),
        ("cifar100", touch("cifar-100-matlab/train.mat"), r"cifar-100-matlab is another version"),
        ("cifar100", touch("train.bin", "test.bin"), r"binary version; only the python version, cifar-100-python/"),
    ],
)  # fmt: skip
def test_c3_what_was_found_is_said_and_what_to_do(tmp_path, load, group, make, message):
    (tmp_path / "set").mkdir()
    make(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set", group=group)


def test_c3_files_of_the_authors_beside_a_folder_are_not_taken_for_it(tree, load):
    root = tree(CIFAR, train=2, test=1)
    (root.parent / "cifar-10-batches-py").mkdir()
    assert load(root, group="cifar10").train.images == 20


@GROUPS
def test_c5_hidden_files_and_folders_are_left_out(tree, load, picture, group):
    root = tree(CIFAR, train=2, test=1)
    (root / "train" / "a" / "._0.png").write_bytes(b"\0\5\x16\7")
    picture(root / "train" / "a" / ".ipynb_checkpoints" / "0-checkpoint.png")
    picture(root / "train" / ".ipynb_checkpoints" / "x.png")
    splits = load(root, group=group)
    assert splits.train.images == 20
    assert splits.classes == CIFAR


SUFFIXES = ["pgm", "jfif", "jpe", "JPEG", "Png", "bmp", "gif", "tif", "webp", "ppm", "pnm", "avif", "jp2", "tga"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_c5_every_suffix_that_pillow_reads_is_an_image(tree, load, suffix):
    root = tree(train=1, val=1)
    picture = Image.new("L" if suffix == "pgm" else "RGB", (32, 32), 100)
    try:
        picture.save(root / "train" / "ant" / f"x.{suffix}")
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {suffix}")
    splits = load(root)
    assert splits.train.images == 3
    assert sum(len(labels) for _, labels in splits.named("train").epoch(0)) == 3


def test_c5_other_files_are_counted_and_named(tree, load, picture):
    root = tree(train=1, val=1)
    for name in ("a.heic", "b.heic", "notes.txt", "Thumbs.db", "LICENSE"):
        (root / "train" / "bee" / name).write_bytes(b"x")
    os.mkfifo(root / "train" / "bee" / "pipe.jpg")
    picture(root / "train" / "loose.png")
    notes = load(root).notes
    said = next(note for note in notes if "left out, as their names" in note)
    assert said.startswith("6 files are left out")
    assert "2 with .heic" in said
    assert re.search(r"one is \S*train/bee/", said)
    assert any("1 images lie in" in note and "loose.png" in note for note in notes)


def test_c5_links_to_folders_are_followed_and_loops_are_not(tree, load, picture, tmp_path):
    root = tree(train=2, val=1)
    for i in range(3):
        picture(tmp_path / "elsewhere" / "deep" / f"{i}.png")
    ant = root / "train" / "ant"
    (ant / "more").symlink_to(tmp_path / "elsewhere")
    (ant / "back").symlink_to(root / "train")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere" / "deep" / "..")
    (tmp_path / "elsewhere" / "across").symlink_to(ant)
    (root / "train" / "cat").symlink_to(tmp_path / "elsewhere" / "deep")
    (root / "val" / "loop").symlink_to(root / "val" / "loop")
    splits = load(root)
    assert splits.classes == ("ant", "bee", "cat")
    assert splits.train.images == 2 + 3 + 2 + 3
    assert sum("is a link to a folder around it" in note for note in splits.notes) == 3
    assert any("val has no images of cat" in note for note in splits.notes)


@GROUPS
def test_c5_class_names_that_differ_in_unicode_form_are_one_class(tree, load, group):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != apart
    root = tree((*CIFAR[1:], apart), train=2, test=1)
    (root / "test" / apart).rename(root / "test" / composed)
    splits = load(root, group=group)
    assert splits.classes == (*CIFAR[1:3], composed, *CIFAR[3:])
    assert load(root, f"dataset.classes=['{apart}',b]", group=group).train.images == 4
    (root / "train" / composed).mkdir()
    with pytest.raises(DataError, match="two folders for the class café, whose names differ in Unicode form only"):
        load(root, group=group)


@pytest.mark.parametrize(
    ("name", "shown"), [(b"caf\xe9", r"caf\xe9"), (b"a\x1b[31mb", r"a\x1b[31mb"), (b"a\nb", r"a\nb"), (b"a b", "a b"),
                        ("e\u202etxt".encode(), r"e\u202etxt"), ("日本　語".encode(), "日本　語"), (b"<b>", "<b>")]
)  # fmt: skip
def test_c5_class_names_in_odd_characters_are_shown_escaped(tree, load, name, shown):
    root = tree(train=2, val=1)
    for split in ("train", "val"):
        os.rename(root / split / "bee", os.path.join(os.fsencode(root / split), name))
    splits = load(root)
    assert sorted(splits.classes) == sorted(("ant", shown))
    assert all(name.encode() and "\x1b" not in name for name in splits.classes)
    assert sum(len(labels) for _, labels in splits.named("train").epoch(0)) == 4
    assert load(root, f"dataset.classes=[{1 - splits.classes.index('ant')},ant]").classes == (shown, "ant")


@GROUPS
def test_a_class_without_images_in_evaluation_is_said(tree, load, group):
    root = tree(CIFAR, train=2, test=1)
    (root / "test" / "c" / "0.png").unlink()
    shutil.rmtree(root / "test" / "d")
    splits = load(root, group=group)
    assert splits.test.images == 8
    assert any("test has no images of c, d" in note for note in splits.notes)


def test_a_folder_called_as_a_picture_is_a_folder(tree, load, picture):
    root = tree(train=1, val=1)
    picture(root / "train" / "ant" / "more.jpg" / "x.png")
    assert load(root).train.images == 3


def test_classes_that_are_not_wanted_are_not_looked_at(tree, load):
    root = tree(("ant", "bee", "cat"), train=1, val=1)
    shutil.rmtree(root / "train" / "bee")
    (root / "train" / "bee").mkdir()
    splits = load(root, "dataset.classes=[cat,ant]")
    assert (splits.classes, splits.train.images) == (("cat", "ant"), 2)


@GROUPS
def test_what_is_evaluated_on_may_have_classes_that_are_not_wanted(tree, load, group):
    root = tree(CIFAR, train=2, test=1, val=1)
    for split in ("test", "val"):
        shutil.copytree(root / split / "a", root / split / "zebra")
    splits = load(root, "dataset.classes=[c,a]", group=group)
    assert (splits.classes, splits.val.images, splits.test.images) == (("c", "a"), 2, 2)
    with pytest.raises(DataError, match=r"have not: zebra; both need the same classes, or dataset\.classes says which"):
        load(root, group=group)


def test_classes_that_are_numbers_are_named_by_them_alone():
    """[0,2] would have been the first folder, 1/, and that of the name 2."""
    assert selection.class_numbers([2, "10"], ("1", "10", "2")) == [2, 1]
    assert selection.class_numbers([2, "ant"], ("ant", "bee", "cat")) == [2, 0]
    with pytest.raises(DataError, match="0 is no class; there are 1, 10, 2"):
        selection.class_numbers([0, 2], ("1", "10", "2"))
