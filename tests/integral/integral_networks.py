"""Small networks for tests of integral networks, warmed up so that nothing of BatchNorm is at its default; a step of one."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.backprop import Chain
from memexp.integral import IntegralNetwork, convert
from memexp.models.base import base_network


class Flattened(nn.Module):
    """A residual sum, a grouped and a depthwise convolution, a concatenation with itself, flatten before the first FC layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 10, 1)
        self.back = nn.Conv2d(10, 12, 1, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.grouped = nn.Conv2d(12, 20, 3, groups=4, stride=2)
        self.twice = nn.Conv2d(40, 8, 1)
        self.hidden = nn.Linear(8 * 9, 11)
        self.scores = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.inner(x)))
        x = torch.relu(self.grouped(torch.relu(self.depthwise(x))))
        x = torch.relu(self.twice(torch.cat([x, x], 1)))
        y: Tensor = self.scores(torch.relu(self.hidden(x.flatten(1))))
        return y


def build(name: str, backprop: str = "stored") -> nn.Module:
    """flattened, resnet20, revnet38, vgg11, nin or torchvision/NAME; in evaluation, the same each time."""

    def chain(steps):  # type: ignore[no-untyped-def]
        return Chain(steps, backprop=backprop)

    torch.manual_seed(0)
    network = Flattened() if name == "flattened" else base_network(name, classes=10, shape=(3, 32, 32), chain=chain)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, *shape(name)))
        for p in network.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return network.eval()


def shape(name: str) -> tuple[int, int, int]:
    return (3, 10, 10) if name == "flattened" else (3, 64, 64) if "/" in name else (3, 32, 32)


def relative(y: Tensor, right: Tensor) -> float:
    return float((y - right).detach().abs().max() / right.detach().abs().max())


def small() -> IntegralNetwork:
    return convert(build("flattened"), torch.randn(1, 3, 10, 10), fold=False, smallest=0.4).train()


def step(network: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = functional.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def drawn(network: IntegralNetwork) -> dict[str, int]:
    return {name: group.drawn for name, group in network._continua.items()}
