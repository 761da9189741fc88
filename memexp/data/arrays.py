"""A data set held in memory: uint8 images (n, height, width, channels) and int64 labels of its splits."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memexp.data import identity
from memexp.data.errors import DataError


class Part(NamedTuple):
    """One split."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """What a source gives, before anything is left out of it.

    val: a split of its own that chooses the best weights, where the source has one. source: a fingerprint of what the
    images were made from, where the pixels themselves may differ between machines.
    """

    train: Part
    test: Part
    classes: tuple[str, ...]
    val: Part | None = None
    notes: list[str] = field(default_factory=list)
    source: str | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The splits that are there, by name."""
        return {"train": self.train, "test": self.test} | ({"val": self.val} if self.val is not None else {})

    def fingerprint(self) -> str:
        return self.source or identity.of_arrays(self.classes, dict(self.parts))

    def checked(self, dataset: str, size: int | None = None) -> "Arrays":
        """Raises DataError for labels out of range, splits without images, and images that are not size x size, if given."""
        for name, (images, labels) in self.parts.items():
            if len(images) == 0:
                raise DataError(f"dataset={dataset}: the {name} split holds no images")
            if len(images) != len(labels):
                raise DataError(
                    f"dataset={dataset}: the {name} split has {len(images)} images but {len(labels)} labels"
                )
            if size is not None and images.shape[1:3] != (size, size):
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


def moments(images: np.ndarray, notes: list[str]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, of pixels in 0..1; a channel of one value is given a deviation of 1."""
    pixels = images.reshape(-1, images.shape[-1])
    values = np.arange(256) / 255
    share = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T]) / len(pixels)
    mean = share @ values
    constant = (share > 0).sum(1) == 1
    if constant.any():
        notes.append(
            f"channel {', '.join(map(str, np.flatnonzero(constant)))} has one value in all training images; its "
            "deviation is taken as 1"
        )
    std = np.where(constant, 1.0, np.sqrt(np.maximum(share @ values**2 - mean**2, 0)))
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
