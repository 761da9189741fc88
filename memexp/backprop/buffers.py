"""Buffers that a first pass moves, and what they were before it: a recomputation sees them so, and moves none.

A buffer is moved where it is written to, through `.data` too unless it is sparse, is replaced, or is there for the first time.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from memexp.backprop.capture import is_captured

LARGE = 2**16  # bytes of a buffer from which on it is copied only if it is written to
MISSING = object()
Values = list[tuple[nn.Module, str, Any]]  # what was a tensor, None, or MISSING
Noted = list[tuple[nn.Module, dict[str, tuple[Tensor | None, int, Tensor | None]]]]


def noted(modules: Iterable[nn.Module]) -> Noted:
    """What the modules have for buffers: each with its version and its value."""
    return [(m, {name: _noted(b) for name, b in m._buffers.items()} if m._buffers else {}) for m in modules]


def _noted(buffer: Tensor | None) -> tuple[Tensor | None, int, Tensor | None]:
    if buffer is None or buffer.is_inference():
        return buffer, 0, None
    return buffer, buffer._version, _copy(buffer)


def moved(before: Noted) -> Values:
    """Those that are others since, with what they were."""
    found: Values = []
    for module, own in before:
        now = module._buffers
        if not own and not now:
            continue
        for name, (buffer, version, value) in own.items():
            if now.get(name, MISSING) is not buffer or (value is not None and _written(buffer, version, value)):
                found.append((module, name, value if value is not None else buffer))
        found += [(module, name, MISSING) for name in now if name not in own]
    return found


def _written(buffer: Any, version: int, value: Tensor) -> bool:
    if buffer._version != version:
        return True
    if buffer.layout is not torch.strided:  # torch compares no values of all that are sparse
        return False
    if buffer.nbytes >= LARGE:  # its copy shares its memory until one of them is written to
        shared = torch._C._is_cow_tensor  # type: ignore[attr-defined]
        return shared(value) and not shared(buffer)
    # a stand-in without data has no values to compare
    return type(buffer) is Tensor and not buffer.is_meta and not is_captured(buffer) and not torch.equal(buffer, value)


def _copy(buffer: Tensor) -> Tensor:
    """Its value, whatever becomes of it. A large one, such as a mask, is copied only when it is written to."""
    if buffer.layout is torch.strided and buffer.nbytes >= LARGE:
        try:
            return torch._lazy_clone(buffer)
        except (RuntimeError, NotImplementedError):  # memory that torch did not allocate, or no data at all
            pass
    return buffer.clone()


def as_before(values: Values) -> list[tuple[nn.Module, str, Any]]:
    """`_buffers` for each of the modules, in which these are what they were."""
    found: dict[nn.Module, dict[str, Any]] = {}
    for module, name, value in values:
        own = found.setdefault(module, dict(module._buffers))
        if value is MISSING:
            own.pop(name, None)
        else:
            own[name] = value.clone() if isinstance(value, Tensor) else value
    return [(module, "_buffers", buffers) for module, buffers in found.items()]


def normalises(module: nn.Module) -> bool:
    """Whether it is a layer that in training reads the batch's statistics alone, as one with a user's forward may not."""
    if not isinstance(module, _NormBase):
        return False
    forwards = type(module).forward, module.forward  # a Chain may stand before the class's own
    return all([forward.__module__.startswith(("torch.", "memexp.")) for forward in forwards])


def calls_of(norm: nn.Module) -> int | None:
    """Grows with each call of a layer that counts its batches; not where a block hands its statistics to F.batch_norm."""
    count = norm._buffers.get("num_batches_tracked")
    return None if count is None or count.is_inference() else count._version
