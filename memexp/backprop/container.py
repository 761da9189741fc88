"""A container of steps, as `nn.Sequential` is one of layers: they are registered as "0", "1", ..., and come and go."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from torch import nn

from memexp.backprop.door import check_steps
from memexp.backprop.step import Step


class Container(Step):
    """Steps in order. What derives from it says in `_accept` which it takes."""

    def _accept(self, steps: list[nn.Module]) -> None:
        """Raises ValueError for steps that do not go together."""
        raise NotImplementedError

    def _take(self, steps: list[nn.Module]) -> None:
        check_steps(steps)
        self._accept(steps)
        self._modules.clear()
        for index, step in enumerate(steps):
            self.add_module(str(index), step)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    def __setitem__(self, index: int, step: nn.Module) -> None:
        steps = list(self)
        steps[index] = step
        self._take(steps)

    def __delitem__(self, index: int | slice) -> None:
        steps = list(self)
        del steps[index]
        self._take(steps)

    def append(self, step: nn.Module) -> Self:
        return self.extend([step])

    def extend(self, steps: Iterable[nn.Module]) -> Self:
        self._take([*self, *steps])
        return self

    def insert(self, index: int, step: nn.Module) -> Self:
        steps = list(self)
        steps.insert(index, step)
        self._take(steps)
        return self

    def rename(self, names: Sequence[str]) -> None:
        """Registers the steps under these names, as an nn.Sequential of named layers does."""
        steps = list(self)
        self._modules.clear()
        for name, step in zip(names, steps, strict=True):
            self.add_module(name, step)
