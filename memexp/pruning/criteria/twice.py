"""Networks that are differentiated twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import relu6
from torch.overrides import TorchFunctionMode

WITHOUT = "derivative for aten::"  # in the words of torch
ONCE = once_differentiable(lambda *_: None).__code__  # of every backward that is marked so


@contextmanager
def twice(criterion: str) -> Iterator[None]:
    """Inside, hardsigmoid has second derivatives, which torch does not give it.

    Raises ValueError, naming `criterion`, for what else has none.
    """
    with _Hardsigmoid():
        try:
            yield
        except RuntimeError as error:
            if WITHOUT not in str(error):
                raise
            raise _refused(criterion, str(error)) from error


def check_twice(loss: Tensor, criterion: str) -> None:
    """Raises ValueError where a function of the user's own in the loss's graph has a first derivative only.

    torch says so only to who differentiates that function's inputs; to all others the second derivative is 0.
    """
    seen, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [following for following, _ in node.next_functions]
        own = getattr(node, "_forward_cls", None)  # of torch.autograd.Function
        if own is not None and getattr(own.backward, "__code__", None) is ONCE:
            raise _refused(criterion, f"{own.__name__}.backward is once_differentiable")


def _refused(criterion: str, why: str) -> ValueError:
    return ValueError(
        f"criterion={criterion} needs second derivatives ({why}): choose a criterion of first ones, such as taylor_weight or "
        "fisher"
    )


class _Hardsigmoid(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("hardsigmoid", "hardsigmoid_"):
            return relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))
