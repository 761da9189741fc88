"""Floating-point operations of one operation of PyTorch: its own formulas, and ours where it has none or a wrong one.

Two FLOPs are one add-multiply. Counted are matrix products, convolutions, attention and recurrent layers, as everywhere.
PyTorch's formulas leave out attention and LSTM on a CPU and the fused kernels of evaluation, take the weight gradient of
a grouped convolution for that of a dense one, and (before 2.14) refuse attention whose queries have more heads than the keys.
"""

import re
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
OURS = (
    "aten",
    "prim",
    "prims",
    "profiler",
    "c10d",
    "_c10d_functional",
    "c10d_functional",
)  # libraries whose names we know
# words in the names of operations that do products; a cell's are done by the operation before it
PRODUCTS = re.compile(
    r"(^|_)(b?mm|(add|baddb|addb|sspadd)mm|matmul|linear|mv|addmv|v?dot|conv\d?d?|convolution|attention|lstm|gru|rnn|fft\w*|cdist"
    r"|trilinear|cholesky\w*|qr|svd|eigh?|solve\w*|inv\w*|lu|kron|matrix_exp)(_|$)"
)
CELLS = re.compile(r"_thnn_fused_(lstm|gru)_cell")


def count(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """FLOPs of a call of the operation `func`; None where it may do products that no formula counts."""
    packet = func._overloadpacket
    own = FORMULAS.get(packet)
    if own is not None:
        return own(*args, out=out, **kwargs)
    formula = flop_registry.get(packet)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=out))
    if func.namespace not in OURS:
        return None
    name = packet.__name__
    return None if PRODUCTS.search(name) and not CELLS.search(name) else 0


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, _b: Any, _s: Any, _p: Any, _d: Any, transposed: bool, *rest: Any, out: Any
) -> int:
    """Each of the two gradients takes as many products as the forward pass."""
    *_, mask = rest
    points = (x if transposed else grad).shape[2:]
    return (mask[0] + mask[1]) * 2 * x.shape[0] * prod(points) * weight.numel()


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, out: Any, **options: Any) -> int:
    """Scores, and their product with the values; keys and values may have fewer heads. A mask is not looked at."""
    return 2 * _rows(query) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, out: Any, **o: Any) -> int:
    """The scores once more, their gradient, and those of queries, keys and values."""
    return 2 * _rows(query) * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def _rows(x: Tensor) -> int:
    return prod(x.shape[:-1])


def _recurrent(x: Tensor, *tensors: Any, out: Any) -> int:
    """One layer and direction: every step multiplies by the weights of the input and of the state."""
    return 2 * _rows(x) * (tensors[0].numel() + tensors[1].numel())


def _recurrent_list(x: Tensor, weights: Any, *rest: Any, out: Any) -> int:
    """Several layers and directions, their weights in one list."""
    return 2 * _rows(x) * sum(w.numel() for w in weights if w.ndim == 2)


def _lengths(x: Tensor) -> list[int]:
    """Of the sequences of a batch; with a padding mask they differ, and are nested."""
    return [len(part) for part in x.unbind()] if x.is_nested else [x.shape[1]] * x.shape[0]


def _encoder_layer(x: Tensor, width: int, *rest: Any, out: Any, **options: Any) -> int:
    """nn.TransformerEncoderLayer in evaluation, in one kernel: projections, attention, and the two layers behind it."""
    weights = sum(rest[position].numel() for position in (1, 3, 12, 14))
    lengths = _lengths(x)
    return 2 * (sum(lengths) * weights + 2 * width * sum(n * n for n in lengths))


def _self_attention(q: Tensor, k: Tensor, v: Tensor, width: int, *rest: Any, out: Any, **options: Any) -> int:
    """nn.MultiheadAttention in evaluation: four projections, scores and their product with the values."""
    of_q, of_k = _lengths(q), _lengths(k)
    rows = 2 * sum(of_q) + sum(of_k) + sum(_lengths(v))
    return 2 * (rows * width * width + 2 * width * sum(a * b for a, b in zip(of_q, of_k, strict=True)))


def _first(matrix: Tensor, *rest: Any, out: Any, **options: Any) -> int:
    """A matrix and a vector, or two vectors."""
    return 2 * matrix.numel()


def _second(_: Any, matrix: Tensor, *rest: Any, out: Any, **options: Any) -> int:
    return 2 * matrix.numel()


def _product(a: Tensor, b: Tensor, *rest: Any, out: Any, **options: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _added_product(_: Any, a: Tensor, b: Tensor, *rest: Any, out: Any, **options: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _trilinear(*arguments: Any, out: Any, **options: Any) -> int:
    """nn.Bilinear: sums of products of three tensors, each with its missing dimensions."""
    shapes = []
    for tensor, missing in zip(arguments[:3], arguments[3:6], strict=True):
        for dim in sorted(missing):
            tensor = tensor.unsqueeze(dim)
        shapes.append(tensor.shape)
    return 2 * prod(torch.broadcast_shapes(*shapes))


def _linear(x: Tensor, weight: Tensor, *rest: Any, out: Any, **options: Any) -> int:
    return 2 * _rows(x) * weight.numel()


ATTENTION = (
    "flash_attention_for_cpu",
    "fused_attention_overrideable",
    "flash_attention",
    "efficient_attention",
    "cudnn_attention",
)
FORMULAS: dict[Any, Callable[..., int]] = {
    **{getattr(aten, f"_scaled_dot_product_{kind}"): _attention for kind in ATTENTION},
    **{getattr(aten, f"_scaled_dot_product_{kind}_backward"): _attention_backward for kind in ATTENTION},
    aten.convolution_backward: _convolution_backward,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.mkldnn_rnn_layer_backward: lambda *args, out: 2 * _recurrent(*args, out=out),
    aten._cudnn_rnn: _recurrent_list,
    aten._cudnn_rnn_backward: lambda *args, out: 2 * _recurrent_list(*args, out=out),
    aten._transformer_encoder_layer_fwd: _encoder_layer,
    aten._native_multi_head_attention: _self_attention,
    aten.mv: _first,
    aten.dot: _first,
    aten.vdot: _first,
    aten.addmv: _second,
    aten.addmv_: _second,
    aten.addmm_: _added_product,
    aten._addmm_activation: _added_product,
    aten.addbmm: _added_product,
    aten.baddbmm_: _added_product,
    aten._int_mm: _product,
    aten._trilinear: _trilinear,
    aten.linear: _linear,
    aten.mkldnn_linear: _linear,
}
