"""A network that is run for what it shows, and is as before afterwards: its buffers and attributes."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from memexp.backprop.attributes import OWN
from memexp.backprop.objects import CONTAINERS, contents, differs, listed, refill

# most of what modules have, in which there is nothing or nothing to note: a network has thousands
PLAIN = frozenset({bool, int, float, str, type(None), nn.Parameter})
OFTEN_EMPTY = (dict, OrderedDict)


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Afterwards each module has the attributes that it had, with the values that they had, but for what is in parameters.

    A forward may fill a table at its first call, count calls, keep its latest input. One may tell about another, as a flag that
    a buffer has been filled.
    """
    attributes = [(module, type(module), dict(vars(module))) for module in network.modules()]
    noted = _Noted()
    for _, kind, own in attributes:
        engine = kind.__module__.startswith("memexp.backprop.")  # which keeps there what it has to say
        for name, value in own.items():
            if type(value) not in PLAIN and (name in OWN or not engine):
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

    def __init__(self) -> None:
        self._empty: list[Any] = []
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._values: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, value: Any) -> None:
        kind = type(value)
        if kind in PLAIN:
            return
        if kind in OFTEN_EMPTY and not value:
            self._empty.append(value)
        elif isinstance(value, CONTAINERS):
            if id(value) not in self._contents:
                held = contents(value)
                self._contents[id(value)] = value, held
                for part in listed(held):
                    self.add(part)
        elif isinstance(value, tuple):
            for part in value:
                self.add(part)
        elif isinstance(value, Tensor):
            empty = value.is_meta or isinstance(value, FakeTensor)
            left = is_lazy(value) or empty or isinstance(value, nn.Parameter)
            if id(value) not in self._values and not left:
                self._values[id(value)] = value, value.detach().clone()

    def put_back(self) -> None:
        for container in self._empty:
            if container:
                container.clear()
        for container, before in self._contents.values():
            if differs(container, before):
                refill(container, before)
        for tensor, value in self._values.values():
            if tensor.layout is not torch.strided:  # torch does not compare all, and writes to them by themselves alone
                with torch.no_grad():
                    tensor.copy_(value)
            elif not torch.equal(tensor.data, value):
                tensor.data.copy_(value)  # without a new version: it is the old one
