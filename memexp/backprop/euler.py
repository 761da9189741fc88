"""Euler step of a residual network as a discretised ODE (Sander et al. 2022, arXiv 2205.14612, section 3).

x_{n+1} = x_n + scale f_n(x_n),        x~_n = x~_{n+1} - scale f_n(x~_{n+1})        (scale = 1/N)
"""

from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.context import Context, taken
from memexp.backprop.replay import evaluate
from memexp.backprop.residual import residual
from memexp.backprop.step import Step
from memexp.backprop.task import Task, Undone


class EulerStep(Step):
    """x + scale f(x) on one stream, of any shape that `f` keeps. Its inverse is approximate, of order scale^2.

    Args:
        f: residual function, any module that keeps the shape.
        scale: 1/N in a chain of N steps; 1 for an ordinary residual network.
    """

    def __init__(self, f: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.f = f
        self.scale = scale

    @property
    def approximate(self) -> bool:
        return True

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"

    def forward(self, x: Tensor, **context: Any) -> Tensor:
        return torch.add(x, residual("f", self.f, x, x, context), alpha=self.scale)

    def inverse(self, y: Tensor, refine: int = 0, **context: Any) -> Tensor:  # type: ignore[override]
        """x~ from y = x + scale f(x): y - scale f(y), then `refine` times x~ <- y - scale f(x~)."""
        own = taken(self.f, context)
        return self._inverse(y, refine, evaluate("f", self.f, y, **own), own)

    def undo(self, task: Task) -> Undone:
        """One evaluation (and `refine` more) for x~, one for the gradient at x~."""
        (y,), (grad,), (need,) = task.outputs, task.grads, task.needs
        known = task.value[1] if task.value and task.value[0] is self.f else None
        with torch.no_grad():
            own = task.given(self.f)
            x = self._inverse(y, task.refine, evaluate("f", self.f, y, **own) if known is None else known, own)
        scaled = None if grad is None else self.scale * grad
        z, grad = task.branch("f", self.f, x, scaled, grad, need)
        below = (self.f, z) if task.repeatable("f") else None
        return Undone((x,), (grad if need else None,), below)

    def _inverse(self, y: Tensor, refine: int, value: Tensor, own: Context) -> Tensor:
        x = torch.sub(y, value, alpha=self.scale)
        for _ in range(refine):
            x = torch.sub(y, evaluate("f", self.f, x, **own), alpha=self.scale)
        return x
