"""RevNet (Gomez, Ren, Urtasun, Grosse 2017, arXiv 1707.04585): a residual network whose units can be undone.

    y1 = s(x1) + F(x2)        y2 = s(x2) + G(y1)

The streams are the halves of the channels; s is the identity but in the first unit of a stage, which is not undone.
Parameters at 10 classes: RevNet-38 464,890, -110 1,729,194, -164 1,748,778; at 1000: -56 27,553,128, -104 45,428,072.
Activation memory with reversible backprop: O(1) in the units of a stage.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from memexp.backprop import AdditiveCoupling, full_precision, join, split
from memexp.models import branch as parts
from memexp.models import layout as layouts
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape


class Stem(nn.Sequential):
    """Images to two streams. A step of the Chain, so that it is recomputed where units are: it holds more than they do."""

    quiet = True  # draws no random numbers, writes to no buffers

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return split(full_precision(super().forward(images)))


class RevNet(nn.Module):
    """(n, channels, h, w) images -> (n, classes) scores. The body starts with the stem and ends with two streams."""

    quiet = True  # draws no random numbers, writes to no buffers

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(join(*self.body(images)))
        return scores


def revnet(
    *,
    classes: int,
    shape: Shape,
    chain: ChainFactory,
    depth: int,
    units: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    bottleneck: bool | None = None,
) -> RevNet:
    """RevNet of the given depth, or of the given units per stage and channels (stem first; both streams together).

    Raises ValueError for a depth that is no RevNet for images of `shape`, and for odd channel counts.
    """
    layout = layouts.revnet(shape, depth, units, channels, bottleneck)
    width = layout.channels[0] // 2
    steps: list[nn.Module] = [Stem(*parts.stem(shape[0], layout.channels[0], layout.large))]
    for count, whole, first_stride in layout.stages():
        outputs = whole // 2
        for unit in range(count):
            stride = first_stride if unit == 0 else 1
            F = parts.branch(width, outputs, stride, layout.bottleneck, activated=len(steps) > 1)
            G = parts.branch(outputs, outputs, 1, layout.bottleneck, activated=True)
            changes = width != outputs or stride != 1
            pair = [parts.shortcut(width, outputs, stride, layout.bottleneck) for _ in range(2)] if changes else None
            steps.append(AdditiveCoupling(F, G, pair))
            width = outputs
    network = RevNet(chain(steps), parts.head(2 * width, classes))
    parts.initialise(network)
    return network
