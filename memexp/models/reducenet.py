"""ReduceNet (2023): a network that is trained deep and wide and deployed as a chain of 3x3 convolutions.

A block is conv3x3 - BN - act - conv1x1 - BN plus the identity (none at a stride), wide inside by `expansion`. act vanishes
while it is trained (memexp.models.vanishing); then the block is linear and merges, exactly, into one 3x3 convolution.

    vanish=inner     the activation inside each block vanishes, the ReLU after its sum stays: depth 20 is deployed as 10
                     convolutions
    vanish=all       the article's recipe to the letter: all vanish, and what is left is one affine map of the pixels
    vanish=schedule  inside as above, and after the sums as `schedule` says

The published code overwrote its ReLU's input (`inplace_relu`), so its networks never lost an activation; their accuracies
are no evidence for vanish=all. Small images: depth 6n + 2 (20, 56), or 3n + 2 for `plain` (29: one 3x3 convolution a block).
Activation memory with stored backprop: O(n) in the blocks.
"""

import logging
from collections.abc import Sequence

from torch import Tensor, nn

from memexp.models import branch as parts
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape
from memexp.models.vanishing import ArtefactReLU, VanishingReLU, set_lambda

WIDTHS = (16, 32, 64)
Schedule = Sequence[float | Sequence[float | None] | None]
log = logging.getLogger(__name__)


class Block(nn.Module):
    """act(f(x) + x), or act(f(x)) where the shape changes; `shortcut` is the identity, cropped where f does not pad."""

    def __init__(self, f: nn.Module, shortcut: nn.Module | None, act: nn.Module) -> None:
        super().__init__()
        self.f, self.shortcut, self.act = f, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.f(x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        out: Tensor = self.act(y)
        return out


class ReduceNet(nn.Module):
    """(n, channels, h, w) images -> (n, classes) scores."""

    def __init__(self, stem: nn.Module, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = stem, body, head

    def set_lambda(self, value: float) -> None:
        """lambda of the vanishing activations: 1 is ReLU, 0 the identity. Raises ValueError outside of [0, 1]."""
        set_lambda(self, value)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.stem(images)))
        return scores


def reducenet(
    *,
    classes: int,
    shape: Shape,
    chain: ChainFactory,
    depth: int,
    expansion: float = 1,
    vanish: str = "inner",
    schedule: Schedule | None = None,
    padding: str = "each",
    plain: bool = False,
    inplace_relu: bool = False,
) -> ReduceNet:
    """ReduceNet of the given depth, widths 16, 32, 64; starts at lambda = 1.

    expansion: channels inside a block, as a multiple of those it gives out.
    schedule: for each of three stages the share of the training after which the activations behind its sums are gone, null
    for those that stay; or a list of one for each block. The stem's activation follows the first block's.
    padding: each (every 3x3 pads by 1), or once (all zeros around the image, then none, so that blocks merge too).
    plain: the baseline whose block is conv3x3 - BN plus the identity, then ReLU; it has nothing that vanishes.
    inplace_relu: the published code's artefact, on purpose.

    Raises ValueError for a depth that there is not and settings that do not go together.
    """
    n, rest = divmod(depth - 2, 3 if plain else 6)
    if n < 1 or rest:
        raise ValueError(f"depth={depth} is not a ReduceNet: use {'3n + 2 (11, 29)' if plain else '6n + 2 (20, 56)'}")
    if vanish not in ("inner", "all", "schedule"):
        raise ValueError(f"vanish={vanish!r}: use inner, all or schedule")
    if padding not in ("each", "once"):
        raise ValueError(f"padding={padding!r}: use each or once")
    if (vanish == "schedule") != (schedule is not None):
        raise ValueError(f"schedule={schedule} goes with vanish=schedule, which needs one; vanish={vanish}")
    if plain and (vanish != "inner" or inplace_relu or expansion != 1):
        raise ValueError("plain=true has no activation that vanishes: leave vanish, expansion and inplace_relu out")
    if inplace_relu:
        log.warning(
            "inplace_relu=true: the ReLU overwrites its input, so no activation ever vanishes, and none can be merged"
        )
    until = _until(vanish, schedule, n)
    strides = [2 if stage and not block else 1 for stage in range(3) for block in range(n)]
    around, step = 1, 1  # zeros around the image when all padding is taken once: a 3x3's 1, as seen before the strides
    for stride in strides:
        around, step = around + step, step * stride

    def act(share: float | None) -> nn.Module:
        if share is None:
            return nn.ReLU(inplace=True)
        return ArtefactReLU(share) if inplace_relu else VanishingReLU(share, inplace=True)

    def conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 3, stride, padding=int(padding == "each"), bias=False)

    width = WIDTHS[0]
    first = nn.Conv2d(shape[0], width, 3, padding=1 if padding == "each" else around, bias=False)
    stem = nn.Sequential(first, nn.BatchNorm2d(width), act(1.0 if vanish == "all" else until[0][0]))
    blocks: list[nn.Module] = []
    for index, stride in enumerate(strides):
        stage, block = divmod(index, n)
        outputs = WIDTHS[stage]
        shortcut: nn.Module | None = None
        if width == outputs and stride == 1:
            shortcut = nn.Identity() if padding == "each" else nn.ZeroPad2d(-1)
        inside = max(1, round(expansion * outputs))
        if plain:
            f = nn.Sequential(conv3x3(width, outputs, stride), nn.BatchNorm2d(outputs))
        else:
            f = nn.Sequential(
                *(conv3x3(width, inside, stride), nn.BatchNorm2d(inside), act(1.0)),
                *(nn.Conv2d(inside, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
            )
        blocks.append(Block(f, shortcut, act(until[stage][block])))
        width = outputs
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    network = ReduceNet(stem, chain(blocks), head)
    parts.initialise(network)
    return network


def _until(vanish: str, schedule: Schedule | None, n: int) -> list[list[float | None]]:
    """For each stage and block when the activation behind its sum is gone; None: never."""
    if schedule is None:
        return [[1.0 if vanish == "all" else None] * n] * 3
    found = [list(entry) if isinstance(entry, Sequence) else [entry] * n for entry in schedule]
    if len(found) != 3 or any(len(entry) != n for entry in found):
        raise ValueError(f"schedule={schedule}: one entry for each of 3 stages, a share or a list of {n}, one a block")
    return found
