"""Batches in an order and with an augmentation that are pure functions of (seed, epoch, index).

So a resumed run goes on in the middle of an epoch with bitwise the same batches, and there is no state to save.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from memexp.data.augment import Augmentation, Normalise, crop_and_flip
from memexp.data.errors import DataError


class Batches(Protocol):
    """One split of a data set in batches: float32 images, normalised, and int64 labels, on the device."""

    images: int
    held: list[Tensor]  # what it keeps on the device between batches

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches start, start + 1, ... of an epoch."""
        ...


@dataclass
class Splits:
    """A data set as a run sees it.

    val: chooses the best weights, where there is one; test is then measured once at the end. notes: what a person should
    be told, such as files left out. fingerprint: one line that stands for what the data are, whatever is used of them. mean,
    std: of each channel in 0..1, by which images are normalised.
    """

    train: Batches
    val: Batches | None
    test: Batches
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    plain_train: Batches
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    @property
    def held(self) -> list[Tensor]:
        """The tensors of data that stay on the device, each once, though splits share them."""
        splits = (self.train, self.plain_train, self.val, self.test)
        tensors = [tensor for split in splits if split is not None for tensor in split.held]
        return list({id(tensor): tensor for tensor in tensors}.values())

    @property
    def watched(self) -> str:
        """The split that is looked at during training and between stages."""
        return "val" if self.val is not None else "test"

    def named(self, name: str) -> Batches:
        """The split `train` (without augmentation), `val` or `test`."""
        found = {"train": self.plain_train, "val": self.val, "test": self.test}[name]
        if found is None:
            raise DataError(
                "there is no val split: the data set was not divided; set dataset.val_fraction or add a val/ folder"
            )
        return found


@dataclass(frozen=True)
class Share:
    """Which part of each batch is this process's: every size-th image from `rank` on."""

    rank: int = 0
    size: int = 1

    def of(self, batch: Tensor, training: bool) -> Tensor:
        """This process's of the images of a batch. In training each has as many, so that the mean over processes is that over
        images, and up to size - 1 of a batch that does not divide are left out.
        """
        images = len(batch) // self.size * self.size if training else len(batch)
        return batch[:images][self.rank :: self.size]


def mix_seed(*numbers: int) -> int:
    """One seed from several numbers, without the collisions of a sum."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ (number + 1)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


def order(seed: int, epoch: int, images: int) -> Tensor:
    """The permutation of an epoch."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(mix_seed(seed, epoch)))


def count_batches(images: int, batch_size: int, world: int, training: bool) -> int:
    """Training leaves out an incomplete last batch, unless there would be none; evaluation keeps it."""
    whole = batch_size * world
    if training:
        return max(1, images // whole)
    return -(-images // whole)


class ImageBatches:
    """Batches of images that live as one uint8 tensor (n, height, width, channels) on the training device.

    The tensor may be shared by several splits: `chosen` are the indices of this one's images, None all of them; nothing
    of it is copied but the batch. augmentation None: none.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        normalise: Normalise,
        training: bool,
        augmentation: Augmentation | None = None,
        share: Share = Share(),
        chosen: Tensor | None = None,
    ) -> None:
        self.batch_size, self.seed, self.share, self.training = batch_size, seed, share, training
        self.augmentation = augmentation
        self._pixels, self._labels, self._normalise, self._chosen = pixels, labels, normalise, chosen
        self.images = len(labels) if chosen is None else len(chosen)
        self.held = [pixels, labels, *normalise.held]

    def __len__(self) -> int:
        return count_batches(self.images, self.batch_size, self.share.size, self.training)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        indices = order(self.seed, epoch, self.images) if self.training else torch.arange(self.images)
        if self._chosen is not None:
            indices = self._chosen[indices]
        whole = self.batch_size * self.share.size
        for batch in range(start, len(self)):
            mine = self.share.of(indices[batch * whole : (batch + 1) * whole], self.training)
            if len(mine):
                yield self._batch(mine, epoch, batch)

    def _batch(self, indices: Tensor, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        on_device = indices.to(self._pixels.device, non_blocking=True)
        pixels = self._pixels.index_select(0, on_device)
        if self.augmentation is not None:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, batch, self.share.rank))
            pixels = crop_and_flip(pixels, self.augmentation, generator)
        return self._normalise(pixels), self._labels.index_select(0, on_device)
