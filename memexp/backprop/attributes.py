"""Attributes of a user's modules that a first pass sets, and what they were before it: a recomputation sees them so.

A module counts its calls, or keeps a state: evaluated once more, it would go on from where the first pass has ended. So with
what stands in lists, deques, dicts and sets that are attributes, and in such within these. Numbers, texts and tensors without a
gradient are what they were when the branch was entered, whoever has set them: the time of a function that steps share.
A tensor that is written in place is not put back, and is refused; what a module writes through `.data` or numpy, and other
objects that it changes, are not seen.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from memexp.backprop.buffers import MISSING
from memexp.backprop.errors import StepError
from memexp.backprop.escaping import alone
from memexp.backprop.objects import CONTAINERS, contents, differs, holding, listed, refill, with_tensors

OWN = vars(nn.Module()).keys() | {"forward"}  # what every module has, and the recomputation sees to by itself
Plain = list[tuple[nn.Module, dict[str, Any]]]  # modules and attributes
NOTED = (Tensor, tuple, *CONTAINERS)
STATELESS = ("torch.", "memexp.backprop.", "memexp.models.")  # whose modules set no attributes that count as they run


class Attributes:
    """Of those of the modules that may set some, now; once settled, of those that the first pass has set or changed."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        owners = [m for m in modules if not type(m).__module__.startswith(STATELESS)]
        self._before = [(m, dict(vars(m))) for m in owners]
        self._versions: list[tuple[str, str, Tensor, int]] = []
        self._held: dict[int, tuple[str, Any, Any]] = {}  # containers with what stands in them, and whose they are
        for module, attributes in self._before:
            for key in attributes.keys() - OWN:
                if isinstance(attributes[key], NOTED):
                    self._note(type(module).__name__, key, attributes[key])
        self.plain = [
            (module, {k: v for k, v in held.items() if k not in OWN and _is_plain(v)}) for module, held in self._before
        ]
        self.set: list[tuple[nn.Module, str, Any]] = []
        self.filled: list[tuple[Any, Any]] = []

    def _note(self, name: str, key: str, value: Any) -> None:
        waiting = [value]
        while waiting:
            found = waiting.pop()
            if isinstance(found, Tensor):
                if not found.is_inference():
                    self._versions.append((name, key, found, found._version))
            elif id(found) not in self._held:
                held = found if isinstance(found, tuple) else contents(found)
                if held is not found:
                    self._held[id(found)] = name, found, held
                waiting += [part for part in listed(held) if isinstance(part, NOTED)]

    def settle(self) -> bool:
        """After the first pass. Gives whether it has set or changed any.

        Raises:
            StepError: a tensor in an attribute was written in place.
        """
        for name, key, value, version in self._versions:
            if value._version != version:
                raise StepError(
                    f"{name} writes to the tensor in its attribute {key} in place, so that it cannot be recomputed: make it a "
                    f"buffer, which is put back (register_buffer), assign a new one, self.{key} = ..., or use backprop=stored"
                )
        for module, before in self._before:
            now = vars(module)
            if not differs(now, before):
                continue
            keys = [
                key for key in before | now if key not in OWN and before.get(key, MISSING) is not now.get(key, MISSING)
            ]
            # the graph of a pass before would stay in memory as long as this one
            name = type(module).__name__
            values = [before.get(key, MISSING) for key in keys]
            values = [alone(v, 0, name) if isinstance(v, Tensor) else v for v in values]
            self.set += [(module, key, value) for key, value in zip(keys, values, strict=True)]
        for name, place, held in self._held.values():
            if differs(place, held):
                self.filled.append((place, with_tensors(held, partial(alone, begun=0, name=name))))
        self._before.clear()
        self._versions.clear()
        self._held.clear()
        return bool(self.set or self.filled)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Around a later evaluation: all is as the first pass found it, and then as it was."""
        with lent(self.set), holding(self.filled):
            yield

    def put_back(self) -> None:
        for module, key, value in self.set:
            put(module, key, value)
        for place, held in self.filled:
            refill(place, held)


def _is_plain(value: object) -> bool:
    """Whether it can be kept as it is: it does not change by itself, and no graph hangs on it."""
    return (
        value is None
        or isinstance(value, int | float | complex | str)
        or (isinstance(value, Tensor) and not value.requires_grad)
    )


def alike(some: Plain, others: Plain) -> bool:
    """Whether modules that stand in both have the same attributes in both."""
    known: dict[nn.Module, list[dict[str, Any]]] = {}
    for module, held in some:
        known.setdefault(module, []).append(held)
    return not any(differs(mine, held) for module, held in others for mine in known.get(module, []))


_lent: dict[nn.Module, int] = {}  # modules that have others now, and the thread in which they are recomputed


@contextmanager
def lent(values: list[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    """The modules have these attributes, and then their own again.

    Raises:
        RuntimeError: they have others by another thread.
    """
    modules = {module for module, _, _ in values}
    new = [module for module in modules if module not in _lent]
    for module in new:
        _lent.setdefault(module, get_ident())
    own: list[Any] = []
    try:
        check_thread(modules)
        own += [vars(module).get(name, MISSING) for module, name, _ in values]
        for module, name, value in values:
            put(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(values, own, strict=False):
            put(module, name, value)
        for module in new:
            if _lent.get(module) == get_ident():
                del _lent[module]


def check_thread(modules: Iterable[nn.Module]) -> None:
    """Raises RuntimeError where one of them is being recomputed in another thread."""
    if not _lent:
        return
    own = get_ident()
    if others := [module for module in modules if _lent.get(module, own) != own]:
        raise RuntimeError(
            f"a {type(others[0]).__name__} is recomputed in one thread and evaluated in another at the same time, which would "
            "see its modes and buffers as they were before: let one thread at a time train a network, give each a copy of it "
            "(copy.deepcopy), or use backprop=stored or light"
        )


def put(module: nn.Module, key: str, value: Any) -> None:
    """Makes it the attribute, or makes that MISSING, past what the module has in place of assigning."""
    if value is MISSING:
        vars(module).pop(key, None)
    else:
        vars(module)[key] = value
