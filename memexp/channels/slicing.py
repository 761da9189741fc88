"""Rules of operations that cut a tensor: by bounds, and into parts."""

import numpy as np

from memexp.channels.call import Call
from memexp.channels.planes import Plane, Planes, varies
from memexp.channels.rules import rule
from memexp.channels.sizes import Attribute, Derived, Size


@rule("slice")
def sliced(call: Call) -> Planes:
    """Bounds that are fixed in the source keep what lies before them; bounds that follow the shape keep equal parts."""
    x, dim = call.first, call.dim(call["dim"])
    size = x.shape[dim]
    start, end, step = slice(call["start"], call["end"], call["step"]).indices(size)
    result = []
    for plane in call.planes(x):
        if plane.shape[dim] > 1 and (start, end, step) != (0, size, 1):
            call.tape.doubtful = True
            _slice(call, plane, dim, start, end, step)
            plane = plane.take(range(start, end, step), dim)
        result.append(plane)
    return result


def _slice(call: Call, plane: Plane, dim: int, start: int, end: int, step: int) -> None:
    size = plane.shape[dim]
    if varies(plane) != {dim}:
        call.tape.atoms.couple(plane, [dim])
        return
    written = call.tape.bounds(start, end, size)
    part = end - start
    shares = [n.whole for n in written if isinstance(n, Derived) and n.whole == size and isinstance(n.whole, Attribute)]
    if shares or any(isinstance(n, Size) for n in written):
        follow = len(shares) + sum(isinstance(n, Size) for n in written) == len(written)
        if follow and step == 1 and part and size % part == 0 and start % part == 0:
            call.tape.atoms.couple(plane.reshape(size // part, part), [0])
            for whole in shares:
                call.tape.use(whole, plane, dim)
        else:
            call.freeze(plane, "a slice that follows the shape in unequal parts")
        return
    if step == 1 and len(written) == 1 and isinstance(written[0], Attribute) and (start == 0 or end == size):
        first = end if start == 0 else start
        if written[0] == first:  # else it counts from the end
            call.tape.use(written[0], plane.take(range(first), dim), dim)
            return
    last = size if step != 1 else end if end < size else start
    call.freeze(plane.take(range(last), dim), "a slice by numbers that are fixed in the source")


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(call: Call) -> list[Planes]:
    """Parts of sizes that are attributes change with them; equal parts stay equal; other sizes are fixed."""
    x, dim = call.first, call.dim(call["dim"])
    sizes = [part.shape[dim] for part in call.out]
    ends = np.cumsum(sizes).tolist()
    result: list[Planes] = [[] for _ in sizes]
    for plane in call.planes(x):
        if plane.shape[dim] == 1:
            for own in result:
                own.append(plane)
            continue
        parts = [plane.take(range(end - size, end), dim) for end, size in zip(ends, sizes, strict=True)]
        call.tape.doubtful = True
        if varies(plane) != {dim}:
            call.tape.atoms.couple(plane, [dim])
        else:
            _split(call, parts, dim)
        for own, part in zip(result, parts, strict=True):
            own.append(part)
    return result


def _split(call: Call, parts: list[Plane], dim: int) -> None:
    sizes = [part.shape[dim] for part in parts]
    origins = call.tape.split_origins(sizes)
    whole = origins[0].whole if origins and isinstance(origins[0], Derived) else None
    if isinstance(whole, Attribute) and whole == sum(sizes):
        call.tape.use(whole, np.concatenate(parts, dim), dim)
        origins = None
    if origins is None:  # equal parts, as many as before
        for part in parts[1:]:
            if part.shape == parts[0].shape:
                call.tape.atoms.unite(parts[0], part)
        if len(set(sizes)) > 1:
            for part in parts:
                call.freeze(part, f"unequal parts {sizes} of a number of parts that is fixed")
        return
    if sizes != origins:
        for part in parts:
            call.freeze(part, f"unequal parts {sizes} of a length of {int(origins[0])}")
        return
    for part, origin in zip(parts, origins, strict=True):
        if isinstance(origin, Attribute):
            call.tape.use(origin, part, dim)
            if origin is origins[0] and part.shape == parts[0].shape:
                call.tape.atoms.unite(parts[0], part)
        elif not isinstance(origin, Size):
            call.freeze(part, f"the part of {int(origin)} is fixed in the source")
