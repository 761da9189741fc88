"""Small networks of operations that read or write at places: by number, by a mask, by what another layer says."""

from collections.abc import Callable
from functools import partial

import torch
from hand_made import Network
from torch import Tensor
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


def emptied_rows(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, [0, 1]] = 0.0
    return x


GROUPS: dict[type[Network], list[int]] = {Warped: [6], Unpooled: [6], MaskOfAll: [4]}
BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "logsigmoid": functional.logsigmoid,
    "frexp": lambda x: x.frexp().mantissa,
    "clipped": clipped,
    "rows": emptied_rows,
    "median": lambda x: x - x.median(3, keepdim=True).values,
    "cumprod": lambda x: x.cumprod(2),
    "logcumsumexp": lambda x: x.logcumsumexp(3),
    "triangle": torch.tril,
    "turned": partial(torch.rot90, dims=(2, 3)),
    "windows": lambda x: x.unfold(2, 3, 1).mean(-1),
    "spectrum": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2),
}
