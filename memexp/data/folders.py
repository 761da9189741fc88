"""Images in class folders: root/train/CLASS/*.jpg and root/val or root/test."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from memexp.data.arrays import class_numbers
from memexp.data.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass
class Listing:
    """Files of one split with the number of their class."""

    files: list[Path]
    labels: list[int]
    classes: tuple[str, ...]


def layout(root: Path) -> str:
    return (
        f"expected: {root}/train/CLASS/*.jpg and {root}/test/CLASS/*.jpg (or val in place of test), one folder a class"
    )


def find_root(root: Path, notes: list[str]) -> Path:
    """`root`, or the one folder in it that holds train/ (as an unpacked archive does)."""
    if not root.is_dir():
        raise DataError(f"dataset.root: there is no folder {root}; {layout(root)}")
    if (root / "train").is_dir():
        return root
    inner = [path for path in sorted(root.iterdir()) if (path / "train").is_dir()]
    if len(inner) != 1:
        raise DataError(f"dataset.root: {root} holds no train/ folder; {layout(root)}")
    notes.append(f"the images are taken from {inner[0]}")
    return inner[0]


def splits(root: Path, wanted: Sequence[str | int] | None = None) -> tuple[Listing, Listing]:
    """The training split and the one to evaluate on (test, or else val).

    wanted: the classes that must have images, by name or number; None: all.
    """
    evaluation = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if evaluation is None:
        raise DataError(f"{root} holds train/ but neither test/ nor val/; {layout(root)}")
    classes = _classes(root / "train", root)
    unknown = sorted(set(_classes(evaluation, root)) - set(classes))
    if unknown:
        raise DataError(
            f"{evaluation} has class folders that {root / 'train'} has not: {', '.join(unknown[:5])}; "
            "both need the same classes"
        )
    needed = {classes[number] for number in class_numbers(wanted, classes)} if wanted else set(classes)
    return _listing(root / "train", classes, needed, complete=True), _listing(
        evaluation, classes, needed, complete=False
    )


def _classes(folder: Path, root: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no class folders; {layout(root)}")
    return tuple(names)


def _listing(folder: Path, classes: Sequence[str], needed: set[str], complete: bool) -> Listing:
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        if not (folder / name).is_dir():
            if complete:
                raise DataError(f"{folder / name}: the class folder is missing")
            continue
        images = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not images and name in needed:
            raise DataError(
                f"{folder / name}: the class folder holds no images ({', '.join(sorted(SUFFIXES))}); "
                "put some in, remove the folder, or leave the class out with dataset.classes"
            )
        files += images
        labels += [number] * len(images)
    return Listing(files, labels, tuple(classes))


def read(path: Path) -> Image.Image:
    """The whole image as RGB of 8 bits; a file that is cut short or no image is named."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # PIL would clip 16-bit grey at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels are of PIL's mode {image.mode}, whose range is not known")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: not a readable image ({error}). Replace or remove it, or set dataset.skip_broken=true"
        ) from error


def fingerprint(root: Path, files: Sequence[Path]) -> str:
    """Stands for the content of the files and their places below `root`: the same wherever the folder is moved to."""
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def decode(listing: Listing, size: int, skip_broken: bool) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """All images as uint8 (n, size, size, 3), their labels, and the files that were left out as broken.

    Images of another size are an error unless they can be scaled: width and height must be equal.
    """

    def one(path: Path) -> np.ndarray | DataError:
        try:
            image = read(path)
        except DataError as error:
            return error
        if image.size != (size, size):
            if image.width != image.height:
                return DataError(f"{path}: {image.width}x{image.height} pixels; expected {size}x{size}")
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(one, listing.files))
    broken = [str(image) for image in found if isinstance(image, DataError)]
    if broken and not skip_broken:
        more = f" ({len(broken)} files in all)" if len(broken) > 1 else ""
        raise DataError(broken[0] + more)
    kept = [i for i, image in enumerate(found) if not isinstance(image, DataError)]
    if not kept:
        raise DataError(f"none of the {len(found)} images could be read; the first: {broken[0]}")
    pixels = np.stack([np.asarray(found[i]) for i in kept])
    left_out = [listing.files[i] for i, image in enumerate(found) if isinstance(image, DataError)]
    return pixels, np.asarray([listing.labels[i] for i in kept], dtype=np.int64), left_out


def broken(files: Sequence[Path]) -> list[Path]:
    """Those that cannot be decoded."""

    def fails(path: Path) -> bool:
        try:
            read(path)
        except DataError:
            return True
        return False

    with ThreadPoolExecutor() as pool:
        return [path for path, bad in zip(files, pool.map(fails, files), strict=True) if bad]
