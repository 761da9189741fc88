"""Budget: chosen steps are stored or light, as far as a given memory allows; the others cost least memory. Backward 2N to 3N.

Of a step there are three choices worth having. Stored, it costs its activations and no time; light, about half of them and
little time. Otherwise it is undone where it has an exact inverse (nothing kept), or else checkpointed (its input kept); both
evaluate it once more. Where the steps are
single layers, as in VGG, checkpointing each would keep as much as storing it: there a layer with a matrix of weights is
recomputed together with the normalisation, activation and pooling behind it. memexp.memory.planner makes the choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from memexp.backprop.checkpointed import Checkpointed
from memexp.backprop.plan import Keep, has_inverse, is_single
from memexp.backprop.reversible import Reversible
from memexp.backprop.stored import Stored


@dataclass(frozen=True)
class Budget(Stored):
    """The plan of least memory, but for the steps in `stored` and in `light`.

    Args:
        stored, light: indices of steps; without any it is reversible, or checkpointed where nothing can be undone.

    Raises:
        ValueError: `stored` or `light` names a step that there is not.
    """

    stored: frozenset[int] = frozenset()
    light: frozenset[int] = frozenset()

    def plan(self, steps: Sequence[nn.Module], streams: tuple[Tensor, ...]) -> list[Keep]:
        for option in ("stored", "light"):
            if beyond := sorted(set(getattr(self, option)) - set(range(len(steps))), key=str):
                raise ValueError(
                    f"{option}={beyond}: the Chain has steps 0 to {len(steps) - 1}; name steps by their indices"
                )
        reversible = any(has_inverse(step, approximate=False) for step in steps)
        least = (Reversible if reversible else Checkpointed)(exact=self.exact, exact_bits=self.exact_bits)
        plan: list[Keep] = [
            "stored" if i in self.stored else "light" if i in self.light else keep
            for i, keep in enumerate(least.plan(steps, streams))
        ]
        for group in together(steps):
            for index in group[1:]:
                if plan[index] == "checkpointed" and plan[index - 1] in ("checkpointed", "continued"):
                    plan[index] = "continued"
        return plan


def together(steps: Sequence[nn.Module]) -> list[range]:
    """Runs of steps that are kept or recomputed as one: a step, and the layers behind it that have no matrix of weights."""
    found: list[range] = []
    for index, step in enumerate(steps):
        single = is_single(step) and all(p.ndim < 2 for p in step.parameters())
        if found and single and not hasattr(step, "inverse"):
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found
