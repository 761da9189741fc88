"""Grow: a convolution becomes a wide block that computes the same, and that training can go on from. The way back of merge.

    W = A V,    A (outputs x width) with orthonormal rows,    V = A' W + (1 - A' A) R,    A', R: transpose, random directions

    {"kind": "grow", "layers": ["body.0.0", ...], "expansion": 2, "seed": 0}

The block is conv(V) - BN - act - conv1x1(A) - BN plus the identity where the shape stays (whose Dirac kernel is taken off W),
act a vanishing activation at lambda = 0. R is what a fresh layer would have; it cancels in A V, until training changes either.
BN starts with mean 0 and variance 1, undone in what follows; memexp.fusing.grow then puts the statistics of real batches there.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from memexp.channels.layout import laid_as
from memexp.edits.fold import wide
from memexp.edits.placing import hooks, put
from memexp.models.reducenet import Block
from memexp.models.vanishing import VanishingReLU


@torch.no_grad()
def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`network` itself, with each of the layers grown; nothing is changed where one of them does not fit.

    Raises ValueError for layers that are no plain convolutions of images, have hooks or another forward, or share a parameter
    with others, and for an expansion below 1, which cannot hold them.
    """
    names, expansion, seed = edit.get("layers"), edit.get("expansion"), edit.get("seed")
    if not isinstance(names, list | tuple) or len(set(names)) < len(names):
        raise ValueError(f"edit grow: layers={names!r} is not a list of different names")
    if not isinstance(expansion, int | float) or not expansion >= 1:
        raise ValueError(f"edit grow: expansion={expansion!r}: at least 1, or the block cannot hold the layer's kernel")
    if not isinstance(seed, int):
        raise ValueError(f"edit grow: seed={seed!r} is not an integer")
    modules = dict(network.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules:
            raise ValueError(f"edit grow: the network has no module {name!r}")
        if reason := unfit(network, modules[name]):
            raise ValueError(f"edit grow: {name}: {reason}")
    generator = torch.Generator().manual_seed(seed)
    blocks: dict[nn.Module, nn.Module] = {}
    for name in names:
        conv = modules[name]
        assert isinstance(conv, nn.Conv2d)
        if conv in blocks:
            raise ValueError(f"edit grow: {name} is another name of a layer that is named before: give each layer once")
        blocks[conv] = grown(conv, expansion, generator).train(conv.training)
    return put(network, blocks)


def unfit(network: nn.Module, layer: nn.Module) -> str | None:
    """Why a layer of the network cannot grow; None if it can."""
    if type(layer) is not nn.Conv2d:
        return f"a {type(layer).__name__} is no plain convolution of images"
    if layer.groups != 1:
        return f"it has groups={layer.groups}: only a convolution over all channels can grow"
    if layer.weight.is_complex():
        return "it has complex weights, which batch normalisation does not take"
    if hooks(layer):
        return "it has hooks (of torch.nn.utils.weight_norm or prune, say), which would go with it"
    if "forward" in vars(layer):
        return "its forward was replaced by another, which would go with it"
    own = {id(parameter) for parameter in layer.parameters()}
    others = (module for module in network.modules() if module is not layer)
    if any(id(parameter) in own for module in others for parameter in module._parameters.values()):
        return "it shares a parameter with another layer, and the two would no longer be one"
    return None


def grown(conv: nn.Conv2d, expansion: float, generator: torch.Generator) -> Block:
    """A block with the function of `conv`, on its device and in its dtype, trained if its weight is."""
    outputs, width = conv.out_channels, max(conv.out_channels, round(expansion * conv.out_channels))
    place: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    like: dict[str, Any] = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    height, breadth = conv.kernel_size
    # without data: what a layer draws at first would be of the caller's random numbers
    first = nn.Conv2d(conv.in_channels, width, (height, breadth), bias=False, **like, device="meta")
    second = nn.Conv2d(width, outputs, 1, bias=False, device="meta")
    for layer in (first, second):
        layer.weight = nn.Parameter(laid_as(conv.weight, torch.empty(layer.weight.shape, **place)))
    norms = nn.BatchNorm2d(width, **place), nn.BatchNorm2d(outputs, **place)
    act = VanishingReLU(inplace=True).to(**place)
    stays = _keeps_shape(conv)
    if not conv.weight.is_meta:
        act.set(0.0)
        kernel = wide(conv.weight).cpu()
        if stays:
            kernel[range(outputs), range(outputs), height // 2, breadth // 2] -= 1
        flat = kernel.flatten(1)
        random = torch.randn(width, outputs, generator=generator, dtype=torch.float64)
        A = torch.linalg.qr(random).Q.T
        R = torch.randn(width, flat.shape[1], generator=generator, dtype=torch.float64)
        R *= math.sqrt(2 / (height * breadth * width))  # as He et al. 2015 draw a fresh layer
        V = A.T @ flat + R - A.T @ (A @ R)
        undo = [(1 + norm.eps) ** 0.5 for norm in norms]
        first.weight.copy_(V.unflatten(1, kernel.shape[1:]))
        second.weight.copy_((A * undo[0])[..., None, None])
        norms[1].weight.fill_(undo[1])
        if conv.bias is not None:
            norms[1].bias.copy_(conv.bias)
    f = nn.Sequential(first, norms[0], act, second, norms[1])
    return Block(f, nn.Identity() if stays else None, nn.Identity()).requires_grad_(conv.weight.requires_grad)


def _keeps_shape(conv: nn.Conv2d) -> bool:
    if isinstance(conv.padding, str) or conv.stride != (1, 1) or conv.dilation != (1, 1):
        return False
    return conv.in_channels == conv.out_channels and all(
        2 * p == k - 1 for p, k in zip(conv.padding, conv.kernel_size, strict=True)
    )
