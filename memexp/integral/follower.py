"""Numbers that a module keeps and that follow a width, such as a padding of channels."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from memexp.integral.axis import Axis


class Follower:
    """A forward pre-hook: such numbers are the present ones.

    held: whether the module is in evaluation mode within a network that is trained.
    """

    held = False

    def __init__(self, attributes: Sequence[tuple[str, int | None, Axis]]) -> None:
        self.attributes = list(attributes)

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        for name, index, axis in self.attributes:
            value: Any = axis.present(module.training or self.held)
            if index is not None:
                whole = getattr(module, name)
                value = type(whole)(value if i == index else v for i, v in enumerate(whole))
            setattr(module, name, value)
