"""Small networks of operations that read or write at places: by number, by a mask, by what another layer says."""

from collections.abc import Callable
from functools import partial

import torch
from hand_made import Network
from torch import Tensor, nn
from torch.nn import functional


class Warped(Network):
    """Where the one is read the other says (optical flow): its two channels are coordinates, and stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.flow, self.b = self.conv(3, 6), self.conv(6, 2), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(functional.grid_sample(x, self.flow(x).permute(0, 2, 3, 1), align_corners=False))


class Unpooled(Network):
    """SegNet (Badrinarayanan et al. 2017): values of one layer go where another's largest were, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 6), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, places = functional.max_pool2d(self.a(x).relu(), 2, return_indices=True)
        return self.c(functional.max_unpool2d(self.b(x), places, 2))


class MaskOfAll(Network):
    """A mask with a dimension of channels picks entries by number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 4), self.conv(4, 6), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        mask = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]) % 3 == 0
        return self.c(x) + x[mask].sum()


class WrittenIntoFixed(MaskOfAll):
    """A part of a tensor whose number of channels is written into the forward."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        whole = x.new_zeros(len(x), 6, 10, 10)
        whole[:, :, 1:-1, 1:-1] = x
        return self.c(whole)


class NoneOfThem(MaskOfAll):
    """A slice of length 0 beside another dimension of channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        return self.c(x + x.unflatten(1, (3, 2))[:, :, :0].sum())


class PaddedByHand(Network):
    """Of what was written into a larger tensor: features that are not zero where their filters are, summed without weights."""

    shape = (2, 7, 12)

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.b = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        padded = torch.zeros(len(x), 9, 12, dtype=x.dtype)
        padded[:, 2:] = x
        q, k = functional.elu(self.q(padded)) + 1, functional.elu(self.k(padded)) + 1
        return self.b(q @ (k.transpose(1, 2) @ self.v(padded)))


class Between(Network):
    """An operation between two layers, of which the first is free."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = self.conv(3, 6), self.conv(6, 5), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def clipped(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0.5
    return x


def filled(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, [0, 1]] = x.square().sum()
    return x


def framed(x: Tensor) -> Tensor:
    """Put into a larger tensor of ones, and a row of that copied."""
    whole = x.new_ones(*x.shape[:2], x.shape[2] + 2, x.shape[3])
    whole[:, :, 1:-1] = x
    whole[:, :, 0] = whole[:, :, 3]
    return whole


def emptied_rows(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, [0, 1]] = 0.0
    return x


GROUPS: dict[type[Network], list[int]] = {
    Warped: [6],
    Unpooled: [6],
    MaskOfAll: [4],
    WrittenIntoFixed: [4],
    NoneOfThem: [4],
    PaddedByHand: [6],
}
BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "logsigmoid": functional.logsigmoid,
    "frexp": lambda x: x.frexp().mantissa,
    "clipped": clipped,
    "rows": emptied_rows,
    "put": filled,
    "framed": framed,
    "circular": partial(functional.pad, pad=(1, 1, 1, 1), mode="circular"),
    "median": lambda x: x - x.median(3, keepdim=True).values,
    "cumprod": lambda x: x.cumprod(2),
    "logcumsumexp": lambda x: x.logcumsumexp(3),
    "triangle": torch.tril,
    "turned": partial(torch.rot90, dims=(2, 3)),
    "windows": lambda x: x.unfold(2, 3, 1).mean(-1),
    "spectrum": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2),
}
