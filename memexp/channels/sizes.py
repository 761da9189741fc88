"""Where a number in a forward comes from: the shape of a tensor, an attribute of a module, or the source itself.

`x.view(b, 8, c // 8)` splits c channels; which of the two parts becomes smaller in a narrowed network depends on what is
written there. So during a trace shapes are tuples of `Size`, an int that remembers that it came from a shape, and the whole
numbers among the attributes of modules are `Attribute`, an int that remembers whose it is. Arithmetic with a `Size` gives a
`Size`; of attributes and numbers alone it gives a number that is fixed.

A length may also be a value: `x / x.shape[1]`. What a network computes would then change with it, so what it counts is fixed.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Size(int):
    """A length that was read off a tensor, so that it follows when the tensor becomes narrower.

    fix: what is called if it is used as a value.
    """

    fix: tuple[Callable[[], None], ...] = ()

    @classmethod
    def of(cls, value: int, fix: Iterable[Callable[[], None]]) -> "Size":
        size = cls(value)
        size.fix = tuple(fix)
        return size

    def used(self) -> None:
        """As a value, not as a length."""
        for fix in self.fix:
            fix()


class Attribute(int):
    """The value of `module.name`, or of its item `index` where that is a tuple."""

    module: str
    name: str
    index: int | None

    @classmethod
    def of(cls, value: int, module: str, name: str, index: int | None = None) -> "Attribute":
        number = cls(value)
        number.module, number.name, number.index = module, name, index
        return number


def _follow(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operation(self: int, *others: Any) -> Any:
        result = plain(self, *others)
        if not any(isinstance(number, Size) for number in (self, *others)):
            return result
        fix = dict.fromkeys(f for number in (self, *others) if isinstance(number, Size) for f in number.fix)
        if type(result) is int:
            return Size.of(result, fix)
        return tuple(Size.of(n, fix) for n in result) if type(result) is tuple else result

    return operation


for _name in ("add", "sub", "mul", "floordiv", "mod", "divmod"):
    for _kind in (Size, Attribute):
        setattr(_kind, f"__{_name}__", _follow(f"__{_name}__"))
        setattr(_kind, f"__r{_name}__", _follow(f"__r{_name}__"))


def _as_value(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operation(self: Size, *others: Any) -> Any:
        self.used()
        return plain(self, *others)

    return operation


for _name in ("truediv", "rtruediv", "pow", "rpow", "float"):
    setattr(Size, f"__{_name}__", _as_value(f"__{_name}__"))


@contextmanager
def tracked_attributes(network: nn.Module) -> Iterator[None]:
    """Inside, whole numbers among the modules' attributes remember whose they are."""
    changed: list[tuple[nn.Module, str, Any]] = []
    try:
        for path, module in network.named_modules():
            for name, value in list(module.__dict__.items()):
                if name.startswith("_") or name == "training":
                    continue
                tracked: Any = None
                if type(value) is int:
                    tracked = Attribute.of(value, path, name)
                elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
                    tracked = type(value)(Attribute.of(v, path, name, i) for i, v in enumerate(value))
                if tracked is not None:
                    changed.append((module, name, value))
                    module.__dict__[name] = tracked
        yield
    finally:
        for module, name, value in changed:
            module.__dict__[name] = value
