"""Random crop and flip of a whole batch at once, on the device where the images lie, and their normalisation."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """padding: zeros around each image before it is cropped back at a random place; flip: left-right, half of the time."""

    padding: int
    flip: bool


def crop_and_flip(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """A batch (n, height, width, channels), each image padded with zeros and cropped back at an offset of its own.

    Offsets are uniform in 0..2 padding in both directions, as those of torchvision's RandomCrop(padding=...) are.
    The batch itself may be written to.
    """
    n, height, width, channels = images.shape
    device, padding = images.device, augmentation.padding
    places = 2 * padding + 1
    # drawn whether or not they are used, so that a flip does not depend on the padding
    top, left = torch.randint(places, (2, n), generator=generator).to(device, non_blocking=True)
    flipped = torch.rand(n, generator=generator) < 0.5
    if padding:
        padded = functional.pad(images, (0, 0, padding, padding, padding, padding)).contiguous()
        # A crop's row is one run of bytes: as a view, `rows[i, y, x]` is the row y of image i from column x on.
        rows = padded.as_strided(
            (n, padded.shape[1], places, width * channels),
            (padded.stride(0), padded.stride(1), padded.stride(2), 1),
        )
        at = (
            torch.arange(n, device=device)[:, None],
            top[:, None] + torch.arange(height, device=device),
            left[:, None],
        )
        # on a CPU, NumPy copies a row as a whole where PyTorch goes byte by byte
        found = torch.from_numpy(rows.numpy()[tuple(i.numpy() for i in at)]) if device.type == "cpu" else rows[at]
        images = found.view(n, height, width, channels)
    if augmentation.flip:
        chosen = flipped.nonzero()[:, 0].to(device, non_blocking=True)
        mirrored = images.index_select(0, chosen).flip(2)
        if device.type == "cpu":
            images.numpy()[chosen.numpy()] = mirrored.numpy()  # whole images, where index_copy_ goes byte by byte
        else:
            images.index_copy_(0, chosen, mirrored)
    return images


class Normalise:
    """uint8 (n, height, width, channels) -> float32 (n, channels, height, width) in NHWC memory.

    (pixels / 255 - mean) / std, with mean and std of each channel in 0..1. `held`: its tensors, on `device`.
    """

    def __init__(self, mean: Tensor, std: Tensor, height: int, width: int, device: torch.device | str = "cpu") -> None:
        if not (std > 0).all():
            raise ValueError(f"dataset.std: {[round(s, 6) for s in std.tolist()]} must be above 0 for each channel")
        # over whole images: broadcasting over three channels would run an inner loop of three elements
        self._scale = (1 / (255 * std)).repeat(height * width).to(device)
        self._shift = (mean / std).repeat(height * width).to(device)
        self.held = [self._scale, self._shift]

    def __call__(self, pixels: Tensor) -> Tensor:
        values = pixels.flatten(1).float().mul_(self._scale).sub_(self._shift)
        return values.view(pixels.shape).permute(0, 3, 1, 2)
