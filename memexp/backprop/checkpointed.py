"""Checkpointed: every k-th step's input is kept (Chen, Xu, Zhang, Guestrin 2016, arXiv 1604.06174).

O(N/k + k) activation memory, least at k = sqrt(N); backward 3N (forward = N).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from memexp.backprop.plan import Keep
from memexp.backprop.stored import Stored


@dataclass(frozen=True)
class Checkpointed(Stored):
    """Steps are recomputed from kept inputs, `every` steps together.

    Args:
        every: k >= 1; the input of every k-th step is kept.

    Raises:
        ValueError: `every` is below 1.
    """

    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every={self.every!r}: use an integer of at least 1 (every k-th step's input is kept)")

    def plan(self, steps: Sequence[nn.Module], streams: tuple[Tensor, ...]) -> list[Keep]:
        return ["continued" if index % self.every else "checkpointed" for index in range(len(steps))]
