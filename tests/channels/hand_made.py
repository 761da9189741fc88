"""Small networks with one difficulty each, that tools for pruning are known to fail on."""

import torch
from hand_moved import (
    CatIntoLinear,
    CatWithItself,
    FixedPad,
    FixedSplit,
    Flattened,
    FlattenedStack,
    HalvesOfStreams,
    Network,
    PaddedShortcut,
    PixelShuffled,
    Shuffled,
    StackedBranches,
    SumOfCountedSlice,
    SumOfFixedSlice,
    SumOfSlice,
    ToImage,
    UnequalSplit,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune


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


class Embedded(Network):
    """A table of words, positions and a gain for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 6, 8))
        self.gain, self.classes = nn.Parameter(torch.randn(8)), nn.Linear(8, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.classes((self.words(words) + self.places) * self.gain)


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
