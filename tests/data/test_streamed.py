"""Images decoded by workers: geometry, order, what a broken one does, and what is left as it was."""

import gc
import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms import v2

from memexp.data import DataError, images
from memexp.data.streamed import random_crop, resize_size


def drained(batches) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(pixels.clone(), labels.clone()) for pixels, labels in batches]


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for pair in zip(a, b, strict=True) for x, y in zip(*pair, strict=True)
    )


def sizes(image_size: int, resize: int | None):
    return OmegaConf.create({"image_size": image_size, "resize_size": resize})


@pytest.mark.parametrize(("size", "expected"), [(224, 256), (288, 329), (64, 73), (112, 128), (32, 37)])
def test_c7_the_resize_follows_the_crop_unless_it_is_given(size, expected):
    assert resize_size(sizes(size, None)) == expected
    assert resize_size(sizes(size, 400)) == 400
    with pytest.raises(
        DataError, match=rf"resize_size: {size - 1} is less than dataset\.image_size={size}.*{expected}"
    ):
        resize_size(sizes(size, size - 1))


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (33, 100), (20, 21), (500, 400)])
@pytest.mark.parametrize("resize", ["null", 41])
def test_c7_evaluation_sees_torchvisions_centre_crop(tree, load, picture, shape, resize):
    root = tree(train=1, val=1)
    path = picture(root / "val" / "ant" / "0.png", shape)
    plain = ["dataset.mean=[0,0,0]", "dataset.std=[1,1,1]", "dataset.image_size=32"]
    splits = load(root, *plain, f"dataset.resize_size={resize}")
    found = next(iter(splits.test.epoch(0)))[0][0] * 255
    transform = v2.Compose([v2.ToImage(), v2.Resize(37 if resize == "null" else 41, antialias=True), v2.CenterCrop(32)])
    assert abs(found - transform(Image.open(path)).float()).max() < 0.01


def test_crops_are_drawn_as_torchvision_draws_them():
    """Areas and shapes of many crops have the same quartiles; of extreme images the middle is taken."""
    generator = random.Random(0)
    ours = np.array([random_crop(300, 400, generator) for _ in range(4000)])
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    transform = v2.RandomResizedCrop(224)
    drawn = [transform.make_params([image]) for _ in range(4000)]
    theirs = np.array([[crop[key] for key in ("top", "left", "height", "width")] for crop in drawn])
    assert ((ours[:, :2] >= 0) & (ours[:, :2] + ours[:, 2:] <= [300, 400])).all()
    figures = {
        "area": lambda c: c[:, 2] * c[:, 3] / 120_000,
        "shape": lambda c: c[:, 3] / c[:, 2],
        "top": lambda c: c[:, 0] / 300,
        "left": lambda c: c[:, 1] / 400,
    }
    for figure in figures.values():
        quartiles = [np.quantile(figure(crops), [0.25, 0.5, 0.75]) for crops in (ours, theirs)]
        assert abs(quartiles[0] - quartiles[1]).max() < 0.035
    assert random_crop(10, 1000, generator) == (0, 493, 10, 13)
    assert random_crop(1, 1, generator) == (0, 0, 1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_c14_workers_stay_and_an_epoch_left_early_does_no_harm(tree, load, workers):
    root = tree(train=8, val=3)
    splits, plain = (load(root, f"dataset.workers={n}", batch_size=2) for n in (workers, 0))
    expected = [drained(plain.train.epoch(epoch)) for epoch in range(3)]
    children: set[int] = set()
    for epoch in range(3):
        next(iter(splits.train.epoch(7)))  # as for a picture of a sample batch
        assert same(drained(splits.train.epoch(epoch)), expected[epoch])
        assert same(drained(splits.test.epoch(0)), drained(plain.test.epoch(0)))
        if workers:
            children |= {worker.pid for worker in splits.train._loader._kept[0]._iterator._workers}
    assert len(children) == workers
    both = list(zip(splits.train.epoch(0), splits.train.epoch(1), strict=True))  # two at once
    assert same([a for a, _ in both], expected[0])
    assert same([b for _, b in both], expected[1])
    assert same(drained(splits.train.epoch(2)), expected[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_drawn_from_torchs_generator(tree, load, workers):
    """A run that was resumed starts its workers once more, and must not drop other units for it."""
    splits = load(tree(train=4, val=1), f"dataset.workers={workers}")
    before = torch.get_rng_state()
    drained(splits.train.epoch(0))
    drained(splits.train.epoch(0, start=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_c13_an_error_comes_after_all_batches_before_it_and_names_the_file(tree, load, workers):
    root = tree(train=12, val=1)
    whole = drained(load(root, batch_size=3).train.epoch(1))
    splits = load(root, f"dataset.workers={workers}", batch_size=3)
    requests = list(splits.train.requests(1))
    bad = splits.train._loader.samples.files[requests[5][1][0]]
    content = open(bad, "rb").read()  # noqa: SIM115
    with open(bad, "wb") as file:
        file.write(content[:50])
    seen = []

    def train() -> None:
        for pixels, labels in splits.train.epoch(1):
            seen.append((pixels.clone(), labels.clone()))

    with pytest.raises(DataError, match=r"not a readable image") as error:
        train()
    assert error.value.file == bad
    assert same(seen, whole[:5])
    # the run goes on from there without the file, and ends as one that never had it
    resumed = load(root, f"dataset.workers={workers}", "dataset.skip_broken=true", batch_size=3)
    fresh = load(root, "dataset.skip_broken=true", batch_size=3)
    rest = drained(resumed.train.epoch(1, start=5))
    assert same([*seen, *rest], drained(fresh.train.epoch(1)))
    numbers = [number for batch in resumed.train.requests(1) for number, _ in batch]
    assert numbers[:15] == [number for batch in requests[:5] for number, _ in batch]
    assert len(set(numbers)) == 21


@pytest.mark.parametrize("override", ["dataset.limit=16", "dataset.val_fraction=0.25"])
def test_c13_what_was_chosen_stays_chosen_when_broken_files_are_left_out(tree, load, override):
    root = tree(train=12, val=1)

    def numbers(splits) -> set[int]:
        return {number for batch in splits.plain_train.requests(0) for number, _ in batch}

    before = load(root, override)
    gone = sorted(numbers(before))[3]
    with open(before.train._loader.samples.files[gone], "wb") as file:
        file.write(b"broken")
    after = load(root, override, "dataset.skip_broken=true")
    assert numbers(after) == numbers(before) - {gone}
    assert after.train.images == before.train.images - 1


def test_c13_a_worker_that_dies_is_a_data_error_and_the_next_epoch_works(tree, load, monkeypatch):
    splits = load(tree(train=8, val=1), "dataset.workers=1", batch_size=2)
    expected = drained(splits.train.epoch(1))

    def dies(loader):
        raise RuntimeError("DataLoader worker (pid(s) 123) exited unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr("torch.utils.data.DataLoader.__iter__", dies)
        with pytest.raises(DataError, match=r"a process that decodes images has died .*dataset\.workers=0"):
            drained(splits.train.epoch(0))
    assert same(drained(splits.train.epoch(1)), expected)


@pytest.mark.parametrize("left", ["early", "at the end", "by an error"])
def test_workers_end_with_the_data_set(tree, load, left, monkeypatch):
    """At once: also where it is part of a circle of objects, as a trainer's are, and an epoch or an error is still held."""
    root = tree(train=8, val=1)
    splits = load(root, "dataset.workers=2", batch_size=2)
    epoch = splits.train.epoch(0)
    next(epoch)
    workers = splits.train._loader._kept[0]._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    if left == "by an error":
        for path in (root / "train").rglob("*.png"):
            path.write_bytes(b"broken")
        with pytest.raises(DataError):
            drained(epoch)
        assert not any(worker.is_alive() for worker in workers)
        return
    if left == "at the end":
        drained(epoch)
    splits.notes.append([splits, epoch])
    late = []

    def joined(worker, timeout=None):
        join(worker, timeout)
        if worker in workers:  # and not of another data set, which is collected at the same time
            late.append(worker.is_alive())

    join = type(workers[0]).join
    monkeypatch.setattr(type(workers[0]), "join", joined)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 30)  # s that a worker is waited for
    del splits, epoch
    gc.collect()
    assert late == [False, False]  # those that were not told are waited for in vain
    assert not any(worker.is_alive() for worker in workers)


def test_a_fault_of_ours_in_a_worker_is_not_called_a_broken_image(tree, load, monkeypatch):
    splits = load(tree(train=2, val=1), batch_size=2)
    monkeypatch.setattr(images, "read", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drained(splits.train.epoch(0))


def test_batches_are_normalised_on_the_device_and_channels_last(tree, load):
    splits = load(tree(train=2, val=2), "dataset.mean=[0.2,0.4,0.6]", "dataset.std=[0.1,0.2,0.3]")
    plain = load(tree(train=2, val=2), "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]")
    (found, _), (raw, _) = next(iter(splits.test.epoch(0))), next(iter(plain.test.epoch(0)))
    expected = (raw - torch.tensor([0.2, 0.4, 0.6])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
