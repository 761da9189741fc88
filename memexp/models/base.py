"""Networks by one word, for what is built over another network: resnet20, revnet38, vgg11, vgg16, nin, torchvision/NAME."""

import re
from typing import Any

from torch import nn

from memexp import models
from memexp.models import nin, vgg
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def discrete(*, classes: int, shape: Shape, chain: ChainFactory, base: str, weights: str | None = None) -> nn.Module:
    """`base_network` as a family of its own: what an integral network is compared with."""
    return base_network(base, weights, classes=classes, shape=shape, chain=chain)


def base_network(base: str, weights: str | None = None, **common: Any) -> nn.Module:
    """The network of that name; common: classes, shape and chain. weights: a file, for one of torchvision's.

    Raises ValueError for a base that there is not.
    """
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
