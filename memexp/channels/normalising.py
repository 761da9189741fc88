"""Rules of normalisations: entries of weight and bias are of a channel each, and what statistics are over stays."""

from typing import Any

from torch import Tensor

from memexp.channels.call import Call
from memexp.channels.planes import Planes, lift, merge, varies
from memexp.channels.rules import along, rule
from memexp.channels.sizes import Attribute, Size


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm")
def batch_norm(call: Call) -> list[Planes]:
    """One channel with each entry of weight, bias and running statistics; what statistics of the input are over stays."""
    x: Tensor = call["input"]
    if call.arguments.get("training") or call["running_mean"] is None:
        for plane in call.planes(x):
            if varies(plane) - {1}:
                call.freeze(plane, "the statistics are over it")
    vectors = [call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    result, shape = call.planes(x), x.shape
    seen: set[int] = set()
    for vector in vectors:
        if vector is not None:
            first = next((int(p.flat[0]) for p in call.planes(vector)), 0)
            if first in seen:
                continue
            seen.add(first)
            own = [p.reshape([-1 if d == 1 else 1 for d in range(x.ndim)]) for p in call.planes(vector)]
            along = [1] + list(vector.shape) + [1] * (x.ndim - 2)
            result = merge(
                call.tape.atoms, [(result, shape), (own, along)], f"{call.name} normalises what is no channel"
            )
            for plane in own:
                call.tape.role(plane, "norm")
    call.tape.nonzero.extend(plane for plane in result if call["weight"] is None or 1 not in varies(plane))
    return [result, [], []]


@rule("native_layer_norm")
def layer_norm(call: Call) -> list[Planes]:
    """One channel with each entry of weight and bias; its statistics are of the channels that are there."""
    x: Tensor = call["input"]
    first = x.ndim - len(call["normalized_shape"])
    result = call.planes(x)
    if call["weight"] is None or call["weight"].ndim > 1:
        for plane in result:
            if max(varies(plane), default=-1) >= first:
                call.freeze(plane, "statistics over channels without a weight for each of them")
        if call["weight"] is None:
            return [result, [], []]
    if not isinstance(call.tape.argument(x.shape[-1]), Size | Attribute):
        call.tape.doubtful = True
    for name in ("weight", "bias"):
        if call[name] is not None:
            for plane in call.planes(call[name]):
                call.tape.role(plane, "norm")
            result = merge(
                call.tape.atoms,
                [(result, x.shape), ([lift(p, x.ndim) for p in call.planes(call[name])], call[name].shape)],
                f"{call.name} normalises what is no channel",
            )
    if call["bias"] is not None:  # shifts what is of other dimensions too
        call.tape.nonzero.extend(plane for plane in result if not along(call, call["bias"], varies(plane)))
    return [result, [], []]


@rule("native_group_norm")
def group_norm(call: Call) -> list[Planes]:
    """Whole groups of the norm: one channel each. Of a single group statistics are of the channels that are there, as those of
    a LayerNorm."""
    x: Tensor = call["input"]
    groups = int(call["group"])
    result = call.planes(x)
    for name in ("weight", "bias"):
        if call[name] is not None:
            for plane in call.planes(call[name]):
                call.tape.role(plane, "norm")
            own = [p.reshape([-1 if d == 1 else 1 for d in range(x.ndim)]) for p in call.planes(call[name])]
            along = [1] + list(call[name].shape) + [1] * (x.ndim - 2)
            result = merge(call.tape.atoms, [(result, x.shape), (own, along)], f"{call.name} normalises no channel")
    for plane in result:
        if varies(plane) - {0, 1}:
            call.freeze(plane, "the statistics are over it")
        elif plane.shape[1] > 1 and groups == 1:
            if call["weight"] is None:
                call.freeze(plane, "statistics over channels without a weight for each of them")
        elif plane.shape[1] > 1:
            parts = plane.reshape(plane.shape[0], groups, plane.shape[1] // groups, *plane.shape[2:])
            axes = [axis for axis in range(parts.ndim) if axis != 1]
            call.tape.atoms.couple(parts, axes, f"{call.name}: a group holds what is no channel")
            origin = call.tape.argument(groups)
            if isinstance(origin, Attribute):
                call.tape.use(origin, parts, 1)
            else:
                call.freeze(plane, "the number of groups is fixed in the source")
        elif call["bias"] is not None:
            call.tape.nonzero.append(plane)
    return [result, [], []]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> Any:
    """w = g v / |v|: outputs can be removed; of v, what its norm is taken over stays. v itself must not be zero: v / |v|.

    The result's channels are those of g, so that what takes it says whether g makes them or takes them (a transposed
    convolution's first dimension).
    """
    v, g, dim = call["v"], call["g"], call.dim(call["dim"])
    for plane in call.planes(v):
        own = varies(plane) == {dim}
        call.tape.role(plane, "direction" if own else "in")
        if not own:
            call.freeze(plane, "the norm of the weight is taken over it")
    made = [p for p in call.planes(v) if varies(p) == {dim}]
    outs = merge(
        call.tape.atoms, [(call.planes(g), g.shape), (made, g.shape)], f"{call.name}: a length that is no channel"
    )
    rest = [p for p in call.planes(v) if varies(p) != {dim}]
    return [*outs, *rest] if isinstance(call.out, Tensor) else [[*outs, *rest], []]
