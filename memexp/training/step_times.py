"""How long the steps of a training take."""

import time
from statistics import median
from typing import Any

from memexp.backprop.compiled import Compilation

WARM_UP = 3  # steps, beyond those that something slows, which the median leaves out


class StepTimes:
    """Seconds of this process's steps, one after another. compilation: where steps are compiled as they are first needed;
    what that takes is in no step's time.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.compilation: Compilation | None = None
        self._since = 0.0

    def start(self) -> None:
        """A step begins: the first, or one after work beside training."""
        self._since = self._now()

    def end(self) -> float:
        """A step ends and the next begins. Returns its seconds."""
        since, self._since = self._since, self._now()
        self.seconds.append(self._since - since)
        return self.seconds[-1]

    def recent(self, count: int) -> float:
        """The median of the last `count` steps."""
        return median(self.seconds[-count:])

    def results(self, slowed: int, images: int) -> dict[str, Any]:
        """The median, without the first `slowed` steps and the warm-up (of all, if that is all), and what follows of it.

        images: of a step, in all processes.
        """
        warm = self.seconds[slowed + WARM_UP :]
        steps = warm or self.seconds
        typical = median(steps) if steps else None
        return {
            "step_median": typical,
            "steps_measured": len(steps),
            "warm_up_excluded": bool(warm),
            "images_per_second": images / typical if typical else None,
            "compile_seconds": self.compilation.seconds if self.compilation is not None else None,
        }

    def _now(self) -> float:
        """Seconds, which stand still while something is compiled."""
        return time.perf_counter() - (self.compilation.seconds if self.compilation is not None else 0.0)
