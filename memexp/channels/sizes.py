"""Where a number in a forward comes from: the shape of a tensor, an attribute of a module, or the source itself.

`x.view(b, 8, c // 8)` splits c channels; which of the two parts becomes smaller in a narrowed network depends on what is
written there. So during a trace shapes are tuples of `Size`, an int that remembers that it came from a shape, and the whole
numbers among the attributes of modules are `Attribute`, an int that remembers whose it is. Arithmetic with a `Size` gives a
`Size`; of attributes and numbers alone it gives a `Derived`, a number that is fixed.

A length may also be a value: `x / x.shape[1]`, or `x / self.width`. What a network computes would then change with it, so what
it counts is fixed. Python does not say so of a float from the left (`0.5 * self.width`) and of math.log: that shows in what the
narrowed network computes (memexp.channels.comparing).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

from torch import nn

from memexp.channels.planes import Plane

COUNTED = "their number is itself a value that the forward computes with"
Owner = tuple[str, str, int | None]  # a module, its attribute, and the item where that is a tuple


class Derived(int):
    """A number of which it is known what it counts; made of attributes and plain numbers, it is fixed as a length.

    fix: what is called if it is used as a value. whole: what it is an equal part of, as of `self.width // 2`. lines: of a
    length, the planes of the tensor and the axis that it was read off.
    """

    fix: tuple[Callable[[], None], ...] = ()
    whole: "Derived | None" = None
    lines: tuple[tuple[Plane, int], ...] = ()

    @classmethod
    def of(cls, value: int, fix: Iterable[Callable[[], None]]) -> Self:
        number = cls(value)
        number.fix = tuple(fix)
        return number

    def used(self) -> None:
        """As a value, not as a length."""
        for fix in self.fix:
            fix()


class Size(Derived):
    """A length that was read off a tensor, so that it follows when the tensor becomes narrower."""


class Attribute(Derived):
    """The value of `module.name`, or of its item `index` where that is a tuple."""

    owner: Owner


def _follow(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operation(self: Derived, *others: Any) -> Any:
        result = plain(self, *others)
        if any(type(number) is float for number in others):
            self.used()
        numbers = [number for number in (self, *others) if isinstance(number, Derived)]
        kind = Size if any(isinstance(number, Size) for number in numbers) else Derived
        fix = dict.fromkeys(f for number in numbers for f in number.fix)
        if type(result) is int:
            number = kind.of(result, fix)
            if name == "__floordiv__" and result * int(others[0]) == int(self):
                number.whole = self
            return number
        return tuple(kind.of(n, fix) for n in result) if type(result) is tuple else result

    return operation


for _name in ("add", "sub", "mul", "floordiv", "mod", "divmod"):
    setattr(Derived, f"__{_name}__", _follow(f"__{_name}__"))
    setattr(Derived, f"__r{_name}__", _follow(f"__r{_name}__"))


def _as_value(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operation(self: Derived, *others: Any) -> Any:
        self.used()
        return plain(self, *others)

    return operation


for _name in ("truediv", "rtruediv", "pow", "rpow", "float"):
    setattr(Derived, f"__{_name}__", _as_value(f"__{_name}__"))


@contextmanager
def tracked_attributes(network: nn.Module, valued: Callable[[Owner], None]) -> Iterator[None]:
    """Inside, whole numbers among the modules' attributes remember whose they are.

    valued: is told of those that are used as values.
    """

    def tracking(value: int, *owner: Any) -> Attribute:
        number = Attribute(value)
        number.fix, number.owner = (partial(valued, owner),), owner
        return number

    changed: list[tuple[nn.Module, str, Any]] = []
    try:
        for path, module in network.named_modules():
            for name, value in list(module.__dict__.items()):
                kind = type(value)
                if (kind is not int and kind is not tuple and kind is not list) or name.startswith("_"):
                    continue
                tracked: Any = None
                if kind is int:
                    tracked = tracking(value, path, name, None)
                elif value and all(type(v) is int for v in value):
                    tracked = kind(tracking(v, path, name, i) for i, v in enumerate(value))
                if tracked is not None:
                    changed.append((module, name, value))
                    module.__dict__[name] = tracked
        yield
    finally:
        for module, name, value in changed:
            module.__dict__[name] = value
