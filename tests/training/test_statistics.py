"""Statistics of batch normalisation estimated anew are the population's, and nothing else notices (case B14)."""

import itertools
import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

import memexp
from memexp import data, models
from memexp.backprop import Chain
from memexp.training import statistics
from memexp.training.precision import Precision
from memexp.training.signals import Interrupted, StopRequest
from memexp.training.statistics import estimated_statistics, in_random_order, momenta, needed

CPU = Precision("fp32", torch.device("cpu"))


class Given:
    """Batches of other sizes, means and scales."""

    def __init__(self, *sizes: int, shape=(3, 6, 6)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = sum(sizes)
        self.batches = [torch.randn(n, *shape, generator=generator) * (i + 1) + 5 * i for i, n in enumerate(sizes)]
        self.taken = 0

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images in self.batches:
            self.taken += 1
            yield images, torch.zeros(len(images), dtype=torch.int64)


@pytest.mark.parametrize(
    ("steps", "found", "expected"),
    [(199, [0.1], True), (200, [0.1], False), (1999, [0.1, 0.01], True), (2000, [0.1, 0.01], False), (0, [], False)],
)
def test_b14_needed_until_twenty_times_what_the_averages_remember(steps, found, expected):
    assert needed(steps, found) is expected


def test_b14_momenta_are_those_of_averages_that_move():
    layers = [nn.BatchNorm2d(2, momentum=m) for m in (0.1, 0.01, 0.1, 0.0, None)]
    assert momenta(nn.Sequential(*layers, nn.BatchNorm1d(3, track_running_stats=False), nn.GroupNorm(1, 2))) == [
        0.01,
        0.1,
    ]


class Frozen(nn.Sequential):
    """As pretrained networks are tuned: a normalisation among those that are trained keeps its own statistics."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self[0].eval()
        return self


@pytest.mark.parametrize("training", [True, False])
def test_b14_a_normalisation_that_the_network_keeps_fixed_is_evaluated_as_it_is(training):
    network = Frozen(nn.BatchNorm2d(3, momentum=0.01), nn.BatchNorm2d(3)).train(training)
    assert momenta(network) == [0.1]
    with estimated_statistics(network, Given(8, 3), 11, CPU):
        assert (network[0].running_mean.tolist(), network[0].running_var.tolist()) == ([0] * 3, [1] * 3)
        assert network[1].running_mean.abs().min() > 1
    assert (network.training, network[0].training, network[1].training) == (training, False, training)


def test_b14_mean_and_variance_are_those_of_all_values_together():
    """Not the mean of the batches' variances, which leaves out how far their means are apart."""
    given = Given(8, 3, 5)
    bn = nn.BatchNorm2d(3, momentum=0.01)
    values = torch.cat(given.batches).double().transpose(0, 1).flatten(1)
    with estimated_statistics(bn, given, 10**6, CPU) as used:
        assert used == 16
        torch.testing.assert_close(bn.running_mean.double(), values.mean(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(bn.running_var.double(), values.var(1), rtol=1e-5, atol=1e-6)
    assert given.taken == 3
    with estimated_statistics(bn, given, 9, CPU) as used:
        assert (used, given.taken) == (11, 5)  # whole batches, as many as it takes


def test_b14_values_far_from_zero_keep_their_variance():
    given = Given(64, 64)
    given.batches = [images * 0 + 1e4 + torch.randn_like(images) for images in given.batches]
    bn = nn.BatchNorm2d(3)
    with estimated_statistics(bn, given, 10**6, CPU):
        assert bn.running_var.tolist() == pytest.approx([1.0] * 3, rel=0.1)


def everything(network: nn.Module) -> tuple:
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    modules = [(module, module.training, getattr(module, "momentum", None)) for module in network.modules()]
    return [(key, value.clone()) for key, value in network.state_dict().items()], modules, states


def same(a: tuple, b: tuple) -> bool:
    tensors = all(k == m and torch.equal(v, w) for (k, v), (m, w) in zip(a[0], b[0], strict=True))
    return tensors and a[1:] == b[1:]


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize("end", ["normal", "error inside", "error in a batch"])
@pytest.mark.parametrize("training", [True, False])
def test_b14_afterwards_nothing_has_changed(training, end):
    frozen = nn.BatchNorm2d(4, momentum=0.0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), frozen, Noisy(), nn.BatchNorm2d(4))
    network.train(training)
    frozen.eval()
    before, buffers = everything(network), list(network.buffers())
    given = Given(4, 4)

    def epoch(number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in Given.epoch(given, number):
            if end == "error in a batch" and given.taken == 2:
                stop.signum = signal.SIGTERM
            yield batch

    stop, given.epoch = StopRequest(), epoch
    try:
        with estimated_statistics(network, given, 8, CPU, stop=stop):
            inside = everything(network)
            if end == "error inside":
                raise KeyboardInterrupt
    except (Interrupted, KeyboardInterrupt):
        assert end != "normal"
    else:
        assert end == "normal"
    assert same(everything(network), before)
    assert all(now is then for now, then in zip(network.buffers(), buffers, strict=True))
    if end != "error in a batch":
        changed = [
            key for (key, now), (_, then) in zip(inside[0], before[0], strict=True) if not torch.equal(now, then)
        ]
        assert changed == ["1.running_mean", "1.running_var", "5.running_mean", "5.running_var"]
        assert inside[1:] == before[1:]


def test_b14_without_batches_it_says_so_and_without_bn_it_takes_none():
    with (
        pytest.raises(ValueError, match="no training images"),
        estimated_statistics(nn.BatchNorm2d(3), Given(), 5, CPU),
    ):
        pass
    given = Given(4)
    with estimated_statistics(nn.Conv2d(3, 2, 3), given, 5, CPU) as used:
        assert (used, given.taken) == (0, 0)


@pytest.mark.parametrize(
    ("name", "backprop"), [("resnet", "checkpointed"), ("revnet", "reversible"), ("resnet", "adjoint")]
)
def test_b14_it_is_the_same_under_every_strategy(name, backprop):
    given = Given(6, 6, shape=(3, 16, 16))
    found = []
    for strategy in ("stored", backprop):
        torch.manual_seed(0)
        body = {"units": [1, 1], "channels": [8, 8, 16]}
        network = models.create(
            name, classes=3, shape=(3, 16, 16), chain=lambda s, b=strategy: Chain(s, backprop=b), depth=8, **body
        )
        with estimated_statistics(network, given, 12, CPU):
            found.append([buffer.clone() for buffer in network.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not all(torch.equal(a, torch.zeros_like(a)) for a in found[0])


def test_b14_statistics_are_those_of_images_as_they_are_trained_on(tmp_path, monkeypatch):
    """Over images without augmentation a ResNet-20 of 82.9 % on CIFAR-10 read 79.3 %."""
    seen, estimated = [], statistics.estimated_statistics

    def spied(network, batches, *arguments):
        seen.append(next(iter(batches.epoch(0)))[0])
        return estimated(network, batches, *arguments)

    monkeypatch.setattr(statistics, "estimated_statistics", spied)
    overrides = ["model=inn", "model.base=resnet8", "dataset=digits", "dataset.limit=64", "dataset.test_limit=16"]
    cfg = memexp.compose(
        [*overrides, "dataset.padding=4", "max_steps=1", "discretise.sizes=[0.7]", "monitor_every=0", "device=cpu"]
    )
    memexp.run(cfg, tmp_path)
    splits = data.load(cfg.dataset, batch_size=32, seed=0, device=torch.device("cpu"))
    trained, plain = (
        next(iter(batches.epoch(0)))[0] for batches in (splits.train, in_random_order(splits.plain_train))
    )
    assert not torch.equal(trained, plain)
    assert len(seen) > 1
    assert all(torch.equal(images, trained) for images in seen)


def test_b14_a_network_of_many_sizes_is_never_evaluated_by_its_running_statistics(tmp_path, monkeypatch):
    """Running statistics of all sizes are of none: an integral ResNet-20 of 80.4 % read 58.1 % after 2,000 steps."""
    monkeypatch.setattr(statistics, "SETTLED", 0)  # any run is long enough for the averages themselves
    overrides = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=16", "max_steps=1", "monitor_every=0"]
    plain = memexp.run(memexp.compose(["model=resnet", "model.depth=8", *overrides]), tmp_path / "plain")
    integral = memexp.run(memexp.compose(["model=inn", "model.base=resnet8", *overrides]), tmp_path / "integral")
    assert [run["stages"][0]["precise_batchnorm"] for run in (plain, integral)] == [False, True]


def test_b14_training_images_in_random_order_are_transformed_as_for_evaluation():
    cfg = memexp.compose(["dataset=digits", "batch_size=32"])
    splits = data.load(cfg.dataset, batch_size=32, seed=0, device=torch.device("cpu"))
    plain = {image.sum().item() for images, _ in splits.plain_train.epoch(0) for image in images}
    shuffled = in_random_order(splits.plain_train)
    batches = list(itertools.islice(shuffled.epoch(0), 4))
    assert {image.sum().item() for images, _ in batches for image in images} <= plain
    first = next(iter(splits.plain_train.epoch(0)))
    assert not torch.equal(batches[0][0], first[0])
    assert torch.equal(next(iter(splits.plain_train.epoch(0)))[1], first[1])  # the split itself is still in order
