"""Merge: linear layers that follow one another, or stand side by side, become one convolution.

    in a row     k = k1 + (k2 - 1) s1,   s = s1 s2,   p = p1 + p2 s1,   W[o,i] = sum_m W2[o,m] * W1[m,i],   b = b2 + sum W2 b1
    side by side the smaller kernels in the middle of the larger ones; the identity is a Dirac kernel; groups: what all share

    {"kind": "merge", "merges": [{"into": "body.0", "gone": [], "inputs": 16, "then": "body.0.act",
                                  "chain": [[["body.0.f.0", "body.0.f.3"], []]]}, ...]}

`chain` lists what is merged: names of layers, or lists of chains that stand side by side and are summed ([] is the identity).
The convolution takes the place of the module `into`, those in `gone` become nn.Identity. then: an activation that stays behind
it (the name of a module, or relu), so that `into` becomes nn.Sequential(convolution, activation).

In a row it is exact at zero-padded borders if the second takes no padding, or the first is 1x1 without a bias: otherwise the
map between them is zero outside the image in the separate layers only. What is not exact is refused.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.channels.layout import laid_as
from memexp.edits.fold import affine, normalises, rest, wide
from memexp.edits.placing import put

Pair = tuple[int, int]


@dataclass(frozen=True)
class Kernel:
    """A convolution as numbers: weight (outputs, inputs, kh, kw) without groups, in float64; bias (outputs,).

    padding below 0 crops. shifts: whether it has a bias at all, whatever its value.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1
    shifts: bool = True

    @property
    def size(self) -> Pair:
        return self.weight.shape[2], self.weight.shape[3]

    def layer(self, like: Tensor) -> nn.Conv2d:
        """As a layer with the dtype, device and memory format of the weight `like`. Raises ValueError if it crops."""
        if min(self.padding) < 0:
            raise ValueError("it would crop its input, which a convolution cannot")
        outputs, inputs = self.weight.shape[:2]
        g = self.groups
        conv = nn.Conv2d(inputs, outputs, self.size, self.stride, self.padding, groups=g, device="meta")
        blocks = self.weight.reshape(g, outputs // g, g, inputs // g, *self.size)[range(g), :, range(g)]
        weight = blocks.flatten(0, 1).to(like.dtype)
        conv.weight = nn.Parameter(laid_as(like, weight) if like.ndim == 4 else weight, like.requires_grad)
        conv.bias = nn.Parameter(self.bias.to(like.dtype), like.requires_grad)
        return conv


@torch.no_grad()
def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`network` itself, with each merge done; nothing is changed where one of them does not fit.

    Raises ValueError for names that the network does not have, layers that are not linear, and merges that are not exact.
    """
    merges = edit.get("merges")
    if not isinstance(merges, list | tuple) or not all(isinstance(merge, Mapping) for merge in merges):
        raise ValueError(f"edit merge: merges={merges!r} is not a list of dicts")
    placed: list[tuple[str, nn.Module]] = []
    for merge in merges:
        if missing := [key for key in ("into", "gone", "inputs", "chain") if key not in merge]:
            raise ValueError(f"edit merge: {dict(merge)} lacks {', '.join(missing)}")
        into, then = merge["into"], merge.get("then")
        try:
            kernel = of_chain(network, merge["chain"], merge["inputs"])
            made: nn.Module = kernel.layer(_like(network, merge["chain"]))
        except ValueError as error:
            raise ValueError(f"edit merge: into {into}: {error}") from None
        if then is not None:
            made = nn.Sequential(made, nn.ReLU() if then == "relu" else _module(network, then))
        placed += [(into, made), *((name, nn.Identity()) for name in merge["gone"])]
    names = [name for name, _ in placed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"edit merge: {', '.join(twice)} would be replaced twice")
    gone = {name: _module(network, name) for name in names}
    return put(network, {gone[name]: module.train(gone[name].training) for name, module in placed})


def of_chain(network: nn.Module, chain: Sequence[Any], inputs: int, like: Tensor | None = None) -> Kernel:
    """One kernel for what follows one another in `chain`, on `inputs` channels, on the device of `like` or its first weight.

    Raises ValueError where that is not exact.
    """
    like = _like(network, chain) if like is None else like
    kernel, name, width = None, "", inputs
    for item in chain:
        if isinstance(item, str):
            following, called = of_layer(network, item, width, like), item
        else:
            branches = [of_chain(network, branch, width, like) for branch in item]
            following, called = side_by_side(branches), "the sum of branches after it"
        kernel = following if kernel is None else in_a_row(kernel, following, name, called)
        name, width = called, kernel.weight.shape[0]
    return identity(inputs, like) if kernel is None else kernel


def is_linear(layer: nn.Module) -> bool:
    """Whether it is of a kind that may be merged, whatever else stands in the way."""
    if type(layer) in (nn.Conv2d, nn.ZeroPad2d):
        return True
    of_images = isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm) and normalises(layer)
    return of_images and type(rest(layer)) is nn.Identity


def of_layer(network: nn.Module, name: str, width: int, like: Tensor) -> Kernel:
    """The kernel of a layer on `width` channels. Raises ValueError for one that is not linear with zeros at its border."""
    layer = _module(network, name)
    if type(layer) is nn.Conv2d:
        kernel = of_convolution(layer, name)
    elif type(layer) is nn.ZeroPad2d:
        left, right, top, bottom = layer.padding
        if (left, top) != (right, bottom):
            raise ValueError(f"{name} pads its sides differently: {tuple(layer.padding)}")
        plain = identity(width, like)
        kernel = Kernel(plain.weight, plain.bias, padding=(top, left), groups=width, shifts=False)
    elif isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm) and layer.running_mean is not None and is_linear(layer):
        scale, shift = affine(layer)
        kernel = Kernel(torch.diag(scale)[..., None, None], shift, groups=len(scale))
    else:
        raise ValueError(f"{name} is a {type(layer).__name__}, not a convolution or batch normalisation of images")
    if kernel.weight.shape[1] != width:
        raise ValueError(f"{name} takes {kernel.weight.shape[1]} channels, and gets {width}")
    return kernel


def of_convolution(layer: nn.Conv2d, name: str) -> Kernel:
    """Its kernel, groups and dilation spelled out."""
    if layer.weight.is_complex():
        raise ValueError(f"{name} has complex weights, and only real ones are merged")
    size, dilation, g = layer.kernel_size, layer.dilation, layer.groups
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    if layer.padding == "same" and any((r - 1) % 2 for r in reach):
        raise ValueError(f"{name} pads its sides differently (padding='same' and an even kernel)")
    if isinstance(layer.padding, str):
        padding = tuple((r - 1) // 2 if layer.padding == "same" else 0 for r in reach)
    else:
        padding = tuple(layer.padding)
    if layer.padding_mode != "zeros" and any(padding):
        raise ValueError(f"{name} pads with padding_mode={layer.padding_mode!r}, a merged convolution with zeros")
    weight = wide(layer.weight)
    outputs, inputs = layer.out_channels // g, layer.in_channels // g
    dense = weight.new_zeros(g, outputs, g, inputs, *reach)
    dense[range(g), :, range(g), :, :: dilation[0], :: dilation[1]] = weight.unflatten(0, (g, outputs))
    bias = weight.new_zeros(g * outputs) if layer.bias is None else wide(layer.bias)
    dense = dense.flatten(0, 1).flatten(1, 2)
    return Kernel(dense, bias, _pair(layer.stride), _pair(padding), g, layer.bias is not None)


def identity(channels: int, like: Tensor) -> Kernel:
    """Dirac: x -> x."""
    weight = wide(torch.ones(channels, dtype=like.dtype, device=like.device)).diag()[..., None, None]
    return Kernel(weight, weight.new_zeros(channels), groups=channels, shifts=False)


def in_a_row(first: Kernel, second: Kernel, before: str = "the first", after: str = "the second") -> Kernel:
    """x -> second(first(x)). Raises ValueError where zero-padded borders would differ."""
    if max(second.padding) > 0 and (first.shifts or max(first.size) > 1 or min(first.padding) < 0):
        middle = "has a bias" if first.shifts else f"is {first.size[0]}x{first.size[1]}"
        raise ValueError(
            f"{after} pads with zeros, but {before} {middle}, so outside the image it would not give zeros and the borders "
            "would differ: only a convolution without padding can be merged after it (ReduceNet: padding=once)"
        )
    s1, p1 = first.stride, first.padding
    spread = second.weight.new_zeros(
        *second.weight.shape[:2], *((k - 1) * s + 1 for k, s in zip(second.size, s1, strict=True))
    )
    spread[:, :, :: s1[0], :: s1[1]] = second.weight
    reach = spread.shape[2:]
    # every tap of the second sees the whole of the first, moved: a full convolution, the channels between summed over
    rolled = functional.conv2d(first.weight.transpose(0, 1), spread.flip(2, 3), padding=[r - 1 for r in reach])
    return Kernel(
        rolled.transpose(0, 1),
        second.bias + second.weight.sum((2, 3)) @ first.bias,
        _pair([a * b for a, b in zip(s1, second.stride, strict=True)]),
        _pair([p + q * s for p, q, s in zip(p1, second.padding, s1, strict=True)]),
        math.gcd(first.groups, second.groups),
        first.shifts or second.shifts,
    )


def side_by_side(branches: Sequence[Kernel]) -> Kernel:
    """x -> the sum of what the branches give. Raises ValueError where they do not look at the same places."""
    first = branches[0]
    for other in branches[1:]:
        if other.weight.shape[:2] != first.weight.shape[:2]:
            raise ValueError("branches side by side have different numbers of channels")
        if other.stride != first.stride:
            raise ValueError(f"branches side by side have different strides, {first.stride} and {other.stride}")
        borders = [[2 * p - k for p, k in zip(b.padding, b.size, strict=True)] for b in (first, other)]
        if borders[0] != borders[1]:
            raise ValueError(
                f"branches side by side see different borders: {first.size} padded by {first.padding}, "
                f"{other.size} by {other.padding}"
            )
    padding = _pair([max(b.padding[d] for b in branches) for d in range(2)])
    weight = sum(
        functional.pad(b.weight, [w for d in (1, 0) for w in (padding[d] - b.padding[d],) * 2]) for b in branches
    )
    bias = sum(b.bias for b in branches)
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return Kernel(
        weight, bias, first.stride, padding, math.gcd(*(b.groups for b in branches)), any(b.shifts for b in branches)
    )


def _like(network: nn.Module, chain: Sequence[Any]) -> Tensor:
    """The first kernel in the chain, or else its first weight. Raises ValueError if there is none."""
    found = [getattr(_module(network, name), "weight", None) for name in _layers(chain)]
    weights = [weight for weight in found if isinstance(weight, Tensor)]
    if not weights:
        raise ValueError(f"chain={list(chain)} has no layer with weights")
    return max(weights, key=lambda weight: weight.ndim)


def _layers(chain: Sequence[Any]) -> Iterator[str]:
    """The names in it, at any depth."""
    for item in chain:
        if isinstance(item, str):
            yield item
        else:
            for branch in item:
                yield from _layers(branch)


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        raise ValueError(f"edit merge: the network has no module {name!r}") from None


def _pair(numbers: Sequence[int]) -> Pair:
    first, second = numbers
    return first, second
