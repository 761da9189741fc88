"""Data sets: real images, in batches on the training device."""

from typing import Any

import numpy as np
import torch

from memexp.choices import name_of
from memexp.data import damage, folders, identity, own, small
from memexp.data.arrays import Arrays, moments
from memexp.data.augment import Augmentation, Normalise
from memexp.data.batches import Batches, ImageBatches, Share, Splits
from memexp.data.errors import DataError
from memexp.data.identity import imagenet_classes, match
from memexp.data.selection import check_limit, class_numbers, hold_out, select
from memexp.data.sources import CLASSES, SOURCES, class_names, search_root
from memexp.data.streamed import Loader, Samples, StreamedBatches, resize_size

__all__ = ["Batches", "DataError", "Splits", "describe", "foresee", "imagenet_classes", "load", "match", "resize_size"]


def load(
    settings: Any, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Splits:
    """The data set of a configuration (the keys of conf/dataset/*.yaml).

    batch_size: images per process and batch. seed: of the order and the augmentation; which images are used, where
    not all are, dataset.draw says, so that runs that differ by their seed alone are trained and measured on the same ones.
    Raises DataError, naming the file or folder and what to do.
    """
    share = Share(rank, world_size)
    if "_target_" in settings:
        return _for_each(_in_memory(own.load(settings), settings, batch_size, seed, device, share), share)
    if settings.name in SOURCES:
        arrays = SOURCES[settings.name](settings).checked(settings.name, settings.image_size)
        return _for_each(_in_memory(arrays, settings, batch_size, seed, device, share), share)
    return _for_each(_streamed(settings, batch_size, seed, device, share), share)


def foresee(settings: Any) -> None:
    """Raises DataError for what can be told of a data set before an image is read: no folder, or none that is laid out as it
    has to be, a size that its images do not have, dataset.classes that it does not have, a dataset.limit below their number.
    Of a user's own only its maker knows.
    """
    if "_target_" in settings:
        return
    names, chosen = class_names(settings), settings.classes
    if names is not None and chosen:
        class_numbers(chosen, tuple(names))
    known = CLASSES[settings.name] if names is None else len(names)
    for split in ("train", "test") if names is None or settings.name == "digits" else ("train",):
        check_limit(*_limit(settings, split), len(chosen or range(known)))  # of folders, those of test may be fewer


def describe(settings: Any, notes: list[str] | None = None) -> tuple[int, tuple[int, int, int]]:
    """Number of classes and image shape (channels, height, width) of a data set, without looking at its images.

    Class folders are counted where classes are folders. notes: is told where the number is assumed instead.
    """
    if "_target_" in settings:
        classes, own_shape = own.describe(settings)
        return len(settings.get("classes") or range(classes)), own_shape
    shape = (3, settings.image_size, settings.image_size)
    if settings.get("classes"):
        return len(settings.classes), shape
    if settings.name == "synthetic":
        return settings.num_classes, shape
    if settings.name in CLASSES:
        return CLASSES[settings.name], shape
    try:
        root = search_root(settings, folders.LAYOUT)
    except DataError as error:
        if settings.name != "imagenet":
            raise
        if notes is not None:
            notes.append(f"{len(imagenet_classes())} classes are assumed: {error}")
        return len(imagenet_classes()), shape
    return len(folders.find(root, []).classes), shape


def _in_memory(arrays: Arrays, settings: Any, batch_size: int, seed: int, device: torch.device, share: Share) -> Splits:
    notes, classes = arrays.notes, arrays.classes
    fingerprint = arrays.fingerprint()
    numbers = class_numbers(settings.classes, classes) if settings.get("classes") else None
    if numbers is not None:
        classes = tuple(classes[number] for number in numbers)
    chosen = {
        name: select(part.labels, numbers, *_limit(settings, name), settings.draw)
        for name, part in arrays.parts.items()
    }
    train = arrays.train.images[chosen["train"][0]]
    _enough(len(train), batch_size, share, notes)
    kept, held = _held_out(chosen["train"][1], settings, "val" in chosen, notes)
    if settings.mean:
        mean, std = (torch.tensor(list(values)) for values in (settings.mean, settings.std))
    else:
        mean, std = moments(train, notes)
    height, width, channels = train.shape[1:]
    if len(mean) != channels:
        raise DataError(
            f"dataset.mean: {len(mean)} values, but the images of {name_of(settings)} have {channels} channels"
        )
    normalise = Normalise(mean, std, height, width, device)
    padding = settings.get("padding", 0)
    augmentation = Augmentation(padding, settings.flip) if padding or settings.flip else None

    def on_device(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        return pixels, torch.from_numpy(labels).to(device)

    def batches(
        data: tuple[torch.Tensor, torch.Tensor], part: np.ndarray | None = None, training: bool = False
    ) -> ImageBatches:
        indices = torch.from_numpy(part) if part is not None else None
        augment = augmentation if training else None
        return ImageBatches(*data, batch_size, seed, normalise, training, augment, share, indices)

    def split(name: str) -> ImageBatches:
        indices, labels = chosen[name]
        return batches(on_device(arrays.parts[name].images[indices], labels))

    data = on_device(train, chosen["train"][1])
    val = batches(data, held) if held is not None else split("val") if "val" in chosen else None
    return Splits(
        batches(data, kept, training=True),
        val,
        split("test"),
        classes,
        (channels, height, width),
        batches(data, kept),
        notes,
        fingerprint,
        mean.tolist(),
        std.tolist(),
    )


def _streamed(settings: Any, batch_size: int, seed: int, device: torch.device, share: Share) -> Splits:
    notes: list[str] = []
    resize = resize_size(settings)
    layout = folders.find(search_root(settings, folders.LAYOUT), notes, bool(settings.classes))
    classes = layout.classes
    numbers = class_numbers(settings.classes, classes) if settings.classes else None
    places = {"train": layout.train, "test": layout.test} | ({"val": layout.val} if layout.val else {})
    listings = {
        name: folders.listing(place, classes, numbers, name == "train", notes) for name, place in places.items()
    }
    fingerprint = identity.of_files(classes, places, {name: found.files for name, found in listings.items()})
    if numbers is not None:
        classes = tuple(classes[number] for number in numbers)
    files = [file for found in listings.values() for file in found.files]
    broken = torch.zeros(len(files), dtype=torch.bool)
    if settings.skip_broken and (bad := damage.broken(layout.root, files, share, notes)):
        broken[bad] = True
        notes.append(small.left_out([files[i] for i in bad]))
        sound = np.flatnonzero(~broken[: len(listings["train"].files)].numpy())
        folders.complete(listings["train"].labels, sound, layout.classes, layout.train)
    labels = np.empty(len(files), np.int64)
    chosen: dict[str, np.ndarray] = {}
    first = 0
    for name, found in listings.items():
        indices, renumbered = select(found.labels, numbers, *_limit(settings, name), settings.draw)
        chosen[name] = indices + first
        labels[chosen[name]] = renumbered
        first += len(found.files)
    kept, held = _held_out(labels[chosen["train"]], settings, "val" in chosen, notes)
    if held is not None:
        chosen["val"], chosen["train"] = chosen["train"][held], chosen["train"][kept]
    loader = Loader(Samples(files, labels, settings.image_size, resize, settings.flip), settings.workers, device)
    mean, std = (torch.tensor(list(values)) for values in (settings.mean, settings.std))
    normalise = Normalise(mean, std, settings.image_size, settings.image_size, device)

    def batches(name: str, training: bool = False) -> StreamedBatches:
        augment = training and settings.augment
        indices = torch.from_numpy(chosen[name])
        return StreamedBatches(loader, indices, broken, batch_size, seed, normalise, device, training, augment, share)

    train = batches("train", training=True)
    _enough(train.images, batch_size, share, notes)
    val = batches("val") if "val" in chosen else None
    shape = (3, settings.image_size, settings.image_size)
    moments = [list(values) for values in (settings.mean, settings.std)]
    return Splits(train, val, batches("test"), classes, shape, batches("train"), notes, fingerprint, *moments)


def _limit(settings: Any, split: str) -> tuple[int | None, str]:
    """How many images of a split are used at most, and the key that says so."""
    return (settings.limit, "dataset.limit") if split == "train" else (settings.test_limit, "dataset.test_limit")


def _held_out(
    labels: np.ndarray, settings: Any, val: bool, notes: list[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Indices of the training images to train on (None: all) and to hold out. val: whether there is a folder for that."""
    if not settings.val_fraction:
        return None, None
    if val:
        raise DataError(
            f"dataset.val_fraction: {settings.val_fraction} holds training images out, but {name_of(settings)} has a val/ "
            "folder for that beside test/; set dataset.val_fraction=0, or move val/ away"
        )
    kept, held = hold_out(labels, settings.val_fraction, settings.draw)
    if len(held) < (asked := round(settings.val_fraction * len(labels))):
        notes.append(f"{len(held)} images are held out, not {asked}, as each class keeps one to train on")
    if without := len(np.setdiff1d(labels, labels[held])):
        notes.append(f"of {without} of the classes no image is held out, as they have too few")
    return kept, held


def _for_each(splits: Splits, share: Share) -> Splits:
    """Raises DataError for a split that leaves one of several processes without an image."""
    for name in ("train", "val", "test"):
        found = splits.val if name == "val" else splits.named(name)
        if found is not None and found.images < share.size:
            raise DataError(
                f"the {name} split has {found.images} images for {share.size} processes, and each needs one: use fewer "
                "processes, or more images (dataset.limit, dataset.test_limit, dataset.val_fraction)"
            )
    return splits


def _enough(images: int, batch_size: int, share: Share, notes: list[str]) -> None:
    if images < (batch := batch_size * share.size):
        seen = "all" if images % share.size == 0 else str(images // share.size * share.size)
        notes.append(
            f"there are {images} training images, fewer than the batch of {batch}: each step sees {seen} of them"
        )
