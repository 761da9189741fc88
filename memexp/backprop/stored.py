"""Stored: ordinary backprop. O(N) activation memory, backward 2N (forward = N)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from memexp.backprop.plan import Keep
from memexp.backprop.rounding import Rounding


@dataclass(frozen=True)
class Stored:
    """Autograd keeps all that it needs.

    Args:
        exact: round streams and branches as the reversible strategy does, so that the two can be compared bit for bit.
        exact_bits: k of the grid of multiples of 2^-k.

    Raises:
        ValueError: an option's value is not allowed.
    """

    exact: bool = False
    exact_bits: int = 16
    refine = 0

    def __post_init__(self) -> None:
        if not isinstance(self.exact, bool):
            raise ValueError(f"exact={self.exact!r}: use true or false")
        Rounding(self.exact_bits)

    @property
    def rounding(self) -> Rounding | None:
        return Rounding(self.exact_bits) if self.exact else None

    def plan(self, steps: Sequence[nn.Module], streams: tuple[Tensor, ...]) -> list[Keep]:
        return ["stored" for _ in steps]
