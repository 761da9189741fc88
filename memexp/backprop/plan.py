"""A plan says, for each step of a Chain, what is kept of the forward pass. Strategies make plans, the Chain follows.

| word           | kept for the step                       | its backward                                         |
|----------------|-----------------------------------------|------------------------------------------------------|
| `stored`       | all that autograd keeps                 | autograd's own                                       |
| `light`        | what is dear to make                    | autograd's own; the rest is remade, bit for bit      |
| `checkpointed` | its input                               | forward again from the input, then back              |
| `continued`    | nothing                                 | together with the step before, from what that keeps  |
| `undone`       | nothing (the last of a run: its output) | the input is computed back from the output           |
"""

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from torch import Tensor, nn

from memexp.backprop.errors import describe
from memexp.backprop.rounding import Rounding
from memexp.backprop.step import Step

Keep = Literal["stored", "light", "checkpointed", "continued", "undone"]
WORDS = get_args(Keep)


class Strategy(Protocol):
    """How the gradient of a Chain is obtained: a plan, and the options that the steps have to know."""

    @property
    def rounding(self) -> Rounding | None:
        """The grid of `exact`, or None."""

    @property
    def refine(self) -> int:
        """Fixed-point iterations of an approximate inverse."""

    def plan(self, steps: Sequence[nn.Module], streams: tuple[Tensor, ...]) -> Sequence[Keep]:
        """One word for each step, given the streams that enter; called at each forward that needs gradients."""


def has_inverse(step: nn.Module, *, approximate: bool | None = None) -> bool:
    """Whether `step` can be undone, exactly or approximately; None: in either way.

    A user's own step is undone through its method `inverse`. It is taken as exact unless the step has
    `approximate = True`; a step that has the method but cannot be undone as configured says so with `undoable = False`.
    Whether it is the inverse, `memexp.backprop.check` measures.
    """
    if isinstance(step, Step):
        return step.undoable and approximate in (None, step.approximate)
    can = callable(getattr(step, "inverse", None)) and getattr(step, "undoable", True) is not False
    return can and approximate in (None, getattr(step, "approximate", False) is True)


def is_single(step: nn.Module) -> bool:
    """A layer, parametrised or not, and not a block of them."""
    return all(name == "parametrizations" for name, _ in step.named_children())


def groups(steps: Sequence[nn.Module], plan: Sequence[Keep]) -> list[tuple[Keep, range]]:
    """The plan as runs of steps that are recomputed together: `continued` steps join the step before.

    So do `light` ones that are single layers: a ReLU's output follows from the layers before it.

    Raises:
        ValueError: the plan does not have one known word a step, undoes a step that has no inverse, or continues
            nothing.
    """
    if len(plan) != len(steps):
        raise ValueError(f"a plan of {len(plan)} words for {len(steps)} steps: give one word for each step")
    found: list[tuple[Keep, range]] = []
    for index, keep in enumerate(plan):
        if keep not in WORDS:
            raise ValueError(f"plan for step {index} is {keep!r}: use one of {', '.join(WORDS)}")
        if keep == "undone" and not has_inverse(steps[index]):
            raise ValueError(f"{describe(index, steps[index])} cannot be undone, but the plan says so")
        if (
            keep == "light"
            and found
            and found[-1][0] == keep
            and is_single(steps[index - 1])
            and is_single(steps[index])
        ):
            found[-1] = ("light", range(found[-1][1].start, index + 1))
        elif keep != "continued":
            found.append((keep, range(index, index + 1)))
        elif found and found[-1][0] == "checkpointed":
            found[-1] = ("checkpointed", range(found[-1][1].start, index + 1))
        else:
            raise ValueError(f"the plan continues step {index}, but the step before is not checkpointed")
    return found
