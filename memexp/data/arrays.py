"""A data set held in memory: uint8 images (n, height, width, channels) and int64 labels of two splits."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from memexp.data.errors import DataError


@dataclass(frozen=True)
class Arrays:
    """What a source gives, before anything is left out of it."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    notes: list[str] = field(default_factory=list)

    def checked(self, dataset: str, size: int) -> "Arrays":
        """Raises DataError for labels out of range, splits without images, and images that are not size x size."""
        for name, images, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if len(images) == 0:
                raise DataError(f"dataset={dataset}: the {name} split holds no images")
            if len(images) != len(labels):
                raise DataError(
                    f"dataset={dataset}: the {name} split has {len(images)} images but {len(labels)} labels"
                )
            if images.shape[1:3] != (size, size):
                raise DataError(
                    f"dataset.image_size: {dataset} holds images of {images.shape[1]}x{images.shape[2]} pixels, "
                    f"not {size}x{size}; set dataset.image_size={images.shape[1]}"
                )
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise DataError(
                    f"dataset={dataset}: the {name} split has labels from {labels.min()} to {labels.max()}; "
                    f"with {len(self.classes)} classes they must lie in 0..{len(self.classes) - 1}"
                )
        return self

    def only(self, wanted: Sequence[str | int] | None) -> "Arrays":
        """The images of some classes, given by name or number, renumbered in that order."""
        if wanted is None:
            return self
        numbers = class_numbers(wanted, self.classes)
        position = {number: i for i, number in enumerate(numbers)}

        def chosen(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            kept = np.isin(labels, numbers)
            return images[kept], np.array([position[label] for label in labels[kept]], dtype=np.int64)

        train, train_labels = chosen(self.train, self.train_labels)
        test, test_labels = chosen(self.test, self.test_labels)
        classes = tuple(self.classes[number] for number in numbers)
        return Arrays(train, train_labels, test, test_labels, classes, self.notes)

    def limited(self, train: int | None, test: int | None, seed: int) -> "Arrays":
        """At most so many images of each split, drawn evenly over the classes."""
        result = self
        if train is not None:
            kept = even_sample(self.train_labels, train, seed, "dataset.limit")
            result = replace(result, train=self.train[kept], train_labels=self.train_labels[kept])
        if test is not None:
            kept = even_sample(self.test_labels, test, seed, "dataset.test_limit")
            result = replace(result, test=self.test[kept], test_labels=self.test_labels[kept])
        return result


def class_numbers(wanted: Sequence[str | int], classes: tuple[str, ...]) -> list[int]:
    numbers = []
    for name in wanted:
        if str(name) in classes:
            numbers.append(classes.index(str(name)))
        elif isinstance(name, int) and 0 <= name < len(classes):
            numbers.append(name)
        else:
            shown = ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else "")
            raise DataError(f"dataset.classes: {name!r} is no class; there are {shown}")
    if len(set(numbers)) < max(2, len(numbers)):
        raise DataError(f"dataset.classes: {wanted} must name at least two classes, each once")
    return numbers


def even_sample(labels: np.ndarray, limit: int, seed: int, name: str) -> np.ndarray:
    """Indices of `limit` images, in order, with each class as often as every other as far as there are enough."""
    if limit >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels)
    if limit < len(classes):
        raise DataError(f"{name}: {limit} images cannot cover {len(classes)} classes; allow at least one a class")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).numpy()
    # the turn of each image within its class; taking low turns first keeps classes even
    turn = np.empty(len(labels), dtype=np.int64)
    for number in classes:
        members = shuffled[labels[shuffled] == number]
        turn[members] = np.arange(len(members))
    return np.sort(shuffled[np.argsort(turn[shuffled], kind="stable")[:limit]])


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and those held out for validation, drawn evenly over the classes."""
    count = round(fraction * len(labels))
    if not 0 < count < len(labels):
        raise DataError(f"dataset.val_fraction: {fraction} of {len(labels)} images leaves one side empty")
    held = even_sample(labels, count, seed, "dataset.val_fraction")
    rest = np.setdiff1d(np.arange(len(labels)), held)
    return rest, held


def moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, of pixels in 0..1."""
    pixels = images.reshape(-1, images.shape[-1])
    values = np.arange(256) / 255
    share = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T]) / len(pixels)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 1e-12))
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
