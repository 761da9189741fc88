"""Attributes of a user's modules that a first pass sets, and what they were before it: a recomputation sees them so.

A module counts its calls, or keeps a state: evaluated once more, it would go on from where the first pass has ended. A tensor
that is written in place is not seen so, and is refused; a list or dict that a module changes, and what it writes through
`.data` or numpy, is not seen at all.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from memexp.backprop.buffers import MISSING
from memexp.backprop.errors import StepError
from memexp.backprop.escaping import alone

OWN = vars(nn.Module()).keys() | {"forward"}  # what every module has, and the recomputation sees to by itself


class Attributes:
    """Of those of the modules that are a user's own, now; once settled, of those that the first pass has set."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        owners = [m for m in modules if not type(m).__module__.startswith(("torch.", "memexp."))]
        self._before = [(m, dict(vars(m))) for m in owners]
        self._versions = [
            (m, key, value, value._version)
            for m, attributes in self._before
            for key, value in attributes.items()
            if isinstance(value, Tensor) and not value.is_inference()
        ]
        self.changed: list[tuple[nn.Module, str, Any]] = []

    def settle(self) -> None:
        """After the first pass.

        Raises:
            StepError: a tensor in an attribute was written in place.
        """
        for module, key, value, version in self._versions:
            if value._version != version:
                name = type(module).__name__
                raise StepError(
                    f"{name} writes to the tensor in its attribute {key} in place, so that it cannot be recomputed: make it a "
                    f"buffer, which is put back (register_buffer), assign a new one, self.{key} = ..., or use backprop=stored"
                )
        for module, before in self._before:
            now = vars(module)
            keys = [
                key for key in before | now if key not in OWN and before.get(key, MISSING) is not now.get(key, MISSING)
            ]
            # the graph of a pass before would stay in memory as long as this one
            name = type(module).__name__
            values = [before.get(key, MISSING) for key in keys]
            values = [alone(v, 0, name) if isinstance(v, Tensor) else v for v in values]
            self.changed += [(module, key, value) for key, value in zip(keys, values, strict=True)]
        self._before.clear()
        self._versions.clear()

    def put_back(self) -> None:
        for module, key, value in self.changed:
            put(module, key, value)


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
