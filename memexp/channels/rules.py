"""What each ATen operation says about channels: how planes pass, unite or end.

A rule takes the call and returns the planes of its output, or of each output. The names are ATen's, without overload and
without the underscore of operations in place. Rules that move data are in memexp.channels.moving, those that cut it in
slicing, those that contract (convolution, products, attention) in contracting, those of normalisations in normalising, and
those that pick by number in picking; they register themselves here.
"""

import math
from collections.abc import Callable, Sequence, Set
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memexp.backprop.cheap import is_pointwise
from memexp.channels.call import Call
from memexp.channels.planes import Plane, Planes, lift, merge, varies
from memexp.channels.tape import Role

SUMMED = "its channels are not zero where their filters are, and are summed as they are"
SUMMED_WEIGHTS = "the norm of the weight is taken over it, or another sum of weights alone"
MEETS_NONE = "meets it with entries that are no channels"
Rule = Callable[[Call], Any]
Operand = tuple[Planes, Sequence[int]]  # and its shape
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of the ATen operations of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@cache
def of(func: Any) -> Rule | None:
    """The rule of an operation; those that are pointwise share one."""
    name = func._schema.name.removeprefix("aten::")
    plain = name[:-1] if name.endswith("_") else name
    found = RULES.get(name) or RULES.get(plain)
    if found is None:
        return pointwise if is_pointwise(func) else None
    return found


class _Sample(NamedTuple):
    """Stands for a tensor of ones, or of zeros."""

    one: bool
    dtype: torch.dtype


_found_at_zero: dict[Any, float] = {}


def pointwise(call: Call) -> Any:
    """Entries that meet are of one channel; noted where zero channels do not give zero, or no number (0 / 0)."""
    tensors = [t for t in flat(call.arguments.values()) if isinstance(t, Tensor)]
    operands = [(call.planes(t), _extent(call, t)) for t in tensors]
    if any(map(call.tape.is_constant, tensors)):
        operands = _without_tables(call, tensors, operands)
    result = merge(call.tape.atoms, operands, f"{call.name} {MEETS_NONE}")
    marked = [t for t in tensors if call.planes(t)]
    role: Role = "bias" if call.func._schema.name.startswith(("aten::add", "aten::sub")) else "norm"
    if all(map(call.tape.is_parameter, marked)):  # what they become is told by what takes the result
        call.tape.follow(result, [plane for t in marked for plane in call.planes(t)])
    else:
        for tensor in marked:
            if call.tape.is_parameter(tensor):
                for plane in call.planes(tensor):
                    call.tape.role(plane, role)
    for plane in result:
        value = _at_zero(call, varies(plane))
        if value != 0:
            call.tape.nonzero.append(plane)
        if not math.isfinite(value):
            call.tape.divided.append(plane)
    return result if isinstance(call.out, Tensor) else [result if t.numel() else [] for t in call.out]


def _without_tables(call: Call, tensors: Sequence[Tensor], operands: Sequence[Operand]) -> list[Operand]:
    """Buffers stay along positions (a mask between windows), and along what is within a channel of what they meet: angles that
    are alike in all heads, of which the heads are the channels."""
    dims = max(len(shape) for _, shape in operands)
    constant = [call.tape.is_constant(t) for t in tensors]
    others = [(planes, shape) for (planes, shape), own in zip(operands, constant, strict=True) if not own]
    met = [varies(lift(plane, dims)) for planes, _ in others for plane in planes]
    long = {dims - len(shape) + d for _, shape in others for d, size in enumerate(shape) if size > 1}

    def stays(plane: Plane) -> bool:
        own = varies(lift(plane, dims))
        support = next((channels for channels in met if channels & own), None)
        return own <= long if support is None else own < support and min(support) not in own

    kept: list[Operand] = []
    for (planes, shape), own in zip(operands, constant, strict=True):
        stuck = [plane for plane in planes if own and stays(plane)]
        for plane in stuck:
            call.freeze(plane, MEETS_NONE)
        kept.append(([plane for plane in planes if all(plane is not p for p in stuck)], shape))
    return kept


def _extent(call: Call, tensor: Tensor) -> Sequence[int]:
    """Its shape, with length 1 where it was expanded from that, so that it is as long as what it meets."""
    if 0 not in tensor.stride() or call.planes(tensor):
        return tensor.shape
    call.tape.doubtful = True  # it may have been expanded to a number in the source
    return [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def flat(values: Any) -> list[Any]:
    return [item for v in values for item in (flat(v) if isinstance(v, list | tuple) else [v])]


def _at_zero(call: Call, support: Set[int]) -> float:
    """The largest result where all that has channels along `support` is 0, the rest 1, conditions true or false.

    NaN where it is no number, other than for ones in place of zeros (a fill by infinity is a number).
    """

    def mark(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _Sample(not along(call, value, support), value.dtype)
        return tuple(map(mark, value)) if isinstance(value, list | tuple) else value

    def sample(value: Any, condition: bool, ones: bool) -> Any:
        if isinstance(value, _Sample):
            number = condition if value.dtype == torch.bool else int(value.one or ones)
            return torch.full((1,), number, dtype=value.dtype)
        return [sample(v, condition, ones) for v in value] if isinstance(value, tuple) else value

    def largest(ones: bool) -> float:
        found = 0.0
        for condition in (True, False):
            positional = [sample(marks[a.name], condition, ones) for a in arguments if not a.kwarg_only]
            named = {a.name: sample(marks[a.name], condition, ones) for a in arguments if a.kwarg_only}
            for result in flat([call.func(*positional, **named)]):
                value = float(result.to(torch.complex128).abs().max()) if result.numel() else 0.0
                found = value if not value <= found else found  # a NaN stays
        return found

    marks = {name: mark(value) for name, value in call.arguments.items()}
    key = (call.func, tuple(marks.values()))
    if key not in _found_at_zero:
        arguments = [a for a in call.func._schema.arguments if a.name not in ("device", "layout", "dtype")]
        value = largest(ones=False)
        if not math.isfinite(value):
            value = math.nan if math.isfinite(largest(ones=True)) else 1.0
        _found_at_zero[key] = value
    return _found_at_zero[key]


def along(call: Call, tensor: Tensor | None, support: Set[int]) -> bool:
    """Whether it has channels along one of these dimensions of the call's output."""
    dims = (call.out if isinstance(call.out, Tensor) else call.out[0]).ndim
    return any(varies(lift(plane, dims)) & support for plane in call.planes(tensor))


@rule("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "logsumexp", "linalg_vector_norm", "norm", "argmax",
      "argmin", "max", "min", "aminmax", "median", "nanmedian", "kthvalue", "mode", "prod", "any", "all", "topk", "sort",
      "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")  # fmt: skip
def statistic(call: Call) -> Any:
    """Over positions; one over channels changes with their number, so these stay."""
    planes = [
        _reduced(call, plane, "a statistic over channels changes with their number")
        for plane in call.planes(call.first)
    ]
    kept = [p for p in planes if p is not None]
    if "sumexp" in call.name:
        call.tape.nonzero.extend(kept)
    return kept if isinstance(call.out, Tensor) else [kept for _ in call.out]


@rule("sum")
def total(call: Call) -> Planes:
    """A sum over channels ends them."""
    return [p for plane in call.planes(call.first) if (p := _reduced(call, plane, None)) is not None]


def _reduced(call: Call, plane: Plane, why: str | None) -> Plane | None:
    dims = call.arguments.get("dim", call.arguments.get("axis"))
    ndim = call.first.ndim
    listed = range(ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    over = {d % ndim for d in listed}
    support = varies(plane)
    if why is not None and support <= over:  # over some of its entries a channel is whole
        outs = [call.out] if isinstance(call.out, Tensor) else call.out
        call.tape.freeze_if_used(outs, plane, f"{call.name}: {why}")
    if support & over and why is None and call.tape.is_parameter(call.first):
        call.tape.sum_of_weights([plane], f"{call.name}: {SUMMED_WEIGHTS}")
    if support & over and support - over:
        plane = call.tape.atoms.couple(plane, sorted(support & over))
    elif support & over:
        if why is None:
            call.tape.end(plane, f"{call.name}: {SUMMED}")
        return None
    out = call.out if isinstance(call.out, Tensor) else call.out[0]
    if out.ndim == ndim:
        return plane
    return plane.reshape([size for d, size in enumerate(plane.shape) if d not in over])


@rule("_softmax", "_log_softmax", "_safe_softmax")
def softmax(call: Call) -> Planes:
    """Over positions; one over channels mixes them, so these stay. Over branches that have the same channels, they are one."""
    dim = call.dim(call["dim"])
    for plane in call.planes(call.first):
        if dim in varies(plane):
            call.tape.fix(plane, dim, f"{call.name}: mixes channels")
    call.tape.nonzero.extend(call.planes(call.first))
    return call.planes(call.first)


@rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_pack_padded_sequence", "_pad_packed_sequence", "_trilinear",
      "_cdist_forward", "affine_grid_generator", "gather", "scatter", "scatter_add", "im2col", "col2im", "nll_loss_forward",
      "nll_loss2d_forward", "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "_ctc_loss")  # fmt: skip
def kept(call: Call) -> Any:
    """What reads all of its channels as they are keeps them."""
    for tensor in flat(call.arguments.values()):
        for plane in call.planes(tensor) if isinstance(tensor, Tensor) else ():
            call.freeze(plane, "reads all of its channels")
    return [[] for _ in call.out] if isinstance(call.out, list | tuple) else []


@rule("glu")
def gated(call: Call) -> Planes:
    """One half times the sigmoid of the other: a channel of each is one."""
    result = []
    for plane in call.planes(call.first):
        if plane.shape[call.dim(call["dim"])] > 1:
            plane, gate = np.split(plane, 2, call.dim(call["dim"]))
            call.tape.atoms.unite(plane, gate)
        result.append(plane)
    return result


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "adaptive_avg_pool1d",
      "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
      "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d", "upsample_linear1d",
      "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
      "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
      "replication_pad3d", "grid_sampler_2d", "grid_sampler_3d")  # fmt: skip
def positions(call: Call) -> Any:
    """Work on the positions of each channel by itself: the dimensions that change their length, and those of images."""
    x = call.first
    for plane in call.planes(call.arguments.get("grid")):
        call.freeze(plane, "says where the others are read")
    spatial = set(range(2, x.ndim)) if x.ndim > 3 or "1d" in call.name else set(range(1, x.ndim))
    planes = []
    for plane in call.planes(x):
        if varies(plane) & spatial:
            call.freeze(plane, "channels along a dimension of positions")
            plane = call.tape.atoms.couple(plane, sorted(varies(plane) & spatial))
        planes.append(plane)
    return planes if isinstance(call.out, Tensor) else [planes for _ in call.out]


@rule("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def embedding(call: Call) -> Any:
    """Rows are positions, columns channels; so they are where rows are looked up in bags, and summed."""
    weight, out = call["weight"], call.out if isinstance(call.out, Tensor) else call.out[0]
    result = []
    for plane in call.planes(weight):
        if plane.shape[0] > 1:
            call.freeze(plane, "rows that are looked up")
        else:
            call.tape.role(plane, "out")
            result.append(lift(plane.reshape(-1), out.ndim))
    return result if out is call.out else [result, *([] for _ in call.out[1:])]


def full(plane: Plane, shape: Any) -> Any:
    """The plane written out, as a tensor."""
    return torch.from_numpy(np.broadcast_to(plane, tuple(shape)).copy())
