"""Pre-activation ResNet (He et al. 2016, arXiv 1603.05027), the baseline of the RevNet paper.

x_{n+1} = s(x_n) + f_n(x_n), s the identity but in the first unit of a stage. Parameters at 10 classes: ResNet-32 464,154,
-110 1,727,962, -164 1,703,258; at 1000: -50 25,549,352, -101 44,541,480. Activation memory with stored backprop: O(n).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from memexp.backprop import EulerStep
from memexp.models import branch as parts
from memexp.models import layout as layouts
from memexp.models import ode
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape


class ChangingUnit(nn.Module):
    """s(x) + f(x) where the shape changes."""

    quiet = True  # draws no random numbers, writes to no buffers

    def __init__(self, f: nn.Module, s: nn.Module) -> None:
        super().__init__()
        self.f, self.s = f, s

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.s(x)
        return shortcut + self.f(x)


class ResNet(nn.Module):
    """(n, channels, h, w) images -> (n, classes) scores."""

    quiet = True  # draws no random numbers, writes to no buffers

    def __init__(self, stem: nn.Module, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = stem, body, head

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.stem(images)))
        return scores


def resnet(
    *,
    classes: int,
    shape: Shape,
    chain: ChainFactory,
    depth: int,
    units: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    bottleneck: bool | None = None,
    kind: str = "preactivation",
    tied: bool = False,
) -> ResNet | ode.OdeNet:
    """ResNet of the given depth, or of the given units per stage and channels (stem first).

    kind: preactivation, or simple or ode (memexp.models.ode), which alone can be tied.
    Raises ValueError for a depth that is no ResNet for images of `shape`, and for what its kind does not have.
    """
    layout = layouts.resnet(shape, depth, units, channels, bottleneck, kind, tied)
    if kind == "simple":
        return ode.simple(classes=classes, shape=shape, chain=chain, depth=depth)
    if kind == "ode":
        return ode.staged(layout, classes=classes, shape=shape, chain=chain, tied=tied)
    width = layout.channels[0]
    steps: list[nn.Module] = []
    for count, outputs, first_stride in layout.stages():
        for unit in range(count):
            stride = first_stride if unit == 0 else 1
            f = parts.branch(width, outputs, stride, layout.bottleneck, activated=bool(steps))
            if width == outputs and stride == 1:
                steps.append(EulerStep(f))
            else:
                steps.append(ChangingUnit(f, parts.shortcut(width, outputs, stride, layout.bottleneck)))
            width = outputs
    network = ResNet(parts.stem(shape[0], layout.channels[0], layout.large), chain(steps), parts.head(width, classes))
    parts.initialise(network)
    return network
