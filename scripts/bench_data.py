"""What data cost, ours beside torchvision's, in one run: CIFAR-size images in memory, or files decoded as they are needed.

    python scripts/bench_data.py [--images 20000] [--batch 100] [--workers 2] [--rounds 5] [--threads 1]
    python scripts/bench_data.py --root DIR [--batch 16] [--rounds 5]        DIR: train/CLASS/*.jpg and val/CLASS/*.jpg

With --root: CPU time an image of decoding, random crop, flip and normalisation in this process, against ImageFolder in a
DataLoader, and CPU time to list the folder. Without: batches from memory. Both crop at random out of 4 zeros of padding,
flip, and normalise by channel. torchvision reads the same random pixels from files of CIFAR's own format in a temporary
folder; its DataLoader keeps its workers, and a round is 20 epochs of ours and one of theirs, the first of which is warm-up.
Both give what a training loop takes: float32 images and int64 labels.
batch: 100 in memory, 16 of files, unless given. threads: of this process; with more than one, other work on the same cores
makes the parts of an operation wait for each other.
"""

import argparse
import hashlib
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder

import memexp
from memexp import data
from memexp.data import Batches, folders, identity
from memexp.data.augment import Augmentation, Normalise
from memexp.data.batches import ImageBatches

EPOCHS = 20  # of ours in a round: one is so short that what else the machine does would decide it
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


def as_cifar10(folder: Path, pixels: torch.Tensor, labels: torch.Tensor) -> CIFAR10:
    """torchvision's own reader over `pixels`, written as the five training files of CIFAR-10."""
    base = folder / CIFAR10.base_folder
    base.mkdir()

    def write(name: str, content: dict[str, object]) -> str:
        (base / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    planes = pixels.permute(0, 3, 1, 2).reshape(len(pixels), -1).numpy()

    class Files(CIFAR10):
        train_list = [
            [name, write(name, {"data": data, "labels": numbers.tolist()})]
            for (name, _), data, numbers in zip(
                CIFAR10.train_list, [planes[i::5] for i in range(5)], [labels[i::5] for i in range(5)], strict=True
            )
        ]
        test_list: list[Any] = []
        meta = CIFAR10.meta | {
            "md5": write(CIFAR10.meta["filename"], {CIFAR10.meta["key"]: [str(number) for number in range(10)]})
        }

    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose([*augment, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return Files(str(folder), train=True, transform=transform)


def seconds(batches: Iterable[object]) -> float:
    started = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - started


def several(batches: ImageBatches, turn: int) -> Iterator[object]:
    for epoch in range(turn * EPOCHS, (turn + 1) * EPOCHS):
        yield from batches.epoch(epoch)


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def streamed(root: str, batch: int, rounds: int) -> None:
    """Prints milliseconds of CPU an image, and seconds to list the folder, of both."""
    cfg = memexp.compose(["model=vgg16", "dataset=imagefolder", f"dataset.root={root}", "dataset.workers=0"])
    ours = data.load(cfg.dataset, batch_size=batch, seed=0, device=torch.device("cpu")).train
    augment = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*augment, transforms.Normalize(cfg.dataset.mean, cfg.dataset.std)])
    layout = folders.find(Path(root), [])
    theirs = DataLoader(ImageFolder(layout.train, transform), batch_size=batch, shuffle=True, drop_last=True)
    images = len(ours) * batch

    def drained(batches: Batches, epoch: int) -> None:
        for _ in batches.epoch(epoch):
            pass

    def listed() -> None:
        found = folders.listing(layout.train, layout.classes, None, True, [])
        identity.of_files(layout.classes, {"train": layout.train}, {"train": found.files})

    times = [
        (
            cpu_seconds(partial(drained, ours, turn)) / images,
            cpu_seconds(lambda: sum(1 for _ in theirs)) / images,
            cpu_seconds(listed),
            cpu_seconds(lambda: ImageFolder(layout.train)),
        )
        for turn in range(rounds + 1)
    ][1:]
    mine, loader, listing, folder = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {rounds} rounds of {images} images")
    print(
        f"an image     memexp {mine * 1e3:6.2f} ms of CPU   torchvision {loader * 1e3:6.2f}   ratio {loader / mine:.2f}"
    )
    print(
        f"the listing  memexp {listing * 1e3:6.1f} ms of CPU   torchvision {folder * 1e3:6.1f}   {ours.images} images"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 20000), ("workers", 2), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--root")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.root:
        streamed(options.root, options.batch or 16, options.rounds)
        return
    options.batch = options.batch or 100
    pixels = torch.randint(0, 256, (options.images, 32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(10, (options.images,))
    ours = ImageBatches(
        pixels,
        labels,
        options.batch,
        0,
        Normalise(torch.tensor(MEAN), torch.tensor(STD), 32, 32),
        True,
        Augmentation(padding=4, flip=True),
    )
    with tempfile.TemporaryDirectory() as folder:
        theirs = DataLoader(
            as_cifar10(Path(folder), pixels, labels),
            batch_size=options.batch,
            shuffle=True,
            drop_last=True,
            num_workers=options.workers,
            persistent_workers=True,
        )
        times = [(seconds(several(ours, r)) / EPOCHS, seconds(theirs)) for r in range(options.rounds + 1)][1:]
    mine, loader = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.workers} workers, batch {options.batch}")
    print(f"memexp       {options.images / mine:10,.0f} images/s (median of {options.rounds} rounds)")
    print(f"torchvision  {options.images / loader:10,.0f} images/s")
    print(f"ratio        {statistics.median(ratios):10.1f}   (rounds: {ratios[0]:.1f} to {ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
