"""Small networks in which several dimensions, each with channels of its own, lie along one."""

import torch
from hand_made import Network
from torch import Tensor, nn
from torch.nn import functional


class ExpertsMixed(Network):
    """Kernels of experts, mixed for each image (CondConv): experts can go, and no positions of their kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.share, self.b = self.conv(3, 6), nn.Linear(6, 4), nn.Linear(8, 5)
        self.kernels = nn.Parameter(torch.randn(4, 8, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        shares = self.share(x.mean((2, 3))).sigmoid()
        kernels = torch.einsum("be,eoikl->boikl", shares, self.kernels).flatten(0, 1)
        y = functional.conv2d(x.view(1, -1, *x.shape[2:]), kernels, groups=len(x))
        return self.b(y.view(len(x), -1, *y.shape[2:]).relu().mean((2, 3)))


class LargestOfThree(Network):
    """Maxout (Goodfellow et al. 2013): units of three channels each go whole."""

    shape = (2, 7)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(7, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(len(x), -1, 3).amax(-1))


class MeanOfHalves(Network):
    """Of channels that lie far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.conv(3, 12), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().unflatten(1, (2, -1)).mean(1))


GROUPS: dict[type[Network], list[int]] = {ExpertsMixed: [4], LargestOfThree: [8], MeanOfHalves: [6]}
