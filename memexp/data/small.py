"""Class folders of images so small that all are decoded at once and held as one array."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from memexp.data import images
from memexp.data.cache import Contents
from memexp.data.errors import DataError, shown
from memexp.data.folders import Listing

KEYS = ("pixels", "sizes", "broken")
NAMED = 20  # broken files that a note lists


class Decoding:
    """One split, scaled to size x size pixels. Images that are not square are refused, as those that cannot be read."""

    def __init__(self, listing: Listing, size: int) -> None:
        self.files, self.size = listing.files, size

    def arrays(self) -> Contents:
        """pixels (n, size, size, 3) with zeros where a file is broken; sizes (n, 2) as found; numbers of the broken."""
        pixels = np.zeros((len(self.files), self.size, self.size, 3), np.uint8)
        sizes = np.zeros((len(self.files), 2), np.int64)

        def one(number: int) -> bool:
            try:
                pixels[number], sizes[number] = self._decoded(self.files[number])
            except DataError:
                return False
            return True

        with ThreadPoolExecutor() as pool:
            sound = np.fromiter(pool.map(one, range(len(self.files))), bool, len(self.files))
        return {"pixels": pixels, "sizes": sizes, "broken": np.flatnonzero(~sound)}

    def fits(self, arrays: Contents) -> bool:
        """Whether these can be what `arrays` gives."""
        n, broken = len(self.files), arrays["broken"]
        return (
            (arrays["pixels"].shape, arrays["pixels"].dtype) == ((n, self.size, self.size, 3), np.uint8)
            and (arrays["sizes"].shape, arrays["sizes"].dtype) == ((n, 2), np.int64)
            and (broken.ndim, broken.dtype) == (1, np.int64)
            and bool(((broken >= 0) & (broken < n)).all())
        )

    def kept(self, arrays: Contents, skip_broken: bool, notes: list[str]) -> np.ndarray:
        """Numbers of the images to use; what is left out or was scaled is said. Raises DataError for a broken one."""
        broken = arrays["broken"].tolist()
        if broken and not skip_broken:
            try:
                self._decoded(self.files[broken[0]])
            except DataError as error:
                more = f" ({len(broken)} files in all)" if len(broken) > 1 else ""
                raise DataError(f"{error}{more}", error.file) from error
        if broken:
            notes.append(left_out([self.files[i] for i in broken]))
        kept = np.setdiff1d(np.arange(len(self.files)), arrays["broken"])
        scaled = Counter(f"{h}x{w}" for h, w in arrays["sizes"][kept].tolist() if (h, w) != (self.size, self.size))
        if scaled:
            found = ", ".join(f"{count} of {size}" for size, count in scaled.most_common(5))
            notes.append(
                f"{scaled.total()} of {len(kept)} images in {shown(os.path.commonpath(self.files))} are scaled to "
                f"{self.size}x{self.size} pixels ({found})"
            )
        return kept

    def _decoded(self, file: str) -> tuple[np.ndarray, tuple[int, int]]:
        pixels = images.read(file)
        height, width = pixels.shape[:2]
        if height != width:
            raise DataError(
                f"{shown(file)}: {width}x{height} pixels; expected {self.size}x{self.size}, or a square that can be "
                "scaled to it. Replace or remove it, or set dataset.skip_broken=true",
                file,
            )
        if height != self.size:
            pixels = np.asarray(Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BILINEAR))
        return pixels, (height, width)


def left_out(files: Sequence[str]) -> str:
    """The note about broken files."""
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return f"{len(files)} broken images are left out: {', '.join(map(shown, files[:NAMED]))}{more}"


def content(folder: str, files: Sequence[str]) -> Iterator[bytes]:
    """What the files hold and their places in `folder`: the same wherever the folder is moved to."""
    for file in files:
        try:
            with open(file, "rb") as opened:
                found = opened.read()
        except OSError:
            found = b"cannot be read"
        yield b"%s\0%d\0" % (os.fsencode(file.removeprefix(folder)), len(found))
        yield found
