"""Small pictures for TensorBoard, drawn with Pillow: a plotting library takes a second to import and another to draw each."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

INK, PAPER = (40, 40, 40), (255, 255, 255)
BLUE = (8, 48, 107)  # of a whole share
MOST_NAMED = 20  # classes, beyond which cells are too small for numbers
MOST_CELLS = 1000  # in a row of a picture
FONT = 12


def batch(images: Tensor, labels: Tensor, classes: Sequence[str], columns: int = 8) -> Image.Image:
    """The first 32 images (n, channels, h, w) as the network sees them, each under its class; brightness over all of them."""
    shown = images[: 4 * columns].float().cpu()
    low, high = shown.amin(), shown.amax()
    pixels = ((shown - low) / (high - low).clamp_min(1e-12) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    side = max(96, min(160, shown.shape[3]))
    cell, font = side + 6, ImageFont.load_default(FONT)
    rows = -(-len(shown) // columns)
    picture = Image.new("RGB", (columns * cell, rows * (cell + FONT + 6)), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (values, label) in enumerate(zip(pixels.numpy(), labels.tolist(), strict=False)):
        left, top = number % columns * cell + 3, number // columns * (cell + FONT + 6)
        draw.text((left, top + 2), short(classes[label]), INK, font)
        image = Image.fromarray(values if values.shape[2] == 3 else values[..., 0])
        picture.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, top + FONT + 6))
    return picture


def confusion(counts: Tensor, classes: Sequence[str]) -> Image.Image:
    """Counts of (true class, predicted class), coloured by the share of the true class. Of very many classes, several in a row
    share a cell.
    """
    together = -(-len(classes) // MOST_CELLS)
    if together > 1:
        cells = -(-len(classes) // together)
        padded = functional.pad(counts, (0, cells * together - len(classes)) * 2)
        counts = padded.reshape(cells, together, cells, together).sum((1, 3))
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    number, named = len(counts), len(classes) <= MOST_NAMED
    cell, margin = (44, 130) if named else (max(2, 640 // number), 30)
    font = ImageFont.load_default(FONT)
    size = margin + number * cell
    picture = Image.new("RGB", (size + 10, size + 10), PAPER)
    draw = ImageDraw.Draw(picture)
    told = f"rows: true class; columns: predicted{f'; {together} classes a cell' if together > 1 else ''}"
    draw.text((6, 6), "true class: rows" if named else told, INK, font)
    if named:
        draw.text((6, 8 + FONT), "predicted: columns", INK, font)
    paper, blue = (torch.tensor(colour, dtype=torch.float64) for colour in (PAPER, BLUE))
    colours = (paper + (blue - paper) * share[..., None]).round().to(torch.uint8)  # a million cells for ImageNet
    drawn = Image.fromarray(colours.numpy()).resize((number * cell, number * cell), Image.Resampling.NEAREST)
    picture.paste(drawn, (margin, margin))
    for row, column in counts.nonzero().tolist() if named else ():
        place = (margin + (column + 0.5) * cell, margin + (row + 0.5) * cell)
        ink = PAPER if share[row, column] > 0.5 else INK
        draw.text(place, str(int(counts[row, column])), ink, font, anchor="mm")
    if named:
        for position, name in enumerate(map(short, classes)):
            middle = margin + position * cell + cell // 2
            draw.text((margin - 6, middle), name, INK, font, anchor="rm")
            upright = Image.new("RGB", (margin - 40, FONT + 4), PAPER)
            ImageDraw.Draw(upright).text((0, 0), name, INK, font)
            picture.paste(upright.rotate(90, expand=True), (middle - FONT // 2 - 2, 34))
    return picture


def short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
