"""An integral network over another family: its groups of channels are continuous, and one training serves every size.

base: resnet20, revnet38, ... (any depth of memexp's ResNet and RevNet), vgg11, vgg16, nin, or torchvision/NAME for any
classifier of torchvision that the graph of channels admits. Which strategies of backprop are valid is the base's matter;
activation memory is the base's at the size drawn.
"""

import re
from typing import Any

import torch
from torch import nn

from memexp import models
from memexp.integral import IntegralNetwork
from memexp.integral.conversion import convert, convert_
from memexp.models import nin, vgg
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))


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
    smallest: float = 0.5,
    largest: float = 1.0,
    seed: int = 0,
) -> IntegralNetwork:
    """The integral network over `base`.

    weights: a file of weights of a torchvision base. fold: whether BatchNorm is folded, as for a network that was trained
    before; without, it stays as a function of the channel. permute: whether trained weights get their smoothest order first.
    quadrature, smallest, largest, seed: as memexp.integral.convert's.
    Raises ValueError for a base that there is not, and for one in which nothing can be made continuous.
    """
    network = _base(base, weights, classes=classes, shape=shape, chain=chain)
    options: dict[str, Any] = {
        "fold": fold,
        "quadrature": quadrature,
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


def _base(base: str, weights: str | None, **common: Any) -> nn.Module:
    if base.startswith("torchvision/"):
        return models.create("torchvision", arch=base.removeprefix("torchvision/"), weights=weights, **common)
    if weights is not None:
        raise ValueError(
            f"weights={weights} with base={base}: weights are for a base torchvision/NAME; use init_from=RUN"
        )
    if base == "nin":
        return nin.nin(**common)
    if base in ("vgg11", "vgg16"):
        return vgg.vgg16(**common, widths=VGG11 if base == "vgg11" else vgg.WIDTHS)
    named = re.fullmatch("(resnet|revnet)([0-9]+)", base)
    if named is None:
        raise ValueError(f"base={base!r}: use resnetDEPTH, revnetDEPTH, vgg11, vgg16, nin or torchvision/NAME")
    return models.create(named[1], depth=int(named[2]), **common)


def _example(network: nn.Module, shape: Shape) -> torch.Tensor:
    """Two images, the same each time, without a number drawn from the run's own."""
    device = next(network.parameters()).device
    with torch.device("cpu"):
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(device)
