"""A user's own data set: what `dataset._target_` makes, as Arrays.

It makes (train, test) or (train, val, test). Each is a torch Dataset of (image, label), or a pair (images, labels). Images are
uint8: PIL's, arrays (height, width, channels) or tensors (channels, height, width), all of one size; labels are integers
from 0. Classes are named by the training set's `classes`, where it has them: a list, or an array, in the order of the labels.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from memexp import own
from memexp.choices import arguments
from memexp.data.arrays import Arrays, Part
from memexp.data.errors import DataError

Shape = tuple[int, int, int]
_described: dict[str, tuple[int, Shape]] = {}
_waiting: dict[str, Arrays] = {}  # what was made to be described, until it is loaded


def load(settings: Any) -> Arrays:
    """Raises DataError for what cannot be made or is no data set."""
    key = _key(settings)
    arrays = _waiting.pop(key, None) or _make(settings)
    height, width, channels = arrays.train.images.shape[1:]
    _described[key] = len(arrays.classes), (channels, height, width)
    return arrays


def describe(settings: Any) -> tuple[int, Shape]:
    """Number of classes and shape of an image; only its maker knows, so it is made for that where it was not loaded yet."""
    key = _key(settings)
    if key not in _described:
        _waiting.clear()
        _waiting[key] = load(settings)
    return _described[key]


def _key(settings: Any) -> str:
    return json.dumps(_given(settings) | {"_target_": settings["_target_"]}, sort_keys=True, default=str)


def _given(settings: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(settings, resolve=True) if OmegaConf.is_config(settings) else dict(settings)
    assert isinstance(plain, dict)
    return arguments("dataset", {str(key): value for key, value in plain.items()})


def _make(settings: Any) -> Arrays:
    path = settings["_target_"]
    try:
        build, given = own.bound(path, {}, _given(settings))
    except ValueError as error:
        raise DataError(f"dataset: {error}") from error
    made = build(**given)
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        raise DataError(
            f"dataset: {path} made a {type(made).__name__}; it must make (train, test) or (train, val, test)"
        )
    names = ("train", "test") if len(made) == 2 else ("train", "val", "test")
    parts = {name: _part(path, name, split) for name, split in zip(names, made, strict=True)}
    count = 1 + max(int(part.labels.max(initial=0)) for part in parts.values())
    classes = _names(path, getattr(made[0], "classes", None)) or tuple(map(str, range(count)))
    if len(classes) < 2:
        raise DataError(
            f"dataset: {path}: there is one class only, {classes[0]}; a classifier needs two classes at least"
        )
    arrays = Arrays(parts["train"], parts["test"], classes, parts.get("val"))
    shapes = {name: part.images.shape[1:] for name, part in parts.items() if len(part.images)}
    if len(set(shapes.values())) > 1:
        raise DataError(f"dataset: {path}: the splits have images of different sizes: {shapes}")
    return arrays.checked(path)


def _names(path: str, given: Any) -> tuple[str, ...]:
    """What the training set calls its classes; nothing where it does not say."""
    if given is None:
        return ()
    if not isinstance(given, Sequence | np.ndarray | Tensor):
        raise DataError(
            f"dataset: {path}: the train split has classes={given!r:.60}; they must be a list of names, in the order of labels"
        )
    return tuple(map(str, given.tolist() if isinstance(given, np.ndarray | Tensor) else given))


def _part(path: str, name: str, split: Any) -> Part:
    """One split in memory. Raises DataError, naming it, for what it cannot be."""
    where = f"dataset: {path}: the {name} split"
    if isinstance(split, tuple | list) and len(split) == 2 and all(hasattr(part, "shape") for part in split):
        images, labels = _array(split[0], where), np.asarray(split[1])
    elif hasattr(split, "__getitem__") and hasattr(split, "__len__"):
        items = [split[i] for i in range(len(split))]
        if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            raise DataError(f"{where} must hold (image, label), and holds a {type(items[0]).__name__}")
        pictures = [_array(image, where, single=True) for image, _ in items]
        sizes = sorted({picture.shape for picture in pictures})
        if len(sizes) > 1:
            raise DataError(
                f"{where} has images of different sizes, such as {sizes[0]} and {sizes[-1]}; make them equal"
            )
        images = np.stack(pictures) if pictures else np.empty((0, 1, 1, 1), np.uint8)
        labels = np.asarray([_label(label, where) for _, label in items], np.int64)
    else:
        raise DataError(
            f"{where} is a {type(split).__name__}; it must be a torch Dataset of (image, label) or a pair (images, labels)"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where} has labels of {labels.dtype} and shape {labels.shape}; they must be integers, one an image"
        )
    return Part(np.ascontiguousarray(images), labels.astype(np.int64))


def _label(label: Any, where: str) -> int:
    try:
        number = int(label)
        if number == float(label) and abs(number) < 2**63:
            return number
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise DataError(f"{where} has a label {label!r:.60}; labels must be whole numbers, those of the classes from 0 on")


def _array(images: Any, where: str, single: bool = False) -> np.ndarray:
    """(n, height, width, channels), or one image without n."""
    found = images if isinstance(images, Tensor) else np.asarray(images)
    if single and found.ndim == 2:  # PIL's greyscale
        found = found[..., None]
    if found.dtype not in (np.uint8, torch.uint8) or found.ndim != (3 if single else 4):
        raise DataError(
            f"{where} has images of {found.dtype} and shape {tuple(found.shape)}; they must be uint8 (0 to 255), arrays "
            "(height, width, channels) or tensors (channels, height, width); the runner normalises them itself"
        )
    return np.moveaxis(found.cpu().numpy(), -3, -1) if isinstance(found, Tensor) else found
