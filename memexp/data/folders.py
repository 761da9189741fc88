"""Images in class folders: where the splits are, which classes there are, and the list of files.

    root/train/CLASS/*.jpg      what is trained on
    root/val/CLASS/*.jpg        chooses the best weights, where there is a test/ too
    root/test/CLASS/*.jpg       is measured at the end; without it val/ is

Everything is named by strings and listed by os.scandir, once: a set may have millions of files.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from memexp.data import images
from memexp.data.errors import DataError, reason, shown

LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg"
TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
NOT_DATA = "__MACOSX"  # what macOS packs beside the files of an archive
PACKED = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zip", ".7z", ".rar")
NESTED = 3  # folders around train/ that an unpacked archive may have: ILSVRC/Data/CLS-LOC
BRANCHES = 50  # folders side by side, beyond which a folder is no archive's wrapping


@dataclass(frozen=True)
class Layout:
    """The folders of the splits. val: None where there is none beside test. classes: those of train, in order."""

    root: str
    train: str
    val: str | None
    test: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """Files of one split with the number of their class."""

    files: list[str]
    labels: np.ndarray


@dataclass
class _Strays:
    """Files that are left out for their names, counted by suffix, and links that lead back to where they lie."""

    suffixes: Counter[str] = field(default_factory=Counter)
    example: str = ""
    loops: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        self.suffixes[os.path.splitext(path)[1].lower() or "no suffix"] += 1
        self.example = self.example or path

    def note(self, notes: list[str]) -> None:
        if self.suffixes:
            kinds = ", ".join(f"{count} with {shown(suffix)}" for suffix, count in self.suffixes.most_common(8))
            notes.append(
                f"{self.suffixes.total()} files are left out, as their names are not those of images: {kinds}; "
                f"one is {shown(self.example)}"
            )
        for loop in self.loops:
            notes.append(f"{shown(loop)} is a link to a folder around it and is not followed")


def expected(root: str | Path) -> str:
    root = shown(root)
    return f"expected: {root}/train/CLASS/*.jpg and {root}/test/CLASS/*.jpg (or val in place of test, or both)"


def find(place: Path, notes: list[str], chosen: bool = False) -> Layout:
    """The layout below `place`, or below the one folder in it that holds train/ (as an unpacked archive does).

    Says in `notes` what is used for what. chosen: some of the classes are, so that others in val/ and test/ are nobody's
    business. Raises DataError, saying what was found and what was expected.
    """
    if not os.path.isdir(place):
        raise DataError(f"dataset.root: there is no folder {shown(place)}; {expected(place)}")
    root = _root(str(place))
    if root != str(place):
        notes.append(f"the images are taken from {shown(root)}")
    folders = _folders(root)
    (train,) = _named(folders, TRAIN, root)
    classes = tuple(sorted(class_folders(train)))
    if not classes:
        raise DataError(f"{shown(train)} holds no class folders ({_seen(train)}); {expected(root)}")
    if len(classes) < 2:
        raise DataError(
            f"{shown(train)} holds one class folder only, {classes[0]}; a classifier needs two classes at least"
        )
    val, test = (_labelled(_named(folders, names, root), classes, chosen) for names in (VAL, TEST))
    measured = test if test.folder else val
    if measured.folder is None:
        found = " ".join(text for text in (val.why, test.why) if text) or "there is neither test/ nor val/."
        raise DataError(f"{shown(root)} holds {_name(train)} but nothing to evaluate on: {found} {expected(root)}")
    roles = f"trained on {_name(train)}, "
    if test.folder and val.folder:
        roles += f"best.pt is chosen on {_name(val.folder)}, {_name(test.folder)} is measured once at the end"
    else:
        roles += f"evaluated on {_name(measured.folder)}"
    notes.append(" ".join([f"{shown(root)}: {roles}.", *(split.why for split in (val, test) if split.why)]))
    return Layout(root, train, val.folder if test.folder else None, measured.folder, classes)


def class_folders(folder: str) -> dict[str, str]:
    """The class folders in `folder` by the name of the class: hidden ones left out, in Unicode's composed form (NFC)."""
    found: dict[str, str] = {}
    for name, path in _folders(folder).items():
        class_name = unicodedata.normalize("NFC", shown(name))
        if class_name in found:
            raise DataError(
                f"{shown(folder)} holds two folders for the class {class_name}, whose names differ in Unicode form "
                "only; move the images of both into one"
            )
        found[class_name] = path
    return found


def listing(
    folder: str, classes: Sequence[str], wanted: Sequence[int] | None, training: bool, notes: list[str]
) -> Listing:
    """The images of one split. wanted: numbers of the classes to look at; None: all.

    A class without images is an error when training; in evaluation it is said.
    """
    there = class_folders(folder)
    files: list[str] = []
    counts = np.zeros(len(classes), np.int64)
    strays = _Strays()
    for number in range(len(classes)) if wanted is None else sorted(wanted):
        path = there.get(classes[number])
        found = sorted(_images(path, (os.path.realpath(path),), strays)) if path else []
        if training and not found:
            raise DataError(
                f"{shown(path or os.path.join(folder, classes[number]))}: the class folder holds no images "
                f"({', '.join(sorted(images.suffixes()))}); put some in, remove the folder, or leave the class out "
                "with dataset.classes"
            )
        files += found
        counts[number] = len(found)
    outside = [path for path in _files(folder) if _is_image(path)]
    if outside:
        notes.append(
            f"{len(outside)} images lie in {shown(folder)} itself, in no class folder, and are left out; "
            f"one is {shown(outside[0])}"
        )
    if not files:
        raise DataError(f"{shown(folder)}: its class folders hold no images; {expected(os.path.dirname(folder))}")
    empty = [classes[i] for i in (range(len(classes)) if wanted is None else sorted(wanted)) if not counts[i]]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        notes.append(f"{shown(folder)} has no images of {', '.join(empty[:5])}{more}")
    strays.note(notes)
    return Listing(files, np.repeat(np.arange(len(classes)), counts))


def packed(folder: Path) -> list[str]:
    """Archives that lie in a folder."""
    return [name for name in map(os.path.basename, _files(str(folder))) if name.lower().endswith(PACKED)]


@dataclass(frozen=True)
class _Split:
    """A folder to evaluate on, or why a folder of that name is none."""

    folder: str | None = None
    why: str = ""


def _labelled(found: list[str], classes: tuple[str, ...], chosen: bool) -> _Split:
    if not found:
        return _Split()
    (folder,) = found
    there = class_folders(folder)
    known = set(classes)
    if not known & set(there):
        return _Split(why=f"{_name(folder)} has none of the class folders of the training images ({_seen(folder)}).")
    unknown = sorted(set(there) - known)
    if unknown and not chosen:
        raise DataError(
            f"{shown(folder)} has class folders that the training images have not: {', '.join(unknown[:5])}; "
            "both need the same classes, or dataset.classes says which are meant"
        )
    return _Split(folder)


def _named(folders: dict[str, str], names: Sequence[str], root: str) -> list[str]:
    """The folder with one of these names, if there is one."""
    found = [path for name, path in folders.items() if name.lower() in names]
    if len(found) > 1:
        raise DataError(f"{shown(root)} holds {' and '.join(map(_name, sorted(found)))}; which is meant? Move one away")
    return found


def _root(place: str) -> str:
    level = [place]
    for _ in range(NESTED + 1):
        found = [folder for folder in level if _named(_folders(folder), TRAIN, folder)]
        if len(found) > 1:
            raise DataError(
                f"dataset.root: {' and '.join(map(shown, sorted(found)[:3]))} each hold a train/ folder; "
                "set dataset.root to one of them"
            )
        if found:
            return found[0]
        inner = [_folders(folder) for folder in level]
        level = [path for folders in inner if len(folders) <= BRANCHES for path in folders.values()]
    archives = packed(Path(place))
    remedy = f"unpack {shown(archives[0])} first; " if archives else ""
    raise DataError(f"dataset.root: {shown(place)} holds no train/ folder ({_seen(place)}); {remedy}{expected(place)}")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise DataError(f"{shown(folder)}: the folder cannot be read ({reason(error)})", folder) from error


def _is(kind: Callable[[], bool]) -> bool:
    """Of an entry: is_dir or is_file; a link that leads back to itself is neither."""
    try:
        return kind()
    except OSError:
        return False


def _hidden(name: str) -> bool:
    """As .ipynb_checkpoints and the ._x.jpg that macOS leaves beside x.jpg."""
    return name.startswith(".") or name == NOT_DATA


def _folders(folder: str) -> dict[str, str]:
    return {entry.name: entry.path for entry in _entries(folder) if not _hidden(entry.name) and _is(entry.is_dir)}


def _files(folder: str) -> list[str]:
    return sorted(entry.path for entry in _entries(folder) if not _hidden(entry.name) and _is(entry.is_file))


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in images.suffixes()


def _images(folder: str, above: tuple[str, ...], strays: _Strays) -> Iterator[str]:
    """Images in a class folder and in folders in it, links followed. above: the real paths of folders around it.

    A link that leads nowhere is given too, as a file that cannot be read is: whoever reads it will say so.
    """
    known = images.suffixes()
    for entry in _entries(folder):
        name = entry.name
        if _hidden(name):
            continue
        if _is(entry.is_dir):
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], name)
            if any(path == real or path.startswith(real + os.sep) for path in above):
                strays.loops.append(entry.path)
            else:
                yield from _images(entry.path, (*above, real), strays)
        elif name[name.rfind(".") :].lower() in known and (_is(entry.is_file) or entry.is_symlink()):
            yield entry.path
        else:
            strays.add(entry.path)


def _name(folder: str) -> str:
    return shown(os.path.basename(folder)) + "/"


def _seen(folder: str) -> str:
    """What a folder holds, in words."""
    folders, files = sorted(_folders(folder)), [os.path.basename(path) for path in _files(folder)]

    def some(names: list[str], what: str) -> str:
        shortened = ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")
        return f"{len(names)} {what} ({shortened})" if names else f"no {what}"

    return f"it holds {some(folders, 'folders')} and {some(files, 'files')}"


def complete(labels: np.ndarray, kept: np.ndarray, classes: Sequence[str], folder: str) -> None:
    """Raises DataError where all images of a class were broken. kept: numbers of the sound ones."""
    lost = np.setdiff1d(labels, labels[kept])
    if len(lost):
        raise DataError(
            f"{shown(folder)}: none of the images of {classes[lost[0]]} could be read; "
            "put sound ones in, or leave the class out with dataset.classes"
        )
