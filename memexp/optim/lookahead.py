"""Lookahead (Zhang, Lucas, Hinton, Ba 2019, arXiv 1907.08610).

Every k steps of the optimizer inside, slow += alpha (fast - slow) and fast = slow; slow starts at the first weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from memexp.optim.wrapper import Wrapper


class Lookahead(Wrapper):
    """`optimizer` with slow weights, kept in its state as "slow".

    k: steps between synchronisations, at least 1. alpha: how far slow goes to fast, in 0..1. Groups may have their own.
    evaluate_slow: whether `evaluation_weights` are the slow ones, as those between synchronisations are noisy. Before a group's
    first synchronisation they are the first weights, which no step has moved, so that till then the fast ones are evaluated.
    A synchronisation is of all weights that a step has moved, with a gradient in this one or without. Those that are frozen
    since (requires_grad=False) stay, and are their slow weights.
    """

    def __init__(self, optimizer: Optimizer, k: int = 6, alpha: float = 0.5, evaluate_slow: bool = True) -> None:
        self.evaluate_slow = evaluate_slow
        super().__init__(optimizer, {"k": k, "alpha": alpha, "fast_steps": 0})

    def check(self, group: dict[str, Any]) -> None:
        if isinstance(group["k"], bool) or not isinstance(group["k"], int) or group["k"] < 1:
            raise ValueError(f"k={group['k']!r} is not allowed: use a whole number of at least 1")
        if not 0 <= group["alpha"] <= 1:
            raise ValueError(f"alpha={group['alpha']!r} is not allowed: use a number in 0..1")

    def around(self, group_parameters: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        # set into the state after the step, as optimizers take an empty state for a parameter's first step
        first = [p for _, parameters in group_parameters for p in parameters if "slow" not in self.state[p]]
        slow = [p.clone() for p in first]
        self.step_inside()
        for p, start in zip(first, slow, strict=True):
            self.state[p]["slow"] = start
        for group, _ in group_parameters:
            group["fast_steps"] += 1
            if group["fast_steps"] % group["k"] == 0:
                self._synchronise([p for p in group["params"] if "slow" in self.state.get(p, {})], group["alpha"])

    def _synchronise(self, fast: list[Tensor], alpha: float) -> None:
        trained = [p for p in fast if p.requires_grad]
        if trained:
            slow = [self.state[p]["slow"] for p in trained]
            torch._foreach_lerp_(slow, trained, alpha)
            torch._foreach_copy_(trained, slow)
        for p in fast:
            if not p.requires_grad:
                self.state[p]["slow"].copy_(p)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"evaluate_slow": self.evaluate_slow}

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Inside, the parameters are the weights to evaluate. Nothing is copied: slow and fast change places."""
        moved = [group for group in self.param_groups if self.evaluate_slow and group["fast_steps"] >= group["k"]]
        pairs = [p for group in moved for p in group["params"] if "slow" in self.state.get(p, {})]
        self._swap(pairs)
        try:
            yield
        finally:
            self._swap(pairs)

    def _swap(self, parameters: list[Tensor]) -> None:
        for p in parameters:
            p.data, self.state[p]["slow"] = self.state[p]["slow"], p.data
