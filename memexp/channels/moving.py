"""Rules of operations that move data: planes move in the same way."""

from typing import Any

import numpy as np
from torch import Tensor

from memexp.channels.graph import ChannelError
from memexp.channels.planes import Plane, Planes, blocks, distinct, lift, merge, reshape, varies
from memexp.channels.rules import Call, full, rule
from memexp.channels.sizes import Attribute, Derived, Size


@rule("clone", "alias", "detach", "contiguous", "_to_copy", "lift_fresh", "lift", "to", "dropout", "native_dropout", "copy",
      "empty_like", "zeros_like", "zero_")  # fmt: skip
def same(call: Call) -> Any:
    planes = call.planes(call.first)
    return planes if isinstance(call.out, Tensor) else [planes for _ in call.out]


@rule("ones_like", "rand_like", "randn_like", "full_like", "fill_")
def filled(call: Call) -> Planes:
    """As long as the tensor that it is like, but not zero where that is."""
    call.tape.nonzero.extend(call.planes(call.first))
    return call.planes(call.first)


@rule("new_zeros", "new_ones", "new_empty", "new_full", "is_same_size", "sym_size", "equal")
def unrelated(call: Call) -> Planes:
    """Without channels of its own: only dtype and device are taken over."""
    return []


@rule("as_strided", "as_strided_")
def restrided(call: Call) -> Planes:
    """As it is, in another order in memory."""
    shape = tuple(call["size"])
    if any(len(p.shape) != len(shape) or {*p.shape} - {1, *shape} for p in call.planes(call.first)):
        raise ChannelError(f"{call.name} to another shape has no rule for channels: use view, slices or permute")
    return call.planes(call.first)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def view(call: Call) -> Planes:
    """A dimension with channels that is split keeps a rectangle of them, so that one of its parts alone becomes smaller."""
    before, after = tuple(call.first.shape), tuple(call.out.shape)
    origins = call.tape.origins(after)
    free = call.tape.free(len(after))
    result = []
    for plane in call.planes(call.first):
        moved = reshape(plane, before, after)
        call.tape.doubtful |= not varies(moved) <= free
        for axis in sorted(varies(moved)):
            origin = origins[axis]
            call.tape.measured(origin, moved, axis)
            _part(call, origin, moved, axis)
            if not isinstance(origin, Size | Attribute) and origin != -1:
                why = f"{call.name}: the length {origin} is fixed in the source"
                call.tape.fix(moved, axis, why)
        for _, news in blocks(before, after):
            if len(varies(moved) & set(news)) > 1:
                call.tape.splits.append((moved, [origins[d] for d in range(len(after))]))
        result.append(moved)
    return result


def _part(call: Call, number: int, plane: Plane, axis: int) -> None:
    """Of heads and what each has (width // heads): `width` is the length of both in one."""
    whole = number.whole if isinstance(number, Derived) else None
    for first in range(axis):
        both = plane.shape[first : axis + 1]
        if whole is not None and np.prod(both) == whole and 1 not in both:
            call.tape.measured(whole, plane.reshape(*plane.shape[:first], int(whole), *plane.shape[axis + 1 :]), first)


@rule("permute", "transpose", "t", "swapaxes", "movedim", "numpy_T", "mT")
def permute(call: Call) -> Planes:
    dims = list(range(call.first.ndim))
    if "dims" in call.arguments:
        dims = [d % len(dims) for d in call["dims"]]
    else:
        a, b = (call["dim0"], call["dim1"]) if "dim0" in call.arguments else (0, min(1, len(dims) - 1))
        dims[a], dims[b] = dims[b], dims[a]
    return [plane.transpose(dims) for plane in call.planes(call.first)]


@rule("expand", "broadcast_to")
def expand(call: Call) -> Planes:
    return [lift(plane, call.out.ndim) for plane in call.planes(call.first)]


@rule("unsqueeze")
def unsqueeze(call: Call) -> Planes:
    dim = call["dim"] % call.out.ndim
    return [np.expand_dims(plane, dim) for plane in call.planes(call.first)]


@rule("squeeze")
def squeeze(call: Call) -> Planes:
    x = call.first
    dims = call.arguments.get("dim")
    listed = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = [d for d in {d % x.ndim for d in listed} if x.shape[d] == 1]
    return [plane.squeeze(tuple(gone)) for plane in call.planes(x)]


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


@rule("cat", "concatenate")
def cat(call: Call) -> Planes:
    tensors = [t for t in call["tensors"] if t.numel() or t.ndim == call.out.ndim]
    dim = call["dim"] % call.out.ndim
    return join(call, [(call.planes(t), tuple(t.shape)) for t in tensors], dim)


@rule("stack")
def stack(call: Call) -> Planes:
    dim = call["dim"] % call.out.ndim
    parts = [
        ([np.expand_dims(p, dim) for p in call.planes(t)], (*t.shape[:dim], 1, *t.shape[dim:])) for t in call["tensors"]
    ]
    return join(call, parts, dim)


def join(call: Call, parts: list[tuple[Planes, tuple[int, ...]]], dim: int) -> Planes:
    """Along `dim` one after the other; along others the parts are of one channel."""
    why = f"{call.name} joins it with entries that are no channels"
    across = [[p for p in planes if p.shape[dim] == 1] for planes, _ in parts]
    flat = [(*shape[:dim], 1, *shape[dim + 1 :]) for _, shape in parts]
    result = merge(call.tape.atoms, list(zip(across, flat, strict=True)), why)
    along: Planes = []
    for planes, shape in parts:
        own = [p for p in planes if p.shape[dim] > 1]
        for other in own[1:]:
            call.tape.atoms.unite(own[0], other)
        empty = np.zeros([size if d == dim else 1 for d, size in enumerate(shape)], dtype=np.int64)
        along.append(own[0] if own else empty)
    if any(varies(p) for p in along) and any((p > 0).any() for p in along):
        shape = np.broadcast_shapes(*[(*p.shape[:dim], 1, *p.shape[dim + 1 :]) for p in along])
        wide = [np.broadcast_to(p, (*shape[:dim], p.shape[dim], *shape[dim + 1 :])) for p in along]
        result = [*result, np.concatenate(wide, dim)]
    return distinct(result)


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Planes:
    """Zeros among channels are channels of their own: one that meets them alone can go, and the pad's width with it."""
    x, widths = call.first, list(call["pad"])
    origins = call.tape.pad_origins(widths)
    result = []
    for plane in call.planes(x):
        for i in range(0, len(widths), 2):
            dim = x.ndim - 1 - i // 2
            if call["value"] not in (None, 0, 0.0):
                call.tape.nonzero.append(plane)
            if plane.shape[dim] == 1 or not (widths[i] or widths[i + 1]):
                continue
            call.tape.doubtful = True
            zeros = []
            for width, origin in ((widths[i], origins[i]), (widths[i + 1], origins[i + 1])):
                shape = [abs(width) if d == dim else 1 for d in range(x.ndim)]
                atoms = call.tape.atoms.new(abs(width)).reshape(shape)
                if width < 0 or call["value"] not in (None, 0, 0.0):
                    call.freeze(plane, "a pad that is not by zeros")
                elif isinstance(origin, Attribute):
                    call.tape.use(origin, atoms, dim)
                else:
                    call.freeze(atoms, "the width of the pad is fixed in the source")
                zeros.append(atoms[(slice(None),) * dim + (slice(0, max(width, 0)),)])
            if min(widths[i], widths[i + 1]) < 0:
                end = plane.shape[dim] + min(widths[i + 1], 0)
                plane = plane.take(range(max(-widths[i], 0), end), dim)
            full_shape = [1 if d == dim else size for d, size in enumerate(plane.shape)]
            wide = [
                np.broadcast_to(z, [s if d != dim else z.shape[dim] for d, s in enumerate(full_shape)]) for z in zeros
            ]
            plane = np.concatenate([wide[0], plane, wide[1]], dim)
        result.append(plane)
    return result


@rule("roll", "flip", "rot90", "tril", "triu", "_fft_r2c", "_fft_c2r", "_fft_c2c")
def turned(call: Call) -> Planes:
    """Along positions, here those of `dims`; channels that change their places, or are mixed, stay."""
    x = call.first
    dims = {d % x.ndim for d in call.arguments.get("dims", call.arguments.get("dim", (-2, -1)))} or set(range(x.ndim))
    for plane in call.planes(x):
        if varies(plane) & dims:
            call.freeze(plane, "channels change their places")
    return [call.tape.atoms.couple(plane, dims) for plane in call.planes(x)]


@rule("unfold")
def windows(call: Call) -> Planes:
    """Windows along positions, which are a dimension of their own at the end; channels that lie in them stay."""
    dim = call.dim(call["dimension"])
    for plane in call.planes(call.first):
        if plane.shape[dim] > 1:
            call.freeze(plane, "channels are taken in windows")
    return [call.tape.atoms.couple(plane, [dim])[..., None] for plane in call.planes(call.first)]


@rule("repeat")
def repeat(call: Call) -> Planes:
    times = call["repeats"]
    result = []
    for plane in call.planes(call.first):
        plane = lift(plane, len(times))
        result.append(np.tile(plane, [n if plane.shape[d] > 1 else 1 for d, n in enumerate(times)]))
    return result


@rule("repeat_interleave")
def interleave(call: Call) -> Planes:
    dim = call.dim(call["dim"])
    return [
        np.repeat(plane, call["repeats"], dim) if plane.shape[dim] > 1 else plane for plane in call.planes(call.first)
    ]


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffle(call: Call) -> Planes:
    """Carried out on the numbers of the channels, with blocks that keep a rectangle."""
    x, result = call.first, []
    for plane in call.planes(x):
        if plane.shape[1] > 1:
            if "channel" in call.name:
                parts = plane.reshape(plane.shape[0], call["groups"], -1, *plane.shape[2:])
                call.tape.atoms.couple(parts, [1])
            moved = call.func(full(plane, x.shape).double(), *list(call.arguments.values())[1:]).long().numpy()
            if call.name.startswith("aten.pixel_shuffle"):
                call.tape.atoms.couple(moved, [2, 3])
            plane = moved
        elif varies(plane):
            call.freeze(plane, "channels along a dimension of positions")
            continue
        result.append(plane)
    return result
