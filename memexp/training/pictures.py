"""Small pictures for TensorBoard, drawn with Pillow: a plotting library takes a second to import and another to draw each."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER = (40, 40, 40), (255, 255, 255)
BLUE = (8, 48, 107)  # of a whole share
MOST_NAMED = 20  # classes, beyond which cells are too small for numbers
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
    """Counts of (true class, predicted class), coloured by the share of the true class."""
    share = (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist()
    number, named = len(classes), len(classes) <= MOST_NAMED
    cell, margin = (44, 130) if named else (max(2, 640 // number), 30)
    font = ImageFont.load_default(FONT)
    size = margin + number * cell
    picture = Image.new("RGB", (size + 10, size + 10), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((6, 6), "true class: rows" if named else "rows: true class; columns: predicted", INK, font)
    if named:
        draw.text((6, 8 + FONT), "predicted: columns", INK, font)
    for row in range(number):
        for column in range(number):
            weight = share[row][column]
            colour = tuple(round(p + (b - p) * weight) for p, b in zip(PAPER, BLUE, strict=True))
            left, top = margin + column * cell, margin + row * cell
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), colour)
            if named and (count := int(counts[row, column])):
                place = (left + cell / 2, top + cell / 2)
                draw.text(place, str(count), PAPER if weight > 0.5 else INK, font, anchor="mm")
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
