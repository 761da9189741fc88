"""Objects that a Chain's call hands to its steps, seen by a recomputation as the first pass saw them.

A block appends its keys to a cache that it is handed, or its output to a list: evaluated once more, it would find what it had
left there itself and give another gradient. So what stands in such objects, in their attributes, lists, dicts and sets, and in
what these hold, is noted before the first pass and put back around each later evaluation. A tensor there that is written in
place cannot be put back, and is refused.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
        self._places: list[Any] = []  # what can be changed: lists, dicts, sets, the attributes of an object as a dict
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
                contents = _contents(place)
                self._names.append(name)
                self._places.append(place)
                self._before.append(contents)
                waiting += _listed(contents)

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
        moved = set(self._moved(map(_contents, self._places)))
        self.changed = sorted({self._names[index] for index in moved})
        # a list of tensors that is not changed is not to keep them in memory
        kept = [
            i for i, contents in enumerate(self._before) if i in moved or not any(map(_is_tensor, _listed(contents)))
        ]
        self._places, self._before = ([column[i] for i in kept] for column in (self._places, self._before))
        self._versions.clear()

    def put_back(self) -> None:
        """All stands again as it was noted."""
        for place, before in zip(self._places, self._before, strict=True):
            _put(place, before)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Around each later evaluation: all is as the first pass found it, and then as it was."""
        own = [*map(_contents, self._places)]
        moved = self._moved(own)
        for index in moved:
            _put(self._places[index], self._before[index])
        try:
            yield
        finally:
            for index in moved:
                _put(self._places[index], own[index])

    def order_lost(self, name: str) -> StepError:
        """What is raised where steps that have changed objects would be evaluated in another order."""
        return StepError(
            f"{name} changes what it is handed as {', '.join(self.changed)}, so that what is undone first would see what is "
            "left there last: use backprop=checkpointed, light or stored"
        )

    def replace(self, other: Callable[[Tensor], Tensor]) -> None:
        """Puts other tensors in place of those that stand in the objects now."""

        def replaced(value: Any) -> Any:
            if type(value) is tuple:
                return tuple(map(replaced, value))
            return other(value) if isinstance(value, Tensor) else value

        for place in Objects(self._handed)._places:
            contents = _contents(place)
            if isinstance(contents, dict):
                _put(place, {key: replaced(value) for key, value in contents.items()})
            else:
                _put(place, type(contents)(map(replaced, contents)))

    def _moved(self, current: Iterable[Any]) -> list[int]:
        pairs = zip(self._before, current, strict=True)
        return [index for index, (before, now) in enumerate(pairs) if not _same(before, now)]


def _listed(contents: Any) -> Iterable[Any]:
    return contents.values() if isinstance(contents, dict) else contents


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _places(found: Any) -> list[Any]:
    attributes = [vars(found)] if hasattr(found, "__dict__") else []
    return [found, *attributes] if isinstance(found, list | dict | set) else attributes


def _contents(place: Any) -> Any:
    return next(kind for kind in (dict, list, set) if isinstance(place, kind))(place)


def _put(place: Any, contents: Any) -> None:
    """Makes these the contents, past what a class of its own has in place of these methods."""
    if isinstance(place, list):
        list.__setitem__(place, slice(None), contents)
    elif isinstance(place, set):
        set.clear(place)
        set.update(place, contents)
    else:
        kind = OrderedDict if isinstance(place, OrderedDict) else dict
        for key in [key for key in place if key not in contents]:
            kind.__delitem__(place, key)
        for key, value in contents.items():
            kind.__setitem__(place, key, value)


def _same(a: Any, b: Any) -> bool:
    """Whether the very same objects stand in both."""
    if isinstance(a, dict):
        return len(a) == len(b) and all(key in b and b[key] is value for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
    return bool(a == b)
