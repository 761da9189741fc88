"""Where the training of a stage stands: plain data, saved in every checkpoint."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Where training stands, of `total` steps. `position` counts the optimizer steps done of epoch `epoch`.

    evaluation: of this very step, where it has been evaluated. memory, time: measured by the process that took the last steps.
    """

    step: int = 0
    total: int | None = None
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    strategy: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    time: dict[str, Any] | None = None
