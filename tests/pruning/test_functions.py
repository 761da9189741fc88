"""Behind which function an activation is read: the first that is 0 where the channel is, as a removed one is."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.pruning import Settings, remove

IMAGES = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(7) % 3
DATA = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]
ZERO_AT_0 = {
    **{kind.__name__: kind() for kind in (nn.ReLU, nn.GELU, nn.Mish, nn.Tanh, nn.Softsign, nn.SELU, nn.CELU, nn.RReLU)},
    **{f"{kind.__name__} in place": kind(inplace=True) for kind in (nn.SiLU, nn.Hardswish, nn.ELU)},
    **{"LeakyReLU": nn.LeakyReLU(0.3), "PReLU": nn.PReLU(5, 0.4).double(), "Hardtanh": nn.Hardtanh(-1, 1)},
    **{"silu": functional.silu, "gelu": lambda y: functional.gelu(y, approximate="tanh"), "tanh": torch.tanh},
    "method": lambda y: y.tanh_(),
}
NOT = {"Sigmoid": nn.Sigmoid(), "Softplus": nn.Softplus(), "bounds": nn.Hardtanh(0.1, 1), "other": nn.Threshold(0, -1)}
OF = {
    "taylor_activation": lambda a, g: (a * g).mean((2, 3)).abs().mean(0),
    "fisher": lambda a, g: (a * g).sum((2, 3)).square().mean(0) / 2,
    "skeletonization": lambda a, g: -(a * g).sum((2, 3)).mean(0),
}


class Net(nn.Module):
    """conv-BN-function, conv, average."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 3, 1)
        for tensor in (self.norm.weight.data, self.norm.bias.data, self.norm.running_mean):
            tensor.normal_()
        self.function = function
        self.double().eval()

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = self.a(x)
        behind = self.function(self.norm(own))
        return own, behind, self.b(behind).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)[-1]


def scored(network: Net, criterion: str) -> Tensor:
    (group,) = remove(network, IMAGES, criterion, Settings(ratio=0.4), data=DATA).groups
    return torch.tensor(group["scores"]).double()


@pytest.mark.parametrize("criterion", OF)
@pytest.mark.parametrize("name", [*ZERO_AT_0, *NOT])
def test_products_are_those_behind_the_function_that_is_0_at_0(name: str, criterion: str) -> None:
    network = Net((ZERO_AT_0 | NOT)[name])
    own, behind, outputs = network.parts(IMAGES)
    read = behind if name in ZERO_AT_0 else own
    (gradient,) = torch.autograd.grad(functional.cross_entropy(outputs, LABELS, reduction="sum"), read)
    torch.testing.assert_close(scored(network, criterion), OF[criterion](read, gradient).detach())


@pytest.mark.parametrize("name", [name for name in ZERO_AT_0 if name not in ("ReLU", "RReLU", "Hardswish in place")])
def test_zeros_are_counted_behind_a_relu_alone(name: str) -> None:
    with pytest.raises(ValueError, match="apoz counts zeros after a ReLU, and none follows layer a"):
        scored(Net(ZERO_AT_0[name]), "apoz")
    function = ZERO_AT_0[name]
    network = Net(
        nn.Sequential(function, nn.ReLU()) if isinstance(function, nn.Module) else lambda y: function(y).relu()
    )
    alive = (network.parts(IMAGES)[1] != 0).double().mean((0, 2, 3))
    torch.testing.assert_close(scored(network, "apoz"), alive)
