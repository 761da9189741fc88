"""Images too many or too large to hold in memory: decoded and transformed by workers (torchvision v2), batch by batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from memexp.data import folders
from memexp.data.batches import Share, count_batches, mix_seed, order
from memexp.data.errors import DataError


class _Samples(Dataset[tuple[Tensor, int] | DataError]):
    """(index, seed) -> one transformed image. Its augmentation depends on the seed alone, not on the worker.

    A file that cannot be read is given back as the error: raised in a worker, it would arrive wrapped in two tracebacks.
    """

    def __init__(self, files: list[Path], labels: list[int], transform: Any) -> None:
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int] | DataError:
        index, seed = item
        try:
            image = folders.read(self.files[index])
        except DataError as error:
            return error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image), self.labels[index]


def _collate(samples: list[tuple[Tensor, int] | DataError]) -> Any:
    """One batch, or the first error in it."""
    broken = [sample for sample in samples if isinstance(sample, DataError)]
    return DataError(str(broken[0])) if broken else default_collate(samples)


class StreamedBatches:
    """Batches of image files through a DataLoader. training: random resized crop and flip; else resize and centre crop."""

    def __init__(
        self,
        files: list[Path],
        labels: list[int],
        settings: Any,
        batch_size: int,
        seed: int,
        device: torch.device,
        training: bool,
        share: Share,
    ) -> None:
        self.images = len(files)
        self.batch_size, self.seed, self.training, self.share, self.device = batch_size, seed, training, share, device
        self.workers = settings.workers
        size = settings.image_size
        augment = [v2.RandomResizedCrop(size, antialias=True)] + ([v2.RandomHorizontalFlip()] if settings.flip else [])
        centre = [v2.Resize(settings.resize_size, antialias=True), v2.CenterCrop(size)]
        self._samples = _Samples(
            files,
            labels,
            v2.Compose(
                [
                    v2.ToImage(),
                    *(augment if training and settings.augment else centre),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize(list(settings.mean), list(settings.std)),
                ]
            ),
        )

    def __len__(self) -> int:
        return count_batches(self.images, self.batch_size, self.share.size, self.training)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        indices = (order(self.seed, epoch, self.images) if self.training else torch.arange(self.images)).tolist()
        whole = self.batch_size * self.share.size
        batches = []
        for batch in range(start, len(self)):
            mine = indices[batch * whole : (batch + 1) * whole][self.share.rank :: self.share.size]
            if mine:
                batches.append([(index, mix_seed(self.seed, epoch, index)) for index in mine])
        loader = DataLoader(
            self._samples,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        for found in loader:
            if isinstance(found, DataError):
                raise found
            images, labels = found
            yield (
                images.to(self.device, non_blocking=True, memory_format=torch.channels_last),
                labels.to(self.device, non_blocking=True),
            )
