"""Hooks on parameters that a backward pass gives no gradient are not called.

An autograd function that has none for one of its inputs has that input's hooks called all the same, with None, where ordinary
backprop, in which the parameter is not there, calls none.
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


def unheard(parameter: Tensor) -> None:
    """Before a parameter is given None."""
    if parameter._backward_hooks:
        _wrap(parameter._backward_hooks, _OfGradient)
    if own := getattr(parameter, "_post_accumulate_grad_hooks", None):
        _wrap(own, _OfSum)
        for hook in own.values():
            hook.wait(parameter)


def _wrap(own: dict[int, Any], kind: type[_OfGradient] | type[_OfSum]) -> None:
    """In place: the handles of the hooks remove them by their keys."""
    own.update({key: hook if isinstance(hook, kind) else kind(hook) for key, hook in own.items()})


def _sum(parameter: Tensor) -> tuple[Tensor | None, int]:
    grad = parameter.grad
    return grad, 0 if grad is None else grad._version
