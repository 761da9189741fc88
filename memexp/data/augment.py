"""Random crop and flip of a whole batch at once, on the device where the images lie."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """padding: zeros around each image before it is cropped back at a random place; flip: left-right, half of the time."""

    padding: int
    flip: bool


def crop_and_flip(
    padded: Tensor, indices: Tensor, augmentation: Augmentation, height: int, width: int, generator: torch.Generator
) -> Tensor:
    """Images `indices` of `padded` (n, height + 2 padding, width + 2 padding, channels), each at an offset of its own.

    Offsets are uniform in 0..2 padding in both directions, as those of torchvision's RandomCrop(padding=...) are.
    Returns (len(indices), height, width, channels).
    """
    n, device = len(indices), padded.device
    places = 2 * augmentation.padding + 1
    top, left = torch.randint(places, (2, n), generator=generator).to(device, non_blocking=True)
    flipped = torch.rand(n, generator=generator) < 0.5
    channels = padded.shape[3]
    # A crop's row is one run of bytes: as a view, `rows[i, y, x]` is the row y of image i from column x on.
    rows = padded.as_strided(
        (len(padded), padded.shape[1], places, width * channels),
        (padded.stride(0), padded.stride(1), padded.stride(2), 1),
    )
    at = (indices[:, None], top[:, None] + torch.arange(height, device=device), left[:, None])
    # on a CPU, NumPy copies a row as a whole where PyTorch goes byte by byte
    found = torch.from_numpy(rows.numpy()[tuple(i.numpy() for i in at)]) if device.type == "cpu" else rows[at]
    cropped = found.view(n, height, width, channels)
    if augmentation.flip:
        chosen = flipped.nonzero()[:, 0].to(device, non_blocking=True)
        mirrored = cropped.index_select(0, chosen).flip(2)
        if device.type == "cpu":
            cropped.numpy()[chosen.numpy()] = mirrored.numpy()  # whole images, where index_copy_ goes byte by byte
        else:
            cropped.index_copy_(0, chosen, mirrored)
    return cropped


class Normalise:
    """uint8 (n, height, width, channels) -> float32 (n, channels, height, width) in NHWC memory.

    (pixels / 255 - mean) / std, with mean and std of each channel in 0..1, on the device of the images.
    """

    def __init__(self, mean: Tensor, std: Tensor, height: int, width: int) -> None:
        # over whole images: broadcasting over three channels would run an inner loop of three elements
        self._scale = (1 / (255 * std)).repeat(height * width)
        self._shift = (mean / std).repeat(height * width)

    def __call__(self, pixels: Tensor) -> Tensor:
        values = pixels.flatten(1).float().mul_(self._scale).sub_(self._shift)
        return values.view(pixels.shape).permute(0, 3, 1, 2)
