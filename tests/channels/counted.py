"""Small networks in which one number counts channels in several places, so that as many have to stay in each."""

import torch
from hand_made import Network
from torch import Tensor, nn
from torch.nn import functional


class HeadsOfTheStream(Network):
    """Attention as timm writes it: the stream's width, divided by the heads, is the length of a head of queries."""

    shape = (2, 7, 12)

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.norm, self.qkv = nn.Linear(12, 16), nn.LayerNorm(16), nn.Linear(16, 3 * 16)
        self.out, self.classes = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = self.shares(q @ k.transpose(-2, -1)) @ v
        return self.classes(x + self.out(y.transpose(1, 2).reshape(n, t, c)))

    def shares(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


class DividedHeads(HeadsOfTheStream):
    """Shares that are divided by their sum (ConViT): of a head that is zero they would be no number."""

    def shares(self, scores: Tensor) -> Tensor:
        return scores / scores.abs().sum(-1, keepdim=True)


class WidthTwice(Network):
    """Layers side by side, of which one attribute says how wide they are (EfficientViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b, self.c = self.conv(3, 6 + 4), self.conv(3, 6 + 4), self.conv(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x).relu().split([self.width, 4], 1) for layer in (self.a, self.b)]
        return self.c(torch.cat([*parts[0], *parts[1]], 1))


class SplitByShare(Network):
    """Halves of a width that is an attribute (CSPNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.a, self.b, self.c = self.conv(3, 12), self.conv(6, 6), self.conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.halves(self.a(x).relu())
        return self.c(torch.cat([left, self.b(right).relu()], 1))

    def halves(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.width // 2, 1)


class SlicedByShare(SplitByShare):
    def halves(self, x: Tensor) -> tuple[Tensor, ...]:
        return x[:, : self.width // 2], x[:, self.width // 2 :]


class SplitWithRest(Network):
    """Parts of a length that is an attribute, and a shorter one; a layer before them is free."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 10), self.conv(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat(self.b(self.a(x).relu()).split(self.width, 1)[::-1], 1))


class CutFromTheEnd(Network):
    """An attribute that counts from the end of two tensors of unequal widths; a layer before one is free."""

    def __init__(self) -> None:
        super().__init__()
        self.end = -2
        self.a, self.b, self.d, self.c = self.conv(3, 6), self.conv(6, 10), self.conv(3, 8), self.conv(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.b(self.a(x).relu()), self.d(x)
        return self.c(torch.cat([part[:, : self.end] for part in parts], 1))


class BranchesWeighed(Network):
    """A softmax over branches, channel by channel (SKNet, ResNeSt)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(3, 6), self.conv(6, 5)
        self.squeeze, self.select = nn.Linear(6, 4), nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([self.a(x).relu(), self.b(x).relu()], 1)
        gates = self.select(self.squeeze(x.sum(1).mean((2, 3))).relu())
        n, c = gates.shape
        return self.c((x * gates.view(n, 2, c // 2, 1, 1).softmax(1)).sum(1))


class OwnGroups(Network):
    """A depthwise convolution of its own parameters, in as many groups as an attribute, the weight or the input says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.groups, self.stride = self.conv(3, 2), self.conv(4, 6), self.conv(6, 5), 2, 2
        self.weight, self.blur = nn.Parameter(torch.rand(4, 1, 3, 3)), nn.Parameter(torch.rand(6, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(self.a(x).relu(), self.weight, None, self.stride, groups=self.groups)
        x = functional.conv2d(self.b(x).relu(), self.blur, None, 1, 1, 1, self.blur.shape[0])
        x = functional.conv2d(x, self.blur, padding=1, groups=len(self.blur))
        return self.c(functional.conv2d(x, self.blur, padding=1, groups=x.shape[1]))


class FixedGroups(Network):
    """Groups whose number is written into the forward; a layer before them is free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 4), self.conv(4, 6), self.conv(6, 5)
        self.weight = nn.Parameter(torch.rand(6, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(functional.conv2d(self.b(self.a(x).relu()), self.weight, groups=6))


class AsWideAsALayer(Network):
    """Views by what a depthwise layer says of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 6, groups=6), nn.Linear(6, 4)
        self.up, self.out = nn.ConvTranspose2d(4, 4, 2, groups=4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        x = x.reshape(len(x), self.b.groups, -1).mean(-1) + x.reshape(len(x), self.b.out_channels, -1).amax(-1)
        x = self.up(self.c(x).relu()[..., None, None]).relu()
        return self.out(x.reshape(len(x), self.up.in_channels, -1).mean(-1))


GROUPS: dict[type[Network], list[int]] = {
    HeadsOfTheStream: [4],
    DividedHeads: [4],
    WidthTwice: [6],
    SplitByShare: [6, 6],
    SlicedByShare: [6, 6],
    SplitWithRest: [6],
    CutFromTheEnd: [6],
    BranchesWeighed: [6, 4],
    OwnGroups: [2, 6],
    FixedGroups: [4],
    AsWideAsALayer: [6, 4],
}
