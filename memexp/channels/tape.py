"""What a trace writes down: planes of tensors, roles of parameters, and numbers that follow the channels."""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from memexp.channels.planes import Atoms, Plane, Planes, varies
from memexp.channels.sizes import COUNTED, Attribute, Derived, Owner, Size

# what takes no lengths from the source, and views what it is given
WITHOUT_LENGTHS = {torch.flatten, Tensor.flatten, Tensor.ravel, torch.matmul, Tensor.matmul, Tensor.__matmul__, linear}
Role = Literal["out", "bias", "in", "norm", "direction"]


@dataclass(frozen=True)
class Use:
    """An attribute that is the length of `axis` of a plane: of what is kept there it is the new value."""

    module: str
    name: str
    index: int | None
    before: int
    plane: Plane
    axis: int


@dataclass(slots=True)
class Known:
    """Of a tensor.

    planes: None until they are written. read: an operation or the output takes it. activation: it is one of the network's
    inputs, or made of one. constant: it is a buffer, or made of buffers alone. pending: planes that are frozen, and why, as
    soon as an operation or the output takes it.
    """

    planes: Planes | None = None
    read: bool = False
    activation: bool = False
    constant: bool = False
    pending: list[tuple[Plane, str]] = field(default_factory=list)


@dataclass
class Tape:
    atoms: Atoms = field(default_factory=Atoms)
    call: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None
    buffers: set[str] = field(default_factory=set)  # names of tensors that are no parameters
    entries: dict[tuple[str, int], Plane] = field(default_factory=dict)  # (parameter, dim) -> its atoms
    splits: list[tuple[Plane, list[int]]] = field(default_factory=list)  # planes over several axes, and their origins
    coupled: list[tuple[Plane, str]] = field(default_factory=list)  # planes made one along a fixed axis, and why
    uses: list[Use] = field(default_factory=list)
    ties: list[tuple[Plane, Plane]] = field(default_factory=list)  # lines (along the last axis) of one number
    values: set[Owner] = field(default_factory=set)  # attributes that are used as values
    nonzero: list[Plane] = field(default_factory=list)  # channels that may not be zero where what makes them is
    divided: list[Plane] = field(default_factory=list)  # channels that are no number where what makes them is zero
    weighed: list[tuple[Planes, str]] = field(
        default_factory=list
    )  # weights alone that meet where they are summed, why
    ended: list[tuple[Plane, int, str]] = field(
        default_factory=list
    )  # summed without weights, how many `nonzero` then, why
    closed: bool = False  # whether what is carried out goes by, as part of an operation that is noted as a whole
    transformed: bool = (
        False  # whether the call under way is within torch.vmap or the like, whose tensors have other dimensions
    )
    doubtful: bool = False  # whether a number in the source may be one that does not follow the channels
    # by id, while there is the tensor
    _known: dict[int, tuple[weakref.ref[Tensor], Known]] = field(default_factory=dict)
    _followers: list[tuple[Plane, Plane]] = field(default_factory=list)
    _roles: list[tuple[Plane, Role]] = field(default_factory=list)
    _weak: list[tuple[Plane, Role]] = field(default_factory=list)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Inside, nothing is noted."""
        self.closed = True
        try:
            yield
        finally:
            self.closed = False

    def adopt(self, name: str, tensor: Tensor, atoms: Plane | None = None) -> None:
        """A parameter or buffer: a plane for each dimension. One that has two names keeps the first.

        atoms: for its one dimension, if they are another's too.
        """
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return
        known = self.known(tensor)
        if known.planes is not None:
            return
        if not isinstance(tensor, nn.Parameter):
            self.buffers.add(name)
            known.constant = True
        known.planes = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                own = self.entries[name, dim] = self.atoms.new(size) if atoms is None else atoms
                known.planes.append(own.reshape([size if d == dim else 1 for d in range(tensor.ndim)]))

    def adopt_together(self, tensors: dict[str, Tensor]) -> None:
        """Entries of a normalisation, which are of the same channels from the start."""
        vectors = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 1}
        if len({len(tensor) for tensor in vectors.values()}) == 1:
            atoms = self.atoms.new(len(next(iter(vectors.values()))))
            for name, tensor in vectors.items():
                self.adopt(name, tensor, atoms)

    def known(self, tensor: Tensor) -> Known:
        """What is known of it, from now on."""
        found = self._found(tensor)
        if found is None:
            found = Known()
            self._known[id(tensor)] = weakref.ref(tensor), found
        return found

    def _found(self, tensor: Tensor) -> Known | None:
        of, found = self._known.get(id(tensor), (None, None))
        return found if of is not None and of() is tensor else None  # else another had its place in memory

    def planes(self, tensor: Tensor) -> Planes:
        found = self._found(tensor)
        return found.planes or [] if found else []

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether it has channels, and is a parameter or was made without the network's inputs."""
        found = self._found(tensor)
        return found is not None and found.planes is not None and not found.activation

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether it is a buffer, or made of buffers alone, into which no activation has been written."""
        found = self._found(tensor)
        return found is not None and found.constant and not found.activation

    def fix(self, plane: Plane, axis: int, why: str) -> None:
        """The length of `axis` cannot change: channels along it alone stay, those that differ elsewhere too are one on it."""
        if varies(plane) == {axis}:
            self.atoms.freeze(plane, why)
        else:
            self.atoms.couple(plane, [axis], why)
            self.coupled.append((plane, why))

    def end(self, plane: Plane, why: str) -> None:
        """Its channels are summed here without a weight for each: those that are not zero by now cannot go unnoticed."""
        self.ended.append((plane, len(self.nonzero), why))

    def freeze_if_used(self, tensors: Iterable[Tensor], plane: Plane, why: str) -> None:
        """None of the plane's channels can be removed if an operation or the output takes one of `tensors`."""
        for tensor in tensors:
            self.known(tensor).pending.append((plane, why))

    def used(self, known: Known) -> None:
        """An operation or the output takes what this is known of."""
        known.read = True
        while known.pending:
            self.atoms.freeze(*known.pending.pop(0))

    def role(self, plane: Plane, role: Role, weak: bool = False) -> None:
        """The parameters whose atoms these are have this role, unless an earlier operation has given them one.

        weak: also unless a later one does: this one takes weights alone, such as for a norm of them.
        """
        (self._weak if weak else self._roles).append((plane, role))

    def sum_of_weights(self, planes: Planes, why: str) -> None:
        """Weights alone meet along these planes and are summed there: without a channel it is another sum, unless it is
        made of one of them."""
        if planes:
            self.weighed.append((planes, why))

    def follow(self, results: Planes, planes: Planes) -> None:
        """Parameters of which another is made (a weight and its mask) have the role of what is made."""
        for result in results:
            self._followers += [(result, plane) for plane in planes if plane.shape[-result.ndim :] == result.shape]

    def roles(self) -> dict[tuple[str, int], Role]:
        """Of each entry that has one: that of its first atom, or "out" where it also makes channels: one weight that takes
        channels and gives them back by its transpose, or that holds the queries, keys and values of an attention."""
        found: dict[int, Role] = {}  # by a plane's first atom
        makes = np.zeros(self.atoms.count, dtype=bool)
        for plane, role in self._roles:
            first = int(plane.flat[0])
            found.setdefault(first, role)
            if role == "out":
                makes[first] = True
        for result, plane in reversed(self._followers):
            if int(result.flat[0]) in found:
                found.setdefault(int(plane.flat[0]), found[int(result.flat[0])])
        for plane, role in self._weak:
            found.setdefault(int(plane.flat[0]), role)
        roles: dict[tuple[str, int], Role] = {}
        for key, atoms in self.entries.items():
            own = found.get(int(atoms[0]))
            if own is not None:
                roles[key] = "out" if own == "in" and makes[atoms].any() else own
        return roles

    def use(self, origin: Attribute, plane: Plane, axis: int) -> None:
        """`origin` is the length of the plane's `axis`."""
        self.uses.append(Use(*origin.owner, int(origin), plane, axis))

    def measured(self, number: int, plane: Plane, axis: int) -> None:
        """`number`, as the source has it, is the length of the plane's `axis`: an attribute, or another tensor's length."""
        if isinstance(number, Attribute):
            self.use(number, plane, axis)
        elif isinstance(number, Derived):
            self.ties += [
                (other.ravel(), np.moveaxis(plane, axis, -1)) for other, d in number.lines if varies(other) == {d}
            ]

    def fix_values(self) -> None:
        """Attributes that are also used as values stay: what they are the length of is fixed."""
        for use in self.uses:
            if (use.module, use.name, use.index) in self.values:
                self.fix(use.plane, use.axis, COUNTED)

    def written(self) -> tuple[str, list[int]]:
        """The call that the source makes: its name, and the whole numbers among its arguments as they are written."""
        if self.call is None:
            return "", []
        func, args, kwargs = self.call
        return getattr(func, "__name__", str(func)), list(_numbers((args[1:], kwargs)))

    def origins(self, shape: Sequence[int]) -> list[int]:
        """Of each length of a view: a Size where it follows, an Attribute, or a plain number that is fixed."""
        name, numbers = self.written()
        if name in ("view", "reshape") and len(numbers) == len(shape):
            return [Size(size) if n == -1 else n for n, size in zip(numbers, shape, strict=True)]
        if name == "unflatten" and numbers:
            dim, parts = numbers[0], numbers[1:]
            start = dim % (len(shape) - len(parts) + 1)
            middle = [Size(s) if n == -1 else n for n, s in zip(parts, shape[start:], strict=False)]
            return [*map(Size, shape[:start]), *middle, *map(Size, shape[start + len(parts) :])]
        return list(map(Size, shape))

    def free(self, dims: int) -> set[int]:
        """The dimensions of a view whose length cannot be a number of the source's: flattened, -1, or within torch's own."""
        name, numbers = self.written()
        if self.call is not None and self.call[0] in WITHOUT_LENGTHS:
            return set(range(dims))
        if name in ("view", "reshape") and len(numbers) == dims:
            return {axis for axis, n in enumerate(numbers) if n == -1}
        return set()

    def bounds(self, start: int, end: int, size: int) -> list[int]:
        """The numbers of a slice as they are written."""
        values = {start, end, end - start, start - size, end - size} - {0, size}
        return [n for n in self.written()[1] if n in values]

    def split_origins(self, sizes: Sequence[int]) -> list[int] | None:
        """Of each part's length; None if the source asks for a number of equal parts."""
        name, numbers = self.written()
        if "split" not in name or name == "tensor_split":
            return None
        if list(numbers[: len(sizes)]) == list(sizes):
            found = numbers[: len(sizes)]
        else:
            found = [numbers[0]] * len(sizes) if numbers else list(sizes)
        return None if all(isinstance(n, Size) for n in found) else found

    def pad_origins(self, widths: Sequence[int]) -> list[int]:
        _, numbers = self.written()
        return numbers[: len(widths)] if numbers[: len(widths)] == list(widths) else list(widths)

    def groups(self, value: int) -> int:
        """The number of groups as it is written in the call of a convolution, of which other arguments may be as large."""
        _, args, kwargs = self.call or (None, (), {})
        written = kwargs.get("groups", args[6] if len(args) > 6 else None)
        return written if type(written) is not bool and written == value else value

    def argument(self, value: int) -> int:
        """The number of that value as it is written in the call, itself if it is not there."""
        return next((n for n in self.written()[1] if n == value), value)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, slice):
        yield from _numbers((value.start, value.stop, value.step))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))
