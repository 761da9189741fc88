"""An integral network over another family: its groups of channels are continuous, and one training serves every size.

base: resnet20, revnet38, ... (any depth of memexp's ResNet and RevNet), vgg11, vgg16, nin, or torchvision/NAME for any
classifier of torchvision that the graph of channels admits. Which strategies of backprop are valid is the base's matter;
activation memory is the base's at the size drawn.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from memexp.integral import IntegralNetwork
from memexp.integral.conversion import convert, convert_
from memexp.models.base import base_network
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape


def inn(
    *,
    classes: int,
    shape: Shape,
    chain: ChainFactory,
    base: str = "resnet20",
    weights: str | None = None,
    fold: bool = False,
    permute: bool = True,
    quadrature: str = "trapezoidal",
    groups: Sequence[str] | None = None,
    smallest: float = 0.5,
    largest: float = 1.0,
    seed: int = 0,
) -> IntegralNetwork:
    """The integral network over `base`.

    weights: a file of weights of a torchvision base. fold: whether BatchNorm is folded, as for a network that was trained
    before; without, it stays as a function of the channel. permute: whether trained weights get their smoothest order first.
    quadrature, groups, smallest, largest, seed: as memexp.integral.convert's.
    Raises ValueError for a base that there is not, and for one in which nothing can be made continuous.
    """
    network = base_network(base, weights, classes=classes, shape=shape, chain=chain)
    options: dict[str, Any] = {
        "fold": fold,
        "quadrature": quadrature,
        "groups": groups,
        "smallest": smallest,
        "largest": largest,
        "seed": seed,
    }
    integral = convert_(network, _example(network, shape), permute=permute and weights is not None, **options)
    integral.conversion = {"shape": shape, "permute": permute, **options}
    return integral


def warm_start(network: nn.Module, trained: nn.Module) -> None:
    """Converts `trained`, a network of the base, and gives its weights to the integral `network`.

    Raises ValueError where that is not integral, or not over a network as `trained`.
    """
    if not isinstance(network, IntegralNetwork) or network.conversion is None:
        raise ValueError("init_from: not an integral network")
    options = dict(network.conversion)
    converted = convert(trained, _example(trained, options.pop("shape")), **options)
    try:
        network.load_state_dict(converted.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"init_from: the trained network is not the base: {str(error).splitlines()[-1].strip()}"
        ) from error
    network.variation = converted.variation


def _example(network: nn.Module, shape: Shape) -> torch.Tensor:
    """Two images, the same each time, without a number drawn from the run's own."""
    device = next(network.parameters()).device
    with torch.device("cpu"):
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(device)
