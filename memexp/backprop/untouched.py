"""A network that is run for what it shows, and is as before afterwards: its weights, buffers and attributes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from memexp.backprop.attributes import OWN
from memexp.backprop.objects import CONTAINERS, contents, listed, refill


@contextmanager
def untouched(network: nn.Module, weights: bool = True) -> Iterator[None]:
    """Afterwards each module has the attributes that it had, with the values that they had.

    A forward may fill a table at its first call, count calls, keep its latest input, set parameters by its first batch. One
    may tell about another, as a flag that a buffer has been filled.

    Args:
        weights: also the values of parameters, of which a copy is kept so long.
    """
    attributes = [(module, type(module), dict(vars(module))) for module in network.modules()]
    noted = _Noted(weights)
    for _, kind, own in attributes:
        engine = kind.__module__.startswith("memexp.backprop.")  # which keeps there what it has to say
        for name, value in own.items():
            if name in OWN or not engine:
                noted.add(value)
    try:
        yield
    finally:
        for module, kind, own in attributes:
            if type(module) is kind:  # a lazy layer knows its sizes from its first forward on
                vars(module).clear()
                vars(module).update(own)
        noted.put_back()


class _Noted:
    """Containers with what stands in them, and tensors with their values."""

    def __init__(self, weights: bool) -> None:
        self._weights = weights
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._values: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            empty = value.is_meta or isinstance(value, FakeTensor)
            left = is_lazy(value) or empty or (isinstance(value, nn.Parameter) and not self._weights)
            if id(value) not in self._values and not left:
                self._values[id(value)] = value, value.detach().clone()
        elif isinstance(value, CONTAINERS) and id(value) not in self._contents:
            held = contents(value)
            self._contents[id(value)] = value, held
            for part in listed(held):
                self.add(part)
        elif isinstance(value, tuple):
            for part in value:
                self.add(part)

    def put_back(self) -> None:
        for container, before in self._contents.values():
            refill(container, before)
        for tensor, value in self._values.values():
            if tensor.layout is not torch.strided:  # torch does not compare all, and writes to them by themselves alone
                with torch.no_grad():
                    tensor.copy_(value)
            elif not torch.equal(tensor.data, value):
                tensor.data.copy_(value)  # without a new version: it is the old one
