"""Linear residual network prod_n (I + A_n / N), A_n = 0 at the start (Sander et al. 2022, arXiv 2205.14612, section 3)."""

from torch import Tensor, nn

from memexp.backprop import EulerStep
from memexp.models.chain import ChainFactory


class LinearResNet(nn.Module):
    """(n, d) -> (n, d); `matrices` are A_1 ... A_N, (d, d) each."""

    def __init__(self, d: int, depth: int, chain: ChainFactory) -> None:
        super().__init__()
        self.matrices = [nn.Linear(d, d, bias=False) for _ in range(depth)]
        for layer in self.matrices:
            nn.init.zeros_(layer.weight)
        self.body = chain([EulerStep(layer, 1 / depth) for layer in self.matrices])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y
