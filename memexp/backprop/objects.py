"""Objects that a Chain's call hands to its steps, seen by a recomputation as the first pass saw them.

A block appends its keys to a cache that it is handed, or its output to a list: evaluated once more, it would find what it had
left there itself and give another gradient. So what stands in such objects, in their attributes, lists, deques, dicts and sets,
and in what these hold, is noted before the first pass and put back around each later evaluation. A tensor there that is written
in place cannot be put back, and is refused.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from memexp.backprop.errors import StepError

UNCHANGING = (
    str, bytes, int, float, complex, type(None), type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, nn.Module,
    TreeSpec, torch.dtype, torch.device, torch.Generator,
)  # fmt: skip
CONTAINERS = (list, deque, dict, set)


@runtime_checkable
class Holder(Protocol):
    """Holds what is handed in, and is itself none of it."""

    def held(self) -> Iterable[Any]: ...


class Objects:
    """What stands in the objects among `handed`, by name, now.

    Attributes:
        changed: the names of those that the first pass has changed, once it is settled.
    """

    def __init__(self, handed: Mapping[str, Any]) -> None:
        self.changed: list[str] = []
        self._handed = handed
        self._names: list[str] = []
        self._places: list[Any] = []  # what can be changed: containers, the attributes of an object as a dict
        self._before: list[Any] = []
        self._versions: list[tuple[str, Tensor, int]] = []
        for name, value in handed.items():
            if not isinstance(value, Tensor):
                self._note(name, value)

    def _note(self, name: str, value: Any) -> None:
        seen: set[int] = set()
        waiting = [value]
        while waiting:
            found = waiting.pop()
            if isinstance(found, UNCHANGING) or id(found) in seen:
                continue
            seen.add(id(found))
            if isinstance(found, Tensor):
                if not found.is_inference():
                    self._versions.append((f"{name} (a {type(value).__name__})", found, found._version))
                continue
            if isinstance(found, tuple | frozenset):
                waiting += found
            if isinstance(found, Holder):
                waiting += found.held()
            for place in _places(found):
                held = contents(place)
                self._names.append(name)
                self._places.append(place)
                self._before.append(held)
                waiting += listed(held)

    def settle(self) -> None:
        """After the first pass.

        Raises:
            StepError: a tensor in an object was written in place.
        """
        for name, tensor, version in self._versions:
            if tensor._version != version:
                raise StepError(
                    f"a tensor of shape {tuple(tensor.shape)} in what is handed in as {name} is written in place, so that the "
                    "step cannot be recomputed: hand in none, or use backprop=stored or light"
                )
        pairs = zip(self._places, self._before, strict=True)
        moved = {index for index, (place, before) in enumerate(pairs) if differs(place, before)}
        self.changed = sorted({self._names[index] for index in moved})
        # a list of tensors that is not changed is not to keep them in memory
        kept = [i for i, before in enumerate(self._before) if i in moved or not any(map(_is_tensor, listed(before)))]
        self._places, self._before = ([column[i] for i in kept] for column in (self._places, self._before))
        self._versions.clear()

    def put_back(self) -> None:
        """All stands again as it was noted."""
        for place, before in zip(self._places, self._before, strict=True):
            refill(place, before)

    def again(self) -> AbstractContextManager[None]:
        """Around each later evaluation: all is as the first pass found it, and then as it was."""
        return holding(zip(self._places, self._before, strict=True))

    def order_lost(self, name: str) -> StepError:
        """What is raised where steps that have changed objects would be evaluated in another order."""
        return StepError(
            f"{name} changes what it is handed as {', '.join(self.changed)}, so that what is undone first would see what is "
            "left there last: use backprop=checkpointed, light or stored"
        )

    def replace(self, other: Callable[[Tensor], Tensor]) -> None:
        """Puts other tensors in place of those that stand in the objects now."""
        for place in Objects(self._handed)._places:
            refill(place, with_tensors(contents(place), other))


@contextmanager
def holding(pairs: Iterable[tuple[Any, Any]]) -> Iterator[None]:
    """Inside, each of the places has the contents beside it, and then its own again."""
    pairs = list(pairs)
    own = [contents(place) for place, _ in pairs]
    try:
        for place, before in pairs:
            if differs(place, before):
                refill(place, before)
        yield
    finally:
        for (place, _), held in zip(pairs, own, strict=True):
            if differs(place, held):
                refill(place, held)


def with_tensors(held: Any, other: Callable[[Tensor], Tensor]) -> Any:
    """The contents of a place with other tensors."""
    if isinstance(held, dict):
        return {key: _replaced(value, other) for key, value in held.items()}
    return type(held)(_replaced(value, other) for value in held)


def _replaced(value: Any, other: Callable[[Tensor], Tensor]) -> Any:
    # no function within a function: one that calls itself would hold `other`, and with it a whole pass, until the next gc
    if type(value) is tuple:
        return tuple(_replaced(part, other) for part in value)
    return other(value) if isinstance(value, Tensor) else value


def listed(held: Any) -> Iterable[Any]:
    """What stands in the contents of a place, or in a container."""
    return held.values() if isinstance(held, dict) else held


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _places(found: Any) -> list[Any]:
    attributes = [vars(found)] if hasattr(found, "__dict__") else []
    return [found, *attributes] if isinstance(found, CONTAINERS) else attributes


def contents(place: Any) -> Any:
    """A copy of what stands in a container."""
    kind = _kind(place)
    return list(place) if kind is deque else kind(place)


def _kind(place: Any) -> Any:
    own = type(place)
    return own if own in CONTAINERS else next(kind for kind in CONTAINERS if isinstance(place, kind))


def refill(place: Any, held: Any) -> None:
    """Makes these the contents, past what a class of its own has in place of these methods."""
    if isinstance(place, list):
        list.__setitem__(place, slice(None), held)
    elif isinstance(place, deque):
        deque.clear(place)
        deque.extend(place, held)
    elif isinstance(place, set):
        set.clear(place)
        set.update(place, held)
    else:
        kind = OrderedDict if isinstance(place, OrderedDict) else dict
        for key in [key for key in place if key not in held]:
            kind.__delitem__(place, key)
        for key, value in held.items():
            kind.__setitem__(place, key, value)


def differs(place: Any, held: Any) -> bool:
    """Whether not the very same objects stand in it."""
    now = place if type(place) in CONTAINERS else contents(place)
    if len(now) != len(held):
        return True
    if isinstance(held, set):
        return bool(now != held)
    if not all(map(is_, now, held)):
        return True
    return isinstance(held, dict) and not all(map(is_, now.values(), held.values()))
