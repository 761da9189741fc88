"""Rules of operations that sum over channels: convolution, matrix products, attention."""

from typing import Any

import numpy as np
from torch import Tensor

from memexp.channels.call import Call
from memexp.channels.planes import Plane, Planes, merge, varies
from memexp.channels.rules import SUMMED, SUMMED_WEIGHTS, along, flat, rule
from memexp.channels.sizes import Attribute

Shape = tuple[int, ...]


@rule("convolution", "_convolution")
def convolution(call: Call) -> Planes:
    """Input channels meet the weight's dimension `in` and end; the output's are the weight's dimension `out`."""
    x, weight, groups = call["input"], call["weight"], int(call["groups"])
    out_dim, in_dim = (1, 0) if call["transposed"] else (0, 1)
    atoms = call.tape.atoms
    sides: dict[int, Plane] = {}
    for plane in call.planes(weight):
        support = varies(plane)
        if len(support) == 1 and min(support) < 2:
            dim = min(support)
            sides[dim] = plane.reshape(-1)
            call.tape.role(plane, "in" if dim == in_dim else "out")
        else:
            call.freeze(plane, "positions of a kernel")
    inputs = _channels(call, x)
    if groups == 1:
        _meet(call, inputs, sides.get(in_dim), weight.shape[in_dim])
        if call.tape.is_parameter(x) and call.tape.is_parameter(weight):
            why = f"{call.name}: {SUMMED_WEIGHTS}"
            call.tape.sum_of_weights([p for p in (inputs, sides.get(in_dim)) if p is not None], why)
        out = sides.get(out_dim)
    else:
        out = _grouped(call, inputs, sides, weight, groups, bool(call["transposed"]))
    shape = [-1 if d == 1 else 1 for d in range(call.out.ndim)]
    result = [] if out is None else [out.reshape(shape)]
    if call["bias"] is not None:
        own = [p.reshape(shape) for p in call.planes(call["bias"])]
        for plane in own:
            call.tape.role(plane, "bias")
        along = [call.out.shape[1] if d == 1 else 1 for d in range(call.out.ndim)]
        result = merge(atoms, [(result, along), (own, along)], f"{call.name}: bias and weight differ")
    return result


def _channels(call: Call, x: Tensor) -> Plane | None:
    """The channels along dimension 1, one for all positions."""
    found: Plane | None = None
    for plane in call.planes(x):
        others = [d for d in range(x.ndim) if d != 1]
        if plane.shape[1] == 1:
            call.freeze(plane, "channels along a dimension of positions")
            continue
        one = call.tape.atoms.couple(plane, others, f"{call.name}: positions that are no channel").reshape(-1)
        if found is not None:
            call.tape.atoms.unite(found, one)
        found = one
    return found


def _meet(call: Call, inputs: Plane | None, weight: Plane | None, size: int) -> None:
    if size == 1:
        return
    nothing = np.zeros(size, dtype=np.int64)
    call.tape.atoms.unite(
        nothing if inputs is None else inputs,
        nothing if weight is None else weight,
        "its input is the network's, or a constant",
    )


def _grouped(
    call: Call, inputs: Plane | None, sides: dict[int, Plane], weight: Tensor, groups: int, transposed: bool
) -> Plane | None:
    """Whole groups: all of a group's inputs and outputs are one channel. Depthwise convolution has groups of one.

    A weight is (out, in / groups, ...), or (in, out / groups, ...) if transposed. It follows where the number of groups does,
    also one that is made in the forward, the same for each channel (a blur).
    """
    atoms, why, origin = call.tape.atoms, "its input is the network's, or a constant", call.tape.groups(groups)
    if 1 in sides:
        call.freeze(sides[1], "channels within a group")
    nothing = np.zeros(call["input"].shape[1], dtype=np.int64)
    within = (nothing if inputs is None else inputs).reshape(groups, -1)
    whole = atoms.couple(within, [1], why)
    if 0 in sides:
        atoms.unite(whole, sides[0].reshape(groups, -1), why)
    elif weight.stride(0) == 0:
        call.tape.doubtful = True
    else:
        call.freeze(whole, "its filters are a constant, of that many channels")
    if isinstance(origin, Attribute):
        call.tape.use(origin, whole, 0)
    else:
        call.tape.doubtful = True  # of a plain number nobody knows whether it follows (len(weight)) or is fixed
    if 0 in sides and not transposed:
        return sides[0]
    return np.repeat(whole, call.out.shape[1] // groups)


def contract(
    call: Call,
    a: tuple[Planes, Shape, bool],
    b: tuple[Planes, Shape, bool],
    all_of_it: bool = False,
) -> Planes:
    """Planes of a @ b, (..., n, k) and (..., k, m): channels along k meet and end; those along the batch are of both.

    Channels along k that differ along the batch (heads) are one along k. all_of_it: all along k are one.
    """
    atoms = call.tape.atoms
    weights_alone = a[2] and b[2]
    ended: list[Planes] = [[], []]
    passing: list[Planes] = [[], []]
    for side, (planes, shape, parameter) in enumerate((a, b)):
        k = len(shape) - 1 - side
        for plane in planes:
            if parameter:
                call.tape.role(plane, "in" if plane.shape[k] > 1 else "out", weak=weights_alone)
            if plane.shape[k] == 1:
                passing[side].append(plane)
                continue
            rest = varies(plane) - {k}
            if rest or all_of_it:
                reduced = atoms.couple(plane, [k], f"{call.name}: a sum over what is no channel")
                if rest:
                    passing[side].append(reduced)
            elif not a[2] and not b[2]:
                call.tape.end(plane, f"{call.name}: {SUMMED}")
            ended[side].append(np.swapaxes(plane, k, -1))
    sizes = a[1][-1]
    if weights_alone:
        call.tape.sum_of_weights([*ended[0], *ended[1]], f"{call.name}: {SUMMED_WEIGHTS}")
    if sizes > 1:
        for plane in ended[0]:
            for other in ended[1]:
                atoms.unite(atoms.couple(plane, [plane.ndim - 2]), atoms.couple(other, [other.ndim - 2]))
        for own, others in (ended, ended[::-1]):
            if not others:
                for plane in own:
                    call.freeze(plane, "its input is the network's, or a constant")
    shapes = [(*a[1][:-1], 1), (*b[1][:-2], 1, b[1][-1])]
    return merge(
        atoms, list(zip(passing, shapes, strict=True)), f"{call.name} meets it with entries that are no channels"
    )


def _operand(call: Call, tensor: Tensor) -> tuple[Planes, Shape, bool]:
    return call.planes(tensor), tuple(tensor.shape), call.tape.is_parameter(tensor)


@rule("mm", "bmm", "matmul")
def product(call: Call) -> Planes:
    left, right = list(call.arguments.values())[:2]
    return contract(call, _operand(call, left), _operand(call, right))


@rule("addmm", "baddbmm", "_addmm_activation")
def product_and_bias(call: Call) -> Planes:
    first, left, right = list(call.arguments.values())[:3]
    result = contract(call, _operand(call, left), _operand(call, right))
    if call.tape.is_parameter(first):
        for plane in call.planes(first):
            call.tape.role(plane, "bias")
    shape = tuple(call.out.shape)
    why = f"{call.name} meets it with entries that are no channels"
    call.tape.nonzero.extend(plane for plane in result if not along(call, first, varies(plane)))
    return merge(call.tape.atoms, [(result, shape), (call.planes(first), tuple(first.shape))], why)


@rule("mv")
def product_with_vector(call: Call) -> Planes:
    left, vector = call["self"], call["vec"]
    planes, shape, parameter = _operand(call, vector)
    right = [p.reshape(-1, 1) for p in planes], (*shape, 1), parameter
    return [p.reshape(-1) for p in contract(call, _operand(call, left), right)]


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention",
      "_scaled_dot_product_fused_attention_overrideable",
      "_scaled_dot_product_attention_math", "scaled_dot_product_attention",
      "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def attention(call: Call) -> Any:
    """Whole heads: the scale depends on a head's length, and a head's values on all of its queries and keys.

    Keys and values of fewer heads serve several heads of queries each, side by side.
    """
    q, k, v = call["query"], call["key"], call["value"]
    served = q.shape[-3] // k.shape[-3] if q.ndim > 3 else 1
    keys, values = ([_repeated(p, served) for p in call.planes(t)] for t in (k, v))
    turned = [np.swapaxes(p, -1, -2) for p in keys]
    heads = q.shape[:-2]
    k_shape = (*heads, k.shape[-1], k.shape[-2])
    scores = contract(call, _operand(call, q), (turned, k_shape, call.tape.is_parameter(k)), all_of_it=True)
    shape = (*q.shape[:-1], k.shape[-2])
    for plane in scores:
        if plane.shape[-1] > 1:
            call.freeze(plane, "mixes channels")
    mask = call.arguments.get("attn_mask", call.arguments.get("attn_bias"))
    if isinstance(mask, Tensor) and call.planes(mask):
        why = f"{call.name}: the mask is no channel"
        scores = merge(call.tape.atoms, [(scores, shape), (call.planes(mask), mask.shape)], why)
    v_operand = values, (*heads, *v.shape[-2:]), call.tape.is_parameter(v)
    result = contract(call, (scores, shape, False), v_operand)
    return result if isinstance(call.out, Tensor) else [result, *([] for _ in call.out[1:])]


def _repeated(plane: Plane, times: int) -> Plane:
    return np.repeat(plane, times, -3) if times > 1 and plane.shape[-3] > 1 else plane


@rule("mkldnn_rnn_layer", "_cudnn_rnn")
def recurrent(call: Call) -> list[Planes]:
    """Channels of the input meet the weights that take it and end; the states stay, as each of them reads all."""
    x, every = call["input"], [t for t in flat(call.arguments.values()) if isinstance(t, Tensor)]
    if "weight0" in call.arguments:
        first = [call["weight0"]]
    else:  # of all layers and directions, in order
        first = call["weight"][:: call["weight_stride0"]][: 1 + call["bidirectional"]]
    inputs, taking = [], []
    for tensor in every:
        for plane in call.planes(tensor):
            if tensor is x and varies(plane) == {x.ndim - 1}:
                inputs.append(plane.reshape(-1))
            elif any(tensor is weight for weight in first) and varies(plane) == {1}:
                call.tape.role(plane, "in")
                taking.append(plane.reshape(-1))
            else:
                call.freeze(plane, "reads all of its channels")
    for plane in taking:
        _meet(call, inputs[0] if inputs else None, plane, len(plane))
    return [[] for _ in call.out]
