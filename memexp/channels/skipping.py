"""Convolutions and matrix products are not computed in a trace: their results have the right shape and are zero."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memexp.channels.unwritten import told

_aten = torch.ops.aten
HEAVY = {
    _aten.convolution.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
}


class ShapesOnly(TorchDispatchMode):
    """Where most of a forward's time goes, only the shape is worked out; all else is carried out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return shaped(func, args, kwargs or {})


def shaped(func: Any, args: Any, kwargs: Any) -> Any:
    """What the operation returns; of a heavy one, zeros of the right shape."""
    if func not in HEAVY:
        told(func, args, kwargs)
        return func(*args, **kwargs)
    like = _result(func, *map(_signature, args), **kwargs)
    device = next(a.device for a in args if isinstance(a, Tensor))
    return torch.empty_strided(like.size, like.stride, dtype=like.dtype, device=device).zero_()


class _Like(NamedTuple):
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Like":
        return cls(tensor.size(), tensor.stride(), tensor.dtype)


def _signature(value: Any) -> Any:
    return _Like.of(value) if isinstance(value, Tensor) else tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=4096)  # a deep network repeats itself
def _result(func: Any, *signature: Any, **kwargs: Any) -> _Like:
    return _Like.of(func(*map(_without_data, signature), **kwargs))


def _without_data(value: Any) -> Any:
    if not isinstance(value, _Like):
        return value
    return torch.empty_strided(value.size, value.stride, dtype=value.dtype, device="meta")
