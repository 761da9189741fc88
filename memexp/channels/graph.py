"""The graph: groups of channels that can be removed one by one, and why the rest cannot.

A channel is a connected component of atoms (memexp.channels.planes): everything that must go if one of it goes. Channels that
touch the same dimensions of the same parameters make a group.
"""

from dataclasses import dataclass

from memexp.channels.tape import Role

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
