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

from torch import Tensor, nn

from memexp.models import branch as parts
from memexp.models import layout
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape, Vanishing
from memexp.models.vanishing import ArtefactReLU, VanishingReLU, set_lambda

WIDTHS = (16, 32, 64)
log = logging.getLogger(__name__)


class Block(nn.Module):
    """act(f(x) + x), or act(f(x)) where the shape changes; `shortcut` is the identity, cropped where f does not pad.

    wide: a teacher's further branch, of which its students know nothing.
    """

    quiet = True  # draws no random numbers, writes to no buffers

    def __init__(self, f: nn.Module, shortcut: nn.Module | None, act: nn.Module, wide: nn.Module | None = None) -> None:
        super().__init__()
        self.f, self.shortcut, self.act, self.wide = f, shortcut, act, wide

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.f(x)
        for beside in (self.shortcut, self.wide):
            if beside is not None:
                y = y + beside(x)
        out: Tensor = self.act(y)
        return out


class ReduceNet(nn.Module):
    """(n, channels, h, w) images -> (n, classes) scores."""

    quiet = True  # draws no random numbers, writes to no buffers

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
    schedule: Vanishing | None = None,
    padding: str = "each",
    plain: bool = False,
    wide: float = 0,
    inplace_relu: bool = False,
) -> ReduceNet:
    """ReduceNet of the given depth, widths 16, 32, 64; starts at lambda = 1.

    expansion: channels inside a block, as a multiple of those it gives out.
    schedule: for each of three stages the share of the training after which the activations behind its sums are gone, null
    for those that stay; or a list of one for each block. The stem's activation follows the first block's.
    padding: each (every 3x3 pads by 1), or once (all zeros around the image, then none, so that blocks merge too).
    plain: the baseline whose block is conv3x3 - BN plus the identity, then ReLU; it has nothing that vanishes.
    wide: a teacher for `student`: beside each 3x3 of a plain network a branch conv3x3 - BN - ReLU - conv1x1 - BN that is so
    many times as wide inside; 0 for none.
    inplace_relu: the published code's artefact, on purpose.

    Raises ValueError for a depth that there is not and settings that do not go together.
    """
    made = layout.reducenet(depth, vanish, schedule, padding, expansion, plain, wide, inplace_relu)
    if inplace_relu:
        log.warning("inplace_relu=true: the ReLU overwrites its input, so no activation ever vanishes or can be merged")

    def act(share: float | None) -> nn.Module:
        if share is None:
            return nn.ReLU(inplace=True)
        return ArtefactReLU(share) if inplace_relu else VanishingReLU(share, inplace=True)

    pad = int(padding == "each")
    width = WIDTHS[0]
    first = nn.Conv2d(shape[0], width, 3, padding=1 if pad else made.around, bias=False)
    stem = nn.Sequential(first, nn.BatchNorm2d(width), act(made.blocks[0][2]))
    blocks: list[nn.Module] = []
    for stage, stride, share in made.blocks:
        outputs = WIDTHS[stage]
        around = (width, outputs, stride, pad)
        f = _plain(*around) if plain else _branch(*around, expansion, act(1.0))
        same = width == outputs and stride == 1
        shortcut = (nn.Identity() if pad else nn.ZeroPad2d(-1)) if same else None
        beside = _branch(*around, wide, nn.ReLU(inplace=True)) if wide else None
        blocks.append(Block(f, shortcut, act(share), beside))
        width = outputs
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    network = ReduceNet(stem, chain(blocks), head)
    parts.initialise(network)
    return network


def _plain(inputs: int, outputs: int, stride: int, padding: int) -> nn.Sequential:
    """conv3x3 - BN."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False), nn.BatchNorm2d(outputs))


def _branch(inputs: int, outputs: int, stride: int, padding: int, expansion: float, act: nn.Module) -> nn.Sequential:
    """conv3x3 - BN - act - conv1x1 - BN, `expansion` times as wide inside as what it gives out."""
    inside = max(1, round(expansion * outputs))
    last = nn.Conv2d(inside, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
    return nn.Sequential(*_plain(inputs, inside, stride, padding), act, *last)


def student(network: nn.Module, teacher: nn.Module) -> None:
    """Starts a plain network with the weights of a teacher, whose wide branches are left out.

    Raises ValueError for a teacher of another depth, or one that is no plain ReduceNet with wide branches.
    """
    weights = {key: value for key, value in teacher.state_dict().items() if ".wide." not in key}
    if len(weights) == len(teacher.state_dict()):
        raise ValueError("the teacher has no wide branches: train it with model.plain=true model.wide=2")
    shapes = [{key: value.shape for key, value in state.items()} for state in (network.state_dict(), weights)]
    if shapes[0] != shapes[1]:
        raise ValueError("the teacher is of another depth than its student, or one of them is no plain ReduceNet")
    network.load_state_dict(weights)
