"""Hooks on tensors that a backward pass gives no gradient are not called.

An autograd function that has none for one of its inputs has that input's hooks called all the same, with None, and those of
what it was made of, where ordinary backprop, in which the tensor is not there, calls none. A hook on many tensors
(register_multi_grad_hook), which waits for all that the pass goes through, is told None, as it is of those that it leaves out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class _OfGradient:
    """A tensor hook, of gradients that there are."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, grad: Tensor | None) -> Any:
        return None if grad is None else self.hook(grad)


class _OfSum:
    """A hook on what is accumulated, if something was since `wait`: another use of the parameter may give a gradient."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook
        self._before: tuple[Tensor | None, int] | None = None

    def wait(self, parameter: Tensor) -> None:
        self._before = _sum(parameter)

    def __call__(self, parameter: Tensor) -> None:
        before, self._before = self._before, None
        now = _sum(parameter)
        if before is None or now[0] is not before[0] or now[1] != before[1]:
            self.hook(parameter)


def unheard(functions: Sequence[Any], grads: Sequence[Tensor | None], hooks: Mapping[int, dict[int, Any]]) -> None:
    """Before these gradients are handed to functions of autograd's graph. hooks: by place, of tensors that are results."""
    for place, ((function, _), grad) in enumerate(zip(functions, grads, strict=True)):
        if grad is None and function is not None:
            _wrap(hooks.get(place, {}), _OfGradient)
            _go_below(function)


def _go_below(function: Any) -> None:
    # what has been looked at is marked by its pass: each node of a deep chain would look through all of those below
    current, waiting = torch._C._current_graph_task_id(), [function]
    while waiting:
        function = waiting.pop()
        if function.metadata.get(__name__) == current:
            continue
        function.metadata[__name__] = current
        if not function.next_functions and (leaf := getattr(function, "variable", None)) is not None:
            _reach(leaf)
        waiting += [below for below, _ in function.next_functions if below is not None]


def _reach(leaf: Tensor) -> None:
    if leaf._backward_hooks:
        _wrap(leaf._backward_hooks, _OfGradient)
    if own := getattr(leaf, "_post_accumulate_grad_hooks", None):
        _wrap(own, _OfSum)
        for hook in own.values():
            hook.wait(leaf)


def _wrap(own: dict[int, Any], kind: type[_OfGradient] | type[_OfSum]) -> None:
    """In place: the handles of the hooks remove them by their keys."""
    own.update({key: hook if isinstance(hook, kind) or _is_of_many(hook) else kind(hook) for key, hook in own.items()})


def _is_of_many(hook: Any) -> bool:
    return getattr(hook, "__module__", "") == "torch.autograd.graph" and hook.__name__ == "inner_hook"


def _sum(parameter: Tensor) -> tuple[Tensor | None, int]:
    grad = parameter.grad
    return grad, 0 if grad is None else grad._version
