"""From one tensor to the two streams of additive couplings, once before a Chain, and back once after it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memexp.backprop.errors import StepError


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of (batch, channels, ...) `x` by channels, each dense in memory and in `x`'s memory format.

    Raises:
        StepError: the number of channels is odd.
    """
    if x.ndim < 2 or x.shape[1] % 2:
        raise StepError(f"split: shape {tuple(x.shape)} has no even number of channels to make two streams of")
    # slices are views with gaps, which every later operation would pay for
    x1, x2 = (half.clone() for half in x.chunk(2, dim=1))
    return x1, x2


def join(x1: Tensor, x2: Tensor) -> Tensor:
    """The inverse of `split`."""
    return torch.cat((x1, x2), dim=1)


def full_precision(x: Tensor) -> Tensor:
    """`x`, in float32 where autocast made it half precision: branches may compute in that, but a sum in it cannot be undone."""
    half = x.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(x.device.type)
    return x.float() if half else x


def nbytes(streams: Sequence[Tensor]) -> int:
    """Of those that are dense; torch counts no bytes of a sparse one."""
    return sum([x.nbytes for x in streams if x.layout is torch.strided])
