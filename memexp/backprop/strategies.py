"""The strategies by name."""

from collections.abc import Callable
from typing import Any

from memexp.backprop.adjoint import Adjoint
from memexp.backprop.budget import Budget
from memexp.backprop.checkpointed import Checkpointed
from memexp.backprop.light import Light
from memexp.backprop.plan import Strategy
from memexp.backprop.reversible import Reversible
from memexp.backprop.stored import Stored

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "stored": Stored,
    "light": Light,
    "checkpointed": Checkpointed,
    "reversible": Reversible,
    "adjoint": Adjoint,
    "budget": Budget,
}


def make_strategy(backprop: str, options: dict[str, Any]) -> Strategy:
    """The strategy of that name with its options.

    Raises:
        ValueError: no strategy has that name, or it has no such option, or an option's value is not allowed.
    """
    if backprop not in STRATEGIES:
        raise ValueError(f"backprop={backprop!r}: use one of {', '.join(STRATEGIES)}")
    strategy = STRATEGIES[backprop]
    allowed = list(strategy.__dataclass_fields__)  # type: ignore[attr-defined]
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise ValueError(
            f"backprop={backprop} has no option {', '.join(unknown)}; it has {', '.join(allowed) or 'none'}"
        )
    return strategy(**options)
