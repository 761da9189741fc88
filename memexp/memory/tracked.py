"""What a tracker has seen."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Storage:
    """One allocation. Its category is settled by what becomes of it."""

    bytes: int
    category: str
    module: str
    operation: str


@dataclass
class Report:
    """What was seen: bytes at the peak, who held them, FLOPs, and the live bytes over time.

    timeline: one entry per allocation or release: (operation, bytes by category). entered: where in it tracking began, once
    for each time that the tracker was entered.
    kept: bytes of activations when backward began, at most over the steps.
    flops_backward: all of backward; flops_recomputed: the part of it in which modules ran forward once more. uncounted: names
    of operations that may do products and have no formula, so that FLOPs are too few.
    """

    peak: int
    at_peak: dict[str, int]
    by_module: dict[str, int]
    operation: str
    kept: int
    flops_forward: int
    flops_backward: int
    flops_recomputed: int
    uncounted: tuple[str, ...]
    timeline: list[tuple[str, dict[str, int]]] = field(repr=False)
    entered: list[int] = field(repr=False)

    @property
    def macs_forward(self) -> int:
        """Adds-multiplies: two FLOPs each."""
        return self.flops_forward // 2

    @property
    def macs_backward(self) -> int:
        return self.flops_backward // 2

    @property
    def recompute_ratio(self) -> float:
        """Forward passes done again in backward: 0 for stored, 1 for checkpointed."""
        return self.flops_recomputed / self.flops_forward if self.flops_forward else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data without the timeline."""
        return {key: value for key, value in vars(self).items() if key not in ("timeline", "entered")}
