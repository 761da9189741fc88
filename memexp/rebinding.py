"""Functions that a network holds, and what they hold of it: those of a copy hold the copy's.

A module is copied with its attributes and hooks, but Python copies no function: `self.block = lambda x: self.b(self.a(x))`, or
a hook that stores features in `self`, would go on with the layers and tables of the network that was copied.
"""

import copy
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import WRAPPER_ASSIGNMENTS, _lru_cache_wrapper, lru_cache, partial
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

REMADE = (FunctionType, MethodType, BuiltinMethodType, partial, _lru_cache_wrapper, weakref.ref, tuple)
FILLED = (list, dict, nn.Module)
HOLDING = (*REMADE, *FILLED)
PLAIN = frozenset({bool, int, float, str, type(None)})  # most of a list of data that a function holds


def copy_of(network: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy, whose functions (attributes, hooks) are of its own modules.

    memo: by id, what takes the place of a tensor.
    """
    copies = dict(memo or {})
    made = copy.deepcopy(network, copies)
    originals = copies.get(id(copies))  # which deepcopy keeps alive there
    _Rebinding(
        network, copies, [x for x in copies.values() if x is not originals and not isinstance(x, (Tensor, *REMADE))]
    )
    return made


def replace(network: nn.Module, places: Mapping[int, Any]) -> None:
    """What the attributes and hooks of `network` hold, in lists, tables and functions, is what takes its place, by id."""
    found: dict[int, Any] = {id(module): module for module in network.modules()}
    waiting = [part for module in found.values() for part in vars(module).values()]
    while waiting:
        held = waiting.pop()
        if isinstance(held, list | dict | deque | tuple) and id(held) not in found:
            found[id(held)] = held
            waiting += _listed(held)
    _Rebinding(network, places, [held for held in found.values() if not isinstance(held, tuple)])


class _Rebinding:
    """Each of `holders` is refilled; what functions hold is new where it holds a key of `places`, and else stays the same.

    A cell that functions share stays shared. A module that only a function or a list holds is new where it is made of parts of
    the network; one that holds the whole `network` is around it, and stays.
    """

    def __init__(self, network: nn.Module, places: Mapping[int, Any], holders: Iterable[Any]) -> None:
        self._network, self._places = network, places
        self._done = set(map(id, holders))  # in which nothing more is to be looked for
        self._made: dict[int, tuple[Any, Any]] = {}  # by id the old one, so that no other gets its id, and the new one
        self._cells: dict[int, CellType] = {}
        for holder in holders:
            if isinstance(holder, list | dict | deque):
                self._refill(holder)
            if hasattr(holder, "__dict__"):
                self._refill(vars(holder))

    def _refill(self, held: dict[Any, Any] | list[Any] | deque[Any]) -> None:
        if isinstance(held, dict) and any(self._of(key) is not key for key in held):
            items = [(self._of(key), value) for key, value in held.items()]
            held.clear()
            held.update(items)
        for key, value in list(held.items() if isinstance(held, dict) else enumerate(held)):
            if (new := self._of(value)) is not value:
                held[key] = new

    def _of(self, value: Any) -> Any:
        """What takes the place of a value, itself where it holds nothing of the network."""
        if id(value) in self._places:
            value = self._places[id(value)]
            if not isinstance(value, REMADE):  # a tuple was copied with the functions in it
                return value
        if not isinstance(value, HOLDING) or not self._holds(value):
            return value
        if id(value) not in self._made:
            new = self._new(value)  # which may have been made meanwhile
            self._made.setdefault(id(value), (value, new))
        return self._made[id(value)][1]

    def _holds(self, value: Any) -> bool:
        """Whether it holds something whose place is taken, in whatever depth."""
        seen: set[int] = set()
        waiting = [value]
        while waiting:
            part = waiting.pop()
            if id(part) in self._places:
                return True
            if isinstance(part, HOLDING) and id(part) not in self._done and id(part) not in seen:
                seen.add(id(part))
                waiting += [held for held in self._parts(part) if type(held) not in PLAIN]
        self._done |= seen
        return False

    def _parts(self, value: Any) -> Iterable[Any]:
        if isinstance(value, FunctionType):
            cells = [part for cell in value.__closure__ or () for part in _content(cell)]
            named = [*(value.__kwdefaults__ or {}).values(), *vars(value).values(), *self._globals(value).values()]
            return [*(value.__defaults__ or ()), *named, *cells]
        if isinstance(value, nn.Module):
            return () if any(module is self._network for module in value.modules()) else vars(value).values()
        return _listed(value) if isinstance(value, list | dict) else _opened(value)[0]

    def _new(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, REMADE):
            parts, make = _opened(value)
            return make(*map(self._of, parts))
        new = copy.copy(value)
        self._made[id(value)] = value, new  # before what it holds, which may hold it
        self._refill(vars(new) if isinstance(new, nn.Module) else new)
        return new

    def _function(self, function: FunctionType) -> FunctionType:
        cells = [cell for cell in function.__closure__ or () if any(map(self._holds, _content(cell)))]
        own = {id(cell): self._cells.setdefault(id(cell), CellType()) for cell in cells}
        closure = tuple(own.get(id(cell), cell) for cell in function.__closure__ or ())
        scope = {name: self._of(value) for name, value in self._globals(function).items()}
        scope = function.__globals__ | scope if scope else function.__globals__
        new = FunctionType(function.__code__, scope, function.__name__, None, closure)
        self._made[id(function)] = function, new
        new.__defaults__ = function.__defaults__ and tuple(map(self._of, function.__defaults__))
        new.__kwdefaults__ = {key: self._of(value) for key, value in (function.__kwdefaults__ or {}).items()} or None
        for name in WRAPPER_ASSIGNMENTS:
            setattr(new, name, getattr(function, name))
        vars(new).update({key: self._of(value) for key, value in vars(function).items()})
        for cell in cells:
            self._cells[id(cell)].cell_contents = self._of(cell.cell_contents)
        return new

    def _globals(self, function: FunctionType) -> dict[str, Any]:
        """What it reads of the network by names of its file: `net`, in a notebook."""
        found = {name: function.__globals__.get(name) for name in _names(function.__code__)}
        return {name: value for name, value in found.items() if id(value) in self._places}


def _opened(value: Any) -> tuple[Sequence[Any], Callable[..., Any]]:
    """What it holds, and what makes one like it that holds others."""
    if isinstance(value, MethodType):
        return (value.__func__, value.__self__), MethodType
    if isinstance(value, BuiltinMethodType):  # as append of a list
        return (value.__self__,), lambda own: getattr(own, value.__name__)
    if isinstance(value, partial):
        keys, count = list(value.keywords), len(value.args) + 1
        held = value.func, *value.args, *value.keywords.values()
        return held, lambda *new: partial(*new[:count], **dict(zip(keys, new[count:], strict=True)))
    if isinstance(value, _lru_cache_wrapper):
        return (value.__wrapped__,), lru_cache(**value.cache_parameters())
    if isinstance(value, weakref.ref):
        return (value(),), lambda new: weakref.ref(new, value.__callback__)
    return value, lambda *new: getattr(value, "_make", type(value))(new)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)


def _content(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing yet
        return []


def _listed(held: Any) -> Iterable[Any]:
    return [*held, *held.values()] if isinstance(held, dict) else held
