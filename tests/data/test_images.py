"""One image file: what its pixels become, and what is said of one that cannot be read."""

import io
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memexp.data import DataError, images

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
COLOURS = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)


def saved(path: Path, pixels: np.ndarray | Image.Image, **options) -> str:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return str(path)


@pytest.mark.parametrize("form", ["P2", "P5"])
@pytest.mark.parametrize("most", [1000, 4095, 65535])
def test_c9_grey_in_a_pgm_of_more_than_8_bits_is_scaled_by_the_range_that_it_says(tmp_path, form, most):
    values = np.array([0, most // 4, most // 2])
    pixels = values.astype(">u2").tobytes() if form == "P5" else " ".join(map(str, values)).encode()
    (tmp_path / "x.pgm").write_bytes(f"{form} 3 1 {most}\n".encode() + pixels)
    found = images.read(str(tmp_path / "x.pgm"))
    assert np.abs(found - (values / most * 255)[None, :, None]).max() < 1


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_c9_grey_in_16_bits_is_scaled_by_the_range_that_it_uses(tmp_path, bits):
    values = (RAMP * (2**bits - 1)).astype(np.uint16)
    for suffix in ("png", "tif"):
        found = images.read(saved(tmp_path / f"x.{suffix}", values))
        assert abs(found[..., 0] - RAMP * 255).max() < 1.01
        assert (found == found[..., :1]).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("alpha", [False, True])
def test_c9_colour_in_16_bits_is_too(tmp_path, bits, alpha):
    """Pillow alone keeps the upper byte, which is nearly black for 12 bits."""
    values = np.stack([RAMP, RAMP[::-1], RAMP.T], 2) * (2**bits - 1)
    path = tmp_path / "x.png"
    path.write_bytes(png16(values.astype(np.uint16), alpha))
    assert abs(images.read(str(path)) / 255 - values / (2**bits - 1)).max() < 1 / 200


def png16(values: np.ndarray, alpha: bool) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write: signature, header, one block of rows, end."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = values.shape
    if alpha:
        values = np.concatenate([values, np.full((height, width, 1), values.max(), np.uint16)], 2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 6 if alpha else 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_every_kind_of_colour_becomes_rgb_without_a_warning(tmp_path):
    picture = Image.fromarray(COLOURS)
    transparent = picture.convert("RGBA")
    transparent.putalpha(0)
    palette = picture.quantize(16)
    grey = np.asarray(picture.convert("L"))
    cases = {
        "rgb.png": (picture, COLOURS),
        "rgba.png": (transparent, COLOURS),  # the colours below what is transparent, as torchvision's loader gives
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
        "grey.png": (picture.convert("L"), np.repeat(grey[..., None], 3, 2)),
        "bits.png": (picture.convert("1"), np.asarray(picture.convert("1").convert("RGB"))),
        "grey alpha.png": (picture.convert("LA"), np.repeat(grey[..., None], 3, 2)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, (image, expected) in cases.items():
            assert np.array_equal(images.read(saved(tmp_path / name, image)), expected), name
        saved(tmp_path / "p.png", palette, transparency=bytes(range(16)))
        assert np.array_equal(images.read(str(tmp_path / "p.png")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "quality": 30}])
def test_c14_jpeg_has_the_pixels_that_pillow_gives(tmp_path, mode, options):
    path = saved(tmp_path / "x.jpg", Image.fromarray(COLOURS).convert(mode), **options)
    assert np.array_equal(images.read(path), np.asarray(Image.open(path).convert("RGB")))


def test_c14_damaged_jpegs_are_judged_as_pillow_judges_them(tmp_path):
    content = bytearray(Path(saved(tmp_path / "x.jpg", COLOURS)).read_bytes())
    generator = np.random.default_rng(0)
    path, broken = tmp_path / "bad.jpg", 0
    for case in range(200):
        bad = bytearray(content)
        if case % 2:
            bad = bad[: generator.integers(len(bad))]
        else:
            bad[generator.integers(len(bad))] = generator.integers(256)
        path.write_bytes(bad)
        try:
            with Image.open(io.BytesIO(bad), formats=images.FORMATS) as image:
                expected = np.asarray(image.convert("RGB"))
        except Exception:
            broken += 1
            with pytest.raises(DataError, match=r"bad\.jpg: not a readable image"):
                images.read(str(path))
        else:
            assert np.array_equal(images.read(str(path)), expected)
    assert 50 < broken < 200


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("<html>404"), "it begins as no image does: 3c 68 74 6d"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path, "TIFF"), "PIL's mode F"),
        (lambda path: path.write_bytes(huge_jpeg()), "exceeds limit"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "begins as no image"),
    ],
)
def test_c4_a_file_that_cannot_be_read_is_named_with_why(tmp_path, make, why):
    path = tmp_path / "x.jpg"
    make(path)
    with pytest.raises(
        DataError, match=rf"x\.jpg: not a readable image \(.*{why}.*\)\. .*dataset\.skip_broken=true"
    ) as e:
        images.read(str(path))
    assert e.value.file == str(path)
    again = pickle.loads(pickle.dumps(e.value))  # as it comes out of a worker
    assert (type(again), str(again), again.file) == (DataError, str(e.value), str(path))


def huge_jpeg() -> bytes:
    """A JPEG whose header claims 65,500 x 65,500 pixels."""
    content = io.BytesIO()
    Image.fromarray(COLOURS).save(content, "JPEG")
    found = bytearray(content.getvalue())
    at = found.index(b"\xff\xc0") + 5
    found[at : at + 4] = (65500).to_bytes(2, "big") * 2
    return bytes(found)


def test_c4_a_name_that_is_not_utf8_is_read_and_shown(tmp_path):
    raw = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    name = os.fsdecode(raw)
    Image.fromarray(COLOURS).save(open(raw, "wb"), "PNG")  # noqa: SIM115
    assert np.array_equal(images.read(name), COLOURS)
    with open(raw, "wb") as file:
        file.write(b"no image")
    with pytest.raises(DataError, match=r"caf\\xe9\.png: not a readable image") as error:
        images.read(name)
    str(error.value).encode()  # no lone surrogates
