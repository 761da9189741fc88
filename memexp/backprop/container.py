"""A container of steps, as `nn.Sequential` is one of layers: they are registered as "0", "1", ..., and come and go.

What a strategy's options say of steps by their indices goes with the steps, and so do names of their own.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, overload

from torch import nn

from memexp.backprop.door import check_steps
from memexp.backprop.step import Step

BY_INDEX = {"stored", "light"}  # options that are sets of indices of steps
Places = list[tuple[int | None, nn.Module]]  # steps, and where each stood before


class Container(Step):
    """Steps in order. What derives from it says in `_accept` which it takes, and in `_like` what a part of it is.

    Attributes:
        options: of the strategy.
    """

    options: dict[str, Any]

    def _accept(self, steps: list[nn.Module], options: dict[str, Any]) -> None:
        """These are the options from now on. Raises ValueError for steps that do not go together, or with them."""
        raise NotImplementedError

    def _like(self, steps: list[nn.Module], options: dict[str, Any]) -> "Container":
        """Another one of these steps."""
        raise NotImplementedError

    def _take(self, places: Places, options: dict[str, Any] | None = None) -> None:
        steps = [step for _, step in places]
        check_steps(steps)
        self._accept(steps, self._options(places) if options is None else options)
        names = self._names(places)
        self._modules.clear()
        for name, step in zip(names, steps, strict=True):
            self.add_module(name, step)

    def _places(self) -> Places:
        return list(enumerate(self))

    def _options(self, places: Places) -> dict[str, Any]:
        moved = {
            word: frozenset(
                i for i, (place, _) in enumerate(places) if place is not None and place in self.options[word]
            )
            for word in BY_INDEX & self.options.keys()
        }
        return self.options | moved

    def _names(self, places: Places) -> list[str]:
        """Numbers, unless the steps have names of their own."""
        before, numbers = list(self._modules), [str(i) for i in range(len(places))]
        if before == [str(i) for i in range(len(before))]:
            return numbers
        names = [number if place is None else before[place] for number, (place, _) in zip(numbers, places, strict=True)]
        return names if len(set(names)) == len(names) else numbers

    def _part(self, places: Places) -> "Container":
        part = self._like([step for _, step in places], self._options(places))
        part.rename(self._names(places))
        return part

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> "Container": ...
    def __getitem__(self, index: int | slice) -> nn.Module:
        return self._part(self._places()[index]) if isinstance(index, slice) else list(self)[index]

    def __setitem__(self, index: int | slice, step: Any) -> None:
        places = self._places()
        if isinstance(index, slice):
            places[index] = _new(step)
        else:
            places[index] = places[index][0], step
        self._take(places)

    def __delitem__(self, index: int | slice) -> None:
        places = self._places()
        del places[index]
        self._take(places)

    def pop(self, index: int | slice = -1) -> nn.Module:
        """Takes out a step, or a slice of them, and returns it."""
        found = self[index]
        del self[index]
        return found

    def append(self, step: nn.Module) -> Self:
        return self.extend([step])

    def extend(self, steps: Iterable[nn.Module]) -> Self:
        """Of a Chain with the same strategy its options, too, as far as they say something of steps."""
        self._take([*self._places(), *_new(steps)])
        return self

    def insert(self, index: int, step: nn.Module) -> Self:
        places = self._places()
        places.insert(index, (None, step))
        self._take(places)
        return self

    def __add__(self, steps: Iterable[nn.Module]) -> "Container":
        """The steps of both, with this one's strategy."""
        return self._part(self._places()).extend(steps)

    def __iadd__(self, steps: Iterable[nn.Module]) -> Self:
        return self.extend(steps)

    def __mul__(self, times: int) -> "Container":
        """The steps so many times, with weights that are tied."""
        return self._part(self._places() * times)

    __rmul__ = __mul__

    def __imul__(self, times: int) -> Self:
        self._take(self._places() * times)
        return self

    def rename(self, names: Sequence[str]) -> None:
        """Registers the steps under these names, as an nn.Sequential of named layers does."""
        steps = list(self)
        self._modules.clear()
        for name, step in zip(names, steps, strict=True):
            self.add_module(name, step)


def _new(steps: Iterable[nn.Module]) -> Places:
    return [(None, step) for step in steps]
