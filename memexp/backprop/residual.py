"""A residual branch, evaluated and checked."""

from torch import Tensor, nn

from memexp.backprop.errors import StepError
from memexp.backprop.replay import evaluate


def residual(name: str, branch: nn.Module, x: Tensor, stream: Tensor) -> Tensor:
    """`branch(x)`, to be added to `stream`.

    Raises:
        StepError: the branch changed `x` in place, or its output does not have the shape of `stream`.
    """
    version = None if x.is_inference() else x._version
    z = evaluate(name, branch, x)
    if version is not None and x._version != version:
        raise StepError(
            f"branch {name} changes its input in place, but the stream is still needed: let its first operation make a "
            "new tensor, e.g. nn.ReLU(inplace=False)"
        )
    if z.shape != stream.shape:
        raise StepError(
            f"branch {name} gives shape {tuple(z.shape)} for a stream of shape {tuple(stream.shape)}; "
            "a branch must keep its stream's shape"
        )
    return z
