"""Which images of a split are used: some of the classes, a number of them, a share held out for validation."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import torch

from memexp.data.errors import DataError


def class_numbers(wanted: Sequence[str | int], classes: tuple[str, ...]) -> list[int]:
    """The numbers of classes given by name or number; by name alone where names are numbers, as of the folders 5/ and 6/.

    Raises DataError naming one that is not there.
    """
    numbers = []
    by_number = not any(name.isdecimal() for name in classes)
    for name in wanted:
        text = unicodedata.normalize("NFC", str(name))
        if text in classes:
            numbers.append(classes.index(text))
        elif isinstance(name, int) and by_number and 0 <= name < len(classes):
            numbers.append(name)
        else:
            given = ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else "")
            raise DataError(f"dataset.classes: {name!r} is no class; there are {given}")
    if len(set(numbers)) < max(2, len(numbers)):
        raise DataError(f"dataset.classes: {list(wanted)} must name at least two classes, each once")
    return numbers


def select(
    labels: np.ndarray, numbers: Sequence[int] | None, limit: int | None, name: str, draw: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images of a split that are used, in order, and their labels.

    numbers: the classes to keep, renumbered in that order; None: all. limit: images at most, see `sample`; `name` is
    the key that set it. draw: numbers the choice among the images.
    """
    kept = np.arange(len(labels))
    if numbers is not None:
        position = np.full(max(labels.max(initial=0), *numbers) + 1, -1)
        position[list(numbers)] = np.arange(len(numbers))
        kept = np.flatnonzero(position[labels] >= 0)
        labels = position[labels[kept]]
    if limit is not None:
        chosen = sample(labels, limit, name, draw)
        kept, labels = kept[chosen], labels[chosen]
    return kept, labels


def sample(labels: np.ndarray, limit: int, name: str, draw: int) -> np.ndarray:
    """Indices of `limit` images, in order; each class keeps its frequency, with one image at least."""
    if limit >= len(labels):
        return np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    check_limit(limit, name, len(classes))
    return _drawn(labels, apportion(counts, limit, least=1, spared=0), draw)


def check_limit(limit: int | None, name: str, classes: int) -> None:
    """Raises DataError for fewer images than classes. name: the key that set the limit."""
    if limit is not None and limit < classes:
        raise DataError(f"{name}: {limit} images cannot cover {classes} classes; allow at least one a class")


def hold_out(labels: np.ndarray, fraction: float, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and those held out for validation: the same fraction of each class, of which one stays."""
    _, counts = np.unique(labels, return_counts=True)
    quotas = apportion(counts, round(fraction * len(labels)), least=0, spared=1)
    if not quotas.any():
        few = counts.max(initial=0) < 2
        remedy = "no class has a second one; add images, or set 0" if few else "set a larger one, or 0"
        raise DataError(f"dataset.val_fraction: {fraction} of {len(labels)} images holds out none; {remedy}")
    held = _drawn(labels, quotas, draw)
    return np.setdiff1d(np.arange(len(labels)), held), held


def apportion(counts: np.ndarray, total: int, least: int, spared: int) -> np.ndarray:
    """`total` divided in proportion to `counts`, by largest remainders: least ... counts - spared of each."""
    most = np.maximum(counts - spared, 0)
    exact = total * counts / max(counts.sum(), 1)
    quotas = np.clip(np.floor(exact).astype(np.int64), np.minimum(least, most), most)
    while (missing := min(total, most.sum()) - quotas.sum()) != 0:
        step = 1 if missing > 0 else -1
        free = quotas < most if step > 0 else quotas > np.minimum(least, most)
        if not free.any():
            break
        behind = np.where(free, step * (exact - quotas), -np.inf)
        quotas[np.argsort(-behind, kind="stable")[: min(abs(missing), free.sum())]] += step
    return quotas


def _drawn(labels: np.ndarray, quotas: np.ndarray, draw: int) -> np.ndarray:
    """As many images of each class as its quota says, at random, in order."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw)).numpy()
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ends = np.cumsum(np.unique(labels, return_counts=True)[1])
    starts = np.concatenate([[0], ends[:-1]])
    chosen = [by_class[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))
