"""Architectures: what a network is. How its gradient is obtained is memexp.backprop's.

Validation reads families.py without torch, so nothing is imported here that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memexp import own
from memexp.models.families import FAMILIES
from memexp.models.layout import Shape

if TYPE_CHECKING:
    from torch import nn

    from memexp.models.chain import ChainFactory


def names() -> list[str]:
    """The families that `create` knows."""
    return sorted(name for name, family in FAMILIES.items() if family.images)


def create(
    name: str | None = None,
    *,
    classes: int,
    shape: Shape,
    chain: ChainFactory,
    _target_: str | None = None,
    **settings: Any,
) -> nn.Module:
    """A freshly initialised network.

    name: one of `names()`; or _target_: the dotted path of a user's own class or function, which is given `classes`,
    `shape` and `chain` where its signature has them. settings: the family's own, such as depth.
    shape: (channels, height, width) of the images. chain: makes the body from its steps.

    A network without Chains of its own, torchvision's or a user's, has its blocks taken as such (memexp.backprop.apply).

    Raises ValueError for a name, a target, a setting, a size of images or a number of outputs that does not fit, and for a
    strategy that needs blocks where there are none.
    """
    from torch import nn

    from memexp.backprop import chains
    from memexp.backprop.apply import take
    from memexp.models import sizes

    path = _target_ or (FAMILIES[name].factory if name is not None and name in names() else None)
    if path is None and name in FAMILIES:
        raise ValueError(
            f"{name!r} is a network of no images, which a study trains in its own way: `memexp train` carries that out, and "
            f"there is nothing else to be done with it; networks of images are {', '.join(names())}"
        )
    if path is None:
        raise ValueError(f"{name!r} is not a model; there are {', '.join(names())}")
    network: nn.Module = own.made(path, {"classes": classes, "shape": shape, "chain": chain}, settings, nn.Module)
    if _target_ is not None:
        sizes.settle(network, shape)
        sizes.check(network, shape, classes)
    asked: dict[str, Any] = getattr(chain, "keywords", {})
    if (asked.get("backprop", "stored") != "stored" or asked.get("exact")) and not chains(network):
        network = take(network, chain)  # type: ignore[arg-type]
    return network
