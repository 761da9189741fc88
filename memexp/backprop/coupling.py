"""Additive coupling, the unit of a RevNet (Gomez et al. 2017, arXiv 1707.04585, equations 6 and 7).

y1 = x1 + F(x2)        x2 = y2 - G(y1)
y2 = x2 + G(y1)        x1 = y1 - F(x2)
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.context import Context, taken
from memexp.backprop.errors import StepError
from memexp.backprop.replay import evaluate, grid
from memexp.backprop.residual import residual
from memexp.backprop.step import Step
from memexp.backprop.streams import full_precision
from memexp.backprop.task import Task, Undone


class AdditiveCoupling(Step):
    """One reversible unit on two streams: y1 = s(x1) + F(x2), y2 = s(x2) + G(y1).

    Args:
        F, G: any modules that keep their stream's shape (F: where `shortcut` does).
        shortcut: s. None is the identity, and the unit can be undone. Else a module for both streams, or a pair of
            them, e.g. where a stage changes shape; such a unit is not undone, its input is kept.

    Raises:
        StepError: a branch that is no module, not two streams, a branch whose output does not have its stream's shape,
            or a branch that changes its input in place.
    """

    def __init__(self, F: nn.Module, G: nn.Module, shortcut: nn.Module | Iterable[nn.Module] | None = None) -> None:
        super().__init__()
        for name, branch in (("F", F), ("G", G)):
            if not isinstance(branch, nn.Module):
                raise StepError(
                    f"AdditiveCoupling: {name} is {branch!r}, a {type(branch).__name__}; use an nn.Module, such as "
                    "nn.Tanh(), whose parameters the engine can find"
                )
        self.F = F
        self.G = G
        if shortcut is not None and not isinstance(shortcut, nn.Module):
            shortcut = nn.ModuleList(shortcut)
        self.shortcut = shortcut

    @property
    def undoable(self) -> bool:
        return self.shortcut is None

    @property
    def on_grid(self) -> bool:
        return self.undoable

    def forward(self, *streams: Tensor, **context: Any) -> tuple[Tensor, Tensor]:
        x1, x2 = self._two(streams)
        y1 = self._add(self._through(1, x1, context), "F", self.F, x2, context)
        return y1, self._add(self._through(2, x2, context), "G", self.G, y1, context)

    def inverse(self, *streams: Tensor, **context: Any) -> tuple[Tensor, Tensor]:
        """x1, x2 from y1, y2.

        Raises:
            StepError: the unit has a shortcut other than the identity.
        """
        y1, y2 = self._two(streams)
        if self.shortcut is not None:
            raise StepError("has a shortcut, so it cannot be undone")
        x2 = self._subtract(y2, residual("G", self.G, y1, y2, context))
        return self._subtract(y1, residual("F", self.F, x2, y1, context)), x2

    def undo(self, task: Task) -> Undone:
        """Inverse and gradient from one evaluation of each branch: G at y1, then F at x2."""
        (y1, y2), (g1, g2), (need1, need2) = task.outputs, task.grads, task.needs
        through_f = need1 or need2 or task.reaches(self.F)
        z, g1 = task.branch("G", self.G, y1, g2, g1, through_f)
        x2 = self._subtract(y2, z)
        del z, y2
        z, g2 = task.branch("F", self.F, x2, g1, g2, need2)
        if not through_f:
            return Undone(None, (None, None))
        x1 = self._subtract(y1, z)
        return Undone((x1, x2), (g1 if need1 else None, g2 if need2 else None))

    def _two(self, streams: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if len(streams) != 2:
            raise StepError(
                f"takes two streams (x1, x2), got {len(streams)}; split a tensor with memexp.backprop.split(x)"
            )
        x1, x2 = streams
        return x1, x2

    def _through(self, place: int, x: Tensor, context: Context) -> Tensor:
        """Stream 1 or 2 through its shortcut."""
        shortcut = self.shortcut
        if shortcut is None:
            return x
        if isinstance(shortcut, nn.ModuleList):
            first, second = shortcut
            shortcut = first if place == 1 else second
        keywords = taken(shortcut, context) if context else {}
        return full_precision(evaluate(f"shortcut {place}", shortcut, x, **keywords))

    def _add(self, stream: Tensor, name: str, branch: nn.Module, x: Tensor, context: Context) -> Tensor:
        z = residual(name, branch, x, stream, context)
        rounding = grid()
        if rounding is None:
            return stream + z
        z = rounding(z)
        # what rounding returns is new: without autograd the sum can take its place, which saves an allocation; its strides have
        # to be the stream's, as what is undone later has those, and dropout draws in the order of memory
        own = torch.is_grad_enabled() or z.dtype != stream.dtype or z.stride() != stream.stride()
        return stream + z if own else z.add_(stream)

    def _subtract(self, y: Tensor, z: Tensor) -> Tensor:
        rounding = grid()
        # never into y: a branch has seen it, and a hook of the user's may have kept it
        return y - z if rounding is None else y - rounding(z)
