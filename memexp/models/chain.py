"""What a family asks for to build its body: steps in, a module out that runs them. How is the runner's business."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn


class ChainFactory(Protocol):
    """Makes a network's body from its steps, such as memexp.backprop.Chain with a strategy chosen."""

    def __call__(self, steps: Sequence[nn.Module], /) -> nn.Module: ...
