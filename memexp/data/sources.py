"""Where CIFAR-size images come from: one function a data set, each giving Arrays."""

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from memexp.data import cache, folders, identity, idx, small
from memexp.data.arrays import Arrays, Part
from memexp.data.errors import DataError, reason, shown
from memexp.data.selection import class_numbers

FASHION_MNIST = "FashionMNIST/raw/*-ubyte(.gz)"
FASHION_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "fashion_mnist": 10}


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
    train, held = (Part(images[chosen], labels[chosen]) for chosen in (~test, test))
    content = [raw.images.astype(np.uint8).tobytes(), labels.tobytes()]
    source = identity.fingerprint(classes, {"train": len(train.labels), "test": len(held.labels)}, content)
    return Arrays(train, held, classes, source=source)


def cifar(settings: Any) -> Arrays:
    """CIFAR-10 or -100 from class folders of images, or from the authors' files (which may be downloaded)."""
    kind, root, authors = _cifar_place(settings)
    if not authors:
        _cifar_folders(settings, root)
        return image_folders(settings, root)

    def read(train: bool) -> Any:
        try:
            return kind(str(root), train=train, download=settings.download)
        except PermissionError as error:
            raise DataError(f"{shown(error.filename or root)}: cannot be read ({reason(error)})") from error
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
            paths = [(root / kind.base_folder / file, md5) for file, md5 in files]
            from torchvision.datasets.utils import check_integrity

            bad = next((path for path, md5 in paths if not check_integrity(str(path), md5)), root)
            problem = "is not as its authors published it" if bad.is_file() else "is missing"
            if bad == root:
                problem = reason(error)
            raise DataError(f"{shown(bad)}: {problem}; get it again with dataset.download=true", str(bad)) from error

    found = read(True), read(False)
    train, test = (Part(split.data, np.asarray(split.targets, np.int64)) for split in found)
    notes = [f"the authors' files in {shown(root / kind.base_folder)}"]
    return Arrays(train, test, tuple(found[0].classes), notes=notes)


def _cifar_place(settings: Any) -> tuple[Any, Path, bool]:
    """torchvision's class for the authors' files, the folder of the images, and whether it holds (or shall) those files."""
    name = settings.name
    import torchvision.datasets  # torchvision takes a second to import

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    root = search_root(settings, f"{kind.base_folder}/ (the authors' python files) or {{train,test}}/CLASS/*.jpg")
    if (root / kind.meta["filename"]).is_file():  # the authors' folder itself, whatever it is called
        kind = type(kind.__name__, (kind,), {"base_folder": root.resolve().name})
        return kind, root.resolve().parent, True
    if (root / kind.base_folder).is_dir() or settings.download:
        return kind, root, True
    if (other := _other_version(root, kind.base_folder)) is not None:
        raise DataError(f"dataset={name}: {other}, or set dataset.download=true")
    return kind, root, False


def _cifar_folders(settings: Any, root: Path) -> tuple[str, ...]:
    name, classes = settings.name, folders.find(root, [], bool(settings.classes)).classes
    if len(classes) != (count := CLASSES[name]):
        raise DataError(
            f"dataset={name}: there are {len(classes)} class folders in {shown(root)}, not {count}: "
            f"{', '.join(classes[:10])}; put the missing ones there, or use dataset=imagefolder for other images"
        )
    return classes


def _cifar_classes(settings: Any) -> Sequence[str] | None:
    _, root, authors = _cifar_place(settings)
    if authors and settings.image_size != 32:
        raise DataError(
            f"dataset.image_size: {settings.image_size} is not the 32 of the authors' files in {shown(root)}; set 32"
        )
    return None if authors else _cifar_folders(settings, root)


def _other_version(root: Path, wanted: str) -> str | None:
    """What to do about a version of CIFAR that is there but is not read: packed, binary or Matlab's."""
    if (root / "train").is_dir() or not root.is_dir():
        return None
    archives = [name for name in folders.packed(root) if name.startswith("cifar")]
    versions = [path.name for path in sorted(root.iterdir()) if path.name.startswith("cifar-") and path.is_dir()]
    if archives:
        return f"{shown(root / archives[0])} is packed; unpack it there, which gives {wanted}/"
    if versions:
        return f"{shown(root / versions[0])} is another version of the authors' files; only {wanted}/ is read: get that one"
    if (root / "data_batch_1.bin").is_file() or (root / "train.bin").is_file():
        return f"{shown(root)} holds the authors' binary version; only the python version, {wanted}/, is read: get that one"
    return None


def fashion_mnist(settings: Any) -> Arrays:
    """Fashion-MNIST from its own files, padded from 28x28 to image_size and repeated over three channels."""
    from torchvision.datasets import FashionMNIST

    root = search_root(settings, FASHION_MNIST)
    if settings.download:
        try:
            FashionMNIST(str(root), download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{root}: Fashion-MNIST cannot be downloaded there ({reason(error)})") from error
    size, folder = settings.image_size, _fashion_folder(root)
    if size < 28:
        raise DataError(f"dataset.image_size: {size} is less than the 28 that Fashion-MNIST's images have")

    def make(split: str) -> Part:
        images = idx.read(folder, f"{split}-images-idx3-ubyte", 3)
        labels = idx.read(folder, f"{split}-labels-idx1-ubyte", 1)
        if images.shape[1:] != (28, 28):
            raise DataError(f"{folder}: {split} images are of {images.shape[1]}x{images.shape[2]} pixels, not 28x28")
        before = (size - 28) // 2
        edge = (before, size - 28 - before)
        padded = np.pad(images, ((0, 0), edge, edge))
        return Part(np.repeat(padded[..., None], 3, axis=3), labels.astype(np.int64))

    try:
        return Arrays(make("train"), make("t10k"), tuple(FashionMNIST.classes))
    except DataError as error:
        raise DataError(f"{error}; get it again with dataset.download=true") from error


def _fashion_folder(root: Path) -> Path:
    return next((f for f in (root / "FashionMNIST" / "raw", root / "raw") if f.is_dir()), root)


def _check_fashion(settings: Any) -> None:
    """Raises DataError for a file that is not there."""
    root = search_root(settings, FASHION_MNIST)
    for name in () if settings.download else FASHION_FILES:
        try:
            idx.find(_fashion_folder(root), f"{name}-ubyte")
        except DataError as error:
            raise DataError(f"{error}; get it with dataset.download=true") from error


def synthetic(settings: Any) -> Arrays:
    """Random images and labels, for timing: there is nothing in them to learn."""
    generator = np.random.default_rng(0)
    size, classes = settings.image_size, settings.num_classes

    def make(count: int) -> Part:
        return Part(generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) % classes)

    return Arrays(make(settings.images), make(settings.test_images), tuple(str(i) for i in range(classes)))


def image_folders(settings: Any, root: Path) -> Arrays:
    """Class folders of small images, decoded once and cached."""
    notes: list[str] = []
    layout = folders.find(root, notes, bool(settings.classes))
    wanted = class_numbers(settings.classes, layout.classes) if settings.classes else None
    splits = {"train": layout.train, "test": layout.test} | ({"val": layout.val} if layout.val else {})
    listings = {
        name: folders.listing(folder, layout.classes, wanted, name == "train", notes) for name, folder in splits.items()
    }
    decoded = {name: small.Decoding(listing, settings.image_size) for name, listing in listings.items()}
    content = (part for name, listing in listings.items() for part in small.content(splits[name], listing.files))
    counts = {name: len(listing.files) for name, listing in listings.items()}
    source = identity.fingerprint(layout.classes, counts, content)

    def make() -> cache.Contents:
        return {f"{name}_{key}": array for name in decoded for key, array in decoded[name].arrays().items()}

    def sound(arrays: cache.Contents) -> bool:
        return all(decoded[name].fits({key: arrays[f"{name}_{key}"] for key in small.KEYS}) for name in decoded)

    arrays = cache.cached(f"images-{cache.key(2, source, settings.image_size)}", make, notes, sound)
    parts = {}
    for name, decoding in decoded.items():
        found = {key: arrays[f"{name}_{key}"] for key in small.KEYS}
        kept = decoding.kept(found, settings.skip_broken, notes)
        if name == "train":
            folders.complete(listings[name].labels, kept, layout.classes, layout.train)
        parts[name] = Part(found["pixels"][kept], listings[name].labels[kept])
    return Arrays(parts["train"], parts["test"], layout.classes, parts.get("val"), notes, source)


def search_root(settings: Any, expected: str) -> Path:
    """dataset.root, or the first of $MEMEXP_DATA/NAME and data/NAME that is there."""
    name = settings.name
    if settings.root is not None:
        return _expanded(settings.root)
    places = [Path("data") / name]
    if base := os.environ.get("MEMEXP_DATA"):
        places.insert(0, _expanded(base) / name)
    for place in places:
        if place.is_dir():
            return place
    if settings.get("download"):
        return places[0]
    raise DataError(
        f"dataset={name}: nothing at {' or '.join(map(str, places))}; set dataset.root=DIR, where DIR holds {expected}"
        + (", or dataset.download=true" if "download" in settings else "")
    )


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"dataset.root: {path!r} names a home directory that is not known; write it out") from error


def class_names(settings: Any) -> Sequence[str] | None:
    """The classes of a data set, without an image being read; None where only reading them tells. Raises DataError as reading
    them would, for a folder that is not there or not laid out as it has to be.
    """
    if settings.name in ("digits", "synthetic"):
        return tuple(map(str, range(CLASSES.get(settings.name) or settings.num_classes)))
    if settings.name.startswith("cifar"):
        return _cifar_classes(settings)
    if settings.name == "fashion_mnist":
        _check_fashion(settings)
        return None
    return folders.find(search_root(settings, folders.LAYOUT), [], bool(settings.classes)).classes


SOURCES: dict[str, Callable[[Any], Arrays]] = {
    "digits": digits,
    "cifar10": cifar,
    "cifar100": cifar,
    "fashion_mnist": fashion_mnist,
    "synthetic": synthetic,
}
