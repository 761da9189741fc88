"""Small networks that the engine's tests share."""

import copy

import torch
from torch import Tensor, nn

from memexp.backprop import AdditiveCoupling, Chain


def basic(inputs: int, outputs: int | None = None, stride: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """BN-ReLU-conv3x3-BN-ReLU-conv3x3."""
    outputs = outputs or inputs
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Dropout(dropout) if dropout else nn.Identity(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
    )


def bottleneck(channels: int) -> nn.Sequential:
    """BN-ReLU-conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1."""
    middle = channels // 2
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, channels, 1, bias=False),
    )


def couplings(units: int, channels: int = 4, boundary: int | None = None, dropout: float = 0.0) -> list[nn.Module]:
    """Units on two streams of `channels`; unit `boundary` has a stride-1 convolution as its shortcut."""
    steps: list[nn.Module] = []
    for index in range(units):
        shortcut = nn.Conv2d(channels, channels, 1) if index == boundary else None
        steps.append(AdditiveCoupling(basic(channels, dropout=dropout), basic(channels, dropout=dropout), shortcut))
    return steps


def streams(
    channels: int = 4, batch: int = 3, size: int = 6, seed: int = 1, dtype: torch.dtype = torch.float32
) -> list:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, size, size)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(2)]


def chain(steps: list[nn.Module], backprop: str, **options) -> Chain:
    """A Chain on copies of the steps, so that several strategies start from the same weights."""
    return Chain(copy.deepcopy(steps), backprop=backprop, **options)


def loss(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return sum((y.float().pow(3) if y.dtype is torch.bfloat16 else y.pow(3)).mean() for y in outputs)


def gradients(network: nn.Module, inputs: list[Tensor], seed: int = 7) -> list[Tensor]:
    """One forward and backward from a fixed random state: gradients of inputs that need one and of parameters."""
    torch.manual_seed(seed)
    targets = [x for x in inputs if x.requires_grad] + [p for p in network.parameters() if p.requires_grad]
    for x in targets:
        x.grad = None
    loss(network(*inputs)).backward()
    return [x.grad for x in targets]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative error in norm of any of the gradients."""
    assert len(found) == len(expected)
    scale = max(e.norm() for e in expected)
    return max(((f - e).norm() / max(e.norm(), 1e-6 * scale)).item() for f, e in zip(found, expected, strict=True))


def same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


class Offset(nn.Module):
    """Gives the same number everywhere."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.tensor(size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) + self.size
