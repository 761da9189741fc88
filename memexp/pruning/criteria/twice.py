"""Networks that are differentiated twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.functional import relu6
from torch.overrides import TorchFunctionMode

WITHOUT = "derivative for aten::"  # in the words of torch


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
            raise ValueError(
                f"criterion={criterion} needs second derivatives ({error}): choose a criterion of first ones, such as "
                "taylor_weight or fisher"
            ) from error


class _Hardsigmoid(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("hardsigmoid", "hardsigmoid_"):
            return relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))
