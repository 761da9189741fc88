"""Any classifier of torchvision, with its weights from a local file. Its blocks are found by memexp.backprop.apply."""

import difflib
import inspect
from pathlib import Path

import torchvision
from torch import nn

from memexp.models import sizes
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape
from memexp.models.weights import load_file


def torchvision_model(
    *, classes: int, shape: Shape, chain: ChainFactory, arch: str, weights: str | None = None
) -> nn.Module:
    """torchvision's `arch` with `classes` outputs; `chain` is for `memexp.models.create`, which takes its blocks.

    Raises ValueError for an unknown arch, for images of a size or a number of channels that it does not take, and for
    weights that do not fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        near = difflib.get_close_matches(arch, known, n=3)
        raise ValueError(f"arch={arch!r} is not a torchvision classifier; nearest: {', '.join(near) or 'none'}")
    if shape[0] != 3:
        raise ValueError(f"arch={arch}: torchvision's networks take 3 channels, these images have {shape[0]}")
    builder = torchvision.models.get_model_builder(arch)
    extra = {"init_weights": True} if "googlenet" in arch or "inception" in arch else {}
    if "aux_logits" in inspect.signature(builder).parameters or extra:
        extra["aux_logits"] = False
    network = builder(weights=None, num_classes=classes, **extra)
    sizes.check(network, shape)
    if weights is not None:
        last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        load_file(network, Path(weights), head=last)
    assert isinstance(network, nn.Module)
    return network
