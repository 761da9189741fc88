"""Weights that a traced forward writes to, as one does that sets them by its first batch, have their values back afterwards.

Only of those that are written to a copy is made, before that: whoever carries out the forward's operations tells of each. (Of
sparse ones it is made at the beginning.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.cheap import targets, written

_watched: ContextVar[tuple["_Weights", ...]] = ContextVar("watched", default=())  # a traced forward may trace another


@contextmanager
def unwritten(network: nn.Module) -> Iterator[None]:
    """Afterwards the network's parameters hold what they held, whatever operations are told of inside, or `.data` is set to."""
    weights = _Weights(network)
    outer = _watched.set((*_watched.get(), weights))
    try:
        yield
    finally:
        _watched.reset(outer)
        weights.put_back()


def told(func: Any, args: Any, kwargs: Any) -> None:
    """This ATen operation is about to be carried out."""
    watched = _watched.get() if written(func) else ()
    if watched:
        for tensor in filter(_has_memory, targets(func, args, kwargs)):
            for weights in watched:
                weights.written(tensor)


class _Weights:
    def __init__(self, network: nn.Module) -> None:
        self._given = [(p, p.data if _has_memory(p) else p.data.clone()) for p in network.parameters()]
        self._whole: dict[int, list[Tensor]] = {}  # by memory, while it is as it was
        for _, data in self._given:
            if _has_memory(data):
                self._whole.setdefault(_memory(data), []).append(data)
        self._before: list[tuple[Tensor, Tensor]] = []

    def written(self, tensor: Tensor) -> None:
        self._before += [(data, data.clone()) for data in self._whole.pop(_memory(tensor), [])]

    def put_back(self) -> None:
        for data, value in self._before:
            data.copy_(value)  # without a new version of the parameter: it is the old one
        for p, data in self._given:
            if not _has_memory(data):
                with torch.no_grad():
                    p.copy_(data)
            elif _place(p) != _place(data):
                p.data = data


def _has_memory(tensor: Tensor) -> bool:
    """Whether it has one memory, as a sparse one has not."""
    return tensor.layout is torch.strided


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return _memory(tensor), tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()
