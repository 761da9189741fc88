"""Two gloo processes with batch statistics of both are one process with the whole batch, in float64."""

import copy
import gc
import weakref

import pytest
import torch
from torch import distributed, nn

from memexp import models
from memexp.backprop import Chain
from memexp.integral import convert
from memexp.training import distribution, synced
from memexp.training.distribution import World, distribute
from memexp.training.precision import Precision
from memexp.training.step import train_step

CPU = torch.device("cpu")
CASES = [("resnet", "stored"), ("resnet", "checkpointed"), ("revnet", "reversible"), ("revnet", "light")]
STEPS, ACCUMULATE = 4, 2


def network(name: str, backprop: str) -> nn.Module:
    torch.manual_seed(0)
    settings = {"units": [1, 1], "channels": [8, 8, 16]}
    built = models.create(
        name, classes=10, shape=(3, 16, 16), chain=lambda steps: Chain(steps, backprop=backprop), depth=8, **settings
    )
    return built.double()


def losses(model: nn.Module, rank: int, size: int) -> list[float]:
    """Of each step; a process has its share of each batch."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss_fn, found = nn.CrossEntropyLoss(), []
    for _ in range(STEPS):
        batches = []
        for _ in range(ACCUMULATE):
            images = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
            labels = torch.randint(10, (8,), generator=generator)
            batches.append((images[rank::size], labels[rank::size]))
        found.append(float(train_step(model, loss_fn, optimizer, batches, Precision("fp32", CPU))))
    return found


def part(rank: int, folder: str) -> None:
    distribution.start(World(rank, 2), f"file://{folder}/store")
    group = weakref.ref(distributed.group.WORLD)
    try:
        for name, backprop in CASES:
            own = network(name, backprop)
            model = distribute(own, World(rank, 2), CPU, sync_batchnorm=True)
            found = losses(model, rank, 2)
            synced.restore(own)
            assert not any(isinstance(layer, synced.SyncedBatchNorm) for layer in own.modules())
            torch.save((found, own.state_dict()), f"{folder}/{name}-{backprop}-{rank}")
    finally:
        del own, model
        distribution.stop()
    gc.collect()
    assert group() is None  # its threads have ended: none lets go of a tensor when the interpreter no longer can


def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(part, (str(tmp_path),), nprocs=2)
    for name, backprop in CASES:
        alone = network(name, "stored")
        expected = losses(alone, 0, 1)
        (first, state), (second, other) = (
            torch.load(tmp_path / f"{name}-{backprop}-{rank}", weights_only=True) for rank in (0, 1)
        )
        curve = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        assert curve == pytest.approx(expected, rel=1e-10), (name, backprop)
        for key, right in alone.state_dict().items():
            torch.testing.assert_close(state[key], right, rtol=1e-9, atol=1e-11)
            assert torch.equal(state[key], other[key])


def test_a_normalisation_of_another_kind_is_refused():
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(4)
    )
    plain(torch.randn(1, 3, 8, 8))
    network = convert(copy.deepcopy(plain), torch.randn(1, 3, 8, 8), fold=False)
    with pytest.raises(ValueError, match="is a IntegralBatchNorm2d, whose statistics"):
        synced.synchronise(network, CPU)
