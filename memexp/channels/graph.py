"""The graph: groups of channels that can be removed one by one, and why the rest cannot.

A channel is a connected component of atoms (memexp.channels.planes): everything that must go if one of it goes. Channels that
touch the same dimensions of the same parameters make a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memexp.channels.planes import Plane, compress, varies
from memexp.channels.sizes import Attribute, Owner, Size
from memexp.channels.tape import Role, Tape, Use

Array = NDArray[np.int64]
OUTPUT = "it is part of the network's output"
NOT_RUN = "the forward on the example, in evaluation mode, does not run it"
Key = tuple[str, int]  # a parameter and its dimension


class ChannelError(ValueError):
    """A network whose channels cannot be followed, or a choice of channels that does not fit its graph."""


@dataclass(frozen=True)
class Member:
    """`indices[i]` along `dim` of the parameter or buffer `name` belong to channel i.

    role: out, the filters that make the channels; bias, what is added to them, of whatever shape; in, the weights that take
    them; direction, what is divided by its norm to make filters (v of a weight norm); norm, other entries, such as those of a
    normalisation.
    """

    name: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    role: Role


@dataclass(frozen=True)
class Group:
    """`size` channels, each of which can be removed with its indices in all members, or kept.

    nonzero: a channel whose filter is zero may still be another number further on (a sigmoid of it, say). divided: or no number
    (a filter that is divided by its norm).
    """

    size: int
    members: tuple[Member, ...]
    nonzero: bool = False
    divided: bool = False


@dataclass(frozen=True)
class Number:
    """Attribute `name` of a module (item `index`, if it is a tuple): how many of `channels` are kept, None always is."""

    module: str
    name: str
    index: int | None
    channels: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Graph:
    """groups: of channels that can be removed. frozen: (parameter, dim) -> why those in no group cannot be, in words.

    sizes: length of each (parameter, dim). numbers: attributes that follow the channels. unread: modules and parameters that
    did not run, and stay as they are. The network's inputs and its outputs (classes) are frozen.
    """

    groups: list[Group]
    frozen: dict[tuple[str, int], str]
    sizes: dict[tuple[str, int], int]
    numbers: tuple[Number, ...]
    unread: tuple[str, ...] = ()

    def removable(self, name: str, dim: int = 0) -> tuple[int, ...]:
        """The indices along `dim` of parameter `name` that are in a group. ChannelError for one that is not traced."""
        if (name, dim) not in self.sizes:
            raise ChannelError(f"{name!r} has no dimension {dim} with channels in this graph")
        found = {
            i
            for group in self.groups
            for member in group.members
            if (member.name, member.dim) == (name, dim)
            for own in member.indices
            for i in own
        }
        return tuple(sorted(found))

    def why_fixed(self, most: int = 3) -> str:
        """Why layers keep their channels: `most` reasons, each with the first that it is of; "" where all are the network's
        outputs or do not run."""
        first = {
            why: name for (name, dim), why in reversed(self.frozen.items()) if dim == 0 and why not in (OUTPUT, NOT_RUN)
        }
        return "; ".join(f"{name}: {why}" for why, name in list(reversed(first.items()))[:most])


def assemble(tape: Tape) -> Graph:
    """The graph of what a trace wrote down."""
    tape.fix_values()
    _keep_counts(tape)
    _keep_rectangles(tape)
    roots = tape.atoms.roots()
    _keep_unmaskable(tape, roots)
    count = tape.atoms.count
    keys, entry, index = _entries(tape)
    _keep_weighed(tape, keys, entry)
    reason = np.full(count, -1)  # by root: which of the reasons, the first given
    for number, (atoms, _) in reversed(list(enumerate(tape.atoms.frozen))):
        reason[roots[atoms]] = number
    reason = reason[roots]

    live = np.flatnonzero((entry >= 0) & (reason < 0))
    group = _signatures(count, roots, entry, live)
    groups, place = _groups(tape, keys, roots, entry, index, live, group)

    frozen: dict[tuple[str, int], str] = {}
    alone = place[roots, 0] < 0
    for shared in keys:
        atoms = tape.entries[shared[0]]
        stuck = atoms[alone[atoms]]
        if len(stuck):
            why = int(reason[stuck].max())
            words = tape.atoms.frozen[why][1] if why >= 0 else _alone(tape, roots, int(roots[stuck[0]]))
            frozen.update(dict.fromkeys(shared, words))
    sizes = {key: len(atoms) for key, atoms in tape.entries.items()}
    numbers = tuple(found for use in tape.uses if (found := _number(use, roots, place)) is not None)
    return Graph(groups, frozen, sizes, numbers)


def _entries(tape: Tape) -> tuple[list[list[Key]], Array, Array]:
    """Entries in lists of those that share their atoms, and by atom: the number of its list, -1 for none, and its index."""
    together: dict[int, list[Key]] = {}  # by first atom
    for key, atoms in tape.entries.items():
        together.setdefault(int(atoms[0]), []).append(key)
    keys = list(together.values())
    entry, index = np.full(tape.atoms.count, -1), np.zeros(tape.atoms.count, dtype=np.int64)
    for k, (key, *_) in enumerate(keys):
        atoms = tape.entries[key]
        entry[atoms], index[atoms] = k, np.arange(len(atoms))
    return keys, entry, index


def _signatures(count: int, roots: Array, entry: Array, live: Array) -> Array:
    """By root: a number, the same for channels that touch the same parameters and dimensions as often; -1 for none."""
    codes = np.random.default_rng(0).integers(1, 2**62, int(entry.max()) + 2)
    total = np.zeros(count, dtype=np.int64)
    np.add.at(total, roots[live], codes[entry[live]])  # equal for equal sets, and else, but for 2^-62, not
    channels = np.flatnonzero(total)
    group = np.full(count, -1)
    if len(channels):
        _, first, inverse = np.unique(total[channels], return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.int64)
        order[np.argsort(first)] = np.arange(len(first))
        group[channels] = order[inverse]
    return group


def _groups(
    tape: Tape,
    keys: Sequence[Sequence[Key]],
    roots: Array,
    entry: Array,
    index: Array,
    live: Array,
    group: Array,
) -> tuple[list[Group], Array]:
    """Groups, and by root (group, channel), -1 for none."""
    place = np.full((len(roots), 2), -1)
    root, roles = roots[live], tape.roles()
    member = group[root] * len(keys) + entry[live]
    order = np.argsort(member * len(roots) + root, kind="stable")  # by group, entry, channel, and as it was: index
    root, member, index = root[order], member[order], index[live[order]]
    new = np.diff(member, prepend=-1) != 0
    begins = np.append(np.flatnonzero(new), len(root))  # of each member
    channels = np.flatnonzero(new | (np.diff(root, prepend=-1) != 0))  # where one begins in a member
    bounds = np.searchsorted(channels, begins)
    nonzero, divided = np.zeros((2, len(roots)), dtype=bool)
    for marks, planes in ((nonzero, tape.nonzero), (divided, tape.divided)):
        for plane in planes:
            marks[roots[plane]] = True

    singles = list(zip(range(int(index.max(initial=-1)) + 1), strict=True))
    known: dict[bytes, tuple[tuple[int, ...], ...]] = {}
    found: dict[int, tuple[Array, list[Member]]] = {}  # by number: the channels' roots, and members
    for number, start, end, c, d in zip(
        member[begins[:-1]].tolist(), begins[:-1], begins[1:], bounds[:-1], bounds[1:], strict=True
    ):
        shared = keys[number % len(keys)]
        role = roles.get(shared[0], "norm")
        own = index[start:end]
        if d - c == end - start:
            key = own.tobytes()
            if key not in known:  # most members of a group have the same indices
                known[key] = tuple(map(singles.__getitem__, own.tolist()))
            indices = known[key]
        else:
            indices = tuple(tuple(part.tolist()) for part in np.split(own, channels[c + 1 : d] - start))
        _, members = found.setdefault(number // len(keys), (root[channels[c:d]], []))
        members += [Member(name, dim, indices, role) for name, dim in shared]

    groups: list[Group] = []
    for own, members in found.values():
        if len(own) > 1 and any(m.role in ("out", "bias") and m.name not in tape.buffers for m in members):
            place[own, 0], place[own, 1] = len(groups), np.arange(len(own))
            groups.append(Group(len(own), tuple(members), bool(nonzero[own].any()), bool(divided[own].any())))
    return groups, place


def _keep_counts(tape: Tape) -> None:
    """Channels of which one number of the source counts two lines (a width that two tensors have) are one, the first with the
    first: as many have to stay in both. Where the lines hold the same channels, they do so already."""
    lines: dict[Owner, list[Plane]] = {}
    for use in tape.uses:
        if use.plane.size == 0:
            continue
        lines.setdefault((use.module, use.name, use.index), []).append(np.moveaxis(use.plane, use.axis, -1))
    pairs = [*((first, line) for first, *rest in lines.values() for line in rest), *tape.ties]
    roots = tape.atoms.roots() if pairs else np.empty(0)
    for one, other in pairs:
        own, rows = (np.sort(roots[line].reshape(-1, line.shape[-1])) for line in (one, other))
        counted = (own[:, 0] != own[:, -1]).all() and (rows[:, 0] != rows[:, -1]).all()
        if counted and (np.concatenate([own, rows]) != own[0]).any():
            for line in (one, other):
                tape.atoms.unite(one[(0,) * (one.ndim - 1)], line, "a number counts it that counts other channels too")


def _keep_rectangles(tape: Tape) -> None:
    """Where a dimension is split in several, all parts but one keep their length: preferably those that cannot follow."""
    for plane, origins in tape.splits:
        now = compress(tape.atoms.roots()[plane])
        axes = varies(now)
        if len(axes) > 1:
            follows = max(axes, key=lambda axis: (_freedom(origins[axis]), plane.shape[axis], axis))
            tape.atoms.couple(plane, sorted(axes - {follows}))


def _keep_unmaskable(tape: Tape, roots: Array) -> None:
    """Channels that are summed without weights stay where they are not zero by then: their removal would change the sum."""
    nonzero, seen = np.zeros(tape.atoms.count, dtype=bool), 0
    for plane, count, why in tape.ended:
        for other in tape.nonzero[seen:count]:
            nonzero[roots[other]] = True
        seen = count
        tape.atoms.freeze(plane[nonzero[roots[plane]]], why)


def _keep_weighed(tape: Tape, keys: Sequence[Sequence[Key]], entry: Array) -> None:
    """Channels over which weights alone are summed stay where none of these is what makes the channel.

    Removed, they would change the sum, which is of weights that are there whatever the channel is: the norm of a weight is
    taken over its inputs. Where one makes the channel (the first layer of two that are given a parameter), it goes with it.
    """
    roles = tape.roles()

    def makes(atom: int) -> bool:
        if entry[atom] < 0:
            return False
        key = keys[entry[atom]][0]
        role = roles.get(key, "norm")
        return role in ("out", "bias") or (role == "norm" and key[0] not in tape.buffers)

    for planes, why in tape.weighed:
        if not any(all(map(makes, np.unique(plane).tolist())) for plane in planes):
            # before all other reasons: a flattened kernel makes its positions and channels one, which says less
            tape.atoms.frozen[:0] = [(plane[plane > 0], why) for plane in planes]


def _freedom(origin: int) -> int:
    return 2 if isinstance(origin, Size) else 1 if isinstance(origin, Attribute) else 0


def _alone(tape: Tape, roots: Array, root: int) -> str:
    """Why a channel that is not frozen is in no group."""
    why = next((f", since {why}" for plane, why in tape.coupled if (roots[plane] == root).any()), "")
    return f"all of its channels are one{why}, or no parameter makes them"


def _number(use: Use, roots: Array, place: Array) -> Number | None:
    if use.plane.size == 0:  # a number that has come down to none
        return None
    lines = np.moveaxis(roots[use.plane], use.axis, 0).reshape(use.plane.shape[use.axis], -1).max(axis=1)
    channels = [None if g < 0 else (g, c) for g, c in place[lines].tolist()]
    # of several channels in one line, or in all lines the same, none is counted; a single one may be
    if all(channel is None for channel in channels) or (len(set(channels)) == 1 and use.plane.size > 1):
        return None
    return Number(use.module, use.name, use.index, tuple(channels))
