"""Images too many or too large to hold in memory: decoded, cropped and resized by workers, batch by batch.

Workers hand over bytes; they become numbers on the device. What an image becomes depends on (seed, epoch, its place in the
list of files) alone, so a resumed run sees the same bits, and also one that leaves broken files out from there on: the
order of an epoch is that of all files, with the broken ones taken out of it.
"""

import math
import random
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from memexp.data import images
from memexp.data.augment import Normalise
from memexp.data.batches import Share, count_batches, mix_seed, order
from memexp.data.errors import DataError, reason

Request = tuple[int, int | None]  # the number of a file; the seed of its crop and flip, None for the centre
Batch = tuple[Tensor, Tensor]  # uint8 (n, size, size, 3), int64 (n)
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of random crops (Szegedy et al. 2015), as torchvision draws them
RESIZED = 256 / 224  # shorter side before the centre crop, to the crop, as ImageNet is commonly evaluated


def resize_size(settings: Any) -> int:
    """Pixels of the shorter side before the centre crop: dataset.resize_size, or 256/224 of image_size."""
    size, given = settings.image_size, settings.resize_size
    if given is not None and given < size:
        raise DataError(
            f"dataset.resize_size: {given} is less than dataset.image_size={size}, and a crop cannot be larger than the "
            f"image it is cut from; set at least {size}, or null for {round(size * RESIZED)}"
        )
    return given or round(size * RESIZED)


class Samples(Dataset[tuple[Tensor, int] | DataError]):
    """A request -> one image (size, size, 3) with its label.

    A file that cannot be read is given back as the error: raised in a worker, it would arrive wrapped in two tracebacks.
    """

    def __init__(self, files: Sequence[str], labels: np.ndarray, size: int, resize: int, flip: bool) -> None:
        self.files, self.labels, self.size, self.resize, self.flip = files, labels, size, resize, flip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, request: Request) -> tuple[Tensor, int] | DataError:
        number, seed = request
        try:
            pixels = images.read(self.files[number])
        except DataError as error:
            return error
        image = self._centre(pixels) if seed is None else self._random(pixels, random.Random(seed))
        return image, int(self.labels[number])

    def _random(self, pixels: np.ndarray, generator: random.Random) -> Tensor:
        top, left, height, width = random_crop(pixels.shape[0], pixels.shape[1], generator)
        image = _resized(pixels[top : top + height, left : left + width], (self.size, self.size))
        return image.flip(1) if self.flip and generator.random() < 0.5 else image

    def _centre(self, pixels: np.ndarray) -> Tensor:
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        image = _resized(pixels, (self.resize * height // shorter, self.resize * width // shorter))
        top, left = (round((side - self.size) / 2) for side in image.shape[:2])
        return image[top : top + self.size, left : left + self.size]


def random_crop(height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop of random area and shape; the largest in the middle if none drawn fits."""
    for _ in range(TRIES):
        area = height * width * generator.uniform(*AREA)
        ratio = math.exp(generator.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return generator.randint(0, height - h), generator.randint(0, width - w), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Bilinear, with antialiasing; (height, width, 3) in and out."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    from torchvision.transforms.v2 import functional  # torchvision takes a second to import

    return functional.resize_image(image, list(size), antialias=True).permute(1, 2, 0)


def _collate(samples: list[tuple[Tensor, int] | DataError]) -> Batch | DataError:
    """One batch, or the first error in it."""
    found = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        found.append(sample)
    return torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found])


class Loader:
    """Serves requests in their order, by workers that stay for the next epoch, or in this process with workers=0.

    The splits of a data set share one, as they are not read at the same time; where they are, the second is served by
    workers of its own. Nothing is drawn from torch's global generator.
    """

    def __init__(self, samples: Samples, workers: int, device: torch.device) -> None:
        self.samples, self.workers, self.device = samples, workers, device
        self._kept: list[DataLoader[Any]] = []
        self._current = _Current()
        self._busy = False
        # held from outside, or a circle of objects around this one would be taken apart in an order in which workers
        # are told too late and waited for in vain
        weakref.finalize(self, _end, self._kept)

    def batches(self, requests: Iterator[list[Request]]) -> Iterator[Batch]:
        """Raises DataError, naming the file, where an image cannot be read: after all batches before it."""
        if self.workers == 0:
            yield from map(self._sound, (_collate([self.samples[r] for r in batch]) for batch in requests))
        elif self._busy:
            yield from map(self._sound, self._loader(requests, stay=False))
        else:
            self._busy, self._current.requests = True, requests
            try:
                if not self._kept:
                    self._kept.append(self._loader(self._current, stay=True))
                yield from map(self._sound, self._kept[0])
            except Exception as error:
                _end(self._kept)
                if not (isinstance(error, RuntimeError) and "DataLoader worker" in str(error)):
                    raise
                raise DataError(
                    f"a process that decodes images has died ({reason(error)}); lower dataset.workers if memory is "
                    "short, or set dataset.workers=0"
                ) from error
            finally:
                self._busy, self._current.requests = False, iter(())

    def _loader(self, requests: Any, stay: bool) -> DataLoader[Any]:
        return DataLoader(
            self.samples,
            batch_sampler=requests,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            persistent_workers=stay,
            generator=torch.Generator(),  # or each start would draw from the global one, and a resume is one more start
        )

    @staticmethod
    def _sound(batch: Batch | DataError) -> Batch:
        if isinstance(batch, DataError):
            raise DataError(str(batch), batch.file)
        return batch


def _end(kept: list[DataLoader[Any]]) -> None:
    """Ends the workers of a loader, which would otherwise live as long as something holds on to an epoch of theirs."""
    for loader in kept:
        if (epoch := getattr(loader, "_iterator", None)) is not None:
            epoch._shutdown_workers()
    kept.clear()


class _Current:
    """The requests of the epoch that workers are asked for now."""

    requests: Iterator[list[Request]] = iter(())

    def __iter__(self) -> Iterator[list[Request]]:
        return self.requests


class StreamedBatches:
    """Batches of image files.

    numbers: of the split's files, in the loader's list. augment: random resized crop and flip; else the centre.
    broken: whether each file of the list is left out.
    """

    def __init__(
        self,
        loader: Loader,
        numbers: Tensor,
        broken: Tensor,
        batch_size: int,
        seed: int,
        normalise: Normalise,
        device: torch.device,
        training: bool,
        augment: bool,
        share: Share,
    ) -> None:
        self.images = int((~broken[numbers]).sum())
        self.batch_size, self.seed, self.training, self.share, self.device = batch_size, seed, training, share, device
        self._loader, self._numbers, self._broken, self._augment = loader, numbers, broken, augment
        self._normalise = normalise
        self.held = normalise.held

    def __len__(self) -> int:
        return count_batches(self.images, self.batch_size, self.share.size, self.training)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in self._loader.batches(iter(self.requests(epoch, start))):
            on_device = pixels.to(self.device, non_blocking=True)
            yield self._normalise(on_device), labels.to(self.device, non_blocking=True)

    def requests(self, epoch: int, start: int = 0) -> "Requests":
        """What is asked of the loader from batch `start` on."""
        numbers = self._numbers
        if self.training:
            numbers = numbers[order(self.seed, epoch, len(numbers))]
        numbers = numbers[~self._broken[numbers]]
        seeds = (self.seed, epoch) if self._augment else None
        return Requests(numbers, self.batch_size, self.share, self.training, seeds, range(start, len(self)))


@dataclass(frozen=True)
class Requests:
    """The batches of an epoch, made as they are asked for. seeds: of the run and the epoch, None without augmentation."""

    numbers: Tensor
    batch_size: int
    share: Share
    training: bool
    seeds: tuple[int, int] | None
    batches: range

    def __iter__(self) -> Iterator[list[Request]]:
        whole = self.batch_size * self.share.size
        for batch in self.batches:
            mine = self.share.of(self.numbers[batch * whole : (batch + 1) * whole], self.training).tolist()
            if mine:
                yield [(number, mix_seed(*self.seeds, number) if self.seeds else None) for number in mine]
