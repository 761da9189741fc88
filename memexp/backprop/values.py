"""Values that a light step keeps or remakes, and the operations that make them; what is written to is another value."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

Geometry = tuple[torch.Size, tuple[int, ...], Any]


class Value:
    """What a storage holds between two writes to it.

    Attributes:
        kept: the tensor, if it stays in memory until backward; `version` as autograd counts writes to it.
        source: the operation that makes it again, None where it is dear; `index` among its results.
        uses: how often autograd has saved it though it is dropped.
        depth: of dropped values that it is made of, with itself.
    """

    __slots__ = (
        "__weakref__", "depth", "entered", "free", "geometry", "held", "index", "kept", "kind", "lost", "nbytes", "source",
        "uses", "version", "waiting", "weak",
    )  # fmt: skip

    def __init__(self, tensor: Tensor, source: "Operation | None" = None, index: int = 0) -> None:
        self.geometry = geometry(tensor)
        self.kind = kind(tensor)
        self.nbytes = tensor.untyped_storage().nbytes()  # all of it is kept with any view of it
        self.source, self.index = source, index
        self.free = isinstance(tensor, nn.Parameter)  # stays in memory anyway
        self.weak = TensorWeakRef(tensor) if source is None else None
        self.kept: Tensor | None = None
        self.version = 0
        self.entered = False  # often in memory for others, too
        self.lost = False  # written over
        self.uses = self.waiting = self.depth = 0
        self.held: Tensor | None = None  # remade, until all who saved it have had it

    def written(self, tensor: Tensor, source: "Operation | None") -> "Value":
        """The next value of the same storage, after a write through `tensor`."""
        found = Value(tensor, source)
        if source is not None:
            found.geometry, found.kind, found.nbytes = self.geometry, self.kind, self.nbytes
        return found

    def keep(self, tensor: Tensor) -> None:
        self.kept, self.version = tensor, tensor._version
        self.source = None

    def tensor(self) -> Tensor:
        """The value, remade if it is not kept.

        Raises:
            RuntimeError: the kept tensor was written to since, by something outside of what was followed.
        """
        if self.kept is not None:
            return unchanged(self.kept, self.version)
        if self.held is not None:
            return self.held
        assert self.source is not None
        made = self.source.again(self.index)
        if (made.stride(), made.storage_offset()) != self.geometry[1:]:
            made = torch.empty_strided(*self.geometry[:2], dtype=made.dtype, device=made.device).copy_(made)
        if self.uses:
            self.held, self.waiting = made, self.uses
        return made


class Operation:
    """One that was done. arguments: in place of each tensor, in lists, too, a tuple, its value and geometry.
    target: the argument that it writes to and that is its result.
    """

    __slots__ = ("arguments", "function", "kwargs", "target")

    def __init__(self, function: Any, arguments: list[Any], kwargs: Any, target: int | None) -> None:
        self.function, self.arguments, self.kwargs, self.target = function, arguments, kwargs, target

    @property
    def values(self) -> Iterator[Value]:
        for argument in self.arguments:
            if type(argument) is tuple:
                yield argument[0]
            elif type(argument) is list:
                yield from (part[0] for part in argument if type(part) is tuple)

    def again(self, index: int) -> Tensor:
        arguments: list[Any] = []
        root: Tensor | None = None
        for position, argument in enumerate(self.arguments):
            if type(argument) is list:
                argument = [_tensor(*part) if type(part) is tuple else part for part in argument]
            elif type(argument) is tuple:
                value, shape = argument
                argument = value.tensor()
                if position == self.target:
                    root = argument = copied(argument) if argument is value.kept or argument is value.held else argument
                argument = argument if shape == value.geometry else argument.as_strided(*shape)
            arguments.append(argument)
        out = self.function(*arguments, **self.kwargs)
        if root is not None:
            return root
        made: Tensor = out if isinstance(out, Tensor) else out[index]
        return made


def _tensor(value: Value, shape: Geometry) -> Tensor:
    tensor = value.tensor()
    return tensor if shape == value.geometry else tensor.as_strided(*shape)


def copied(tensor: Tensor) -> Tensor:
    """A copy with all that its storage holds, in which other views of that find their places."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((size,), (1,), 0).clone().as_strided(*geometry(tensor))


def unchanged(tensor: Tensor, version: int) -> Tensor:
    if tensor._version != version:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} that backward needs was changed in place since the forward pass (it is "
            f"at version {tensor._version}, expected {version}): run backward first, or use an operation that is not in place"
        )
    return tensor


def geometry(tensor: Tensor) -> Geometry:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def kind(tensor: Tensor) -> tuple[torch.dtype, bool, bool]:
    """What its bits stand for: a view may read those of another as integers, as real and imaginary parts, conjugated."""
    return tensor.dtype, tensor.is_conj(), tensor.is_neg()
