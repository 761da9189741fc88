"""Accuracy against counting by hand, and without float64 on accelerators that have none (case D11)."""

import signal
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from memexp.backprop import measures
from memexp.training import distribution
from memexp.training.distribution import World
from memexp.training.evaluation import evaluate
from memexp.training.precision import Precision
from memexp.training.signals import Interrupted, StopRequest


class Given:
    """Batches of 5, 5 and 3 images whose scores are the images themselves."""

    def __init__(self, classes=7):
        generator = torch.Generator().manual_seed(0)
        self.images = 13
        self.scores = torch.randn(13, classes, generator=generator)
        self.labels = torch.randint(classes, (13,), generator=generator)

    def __len__(self):
        return 3

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from zip(self.scores.split(5), self.labels.split(5), strict=True)


def test_figures_are_those_of_counting():
    given = Given()
    found = evaluate(nn.Identity(), given, Precision("fp32", torch.device("cpu")), World())
    ranked = given.scores.argsort(1, descending=True)
    first = [row[0] == label for row, label in zip(ranked.tolist(), given.labels.tolist(), strict=True)]
    five = [label in row[:5] for row, label in zip(ranked.tolist(), given.labels.tolist(), strict=True)]
    assert found.top1 == pytest.approx(100 * sum(first) / 13)
    assert found.top5 == pytest.approx(100 * sum(five) / 13)
    assert found.loss == pytest.approx(nn.functional.cross_entropy(given.scores, given.labels).item())
    assert found.images == 13
    for true in range(7):
        for predicted in range(7):
            count = sum((given.labels == true) & (ranked[:, 0] == predicted))
            assert found.confusion[true, predicted] == count


@pytest.mark.parametrize("asked", [False, True])
def test_an_evaluation_is_ended_in_all_processes_at_the_same_place(monkeypatch, asked):
    """Whichever was asked to stop: one that raised by itself would leave the others waiting for its sums."""
    given, stop, sent, taken = Given(), StopRequest(), [], []
    stop.signum = signal.SIGTERM if asked else None

    def agree(flag: bool, world: World) -> bool:
        sent.append((flag, len(taken)))
        return True  # one of the two was asked

    network = nn.Identity()
    network.register_forward_hook(lambda *_: taken.append(1))
    monkeypatch.setattr(distribution, "agree", agree)
    with pytest.raises(Interrupted, match="SIGTERM"):
        evaluate(network, given, Precision("fp32", torch.device("cpu")), World(0, 2), stop)
    assert sent == [(asked, 0 if asked else 3)]


class GivenWithoutData(Given):
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for n in (5, 5, 3):
            yield torch.ones(n, 7, device="mps"), torch.ones(n, dtype=torch.int64, device="mps")


class NoDoubles(TorchDispatchMode):
    """As Apple's GPUs: no float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        out = func(*args, **(kwargs or {}))
        for t in tree_iter(out):
            if isinstance(t, torch.Tensor) and t.device.type == "mps" and t.dtype is torch.float64:
                raise TypeError(f"{func}: float64 on mps")
        return out


@pytest.fixture
def without_doubles():
    with FakeTensorMode(allow_non_fake_inputs=True), NoDoubles():
        with pytest.raises(TypeError, match="float64 on mps"):
            torch.ones(2, device="mps").double()
        yield


def test_d11_evaluation_needs_no_float64_on_the_device(without_doubles):
    found = evaluate(nn.Identity(), GivenWithoutData(), Precision("fp32", torch.device("mps")), World())
    assert (found.confusion.device.type, found.confusion.shape) == ("cpu", (7, 7))


def test_d11_measures_need_no_float64_on_the_device(without_doubles):
    a, b = [torch.ones(3, device="mps")], [torch.ones(3, device="mps")]
    assert measures.relative_error(a, b) == 1.0
    assert measures.angle(a, b) == 90.0
