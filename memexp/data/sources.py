"""Where CIFAR-size images come from: one function a data set, each giving Arrays."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from torch.nn import functional
from torchvision.datasets.utils import check_integrity

from memexp.data import cache, folders, idx
from memexp.data.arrays import Arrays
from memexp.data.errors import DataError


def digits(settings: Any) -> Arrays:
    """The 1,797 handwritten digits that scikit-learn ships, scaled from 8x8 to image_size; every fifth of a class is test."""
    from sklearn.datasets import load_digits  # takes its time to import, and no other set needs it

    raw = load_digits()
    pixels = torch.tensor(raw.images, dtype=torch.float32)[:, None] * (255 / 16)
    size = settings.image_size
    scaled = functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    images = scaled.round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    labels = raw.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for number in range(10):
        test[np.flatnonzero(labels == number)[4::5]] = True
    classes = tuple(str(number) for number in range(10))
    return Arrays(images[~test], labels[~test], images[test], labels[test], classes)


def cifar(settings: Any) -> Arrays:
    """CIFAR-10 or -100 from class folders of images, or from the authors' files (which may be downloaded)."""
    name = settings.name
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    root = search_root(settings, f"{kind.base_folder}/ (the authors' python files) or {{train,test}}/CLASS/*.jpg")
    if not any((path / kind.base_folder).is_dir() for path in (root, root.parent)) and not settings.download:
        arrays = image_folders(settings, root)
        if len(arrays.classes) != (count := {"cifar10": 10, "cifar100": 100}[name]):
            raise DataError(
                f"dataset={name}: there are {len(arrays.classes)} class folders in {root}, not {count}: "
                f"{', '.join(arrays.classes[:10])}; put the missing ones there, or use dataset=imagefolder for other images"
            )
        return arrays
    root = root.parent if (root.parent / kind.base_folder).is_dir() else root

    def make(train: bool) -> Any:
        try:
            return kind(str(root), train=train, download=settings.download)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
            paths = [(root / kind.base_folder / file, md5) for file, md5 in files]
            bad = next((path for path, md5 in paths if not check_integrity(str(path), md5)), root)
            problem = "is not as its authors published it" if bad.is_file() else "is missing"
            if bad == root:
                problem = _first_line(error)
            raise DataError(f"{bad}: {problem}; get it again with dataset.download=true") from error

    train, test = make(True), make(False)
    return Arrays(
        train.data,
        np.asarray(train.targets, np.int64),
        test.data,
        np.asarray(test.targets, np.int64),
        tuple(train.classes),
    )


def fashion_mnist(settings: Any) -> Arrays:
    """Fashion-MNIST from its own files, padded from 28x28 to image_size and repeated over three channels."""
    root = search_root(settings, "FashionMNIST/raw/*-ubyte(.gz)")
    if settings.download:
        try:
            torchvision.datasets.FashionMNIST(str(root), download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{root}: Fashion-MNIST cannot be downloaded there ({_first_line(error)})") from error
    size = settings.image_size
    if size < 28:
        raise DataError(f"dataset.image_size: {size} is less than the 28 that Fashion-MNIST's images have")
    folder = next((f for f in (root / "FashionMNIST" / "raw", root / "raw") if f.is_dir()), root)

    def make(split: str) -> tuple[np.ndarray, np.ndarray]:
        images = idx.read(folder, f"{split}-images-idx3-ubyte", 3)
        labels = idx.read(folder, f"{split}-labels-idx1-ubyte", 1)
        if images.shape[1:] != (28, 28):
            raise DataError(f"{folder}: {split} images are of {images.shape[1]}x{images.shape[2]} pixels, not 28x28")
        before = (size - 28) // 2
        edge = (before, size - 28 - before)
        padded = np.pad(images, ((0, 0), edge, edge))
        return np.repeat(padded[..., None], 3, axis=3), labels.astype(np.int64)

    try:
        return Arrays(*make("train"), *make("t10k"), tuple(torchvision.datasets.FashionMNIST.classes))
    except DataError as error:
        raise DataError(f"{error}; get it again with dataset.download=true") from error


def synthetic(settings: Any) -> Arrays:
    """Random images and labels, for timing: there is nothing in them to learn."""
    generator = np.random.default_rng(0)
    size, classes = settings.image_size, settings.num_classes

    def make(count: int) -> tuple[np.ndarray, np.ndarray]:
        return generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) % classes

    return Arrays(*make(settings.images), *make(settings.test_images), tuple(str(i) for i in range(classes)))


def image_folders(settings: Any, root: Path) -> Arrays:
    """Class folders of small images, decoded once and cached."""
    notes: list[str] = []
    root = folders.find_root(root, notes)
    train, test = folders.splits(root, list(settings.classes) if settings.classes else None)

    def make() -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name, listing in (("train", train), ("test", test)):
            pixels, labels, left_out = folders.decode(listing, settings.image_size, settings.skip_broken)
            names = [path.relative_to(root).as_posix() for path in left_out]
            arrays |= {name: pixels, f"{name}_labels": labels, f"{name}_left_out": np.asarray(names, dtype=np.str_)}
        return arrays

    content = folders.fingerprint(root, train.files + test.files)
    key = cache.key(content, train.classes, settings.image_size, settings.skip_broken)
    arrays = cache.cached(f"images-{key}", make, notes)
    left_out = [str(root / path) for name in ("train", "test") for path in arrays[f"{name}_left_out"]]
    if left_out:
        notes.append(f"{len(left_out)} broken images are left out: {', '.join(left_out)}")
    return Arrays(arrays["train"], arrays["train_labels"], arrays["test"], arrays["test_labels"], train.classes, notes)


def search_root(settings: Any, expected: str) -> Path:
    """dataset.root, or the first of $MEMEXP_DATA/NAME and data/NAME that is there."""
    name = settings.name
    if settings.root is not None:
        return Path(settings.root).expanduser()
    places = [Path("data") / name]
    if base := os.environ.get("MEMEXP_DATA"):
        places.insert(0, Path(base) / name)
    for place in places:
        if place.is_dir():
            return place
    if settings.get("download"):
        return places[0]
    raise DataError(
        f"dataset={name}: nothing at {' or '.join(map(str, places))}; set dataset.root=DIR, where DIR holds {expected}"
        + (", or dataset.download=true" if "download" in settings else "")
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


SOURCES: dict[str, Callable[[Any], Arrays]] = {
    "digits": digits,
    "cifar10": cifar,
    "cifar100": cifar,
    "fashion_mnist": fashion_mnist,
    "synthetic": synthetic,
}
