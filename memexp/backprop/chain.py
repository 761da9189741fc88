"""Chain: the body of a residual network, and the place where architecture and gradient meet.

Activation memory of N steps, with s the bytes of the streams and a those that autograd keeps for one step:

    stored N a  |  checkpointed (every k) N s / k + k a  |  reversible, adjoint s + a (and s for each step not undone)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.adjoint import Adjoint
from memexp.backprop.budget import Budget
from memexp.backprop.checkpointed import Checkpointed
from memexp.backprop.errors import describe
from memexp.backprop.node import Node, run
from memexp.backprop.plan import Strategy, groups, has_inverse
from memexp.backprop.replay import Surroundings
from memexp.backprop.reversible import Reversible
from memexp.backprop.rounding import RangeWatch
from memexp.backprop.stored import Stored
from memexp.backprop.streams import full_precision

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "stored": Stored,
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


class Chain(nn.Module):
    """Steps one after the other on a tuple of streams, with a choice of how their gradient is obtained.

    A step is a module `forward(*streams) -> Tensor | tuple`; one that can be undone has `inverse(*streams)` too,
    exact or (`approximate = True`) not. Steps are registered as "0", "1", ... as in `nn.Sequential`. Where no gradient
    is needed the steps are simply called.

    Args:
        steps: the steps, in order.
        backprop: `stored`, `checkpointed`, `reversible`, `adjoint` or `budget`.
        **options: the strategy's options: `every`; `exact`, `exact_bits`; `refine`, `min_steps`; `stored`.

    Shapes: streams of any shapes that the steps take; one stream that comes out is returned as a Tensor, more as a
        tuple.

    Raises:
        ValueError: unknown strategy or option, or the strategy does not fit the steps.
        StepError (a ValueError): a step does not fit its streams, or changes them in place; names the step.
    """

    def __init__(self, steps: Iterable[nn.Module], backprop: str = "stored", **options: Any) -> None:
        super().__init__()
        for index, step in enumerate(steps):
            self.add_module(str(index), step)
        self.backprop = backprop
        self.strategy = make_strategy(backprop, options)
        self.strategy.plan(list(self), ())
        self.monitor: list[float] | None = None

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> nn.Module:
        return list(self)[index]

    @contextmanager
    def using(self, backprop: str, **options: Any) -> Iterator[None]:
        """Another strategy for the forwards inside; the Chain stays the same function (`exact` stays as it is)."""
        rounding = self.strategy.rounding
        if rounding is not None:
            options = {"exact": True, "exact_bits": rounding.bits} | options
        own, self.strategy = self.strategy, make_strategy(backprop, options)
        try:
            yield
        finally:
            self.strategy = own

    def extra_repr(self) -> str:
        return f"backprop={self.strategy}"

    def forward(self, *streams: Tensor) -> Tensor | tuple[Tensor, ...]:
        steps = list(self)
        for step in steps:
            if hasattr(step, "rounding"):
                step.rounding = self.strategy.rounding  # type: ignore[assignment]
        outputs = self._enter(streams)
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (*streams, *self.parameters()))
        # what leaves the range cannot be undone; in evaluation nothing is
        rounding = self.strategy.rounding
        watch = RangeWatch(rounding) if rounding is not None and (differentiated or self.training) else None
        if differentiated:
            plan = groups(steps, self.strategy.plan(steps, streams))
        else:
            plan = [("stored", range(index, index + 1)) for index in range(len(steps))]
        surroundings = Surroundings(streams)
        below: Node | None = None
        for position, (keep, group) in enumerate(plan):
            if keep == "stored":
                below = None
                outputs = run(group.start, steps[group.start], outputs, rounding)
                if watch:
                    watch.see(describe(group.start, steps[group.start]), outputs)
            else:
                top = position + 1 == len(plan) or plan[position + 1][0] == "stored"
                members = {index: steps[index] for index in group}
                below = Node(keep, members, self.strategy, surroundings, watch, below, self.monitor, top)
                outputs = below(*outputs)
        if watch:
            watch.check()
        return outputs[0] if len(outputs) == 1 else outputs

    def _enter(self, streams: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rounding = self.strategy.rounding
        if rounding is not None:
            return tuple(rounding.enter(x) for x in streams)
        if any(has_inverse(step, approximate=False) for step in self):
            return tuple(map(full_precision, streams))
        return streams
