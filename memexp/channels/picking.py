"""Rules of operations that pick entries by number, or by a mask, or put some there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memexp.channels.call import Call
from memexp.channels.planes import Planes, lift, merge, tidy, varies
from memexp.channels.rules import full, positions, rule


@rule("select")
def select(call: Call) -> Planes:
    dim = call.dim(call["dim"])
    result = []
    for plane in call.planes(call.first):
        if plane.shape[dim] > 1:
            call.tape.fix(plane, dim, f"{call.name}: one is picked by its number")
            plane = plane.take([call["index"]], dim)
        result.append(plane.squeeze(dim))
    return result


@rule("unbind")
def unbind(call: Call) -> list[Planes]:
    dim = call.dim(call["dim"])
    for plane in call.planes(call.first):
        if plane.shape[dim] > 1:
            call.tape.fix(plane, dim, f"{call.name}: each is a tensor of its own")
    return [
        [plane.take([i if plane.shape[dim] > 1 else 0], dim).squeeze(dim) for plane in call.planes(call.first)]
        for i in range(len(call.out))
    ]


@rule("index", "index_select")
def index(call: Call) -> Planes:
    """Along positions; what is picked by number along channels stays."""
    x = call.first
    numbered = call.name.startswith("aten.index.Tensor")
    indices = list(call["indices"]) if numbered else []
    by_number = _dimensions(indices) if numbered else {call.dim(call["dim"])}
    result = []
    for plane in call.planes(x):
        if varies(plane) & by_number:
            call.freeze(plane, "entries are picked by their numbers")
            if varies(plane) <= by_number:
                continue
            plane = call.tape.atoms.couple(plane, sorted(varies(plane) & by_number))
        if numbered:
            written = full(plane, x.shape)
            keys = tuple(slice(None) if i is None else i for i in indices)
            result.append(written[keys].numpy())
        else:
            result.append(plane)
    return result


def _dimensions(indices: Sequence[Tensor | None]) -> set[int]:
    """What numbers and masks pick from: each a dimension, and a mask as many as it has."""
    found: set[int] = set()
    at = 0
    for given in indices:
        long = given.ndim if given is not None and given.dtype in (torch.bool, torch.uint8) else 1
        found |= set(range(at, at + long)) if given is not None else set()
        at += long
    return found


@rule("index_put", "_index_put_impl")
def put_at(call: Call) -> Planes:
    """One number where a mask of the whole says: entry by entry. Else what is put, and what lies where numbers say, stays."""
    x, values, indices = call.first, call["values"], list(call["indices"])
    if values.numel() == 1 and indices[0] is not None and indices[0].shape == x.shape:
        why = f"{call.name} meets it with entries that are no channels"
        result = merge(call.tape.atoms, [(call.planes(t), t.shape) for t in (x, indices[0])], why)
    else:
        result = call.planes(x)
        for tensor in (values, *indices):
            for plane in call.planes(tensor):
                call.freeze(plane, "is put into a part of another tensor, or says into which")
        for plane in result:
            if varies(plane) & _dimensions(indices):
                call.freeze(plane, "entries are put by their numbers")
    if values.count_nonzero() or call.tape.known(values).activation:
        call.tape.nonzero.extend(result)
    return result


@rule("max_unpool2d", "max_unpool3d")
def unpooled(call: Call) -> Planes:
    """A value and its place are of one channel."""
    both = [(positions(call), call.first.shape), (call.planes(call["indices"]), call.first.shape)]
    return merge(call.tape.atoms, both, f"{call.name} meets it with entries that are no channels")


@rule("index_add", "index_copy")
def put(call: Call) -> Planes:
    """At positions by their numbers; what is put in and what was there are of one channel."""
    dim, parts = call.dim(call["dim"]), []
    for tensor in (call.first, call["source"]):
        for plane in call.planes(tensor):
            if dim in varies(plane):
                call.freeze(plane, "entries are put by their numbers")
        shape = [1 if d == dim else size for d, size in enumerate(tensor.shape)]
        parts.append(([call.tape.atoms.couple(plane, [dim]) for plane in call.planes(tensor)], shape))
    return merge(call.tape.atoms, parts, f"{call.name} meets it with entries that are no channels")


@rule("copy_")
def copy_into(call: Call) -> Planes:
    """Into a tensor or a part of one: entries that meet are of one channel. A part with all of a dimension has its channels,
    and so has then the whole, which elsewhere may not be zero."""
    x, source = call.first, call["src"]
    own = [lift(plane, x.ndim) for plane in call.planes(source)]
    whole = x if call.planes(x) or x._base is None else x._base
    along = set().union(*map(varies, own))
    if whole.ndim != x.ndim or any(whole.shape[d] != x.shape[d] or whole.stride(d) != x.stride(d) for d in along):
        for plane in own:
            call.freeze(plane, "is written into a part of another tensor")
        return own
    why = f"{call.name} writes into it what is no channel"
    if call.planes(whole):
        own = merge(call.tape.atoms, [(call.planes(whole), whole.shape), (own, source.shape)], why)
    else:
        call.tape.doubtful = True  # of it the length may be fixed in the source
        call.tape.nonzero.extend(own if whole is not x else [])
    call.tape.known(whole).planes = tidy(own)
    return own
