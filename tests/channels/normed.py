"""Small networks whose normalisations have statistics over channels."""

from hand_made import Network
from torch import Tensor, nn
from torch.nn import functional


class OneGroup(Network):
    """GroupNorm of a single group (PoolFormer, MobileViTv2), with a bias and without, in a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = self.conv(3, 8), nn.GroupNorm(1, 8), self.conv(8, 6), self.conv(6, 8)
        self.weight, self.out = nn.Parameter(self.norm.weight.data.clone()), self.conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.c(self.b(self.norm(x)).relu())
        return self.out(functional.group_norm(x, 1, self.weight))


class OverPositions(Network):
    """GroupNorm whose statistics are over what a linear layer makes; a hidden layer is free."""

    shape = (2, 4, 12)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.c = nn.Linear(12, 6), nn.Linear(6, 8), nn.GroupNorm(2, 4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.norm(self.b(self.a(x).relu())))


GROUPS: dict[type[Network], list[int]] = {OneGroup: [8, 6], OverPositions: [6]}
