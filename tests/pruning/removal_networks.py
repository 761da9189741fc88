"""Networks and data that whole prunings are tried on."""

import torch
from torch import nn

from memexp import models
from memexp.backprop import Chain

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 3])


DATA = [(IMAGES, LABELS)]


def family(name: str, backprop: str = "stored", **settings) -> nn.Module:
    torch.manual_seed(0)
    chain = lambda steps: Chain(steps, backprop)  # noqa: E731
    network = models.create(name, classes=10, shape=(3, 32, 32), chain=chain, **settings)
    for module in network.modules():  # statistics and scales as after training, all different
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network


def small(channels: tuple[int, int, int] = (8, 16, 4)) -> nn.Module:
    """conv-BN-ReLU three times, poolings between, and a linear head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *channels), channels, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


def widths(network: nn.Module) -> list[int]:
    return [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
