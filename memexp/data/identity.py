"""What a data set is, so that a run can say later whether it sees the same one again."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from memexp.data.errors import DataError

SIZED = 10_000


def fingerprint(classes: Sequence[str], counts: dict[str, int], content: Iterable[bytes | memoryview]) -> str:
    """One line that stands for the data: how many classes and images of each split, and a digest of `content`."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update("\0".join(classes).encode())
    for part in content:
        digest.update(part)
    splits = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{len(classes)} classes, images: {splits}, {digest.hexdigest()}"


def of_arrays(classes: Sequence[str], parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """The fingerprint of images and labels in memory, by split."""
    content = (np.ascontiguousarray(array).data.cast("B") for part in parts.values() for array in part)
    return fingerprint(classes, {name: len(labels) for name, (_, labels) in parts.items()}, content)


def of_files(classes: Sequence[str], folders: dict[str, str], files: dict[str, list[str]]) -> str:
    """The fingerprint of files by split, from their places in its folder and the sizes of at most SIZED of each.

    Files are not read, and not all are asked for their size: a network's file system may take minutes for a million.
    """

    def content() -> Iterator[bytes | memoryview]:
        for name, paths in files.items():
            start = len(folders[name])
            yield os.fsencode("\0".join([path[start:] for path in paths]))
            yield np.array([_size(path) for path in paths[:: -(-len(paths) // SIZED)]], "<i8").data.cast("B")

    return fingerprint(classes, {name: len(paths) for name, paths in files.items()}, content())


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def match(then: Sequence[str], now: Sequence[str]) -> list[int]:
    """For each class of the data that is read now, its number among those that a network was trained on.

    So `scores[:, match(then, now)]`, or the rows of its last layer, are in the order of today's labels. Raises
    DataError for a class that the network does not know, and for names that stand there twice.
    """
    for names, whose in ((then, "the classes that the network was trained on"), (now, "the classes of the data set")):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(f"{whose} name {twice[0]!r} more than once; they cannot be matched by name")
    position = {name: number for number, name in enumerate(then)}
    unknown = [name for name in now if name not in position]
    if unknown:
        missing = [name for name in then if name not in set(now)]
        raise DataError(
            f"the data set has classes that the network was not trained on: {_some(unknown)}"
            + (f" (those that it knows and the data set lacks: {_some(missing)})" if missing else "")
            + "; rename the folders, or name the classes to use with dataset.classes"
        )
    return [position[name] for name in now]


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 classes of ILSVRC 2012 by their WordNet identifiers, in the order of published weights' outputs."""
    return tuple((Path(__file__).parent / "imagenet.txt").read_text().split())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
