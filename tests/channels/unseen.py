"""Small networks with what was wrong once in networks of other people's: each with the sizes of its groups."""

import math

import torch
from hand_made import Network
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class TokensMixed(Network):
    """A mixer: a bias along the tokens makes channels whose filters are zero other than zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.tokens = self.conv(3, 12), nn.LayerNorm(12), nn.Linear(64, 64)
        self.up, self.down, self.b = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.b((x + self.down(self.up(x).relu())).mean(1))


class TokensNormed(Network):
    """A LayerNorm along the tokens, whose bias does so too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = self.conv(3, 6), nn.LayerNorm(64), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x).flatten(2)).mean(-1))


class SummedFeatures(Network):
    """Linear attention (Katharopoulos et al. 2020): elu + 1 of features that are then summed without weights."""

    shape = (2, 7, 12)

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.b = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k = functional.elu(self.q(x)) + 1, functional.elu(self.k(x)) + 1
        return self.b(q @ (k.transpose(1, 2) @ self.v(x)) / (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True))


class Energy(Network):
    """A sum over channels that are not zero where their filters are; of those before it, which are, some can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 8), self.conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x).exp()
        return self.c(y / y.sum(1, keepdim=True)) + x.sum(1, keepdim=True)


class StandardisedByBatchNorm(Network):
    """A weight that is standardised by batch_norm: its statistics are over the inputs, which stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 8), self.conv(8, 5)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        w = self.b.weight
        flat = functional.batch_norm(w.reshape(1, w.shape[0], -1), None, None, self.gain, training=True, momentum=0.0)
        return self.c(functional.conv2d(self.a(x).relu(), flat.reshape_as(w), self.b.bias, padding=1).relu())


class ClassToken(Network):
    """A token of parameters alone in front of the others, attended to in one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.token = self.conv(3, 12), nn.Parameter(torch.randn(1, 2, 12))
        self.qkv, self.b = nn.Linear(12, 3 * 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.a(x).flatten(2).transpose(1, 2)], 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.b(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0])


class FewerKeys(Network):
    """Grouped-query attention (Ainslie et al. 2023): two heads of queries share one of keys and values, all turned."""

    shape = (2, 7, 12)

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.b = nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(self.turned(q), self.turned(k), v, enable_gqa=True)
        return self.b(y.transpose(1, 2).flatten(2))

    def turned(self, x: Tensor) -> Tensor:
        """Rotary embedding (Su et al. 2021): multiplied by numbers that differ within a head."""
        angle = torch.outer(torch.arange(7, dtype=x.dtype), torch.tensor([1.0, 0.1], dtype=x.dtype)).repeat(1, 2)
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()


class Shifted(Network):
    """A buffer that is added to channels."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.conv(3, 6), self.conv(6, 5)
        self.register_buffer("shift", torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() + self.shift)


class Orthogonal(Network):
    """A parametrised weight of operations without a rule: it stays as it is."""

    shape = (2, 8)

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="cayley", use_trivialization=False)
        self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


class Spectral(Network):
    """A weight over its largest singular value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 8), self.conv(8, 5)
        self.a = parametrizations.spectral_norm(self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


class Gated(Network):
    """Halves of which one gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 12), self.conv(6, 4), self.conv(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(functional.glu(self.b(functional.glu(self.a(x), 1)), -1))


class Blurred(Network):
    """One kernel for all channels, as many as there are, or as an attribute says."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.width = self.conv(3, 6), self.conv(6, 8), self.conv(8, 5), 8
        self.register_buffer("kernel", torch.full((1, 1, 2, 2), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = self.b(functional.conv2d(x, self.kernel.expand(x.shape[1], 1, 2, 2), groups=x.shape[1]))
        return self.c(functional.conv2d(x.relu(), self.kernel.expand(self.width, 1, 2, 2), groups=self.width))


class BlurredByConstant(Network):
    """As many kernels as there are channels, which are neither parameters nor buffers."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.conv(3, 6), self.conv(6, 8), self.conv(8, 5)
        self.kernel = torch.rand(6, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(functional.conv2d(self.a(x).relu(), self.kernel.to(x), groups=6)).relu())


class TransposedInGroups(Network):
    """Transposed convolutions in groups, with two outputs each and one each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.conv(3, 12), nn.ConvTranspose2d(12, 8, 2, 2, groups=4)
        self.up, self.norm, self.c = nn.ConvTranspose2d(8, 8, 2, 2, groups=8), nn.BatchNorm2d(8), self.conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.norm(self.up(self.b(self.a(x).relu()).relu())).relu())


class Counted(Network):
    """The number of channels is a value: of a mean written by hand, of a scale, of a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = self.conv(3, 6), self.conv(6, 8), self.conv(8, 4), self.conv(4, 7)
        self.e = self.conv(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = self.b(x - x.sum(1, keepdim=True) / x.shape[1]).relu()
        x = self.c(x * x.size(1) ** -0.5).relu()
        return self.e(self.d(x * torch.tensor(x.shape[1])).relu())


class ScaledByLength(Network):
    """Attention over the root of a head's length: whole heads can go."""

    shape = (2, 7, 12)

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.b = nn.Linear(12, 3 * 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1) @ v
        return self.b(y.transpose(1, 2).flatten(2))


class DirectionNormed(Network):
    """Weight norm where channels that are zero go on as others: the direction of a filter must not become zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = parametrizations.weight_norm(self.conv(3, 6)), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).sigmoid())


class WiderValues(Network):
    """Attention that torch carries out in small operations: its scale follows from the length of queries, which has to stay."""

    shape = (2, 7, 12)

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.b = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(functional.scaled_dot_product_attention(9 * self.q(x), self.k(x), self.v(x)))


GROUPS: dict[type[Network], list[int]] = {
    TokensMixed: [12, 20],
    TokensNormed: [6],
    SummedFeatures: [6],
    Energy: [6],
    StandardisedByBatchNorm: [8],
    ClassToken: [12],
    FewerKeys: [2],
    Shifted: [6],
    Orthogonal: [6],
    Spectral: [8],
    Gated: [6, 4],
    Blurred: [6, 8],
    BlurredByConstant: [8],
    TransposedInGroups: [4],
    Counted: [7],
    ScaledByLength: [4],
    DirectionNormed: [6],
    WiderValues: [10],
}
