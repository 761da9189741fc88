"""A residual branch, evaluated and checked."""

import torch
from torch import Tensor, nn

from memexp.backprop.context import Context, taken
from memexp.backprop.errors import StepError
from memexp.backprop.replay import evaluate, grid


def residual(name: str, branch: nn.Module, x: Tensor, stream: Tensor, context: Context) -> Tensor:
    """`branch(x)`, with the keywords that it takes, to be added to `stream`.

    Raises:
        StepError: the branch changed `x` in place, or its output does not have the shape of `stream`; or under `exact`
            the types of weights, branch and stream do not go together.
    """
    # a graph has no versions: what a branch writes to while it is compiled is seen where it is not
    version = None if torch.compiler.is_dynamo_compiling() or x.is_inference() else x._version
    try:
        z = evaluate(name, branch, x, **(taken(branch, context) if context else {}))
    except RuntimeError as error:
        half = next((p.dtype for p in branch.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
        if half is None or grid() is None or half is x.dtype or torch.is_autocast_enabled(x.device.type):
            raise
        raise StepError(
            f"branch {name} has weights in {half}, but exact keeps streams in {x.dtype}, which they do not take: keep "
            f"the weights in float32 and train under torch.autocast, or use exact=false ({error})"
        ) from error
    if version is not None and x._version != version:
        raise StepError(
            f"branch {name} changes its input in place, but the stream is still needed: let its first operation make a "
            "new tensor, e.g. nn.ReLU(inplace=False)"
        )
    if not isinstance(z, Tensor) or z.shape != stream.shape:
        found = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
        raise StepError(
            f"branch {name} gives {found} for a stream of shape {tuple(stream.shape)}; "
            "a branch must keep its stream's shape"
        )
    if grid() is not None:
        _check_types(name, z, stream)
    return z


def _check_types(name: str, z: Tensor, stream: Tensor) -> None:
    if stream.dtype not in (torch.float32, torch.float64):
        raise StepError(
            f"a stream is of {stream.dtype}, but exact adds in float32 or float64 only: make it real before the Chain "
            "(embed integers, torch.view_as_real of complex numbers), pass it as a keyword, or use exact=false"
        )
    if not z.is_floating_point() or torch.promote_types(z.dtype, stream.dtype) != stream.dtype:
        raise StepError(
            f"branch {name} gives {z.dtype} for a stream of {stream.dtype}, and exact cannot undo their sum: "
            f"let the branch return {stream.dtype} (z.to(x.dtype)), or use exact=false"
        )
