"""Residual networks as discretised ODEs (Sander, Ablin, Peyre 2022, arXiv 2205.14612).

simple   one Chain of N functions of 16 channels on a third of the resolution; Euler or Heun steps of scale 1/N
ode      four stages: an ordinary bottleneck unit, then Euler steps of scale 1/n over the stage's n further functions

Parameters of the simple network at 10 classes: 1,882 + 4,704 N, Euler and Heun alike. Activation memory with the adjoint:
O(1) in the functions.
"""

from itertools import pairwise

from torch import Tensor, nn

from memexp.backprop import EulerStep, HeunStep
from memexp.models import branch as parts
from memexp.models import layout as layouts
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape

WIDTH = 16


class OdeNet(nn.Module):
    """(n, channels, h, w) images -> (n, classes) scores. `functions` are the residual functions of each stage, in order."""

    quiet = True  # draws no random numbers, writes to no buffers

    def __init__(self, stem: nn.Module, body: nn.Module, head: nn.Module, functions: list[list[nn.Module]]) -> None:
        super().__init__()
        self.stem, self.body, self.head = stem, body, head
        self.functions = functions  # a list, not a ModuleList: they are registered in the body

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.stem(images)))
        return scores


def simple(*, classes: int, shape: Shape, chain: ChainFactory, depth: int, heun: bool = False) -> OdeNet:
    """The paper's simple network with `depth` residual functions, in Euler steps or in depth - 1 Heun steps.

    Raises ValueError for a Heun network of fewer than two functions and for images too small for its pooling.
    """
    layouts.simple(shape, depth, heun)
    functions: list[nn.Module] = [_simple_function() for _ in range(depth)]
    scale = 1 / depth
    steps: list[nn.Module]
    if heun:
        steps = [HeunStep(f0, f1, scale) for f0, f1 in pairwise(functions)]
    else:
        steps = [EulerStep(f, scale) for f in functions]
    stem = nn.Sequential(
        nn.Conv2d(shape[0], WIDTH, 5, stride=3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)
    )
    height, width = (((side + 2 - 5) // 3 + 1) // 4 for side in shape[1:])
    head = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(WIDTH * height * width, classes))
    return OdeNet(stem, chain(steps), head, [functions])


def _simple_function() -> nn.Sequential:
    """conv-BN-ReLU-conv-BN, 0 at the start."""
    last = nn.BatchNorm2d(WIDTH)
    nn.init.zeros_(last.weight)
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        last,
    )


def staged(layout: layouts.Layout, *, classes: int, shape: Shape, chain: ChainFactory, tied: bool = False) -> OdeNet:
    """Bottleneck stages, each an ordinary unit and Euler steps behind it; tied: one function in each stage."""
    steps: list[nn.Module] = []
    functions: list[list[nn.Module]] = []
    width = layout.channels[0]
    for stage, (count, middle) in enumerate(zip(layout.units, layout.channels[1:], strict=True)):
        outputs = 4 * middle
        steps.append(Bottleneck(width, middle, stride=1 if stage == 0 else 2))
        width, rest = outputs, count - 1
        one = _function(width, middle)
        functions.append([one if tied else _function(width, middle) for _ in range(rest)])
        steps += [EulerStep(f, 1 / rest) for f in functions[-1]]
    stem = parts.stem(shape[0], layout.channels[0], layout.large)
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return OdeNet(stem, chain(steps), head, functions)


class Bottleneck(nn.Module):
    """A stage's first unit: f(x) + s(x) with a projection, where the shape changes."""

    quiet = True  # draws no random numbers, writes to no buffers

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * middle
        self.f = nn.Sequential(
            parts.convolution(inputs, middle, 1),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            parts.convolution(middle, middle, 3, stride),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            parts.convolution(middle, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.s = nn.Sequential(parts.convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.f(x)
        return y + self.s(x)


def _function(width: int, middle: int) -> nn.Sequential:
    """ReLU-1x1-BN-ReLU-3x3-BN-ReLU-1x1-BN."""
    return nn.Sequential(
        nn.ReLU(),
        parts.convolution(width, middle, 1),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        parts.convolution(middle, middle, 3),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        parts.convolution(middle, width, 1),
        nn.BatchNorm2d(width),
    )


def heunnet(*, classes: int, shape: Shape, chain: ChainFactory, depth: int) -> OdeNet:
    """The simple network in Heun steps."""
    return simple(classes=classes, shape=shape, chain=chain, depth=depth, heun=True)
