"""The IDX files of MNIST and its kin: a magic number, the sizes (big-endian 32 bit), then unsigned bytes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from memexp.data.errors import DataError

BYTES = 8  # the type code of unsigned bytes, the only type that images and labels have


def find(folder: Path, name: str) -> Path:
    """folder/name or folder/name.gz. Raises DataError where neither is there."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder / name}: there is no such file, nor {name}.gz")
    return path


def read(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The array in folder/name or folder/name.gz. Raises DataError naming a file that is not there or not sound."""
    path = find(folder, name)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    magic, expected = content[:4], bytes([0, 0, BYTES, dimensions])
    if magic != expected:
        raise DataError(f"{path}: begins with {magic.hex() or 'nothing'}; such a file begins with {expected.hex()}")
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) != start + math.prod(sizes):
        shape = "x".join(map(str, sizes))
        raise DataError(f"{path}: holds {len(content):,} bytes; {shape} values need {start + math.prod(sizes):,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
