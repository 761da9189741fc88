"""Rules of operations that move data: planes move in the same way."""

from typing import Any

import numpy as np
from torch import Tensor

from memexp.channels.call import Call
from memexp.channels.graph import ChannelError
from memexp.channels.planes import Plane, Planes, blocks, distinct, lift, merge, reshape, varies
from memexp.channels.rules import full, rule
from memexp.channels.sizes import Attribute, Derived, Size


@rule("clone", "alias", "detach", "contiguous", "_to_copy", "lift_fresh", "lift", "to", "dropout", "native_dropout", "copy",
      "empty_like", "zeros_like", "zero_")  # fmt: skip
def same(call: Call) -> Any:
    planes = call.planes(call.first)
    return planes if isinstance(call.out, Tensor) else [planes for _ in call.out]


@rule("ones_like", "rand_like", "randn_like", "full_like", "fill_", "bernoulli", "normal", "uniform", "exponential", "cauchy",
      "log_normal", "geometric", "random")  # fmt: skip
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
        result = distinct([result, [np.concatenate(wide, dim)]])
    return result


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
