"""Hooks on tensors that a backward pass gives no gradient are not called.

An autograd function that has none for one of its inputs has that input's hooks called all the same, with None, and those of
what it was made of, where ordinary backprop, in which the tensor is not there, calls none. A hook on many tensors
(register_multi_grad_hook), which waits for all that the pass goes through, is told None, as it is of those that it leaves out.
"""

from collections.abc import Callable
from typing import Any

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


def unheard(function: Any) -> None:
    """Before None is handed to a function of autograd's graph."""
    seen, waiting = set(), [function]
    while waiting:
        function = waiting.pop()
        if not function.next_functions and (leaf := getattr(function, "variable", None)) is not None:
            _unheard(leaf)
        for below, _ in function.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def _unheard(leaf: Tensor) -> None:
    if leaf._backward_hooks:
        hear_gradients(leaf._backward_hooks)
    if own := getattr(leaf, "_post_accumulate_grad_hooks", None):
        _wrap(own, _OfSum)
        for hook in own.values():
            hook.wait(leaf)


def hear_gradients(hooks: dict[int, Any]) -> None:
    """These hooks of a tensor are called with gradients only from now on."""
    _wrap(hooks, _OfGradient)


def _wrap(own: dict[int, Any], kind: type[_OfGradient] | type[_OfSum]) -> None:
    """In place: the handles of the hooks remove them by their keys."""
    own.update({key: hook if isinstance(hook, kind) or _is_of_many(hook) else kind(hook) for key, hook in own.items()})


def _is_of_many(hook: Any) -> bool:
    return getattr(hook, "__module__", "") == "torch.autograd.graph" and hook.__name__ == "inner_hook"


def _sum(parameter: Tensor) -> tuple[Tensor | None, int]:
    grad = parameter.grad
    return grad, 0 if grad is None else grad._version
