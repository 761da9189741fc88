"""Fold: batch normalisation with its running statistics becomes part of the convolution or linear layer before it.

    y = gamma (W x + b - mean) / sqrt(var + eps) + beta = (s W) x + s (b - mean) + beta,    s = gamma / sqrt(var + eps)

    {"kind": "fold", "pairs": [["features.0", "features.1"], ...]}      (layer, its BN)

The layer gets a bias, BN's place is taken by nn.Identity, or by the activation that timm's BN has in it, so no other name
changes. The same function as BN in eval, to rounding: the new weights are computed in float64. Which pairs may be folded is
memexp.fusing.folds' to find.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memexp.edits.placing import put

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`network` itself, with each pair folded; nothing is changed where one of them does not fit.

    Raises ValueError for a name that the network does not have, a layer or BN of another type, and channels that differ.
    """
    pairs = edit.get("pairs")
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise ValueError(f"edit fold: pairs={pairs!r} is not a list of [layer, its batch normalisation]")
    names = [name for pair in pairs for name in pair]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"edit fold: {', '.join(twice)} would be folded twice")
    modules = dict(network.named_modules(remove_duplicate=False))
    found: list[tuple[Layer, Norm]] = []
    for pair in pairs:
        for name in pair:
            if name not in modules:
                raise ValueError(f"edit fold: the network has no module {name!r}")
        layer, norm = modules[pair[0]], modules[pair[1]]
        if reason := unfit(layer, norm):
            raise ValueError(f"edit fold: {pair[1]} into {pair[0]}: {reason}")
        found.append((layer, norm))
    for layer, norm in found:
        fold(layer, norm)
    return put(network, {norm: rest(norm).train(norm.training) for _, norm in found})


def normalises(module: nn.Module) -> bool:
    """Whether it is a plain batch normalisation, or timm's with dropout and an activation in it."""
    return type(module) in NORMS or activates(module)


def activates(module: nn.Module) -> bool:
    """Whether it is timm's batch normalisation, `drop` and `act` in it; both may be the identity."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("timm.layers.norm_act", "BatchNormAct2d")


def rest(norm: nn.Module) -> nn.Module:
    """What it does beside normalising; nn.Identity for nothing."""
    parts = OrderedDict((name, norm.get_submodule(name)) for name in ("drop", "act") if activates(norm))
    nothing = all(type(part) is nn.Identity for part in parts.values())
    return nn.Identity() if nothing else nn.Sequential(parts)


def unfit(layer: nn.Module, norm: nn.Module) -> str | None:
    """Why these two cannot be folded, whatever stands between them; None if they can. Subclasses and parametrised ones not."""
    if type(layer) not in LAYERS:
        return f"{type(layer).__name__} is no plain convolution or linear layer"
    if not normalises(norm):
        return f"{type(norm).__name__} is no plain batch normalisation"
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics, so it has no fixed scale"
    if (width := outputs(layer)) != norm.num_features:  # type: ignore[arg-type]
        return f"the layer gives {width} channels, the normalisation takes {norm.num_features}"
    return None


def outputs(layer: Layer) -> int:
    """Channels of what the layer gives out."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """(s, shift) of y = s x + shift, in float64: what BN computes with its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = 1 / (wide(norm.running_var) + norm.eps).sqrt()
    if norm.weight is not None:
        scale = wide(norm.weight) * scale
    shift = -wide(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + wide(norm.bias)


@torch.no_grad()
def fold(layer: Layer, norm: Norm) -> None:
    """The layer, changed to compute what it and BN in eval compute together."""
    scale, shift = affine(norm)
    weight = wide(layer.weight)
    if isinstance(layer, TRANSPOSED):  # (inputs, outputs / groups, ...), the groups one after the other in the inputs
        grouped = weight.unflatten(0, (layer.groups, -1)) * scale.view(
            layer.groups, 1, -1, *(1,) * len(layer.kernel_size)
        )
        weight = grouped.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *(1,) * (weight.ndim - 1))
    bias = shift if layer.bias is None else scale * wide(layer.bias) + shift
    place(layer, weight, bias)


def place(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """New parameters of the layer, in the dtype, memory format and device of its weight, and trained if that is."""
    old = layer.weight
    assert isinstance(old, Tensor)
    layer.bias = nn.Parameter(bias.to(old.device, old.dtype), old.requires_grad)
    new = torch.empty_like(old, requires_grad=False) if weight.shape == old.shape else old.new_empty(weight.shape)
    layer.weight = nn.Parameter(new.copy_(weight), old.requires_grad)


def wide(tensor: Tensor) -> Tensor:
    """A copy in float64, or in float32 where the device has no more."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64, copy=True)
