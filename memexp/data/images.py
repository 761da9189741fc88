"""One image file as RGB of 8 bits a channel.

JPEG goes through torchvision's decoder, which gives the pixels that Pillow gives in less time; everything else, and whatever
that decoder cannot do, goes through Pillow. As in torchvision's own loader, transparency is dropped (the colours below it
are kept) and the first picture of an animation is taken.
"""

import functools
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memexp.data.errors import DataError, reason, shown

# Those whose files are pictures: Pillow also opens documents, arrays of measurements and some by way of other programs.
FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "PPM", "WEBP", "AVIF", "JPEG2000"),
    *("TGA", "PCX", "SGI", "QOI"),
)
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@functools.cache
def suffixes() -> frozenset[str]:
    """Of the files that are read, in lower case."""
    Image.init()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


def read(path: str) -> np.ndarray:
    """The whole image as uint8 (height, width, 3). Raises DataError naming a file that is cut short or no image.

    16-bit grey, and colour of PNG, are scaled to 8 bits by the range that the file uses: its values fit 8, 12 or 16 bits. PGM
    says its range, and of other 16-bit colour the upper byte is taken.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        size = _jpeg_size(content)
        if size is not None and size[0] * size[1] <= (Image.MAX_IMAGE_PIXELS or 0) and size[2] in (1, 3):
            try:
                from torchvision.io import decode_jpeg  # torchvision takes a second to import

                pixels = decode_jpeg(_bytes(content))
                return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
            except RuntimeError:
                pass  # Pillow says why, or reads it
        return _with_pillow(content)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a damaged file may raise anything inside a decoder
        why = reason(error) if not isinstance(error, Image.UnidentifiedImageError) else _unidentified(content)
        raise DataError(
            f"{shown(path)}: not a readable image ({why}). Replace or remove it, or set dataset.skip_broken=true", path
        ) from error


def _with_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.format == "PNG" and any("16B" in str(tile[3]) for tile in image.tile) and "RGB" in image.mode:
            image.verify()  # Pillow would keep the upper byte of each colour only, which is nearly black in 12 bits
            from torchvision.io import ImageReadMode, decode_png

            deep = decode_png(_bytes(content), mode=ImageReadMode.RGB)
            return _eight_bits(deep.permute(1, 2, 0).to(torch.int32).numpy())
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
            grey = _eight_bits(np.asarray(image))
            return np.repeat(grey[..., None], 3, axis=2)
        if image.format == "PPM" and image.mode == "I":  # which Pillow has scaled to 16 bits
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels are of PIL's mode {image.mode}, whose range is not known")
        transparent = image.mode == "P" and "transparency" in image.info
        whole = image.convert("RGBA") if transparent else image  # what Pillow asks for, in a warning
        return np.array(whole.convert("RGB"))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """The upper 8 of the 8, 12 or 16 bits that hold all values."""
    largest = int(values.max(initial=0))
    return (values >> (0 if largest < 1 << 8 else 4 if largest < 1 << 12 else 8)).astype(np.uint8)


def _jpeg_size(content: bytes) -> tuple[int, int, int] | None:
    """Height, width and components from a JPEG's frame header; None where there is none to be found."""
    if content[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker in START_OF_FRAME:
            height, width = (int.from_bytes(content[at + i : at + i + 2], "big") for i in (5, 7))
            return height, width, content[at + 9]
        at += 2 + length
    return None


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _unidentified(content: bytes) -> str:
    return "the file is empty" if not content else f"it begins as no image does: {content[:4].hex(' ')}"
