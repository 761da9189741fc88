"""The graph: groups of channels that can be removed one by one, and why the rest cannot.

A channel is a connected component of atoms (memexp.channels.planes): everything that must go if one of it goes. Channels that
touch the same dimensions of the same parameters make a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from memexp.channels.planes import compress, varies
from memexp.channels.sizes import Attribute, Size
from memexp.channels.tape import Role, Tape, Use


class ChannelError(ValueError):
    """A network whose channels cannot be followed, or a choice of channels that does not fit its graph."""


@dataclass(frozen=True)
class Member:
    """`indices[i]` along `dim` of the parameter or buffer `name` (of the state dict) belong to channel i.

    role: out, the filters that make the channels (weight, bias); in, the weights that take them; norm, other entries, such as
    those of a normalisation.
    """

    name: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    role: Role


@dataclass(frozen=True)
class Group:
    """`size` channels, each of which can be removed with its indices in all members, or kept.

    nonzero: a channel whose filter is zero may still be another number further on (a sigmoid of it, say).
    """

    size: int
    members: tuple[Member, ...]
    nonzero: bool = False


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

    sizes: length of each (parameter, dim). numbers: attributes that follow the channels. The network's inputs and its outputs
    (classes) are frozen.
    """

    groups: list[Group]
    frozen: dict[tuple[str, int], str]
    sizes: dict[tuple[str, int], int]
    numbers: tuple[Number, ...]

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


def assemble(network: nn.Module, tape: Tape) -> Graph:
    """The graph of what a trace wrote down."""
    _attention_heads(network, tape)
    _keep_rectangles(tape)
    roots = tape.atoms.roots()
    reasons: dict[int, str] = {0: "it is no channel"}
    for atoms, why in tape.atoms.frozen:
        for root in np.unique(roots[atoms]).tolist():
            reasons.setdefault(root, why)
    frozen_atoms = np.isin(roots, np.fromiter(reasons, dtype=np.int64))

    keys = list(tape.entries)
    entry = np.full(tape.atoms.count, -1)
    index = np.zeros(tape.atoms.count, dtype=np.int64)
    for k, key in enumerate(keys):
        entry[tape.entries[key]], index[tape.entries[key]] = k, np.arange(len(tape.entries[key]))
    live = np.flatnonzero((entry >= 0) & ~frozen_atoms)
    groups, place = _groups(tape, keys, roots, entry, index, live)

    frozen: dict[tuple[str, int], str] = {}
    for key, atoms in tape.entries.items():
        for root in np.unique(roots[atoms]).tolist():
            if root not in place:
                frozen.setdefault(key, reasons.get(root, "all of its channels are one"))
    sizes = {key: len(atoms) for key, atoms in tape.entries.items()}
    numbers = tuple(number for use in tape.uses if (number := _number(use, roots, place)) is not None)
    return Graph(groups, frozen, sizes, numbers)


def _groups(
    tape: Tape, keys: Sequence[tuple[str, int]], roots: Any, entry: Any, index: Any, live: Any
) -> tuple[list[Group], dict[int, tuple[int, int]]]:
    """Groups, and (group, channel) of each channel's root."""
    live = live[np.lexsort((index[live], entry[live], roots[live]))]
    touched = np.unique(np.stack([roots[live], entry[live]]), axis=1)
    codes = np.random.default_rng(0).integers(1, 2**62, len(keys) + 1)
    signature = np.zeros(tape.atoms.count, dtype=np.int64)
    np.add.at(signature, touched[0], codes[touched[1]])  # a sum of what is touched: equal for equal sets
    channels = np.unique(roots[live])
    roles, nonzero = tape.roles(), set()
    for plane in tape.nonzero:
        nonzero.update(np.unique(roots[plane]).tolist())
    groups: list[Group] = []
    place: dict[int, tuple[int, int]] = {}
    _, first, which = np.unique(signature[channels], return_index=True, return_inverse=True)
    for code in np.argsort(first):
        own = channels[which == code]
        if len(own) < 2:
            continue
        place.update({root: (len(groups), i) for i, root in enumerate(own.tolist())})
        mine = live[np.isin(roots[live], own)]
        members = []
        for k in np.unique(entry[mine]).tolist():
            atoms = mine[entry[mine] == k]  # sorted by channel, then index
            counts = np.unique(roots[atoms], return_counts=True)[1]
            parts = np.split(index[atoms], np.cumsum(counts)[:-1])
            role = roles.get(int(tape.entries[keys[k]][0]), "norm")
            members.append(Member(*keys[k], tuple(tuple(part.tolist()) for part in parts), role))
        groups.append(Group(len(own), tuple(members), not nonzero.isdisjoint(own.tolist())))
    return groups, place


def _keep_rectangles(tape: Tape) -> None:
    """Where a dimension is split in several, all parts but one keep their length: preferably those that cannot follow."""
    for plane, origins in tape.splits:
        now = compress(tape.atoms.roots()[plane])
        axes = varies(now)
        if len(axes) > 1:
            follows = max(axes, key=lambda axis: (_freedom(origins[axis]), plane.shape[axis], axis))
            tape.atoms.couple(plane, sorted(axes - {follows}))


def _freedom(origin: int) -> int:
    return 2 if isinstance(origin, Size) else 1 if isinstance(origin, Attribute) else 0


def _attention_heads(network: nn.Module, tape: Tape) -> None:
    """The number of heads of nn.MultiheadAttention, whose forward hides where it uses it."""
    for path, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            atoms = tape.entries.get((f"{path}.in_proj_weight".lstrip("."), 0))
            if atoms is not None:
                plane = atoms.reshape(3, module.num_heads, -1)
                tape.uses.append(Use(path, "num_heads", None, module.num_heads, plane, 1))


def _number(use: Use, roots: Any, place: dict[int, tuple[int, int]]) -> Number | None:
    lines = np.moveaxis(roots[use.plane], use.axis, 0).reshape(use.plane.shape[use.axis], -1)
    channels = [place.get(int(line.max())) for line in lines]
    if all(channel is None for channel in channels) or len(set(channels)) == 1:
        return None
    return Number(use.module, use.name, use.index, tuple(channels))
