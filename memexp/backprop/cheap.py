"""Which operations are cheap to do again, and how: those that read and write each number about once.

Dear are products of matrices, convolutions, attention and whatever is not known here; random numbers cannot be drawn again.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
ONE_PASS = {
    aten.cat,
    aten.stack,
    aten.clone,
    aten._to_copy,
    aten.copy_,
    aten.constant_pad_nd,
    aten.roll,
    aten.repeat,
    aten.masked_fill,
    aten.masked_fill_,
    aten.native_layer_norm,
    aten.native_group_norm,
    aten.avg_pool2d,
    aten.max_pool2d_with_indices,
    aten.upsample_nearest2d,
    aten.upsample_bilinear2d,
}
BATCH_NORMS = {
    aten.native_batch_norm,
    aten.cudnn_batch_norm,
    aten.miopen_batch_norm,
}  # alike in their first six arguments

ORDERS = torch.contiguous_format, torch.channels_last, torch.channels_last_3d

# pointwise, though ATen does not tag them, or did not in its versions before 2.14
UNTAGGED = {
    *("hardswish", "leaky_relu", "_prelu_kernel", "rsub", "floor_divide", "log_sigmoid_forward", "rrelu_with_noise"),
}


@cache
def is_pointwise(func: Any) -> bool:
    """Whether each number of an operation's result is made of the numbers at its place; in place as otherwise."""
    plain = func._schema.name.removeprefix("aten::").removesuffix("_")
    twin = getattr(getattr(aten, plain, None), func._overloadname, None)  # some in place lack the tag of the plain one
    return plain in UNTAGGED or torch.Tag.pointwise in {*func.tags, *getattr(twin, "tags", ())}


@cache
def is_cheap(func: Any) -> bool:
    """Whether an operation (an OpOverload) reads and writes each number about once, and gives the same bits again."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    return is_pointwise(func) or func._overloadpacket in ONE_PASS | BATCH_NORMS


@cache
def written(func: Any) -> tuple[int, ...]:
    """Positions of the arguments that the operation writes to, -1 for one that has no position."""
    return tuple(
        -1 if argument.kwarg_only else position
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def again(func: Any, args: tuple[Any, ...], out: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What gives the operation's (first) result again, and of which arguments.

    A batch normalisation by the batch's statistics moves none, and takes them from `out`, the first pass's, where its kernel
    is known to round as one that is given statistics does: not where elements lie apart, which it scales in two steps.
    """
    if func._overloadpacket not in BATCH_NORMS or not args[5]:
        return func, args
    x, weight, bias, _, _, _, momentum, eps, *rest = args
    kinds = {t.dtype for t in (weight, bias) if t is not None} | {out[1].dtype}
    dense = _is_dense(x) and all([t is None or t.is_contiguous() for t in args[1:5]])
    if x.device.type == "cpu" and dense and len(kinds) == 1 and kinds <= {torch.float32, torch.float64}:
        return _normalised, (x, weight, bias, out[1], out[2])
    return func, (x, weight, bias, None, None, True, momentum, eps, *rest)


def _is_dense(x: Tensor) -> bool:
    """Whether its elements lie side by side, in one of torch's orders."""
    return any([x.is_contiguous(memory_format=order) for order in ORDERS])


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor) -> tuple[Tensor]:
    """a x + b with a = weight / std and b = bias - mean a, by the kernel of the first pass: it rounds a and b alike."""
    scale = invstd if weight is None else invstd * weight
    return aten.native_batch_norm.default(x, scale, bias, mean, torch.ones_like(mean), False, 0.0, 0.0)[:1]
