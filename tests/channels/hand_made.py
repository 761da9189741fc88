"""Small networks with one difficulty each, that tools for pruning are known to fail on."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune


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


class Twice(Network):
    """A layer used twice, so that its outputs are its inputs too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(self.b(self.b(x).relu()).relu().mean((2, 3)))


class TwiceOnTwo(Network):
    """A layer used on two tensors, whose results are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = self.conv(3, 6), self.conv(3, 6), self.conv(6, 4), self.conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.cat([self.c(self.a(x).relu()).relu(), self.c(self.b(x).relu()).relu()], 1))


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


class Depthwise(Network):
    """With two outputs a channel, and a gate by squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 8), self.conv(8, 16, groups=8), self.conv(16, 5)
        self.squeeze, self.excite = self.conv(16, 4, 1), self.conv(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.c(x * gate)


class Sigmoids(Network):
    """Channels that are not zero where their filter is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 8), nn.BatchNorm2d(8, affine=False), self.conv(8, 6)
        self.d = self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).sigmoid())).cos())


class Normed(Network):
    """GroupNorm, and LayerNorm over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.group, self.b = self.conv(3, 12), nn.GroupNorm(4, 12), self.conv(12, 10)
        self.layer, self.c = nn.LayerNorm(10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.group(self.a(x)).relu()).permute(0, 2, 3, 1)
        return self.c(self.layer(x).relu().mean((1, 2)))


class Attention(Network):
    """Heads written by hand: queries, keys and values in one layer."""

    shape = (2, 7, 12)

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.qkv, self.out = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(8, 16)
        self.norm, self.classes = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        return self.classes(x + self.out(y.transpose(1, 2).reshape(n, t, -1)))


class TorchAttention(Network):
    shape = (2, 7, 12)

    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.embed, self.attention = nn.Linear(12, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.classes = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.classes(x + self.attention(x, x, x, need_weights=self.need_weights)[0])


class Weighed(Network):
    """A parametrised weight, of which the outputs can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(self.conv(3, 8))
        self.b = self.conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class PixelShuffled(Network):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shuffle = self.conv(3, 16), self.conv(4, 5), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.shuffle(self.a(x).relu()))


class Embedded(Network):
    """A table of words, positions and a gain for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 6, 8))
        self.gain, self.classes = nn.Parameter(torch.randn(8)), nn.Linear(8, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.classes((self.words(words) + self.places) * self.gain)


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


class Uniform(Network):
    """Functions over positions that give other numbers than zero for zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = self.conv(3, 6), self.conv(6, 8), self.conv(8, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).flatten(2).softmax(-1).unflatten(2, (8, 8)))
        x = self.c(functional.pad(x, (1, 1, 1, 1), value=2.0))
        return self.d(x.masked_fill(torch.eye(10).bool(), 3.0).logsumexp((2, 3)))


class InstanceNormed(Network):
    """Normalised for each image by itself, which torch does with images and channels in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = self.conv(3, 6), nn.InstanceNorm2d(6, affine=True), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


class Standardised(Network):
    """A convolution whose weight is standardised over each filter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.conv(3, 6), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        w = self.a.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return self.b(functional.conv2d(x, w, self.a.bias, padding=1).relu())


class Einsum(Network):
    """A product of matrices that is written as a sum over letters."""

    shape = (2, 7, 12)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.b = nn.Linear(12, 8), nn.Parameter(torch.randn(6, 8)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.einsum("nti,oi->nto", self.a(x).relu(), self.w).relu())


class WeightsMasked(Network):
    """Weights that are multiplied by a mask, as torch.nn.utils.prune does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.conv(3, 6), self.conv(6, 5)
        for layer in (self.a, self.b):
            prune.random_unstructured(layer, "weight", 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Expanded(Network):
    """A map of one channel, expanded to all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 1), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x * self.b(x).sigmoid().expand_as(x))


NETWORKS: list[type[Network]] = [
    CatWithItself, CatIntoLinear, Flattened, UnequalSplit, FixedSplit, ToImage, Twice, TwiceOnTwo, SumOfSlice,
    SumOfFixedSlice, SumOfCountedSlice, StackedBranches, FlattenedStack, PaddedShortcut, FixedPad, Shuffled, Depthwise,
    Sigmoids, Normed, Attention, TorchAttention, Weighed, PixelShuffled, Embedded, HalvesOfStreams, Uniform,
    InstanceNormed, Standardised, Einsum, WeightsMasked, Expanded,
]  # fmt: skip
