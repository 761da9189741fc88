"""Step: what the engine's own steps have in common, and what a Chain asks of any step."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from memexp.backprop.task import Task, Undone


class Step(nn.Module):
    """A step that evaluates its branches one by one (by `replay.evaluate`) and knows its part of backward.

    `forward` and `inverse` take streams, and keywords that they pass on to the branches whose forward takes them.
    A step of a user's needs none of this: it is a module with `forward`, and with `inverse` if it can be undone.

    Attributes:
        undoable: it can be undone as it is configured.
        approximate: `inverse` is, in exact arithmetic, near the inverse only.
        on_grid: under `exact` it keeps its streams on the grid (`replay.grid`) by itself.
        composite: it consists of steps, each of which can be undone by itself.
    """

    composite = False

    @property
    def undoable(self) -> bool:
        return True

    @property
    def approximate(self) -> bool:
        return False

    @property
    def on_grid(self) -> bool:
        return False

    def inverse(self, *streams: Tensor, **context: Any) -> Tensor | tuple[Tensor, ...]:
        raise NotImplementedError

    def undo(self, task: "Task") -> "Undone":
        """Inputs and gradients from outputs and theirs."""
        raise NotImplementedError
