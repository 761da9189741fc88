"""Small networks that cut, join, pad and move their channels, which tools for pruning are known to fail on."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Network(nn.Module):
    """Layers by name, and a forward that each subclass writes."""

    shape: tuple[int, ...] = (2, 3, 8, 8)

    def conv(self, inputs: int, outputs: int, size: int = 3, groups: int = 1) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups)


class CatWithItself(Network):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.conv(3, 6), self.conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(torch.cat([x, x], 1))


class CatIntoLinear(Network):
    """Two sources of different widths, flattened, into one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 4), nn.Linear(3 * 64, 10), nn.Linear(4 * 64 + 10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x).relu().flatten(1), self.b(x.flatten(1)).relu()], 1))


class Flattened(Network):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = self.conv(3, 6), nn.BatchNorm1d(6 * 64), nn.Linear(6 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(torch.flatten(self.a(x).relu(), 1)))


class UnequalSplit(Network):
    """One shared layer, split in unequal parts whose sizes are an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [6, 10]
        self.a, self.b, self.c = self.conv(3, 16), self.conv(6, 7), self.conv(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.a(x).relu(), self.sizes, dim=1)
        return (self.b(left) + self.c(right)).mean((2, 3))


class FixedSplit(Network):
    """As above with sizes in the source: what they count has to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 16), self.conv(6, 7), self.conv(10, 7)
        self.d = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).relu().split([6, 10], dim=1)
        return self.d((self.b(left) + self.c(right)).relu().mean((2, 3)))


class ToImage(Network):
    """Linear, view to four dimensions, transposed convolution."""

    shape = (2, 10)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(10, 6 * 16), nn.BatchNorm2d(6)
        self.b, self.c = nn.ConvTranspose2d(6, 8, 4, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).view(x.size(0), -1, 4, 4)).relu()
        return self.c(self.b(x).relu())


class SumOfSlice(Network):
    """A residual sum of the first channels alone; their number follows the narrower branch's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 12), self.conv(12, 6), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x[:, : x.shape[1] // 2] + self.b(x).relu())


class SumOfFixedSlice(Network):
    """As above with the number in the source: those before it stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 12), self.conv(12, 6), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x[:, :6] + self.b(x).relu())


class SumOfCountedSlice(Network):
    """As above with the number an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b, self.c = self.conv(3, 12), self.conv(12, 6), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x[:, : self.width] + self.b(x).relu())


class StackedBranches(Network):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self.conv(3, 6) for _ in range(3))
        self.c = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.stack([b(x).relu() for b in self.branches], 1).sum(1).mean((2, 3)))


class FlattenedStack(Network):
    """A stack whose branches then lie one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self.conv(3, 6) for _ in range(2))
        self.c = self.conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.stack([b(x).relu() for b in self.branches], 1).flatten(1, 2))


class PaddedShortcut(Network):
    """A shortcut of zeros on both sides whose widths are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = 2, 4
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = functional.pad(x, (0, 0, 0, 0, self.before, self.after)) + self.b(x)
        return self.c(x.relu().mean((2, 3)))


class FixedPad(Network):
    """As above with widths in the source: the channels that meet the zeros stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c((functional.pad(x, (0, 0, 0, 0, 2, 4)) + self.b(x)).relu().mean((2, 3)))


class Shuffled(Network):
    """Grouped convolutions with a shuffle written by hand between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 16), self.conv(16, 16, groups=4), self.conv(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        n, c, h, w = x.shape
        return self.c(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class PixelShuffled(Network):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shuffle = self.conv(3, 16), self.conv(4, 5), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.shuffle(self.a(x).relu()))


class HalvesOfStreams(Network):
    """chunk in two streams that are coupled and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.f, self.g, self.b = self.conv(3, 12), self.conv(6, 6), self.conv(6, 6), self.conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.a(x).chunk(2, 1)
        y1 = x1 + self.f(x2)
        y2 = x2 + self.g(y1)
        return self.b(torch.cat([y1, y2], 1))
