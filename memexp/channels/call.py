"""One operation as its rule sees it."""

from functools import cache
from typing import Any

from torch import Tensor

from memexp.channels.planes import Plane, Planes
from memexp.channels.tape import Tape


@cache
def _defaults(func: Any) -> dict[str, Any]:
    """The arguments of an operation in order, and their defaults."""
    arguments = func._schema.arguments
    return {a.name: a.default_value if a.has_default_value() else None for a in arguments}


_name = cache(str)


class Call:
    """One operation: its arguments by name, its output, and the tape."""

    def __init__(self, tape: Tape, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.tape, self.func, self.out = tape, func, out
        self.arguments: dict[str, Any] = dict(_defaults(func))
        self.arguments.update(zip(self.arguments, args, strict=False))
        self.arguments.update(kwargs)
        self._planes: dict[int, tuple[Tensor, Planes]] = {}  # looked up once: by id of a tensor that is held here

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def first(self) -> Any:
        return next(iter(self.arguments.values()))

    @property
    def name(self) -> str:
        return _name(self.func)

    def planes(self, tensor: Tensor | None) -> Planes:
        if tensor is None:
            return []
        if id(tensor) not in self._planes:
            self._planes[id(tensor)] = tensor, self.tape.planes(tensor)
        return self._planes[id(tensor)][1]

    def freeze(self, plane: Plane, why: str) -> None:
        self.tape.atoms.freeze(plane, f"{self.name}: {why}")

    def dim(self, dim: int, tensor: Tensor | None = None) -> int:
        """A dimension counted from the front."""
        ndim = (self.first if tensor is None else tensor).ndim
        return dim + ndim if dim < 0 else dim
