"""A network that is run for what it shows, and is as before afterwards: its weights, buffers and attributes."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

CONTAINERS = (MutableMapping, list, set, deque)


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Afterwards each module has the attributes that it had, with the values that they had.

    A forward may fill a table at its first call, count calls, keep its latest input, set parameters by its first batch.
    """
    attributes = [(module, dict(vars(module))) for module in network.modules()]
    contents: dict[int, tuple[Any, Any]] = {}
    values: dict[int, tuple[Tensor, Tensor]] = {}
    for _, own in attributes:
        for value in own.values():
            _note(value, contents, values)
    try:
        yield
    finally:
        for module, own in attributes:
            vars(module).clear()
            vars(module).update({name: _lasting(name, value, own["_parameters"]) for name, value in own.items()})
        for container, before in contents.values():
            container.clear()
            container.extend(before) if isinstance(container, list | deque) else container.update(before)
        for tensor, before in values.values():
            if not torch.equal(tensor.data, before):
                tensor.data.copy_(before)  # without a new version: it is the old one


def _lasting(name: str, value: Any, parameters: Mapping[str, Any]) -> Any:
    """A weight that each forward makes anew (torch.nn.utils.prune, weight_norm) without its graph, which cannot be copied."""
    if isinstance(value, Tensor) and value.grad_fn is not None:
        made = any(f"{name}{ending}" in parameters for ending in ("_orig", "_v"))
        return value.detach() if made else value
    return value


def _note(value: Any, contents: dict[int, tuple[Any, Any]], values: dict[int, tuple[Tensor, Tensor]]) -> None:
    if isinstance(value, Tensor):
        if id(value) not in values and not is_lazy(value) and value.device.type != "meta":
            values[id(value)] = value, value.detach().clone()
    elif isinstance(value, CONTAINERS) and id(value) not in contents:
        contents[id(value)] = value, copy.copy(value)
        for part in value.values() if isinstance(value, MutableMapping) else value:
            _note(part, contents, values)
    elif isinstance(value, tuple):
        for part in value:
            _note(part, contents, values)
