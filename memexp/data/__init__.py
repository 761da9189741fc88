"""Data sets: real images, in batches on the training device."""

from typing import Any

import numpy as np
import torch

from memexp.data import folders
from memexp.data.arrays import Arrays, class_numbers, even_sample, hold_out, moments
from memexp.data.augment import Augmentation
from memexp.data.batches import Batches, ImageBatches, Share, Splits
from memexp.data.errors import DataError
from memexp.data.sources import SOURCES, search_root
from memexp.data.streamed import StreamedBatches

__all__ = ["Batches", "DataError", "Splits", "describe", "load"]

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "fashion_mnist": 10, "imagenet": 1000}


def load(
    settings: Any, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Splits:
    """The data set of a configuration (the keys of conf/dataset/*.yaml).

    batch_size: images per process and batch. seed: of the order, the augmentation and what is held out.
    Raises DataError, naming the file or folder and what to do.
    """
    share = Share(rank, world_size)
    if settings.name in SOURCES:
        arrays = SOURCES[settings.name](settings).checked(settings.name, settings.image_size)
        return _in_memory(arrays, settings, batch_size, seed, device, share)
    return _streamed(settings, batch_size, seed, device, share)


def describe(settings: Any) -> tuple[int, tuple[int, int, int]]:
    """Number of classes and image shape (channels, height, width) of a data set, without reading its images."""
    shape = (3, settings.image_size, settings.image_size)
    if settings.get("classes"):
        return len(settings.classes), shape
    if settings.name == "synthetic":
        return settings.num_classes, shape
    if settings.name in CLASSES:
        return CLASSES[settings.name], shape
    train, _ = folders.splits(folders.find_root(search_root(settings, "train/CLASS/*.jpg"), []))
    return len(train.classes), shape


def _in_memory(arrays: Arrays, settings: Any, batch_size: int, seed: int, device: torch.device, share: Share) -> Splits:
    classes = list(settings.classes) if settings.get("classes") else None
    arrays = arrays.only(classes).limited(settings.limit, settings.test_limit, seed)
    mean, std = (
        (torch.tensor(list(m)) for m in (settings.mean, settings.std)) if settings.mean else moments(arrays.train)
    )
    mean, std = mean.to(device), std.to(device)
    images, labels = (torch.from_numpy(a).to(device) for a in (arrays.train, arrays.train_labels))
    augmentation = Augmentation(settings.padding, settings.flip) if settings.padding or settings.flip else None
    _enough(len(labels), batch_size, share, arrays.notes)

    def batches(pixels: torch.Tensor, targets: torch.Tensor, training: bool = False) -> ImageBatches:
        return ImageBatches(
            pixels, targets, batch_size, seed, mean, std, training, augmentation if training else None, share
        )

    val = None
    if settings.val_fraction:
        kept, held = (
            torch.from_numpy(i).to(device) for i in hold_out(arrays.train_labels, settings.val_fraction, seed)
        )
        val = batches(images[held], labels[held])
        images, labels = images[kept], labels[kept]
    test = batches(torch.from_numpy(arrays.test).to(device), torch.from_numpy(arrays.test_labels).to(device))
    shape = (images.shape[3], images.shape[1], images.shape[2])
    train = batches(images, labels, training=True)
    return Splits(train, val, test, arrays.classes, shape, batches(images, labels), arrays.notes)


def _streamed(settings: Any, batch_size: int, seed: int, device: torch.device, share: Share) -> Splits:
    notes: list[str] = []
    root = folders.find_root(search_root(settings, "train/CLASS/*.jpg and val/CLASS/*.jpg"), notes)
    wanted = list(settings.classes) if settings.get("classes") else None
    train, test = folders.splits(root, wanted)
    names = train.classes
    if wanted:
        numbers = class_numbers(wanted, names)
        train, test = (_only(listing, numbers) for listing in (train, test))
        names = tuple(names[number] for number in numbers)
    if settings.skip_broken:
        train, test = (_readable(listing, notes) for listing in (train, test))
    train, test = (
        _limited(train, settings.limit, seed, "limit"),
        _limited(test, settings.test_limit, seed, "test_limit"),
    )
    _enough(len(train.files), batch_size, share, notes)

    def batches(listing: folders.Listing, training: bool = False) -> StreamedBatches:
        return StreamedBatches(listing.files, listing.labels, settings, batch_size, seed, device, training, share)

    val = None
    if settings.val_fraction:
        kept, held = hold_out(np.asarray(train.labels), settings.val_fraction, seed)
        val = batches(_chosen(train, held.tolist()))
        train = _chosen(train, kept.tolist())
    shape = (3, settings.image_size, settings.image_size)
    return Splits(batches(train, training=True), val, batches(test), names, shape, batches(train), notes)


def _enough(images: int, batch_size: int, share: Share, notes: list[str]) -> None:
    if images < share.size:
        raise DataError(f"{images} training images cannot be divided over {share.size} processes; use fewer processes")
    if images < (batch := batch_size * share.size):
        notes.append(f"there are {images} training images, fewer than the batch of {batch}: each step sees all of them")


def _only(listing: folders.Listing, numbers: list[int]) -> folders.Listing:
    kept = [i for i, label in enumerate(listing.labels) if label in numbers]
    chosen = _chosen(listing, kept)
    return folders.Listing(chosen.files, [numbers.index(label) for label in chosen.labels], listing.classes)


def _limited(listing: folders.Listing, limit: int | None, seed: int, name: str) -> folders.Listing:
    if limit is None:
        return listing
    return _chosen(listing, even_sample(np.asarray(listing.labels), limit, seed, f"dataset.{name}").tolist())


def _readable(listing: folders.Listing, notes: list[str]) -> folders.Listing:
    """Without the files that cannot be decoded; reads every file once."""
    broken = folders.broken(listing.files)
    if broken:
        notes.append(f"{len(broken)} broken images are left out: {', '.join(map(str, broken))}")
    gone = set(broken)
    return _chosen(listing, [i for i, path in enumerate(listing.files) if path not in gone])


def _chosen(listing: folders.Listing, indices: list[int]) -> folders.Listing:
    return folders.Listing([listing.files[i] for i in indices], [listing.labels[i] for i in indices], listing.classes)
