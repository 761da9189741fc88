"""Weights that a traced forward writes to, as one does that sets them by its first batch, have their values back afterwards.

Only of those that are written to a copy is made, before that: whoever carries out the forward's operations tells of each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_iter

_weights: ContextVar["_Weights | None"] = ContextVar("weights", default=None)


@contextmanager
def unwritten(network: nn.Module) -> Iterator[None]:
    """Afterwards the network's parameters hold what they held, whatever operations are told of inside, or `.data` is set to."""
    weights = _Weights(network)
    outer = _weights.set(weights)
    try:
        yield
    finally:
        _weights.reset(outer)
        weights.put_back()


def told(func: Any, args: Any, kwargs: Any) -> None:
    """This ATen operation is about to be carried out."""
    weights = _weights.get() if _writes(func) else None
    if weights is not None:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                weights.written(value)


@cache
def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


class _Weights:
    def __init__(self, network: nn.Module) -> None:
        held = [p for p in network.parameters() if not (p.is_meta or isinstance(p, FakeTensor))]
        self._given = [(p, p.data) for p in held]
        self._whole: dict[int, list[Tensor]] = {}  # by memory, while it is as it was
        for _, data in self._given:
            self._whole.setdefault(_memory(data), []).append(data)
        self._before: list[tuple[Tensor, Tensor]] = []

    def written(self, tensor: Tensor) -> None:
        self._before += [(data, data.clone()) for data in self._whole.pop(_memory(tensor), [])]

    def put_back(self) -> None:
        for data, value in self._before:
            data.copy_(value)  # without a new version of the parameter: it is the old one
        for p, data in self._given:
            if _place(p) != _place(data):
                p.data = data


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return _memory(tensor), tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()
