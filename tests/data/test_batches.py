"""Order, augmentation and division of images held in memory."""

import numpy as np
import pytest
import torch

import memexp
from memexp import data
from memexp.config import ConfigError
from memexp.data import DataError
from memexp.data.arrays import Arrays, Part, moments
from memexp.data.augment import Augmentation, Normalise, crop_and_flip
from memexp.data.batches import ImageBatches, Share
from memexp.data.selection import hold_out, sample
from memexp.data.streamed import Loader, Samples, StreamedBatches


def batches(images: int = 20, size: int = 6, **options) -> ImageBatches:
    pixels = torch.arange(images)[:, None, None, None].expand(images, size, size, 3).to(torch.uint8).contiguous()
    normalise = Normalise(torch.zeros(3), torch.ones(3), size, size)
    plain = {"batch_size": 4, "seed": 0, "normalise": normalise, "training": True}
    return ImageBatches(pixels, torch.arange(images), **plain | options)


def listed(source: ImageBatches, epoch: int = 0, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(source.epoch(epoch, start))


def test_an_epoch_holds_each_image_once_under_its_own_label_in_an_order_of_its_own():
    source = batches()
    labels = [torch.cat([label for _, label in listed(source, epoch)]) for epoch in (0, 1)]
    for image, label in listed(source):
        assert torch.equal((image[:, 0, 0, 0] * 255).round().long(), label)
    assert all(torch.equal(found.sort().values, torch.arange(20)) for found in labels)
    assert not torch.equal(*labels)


def test_an_epoch_goes_on_in_the_middle_with_the_same_bits():
    source = batches(size=8, augmentation=Augmentation(padding=2, flip=True))
    whole, rest = listed(source, 3), listed(source, 3, start=2)
    assert len(rest) == len(whole) - 2
    for (a, i), (b, j) in zip(whole[2:], rest, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(i, j)


def test_crops_are_uniform_over_the_offsets_and_flips_independent_halves():
    """As those of RandomCrop(padding=2) and RandomHorizontalFlip."""
    padding, size, n = 2, 8, 40_000
    pixels = torch.arange(1, size * size + 1, dtype=torch.uint8).view(1, size, size, 1)
    padded = torch.nn.functional.pad(pixels, (0, 0, padding, padding, padding, padding))
    generator = torch.Generator().manual_seed(0)
    crops = crop_and_flip(pixels.expand(n, -1, -1, -1), Augmentation(padding, flip=True), generator)
    unflipped = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[0, top : top + size, left : left + size]
            unflipped[crop.numpy().tobytes()] = (top, left, 0)
            unflipped[crop.flip(1).contiguous().numpy().tobytes()] = (top, left, 1)
    assert len(unflipped) == 50
    counts = dict.fromkeys(unflipped.values(), 0)
    for crop in crops:
        counts[unflipped[crop.numpy().tobytes()]] += 1  # a KeyError is a crop that torchvision would not make
    expected = n / 50
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 85  # 49 degrees of freedom: exceeded once in a thousand seeds


LAYOUTS = {
    "planes": lambda p: p.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "columns": lambda p: p.transpose(1, 2).contiguous().transpose(1, 2),
    "every other": lambda p: p.repeat_interleave(2, 0)[::2],
    "a window": lambda p: torch.nn.functional.pad(p, (0, 0, 1, 1, 1, 1))[:, 1:-1, 1:-1],
    "one channel more": lambda p: torch.cat([p, p[..., :1]], 3)[..., :3],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("augmentation", [None, Augmentation(0, True), Augmentation(2, False), Augmentation(2, True)])
def test_c1_how_the_pixels_lie_in_memory_does_not_matter(layout, augmentation):
    pixels = torch.randint(0, 256, (12, 8, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    laid = LAYOUTS[layout](pixels)
    assert torch.equal(laid, pixels)
    assert not laid.is_contiguous()
    normalise = Normalise(torch.zeros(3), torch.ones(3), 8, 6)
    found, expected = (
        listed(ImageBatches(p, torch.arange(12), 4, 0, normalise, True, augmentation)) for p in (laid, pixels)
    )
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found, expected, strict=True))


@pytest.mark.parametrize("key", ["train", "val", "test"])
def test_what_is_shared_between_splits_is_drawn_by_each_on_its_own(key):
    cfg = memexp.compose(["dataset=digits", "dataset.val_fraction=0.3"])
    splits = data.load(cfg.dataset, batch_size=50, seed=0, device=torch.device("cpu"))
    images = sum(len(labels) for _, labels in splits.named(key).epoch(0))
    assert images == splits.named(key).images == {"train": 1009, "val": 433, "test": 355}[key]


def test_c9_a_channel_of_one_value_is_said_and_does_not_explode():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    images[..., 1] = 77
    mean, std = moments(images, notes := [])
    assert std[1] == 1
    assert any("channel 1 has one value" in note for note in notes)
    assert (Normalise(mean, std, 4, 4)(torch.from_numpy(images)).abs() < 5).all()


@pytest.mark.parametrize(
    ("dataset", "override", "message"),
    [
        ("cifar10", "dataset.std=[0,0,0]", r"dataset\.std: \[0, 0, 0\] is not allowed; .*above 0"),
        ("imagefolder", "dataset.std=[0,0.1,0.1]", r"dataset\.std: .*above 0"),
        ("cifar10", "dataset.std=[0.2,0.2]", r"dataset\.std: .*three of them"),
        ("imagefolder", "dataset.std=[0.2,nan,0.2]", r"dataset\.std: .*above 0"),
        ("cifar10", "dataset.std=[50,50,50]", r"dataset\.std: .*at most 1"),
        (
            "cifar10",
            "dataset.padding=200",
            r"dataset\.padding: 200 is more than half of dataset\.image_size=32; set at most 16",
        ),
        (
            "imagefolder",
            "dataset.resize_size=100",
            r"dataset\.resize_size: 100 is less than dataset\.image_size=224.*null for 256",
        ),
    ],
)
def test_c7_c9_values_that_make_no_sense_are_refused(dataset, override, message):
    mean = ["dataset.mean=[0.5,0.5,0.5]"] if "std" in override else []
    with pytest.raises(ConfigError, match=message):
        memexp.compose(["model=vgg16", f"dataset={dataset}", *mean, override])


def test_normalised_by_channel_and_laid_out_channels_last():
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    found = Normalise(mean, std, 5, 7)(pixels)
    expected = (pixels.permute(0, 3, 1, 2) / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_moments_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 200, (9, 4, 4, 3), dtype=np.uint8)
    mean, std = moments(images, notes := [])
    assert notes == []
    torch.testing.assert_close(mean, torch.tensor((images / 255).mean((0, 1, 2)), dtype=torch.float32))
    torch.testing.assert_close(std, torch.tensor((images / 255).std((0, 1, 2)), dtype=torch.float32))


def test_processes_share_each_batch_and_leave_nothing_out():
    whole = listed(batches(batch_size=8))
    shares = [listed(batches(batch_size=4, share=Share(rank, 2))) for rank in range(2)]
    for (_, labels), (_, even), (_, odd) in zip(whole, *shares, strict=True):
        assert sorted(labels.tolist()) == sorted(even.tolist() + odd.tolist())


def drawn(share: Share, training: bool) -> list[int]:
    return [
        int(label) for _, labels in listed(batches(7, batch_size=4, share=share, training=training)) for label in labels
    ]


def requested(share: Share, training: bool) -> list[int]:
    loader, broken = (
        Loader(Samples([], np.zeros(0), 8, 8, False), 0, torch.device("cpu")),
        torch.zeros(7, dtype=torch.bool),
    )
    plain = (loader, torch.arange(7), broken, 4, 0, Normalise(torch.zeros(3), torch.ones(3), 8, 8), torch.device("cpu"))
    return [number for batch in StreamedBatches(*plain, training, False, share).requests(0) for number, _ in batch]


@pytest.mark.parametrize("taken", [drawn, requested])
@pytest.mark.parametrize(("training", "images"), [(True, [2, 2, 2]), (False, [3, 2, 2])])
def test_a_batch_that_does_not_divide_gives_each_process_as_many_images_to_train_on(taken, training, images):
    """Or the mean over processes would be another than over images, and statistics of all would be counted wrong."""
    shares = [taken(Share(rank, 3), training) for rank in range(3)]
    assert [len(share) for share in shares] == images
    assert len({number for share in shares for number in share}) == sum(images)


def test_evaluation_keeps_the_incomplete_batch_and_the_order():
    labels = torch.cat([label for _, label in listed(batches(images=10, training=False))])
    assert labels.tolist() == list(range(10))


COUNTS = np.array([200, 100, 50, 20, 10, 5, 3, 2])
UNEVEN = np.repeat(np.arange(8), COUNTS)


@pytest.mark.parametrize("seed", range(3))
def test_c8_the_same_fraction_of_each_class_is_held_out(seed):
    rest, held = hold_out(UNEVEN, 0.2, seed)
    assert np.bincount(UNEVEN[held], minlength=8).tolist() == [40, 20, 10, 4, 2, 1, 1, 0]
    assert sorted([*rest, *held]) == list(range(len(UNEVEN)))
    _, even = hold_out(np.repeat(np.arange(5), 20), 0.2, seed)
    assert np.bincount(even // 20).tolist() == [4] * 5


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9, 0.999])
def test_c8_of_each_class_one_image_at_least_is_trained_on(fraction):
    rest, held = hold_out(UNEVEN, fraction, 0)
    left = np.bincount(UNEVEN[rest], minlength=8)
    assert left.min() >= 1
    exact = COUNTS * fraction
    assert (abs(COUNTS - left - np.minimum(exact, COUNTS - 1)) <= 1).all()
    assert len(held) == min(round(fraction * COUNTS.sum()), COUNTS.sum() - 8)


@pytest.mark.parametrize("limit", [8, 20, 39, 100, 389])
def test_c8_a_limit_keeps_the_frequencies_of_the_classes_and_every_class(limit):
    found = np.bincount(UNEVEN[sample(UNEVEN, limit, "dataset.limit", 0)], minlength=8)
    assert found.sum() == limit
    assert found.min() >= 1
    assert (np.diff(found) <= 0).all()
    if limit >= 39:  # below, one of each class is more than its share
        assert (abs(found - COUNTS * limit / COUNTS.sum()) <= 2).all()


def test_a_limit_below_the_number_of_classes_or_a_fraction_of_nothing_is_refused():
    labels = np.repeat(np.arange(5), 20)
    assert np.bincount(labels[sample(labels, 25, "dataset.limit", 0)]).tolist() == [5] * 5
    with pytest.raises(DataError, match=r"dataset\.limit: 3 images cannot cover 5 classes"):
        sample(labels, 3, "dataset.limit", 0)
    with pytest.raises(DataError, match=r"dataset\.val_fraction: 0\.001 of 100 images holds out none"):
        hold_out(labels, 0.001, 0)
    with pytest.raises(DataError, match=r"0\.9 of 5 images holds out none; no class has a second one"):
        hold_out(np.arange(5), 0.9, 0)


@pytest.mark.parametrize(
    ("fraction", "limit", "told"),
    [
        (0.5, 40, []),
        (0.95, 40, ["30 images are held out, not 38, as each class keeps one to train on"]),
        (0.1, 40, ["of 6 of the classes no image is held out, as they have too few"]),
    ],
)
def test_it_is_said_where_a_share_of_each_class_cannot_be_held_out(fraction, limit, told):
    chosen = [f"dataset.val_fraction={fraction}", f"dataset.limit={limit}", "dataset.image_size=8", "dataset.padding=0"]
    cfg = memexp.compose(["dataset=digits", *chosen])
    notes = data.load(cfg.dataset, batch_size=1, seed=0, device=torch.device("cpu")).notes
    assert [note for note in notes if "held out" in note] == told


def test_labels_out_of_range_are_refused():
    part = Part(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 5]))
    with pytest.raises(
        DataError, match=r"dataset=pets: the train split has labels from 0 to 5; with 3 classes .* 0\.\.2"
    ):
        Arrays(part, part, ("a", "b", "c")).checked("pets", 8)


def test_validation_images_are_not_trained_on():
    cfg = memexp.compose(["dataset=digits", "dataset.val_fraction=0.2", "dataset.padding=0"])
    splits = data.load(cfg.dataset, batch_size=16, seed=0, device=torch.device("cpu"))
    assert splits.val is not None
    assert splits.train.images + splits.val.images == 1442
    shown = {image.numpy().tobytes() for images, _ in splits.named("train").epoch(0) for image in images}
    assert not any(image.numpy().tobytes() in shown for images, _ in splits.val.epoch(0) for image in images)


def test_a_seed_draws_the_order_and_no_images():
    """It drew what was measured on, too; and a run that started from another seed's was measured on images of its training."""

    several = ["dataset.limit=200", "dataset.test_limit=50", "dataset.val_fraction=0.1"]
    cfg = memexp.compose(["dataset=digits", "dataset.padding=0", *several])

    def used(seed: int, draw: int) -> list[set[bytes]]:
        cfg.dataset.draw = draw
        splits = data.load(cfg.dataset, batch_size=64, seed=seed, device=torch.device("cpu"))
        return [
            {
                label.numpy().tobytes() + image.half().numpy().tobytes()
                for images, labels in split.epoch(0)
                for image, label in zip(images, labels, strict=True)
            }
            for split in map(splits.named, ("train", "val", "test"))
        ]

    one, other, drawn_anew = used(0, 0), used(1, 0), used(0, 1)
    assert one == other
    assert not any(a == b for a, b in zip(one, drawn_anew, strict=True))


def test_digits_are_the_real_ones():
    cfg = memexp.compose(["dataset=digits"])
    splits = data.load(cfg.dataset, batch_size=10, seed=0, device=torch.device("cpu"))
    assert (splits.train.images, splits.test.images, splits.shape) == (1442, 355, (3, 32, 32))
