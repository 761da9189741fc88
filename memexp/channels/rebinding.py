"""Functions that a network holds, and what they hold of it: those of a copy hold the copy's.

A module is copied with its attributes and hooks, but Python copies no function: `self.block = lambda x: self.b(self.a(x))`, or
a hook that stores features in `self`, would go on with the layers and tables of the network that was copied.
"""

import weakref
from collections.abc import Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def rebind(network: nn.Module, copies: Mapping[int, Any]) -> None:
    """What the attributes and hooks of `network` hold, in lists, tables and functions, is what has taken its place.

    copies: that, by id of what it was: of a copy as copy.deepcopy leaves it in its memo, or modules in the places of others.
    """
    rebinding = _Rebinding(copies)
    for module in list(network.modules()):
        rebinding.within(vars(module))


class _Rebinding:
    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = copies
        self._made: dict[int, Any] = {}  # by id of what each takes the place of; a function may hold itself
        self._cells: dict[int, CellType] = {}  # which functions share
        self._seen: set[int] = set()

    def within(self, container: dict[Any, Any] | list[Any]) -> None:
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if isinstance(value, dict | list):
                self.within(value)
            elif (new := self._rebound(value)) is not value:
                container[key] = new

    def _rebound(self, value: Any) -> Any:
        """What takes the place of a value that a function or a tuple holds, itself where it holds nothing of the network."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, MethodType) and id(value.__self__) in self._copies:
            return MethodType(value.__func__, self._copies[id(value.__self__)])
        if isinstance(value, weakref.ref) and id(value()) in self._copies:
            return weakref.ref(self._copies[id(value())])
        if isinstance(value, FunctionType) or type(value) in (tuple, list, dict):
            if id(value) not in self._made:
                self._made[id(value)] = value
                self._made[id(value)] = self._function(value) if isinstance(value, FunctionType) else self._parts(value)
            return self._made[id(value)]
        return value

    def _parts(self, value: Any) -> Any:
        before = list(value.values()) if isinstance(value, dict) else list(value)
        after = list(map(self._rebound, before))
        if all(one is other for one, other in zip(before, after, strict=True)):
            return value
        return dict(zip(value, after, strict=True)) if isinstance(value, dict) else type(value)(after)

    def _function(self, function: FunctionType) -> Any:
        cells = function.__closure__ or ()
        new = FunctionType(
            function.__code__, function.__globals__, function.__name__, None, tuple(map(self._cell, cells))
        )
        self._made[id(function)] = new
        before = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        after = list(map(self._rebound, before))
        for cell in cells:
            try:
                before.append(cell.cell_contents)
            except ValueError:  # nothing yet
                continue
            after.append(self._rebound(before[-1]))
            self._cell(cell).cell_contents = after[-1]
        if all(one is other for one, other in zip(before, after, strict=True)):
            return function
        count = len(function.__defaults__ or ())
        new.__defaults__ = tuple(after[:count]) or None
        new.__kwdefaults__ = dict(zip(function.__kwdefaults__ or {}, after[count:], strict=False)) or None
        new.__qualname__, new.__module__, new.__doc__ = function.__qualname__, function.__module__, function.__doc__
        new.__dict__.update(function.__dict__)
        return new

    def _cell(self, cell: CellType) -> CellType:
        return self._cells.setdefault(id(cell), CellType())
