"""What is kept on disk between runs: it makes a start faster and never ends one."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from memexp.data import DataError, cache, images
from memexp.data.batches import Share
from memexp.data.damage import broken

CIFAR = tuple("abcdefghij")


def no_home(monkeypatch, tmp_path):
    for name in ("MEMEXP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )


def unknown_home(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMEXP_CACHE", "~nobody-of-this-name/cache")


def a_file(monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("MEMEXP_CACHE", str(tmp_path / "taken"))


def below_a_file(monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("MEMEXP_CACHE", str(tmp_path / "taken" / "cache"))


def refused(number):
    def make(monkeypatch, tmp_path):
        def refuse(path, mode="r", *args, **kwargs):
            if str(path).startswith(str(tmp_path / "cache")):
                raise OSError(number, os.strerror(number), str(path))
            return opened(path, mode, *args, **kwargs)

        opened = open
        monkeypatch.setattr("builtins.open", refuse)

    return make


PLACES = {
    "no home": no_home,
    "unknown home": unknown_home,
    "a file": a_file,
    "below a file": below_a_file,
    "read-only": refused(errno.EROFS),
    "forbidden": refused(errno.EACCES),
    "full": refused(errno.ENOSPC),
}


@pytest.mark.parametrize("place", PLACES)
def test_c6_no_place_for_the_cache_is_a_note_and_the_run_goes_on(tree, load, monkeypatch, tmp_path, place):
    root = tree(CIFAR, train=1, test=1)
    PLACES[place](monkeypatch, tmp_path)
    for _ in range(2):
        splits = load(root, group="cifar10", batch_size=2)
        assert splits.train.images == 10
        assert any("cached" in note and "MEMEXP_CACHE" in note for note in splits.notes)
    streamed = load(root, "dataset.skip_broken=true")
    assert streamed.train.images == 10
    assert sum("cached" in note and "MEMEXP_CACHE" in note for note in streamed.notes) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x93NUMPY" + bytes(50)),
        lambda path: np.savez(path, other=np.zeros(3)),
        lambda path: np.savez(path, **{k: v[:-1] for k, v in np.load(path).items()}),
        lambda path: np.savez(path, **{k: v.astype(np.float32) for k, v in np.load(path).items()}),
        lambda path: np.savez(path, **(dict(np.load(path)) | {"train_broken": np.array([99])})),
        lambda path: np.save(path.open("wb"), np.array([{}], dtype=object), allow_pickle=True),
    ],
)
def test_c6_a_cache_that_is_not_what_it_should_be_is_made_again(tree, load, own_cache, damage):
    root = tree(CIFAR, train=2, test=1)
    before = load(root, group="cifar10")
    (path,) = own_cache.glob("images-*.npz")
    damage(path)
    again = load(root, group="cifar10")
    assert any("made again" in note for note in again.notes)
    pairs = zip(before.test.epoch(0), again.test.epoch(0), strict=True)
    assert all(torch.equal(a, b) and torch.equal(i, j) for (a, i), (b, j) in pairs)
    assert not any("made again" in note for note in load(root, group="cifar10").notes)
    assert [found.name for found in own_cache.iterdir()] == [path.name]


def test_the_cache_is_not_written_through_a_link(tree, load, own_cache, tmp_path):
    root = tree(CIFAR, train=1, test=1)
    load(root, group="cifar10", batch_size=2)
    (path,) = own_cache.glob("images-*.npz")
    (tmp_path / "precious").write_text("precious")
    path.unlink()
    path.symlink_to(tmp_path / "precious")
    load(root, group="cifar10", batch_size=2)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not path.is_symlink()


def counted(monkeypatch) -> list[str]:
    read: list[str] = []
    real = images.read
    monkeypatch.setattr(images, "read", lambda path: read.append(path) or real(path))
    return read


def test_c12_that_a_file_is_sound_is_found_once(tree, load, monkeypatch):
    root = tree(("ant", "bee"), train=5, val=3)
    bad = root / "train" / "bee" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    read = counted(monkeypatch)
    assert load(root, "dataset.skip_broken=true").train.images == 9
    assert len(read) == 16
    read.clear()
    assert load(root, "dataset.skip_broken=true").train.images == 9
    assert read == [str(bad)]  # someone may have mended it
    read.clear()
    changed = root / "val" / "ant" / "0.png"
    changed.write_bytes(changed.read_bytes()[:-30])
    splits = load(root, "dataset.skip_broken=true")
    assert sorted(read) == sorted([str(bad), str(changed)])
    assert splits.test.images == 5
    assert any("2 broken images are left out" in note for note in splits.notes)
    read.clear()
    load(root)  # without skip_broken nothing is read at a start
    assert read == []


def test_c12_processes_divide_the_files_among_them(tree, monkeypatch, own_cache):
    root = str(tree(("ant", "bee"), train=4, val=1))
    files = sorted(str(path) for path in Path(root).rglob("*.png"))
    for i in (1, 6):
        Path(files[i]).write_bytes(b"broken")
    told: dict[int, tuple] = {}

    def gather(every, own):
        told[gather.rank] = own
        every[:] = [told.get(rank, ([], np.empty(0, np.uint64))) for rank in range(2)]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    read = counted(monkeypatch)
    for rank in (1, 0):
        gather.rank = rank
        found = broken(root, files, Share(rank, 2), [])
        assert len(read) == 5
        read.clear()
    assert found == [1, 6]
    monkeypatch.undo()
    monkeypatch.setenv("MEMEXP_CACHE", str(own_cache))
    read = counted(monkeypatch)
    assert broken(root, files, Share(), []) == [1, 6]
    assert len(read) == 2  # what both found was kept


@pytest.mark.parametrize("group", ["cifar10", "imagefolder"])
@pytest.mark.parametrize("what", ["dangling", "not utf8", "folder", "damaged"])
def test_c4_a_broken_file_of_any_kind_is_named_and_can_be_left_out(tree, load, group, what):
    root = tree(CIFAR, train=3, test=1)
    bad = root / "train" / "c" / "1.png"
    if what == "dangling":
        bad.unlink()
        bad.symlink_to("nowhere")
    elif what == "folder":
        bad.unlink()
        bad.symlink_to(root / "train" / "c" / "1.png")  # leads to itself
    else:
        bad.write_bytes(bad.read_bytes()[:70])
    if what == "not utf8":
        os.rename(bad, raw := os.path.join(os.fsencode(bad.parent), b"caf\xe9.png"))
        bad = Path(os.fsdecode(raw))
    name = r"caf\\xe9\.png" if what == "not utf8" else r"1\.png"
    with pytest.raises(DataError, match=rf"train/c/{name}: not a readable image .*dataset\.skip_broken=true") as error:
        for _ in load(root, group=group).train.epoch(0):
            pass
    assert error.value.file == str(bad)
    splits = load(root, "dataset.skip_broken=true", group=group)
    assert splits.train.images == 29
    note = next(note for note in splits.notes if "1 broken images are left out" in note)
    note.encode()
    assert sum(len(labels) for _, labels in splits.named("train").epoch(0)) == 29


@pytest.mark.parametrize("group", ["cifar10", "imagefolder"])
def test_a_class_of_which_nothing_can_be_read_is_named(tree, load, group):
    root = tree(CIFAR, train=1, test=1)
    (root / "train" / "c" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"train: none of the images of c could be read"):
        load(root, "dataset.skip_broken=true", group=group)


def test_c9_pictures_of_other_sizes_are_scaled_and_said(tree, load, picture):
    root = tree(CIFAR, train=2, test=1)
    for i in range(3):
        picture(root / "train" / "a" / f"large{i}.png", 96)
    for _ in range(2):  # decoded, and from the cache
        notes = load(root, group="cifar10").notes
        assert any("3 of 23 images in" in n and "scaled to 32x32 pixels (3 of 96x96)" in n for n in notes)
    picture(root / "train" / "a" / "wide.png", (32, 48))
    with pytest.raises(DataError, match=r"wide\.png: 48x32 pixels; expected 32x32, or a square"):
        load(root, group="cifar10")


def test_the_key_of_the_cache_is_a_plain_file_name():
    assert cache.key("a/../b", "\0") == cache.key("a/../b", "\0")
    assert cache.key("a", "b") != cache.key("ab")
    assert cache.key("x").isalnum()
