"""The graph is put together of what a trace wrote down: connected components of atoms are channels, and channels that touch
the same dimensions of the same parameters are a group.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memexp.channels.graph import Graph, Group, Key, Member, Number
from memexp.channels.planes import Plane, compress, varies
from memexp.channels.sizes import Attribute, Owner, Size
from memexp.channels.tape import Role, Tape, Use

Array = NDArray[np.int64]


def assemble(tape: Tape) -> Graph:
    """The graph of what a trace wrote down."""
    tape.fix_values()
    _keep_counts(tape)
    _keep_rectangles(tape)
    roots = tape.atoms.roots()
    _keep_unmaskable(tape, roots)
    keys = _entries(tape)
    roles = tape.roles()
    _keep_weighed(tape, keys, roles)
    reason = np.full(len(roots), -1)  # by root: which of the reasons, the first given
    for number, (atoms, _) in reversed(list(enumerate(tape.atoms.frozen))):
        reason[roots[atoms]] = number
    reason = reason[roots]

    group = _signatures(tape, keys, roots, reason < 0)
    groups, place = _groups(tape, keys, roots, group, roles)

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


def _entries(tape: Tape) -> list[list[Key]]:
    """Entries in lists of those that share their atoms."""
    together: dict[int, list[Key]] = {}  # by first atom
    for key, atoms in tape.entries.items():
        together.setdefault(int(atoms[0]), []).append(key)
    return list(together.values())


def _signatures(tape: Tape, keys: Sequence[Sequence[Key]], roots: Array, live: NDArray[np.bool_]) -> Array:
    """By root: a number, the same for channels that touch the same parameters and dimensions as often; -1 for none."""
    total = np.zeros(len(roots), dtype=np.int64)
    codes = np.random.default_rng(0).integers(1, 2**62, len(keys))
    for (key, *_), code in zip(keys, codes, strict=True):
        np.add.at(total, roots[tape.entries[key]], code)  # equal for equal sets, and else, but for 2^-62, not
    channels = np.flatnonzero((total != 0) & live)
    group = np.full(len(roots), -1)
    if len(channels):
        _, first, inverse = np.unique(total[channels], return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.int64)
        order[np.argsort(first)] = np.arange(len(first))
        group[channels] = order[inverse]
    return group


def _groups(
    tape: Tape, keys: Sequence[Sequence[Key]], roots: Array, group: Array, roles: Mapping[Key, Role]
) -> tuple[list[Group], Array]:
    """Groups, and by root (group, channel), -1 for none."""
    nonzero, divided = np.zeros((2, len(roots)), dtype=bool)
    for marks, planes in ((nonzero, tape.nonzero), (divided, tape.divided)):
        for plane in planes:
            marks[roots[plane]] = True

    parts: dict[bytes, list[_Part]] = {}  # most entries have the same channels as others
    found: dict[int, tuple[Array, list[Member]]] = {}  # by number: the channels' roots, and members
    for shared in keys:
        atoms = tape.entries[shared[0]]
        own = roots[atoms]
        channels = own.tobytes()
        if channels not in parts:
            parts[channels] = _parts(own, group)
        role = roles.get(shared[0], "norm")
        for part in parts[channels]:
            _, members = found.setdefault(part.group, (part.channels, []))
            members += [Member(name, dim, part.indices, role) for name, dim in shared]

    place = np.full((len(roots), 2), -1)
    groups: list[Group] = []
    for _, (own, members) in sorted(found.items()):
        if len(own) > 1 and any(m.role in ("out", "bias") and m.name not in tape.buffers for m in members):
            place[own, 0], place[own, 1] = len(groups), np.arange(len(own))
            groups.append(Group(len(own), tuple(members), bool(nonzero[own].any()), bool(divided[own].any())))
    return groups, place


class _Part(NamedTuple):
    """What an entry has of a group: the roots of its channels in order, and the indices of each."""

    group: int
    channels: Array
    indices: tuple[tuple[int, ...], ...]


def _parts(own: Array, group: Array) -> list[_Part]:
    """By group, what an entry has that holds the channels with these roots."""
    number = group[own]
    if (number == number[0]).all() and (np.diff(own) > 0).all():
        return [_Part(int(number[0]), own, _each(len(own)))] if number[0] >= 0 else []
    order = np.lexsort((own, number))  # and as it was
    order = order[np.searchsorted(number[order], 0) :]  # without those in no group
    found = []
    for members in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else ():
        channels, begins = np.unique(own[members], return_index=True)
        if len(channels) == len(members):
            indices = tuple(zip(members.tolist(), strict=True))
        else:
            indices = tuple(tuple(one.tolist()) for one in np.split(members, begins[1:]))
        found.append(_Part(int(number[members[0]]), channels, indices))
    return found


@lru_cache(maxsize=64)
def _each(n: int) -> tuple[tuple[int, ...], ...]:
    """One index for each of n channels, in order."""
    return tuple((i,) for i in range(n))


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


def _keep_weighed(tape: Tape, keys: Sequence[Sequence[Key]], roles: Mapping[Key, Role]) -> None:
    """Channels over which weights alone are summed stay where none of these is what makes the channel.

    Removed, they would change the sum, which is of weights that are there whatever the channel is: the norm of a weight is
    taken over its inputs. Where one makes the channel (the first layer of two that are given a parameter), it goes with it.
    """
    makes = np.zeros(tape.atoms.count, dtype=bool)
    for key, *_ in keys if tape.weighed else ():
        role = roles.get(key, "norm")
        makes[tape.entries[key]] = role in ("out", "bias") or (role == "norm" and key[0] not in tape.buffers)
    for planes, why in tape.weighed:
        if not any(makes[plane].all() for plane in planes):
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
