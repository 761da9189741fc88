"""Kernels of a CPU whose results FakeTensor describes other than they are; here they are put right."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

PAGE = 4096  # bytes: oneDNN begins each part of a workspace at a page


def _statistics(args: Any, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A normalisation keeps its statistics for backward in the parameters' float32 where the input is in half precision.

    So it is in the kernels; FakeTensor's rules give them the input's dtype.
    """
    parameters = [tensor for tensor in args[1:5] if isinstance(tensor, Tensor)]
    if any(p.dtype is torch.float32 for p in parameters) and out[1].dtype is not torch.float32:
        return out[0], *(torch.empty_like(statistic, dtype=torch.float32) for statistic in out[1:])
    return out


def _recurrent(args: Any, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A recurrent layer keeps a workspace for backward, larger than all else; FakeTensor gives it no bytes."""
    x, input_weight, hidden_weight, *_ = args
    *settings, train = args[7:16]
    if not (train and torch.is_grad_enabled()):
        return out
    time, batch = x.shape[:2]  # batch_first is only told: the layer has turned its input already
    shapes = (tuple(input_weight.shape), tuple(hidden_weight.shape))
    size = _workspace(time, batch, shapes, x.dtype, tuple(settings[:1] + settings[2:7]))
    return *out[:3], torch.empty(size, dtype=torch.uint8, device=x.device)


@functools.cache
def _workspace(time: int, batch: int, shapes: Any, dtype: torch.dtype, settings: tuple[Any, ...]) -> int:
    """Bytes, as the kernel itself says, asked with real tensors.

    Each part of a workspace grows by the same bytes with every step of time and is rounded up to pages, so it is asked about
    short sequences only: it grows by the same from one to another that is longer by `period`.
    """
    period = PAGE // math.gcd(PAGE, 2 * batch)
    if time <= 2 * period:
        return _asked(time, batch, shapes, dtype, settings)
    short = period + time % period
    at_short = _asked(short, batch, shapes, dtype, settings)
    more = _asked(short + period, batch, shapes, dtype, settings) - at_short
    return at_short + (time - short) // period * more


def _asked(time: int, batch: int, shapes: Any, dtype: torch.dtype, settings: tuple[Any, ...]) -> int:
    reverse, mode, hidden, layers, has_biases, bidirectional = settings
    with _disable_current_modes(), torch.enable_grad():
        x = torch.zeros(time, batch, shapes[0][1], dtype=dtype)
        weights = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        biases = [torch.zeros(shapes[0][0], dtype=dtype) for _ in range(2)]
        states = [torch.zeros(batch, hidden, dtype=dtype) for _ in range(2)]
        rest: tuple[Any, ...] = (reverse, [], mode, hidden, layers, has_biases, bidirectional, False, True)
        *_, workspace = torch.ops.aten.mkldnn_rnn_layer.default(x, *weights, *biases, *states, *rest)
        return int(workspace.numel())


CORRECTIONS: dict[Any, Callable[[Any, Any], Any]] = {
    torch.ops.aten.native_batch_norm.default: _statistics,
    torch.ops.aten.native_layer_norm.default: _statistics,
    torch.ops.aten.native_group_norm.default: _statistics,
    torch.ops.aten.mkldnn_rnn_layer.default: _recurrent,
}
