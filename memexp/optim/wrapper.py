"""An optimizer around an optimizer: one set of parameter groups, one state, one state_dict."""

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class Wrapper(Optimizer):
    """A torch.optim.Optimizer in full that adds something to each step of `optimizer`.

    Group dictionaries and state are those of `optimizer`, so schedulers, GradScaler and state_dict see all of it; a
    group's own values of `defaults` (per-group k, alpha, ...) are kept. Global step hooks see one step, the outermost.

    Raises ValueError for a value out of range, in the defaults or in a group, and for an optimizer (LBFGS) whose step has to
    have a closure.
    """

    def __init__(self, optimizer: Optimizer, defaults: dict[str, Any]) -> None:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"a step of {type(optimizer).__name__} evaluates its closure again and again, and {type(self).__name__} around "
                "it evaluates it once: use it as it is, or another optimizer"
            )
        self.optimizer = optimizer
        super().__init__(list(optimizer.param_groups), optimizer.defaults | defaults)
        self.state = optimizer.state

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError for a group's value out of range."""

    def around(self, group_parameters: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        """One step of `optimizer` with the wrapper's work before and after; parameters are those with a gradient."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One optimizer step. The closure is evaluated once, before anything looks at a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.around([(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups])
        return loss

    def step_inside(self) -> None:
        """A step of `optimizer` with the hooks that are its own, but not the global ones, which are for the outermost."""
        inner = self.optimizer
        for before in inner._optimizer_step_pre_hooks.values():
            before(inner, (), {})
        hooked: Any = type(inner).step
        (hooked.__wrapped__ if getattr(hooked, "hooked", False) else hooked)(inner)
        for after in inner._optimizer_step_post_hooks.values():
            after(inner, (), {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A further group; what it leaves out has the default value."""
        self.check(self.defaults | param_group)
        if not any(param_group is group for group in self.optimizer.param_groups):
            self.optimizer.add_param_group(param_group)
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"optimizer": self.optimizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, be it of the optimizer inside alone."""
        super().load_state_dict(state_dict)
        for group, (name, value) in product(self.param_groups, self.defaults.items()):
            group.setdefault(name, value)
        self._share()

    def _share(self) -> None:
        """Loading makes new groups and a new state; the optimizer inside takes them over, as if it had loaded them."""
        self.optimizer.__setstate__({"state": self.state, "param_groups": list(self.param_groups)})
        if isinstance(self.optimizer, Wrapper):
            self.optimizer._share()
