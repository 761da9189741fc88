"""Heun step: the explicit trapezoidal rule between two functions (Sander et al. 2022, arXiv 2205.14612, section 4).

    x_{n+1} = x_n + scale/2 (f_n(x_n) + f_{n+1}(x_n + scale f_n(x_n)))
    x~_n = x~_{n+1} - scale/2 (f_{n+1}(x~_{n+1}) + f_n(x~_{n+1} - scale f_{n+1}(x~_{n+1})))        (scale = 1/N)

N functions make N-1 steps; f_{n+1} is the second function of one step and the first of the next.
"""

from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.context import Context, taken
from memexp.backprop.replay import evaluate
from memexp.backprop.residual import residual
from memexp.backprop.step import Step
from memexp.backprop.task import Task, Undone


class HeunStep(Step):
    """x + scale/2 (f0(x) + f1(x + scale f0(x))) on one stream.

    Its inverse is approximate, of order scale^3 for weights that are smooth in depth.

    Args:
        f0, f1: neighbouring residual functions, any modules that keep the shape; share them between neighbouring steps.
        scale: 1/N in a chain of N functions.
    """

    def __init__(self, f0: nn.Module, f1: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.f0 = f0
        self.f1 = f1
        self.scale = scale

    @property
    def approximate(self) -> bool:
        return True

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"

    def forward(self, x: Tensor, **context: Any) -> Tensor:
        a = residual("f0", self.f0, x, x, context)
        return x + self.scale / 2 * (a + residual("f1", self.f1, x + self.scale * a, x, context))

    def inverse(self, y: Tensor, refine: int = 0, **context: Any) -> Tensor:  # type: ignore[override]
        """x~ from y: the step with minus signs, then `refine` fixed-point iterations of x~ = y - (step(x~) - x~)."""
        own = taken(self.f0, context), taken(self.f1, context)
        return self._inverse(y, refine, evaluate("f1", self.f1, y, **own[1]), own)

    def undo(self, task: Task) -> Undone:
        """x~ and the gradient there; f1(y) is taken over from the step above where that has evaluated it as its f0."""
        (y,), (need,) = task.outputs, task.needs
        known = task.value[1] if task.value and task.value[0] is self.f1 else None
        with torch.no_grad():
            own = task.given(self.f0), task.given(self.f1)
            value = evaluate("f1", self.f1, y, **own[1]) if known is None else known
            x = self._inverse(y, task.refine, value, own)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(need)
            a = evaluate("f0", self.f0, leaf, **task.given(self.f0))
            b = evaluate("f1", self.f1, leaf + self.scale * a, **task.given(self.f1))
            out = leaf + self.scale / 2 * (a + b)
        below = (self.f0, a.detach()) if task.repeatable("f0") else None
        return Undone((x,), task.pull((out,), task.grads, (leaf,)), below)

    def _inverse(self, y: Tensor, refine: int, value: Tensor, own: tuple[Context, Context]) -> Tensor:
        half = self.scale / 2
        x = y - half * (value + evaluate("f0", self.f0, y - self.scale * value, **own[0]))
        for _ in range(refine):
            a = evaluate("f0", self.f0, x, **own[0])
            x = y - half * (a + evaluate("f1", self.f1, x + self.scale * a, **own[1]))
        return x
