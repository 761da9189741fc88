"""Criteria on a network that has been trained: what they keep is worth more than what chance keeps."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from memexp.pruning import CRITERIA, prune

WIDTHS = (16, 24)


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((1, *WIDTHS), WIDTHS, strict=False):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * WIDTHS[-1], 10))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Four fifths of the digits for training; what is returned with the network are the others."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    made = network()
    optimizer = torch.optim.SGD(made.parameters(), 0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    for _ in range(12):
        for batch in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(made(images[batch]), labels[batch]).backward()
            optimizer.step()
    made.eval()
    assert accuracy(made, images[1437:], labels[1437:]) > 0.93
    return made, images, labels


@torch.no_grad()
def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return (net.eval()(images).argmax(1) == labels).double().mean().item()


@pytest.fixture(scope="module")
def by_chance(trained) -> list[float]:
    net, images, labels = trained
    draws = (prune(net, images[:4], criterion="random", ratio=0.5, seed=seed)[0] for seed in range(10))
    return [accuracy(draw, images[1437:], labels[1437:]) for draw in draws]


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ("random", "obs")])
def test_half_of_the_channels_by_a_criterion_are_worth_more_than_half_by_chance(trained, by_chance, criterion):
    net, images, labels = trained
    data = [(images[i : i + 128], labels[i : i + 128]) for i in range(0, 1024, 128)]
    pruned, _ = prune(net, images[:4], criterion=criterion, ratio=0.5, data=data)
    found = accuracy(pruned, images[1437:], labels[1437:])
    assert found > sum(by_chance) / len(by_chance) + 0.03
    if criterion in ("bn_scale", "fisher", "taylor_activation"):
        assert found > max(by_chance)
