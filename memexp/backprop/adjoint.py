"""Adjoint: steps are undone approximately in backward (Sander, Ablin, Peyre 2022, arXiv 2205.14612).

The last state only is kept; x~_n is reconstructed from x~_{n+1}, and the vector-Jacobian product of the step is taken
at x~_n. O(1) activation memory in the number of steps; backward 4N (forward = N), refinement N more each. For residual
functions that are Lipschitz the gradient's error is O(1/N) with Euler steps, O(1/N^2) with Heun steps on weights that
are smooth in depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from memexp.backprop.plan import Keep, has_inverse


@dataclass(frozen=True)
class Adjoint:
    """Steps with an approximate inverse are undone; the others keep their input.

    Args:
        refine: fixed-point iterations after the first guess of x~_n; they converge to x_n where the step's residual is
            a contraction.
        min_steps: a run of fewer such steps is stored (the paper's code uses the adjoint in longer stages only).

    Raises:
        ValueError: no step has an approximate inverse, or an option is negative.
    """

    refine: int = 0
    min_steps: int = 0
    rounding = None

    def __post_init__(self) -> None:
        for option in ("refine", "min_steps"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{option}={value!r}: use an integer of at least 0")

    def plan(self, steps: Sequence[nn.Module], streams: tuple[Tensor, ...]) -> list[Keep]:
        undoable = [has_inverse(step, approximate=True) for step in steps]
        if not any(undoable):
            kinds = ", ".join(sorted({type(step).__name__ for step in steps})) or "no steps"
            raise ValueError(
                f"backprop=adjoint: no step has an approximate inverse (the Chain has {kinds}); use EulerStep or "
                "HeunStep, or backprop=checkpointed; steps with an exact inverse are for backprop=reversible"
            )
        plan: list[Keep] = []
        while len(plan) < len(steps):
            start = stop = len(plan)
            while stop < len(steps) and undoable[stop] == undoable[start]:
                stop += 1
            word: Keep = (
                "checkpointed" if not undoable[start] else "undone" if stop - start >= self.min_steps else "stored"
            )
            plan += [word] * (stop - start)
        return plan
