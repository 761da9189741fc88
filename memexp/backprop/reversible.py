"""Reversible: steps are undone in backward (Gomez, Ren, Urtasun, Grosse 2017, arXiv 1707.04585).

O(1) activation memory in the number of steps; backward 3N (forward = N), as each branch is evaluated once for the
inverse and for its gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from memexp.backprop.errors import describe
from memexp.backprop.plan import Keep, has_inverse
from memexp.backprop.step import Step
from memexp.backprop.stored import Stored


@dataclass(frozen=True)
class Reversible(Stored):
    """Steps with an exact inverse are undone; the others keep their input.

    The last step, if undoable, is stored: its backward comes first, when what it keeps would be rebuilt at once. (Not so
    a Chain, which is many steps.)

    Raises:
        ValueError: no step has an exact inverse, or `exact` is asked of a step that cannot keep to the grid.
    """

    def plan(self, steps: Sequence[nn.Module], streams: tuple[Tensor, ...]) -> list[Keep]:
        undoable = [has_inverse(step, approximate=False) for step in steps]
        if not any(undoable):
            kinds = ", ".join(sorted({type(step).__name__ for step in steps})) or "no steps"
            raise ValueError(
                f"backprop=reversible: no step has an exact inverse (the Chain has {kinds}); use AdditiveCoupling "
                "steps without a shortcut, or backprop=checkpointed; Euler and Heun steps are for backprop=adjoint"
            )
        for index, step in enumerate(steps):
            if self.exact and undoable[index] and not (isinstance(step, Step) and step.on_grid):
                raise ValueError(
                    f"{describe(index, step)}: exact undoes additive couplings only, as others do not keep streams on "
                    "the grid; use exact=false, or make the step of additive couplings"
                )
        plan: list[Keep] = ["undone" if can else "checkpointed" for can in undoable]
        if undoable[-1] and not (isinstance(steps[-1], Step) and steps[-1].composite):
            plan[-1] = "stored"
        return plan
