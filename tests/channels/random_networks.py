"""Networks that nobody thought of: a seed draws the operations, and what each of them works on."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

Shape = tuple[int, int, int]
Draw = random.Random


class RandomNetwork(nn.Module):
    """`count` operations (4 to 12 unless given), each on one or two of the last tensors; what nothing reads goes to the head.

    channels: of the images, 3 or 4 unless given; they are of 8x8. same: all ends in one map of the images' shape.
    """

    def __init__(self, seed: int, count: int = 0, channels: int = 0, same: bool = False) -> None:
        super().__init__()
        draw = Draw(seed)
        torch.manual_seed(seed)
        self.channels = channels or draw.choice([3, 4])
        self.operations = nn.ModuleList()
        self.sources: list[list[int]] = []
        shapes: list[Shape] = [(self.channels, 8, 8)]
        count = count or draw.randint(4, 12)
        while len(self.operations) < count:
            self._add(draw, shapes)
        read = {source for sources in self.sources for source in sources}
        self.ends = [i for i in range(len(shapes)) if i not in read][:3]
        self.head: nn.Module
        if same:
            self.ends, (width, height, _) = [len(shapes) - 1], shapes[-1]
            self.head = nn.Sequential(nn.Upsample(scale_factor=8 / height), nn.Conv2d(width, self.channels, 1))
        else:
            self.head = Head(draw, [shapes[i] for i in self.ends])

    def _add(self, draw: Draw, shapes: list[Shape]) -> None:
        first = draw.randrange(max(0, len(shapes) - 3), len(shapes))
        how, make = draw.choice(KINDS)
        compared = slice(1, None) if how == "side" else slice(None)
        others = [i for i, shape in enumerate(shapes) if shape[compared] == shapes[first][compared]]
        sources = [first] if how == "one" else [first, draw.choice(others)]
        try:
            made = make(draw, shapes[first])
            with torch.no_grad():
                found = made.eval()(*(torch.zeros(2, *shapes[i]) for i in sources)).shape
        except (RuntimeError, ValueError, ZeroDivisionError):
            return  # not on this shape
        if found[1] <= 40 and found[2] == found[3] in (1, 2, 4, 8):
            self.operations.append(made)
            self.sources.append(sources)
            shapes.append((found[1], found[2], found[3]))

    def forward(self, images: Tensor) -> Tensor:
        maps = [images]
        for operation, sources in zip(self.operations, self.sources, strict=True):
            maps.append(operation(*(maps[i] for i in sources)))
        out: Tensor = self.head(*(maps[i] for i in self.ends))
        return out


class Head(nn.Module):
    def __init__(self, draw: Draw, shapes: list[Shape]) -> None:
        super().__init__()
        self.flat, self.reduce = draw.random() < 0.3, draw.choice(["mean", "amax"])
        width = sum(c * h * w if self.flat else c for c, h, w in shapes)
        middle = draw.choice([nn.ReLU(), nn.BatchNorm1d(12), nn.LayerNorm(12), nn.Tanh()])
        deep = [nn.Linear(width, 12), middle, nn.Linear(12, 5)]
        self.layers = nn.Sequential(*deep) if draw.random() < 0.4 else nn.Linear(width, 5)

    def forward(self, *maps: Tensor) -> Tensor:
        parts = [m.flatten(1) if self.flat else getattr(m, self.reduce)((2, 3)) for m in maps]
        out: Tensor = self.layers(torch.cat(parts, 1))
        return out


class Call(nn.Module):
    """A function with its arguments."""

    def __init__(self, function: Callable[..., Tensor], *arguments: Any, **named: Any) -> None:
        super().__init__()
        self.function, self.arguments, self.named = function, arguments, named

    def forward(self, *maps: Tensor) -> Tensor:
        return self.function(*maps, *self.arguments, **self.named)


class Residual(nn.Module):
    """x + f(x), or x * f(x)."""

    def __init__(self, inner: nn.Module, gate: bool = False, last: bool = False) -> None:
        super().__init__()
        self.inner, self.gate, self.last = inner, gate, last

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.inner(x)
        return x * y if self.gate else x + y


class Attention(nn.Module):
    """Two heads over the positions."""

    def __init__(self, draw: Draw, width: int) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), draw.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


class LayerNormOfChannels(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scaled(nn.Module):
    """RMS normalisation with a scale, and a shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.rand(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.scale[:, None, None] + self.shift


class Windows(nn.Module):
    """Four neighbours become one position of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4 * width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(n, h // 2, w // 2, 4 * c)
        out: Tensor = self.layer(parts).permute(0, 3, 1, 2)
        return out


def swapped(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    return torch.cat([right, left], 1)


def shuffled(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, x.shape[1] // groups)).transpose(1, 2).flatten(1, 2)


def activation(draw: Draw) -> nn.Module:
    kinds = [nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.ELU, nn.Softplus, partial(nn.LeakyReLU, 0.1)]
    return draw.choice(kinds)()


def norm(draw: Draw, width: int) -> nn.Module:
    kinds = [nn.BatchNorm2d] * 3 + [partial(nn.BatchNorm2d, affine=False), partial(nn.GroupNorm, 1), nn.InstanceNorm2d]
    return draw.choice([*kinds, partial(nn.GroupNorm, 2), LayerNormOfChannels, nn.Identity])(width)


def conv(draw: Draw, width: int) -> nn.Conv2d:
    outputs, size, dilation = draw.choice([4, 6, 8, 12]), draw.choice([1, 3, 3, 5]), draw.choice([1, 1, 2])
    groups = draw.choice([1, 1, 1, 2]) if width % 2 == 0 else 1
    mode, bias = draw.choice(["zeros", "zeros", "zeros", "reflect", "circular"]), draw.random() < 0.6
    padding = (size - 1) * dilation // 2
    return nn.Conv2d(
        width, outputs, size, draw.choice([1, 1, 2]), padding, dilation, groups, bias=bias, padding_mode=mode
    )


def layers(draw: Draw, shape: Shape) -> nn.Module:
    first = conv(draw, shape[0])
    return nn.Sequential(first, norm(draw, first.out_channels), activation(draw))


def block(draw: Draw, shape: Shape) -> nn.Module:
    width, groups = 6, draw.choice([1, 2, 3, 6])
    middle = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=draw.random() < 0.5)
    down, up = nn.Conv2d(shape[0], width, 1), nn.Conv2d(width, shape[0], 3, padding=1)
    return Residual(nn.Sequential(down, norm(draw, width), activation(draw), middle, norm(draw, width), up))


def depthwise(draw: Draw, shape: Shape) -> nn.Module:
    width = shape[0] * draw.choice([1, 1, 2])
    return nn.Sequential(nn.Conv2d(shape[0], width, 3, padding=1, groups=shape[0]), norm(draw, width), activation(draw))


def squeezed(draw: Draw, shape: Shape) -> nn.Module:
    inner = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(shape[0], 4, 1), nn.ReLU(), nn.Conv2d(4, shape[0], 1)]
    return Residual(nn.Sequential(*inner, draw.choice([nn.Sigmoid(), nn.Hardsigmoid()])), gate=True)


def normed(draw: Draw, shape: Shape) -> nn.Module:
    kind = draw.choice([parametrizations.weight_norm, parametrizations.spectral_norm])
    return kind(nn.Conv2d(shape[0], 6, 3, padding=1))


def mixed(draw: Draw, shape: Shape) -> nn.Module:
    if draw.random() < 0.5:
        length = shape[1] * shape[2]
        inner = [nn.Flatten(2), nn.Linear(length, 7), nn.ReLU(), nn.Linear(7, length), nn.Unflatten(2, shape[1:])]
        return Residual(nn.Sequential(*inner))
    inner = [nn.LayerNorm(shape[0]), nn.Linear(shape[0], 10), nn.GELU(), nn.Linear(10, shape[0])]
    return Residual(nn.Sequential(*inner), last=True)


def moved(draw: Draw, shape: Shape) -> nn.Module:
    """Channels in another order, or fewer or more of them."""
    width = shape[0]
    start, kept = draw.randrange(width - 1), [draw.randrange(width) for _ in range(draw.randint(2, 8))]
    calls = [
        Call(torch.flip, (1,)),
        Call(torch.roll, draw.choice([1, -1]), 1),
        Call(swapped),
        Call(Tensor.repeat, 1, 2, 1, 1),
    ]
    calls += [Call(torch.narrow, 1, start, draw.randint(1, width - start)), Call(torch.repeat_interleave, 2, 1)]
    calls += [
        Call(Tensor.__getitem__, (slice(None), kept)),
        Call(Tensor.__getitem__, (slice(None), slice(None, None, 2))),
    ]
    calls += [Call(functional.pad, (0, 0, 0, 0, draw.randint(0, 3), draw.randint(0, 3)))]
    calls += [Call(shuffled, groups) for groups in (2, 3) if width % groups == 0]
    return draw.choice(calls)


def resized(draw: Draw, shape: Shape) -> nn.Module:
    kinds = [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.Upsample(scale_factor=2)]
    turned = [nn.ConvTranspose2d(shape[0], 6, 2, stride=2), nn.ConvTranspose2d(shape[0], 6, 3, padding=1, groups=2)]
    return draw.choice([*kinds, *turned[: 1 + (shape[0] % 2 == 0)], Windows(shape[0])])


def pointwise(draw: Draw, shape: Shape) -> nn.Module:
    kinds = [activation(draw), nn.PReLU(draw.choice([1, shape[0]])), norm(draw, shape[0]), Scaled(shape[0]), nn.GLU(1)]
    return draw.choice([*kinds, nn.Softmax(1), Attention(draw, shape[0]), Call(centred, draw.choice([1, (2, 3)]))])


def centred(x: Tensor, dims: Any) -> Tensor:
    return x - x.mean(dims, keepdim=True)


def gated(x: Tensor, y: Tensor) -> Tensor:
    return x * y.sigmoid()


def reduced(*maps: Tensor, how: str) -> Tensor:
    out: Tensor = getattr(torch.stack(maps), how)(0)
    return out


def joined(*maps: Tensor) -> Tensor:
    return torch.cat(maps, 1)


ONE = [*[layers] * 4, *[block] * 3, depthwise, squeezed, normed, mixed, *[moved] * 4, *[resized] * 3, *[pointwise] * 3]
SAME = [Call(torch.add), Call(torch.add), Call(gated), *(Call(reduced, how=how) for how in ("sum", "mean", "amax"))]
KINDS: list[tuple[str, Callable[[Draw, Shape], nn.Module]]] = [
    *(("one", make) for make in ONE),
    *(("one", lambda draw, shape: conv(draw, shape[0])),) * 2,
    *(("same", lambda draw, shape: draw.choice(SAME)),) * 4,
    *(("side", lambda draw, shape: Call(joined)),) * 2,
]
